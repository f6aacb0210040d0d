"""Any mesh or point cloud file as a scene.

One reader serves everything that takes a mesh. glTF is read by :mod:`psd_gs.mesh.gltf`, OBJ by :mod:`psd_gs.mesh.obj`,
PLY by :mod:`psd_gs.mesh.ply`, STL by :mod:`psd_gs.mesh.stl`, and not by one library, because none of those on PyPI
gives what an engine shows: trimesh 5 ignores KHR_texture_transform, further texture coordinates, mirrored and clamped
wrapping, emission, normalization, skins, MTL options and PLY colours that are not called red, cannot read a binary PLY
of mixed polygons, takes negative indices of an OBJ from the end of the file, and says none of it. Assimp (assimp-py,
impasse) knows more, but takes paths and follows them out of the folder; pygltflib and gltflib stop at the JSON;
tinyobjloader is not kept up on PyPI. What remains for a library is left to it: pictures to Pillow, Draco to DracoPy,
meshopt to meshopt, polygons that are not convex to Mapbox's earcut.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from psd_gs.errors import FormatError
from psd_gs.export.blocks import open_file
from psd_gs.mesh.scene import Scene, kept, parsing

SUFFIXES = (".ply", ".glb", ".gltf", ".obj", ".stl")

_LARGEST = 1e150
"""A coordinate beyond it cannot be squared, and is no place."""


def read_scene(path: str | os.PathLike[str]) -> Scene:
    """Read a ``.ply``, ``.glb``, ``.gltf``, ``.obj`` or ``.stl``, with the pictures and buffers that it names.

    Only regular files in the folder of ``path`` and below it are opened.

    Raises:
        FormatError: another kind of file, a damaged one, one of a kind that is known but not supported, one that
            names files outside its folder, or one with neither points nor triangles that are finite.
        InputError: the file cannot be opened.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(
            f"{path}: expected a point cloud or mesh ({', '.join(SUFFIXES)}), received {suffix or 'no suffix'}."
        )
    with parsing(path):
        open_file(path).close()
        if suffix == ".ply":
            from psd_gs.mesh.ply import read_ply_scene as read
        elif suffix == ".obj":
            from psd_gs.mesh.obj import read_obj_scene as read
        elif suffix == ".stl":
            from psd_gs.mesh.stl import read_stl_scene as read
        else:
            from psd_gs.mesh.gltf import read_gltf_scene as read
        scene = read(path)
        scene = _finite(scene)
        if not scene.parts:
            raise ValueError("it holds neither finite points nor triangles")
    return scene


def _finite(scene: Scene) -> Scene:
    """Without points that are no places and the triangles that use them, which are counted."""
    good = [(np.abs(part.positions) < _LARGEST).all(1) for part in scene.parts]
    bad = sum(int((~rows).sum()) for rows in good)
    if bad:
        scene.notes.append(f"{bad} of {sum(map(len, good))} points are not finite: left out")
    parts = [(kept(part, rows), len(part.faces)) for part, rows in zip(scene.parts, good, strict=True)]
    # what had faces and lost them all is no point cloud
    return Scene([part for part, faces in parts if len(part.faces if faces else part.positions)], scene.notes)
