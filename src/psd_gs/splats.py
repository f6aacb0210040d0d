"""3D Gaussians as plain arrays: what files hold and what becomes of it, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

SH_C0 = 0.28209479177387814
"""Value of the degree-0 real spherical harmonic: rgb = 0.5 + SH_C0 * sh0."""

RenderMode = Literal["default", "antialiased", "2dgs"]
"""How Gaussians were trained, and so are to be rendered: as 3DGS does; with opacities that make up for the blur on the
screen (Mip-Splatting, Yu et al. 2024); or as flat discs (2DGS, Huang et al. 2024), whose third axis is nearly zero."""

BLOCK = 1 << 13
"""Rows of a block, small enough for the cache; a multiple of 256, the chunk of the compressed PLY."""
_LARGEST = float(np.finfo(np.float32).max)
_PARAMS = ("means", "quats", "scales", "opacities", "sh0", "shN")


@dataclass
class Cloud:
    """N Gaussians, as :class:`Splats` of arrays or as :class:`psd_gs.gaussians.Gaussians` of tensors.

    Attributes:
        means: centres, [N, 3].
        quats: rotations as wxyz, not necessarily normalized, [N, 4].
        scales: natural logarithms of the standard deviations along the local axes, [N, 3].
        opacities: logits of the opacity, [N].
        sh0: degree-0 spherical-harmonics coefficients of the sRGB colour, [N, 1, 3].
        shN: the remaining coefficients, [N, K - 1, 3]: K = (degree + 1)**2 of them with sh0; K - 1 may be 0.
        mode: how they are to be rendered.
        origin: where the origin of ``means`` lies in the world that a file was measured in, x, y, z in double
            precision: zero but for assets so far out (UTM coordinates) that float32 would be too coarse.
    """

    means: Any
    quats: Any
    scales: Any
    opacities: Any
    sh0: Any
    shN: Any
    mode: RenderMode = "default"
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """0 to 3, from the number of coefficients."""
        return round((self.shN.shape[1] + 1) ** 0.5) - 1

    def params(self) -> dict[str, Any]:
        """The arrays or tensors by name, in the order of the fields; the same ones, not copies."""
        return {name: getattr(self, name) for name in _PARAMS}

    def map(self, function: Callable[[Any], Any]) -> Self:
        """Apply ``function`` to each of :meth:`params`."""
        return replace(self, **{name: function(values) for name, values in self.params().items()})

    def select(self, index: Any) -> Self:
        """The rows that ``index`` (a boolean mask, integer indices or a slice) picks."""
        return self.map(lambda values: values[index])


@dataclass
class Splats(Cloud):
    """Gaussians as float32 arrays, in the axes of the world or of a file; ``means`` are double on their way from a
    file. Attributes are those of :class:`Cloud`."""

    means: Float[np.ndarray, "N 3"]
    quats: Float[np.ndarray, "N 4"]
    scales: Float[np.ndarray, "N 3"]
    opacities: Float[np.ndarray, " N"]
    sh0: Float[np.ndarray, "N 1 3"]
    shN: Float[np.ndarray, "N K-1 3"]

    @property
    def sh(self) -> Float[np.ndarray, "N K 3"]:
        """All spherical-harmonics coefficients, degree 0 first."""
        return np.concatenate([self.sh0, self.shN], axis=1)

    @cached_property
    def usable(self) -> Bool[np.ndarray, " N"]:
        """Which rows are no damage, found out once.

        Infinite opacities (opaque or invisible) and log scales of minus infinity (flat) are values. NaN anywhere, an
        infinite position, size or colour, and a rotation of zero are damage.
        """
        return np.concatenate([np.zeros(0, bool), *(_usable(self.select(slice(*part))) for part in ranges(len(self)))])


def _usable(block: Splats) -> Bool[np.ndarray, " N"]:
    tests = [
        *(np.isfinite(values) for values in (block.quats, block.sh0, block.shN)),
        np.abs(block.means) <= _LARGEST,  # on the way from a file they are double
        block.scales < math.inf,
        ~np.isnan(block.opacities),
        reduce(np.logical_or, block.quats.T != 0),
    ]
    good = np.ones(len(block), bool)
    for fine in tests:
        if not fine.all():  # most blocks have no other rows, and a test of each row takes long
            good &= fine.reshape(len(block), -1).all(axis=1)
    return good


def ranges(count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of ``count`` rows."""
    return ((begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


AnyCloud = TypeVar("AnyCloud", bound=Cloud)


def scaled(cloud: AnyCloud, factor: float) -> AnyCloud:
    """The asset ``factor`` times as large, about the origin of its means."""
    x, y, z = cloud.origin
    return replace(
        cloud,
        means=cloud.means * factor,
        scales=cloud.scales + math.log(factor),
        origin=(x * factor, y * factor, z * factor),
    )


def rgb_to_sh0(rgb: Any) -> Any:
    """sRGB colour in [0, 1], an array or tensor [*B, 3], to the degree-0 coefficient."""
    return (rgb - 0.5) / SH_C0


def sh0_to_rgb(sh0: Any) -> Any:
    """Degree-0 coefficient, an array or tensor [*B, 3], to sRGB colour (not clamped)."""
    return sh0 * SH_C0 + 0.5
