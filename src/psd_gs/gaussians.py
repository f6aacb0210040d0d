"""A set of 3D Gaussians, stored as the optimizer sees it (gsplat's names and activations)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SH_C0 = 0.28209479177387814
"""Value of the degree-0 real spherical harmonic: rgb = 0.5 + SH_C0 * sh0."""

RenderMode = Literal["default", "antialiased", "2dgs"]
"""How Gaussians were trained, and so are to be rendered: as 3DGS does; with opacities that make up for the blur on the
screen (Mip-Splatting, Yu et al. 2024); or as flat discs (2DGS, Huang et al. 2024), whose third axis is nearly zero."""

_TENSORS = ("means", "quats", "scales", "opacities", "sh0", "shN")


@dataclass
class Gaussians:
    """Parameters of N Gaussians in the world frame (glTF: +Y up, the front faces +Z).

    Attributes:
        means: centres, world units.
        quats: rotations as wxyz, not necessarily normalized.
        scales: natural logarithms of the standard deviations along the local axes.
        opacities: logits of the opacity.
        sh0: degree-0 spherical-harmonics coefficients of the sRGB colour.
        shN: the remaining coefficients, K = (degree + 1)**2 of them with sh0; K - 1 may be 0.
        mode: how they are to be rendered.
        origin: where the origin of ``means`` lies in the world that a file was measured in, x, y, z in double
            precision: zero but for assets so far out (UTM coordinates) that float32 would be too coarse.
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh0: Float[Tensor, "N 1 3"]
    shN: Float[Tensor, "N K-1 3"]
    mode: RenderMode = "default"
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def sh_degree(self) -> int:
        """0 to 3, from the number of coefficients."""
        return round((self.shN.shape[1] + 1) ** 0.5) - 1

    @property
    def sh(self) -> Float[Tensor, "N K 3"]:
        """All spherical-harmonics coefficients, degree 0 first."""
        return torch.cat([self.sh0, self.shN], dim=1)

    def params(self) -> dict[str, Tensor]:
        """The tensors by name, in the order of the fields; the same tensors, not copies."""
        return {name: getattr(self, name) for name in _TENSORS}

    def map(self, function) -> Gaussians:
        """Apply ``function`` to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.params().items()})

    def to(self, device: torch.device | str) -> Gaussians:
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> Gaussians:
        return self.map(torch.Tensor.detach)

    def select(self, index: Tensor) -> Gaussians:
        """The rows that ``index`` (a boolean mask or integer indices) picks."""
        return self.map(lambda tensor: tensor[index])


def usable(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """Which rows are finite and have a rotation."""
    finite = [p.isfinite().reshape(len(p), math.prod(p.shape[1:])).all(1) for p in gaussians.params().values()]
    return torch.stack(finite).all(0) & (gaussians.quats.norm(dim=1) > 0)


def rgb_to_sh0(rgb: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """sRGB colour in [0, 1] to the degree-0 coefficient."""
    return (rgb - 0.5) / SH_C0


def sh0_to_rgb(sh0: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Degree-0 coefficient to sRGB colour (not clamped)."""
    return sh0 * SH_C0 + 0.5


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
