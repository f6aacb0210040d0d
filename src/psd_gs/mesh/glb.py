"""Binary glTF 2.0 of meshes with vertex colours or textures (Khronos glTF 2.0 specification).

The glTF frame is our world frame, so nothing is turned.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from psd_gs import __version__
from psd_gs.colours import srgb_to_linear
from psd_gs.errors import InputError
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.files import write_atomic
from psd_gs.mesh.surface import Mesh, Triangles
from psd_gs.mesh.texture import TexturedMesh

NAME = "asset"
"""Of the node, the mesh and the material."""

_COMPONENT = {"<f4": 5126, "<u2": 5123, "<u4": 5125}
_KIND = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


def write_glb(
    mesh: Mesh | TexturedMesh,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata | None = None,
    unlit: bool = False,
    collision: Sequence[Triangles] = (),
) -> None:
    """Write a ``.glb`` with one mesh of one matte material, and its collision shapes.

    A collision shape is a child of the asset's node. Its node is named ``asset_00-convcolonly``, which
    Godot's importer turns into a convex body without a picture; its mesh is named ``UCX_asset_00``, as
    Unreal's importer wants it. Other programs show it as a mesh that can be hidden.

    Args:
        mesh: sRGB vertex colours become linear ones, as glTF asks of ``COLOR_0``; textures stay sRGB.
        path: of the file; replaced in one step.
        metadata: goes into ``extras.psd_gs`` of the asset and, because some importers keep only
            that, of the root node.
        unlit: show the colours as they are (KHR_materials_unlit); viewers without the extension light them.
        collision: convex shapes.

    Raises:
        InputError: no faces, or values that are not finite.
        OutputError: the file cannot be written.
    """
    check_mesh(mesh, path)
    buffer = _Buffer()
    attributes: dict[str, np.ndarray] = {"POSITION": mesh.vertices.astype("<f4"), "NORMAL": mesh.normals.astype("<f4")}
    material: dict[str, Any] = {
        "name": NAME,
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9},
    }
    images = []
    if isinstance(mesh, TexturedMesh):
        attributes["TEXCOORD_0"] = mesh.uv.astype("<f4")
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        images.append(("color", mesh.color))
        if mesh.normal_map is not None and mesh.tangents is not None and not unlit:
            attributes["TANGENT"] = mesh.tangents.astype("<f4")
            material["normalTexture"] = {"index": 1}
            images.append(("normal", mesh.normal_map))
    else:
        rgba = np.ones((len(mesh.colors), 4))
        rgba[:, :3] = srgb_to_linear(mesh.colors)
        attributes["COLOR_0"] = np.round(rgba * 65535).astype("<u2")
    if unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}

    extras = {} if metadata is None else {"extras": {"psd_gs": jsonable(metadata)}}
    nodes: list[dict[str, Any]] = [{"name": NAME, "mesh": 0, **extras}]
    meshes = [{"name": NAME, "primitives": [{**buffer.primitive(attributes, mesh.faces), "material": 0}]}]
    for i, (vertices, faces) in enumerate(collision):
        shape = f"{NAME}_{i:02d}"
        nodes.append({"name": f"{shape}-convcolonly", "mesh": 1 + i})
        meshes.append({"name": f"UCX_{shape}", "primitives": [buffer.primitive({"POSITION": vertices}, faces)]})
    if collision:
        nodes[0]["children"] = list(range(1, len(nodes)))
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"psd-gs {__version__}", **extras},
        **({"extensionsUsed": ["KHR_materials_unlit"]} if unlit else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [material],
    }
    if images:
        sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
        document |= {
            "samplers": [sampler],
            "textures": [{"sampler": 0, "source": i} for i in range(len(images))],
            "images": [
                {"name": name, "mimeType": "image/png", "bufferView": buffer.view(png_bytes(image))}
                for name, image in images
            ],
        }
    document |= {
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    body += struct.pack("<I4s", len(buffer.data), b"BIN\0") + buffer.data
    write_atomic(path, struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)


def check_mesh(mesh: Mesh | TexturedMesh, path: str | os.PathLike[str]) -> None:
    """Refuse what no format can hold.

    Raises:
        InputError: no faces, or values that are not finite.
    """
    if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all():
        bad = int((~np.isfinite(mesh.vertices)).any(1).sum())
        raise InputError(
            f"cannot write {path}: expected a mesh with finite vertices and at least one face, received "
            f"{len(mesh.faces)} faces and {bad} vertices that are not finite. Extract it again."
        )


def png_bytes(image: np.ndarray) -> bytes:
    """A PNG of a ``[H, W, 3]`` picture of bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=6)
    return file.getvalue()


class _Buffer:
    """The binary chunk as it grows, with its views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        where = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(where if target is None else {**where, "target": target})
        self.data += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def accessor(self, array: np.ndarray, target: int, **more: Any) -> int:
        self.accessors.append(
            {
                "bufferView": self.view(array.tobytes(), target),
                "componentType": _COMPONENT[array.dtype.newbyteorder("<").str],
                "count": len(array),
                "type": _KIND[array.shape[1] if array.ndim == 2 else 1],
                **more,
            }
        )
        return len(self.accessors) - 1

    def primitive(self, attributes: dict[str, np.ndarray], faces: np.ndarray) -> dict[str, Any]:
        placed = {}
        for name, array in attributes.items():
            more: dict[str, Any] = {"normalized": True} if array.dtype.kind == "u" else {}
            if name == "POSITION":
                array = array.astype("<f4")
                more |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
            placed[name] = self.accessor(array, _ARRAY_BUFFER, **more)
        # the largest value of an index type restarts a primitive
        index_type = "<u2" if len(attributes["POSITION"]) <= 65535 else "<u4"
        indices = np.ascontiguousarray(faces, index_type).reshape(-1)
        return {"attributes": placed, "indices": self.accessor(indices, _ELEMENT_ARRAY_BUFFER)}
