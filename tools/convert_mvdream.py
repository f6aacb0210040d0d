"""MVDream's original checkpoint to a folder that ``psd-gs generate --prior FOLDER`` loads.

    python tools/convert_mvdream.py sd-v2.1-base-4view.pt mvdream --tokenizer FOLDER

The file is published at https://huggingface.co/MVDream/MVDream (5.3 GB). It is read with ``weights_only``. The
tokenizer is OpenAI CLIP's; without ``--tokenizer`` it is taken from the hub's cache or fetched.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from psd_gs.errors import ModelError, PsdGsError
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import SD21_4VIEW, VIEWS, build_unet, scheduler
from psd_gs.weights import compare_shapes, locate

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
SCALING = 0.18215

_TEXT_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a torch checkpoint.

    Raises:
        ModelError: not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, its unpickler and the disk each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{path}: expected a torch checkpoint, received one that cannot be read: {reason}.") from error
    return state.get("state_dict", state)


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def build_vae(tensors: Mapping[str, Tensor]) -> AutoencoderKL:
    """The autoencoder that latent diffusion's tensors describe."""
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down."))
    config = {
        "block_out_channels": [len(tensors[f"encoder.down.{i}.block.0.conv2.weight"]) for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.bias", n)) for n in tensors),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "sample_size": 256,
        "scaling_factor": SCALING,
    }
    return filled(AutoencoderKL, config, convert_ldm_vae_checkpoint(dict(tensors), config), "autoencoder")


def build_text_encoder(tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    """open_clip's text tower as CLIPTextModel; its last layer is dropped, because MVDream reads the one before."""
    layers = max(int(name.split(".")[2]) for name in tensors if name.startswith("transformer.resblocks."))
    vocabulary, width = tensors["token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(tensors["transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(tensors["positional_embedding"]),
        hidden_act="gelu",
        pad_token_id=0,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    ours = {
        "embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["positional_embedding"],
        "final_layer_norm.weight": tensors["ln_final.weight"],
        "final_layer_norm.bias": tensors["ln_final.bias"],
    }
    for layer in range(layers):
        theirs, mine = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for leaf in ("weight", "bias"):
            ours |= {f"{mine}.{b}.{leaf}": tensors[f"{theirs}.{a}.{leaf}"] for a, b in _TEXT_LAYER.items()}
            thirds = tensors[f"{theirs}.attn.in_proj_{leaf}"].chunk(3)
            ours |= {f"{mine}.self_attn.{n}_proj.{leaf}": third for n, third in zip("qkv", thirds, strict=True)}
    return filled(CLIPTextModel, config, ours, "text encoder")


def filled(cls: type, config: Any, tensors: Mapping[str, Tensor], what: str) -> Any:
    """A network of ``cls`` with exactly these tensors."""
    network = cls(**config) if isinstance(config, dict) else cls(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    tensors = {
        name: value.squeeze() if value.ndim > len(shapes.get(name, ())) else value for name, value in tensors.items()
    }
    compare_shapes(shapes, {name: tuple(value.shape) for name, value in tensors.items()}, what)
    network.load_state_dict(tensors)
    return network


def convert(
    state: Mapping[str, Tensor], tokenizer: CLIPTokenizer, config: Mapping[str, Any] = SD21_4VIEW
) -> MultiViewPipeline:
    """The pipeline in a checkpoint's tensors.

    Raises:
        ModelError: a part is missing, or of another architecture.
    """
    for prefix, what in ((UNET, "U-Net"), (VAE, "autoencoder"), (TEXT, "text encoder")):
        if not part(state, prefix):
            raise ModelError(f"expected a checkpoint with a {what} ({prefix}*), received {list(state)[:5]}.")
    unet = build_unet(config, part(state, UNET), "U-Net")
    vae, text_encoder = build_vae(part(state, VAE)), build_text_encoder(part(state, TEXT))
    return MultiViewPipeline(tokenizer, text_encoder, unet, scheduler(), vae, views=VIEWS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with vocab.json and merges.txt of CLIP")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = parser.parse_args(arguments)
    try:
        words = options.tokenizer or locate("clip-tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(words, pad_token="!", model_max_length=77)  # open_clip pads with 0
        pipeline = convert(read_checkpoint(options.checkpoint), tokenizer)
        pipeline.to(getattr(torch, options.dtype)).save_pretrained(options.folder)
    except (PsdGsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.folder}; use it with: psd-gs generate PROMPT --prior {options.folder}")


if __name__ == "__main__":
    main()
