"""The original checkpoint of MVDream or ImageDream to a folder that ``psd-gs generate --prior FOLDER`` loads.

    python tools/convert_mvdream.py sd-v2.1-base-4view.pt mvdream --tokenizer FOLDER
    python tools/convert_mvdream.py sd-v2.1-base-4view-ipmv.pt imagedream --tokenizer FOLDER

The files are published at https://huggingface.co/MVDream/MVDream (5.3 GB) and
https://huggingface.co/Peng-Wang/ImageDream. They are read with ``weights_only``. The tokenizer is OpenAI CLIP's;
without ``--tokenizer`` it is taken from the hub's cache or fetched.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from psd_gs.errors import ModelError, PsdGsError
from psd_gs.priors import imagedream
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import SD21_4VIEW, VIEWS, build_unet, scheduler
from psd_gs.rewards.checkpoints import read_tensors, renamed
from psd_gs.weights import compare_shapes, locate

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
VISION = f"{TEXT}visual."
IMAGEDREAM_NAMES = ((r"^vae_model\.", VAE), (r"^clip_model\.model\.", TEXT))
"""What ImageDream calls the parts that MVDream has as well."""

SCALING = 0.18215

VISION_HEAD = 80
"""Channels of an attention head in open_clip's ViT-H-14, which the tensors do not tell."""

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a torch checkpoint, those of ImageDream by the names that they would have in one of MVDream.

    Raises:
        ModelError: not such a file.
    """
    state = read_tensors(path, "the prior", mmap=True)
    return {renamed(name, IMAGEDREAM_NAMES): value for name, value in state.items()}


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
    sizes = tower(tensors, head=64)
    sizes["num_hidden_layers"] -= 1
    vocabulary = len(tensors["token_embedding.weight"])
    config = CLIPTextConfig(
        **sizes,
        vocab_size=vocabulary,
        max_position_embeddings=len(tensors["positional_embedding"]),
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
    return filled(CLIPTextModel, config, ours | transformer(tensors, config.num_hidden_layers), "text encoder")


def build_image_encoder(tensors: Mapping[str, Tensor]) -> CLIPVisionModel:
    """open_clip's tower for pictures as CLIPVisionModel."""
    patch = tensors["conv1.weight"].shape[-1]
    side = round((len(tensors["positional_embedding"]) - 1) ** 0.5)
    config = CLIPVisionConfig(**tower(tensors, VISION_HEAD), image_size=patch * side, patch_size=patch)
    ours = {
        "embeddings.class_embedding": tensors["class_embedding"],
        "embeddings.patch_embedding.weight": tensors["conv1.weight"],
        "embeddings.position_embedding.weight": tensors["positional_embedding"],
    }
    for theirs, mine in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        ours |= {f"{mine}.{leaf}": tensors[f"{theirs}.{leaf}"] for leaf in ("weight", "bias")}
    return filled(CLIPVisionModel, config, ours | transformer(tensors, config.num_hidden_layers), "image encoder")


def tower(tensors: Mapping[str, Tensor], head: int) -> dict[str, Any]:
    """Sizes of open_clip's transformer in the words of transformers; ``head`` is the width of an attention head."""
    hidden, width = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("transformer.resblocks.")}
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": 1 + max(layers),
        "num_attention_heads": max(1, width // head),
        "hidden_act": "gelu",
    }


def transformer(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The first layers of open_clip's transformer under the names of transformers."""
    ours = {}
    for layer in range(layers):
        theirs, mine = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for leaf in ("weight", "bias"):
            ours |= {f"{mine}.{b}.{leaf}": tensors[f"{theirs}.{a}.{leaf}"] for a, b in _LAYER.items()}
            thirds = tensors[f"{theirs}.attn.in_proj_{leaf}"].chunk(3)
            ours |= {f"{mine}.self_attn.{n}_proj.{leaf}": third for n, third in zip("qkv", thirds, strict=True)}
    return ours


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
    check_parts(state, {UNET: "a U-Net", VAE: "an autoencoder", TEXT: "a text encoder"})
    unet = build_unet(config, part(state, UNET), "U-Net")
    vae, text_encoder = build_vae(part(state, VAE)), build_text_encoder(part(state, TEXT))
    return MultiViewPipeline(tokenizer, text_encoder, unet, scheduler(), vae, views=VIEWS)


def check_parts(state: Mapping[str, Tensor], parts: Mapping[str, str]) -> None:
    """Refuse a checkpoint without tensors below one of the prefixes; the values say what these are of.

    Raises:
        ModelError: a part is missing.
    """
    for prefix, what in parts.items():
        if not part(state, prefix):
            raise ModelError(f"expected a checkpoint with {what} ({prefix}*), received {list(state)[:5]}.")


def save_imagedream(
    state: Mapping[str, Tensor],
    tokenizer: CLIPTokenizer,
    folder: Path,
    dtype: torch.dtype,
    config: Mapping[str, Any] = imagedream.SD21_4VIEW_IPMV,
) -> None:
    """The folder that ImageDreamPrior reads: the U-Net's tensors keep their names, the other networks are diffusers'.

    Raises:
        ModelError: a part is missing, or of another architecture.
    """
    check_parts(state, {VAE: "an autoencoder", TEXT: "a text encoder", VISION: "an image encoder"})
    tensors, encoder = part(state, UNET), build_image_encoder(part(state, VISION))
    imagedream.build(config, tensors, "U-Net", encoder.config.hidden_size)
    components = {
        "tokenizer": tokenizer,
        "scheduler": scheduler(),
        "text_encoder": build_text_encoder(part(state, TEXT)).to(dtype),
        "image_encoder": encoder.to(dtype),
        "vae": build_vae(part(state, VAE)).to(dtype),
    }
    index = {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    for name, component in components.items():
        component.save_pretrained(folder / name)
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
    unet = folder / "unet"
    unet.mkdir(exist_ok=True)
    kept = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(kept, unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


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
        state, dtype = read_checkpoint(options.checkpoint), getattr(torch, options.dtype)
        if part(state, f"{UNET}image_embed."):
            save_imagedream(state, tokenizer, options.folder, dtype)
        else:
            convert(state, tokenizer).to(dtype).save_pretrained(options.folder)
    except (PsdGsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.folder}; use it with: psd-gs generate PROMPT --prior {options.folder}")


if __name__ == "__main__":
    main()
