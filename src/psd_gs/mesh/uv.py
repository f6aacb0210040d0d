"""A texture atlas for a mesh: charts without overlap, and where on the surface each texel lies (xatlas)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from psd_gs.errors import BackendError
from psd_gs.mesh.raster import Pixels, located, rasterize

PADDING = 4
"""Texels between two charts of an atlas of 1024; in proportion for other sizes."""


@dataclass(frozen=True)
class Atlas:
    """How a mesh is cut and laid out flat. Vertices at a seam exist once per chart.

    Attributes:
        source: the vertex of the uncut mesh that each vertex is a copy of.
        faces: of the cut mesh, in the order of the uncut one.
        uv: texture coordinates in [0, 1], glTF's: (0, 0) is the corner of the first texel, v grows down the rows.
    """

    source: Int[np.ndarray, " W"]
    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "W 2"]


def unwrap(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], size: int) -> Atlas:
    """Cut a mesh into charts and pack them into a square.

    Args:
        vertices: of the mesh.
        faces: of the mesh.
        size: of the texture that it is for, texels: it decides how far apart the charts lie.

    Raises:
        BackendError: xatlas is not installed; it has no wheel for some platforms.
    """
    try:
        import xatlas
    except ImportError as error:
        raise BackendError(
            "textures need the package xatlas, which is not installed. Try `pip install xatlas` (without a wheel for "
            "this platform it needs a C++ compiler). psd-gs mesh --texture-size 0 makes vertex colours instead, and "
            "psd-gs retexture needs it only where texture coordinates are missing."
        ) from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32))
    options = xatlas.PackOptions()
    options.resolution = size
    options.padding = max(2, PADDING * size // 1024)
    options.bilinear = True
    atlas.generate(pack_options=options)
    source, corners, uv = atlas[0]
    return Atlas(source.astype(np.int64), corners.astype(np.int64).reshape(-1, 3), np.clip(uv, 0, 1).astype(np.float32))


def texels(atlas: Atlas, size: int) -> Pixels:
    """The texels of a square texture whose centres lie on a face; a face too small to hold a
    centre gets the free texel around its own centre, so that it has a colour of its own.
    """
    flat = np.concatenate([atlas.uv * size, np.ones((len(atlas.uv), 1), np.float32)], axis=1)
    ids = rasterize(flat[None], atlas.faces, size, size)[0][0]
    missed = np.setdiff1d(np.arange(len(atlas.faces)), ids[ids >= 0])
    column, row = np.clip(flat[atlas.faces[missed], :2].mean(1).astype(int), 0, size - 1).T
    free = ids[row, column] < 0
    ids[row[free], column[free]] = missed[free]
    found = located(ids, flat, atlas.faces)
    inside = (found.weights.min(1, keepdims=True) >= -1e-3) & (found.weights.sum(1, keepdims=True) > 0.5)
    return Pixels(found.rows, found.columns, found.faces, np.where(inside, found.weights, np.float32(1 / 3)))


def fill_gutters(image: Float[np.ndarray, "H W C"], covered: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W C"]:
    """The image with every texel outside the charts coloured like the nearest one inside, so that
    neither bilinear lookups nor mip levels bleed in from outside.
    """
    from scipy.ndimage import distance_transform_edt

    if covered.all() or not covered.any():
        return image
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return image[row, column]
