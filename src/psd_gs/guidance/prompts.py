"""View-dependent prompts for models that see no cameras. Source: DreamFusion (2209.14988), section 3.2."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from psd_gs.cameras import SIDES, Cameras, side_index

DIRECTIONS = tuple(f"{side} view" for side in SIDES)


def direction_index(cameras: Cameras) -> Int[Tensor, " C"]:
    """Index into ``DIRECTIONS``, front and back within 45 degrees of the axis."""
    return side_index(cameras, 45.0)


def directed(prompt: str) -> list[str]:
    """The prompt seen from each of ``DIRECTIONS``."""
    return [f"{prompt}, {direction}" for direction in DIRECTIONS]
