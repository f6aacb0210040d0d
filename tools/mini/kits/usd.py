"""Meshes of USD files, as Blender writes them (normals and texture coordinates by corner), as parts of a scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from pxr import Usd, UsdGeom, UsdShade

from psd_gs.colours import srgb_to_linear
from psd_gs.mesh.picture import Picture, Texture
from psd_gs.mesh.scene import Material, Part, triangulated

UNPAINTED = Material("none", (*srgb_to_linear(np.full(3, 0.8)).tolist(), 1.0))
"""Of faces without a material."""


def read_usd_parts(path: Path, linear: bool) -> list[Part]:
    """The meshes of a file in the world, at rest, one part for each material.

    Args:
        path: a USD file.
        linear: whether its colours are linear, as they should be, or sRGB.
    """
    stage = Usd.Stage.Open(str(path))
    places = UsdGeom.XformCache()
    found = []
    for prim in stage.Traverse():
        if prim.IsA(UsdGeom.Mesh):
            found += _parts(UsdGeom.Mesh(prim), np.array(places.GetLocalToWorldTransform(prim)), linear)
    return found


def _parts(mesh: UsdGeom.Mesh, matrix: Float[np.ndarray, "4 4"], linear: bool) -> list[Part]:
    """The parts of one mesh; the matrix multiplies rows."""
    prim = mesh.GetPrim()
    counts = np.array(mesh.GetFaceVertexCountsAttr().Get(), np.int64)
    corners = np.array(mesh.GetFaceVertexIndicesAttr().Get(), np.int64)
    if not len(counts):
        return []
    positions = np.array(mesh.GetPointsAttr().Get(), np.float64) @ matrix[:3, :3] + matrix[3, :3]
    entries, polygon = triangulated(corners, counts, positions)
    if normals := mesh.GetNormalsAttr().Get():  # many files wind faces against them
        said = np.array(normals, np.float64)[entries].sum(1) @ np.linalg.inv(matrix[:3, :3]).T
        a, b, c = positions[corners[entries]].transpose(1, 0, 2)
        inward = (np.cross(b - a, c - a) * said).sum(1) < 0
        entries[inward] = entries[inward][:, [0, 2, 1]]
    uv = {}
    if (coordinates := UsdGeom.PrimvarsAPI(prim).GetPrimvar("st")).HasValue():
        uv = {0: (np.array(coordinates.ComputeFlattened(), np.float64) * (1, -1) + (0, 1))[entries]}  # its v grows up
    materials, of_polygon = _materials(mesh, len(counts), linear)
    parts = []
    for i in dict.fromkeys(of_polygon.tolist()):
        mine = of_polygon[polygon] == i
        textured = {channel: table[mine] for channel, table in uv.items()}
        parts.append(Part(prim.GetName(), positions, corners[entries[mine]], materials[i], uv=textured))
    return parts


def _materials(mesh: UsdGeom.Mesh, polygons: int, linear: bool) -> tuple[list[Material], Int[np.ndarray, " P"]]:
    """The materials of a mesh and its subsets, and which of them each polygon has."""
    places = [mesh.GetPrim()]
    of_polygon = np.zeros(polygons, np.int64)
    for subset in UsdGeom.Subset.GetAllGeomSubsets(mesh):
        of_polygon[np.array(subset.GetIndicesAttr().Get(), np.int64)] = len(places)
        places.append(subset.GetPrim())
    bound = [UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0] for prim in places]
    return [_material(material, linear) if material else UNPAINTED for material in bound], of_polygon


def _material(material: UsdShade.Material, linear: bool) -> Material:
    """Diffuse colour or texture of a UsdPreviewSurface."""
    name, shader = material.GetPrim().GetName(), material.ComputeSurfaceSource()[0]
    diffuse = shader.GetInput("diffuseColor") if shader else None
    if not diffuse:
        return UNPAINTED
    if diffuse.HasConnectedSource():
        picture = UsdShade.Shader(diffuse.GetConnectedSource()[0].GetPrim()).GetInput("file")
        if not picture:
            return UNPAINTED
        file = Path(picture.Get().resolvedPath)
        return Material(name, texture=Texture(Picture(str(file), file.read_bytes())), cutoff=0.5)
    colour = np.array(diffuse.Get(), np.float64)
    return Material(name, (*(colour if linear else srgb_to_linear(colour)).tolist(), 1.0))
