"""Depth fusion: a truncated signed distance field on a voxel grid (Curless and Levoy 1996).

Positive outside, negative inside, in units of the truncation distance. A view whose alpha is below
one half looks through the voxel and votes "free" by as much as the voxel lies beside the outline (space
carving); what almost no view sees is solid, so the surface is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from psd_gs.cameras import Cameras
from psd_gs.kernels import njit
from psd_gs.render.threads import parallel

TRUNCATION = 3.0
"""Voxels. Wider is smoother, but thickens what is thinner than twice this."""
SEEN = 1 / 12
"""Share of the views that must see a voxel. Between Gaussians, a pixel may look through the front of an asset: its ray
would bore a canal through the interior, where no other view has a vote. Hollows with a narrower opening are filled."""


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
    surface = np.where(alpha < 0.5, -_beside(alpha), depth).astype(np.float32)
    field = np.empty(grid.shape, np.float32)
    viewmats = cameras.viewmats.detach().cpu().numpy().astype(np.float32)
    Ks = cameras.Ks.detach().cpu().numpy().astype(np.float32)
    lower, voxel = grid.lower.astype(np.float32), np.float32(grid.voxel)
    parallel(_fuse, grid.shape[0], surface, viewmats, Ks, lower, voxel, np.float32(TRUNCATION), np.float32(SEEN), field)
    return field


def _beside(alpha: Float[np.ndarray, "C H W"]) -> Float[np.ndarray, "C H W"]:
    """Distance in pixels from the outline of what each view shows; infinite where it shows nothing at all.

    A full vote for "free" right beside the outline would eat into whatever is blurred there.
    """
    out = np.full(alpha.shape, np.inf, np.float32)
    parallel(_distances, len(alpha), alpha < 0.5, out)
    return out


def _distances(first: int, last: int, free: Bool[np.ndarray, "C H W"], out: Float[np.ndarray, "C H W"]) -> None:
    from scipy.ndimage import distance_transform_edt

    for c in range(first, last):
        if not free[c].all():
            out[c] = np.maximum(distance_transform_edt(free[c]) - 0.5, 0)  # between the centres of two pixels


@njit(nogil=True, error_model="numpy")
def _fuse(first, last, surface, viewmats, Ks, lower, voxel, truncation, least, field):
    """Slices ``first`` to ``last`` along x; the views are summed in order, so the result is reproducible.

    ``surface`` holds depths, and where nothing is seen the negative distance from the outline in pixels. Looking up
    pixels has a loop of its own, so that the compiler can make vectors of the other two.
    """
    views, height, width = surface.shape
    pixels = surface.reshape(views, height * width)
    ny, nz = field.shape[1:]
    scale = np.float32(1) / (truncation * voxel)
    zero, one, right, bottom = np.float32(0), np.float32(1), np.float32(width - 1), np.float32(height - 1)
    total = np.empty(nz, np.float32)
    weight = np.empty(nz, np.float32)
    depth = np.empty(nz, np.float32)
    index = np.empty(nz, np.int32)
    value = np.empty(nz, np.float32)
    for i in range(first, last):
        x = lower[0] + np.float32(i) * voxel
        for j in range(ny):
            y = lower[1] + np.float32(j) * voxel
            total[:] = 0
            weight[:] = 0
            for c in range(views):
                V, K, seen = viewmats[c], Ks[c], pixels[c]
                # Camera coordinates are affine in k: start and step along the innermost axis, the
                # focal length and the principal point already applied.
                start_z = V[2, 0] * x + V[2, 1] * y + V[2, 2] * lower[2] + V[2, 3]
                start_x = K[0, 0] * (V[0, 0] * x + V[0, 1] * y + V[0, 2] * lower[2] + V[0, 3])
                start_y = K[1, 1] * (V[1, 0] * x + V[1, 1] * y + V[1, 2] * lower[2] + V[1, 3])
                step_x, step_y, step_z = K[0, 0] * V[0, 2] * voxel, K[1, 1] * V[1, 2] * voxel, V[2, 2] * voxel
                centre_x, centre_y, focal = K[0, 2], K[1, 2], K[0, 0]
                for k in range(nz):
                    kk = np.float32(k)
                    depth[k] = start_z + kk * step_z
                    inverse = one / depth[k]
                    u = (start_x + kk * step_x) * inverse + centre_x
                    v = (start_y + kk * step_y) * inverse + centre_y
                    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
                    column, row = np.int32(min(max(u, zero), right)), np.int32(min(max(v, zero), bottom))
                    index[k] = row * np.int32(width) + column if inside else np.int32(-1)
                for k in range(nz):
                    value[k] = seen[index[k]] if index[k] >= 0 else np.float32(np.inf)
                for k in range(nz):
                    z = depth[k]
                    gap = value[k] - z if value[k] > 0 else -value[k] * z / focal
                    distance = min(one, gap * scale)
                    counts = (z > 0) & (distance >= -1)
                    total[k] += distance if counts else zero
                    weight[k] += one if counts else zero
            for k in range(nz):
                field[i, j, k] = total[k] / weight[k] if weight[k] > least * views else np.float32(-1)
