"""Flat Gaussians that cover a mesh: its triangles in pieces, and a Gaussian of the shape of each piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from psd_gs.gaussians import Gaussians, rgb_to_sh0

WIDTH = 2.0
"""Standard deviations of a Gaussian in its plane, in those of its piece: neighbours overlap, and nothing shows between
them."""

THICKNESS = 0.05
"""Standard deviation along the normal, in the smaller one of those in the plane."""

OPACITY = 0.99

_NO_AREA = 1e-9
"""Twice the area of a triangle, in squares of its longest edge, up to which it is a line."""


@dataclass(frozen=True)
class Cover:
    """Pieces of triangles.

    Attributes:
        face: which triangle each is a piece of.
        corners: barycentric coordinates of its three corners there.
    """

    face: Int[np.ndarray, " N"]
    corners: Float[np.ndarray, "N 3 3"]

    def __len__(self) -> int:
        return len(self.face)

    @property
    def centres(self) -> Float[np.ndarray, "N 3"]:
        """Barycentric coordinates of the pieces' centroids, where the Gaussians are."""
        return self.corners.mean(1)

    def of(self, values: Float[np.ndarray, "F 3 C"]) -> Float[np.ndarray, "N 3 C"]:
        """What is given at the corners of the triangles, at those of the pieces."""
        return self.corners @ values[self.face]


def cover(triangles: Float[np.ndarray, "F 3 3"], most: int) -> Cover:
    """Cut triangles until there are ``most`` pieces: always those with the longest edges, in the middle of these edges.

    Bisection of the longest edge keeps angles from becoming small (Rosenberg and Stenger 1975), so that pieces are all
    of about one size and shape. Triangles without area have no pieces; more than ``most`` others stay whole.

    Args:
        triangles: corners.
        most: pieces, unless there are more triangles.
    """
    longest = _edges(triangles).max(1, initial=0)
    face = np.flatnonzero(np.linalg.norm(normals(triangles), axis=1) > _NO_AREA * longest**2)
    corners = np.tile(np.eye(3), (len(face), 1, 1))
    while (room := most - len(face)) > 0:
        length = _edges(corners @ triangles[face]).max(1)
        # all that are nearly as long as the longest one together, else a round would cut one or two
        long = np.flatnonzero(length > 0.7 * length.max()) if len(length) else length
        if not len(long):
            break
        cut = long[np.argsort(-length[long], kind="stable")[:room]]
        k = _edges(corners[cut] @ triangles[face[cut]]).argmax(1)
        rows, apex = np.arange(len(cut)), corners[cut, (k + 2) % 3]
        begin, end = corners[cut][rows, k], corners[cut][rows, (k + 1) % 3]
        middle = (begin + end) / 2
        halves = np.stack([np.stack([begin, middle, apex], 1), np.stack([middle, end, apex], 1)], 1)
        keep = np.ones(len(face), bool)
        keep[cut] = False
        face = np.concatenate([face[keep], np.repeat(face[cut], 2)])
        corners = np.concatenate([corners[keep], halves.reshape(-1, 3, 3)])
    order = np.argsort(face, kind="stable")
    return Cover(face[order], corners[order])


def _edges(triangles: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Lengths; edge k leads from corner k to the next one."""
    return np.linalg.norm(np.roll(triangles, -1, axis=1) - triangles, axis=2)


def normals(triangles: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3"]:
    """Normals, as long as twice the area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def flat_gaussians(pieces: Float[np.ndarray, "N 3 3"], rgb: Float[np.ndarray, "N 3"]) -> Gaussians:
    """A Gaussian for each piece: at its centroid, flat along its normal, in its plane as wide as its shape.

    A triangle with corners v and centroid m has the covariance ``sum (v - m)(v - m)^T / 12``.

    Args:
        pieces: corners of triangles that have an area.
        rgb: sRGB in [0, 1].
    """
    from scipy.spatial.transform import Rotation

    mean = pieces.mean(1)
    spread = pieces - mean[:, None]
    variances, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", spread, spread) / 12)
    axes = axes[:, :, ::-1]  # the widest first, the normal last
    axes = axes * np.sign(np.linalg.det(axes))[:, None, None]
    size = WIDTH * np.sqrt(np.maximum(variances[:, :0:-1], 0))
    size = np.maximum(size, 1e-3 * size[:, :1] + 1e-12)  # of a sliver
    scales = np.concatenate([size, THICKNESS * size[:, 1:]], axis=1)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return Gaussians(
        means=tensor(mean),
        quats=tensor(Rotation.from_matrix(axes).as_quat()[:, [3, 0, 1, 2]]),
        scales=tensor(np.log(scales)),
        opacities=torch.full((len(mean),), OPACITY).logit(),
        sh0=rgb_to_sh0(tensor(rgb))[:, None],
        shN=torch.zeros(len(mean), 0, 3),
    )
