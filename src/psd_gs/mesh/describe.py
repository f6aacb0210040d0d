"""What a mesh file holds, ours or not: size, place, topology, materials, collision shapes and where it comes from."""

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
from psd_gs.mesh.points import parsing, placed
from psd_gs.mesh.surface import Triangles, topology

_FORMATS = {".glb": "binary glTF", ".gltf": "glTF", ".obj": "Wavefront OBJ", ".ply": "PLY mesh", ".stl": "STL"}

_COLLISION = re.compile(r"UCX_|.*-(conv)?col(only)?$")
"""Names that Unreal and Godot take for shapes of the physics alone."""

_TEXTURES = {
    "baseColorTexture": "color",
    "image": "color",
    "normalTexture": "normal",
    "metallicRoughnessTexture": "metallic_roughness",
    "occlusionTexture": "occlusion",
    "emissiveTexture": "emissive",
}


def describe_mesh(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Everything about a mesh file (``.glb``, ``.gltf``, ``.obj``, ``.ply``, ``.stl``).

    Collision shapes, which Godot and Unreal know by their names, are counted and take no part in the rest. Vertices
    count as often as the file holds them; for the topology those at one place are one: a seam of the texture is no
    hole.

    Returns:
        ``format``, ``bytes``, ``vertices``, ``faces``, ``bodies``, ``watertight``, ``boundary_edges``, ``bounds``
        (lowest and highest corner, in the units and axes of the file), ``materials`` (each with its ``name`` and
        ``textures``, name to width and height in pixels), ``collision_shapes``, ``lods`` (names of the coarser levels
        beside it) and ``metadata``.

    Raises:
        FormatError: another kind of file, a damaged one, or one without finite points or triangles.
        InputError: the file cannot be opened.
    """
    import trimesh

    path = Path(path)
    with parsing(path):
        # an OBJ has a mesh per object this way, not per material
        scene = trimesh.load_scene(path, process=False, split_objects=True, group_material=False)
        meshes = [part for part in placed(scene) if isinstance(part[1], trimesh.Trimesh)]
    shown = [part for part in meshes if not _COLLISION.match(part[0])]
    vertices, faces = _joined([(positions, np.asarray(geometry.faces)) for _, geometry, positions in shown])
    if len(faces) == 0 or not np.isfinite(vertices).all() or faces.max() >= len(vertices) or faces.min() < 0:
        raise FormatError(f"{path}: expected a mesh of finite triangles, found none in it. Export it again.")
    shape = topology(*_welded(vertices, faces))
    materials = [
        _material(geometry.visual.material) for _, geometry, _ in shown if hasattr(geometry.visual, "material")
    ]
    return {
        "format": _FORMATS[path.suffix.lower()],
        "bytes": path.stat().st_size,
        "vertices": len(vertices),
        "faces": len(faces),
        "bodies": shape.bodies,
        "watertight": shape.watertight,
        "boundary_edges": shape.boundary_edges,
        "bounds": [vertices.min(0).round(6).tolist(), vertices.max(0).round(6).tolist()],
        "materials": [material for i, material in enumerate(materials) if material not in materials[:i]],
        "collision_shapes": len(meshes) - len(shown),
        "lods": sorted(other.name for other in path.parent.glob(f"*{path.suffix}") if _is_level(other, path)),
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
            found = json.loads(comments[0].removeprefix(METADATA_KEY)) if comments else None
        except ValueError:
            found = None
    return metadata_beside(path) if found is None else found


def _joined(parts: list[Triangles]) -> Triangles:
    """Several meshes as one, in the order of the file."""
    first = np.cumsum([0, *(len(positions) for positions, _ in parts)])
    vertices = np.concatenate([np.zeros((0, 3)), *(positions for positions, _ in parts)])
    faces = [faces.reshape(-1, 3) + start for (_, faces), start in zip(parts, first[:-1], strict=True)]
    return vertices, np.concatenate([np.zeros((0, 3), np.int64), *faces])


def _welded(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Triangles:
    """Vertices at one place are one; without the triangles that are lines then."""
    places, place = np.unique(vertices, axis=0, return_inverse=True)
    faces = place.reshape(-1)[faces]
    a, b, c = faces.T
    return places, faces[(a != b) & (b != c) & (c != a)]


def _material(material: Any) -> dict[str, Any]:
    images = [(name, getattr(material, attribute, None)) for attribute, name in _TEXTURES.items()]
    textures = {name: list(image.size) for name, image in images if image is not None}
    return {"name": material.name, "textures": textures}


def _is_level(other: Path, path: Path) -> bool:
    return re.fullmatch(re.escape(path.stem) + r"_lod\d+", other.stem) is not None
