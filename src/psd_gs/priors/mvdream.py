"""MVDream's published weights (arXiv 2308.16512) under the names of diffusers' U-Net.

The checkpoints keep the names of the original latent diffusion code. Layer by layer they are diffusers'
``UNet2DConditionModel``: the camera's network is its class embedding, and self-attention over views a processor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from psd_gs.priors.loading import check_component, check_tokenizer, explained, without_bars
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.weights import compare_shapes, read_header, read_json, weight_files

VIEWS = 4

SD21_4VIEW = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "context_dim": 1024,
    "camera_dim": 16,
}
"""``sd-v2.1-base-4view``; source: bytedance/MVDream, ``configs/sd-v2-base.yaml``."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def unet_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of latent diffusion's U-Net as those of diffusers' one."""
    widths = [original["model_channels"] * factor for factor in original["channel_mult"]]
    crossed = [2**level in original["attention_resolutions"] for level in range(len(widths))]
    return {
        "sample_size": original["image_size"],
        "in_channels": original["in_channels"],
        "out_channels": original["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": original["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
        "attention_head_dim": [width // original["num_head_channels"] for width in widths],  # the number of heads
        "cross_attention_dim": original["context_dim"],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": original["camera_dim"],
    }


def original_names(unet: UNet2DConditionModel, names: Iterable[str] | None = None) -> dict[str, str]:
    """Our name of every tensor, or of those with ``names``, to its name in latent diffusion's U-Net; one to one."""
    layers = unet.config.layers_per_block + 1  # of a block on the way up, and with the sampler on the way down
    crossed = [kind.startswith("CrossAttn") for kind in unet.config.up_block_types]
    return {name: _original_name(name, layers, crossed) for name in names or unet.state_dict()}


def _original_name(name: str, layers: int, crossed: list[bool]) -> str:
    match = _BLOCK.fullmatch(name)
    if not match:
        module, _, leaf = name.rpartition(".")
        return f"{_ENDS[module]}.{leaf}"
    way, block, middle, part, layer, rest = match.groups()
    if part == "resnets":
        module, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[module]}.{leaf}"
    if middle:
        return f"middle_block.{1 if part == 'attentions' else 2 * int(layer)}.{rest}"
    first = int(block) * layers
    if part == "downsamplers":
        return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        return f"output_blocks.{first + layers - 1}.{1 + crossed[int(block)]}.{rest}"
    index = first + int(layer) + (way == "down")
    return f"{'input' if way == 'down' else 'output'}_blocks.{index}.{int(part == 'attentions')}.{rest}"


def build_unet(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> UNet2DConditionModel:
    """The network of an original configuration that holds exactly the given tensors.

    Args:
        config: original fields, such as :data:`SD21_4VIEW`.
        tensors: under original names.
        what: for errors.

    Raises:
        ModelError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(config))
    names = original_names(unet)
    expected = {names[ours]: tuple(tensor.shape) for ours, tensor in unet.state_dict().items()}
    compare_shapes(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, what)
    unet.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)
    return unet


def scheduler() -> DDIMScheduler:
    """MVDream's levels: noise prediction, those of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class MVDreamPrior(MultiViewPrior):
    """A folder of the diffusers-format repositories, whose U-Net keeps its original names and remote code.

    The code is not run; the weights are read and renamed.
    """

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, name: str, dtype: torch.dtype = torch.float32, **options: Any
    ) -> MVDreamPrior:
        folder = Path(folder)
        with explained(folder), without_bars():
            config, tensors, others = read_components(folder, dtype)
            unet = build_unet(config, tensors, str(folder / "unet")).to(dtype)
            pipeline = MultiViewPipeline(unet=unet, **others)
        return cls(pipeline, name, **options)


def read_components(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The original fields of the U-Net, its tensors by their original names, and what else the pipeline takes.

    Raises:
        ModelError: files are missing, truncated or of another architecture.
    """
    from safetensors.torch import load_file

    kinds = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    for part, kind in kinds.items():
        check_component(folder / part, kind.__module__.split(".")[0], kind.__name__)
    config = read_json(folder / "unet" / "config.json", f"{folder / 'unet'}: expected config.json")
    (file,) = weight_files(folder / "unet")
    read_header(file)
    networks = {
        part: kind.from_pretrained(folder / part, local_files_only=True, dtype=dtype, **variant(folder / part))
        for part, kind in kinds.items()
    }
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    check_tokenizer(tokenizer, networks["text_encoder"])
    return config, load_file(file), {"tokenizer": tokenizer, "scheduler": scheduler(), "views": VIEWS, **networks}


def variant(folder: Path) -> dict[str, str]:
    """``fp16`` if its weights are such ones, for ``from_pretrained``."""
    return {"variant": "fp16"} if "fp16" in weight_files(folder)[0].name else {}
