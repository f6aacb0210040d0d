"""What a mesh or point cloud file holds, ours or not: size, place, topology, materials and where it comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from psd_gs.errors import FormatError
from psd_gs.export.formats import metadata_beside
from psd_gs.export.gltf import read_gltf_metadata
from psd_gs.export.metadata import METADATA_KEY
from psd_gs.export.ply import read_ply_header
from psd_gs.files import loads
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import Material, joined
from psd_gs.mesh.surface import Triangles, topology

_FORMATS = {".glb": "binary glTF", ".gltf": "glTF", ".obj": "Wavefront OBJ", ".ply": "PLY {}", ".stl": "STL"}

_COLLISION = re.compile(r"UCX_|.*-(conv)?col(only)?$")
"""Names that Unreal and Godot take for shapes of the physics alone."""


def describe_mesh(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Everything about a mesh or point cloud file (``.glb``, ``.gltf``, ``.obj``, ``.ply``, ``.stl``).

    Collision shapes, which Godot and Unreal know by their names, are counted and take no part in the rest. Vertices
    count as often as the file holds them; for the topology those at one place are one: a seam of the texture is no
    hole.

    Returns:
        ``format``, ``bytes``, ``vertices``, ``faces``, ``bounds`` (lowest and highest corner, in the units and axes of
        the file), ``notes`` (what was ignored or left out, and why) and ``metadata``. With faces also ``bodies``,
        ``watertight``, ``boundary_edges``, ``materials`` (each with its ``name`` and ``textures``, name to width and
        height in pixels), ``collision_shapes`` and ``lods`` (names of the coarser levels beside it).

    Raises:
        FormatError: another kind of file, a damaged one, or one without finite points or triangles.
        InputError: the file cannot be opened.
    """
    path = Path(path)
    scene = read_scene(path)
    meshes = scene.meshes
    shown = [part for part in meshes if not _COLLISION.match(part.name)] or scene.clouds
    vertices, faces = joined(shown)
    if not len(vertices):
        raise FormatError(f"{path}: expected a mesh or points, received collision shapes alone. Export it again.")
    materials = [_described(part.material) for part in shown if part.material.name]
    faceted: dict[str, Any] = {}
    if len(faces):
        shape = topology(*_welded(vertices, faces))
        faceted = {
            "bodies": shape.bodies,
            "watertight": shape.watertight,
            "boundary_edges": shape.boundary_edges,
            "materials": list({json.dumps(material): material for material in materials}.values()),
            "collision_shapes": len(meshes) - len(shown),
            "lods": sorted(other.name for other in path.parent.glob(f"*{path.suffix}") if _is_level(other, path)),
        }
    return {
        "format": _FORMATS[path.suffix.lower()].format("mesh" if len(faces) else "point cloud"),
        "bytes": path.stat().st_size,
        "vertices": len(vertices),
        "faces": len(faces),
        **faceted,
        "bounds": [vertices.min(0).round(6).tolist(), vertices.max(0).round(6).tolist()],
        "notes": scene.notes,
        "metadata": mesh_metadata(path),
    }


def mesh_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Where a mesh comes from: what its file says, else ``PATH.json``, else the run's psd_gs.json; may be empty.

    Raises:
        FormatError: a damaged PLY.
        InputError: the file cannot be opened.
    """
    suffix = Path(path).suffix.lower()
    found = None
    if suffix == ".glb":
        found = read_gltf_metadata(path)
    elif suffix == ".ply":
        comments = [line for line in read_ply_header(path).comments if line.startswith(f"{METADATA_KEY} {{")]
        try:
            found = loads(comments[0].removeprefix(METADATA_KEY), dict[str, Any]) if comments else None
        except ValueError:
            found = None
    return metadata_beside(path) if found is None else found


def _welded(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Triangles:
    """Vertices at one place are one; without the triangles that are lines then."""
    places, place = np.unique(vertices, axis=0, return_inverse=True)
    faces = place.reshape(-1)[faces]
    a, b, c = faces.T
    return places, faces[(a != b) & (b != c) & (c != a)]


def _described(material: Material) -> dict[str, Any]:
    sizes = {name: picture.size for name, picture in material.pictures.items()}
    return {"name": material.name, "textures": {name: list(size) for name, size in sizes.items() if size is not None}}


def _is_level(other: Path, path: Path) -> bool:
    return re.fullmatch(re.escape(path.stem) + r"_lod\d+", other.stem) is not None
