"""Triangles onto pixels: which face, and where on it. Serves views of a mesh and the texels of its atlas alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.kernels import njit
from psd_gs.render.threads import parallel


@dataclass(frozen=True)
class Pixels:
    """The pixels of one image that show a face, in row-major order.

    Attributes:
        rows: of the image.
        columns: of the image.
        faces: the face that each pixel shows.
        weights: barycentric coordinates of the pixel centre on it (perspective-correct).
    """

    rows: Int[np.ndarray, " P"]
    columns: Int[np.ndarray, " P"]
    faces: Int[np.ndarray, " P"]
    weights: Float[np.ndarray, "P 3"]

    def interpolate(self, values: Float[np.ndarray, "V C"], corners: Int[np.ndarray, "F 3"]) -> np.ndarray:
        """Values per vertex at the pixels, ``[P, C]``; ``corners`` are the vertices of every face."""
        return np.einsum("pk,pkc->pc", self.weights, values[corners[self.faces]])


def project(points: Float[np.ndarray, "V 3"], cameras: Cameras) -> Float[np.ndarray, "C V 3"]:
    """Pixel column, pixel row and inverse depth (0 or less: behind the camera) of world points in every view."""
    viewmats, Ks = (matrices.detach().cpu().numpy().astype(np.float32) for matrices in (cameras.viewmats, cameras.Ks))
    local = points @ viewmats[:, :3, :3].transpose(0, 2, 1) + viewmats[:, None, :3, 3]
    z = local[..., 2]
    inverse = np.where(z > 1e-6, 1 / np.maximum(z, 1e-6), 0).astype(np.float32)
    x = Ks[:, 0, 0, None] * local[..., 0] * inverse + Ks[:, 0, 2, None]
    y = Ks[:, 1, 1, None] * local[..., 1] * inverse + Ks[:, 1, 2, None]
    return np.stack([x, y, inverse], axis=-1).astype(np.float32)


def rasterize(
    projected: Float[np.ndarray, "C V 3"], faces: Int[np.ndarray, "F 3"], height: int, width: int
) -> tuple[Int[np.ndarray, "C H W"], Float[np.ndarray, "C H W"]]:
    """The nearest face at every pixel centre (-1 for none), and its inverse depth there (0 for none).

    Args:
        projected: pixel column, pixel row and inverse depth of the vertices; faces with a vertex of
            inverse depth 0 or less are left out.
        faces: of the mesh, of either orientation. Of two faces at one depth the first wins.
        height: pixels.
        width: pixels.
    """
    shape = (len(projected), height, width)
    ids, inverse = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    parallel(_rasterize, len(projected), np.ascontiguousarray(projected, np.float32), faces, ids, inverse)
    return ids, inverse


def located(ids: Int[np.ndarray, "H W"], projected: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Pixels:
    """Where on their faces the covered pixels of one image lie.

    Args:
        ids: of :func:`rasterize`.
        projected: what went into it, of the same view.
        faces: of the mesh.
    """
    rows, columns = np.nonzero(ids >= 0)
    face = ids[rows, columns]
    a, b, c = projected[faces[face]].transpose(1, 0, 2)
    p = np.stack([columns + 0.5, rows + 0.5], axis=1)
    weights = np.stack([_twice_area(b, c, p), _twice_area(c, a, p), _twice_area(a, b, p)], axis=1)
    weights *= np.stack([a[:, 2], b[:, 2], c[:, 2]], axis=1)  # perspective: inverse depth is linear on the screen
    weights = weights / np.where(np.abs(total := weights.sum(1, keepdims=True)) > 1e-20, total, 1)
    return Pixels(rows, columns, face, weights.astype(np.float32))


def sample(image: Float[np.ndarray, "H W C"], xy: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P C"]:
    """Bilinear lookup at pixel positions (centres at half-integers), clamped to the edge."""
    height, width = image.shape[:2]
    grid = torch.from_numpy(np.ascontiguousarray(xy, np.float32)) / torch.tensor([width, height]) * 2 - 1
    source: Tensor = torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]
    out = torch.nn.functional.grid_sample(source, grid[None, None], padding_mode="border", align_corners=False)
    return out[0, :, 0].T.numpy()


def _twice_area(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0])


@njit(nogil=True)
def _rasterize(first, last, projected, faces, ids, inverse):
    """Views ``first`` to ``last``; faces in order, so that equal depths have one outcome."""
    height, width = ids.shape[1:]
    for view in range(first, last):
        for f in range(len(faces)):
            a, b, c = projected[view, faces[f, 0]], projected[view, faces[f, 1]], projected[view, faces[f, 2]]
            if min(a[2], b[2], c[2]) <= 0:
                continue
            area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
            if area == 0:
                continue
            left, right = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
            top, bottom = min(a[1], b[1], c[1]), max(a[1], b[1], c[1])
            if right < 0 or bottom < 0 or left > width or top > height:
                continue
            scale = 1 / area
            # inclusive ranges of pixels whose centres can be inside
            for row in range(max(0, int(np.ceil(top - 0.5))), min(height - 1, int(np.floor(bottom - 0.5))) + 1):
                y = row + 0.5
                for column in range(max(0, int(np.ceil(left - 0.5))), min(width - 1, int(np.floor(right - 0.5))) + 1):
                    x = column + 0.5
                    wa = ((c[0] - b[0]) * (y - b[1]) - (c[1] - b[1]) * (x - b[0])) * scale
                    wb = ((a[0] - c[0]) * (y - c[1]) - (a[1] - c[1]) * (x - c[0])) * scale
                    wc = 1 - wa - wb
                    if wa < 0 or wb < 0 or wc < 0:
                        continue
                    z = wa * a[2] + wb * b[2] + wc * c[2]
                    if z > inverse[view, row, column]:
                        inverse[view, row, column] = z
                        ids[view, row, column] = f
