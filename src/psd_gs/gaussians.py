"""A set of 3D Gaussians, stored as the optimizer sees it (gsplat's names and activations)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.splats import SH_C0, Cloud, RenderMode, Splats, rgb_to_sh0, sh0_to_rgb

__all__ = [
    "SH_C0",
    "Gaussians",
    "RenderMode",
    "from_points",
    "random_ball",
    "rgb_to_sh0",
    "rotation_matrices",
    "sh0_to_rgb",
    "usable",
]


@dataclass
class Gaussians(Cloud):
    """Parameters of N Gaussians in the world frame (glTF: +Y up, the front faces +Z), as tensors.

    Attributes:
        means: centres, world units.
        quats: rotations as wxyz, not necessarily normalized.
        scales: natural logarithms of the standard deviations along the local axes.
        opacities: logits of the opacity.
        sh0: degree-0 spherical-harmonics coefficients of the sRGB colour.
        shN: the remaining coefficients, K = (degree + 1)**2 of them with sh0; K - 1 may be 0.
        mode: how they are to be rendered.
        origin: see :class:`psd_gs.splats.Cloud`.
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh0: Float[Tensor, "N 1 3"]
    shN: Float[Tensor, "N K-1 3"]

    @classmethod
    def of(cls, splats: Splats) -> Self:
        """Arrays as tensors, which share their memory."""
        tensors = {name: torch.from_numpy(values) for name, values in splats.params().items()}
        return cls(**tensors, mode=splats.mode, origin=splats.origin)

    def splats(self) -> Splats:
        """Tensors as float32 arrays, which share the memory of those that are so already."""
        arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in self.params().items()}
        return Splats(**arrays, mode=self.mode, origin=self.origin)

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def sh(self) -> Float[Tensor, "N K 3"]:
        """All spherical-harmonics coefficients, degree 0 first."""
        return torch.cat([self.sh0, self.shN], dim=1)

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> Self:
        return self.map(torch.Tensor.detach)


def usable(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """Which rows are finite and have a rotation."""
    finite = [p.isfinite().reshape(len(p), math.prod(p.shape[1:])).all(1) for p in gaussians.params().values()]
    return torch.stack(finite).all(0) & (gaussians.quats.norm(dim=1) > 0)


def rotation_matrices(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """Matrices whose columns are the local axes, from wxyz quaternions of any length but zero."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def from_points(
    points: Float[Tensor, "N 3"],
    rgb: Float[Tensor, "N 3"],
    *,
    scale: float,
    opacity: float,
    sh_degree: int = 0,
) -> Gaussians:
    """Isotropic Gaussians of one size and opacity at the given points.

    Args:
        points: centres, world units.
        rgb: sRGB colours in [0, 1].
        scale: standard deviation, world units.
        opacity: in (0, 1).
        sh_degree: 0 to 3; the coefficients above degree 0 start at zero.
    """
    n = points.shape[0]
    quats = points.new_zeros(n, 4)
    quats[:, 0] = 1
    return Gaussians(
        means=points.clone(),
        quats=quats,
        scales=points.new_full((n, 3), scale).log(),
        opacities=points.new_full((n,), opacity).logit(),
        sh0=rgb_to_sh0(rgb)[:, None, :].clone(),
        shN=points.new_zeros(n, (sh_degree + 1) ** 2 - 1, 3),
    )


def random_ball(
    n: int,
    radius: float,
    *,
    scale: float,
    opacity: float,
    sh_degree: int = 0,
    generator: torch.Generator | None = None,
) -> Gaussians:
    """``n`` grey Gaussians uniformly distributed in a ball around the origin.

    Args:
        n: how many.
        radius: of the ball, world units.
        scale: standard deviation of each, world units.
        opacity: of each, in (0, 1).
        sh_degree: 0 to 3.
        generator: source of randomness (CPU).
    """
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    distance = radius * torch.rand(n, 1, generator=generator) ** (1 / 3)
    rgb = 0.5 + 0.02 * torch.randn(n, 3, generator=generator)
    return from_points(direction * distance, rgb, scale=scale, opacity=opacity, sh_degree=sh_degree)
