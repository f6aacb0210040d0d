"""View-dependent prompts for models that see no cameras. Source: DreamFusion (2209.14988), section 3.2."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras

DIRECTIONS = ("front view", "side view", "back view", "overhead view")


def view_angles(cameras: Cameras) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Azimuth in (-180, 180], 0 in front, and elevation above the horizon, degrees."""
    x, y, z = cameras.positions.unbind(-1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


def direction_index(cameras: Cameras) -> Int[Tensor, " C"]:
    """Index into ``DIRECTIONS``: overhead above 60 degrees of elevation, front and back within 45 of the axis."""
    azimuth, elevation = view_angles(cameras)
    around = (azimuth.abs() >= 45).long() + (azimuth.abs() > 135).long()
    return torch.where(elevation > 60, 3, around)


def directed(prompt: str) -> list[str]:
    """The prompt seen from each of ``DIRECTIONS``."""
    return [f"{prompt}, {direction}" for direction in DIRECTIONS]
