"""What an oracle and the test that reads its answers have in common, in NumPy and PyTorch: it runs in both places."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"

IMAGE, PATCH, LENGTH, VOCABULARY = 56, 14, 12, 60
"""Of the tiny models: image and patch side in pixels, tokens of a prompt, entries of the vocabulary."""
SIZES = [(56, 56), (96, 96), (40, 40), (64, 90), (131, 70)]
"""Height and width of the pictures that are scored; the seed of each is its place."""


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A random tensor for each name and shape of a reference's state dict, the same wherever it is computed."""
    out = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        values = random.standard_normal(shape)
        is_norm = len(shape) == 1 and name.endswith("weight")
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 16
        out[name] = (1 + 0.1 * values if is_norm else values / np.sqrt(fan_in)).astype(np.float32)
    return out


def filled(model: torch.nn.Module, **given: np.ndarray) -> torch.nn.Module:
    """A reference with these weights, but for those given; numbers that are no weights stay."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    state = {name: torch.as_tensor(value) for name, value in (weights(shapes) | given).items()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def bare(name: str, folder: Path) -> None:
    """A package whose own __init__, which imports far more than is needed, does not run."""
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [str(folder)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A band-limited image ``[height, width, 3]`` uint8, well inside [0, 255]."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width]
    out = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(4):
            fy, fx = random.uniform(-3, 3, 2)
            phase = random.uniform(0, 6.28)
            out[..., channel] += np.sin(2 * np.pi * (fy * y / height + fx * x / width) + phase)
    return np.round(127.5 + 20 * out).astype(np.uint8)


def parse(listing: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Name to shape, from what :func:`listing` made."""
    rows = (str(row).split(" ") for row in listing)
    return {name: tuple(map(int, shape.split("x"))) if shape else () for name, shape in rows}


def listing(state: dict) -> np.ndarray:
    """Names and shapes of a state dict, one line per tensor."""
    return np.array([f"{name} {'x'.join(map(str, value.shape))}" for name, value in state.items()])


BLIP_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "car", "cat", "on", "the", "view", "front"]
BLIP_WORDS += ["side", "back", "overhead", ",", "##s", "hat", "."]
"""The tiny tokenizer."""
BLIP_PROMPTS = ["a red car, front view", "a cat on the hats", " ".join(["red cats"] * 40), "unheard"]
BLIP_SIZES = {"vision_width": 32, "vision_heads": 2}
BERT = {
    "hidden_size": 768,  # the heads' width is fixed
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "vocab_size": len(BLIP_WORDS) + 2,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "add_cross_attention": True,
    "encoder_width": 768,
}
"""med_config.json of the tiny text encoder."""


MVDREAM_UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2],
    "num_head_channels": 16,
    "context_dim": 24,
    "camera_dim": 16,
}
"""A tiny U-Net with a level without attention, in latent diffusion's fields."""
IMAGEDREAM_UNET = MVDREAM_UNET | {"ip_dim": 16}
"""The same beside a picture."""
MVDREAM_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
