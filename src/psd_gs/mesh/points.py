"""Starting points from a point cloud or mesh file (PLY, GLB, glTF, OBJ, STL)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.colours import linear_to_srgb
from psd_gs.errors import FormatError
from psd_gs.mesh.picture import Picture
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import PLAIN, Part, Scene, kept, parsing
from psd_gs.splats import BLOCK

logger = logging.getLogger(__name__)

RADIUS = 0.5
"""Radius of the ball around the origin that the points are fitted into, world units."""

_CORE = 0.9
"""Share of the points that is never stray."""
_FAR = 5.0
"""A point of a cloud so many times as far from the middle as the core reaches is stray."""
_GAP = 10.0
"""A vertex of a mesh is stray if nothing lies between it and others that are so many times nearer to the middle. The
vertices of a mesh may be anywhere dense, so their distance alone says nothing."""
_ROUNDS = 8
"""Draws of points before a surface that is mostly transparent gives fewer."""
_FREE_PIXELS, _PIXELS_PER_BYTE = 1 << 27, 64
"""Pixels that are decoded for any file, and for each byte of its pictures: no picture that is looked at has more."""


def read_points(
    path: str | os.PathLike[str], n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points with colours from a file, moved and scaled into a ball around the origin.

    A mesh gives ``n`` points, uniform over its surface; a point cloud gives a random subset of ``n`` points, or all if
    it has fewer. Axes are kept: +Y is up. What is not finite, strays far from all the rest and transparent surfaces
    are left out; the log says so. A splat (see :func:`psd_gs.export.ply.is_gaussian_ply`) is better read with
    :func:`psd_gs.export.ply.read_ply`.

    Args:
        path: of a ``.ply``, ``.glb``, ``.gltf``, ``.obj`` or ``.stl``.
        n: most points.
        generator: source of randomness (CPU).

    Returns:
        Points within :data:`RADIUS` of the origin, and their sRGB colours in [0, 1] (grey if the file has none).

    Raises:
        FormatError: another kind of file, a truncated one, one of a kind that is not supported, or one without finite
            points.
        InputError: the file cannot be opened.
    """
    scene = read_scene(path)
    with parsing(path):
        sample = _sample_meshes if scene.meshes else _sample_clouds
        points, rgb = sample(scene, n, generator)
    for note in scene.notes:
        logger.warning("%s: %s", path, note)
    lower, upper = points.min(0), points.max(0)
    points = points - (lower + upper) / 2
    reach = np.linalg.norm(points, axis=1).max()
    if not (np.isfinite(reach) and reach > 0):
        raise FormatError(
            f"{path}: expected finite points in several places, received one place. Export the file again."
        )
    points *= RADIUS / reach
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(rgb.clip(0, 1).astype(np.float32))


def _sample_clouds(scene: Scene, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """World positions and sRGB of a subset."""
    points = np.concatenate([part.positions for part in scene.clouds])
    plain = PLAIN.color
    rgba = np.concatenate(
        [np.tile(plain, (len(part.positions), 1)) if part.colors is None else part.colors for part in scene.clouds]
    )
    distance = _distances(points)
    near = distance <= _FAR * np.quantile(distance, _CORE, method="lower")
    if not near.all() and distance[near].max() > 0:
        scene.notes.append(f"{(~near).sum()} of {len(points)} points are far from all others: left out")
        points, rgba = points[near], rgba[near]
    chosen = torch.randperm(len(points), generator=generator)[:n].numpy()
    return points[chosen], linear_to_srgb(rgba[chosen, :3])


def _sample_meshes(scene: Scene, n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """World positions and sRGB at places that are uniform over the area of all meshes together."""
    meshes = _without_strays(scene)
    owner = np.repeat(np.arange(len(meshes)), [len(part.faces) for part in meshes])
    first = np.searchsorted(owner, np.arange(len(meshes)))
    cumulative = np.cumsum(np.concatenate([_areas(part) for part in meshes]))
    if not (np.isfinite(cumulative[-1]) and cumulative[-1] > 0):
        raise ValueError("its triangles have no finite area")
    _check_pictures(meshes)

    def draw() -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " n"]]:
        draws = torch.rand(n, 3, generator=generator, dtype=torch.float64).numpy()
        face = np.searchsorted(cumulative, draws[:, 0] * cumulative[-1], side="right").clip(max=len(cumulative) - 1)
        root = np.sqrt(draws[:, 1])
        weights = np.stack([1 - root, root * (1 - draws[:, 2]), root * draws[:, 2]], axis=1)
        return looked_up(meshes, owner[face], face - first[owner[face]], weights)

    points, rgba, visible = draw()
    if not visible.any():
        scene.notes.append("all of it is transparent: shown opaque")
        return points, linear_to_srgb(rgba[:, :3])
    points, rgba = points[visible], rgba[visible]
    for _ in range(_ROUNDS):
        if len(points) >= n:
            break
        more, colors, visible = draw()
        points, rgba = np.concatenate([points, more[visible]]), np.concatenate([rgba, colors[visible]])
    return points[:n], linear_to_srgb(rgba[:n, :3])


def _areas(part: Part) -> Float[np.ndarray, " F"]:
    """Twice the area of every face, in blocks: corners side by side are ten times what the part takes."""
    blocks = [part.faces[first : first + BLOCK] for first in range(0, len(part.faces), BLOCK)]
    corners = ((part.positions[block[:, k]] for k in range(3)) for block in blocks)
    return np.concatenate([np.linalg.norm(np.cross(b - a, c - a), axis=1) for a, b, c in corners])


def looked_up(
    meshes: Sequence[Part],
    owner: Int[np.ndarray, " n"],
    face: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "n 3"],
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """World positions and linear RGBA at places of several meshes, and whether anything is there.

    Each picture is decoded once.
    """
    points, rgba, visible = np.empty((len(face), 3)), np.empty((len(face), 4)), np.empty(len(face), bool)
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(len(meshes) + 1))
    for i, part in _by_pictures(meshes):
        mine = order[ends[i] : ends[i + 1]]
        points[mine] = np.einsum("nk,nkd->nd", weights[mine], part.positions[part.faces[face[mine]]])
        rgba[mine] = part.shade(face[mine], weights[mine])
        visible[mine] = rgba[mine, 3] >= part.material.cutoff
    return points, rgba, visible


def _by_pictures(meshes: Sequence[Part]) -> Iterator[tuple[int, Part]]:
    """The meshes with their numbers, those of the same pictures together; then their pixels are forgotten."""

    def key(entry: tuple[int, Part]) -> tuple[int, ...]:
        return tuple(id(picture) for picture in _pictures(entry[1]))

    for _, group in groupby(sorted(enumerate(meshes), key=key), key):
        last = None
        for last in group:
            yield last
        for picture in _pictures(last[1]) if last is not None else ():
            picture.forget()


def _pictures(part: Part) -> list[Picture]:
    textures = (part.material.texture, part.material.emission_texture)
    return [texture.picture for texture in textures if texture is not None]


def _check_pictures(meshes: Sequence[Part]) -> None:
    """Refuse pictures that take longer to decode than their files are worth."""
    groups = {tuple(map(id, _pictures(part))): _pictures(part) for part in meshes}
    pixels = sum(w * h for pictures in groups.values() for w, h in (one.size or (0, 0) for one in pictures))
    distinct = {id(picture): len(picture.data) for pictures in groups.values() for picture in pictures}
    if pixels > _FREE_PIXELS + _PIXELS_PER_BYTE * sum(distinct.values()):
        raise ValueError(f"its pictures have {pixels} pixels in {sum(distinct.values())} bytes")


def _without_strays(scene: Scene) -> list[Part]:
    """The meshes without the vertices that lie far away from all others, and their faces."""
    meshes = scene.meshes
    distance = _distances(np.concatenate([part.positions for part in meshes]))
    ordered = np.sort(distance)[int(_CORE * (len(distance) - 1)) :]
    jumps = np.flatnonzero((ordered[1:] > _GAP * ordered[:-1]) & (ordered[:-1] > 0))
    if not len(jumps):
        return meshes
    near = np.split(distance <= ordered[jumps[0]], np.cumsum([len(part.positions) for part in meshes])[:-1])
    left = [kept(part, rows) for part, rows in zip(meshes, near, strict=True)]
    left = [part for part in left if len(part.faces)]
    if not left:
        return meshes
    scene.notes.append(f"{(distance > ordered[jumps[0]]).sum()} vertices are far from all others: left out")
    return left


def _distances(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, " N"]:
    """From the middle, which strays do not move."""
    return np.linalg.norm(points - np.median(points, axis=0), axis=1)
