"""Binary glTF 2.0 of one mesh with vertex colours (Khronos glTF 2.0 specification).

The glTF frame is our world frame, so nothing is turned.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import numpy as np

from psd_gs import __version__
from psd_gs.colours import srgb_to_linear
from psd_gs.errors import InputError
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.files import write_atomic
from psd_gs.mesh.surface import Mesh

_COMPONENT = {"<f4": 5126, "<u2": 5123, "<u4": 5125}
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963


def write_glb(mesh: Mesh, path: str | os.PathLike[str], *, metadata: Metadata | None = None) -> None:
    """Write a ``.glb`` with one node, one mesh, one matte material.

    Args:
        mesh: its sRGB colours become linear ones, as glTF asks of ``COLOR_0``.
        path: of the file; replaced in one step.
        metadata: goes into ``extras.psd_gs`` of the asset and, because some importers keep only
            that, of the root node.

    Raises:
        InputError: no faces, or values that are not finite.
        OutputError: the file cannot be written.
    """
    if len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all():
        raise InputError(f"cannot write {path}: expected a mesh with finite vertices and at least one face.")
    rgba = np.ones((len(mesh.colors), 4))
    rgba[:, :3] = srgb_to_linear(mesh.colors)
    index_type = "<u2" if len(mesh.vertices) <= 65535 else "<u4"  # the type's largest value restarts a primitive
    arrays: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
        "POSITION": (mesh.vertices.astype("<f4"), "VEC3", {}),
        "NORMAL": (mesh.normals.astype("<f4"), "VEC3", {}),
        "COLOR_0": (np.round(rgba * 65535).astype("<u2"), "VEC4", {"normalized": True}),
        "indices": (mesh.faces.astype(index_type).reshape(-1), "SCALAR", {}),
    }
    position = arrays["POSITION"][0]
    arrays["POSITION"][2].update(min=position.min(0).tolist(), max=position.max(0).tolist())

    blob = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    for name, (array, kind, more) in arrays.items():
        target = _ELEMENT_ARRAY_BUFFER if name == "indices" else _ARRAY_BUFFER
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes, "target": target})
        component = _COMPONENT[array.dtype.newbyteorder("<").str]
        accessors.append(
            {"bufferView": len(accessors), "componentType": component, "count": len(array), "type": kind, **more}
        )
        blob += array.tobytes()
        blob += bytes(-len(blob) % 4)

    extras = {} if metadata is None else {"extras": {"psd_gs": jsonable(metadata)}}
    attributes = {name: i for i, name in enumerate(arrays) if name != "indices"}
    document = {
        "asset": {"version": "2.0", "generator": f"psd-gs {__version__}", **extras},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "asset", "mesh": 0, **extras}],
        "meshes": [
            {"name": "asset", "primitives": [{"attributes": attributes, "indices": len(attributes), "material": 0}]}
        ],
        "materials": [{"name": "asset", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    write_atomic(path, struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
