"""Depth fusion: a truncated signed distance field on a voxel grid (Curless and Levoy 1996).

Positive outside, negative inside, in units of the truncation distance. A view whose alpha is below
one half looks through the voxel and votes "free" by as much as the voxel lies beside the outline (space
carving); what almost no view sees is solid, so the surface is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from psd_gs.cameras import Cameras
from psd_gs.kernels import njit
from psd_gs.render.threads import parallel

TRUNCATION = 3.0
"""Voxels. Wider is smoother, but thickens what is thinner than twice this."""
SEEN = 1 / 12
"""Share of the views that must see a voxel. Between Gaussians, a pixel may look through the front of an asset: its ray
would bore a canal through the interior, where no other view has a vote. Hollows with a narrower opening are filled."""

_BLOCK = 8
"""Samples along the sides of the blocks that are fused one after another."""


@dataclass(frozen=True)
class Grid:
    """A box of cubic voxels; sample (i, j, k) lies at ``lower + (i, j, k) * voxel``.

    Attributes:
        lower: world position of sample (0, 0, 0).
        voxel: edge length, world units.
        shape: number of samples along x, y and z.
    """

    lower: Float[np.ndarray, " 3"]
    voxel: float
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, lower: Float[np.ndarray, " 3"], upper: Float[np.ndarray, " 3"], resolution: int) -> Grid:
        """A grid over a box and a margin for the truncation, ``resolution`` samples along the longest side."""
        margin = math.ceil(TRUNCATION) + 2
        extent = np.asarray(upper, np.float64) - lower
        voxel = max(float(extent.max()), 1e-6) / (resolution - 1 - 2 * margin)
        cells = np.ceil(extent / voxel).astype(int) + 2 * margin
        middle = (np.asarray(upper, np.float64) + lower) / 2
        nx, ny, nz = (int(n) + 1 for n in cells)
        return cls((middle - cells * voxel / 2).astype(np.float32), voxel, (nx, ny, nz))


def fuse(
    depth: Float[np.ndarray, "C H W"], alpha: Float[np.ndarray, "C H W"], cameras: Cameras, grid: Grid
) -> Float[np.ndarray, "X Y Z"]:
    """Mean over the views of the projective signed distance, in units of the truncation distance.

    Args:
        depth: of the surface along the camera's z axis, world units.
        alpha: opacity in [0, 1]; below one half the view sees through.
        cameras: of the C views. What lies outside a picture counts as free, so the pictures must
            show the whole object.
        grid: where to evaluate.

    Returns:
        Values in [-1, 1]: the mean over all views that see the sample or less than one truncation
        distance behind the surface; -1 where at most :data:`SEEN` of the views do.
    """
    Ks = cameras.Ks.double().cpu().numpy()
    border = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]])  # of one pixel around the pictures
    world = np.diag([grid.voxel, grid.voxel, grid.voxel, 1.0])
    world[:3, 3] = grid.lower
    to_pixels = (Ks + border) @ cameras.viewmats.double().cpu().numpy()[:, :3] @ world
    focals, truncation = Ks[:, 0, 0], TRUNCATION * grid.voxel
    corners = np.stack(np.meshgrid(*((0, samples - 1) for samples in grid.shape), 1), axis=-1).reshape(-1, 4)
    nearest = max(float((corners @ to_pixels[:, 2].T).min()), truncation)
    surface = np.full((len(depth), depth.shape[1] + 2, depth.shape[2] + 2), -np.inf, np.float32)
    reach = math.ceil(truncation * focals.max() / nearest) + 1
    parallel(_outlined, len(depth), depth, alpha, reach, surface[:, 1:-1, 1:-1])
    field = np.empty(grid.shape, np.float32)
    blocks = math.prod(-(-samples // _BLOCK) for samples in grid.shape)
    lengths = (1 / focals).astype(np.float32), np.float32(1 / truncation)
    parallel(_fuse, blocks, surface, to_pixels.astype(np.float32), *lengths, np.float32(SEEN * len(depth)), field)
    return field


def _outlined(
    first: int,
    last: int,
    depth: Float[np.ndarray, "C H W"],
    alpha: Float[np.ndarray, "C H W"],
    reach: int,
    out: Float[np.ndarray, "C H W"],
) -> None:
    """Depths of the views ``first`` to ``last``; where nothing is seen, the negative distance in pixels from the
    outline of what is, or less than ``-reach``.

    A full vote for "free" right beside the outline would eat into whatever is blurred there.
    """
    from scipy.ndimage import distance_transform_edt

    for c in range(first, last):
        free = alpha[c] < 0.5
        if free.all():
            continue
        rows, columns = np.flatnonzero(~free.all(1)), np.flatnonzero(~free.all(0))
        box = tuple(slice(max(0, used[0] - reach), used[-1] + reach + 1) for used in (rows, columns))
        out[c][box] = -np.maximum(distance_transform_edt(free[box]) - 0.5, 0)  # between the centres of two pixels
        np.copyto(out[c], depth[c], where=~free)


@njit(nogil=True, error_model="numpy")
def _fuse(first, last, surface, to_pixels, pixel, scale, least, field):
    """Blocks ``first`` to ``last`` of samples; the views are summed in order, so the result is reproducible.

    ``surface`` is what :func:`_outlined` makes, with a border, since what lies outside a picture is free; ``pixel`` is
    the width of one at distance 1 in each view, ``scale`` one over the truncation, and ``least`` what is not enough
    votes. A block sees a small patch of every view, which stays in the cache. Looking up pixels has a loop of its own,
    so that the compiler can make vectors of the other two.
    """
    views, height, width = surface.shape
    pixels = surface.reshape(views, height * width)
    nx, ny, nz = field.shape
    blocks_y, blocks_z, size = -(-ny // _BLOCK), -(-nz // _BLOCK), _BLOCK**3
    zero, one, right, bottom = np.float32(0), np.float32(1), np.float32(width - 1), np.float32(height - 1)
    row = np.int32(width)
    places = np.empty((3, size), np.float32)  # of the samples in their block
    for m in range(size):
        places[0, m], places[1, m], places[2, m] = m // _BLOCK**2, m // _BLOCK % _BLOCK, m % _BLOCK
    depth, value, total, weight = np.empty((4, size), np.float32)
    index = np.empty(size, np.int32)
    for block in range(first, last):
        i0, j0, k0 = block // (blocks_y * blocks_z), block // blocks_z % blocks_y, block % blocks_z
        i0, j0, k0 = i0 * _BLOCK, j0 * _BLOCK, k0 * _BLOCK
        total[:] = 0
        weight[:] = 0
        for c in range(views):
            P, seen, wide = to_pixels[c], pixels[c], pixel[c]
            x0 = np.float32(P[0, 0] * i0 + P[0, 1] * j0 + P[0, 2] * k0 + P[0, 3])
            y0 = np.float32(P[1, 0] * i0 + P[1, 1] * j0 + P[1, 2] * k0 + P[1, 3])
            z0 = np.float32(P[2, 0] * i0 + P[2, 1] * j0 + P[2, 2] * k0 + P[2, 3])
            for m in range(size):
                i, j, k = places[0, m], places[1, m], places[2, m]
                z = z0 + P[2, 0] * i + P[2, 1] * j + P[2, 2] * k
                inverse = one / z
                u = (x0 + P[0, 0] * i + P[0, 1] * j + P[0, 2] * k) * inverse
                v = (y0 + P[1, 0] * i + P[1, 1] * j + P[1, 2] * k) * inverse
                u, v = u if u > zero else zero, v if v > zero else zero  # nan becomes zero, too
                u, v = u if u < right else right, v if v < bottom else bottom
                depth[m] = z
                index[m] = np.int32(v) * row + np.int32(u)
            for m in range(size):
                value[m] = seen[index[m]]
            for m in range(size):
                z = depth[m]
                gap = value[m] - z if value[m] > zero else -value[m] * z * wide
                distance = min(one, gap * scale)
                counts = (z > zero) & (distance >= -one)
                total[m] += distance if counts else zero
                weight[m] += one if counts else zero
        m = 0
        for i in range(i0, i0 + _BLOCK):
            for j in range(j0, j0 + _BLOCK):
                for k in range(k0, k0 + _BLOCK):
                    if i < nx and j < ny and k < nz:
                        field[i, j, k] = total[m] / weight[m] if weight[m] > least else np.float32(-1)
                    m += 1
