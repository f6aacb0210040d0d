"""What the export tests share: assets, and the largest error that each format may make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from psd_gs.export.frames import turn_x180
from psd_gs.gaussians import Gaussians, from_points, sh0_to_rgb


@dataclass(frozen=True)
class Floor:
    """Largest errors: position (units), rotation (degrees), log scale, opacity and colour (0 to 1), harmonics."""

    position: float
    rotation: float
    scale: float
    opacity: float
    rgb: float
    sh: float | None


BYTE = 0.5 / 255 + 1e-5
FLOORS = {
    ".ply": Floor(0, 0.1, 0, 1e-7, 1e-6, 0),
    ".compressed.ply": Floor(2.5e-3, 0.25, 4e-3, BYTE, 4e-3, 4 / 256 + 1e-5),
    ".splat": Floor(0, 0.9, 1e-6, BYTE, BYTE, None),
    ".spz": Floor(2e-6, 0.25, 1 / 32 + 1e-5, BYTE, 0.0038, 16 / 256 + 0.5 / 128 + 1e-5),
    ".sog": Floor(4e-5, 0.9, 0.03, BYTE, 0.004, 0.01),
    **dict.fromkeys((".glb", ".usdc", ".usdz"), Floor(0, 0.1, 1e-6, 1e-6, 1e-6, 0)),
}
"""By extension, for :func:`asset`. Rotations come from arc cosines in float32, which are good to 0.1 degrees."""


def asset(n: int = 600, degree: int = 3, seed: int = 0) -> Gaussians:
    """Random Gaussians within what every format can hold: positions within 2 units, colours and harmonics within 1."""
    g = torch.Generator().manual_seed(seed)
    colors = torch.rand(n, 3, generator=g)
    out = from_points(torch.rand(n, 3, generator=g) * 3 - 1.5, colors, scale=0.02, opacity=0.5, sh_degree=degree)
    return replace(
        out,
        quats=torch.randn(n, 4, generator=g),
        scales=torch.randn(n, 3, generator=g).clamp(-2.5, 2.5) - 3,
        opacities=torch.randn(n, generator=g).clamp(-2.5, 2.5) * 2,
        shN=torch.rand(n, (degree + 1) ** 2 - 1, 3, generator=g) * 1.8 - 0.9,
    )


def turned(g: Gaussians) -> Gaussians:
    """In the other frame."""
    return Gaussians.of(turn_x180(g.splats()))


def matched(expected: Gaussians, got: Gaussians) -> Gaussians:
    """The rows of ``got`` in the order of ``expected``, by position: formats may reorder."""
    assert len(got) == len(expected)
    index = cKDTree(got.means.numpy()).query(expected.means.numpy())[1]
    assert len(np.unique(index)) == len(index)
    return got.select(torch.from_numpy(index))


def assert_within(expected: Gaussians, got: Gaussians, floor: Floor) -> None:
    """Every row of ``expected`` is in ``got`` with errors of at most ``floor``."""
    got = matched(expected, got)

    def worst(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).abs().max())

    normalize = torch.nn.functional.normalize
    cosine = (normalize(expected.quats.double()) * normalize(got.quats.double())).sum(1).abs().clamp(max=1)
    assert worst(expected.means, got.means) <= floor.position
    assert float(torch.rad2deg(2 * cosine.acos()).max()) <= floor.rotation
    assert worst(expected.scales, got.scales) <= floor.scale
    assert worst(expected.opacities.sigmoid(), got.opacities.sigmoid()) <= floor.opacity
    assert worst(sh0_to_rgb(expected.sh0), sh0_to_rgb(got.sh0)) <= floor.rgb
    if floor.sh is None:
        assert got.sh_degree == 0
    elif expected.sh_degree:
        assert worst(expected.shN, got.shN) <= floor.sh


def axes() -> Gaussians:
    """Three rods from the origin: red along +X, green along +Y, blue along +Z, 20 splats each."""
    steps = torch.linspace(0.1, 1.0, 20)
    points = torch.cat([steps[:, None] * torch.eye(3)[i] for i in range(3)])
    colors = torch.eye(3).repeat_interleave(20, 0)
    return from_points(points, colors, scale=0.03, opacity=0.9)
