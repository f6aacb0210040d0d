"""Starting points from a point cloud or mesh file (PLY, GLB, glTF, OBJ, STL)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.errors import FormatError
from psd_gs.export.blocks import open_file
from psd_gs.export.ply import read_ply_header

RADIUS = 0.5
"""Of the ball around the origin that the points are fitted into, world units."""

_SUFFIXES = (".ply", ".glb", ".gltf", ".obj", ".stl")
_GREY = 0.5


def read_points(
    path: str | os.PathLike[str], n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points with colours from a file, moved and scaled into a ball around the origin.

    A mesh gives ``n`` points, uniform over its surface; a point cloud gives a random subset of
    ``n`` points, or all if it has fewer. Axes are kept: +Y is up. A splat (see
    :func:`psd_gs.export.ply.is_gaussian_ply`) is better read with :func:`psd_gs.export.ply.read_ply`.

    Args:
        path: of a ``.ply``, ``.glb``, ``.gltf``, ``.obj`` or ``.stl``.
        n: most points.
        generator: source of randomness (CPU).

    Returns:
        Points within :data:`RADIUS` of the origin, and their sRGB colours in [0, 1] (grey if the
        file has none).

    Raises:
        FormatError: another kind of file, a truncated one, or one without finite points.
        InputError: the file cannot be opened.
    """
    with parsing(path):
        points, rgb = _sample_scene(path, n, generator)
    lower, upper = points.min(0), points.max(0)
    points = points - (lower + upper) / 2
    reach = np.linalg.norm(points, axis=1).max()
    if not (np.isfinite(points).all() and np.isfinite(reach) and reach > 0):
        raise FormatError(f"{path}: expected finite points that are not all in one place. Export the file again.")
    points *= RADIUS / reach
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(rgb.clip(0, 1).astype(np.float32))


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong in here, while ``path`` is parsed as a point cloud or mesh, becomes one of our errors.

    Raises:
        FormatError: another kind of file, a truncated one, or one that its parser stumbles over.
        InputError: the file cannot be opened.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise FormatError(
            f"{path}: expected a point cloud or mesh ({', '.join(_SUFFIXES)}), received {suffix or 'no suffix'}."
        )
    if suffix == ".ply":
        read_ply_header(path)  # checks the size before anything is allocated
    open_file(path).close()
    try:
        with np.errstate(all="ignore"), _quiet("trimesh"):
            yield
    # The parsers of foreign formats raise whatever broken bytes lead them into.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise FormatError(
            f"{path}: expected points or triangles in this {suffix[1:].upper()} file, but it cannot be read "
            f"({reason.splitlines()[0][:120]}). Copy or export it again."
        ) from error


def placed(scene: Any) -> Iterator[tuple[str, Any, Float[np.ndarray, "V 3"]]]:
    """Every node of a trimesh scene that has vertices: its name, its geometry, and where the vertices lie."""
    import trimesh

    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        positions = trimesh.transform_points(np.asarray(geometry.vertices, np.float64), transform)
        if len(positions):
            yield node, geometry, positions


def _sample_scene(path: str | os.PathLike[str], n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """World positions and colours; ValueError if there is nothing to sample."""
    import trimesh

    scene = trimesh.load_scene(Path(path), process=False)
    linear = Path(path).suffix.lower() in (".glb", ".gltf")
    parts = [(geometry, positions) for _, geometry, positions in placed(scene)]
    meshes = [part for part in parts if isinstance(part[0], trimesh.Trimesh) and len(part[0].faces)]
    if meshes:
        return _sample_meshes(meshes, n, generator, linear)
    clouds = [part for part in parts if isinstance(part[0], trimesh.PointCloud)]
    if not clouds:
        raise ValueError("it holds neither points nor triangles")
    points = np.concatenate([positions for _, positions in clouds])
    rgb = np.concatenate([_cloud_colors(geometry, len(positions), linear) for geometry, positions in clouds])
    chosen = torch.randperm(len(points), generator=generator)[:n].numpy()
    return points[chosen], rgb[chosen]


def _sample_meshes(
    meshes: list[tuple[Any, np.ndarray]], n: int, generator: torch.Generator, linear: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Uniform over the area of all meshes together."""
    triangles = np.concatenate([positions[geometry.faces] for geometry, positions in meshes])
    owner = np.repeat(np.arange(len(meshes)), [len(geometry.faces) for geometry, _ in meshes])
    first = np.searchsorted(owner, np.arange(len(meshes)))
    a, b, c = triangles.transpose(1, 0, 2)
    cumulative = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    if not (np.isfinite(cumulative[-1]) and cumulative[-1] > 0):
        raise ValueError("its triangles have no finite area")
    draw = torch.rand(n, 3, generator=generator, dtype=torch.float64).numpy()
    face = np.searchsorted(cumulative, draw[:, 0] * cumulative[-1], side="right")
    root = np.sqrt(draw[:, 1])
    barycentric = np.stack([1 - root, root * (1 - draw[:, 2]), root * draw[:, 2]], axis=1)
    points = np.einsum("nk,nkd->nd", barycentric, triangles[face])
    rgb = np.empty((n, 3))
    for i, (geometry, _) in enumerate(meshes):
        mine = owner[face] == i
        rgb[mine] = _surface_colors(geometry, face[mine] - first[i], barycentric[mine], linear)
    return points, rgb


def _surface_colors(geometry: Any, face: np.ndarray, barycentric: np.ndarray, linear: bool) -> np.ndarray:
    """sRGB at points on faces: the product of vertex (or face) colour, material colour and texture.

    glTF multiplies linear values; elsewhere the numbers are sRGB and a texture replaces the material.
    """
    from trimesh.visual.color import uv_to_interpolated_color

    visual = geometry.visual
    corners = geometry.faces[face]

    def interpolate(values: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nkd->nd", barycentric, values[corners])

    if visual.kind == "face":
        return _unit(visual.face_colors)[face]
    if visual.kind == "vertex":
        rgb = interpolate(_unit(visual.vertex_colors))
        return linear_to_srgb(rgb) if linear else rgb
    if visual.kind != "texture":
        return np.full((len(face), 3), _GREY)
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    texture = None
    if image is not None and visual.uv is not None:
        texture = _unit(uv_to_interpolated_color(interpolate(np.asarray(visual.uv)), image))
    if not linear:
        return np.broadcast_to(_unit(material.main_color), (len(face), 3)) if texture is None else texture
    rgb = np.ones((len(face), 3)) if texture is None else srgb_to_linear(texture)
    if material.baseColorFactor is not None:
        rgb = rgb * _unit(material.baseColorFactor)
    if "color" in visual.vertex_attributes:
        rgb = rgb * interpolate(_unit(visual.vertex_attributes["color"]))
    return linear_to_srgb(rgb)


def _cloud_colors(geometry: Any, count: int, linear: bool) -> np.ndarray:
    if geometry.visual.kind != "vertex" or len(geometry.colors) != count:
        return np.full((count, 3), _GREY)
    rgb = _unit(geometry.colors)
    return linear_to_srgb(rgb) if linear else rgb


def _unit(colors: Any) -> np.ndarray:
    """The first three channels in [0, 1], from integers of any width or floats."""
    values = np.asarray(colors)[..., :3]
    return values / np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the tracebacks that the logger called ``name`` shows beside the error that we raise."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
