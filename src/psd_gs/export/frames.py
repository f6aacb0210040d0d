"""Where an asset lies, and the one turn between our frame and the one of splat files."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.gaussians import SH_C0, Gaussians

Frame = Literal["gltf", "rdf"]
"""Axes of a file: glTF's (our world: x right, y up, z to the front) or those of 3DGS (x right, y down, z forward)."""

VISIBLE = 0.05
"""Gaussians below this opacity do not count when an asset is measured."""

STRAY = 16.0
"""What lies this many times farther out than nine tenths of the asset does not count as part of it."""

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
    x, y, z = gaussians.origin
    return replace(
        gaussians,
        means=gaussians.means * axes,
        quats=gaussians.quats * wxyz,
        shN=gaussians.shN * signs[:, None],
        origin=(x, 0.0 - y, 0.0 - z),
    )


def transform(gaussians: Gaussians, matrix: Float[Tensor, "4 4"]) -> Gaussians:
    """The Gaussians moved by a rotation, with or without a mirror, a uniform scale and a translation.

    The coefficients of the turned colours follow from the old ones by least squares over directions,
    exactly, since the harmonics up to a degree are closed under rotations and mirrors. A mirror acts on an
    ellipsoid like the rotation that a point reflection makes of it, since that maps each ellipsoid onto itself.

    Returns:
        The Gaussians; ``means`` keep their precision, the arithmetic is double.

    Raises:
        ValueError: ``matrix`` shears or scales the axes differently.
    """
    from scipy.spatial.transform import Rotation

    factor, turn = similarity(matrix)
    proper = turn * turn.det().sign()
    w, x, y, z = Rotation.from_matrix(proper.numpy()).as_quat()[[3, 0, 1, 2]].tolist()
    product = torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])  # Hamilton, from the left
    k = gaussians.shN.shape[1] + 1
    directions = torch.nn.functional.normalize(torch.randn(256, 3, generator=torch.Generator().manual_seed(0)).double())
    mix = torch.linalg.lstsq(sh_basis(directions)[:, :k], sh_basis(directions @ turn)[:, :k]).solution[1:, 1:]
    means = gaussians.means.double() @ (factor * turn.T) + matrix[:3, 3].double()
    return replace(
        gaussians,
        means=means.to(gaussians.means.dtype),
        quats=gaussians.quats @ product.T.float(),
        scales=gaussians.scales + math.log(factor),
        shN=torch.einsum("jk,nkc->njc", mix.float(), gaussians.shN),
    )


def similarity(matrix: Float[Tensor, "4 4"]) -> tuple[float, Float[Tensor, "3 3"]]:
    """Scale and rotation, perhaps with a mirror, of a matrix that also may move.

    Raises:
        ValueError: ``matrix`` shears or scales the axes differently.
    """
    linear = matrix[:3, :3].double()
    factor = float(linear.det().abs() ** (1 / 3))
    turn = linear / max(factor, 1e-30)
    if not torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-4):
        raise ValueError(f"expected a rotation and one scale for all axes, received {linear.tolist()}")
    return factor, turn


def sh_basis(directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 16"]:
    """The real spherical harmonics of unit directions up to degree 3, in the order and signs of 3DGS (Sloan 2013)."""
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, SH_C0),
            *(-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x),
            *(1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy)),
            *(-1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)),
            *(-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z),
            *(-0.4570457994644658 * y * (4 * zz - xx - yy), 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)),
            *(-0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy)),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=1,
    )


def bounding_ball(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float]:
    """Centre and radius of a ball around what is visible, strays and half a percent of the rest left out.

    Returns:
        The centre of :func:`robust_box` and the 99.5 percent quantile of the distance from it, two standard
        deviations of each Gaussian included; world units, above zero.
    """
    visible = gaussians.opacities.sigmoid() >= VISIBLE
    if visible.any():
        gaussians = gaussians.select(visible)
    if len(gaussians) == 0:
        return gaussians.means.new_zeros(3), 1e-3
    gaussians = gaussians.select(near_the_others(gaussians.means))
    centre = _box(gaussians.means).mean(0)
    reach = (gaussians.means - centre).norm(dim=1) + 2 * gaussians.scales.amax(1).exp()
    radius = reach.sort().values[round(0.995 * (len(reach) - 1))]
    return centre, float(radius) or 1e-3


def robust_box(points: Float[Tensor, "N 3"]) -> Float[Tensor, "2 3"]:
    """Lower and upper corner that hold 99 percent of the points along each axis, strays left out."""
    return _box(points[near_the_others(points)])


def _box(points: Float[Tensor, "N 3"]) -> Float[Tensor, "2 3"]:
    # Sorted rather than torch.quantile, which refuses more than 16 million elements.
    ordered = points.sort(dim=0).values
    last = len(points) - 1
    return ordered[[round(0.005 * last), round(0.995 * last)]]


def near_the_others(points: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Which points are no strays: not :data:`STRAY` times farther from the median than nine tenths of all are. Of
    fewer than five none is one."""
    if len(points) < 5:
        return torch.ones(len(points), dtype=torch.bool, device=points.device)
    distance = (points.double() - points.median(dim=0).values).norm(dim=1)
    usual = distance.kthvalue(int(0.9 * (len(points) - 1)) + 1).values
    return (distance <= STRAY * usual) | (usual == 0)


def fitted(gaussians: Gaussians, radius: float) -> Gaussians:
    """An asset of any place and size in a ball around the origin: what every start, evaluation and picture does.

    Args:
        gaussians: in any units.
        radius: of the ball that :func:`bounding_ball` becomes, world units; strays, which it leaves out, stay
            outside.
    """
    centre, reach = bounding_ball(gaussians)
    moved = replace(gaussians, means=gaussians.means - centre, origin=(0.0, 0.0, 0.0))
    return scaled(moved, radius / reach)


def scaled(gaussians: Gaussians, factor: float) -> Gaussians:
    """The asset ``factor`` times as large, about the origin of its means."""
    x, y, z = gaussians.origin
    return replace(
        gaussians,
        means=gaussians.means * factor,
        scales=gaussians.scales + math.log(factor),
        origin=(x * factor, y * factor, z * factor),
    )


def usual_size(radius: float) -> float:
    """The power of 16 that a length has to be divided by to lie within 1/4 and 4.

    Renderers have a near plane and formats a range that suit lengths near one. Assets of ordinary size give 1 and
    stay bit for bit as they are.
    """
    return 16.0 ** round(math.log(radius, 16))
