"""Preprocessing of image models, differentiable and batched: what PIL or torchvision did when they were trained.

Antialiased bicubic interpolation is PIL's; without antialiasing it is off by up to 35/255 where an
image shrinks. Unlike PIL nothing is rounded or clamped in between, so gradients reach saturated
pixels too; the overshoot of the cubic kernel (about 0.04) stays.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from psd_gs.resize import resized

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Float[Tensor, "B 3 H W"], height: int, width: int) -> Float[Tensor, "B 3 h w"]:
    """Antialiased bicubic interpolation in float32."""
    return resized(images.float(), height, width, "bicubic")


def fit_crop(images: Float[Tensor, "B 3 H W"], size: int) -> Float[Tensor, "B 3 size size"]:
    """Shorter side to ``size``, then the centre (OpenAI's CLIP, ImageReward: Resize and CenterCrop)."""
    height, width = images.shape[-2:]
    short = min(height, width)
    out = resize(images, height * size // short, width * size // short)
    top, left = (round((n - size) / 2) for n in out.shape[-2:])
    return out[..., top : top + size, left : left + size]


def fit_pad(images: Float[Tensor, "B 3 H W"], size: int) -> Float[Tensor, "B 3 size size"]:
    """Longer side to ``size``, black around (HPS v2's ResizeMaxSize)."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    out = resize(images, round(height * scale), round(width * scale))
    down, right = (size - n for n in out.shape[-2:])
    return F.pad(out, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalize(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """sRGB in [0, 1] to CLIP's mean 0 and standard deviation 1."""
    mean, std = _statistics(images.device)
    return (images - mean) / std


@cache
def _statistics(device: torch.device) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return mean, std
