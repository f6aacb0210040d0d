"""A texture as the pieces of a surface lie in it: which texel shows which piece, which pieces share texels, and how
what became of the pieces' colours becomes texels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from psd_gs.mesh.picture import Wrap
from psd_gs.mesh.raster import Pixels
from psd_gs.mesh.uv import Atlas, texels

MOST_TILES = 16
"""Along each axis, a piece is looked at in so many repeats of a texture."""

NEIGHBOURS = 8
"""Pieces that a texel's colour follows."""

LIKE = 0.1
"""Standard deviation, in sRGB, of how different the colours of pieces were that follow each other: edges of what was
there stay sharp."""

_CHUNK = 1 << 16


def lay(uv: Float[np.ndarray, "N 3 2"], size: int, wraps: tuple[Wrap, Wrap] = ("repeat", "repeat")) -> Pixels:
    """The texels of a square texture that show a piece, and where on it; of pieces that share a texel, one.

    Args:
        uv: of the corners of the pieces; (0, 0) is the texture's upper left corner, v grows downward.
        size: of the texture, texels.
        wraps: beyond its edges.
    """
    tiles = [_tiles(uv[..., axis], wrap) for axis, wrap in enumerate(wraps)]
    found, number = [np.zeros((0, 3, 2), np.float32)], [np.zeros(0, np.int64)]
    for i in range(max(tiles[0][1].max(initial=0), 0)):
        for j in range(max(tiles[1][1].max(initial=0), 0)):
            chosen = np.flatnonzero((tiles[0][1] > i) & (tiles[1][1] > j))
            axes = [
                _within(uv[chosen, :, axis], (tiles[axis][0][chosen] + step)[:, None], wraps[axis])
                for axis, step in enumerate((i, j))
            ]
            found.append(np.stack(axes, axis=-1).astype(np.float32))
            number.append(chosen)
    placed, owner = np.concatenate(found), np.concatenate(number)
    order = np.argsort(owner, kind="stable")
    placed, owner = placed[order], owner[order]
    corners = np.arange(3 * len(placed)).reshape(-1, 3)
    places = texels(Atlas(corners.ravel(), corners, placed.reshape(-1, 2)), size)
    return Pixels(places.rows, places.columns, owner[places.faces], places.weights)


def _tiles(u: Float[np.ndarray, "N 3"], wrap: Wrap) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The first repeat that each piece lies in, and in how many it lies."""
    if wrap == "clamp":
        return np.zeros(len(u), np.int64), np.ones(len(u), np.int64)
    first = np.floor(u.min(1)).astype(np.int64)
    last = np.ceil(u.max(1)).astype(np.int64) - 1
    return first, np.clip(last - first + 1, 1, MOST_TILES)


def _within(u: np.ndarray, tile: Int[np.ndarray, "*N"], wrap: Wrap) -> np.ndarray:
    """Coordinates in one repeat, 0 to 1 where they are inside it."""
    inside = u - tile
    return np.where(tile % 2 == 1, 1 - inside, inside) if wrap == "mirror" else inside


def wrapped(uv: Float[np.ndarray, "N 2"], wraps: tuple[Wrap, Wrap]) -> Float[np.ndarray, "N 2"]:
    """Coordinates of points in [0, 1]."""
    axes = []
    for axis, wrap in enumerate(wraps):
        u = uv[:, axis]
        axes.append(u if wrap == "clamp" else _within(u, np.floor(u).astype(np.int64), wrap))
    return np.stack(axes, axis=1).clip(0, 1)


def ties(
    places: Pixels,
    size: int,
    uv: Float[np.ndarray, "N 3 2"],
    wraps: tuple[Wrap, Wrap],
    pieces: Float[np.ndarray, "N 3 3"],
) -> Int[np.ndarray, " N"]:
    """A number for each piece, the same for those that must have one colour because the same texels paint them.

    Where pieces that lie far from each other on the surface meet in the texture (mirrored halves, repeats, palettes),
    those in one cell of it are tied; a cell is as large as a piece usually is there, and no smaller than a texel.

    Args:
        places: of :func:`lay`.
        size: of the texture, texels.
        uv: of the corners of the pieces.
        wraps: of the texture.
        pieces: their corners on the surface.
    """
    count = len(uv)
    if not count:
        return np.zeros(0, np.int64)
    owner = np.full((size, size), -1)
    owner[places.rows, places.columns] = places.faces
    at = wrapped(uv.mean(1), wraps)
    column, row = np.minimum((at * size).astype(np.int64), size - 1).T
    shown = owner[row, column]
    shown = np.where(shown < 0, np.arange(count), shown)
    centre = pieces.mean(1)
    reach = np.linalg.norm(pieces - centre[:, None], axis=2).max(1)
    apart = np.linalg.norm(centre - centre[shown], axis=1) > 2 * (reach + reach[shown])
    edges = uv[:, 1:] - uv[:, :1]
    area = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2
    cell = max(1.5 * float(np.sqrt(np.median(area[apart]))) if apart.any() else 0.0, 1 / size)
    across = int(np.ceil(1 / cell)) + 1
    number = (at[:, 1] / cell).astype(np.int64) * across + (at[:, 0] / cell).astype(np.int64)
    meets = np.isin(number, number[apart])
    return np.unique(np.where(meets, number, across**2 + np.arange(count)), return_inverse=True)[1]


@dataclass(frozen=True)
class Samples:
    """Places of a surface whose colours have changed.

    Attributes:
        centres: where they are.
        sizes: how far each reaches.
        normals: unit.
        kinds: number of the material; only those of one material follow each other.
        before: sRGB.
        change: what was added to it since.
    """

    centres: Float[np.ndarray, "N 3"]
    sizes: Float[np.ndarray, " N"]
    normals: Float[np.ndarray, "N 3"]
    kinds: Int[np.ndarray, " N"]
    before: Float[np.ndarray, "N 3"]
    change: Float[np.ndarray, "N 3"]


def change_at(
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    kinds: Int[np.ndarray, " P"],
    colours: Float[np.ndarray, "P 3"],
    samples: Samples,
) -> Float[np.ndarray, "P 3"]:
    """How other points of the surface change: as the samples near by, facing the same way and of like colour did.

    Joint bilateral upsampling (Kopf et al. 2007): the finely known old colours guide the coarsely known change.

    Args:
        points: on the surface.
        normals: unit.
        kinds: number of the material.
        colours: sRGB that was there.
        samples: at least one.
    """
    from scipy.spatial import cKDTree

    tree, count = cKDTree(samples.centres), min(NEIGHBOURS, len(samples.centres))
    out = np.zeros((len(points), 3))
    for first in range(0, len(points), _CHUNK):
        part = slice(first, first + _CHUNK)
        distance, near = (a.reshape(-1, count) for a in tree.query(points[part], k=count, workers=-1))
        unlike = ((colours[part][:, None] - samples.before[near]) ** 2).sum(-1)
        facing = np.einsum("pd,pkd->pk", normals[part], samples.normals[near]).clip(0) ** 2
        weight = np.exp(-0.5 * (distance / samples.sizes[near]) ** 2) * np.exp(-0.5 * unlike / LIKE**2).clip(1e-3)
        weight = weight * facing * (kinds[part][:, None] == samples.kinds[near])
        lost = weight.sum(1) < 1e-12
        weight[lost, 0] = 1
        out[part] = np.einsum("pk,pkc->pc", weight, samples.change[near]) / weight.sum(1, keepdims=True)
    return out
