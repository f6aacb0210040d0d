"""Where an asset lies, and the one turn between our frame and the one of splat files."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from psd_gs.splats import SH_C0, Splats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Frame = Literal["gltf", "rdf"]
"""Axes of a file: glTF's (our world: x right, y up, z to the front) or those of 3DGS (x right, y down, z forward)."""

STRAY = 16.0
"""What lies this many times farther out than nine tenths of the asset does not count as part of it."""

_X180_SH = (1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)
"""Parity of the 16 real spherical harmonics under (x, y, z) -> (x, -y, -z)."""


def turn_x180(splats: Splats) -> Splats:
    """The splats turned by 180 degrees about X; applying it twice gives them back exactly.

    It maps the world frame (glTF: +Y up, front +Z) to the frame of the PLY family (x right, y down,
    z forward) and back. Every harmonic of the 3DGS basis is even or odd under this turn, so the
    coefficients only change sign. The quaternion is conjugated by the turn instead of multiplied
    by it, (w, x, -y, -z): the same ellipsoid, because its axes have no sign.
    """
    turned = splats.map(lambda values: np.array(values, order="C"))
    turn_in_place(turned)
    return turned


def turn_in_place(splats: Splats) -> None:
    """:func:`turn_x180` of splats whose arrays are contiguous and nobody else's."""
    for column in (*splats.means.T[1:], *splats.quats.T[2:]):
        column *= -1
    signs = np.repeat(np.array(_X180_SH[1 : 1 + splats.shN.shape[1]], np.float32), 3)
    flat = splats.shN.reshape(len(splats), len(signs))
    flat *= signs
    x, y, z = splats.origin
    splats.origin = (x, 0.0 - y, 0.0 - z)


def transform(splats: Splats, matrix: Float[np.ndarray, "4 4"]) -> Splats:
    """The splats moved by a rotation, with or without a mirror, a uniform scale and a translation.

    The coefficients of the turned colours follow from the old ones by least squares over directions,
    exactly, since the harmonics up to a degree are closed under rotations and mirrors. A mirror acts on an
    ellipsoid like the rotation that a point reflection makes of it, since that maps each ellipsoid onto itself.

    Returns:
        The splats; ``means`` keep their precision, the arithmetic is double.

    Raises:
        ValueError: ``matrix`` shears or scales the axes differently.
    """
    from scipy.spatial.transform import Rotation

    factor, turn = similarity(matrix)
    proper = turn * np.sign(np.linalg.det(turn))
    x, y, z, w = Rotation.from_matrix(proper).as_quat()
    product = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], np.float32)  # Hamilton, left
    k = splats.shN.shape[1] + 1
    directions = np.random.default_rng(0).standard_normal((256, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mix = np.linalg.lstsq(sh_basis(directions)[:, :k], sh_basis(directions @ turn)[:, :k], rcond=None)[0][1:, 1:]
    means = splats.means.astype(np.float64) @ (factor * turn.T) + matrix[:3, 3]
    return replace(
        splats,
        means=means.astype(splats.means.dtype),
        quats=splats.quats @ product.T,
        scales=splats.scales + math.log(factor),
        shN=np.einsum("jk,nkc->njc", mix.astype(np.float32), splats.shN, optimize=True),
    )


def similarity(matrix: Float[np.ndarray, "4 4"]) -> tuple[float, Float[np.ndarray, "3 3"]]:
    """Scale and rotation, perhaps with a mirror, of a matrix that also may move.

    Raises:
        ValueError: ``matrix`` shears or scales the axes differently.
    """
    linear = np.asarray(matrix, np.float64)[:3, :3]
    factor = float(np.abs(np.linalg.det(linear)) ** (1 / 3))
    turn = linear / max(factor, 1e-30)
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-4):
        raise ValueError(f"expected a rotation and one scale for all axes, received {linear.tolist()}")
    return factor, turn


def sh_basis(directions: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 16"]:
    """The real spherical harmonics of unit directions up to degree 3, in the order and signs of 3DGS (Sloan 2013)."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    return np.stack(
        [
            np.full_like(x, SH_C0),
            *(-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x),
            *(1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy)),
            *(-1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)),
            *(-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z),
            *(-0.4570457994644658 * y * (4 * zz - xx - yy), 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)),
            *(-0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy)),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        axis=1,
    )


def robust_box(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "2 3"]:
    """Lower and upper corner that hold 99 percent of the points along each axis, strays left out."""
    near = near_the_others(points)
    return inner_box(points if near.all() else points[near])


def inner_box(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "2 3"]:
    """:func:`robust_box` of points that are no strays."""
    last = len(points) - 1
    ends = [round(0.005 * last), round(0.995 * last)]
    return np.partition(np.ascontiguousarray(points.T), ends)[:, ends].T


def near_the_others(points: Float[np.ndarray, "N 3"]) -> Bool[np.ndarray, " N"]:
    """Which points are no strays: not :data:`STRAY` times farther from the median than nine tenths of all are. Of
    fewer than five none is one."""
    if len(points) < 5:
        return np.ones(len(points), bool)
    axes = np.ascontiguousarray(points.T)
    distance = np.sqrt(np.square(axes.astype(np.float64) - median(axes)[:, None]).sum(axis=0))
    usual = nth(distance, int(0.9 * (len(points) - 1)))
    return (distance <= STRAY * usual) | (usual == 0)


def nth(values: Float[np.ndarray, " N"], n: int) -> np.floating:
    """The one that ``n`` others are below or equal to."""
    return np.partition(values, n)[n]


def median(values: Float[np.ndarray, "*B N"]) -> Float[np.ndarray, "*B"]:
    """Along the last axis, the lower one of two."""
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle)[..., middle]


def usual_size(radius: float) -> float:
    """The power of 16 that a length has to be divided by to lie within 1/4 and 4.

    Renderers have a near plane and formats a range that suit lengths near one. Assets of ordinary size give 1 and
    stay bit for bit as they are.
    """
    return 16.0 ** round(math.log(radius, 16))
