"""Where an asset lies, and the one turn between our frame and the one of splat files."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from psd_gs.gaussians import Gaussians

Frame = Literal["gltf", "rdf"]
"""Axes of a file: glTF's (our world: x right, y up, z to the front) or those of 3DGS (x right, y down, z forward)."""

VISIBLE = 0.05
"""Gaussians below this opacity do not count when an asset is measured."""

_X180_SH = (1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)
"""Parity of the 16 real spherical harmonics under (x, y, z) -> (x, -y, -z)."""


def turn_x180(gaussians: Gaussians) -> Gaussians:
    """The Gaussians turned by 180 degrees about X; applying it twice gives them back exactly.

    It maps the world frame (glTF: +Y up, front +Z) to the frame of the PLY family (x right, y down,
    z forward) and back. Every harmonic of the 3DGS basis is even or odd under this turn, so the
    coefficients only change sign. The quaternion is conjugated by the turn instead of multiplied
    by it, (w, x, -y, -z): the same ellipsoid, because its axes have no sign.
    """
    axes = gaussians.means.new_tensor([1.0, -1.0, -1.0])
    wxyz = gaussians.quats.new_tensor([1.0, 1.0, -1.0, -1.0])
    signs = gaussians.shN.new_tensor(_X180_SH[1 : 1 + gaussians.shN.shape[1]])
    return replace(
        gaussians, means=gaussians.means * axes, quats=gaussians.quats * wxyz, shN=gaussians.shN * signs[:, None]
    )


def bounding_ball(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float]:
    """Centre and radius of a ball around what is visible, up to half a percent of stray Gaussians.

    Returns:
        The centre of the robust bounding box (0.5 to 99.5 percent along each axis) and the 99.5
        percent quantile of the distance from it, two standard deviations of each Gaussian included.
        The radius is at least 1e-3 world units.
    """
    visible = gaussians.opacities.sigmoid() >= VISIBLE
    if visible.any():
        gaussians = gaussians.select(visible)
    if len(gaussians) == 0:
        return gaussians.means.new_zeros(3), 1e-3
    centre = robust_box(gaussians.means).mean(0)
    reach = (gaussians.means - centre).norm(dim=1) + 2 * gaussians.scales.amax(1).exp()
    radius = reach.sort().values[round(0.995 * (len(reach) - 1))]
    return centre, max(float(radius), 1e-3)


def robust_box(points: Float[Tensor, "N 3"]) -> Float[Tensor, "2 3"]:
    """Lower and upper corner that hold 99 percent of the points along each axis."""
    # Sorted rather than torch.quantile, which refuses more than 16 million elements.
    ordered = points.sort(dim=0).values
    last = len(points) - 1
    return ordered[[round(0.005 * last), round(0.995 * last)]]
