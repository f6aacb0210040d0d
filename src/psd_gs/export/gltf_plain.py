"""A glTF of any kind as one GLB that needs no codec and no file beside it, which is what a page can show."""

from __future__ import annotations

import copy
import json
import os
import struct
from typing import Any

import numpy as np

from psd_gs.errors import PsdGsError
from psd_gs.export.blocks import damaged, read_bytes
from psd_gs.export.gltf_file import COMPONENTS, DRACO, MESHOPT, GltfFile, objects

_CODECS = {DRACO, *MESHOPT}


def plain_glb(path: str | os.PathLike[str]) -> bytes:
    """A ``.glb`` or ``.gltf`` with what Draco or meshoptimizer packed unpacked, and its files within; as it is if that
    is so already.

    Raises:
        FormatError: a damaged file, one that names files outside its folder, or a codec that is not installed.
        InputError: the file cannot be opened.
    """
    try:
        file = GltfFile(path)
        outside = [entry for key in ("buffers", "images") for entry in objects(file.document, key) if "uri" in entry]
        used = {*file.names("extensionsUsed"), *file.names("extensionsRequired")}
        if not outside and not used & _CODECS:
            data = read_bytes(path)
            return data if data[:4] == b"glTF" else _glb(file.document, b"")
        return _Unpacked(file).glb()
    except PsdGsError:
        raise
    # broken bytes lead parsers, ours and those of the codecs, into errors of any kind
    except Exception as error:
        raise damaged(path, f"no sound glTF ({' '.join(str(error).split())[:100]})") from error


class _Unpacked:
    """A document that grows with a buffer of its own."""

    def __init__(self, file: GltfFile) -> None:
        self.file = file
        self.document = copy.deepcopy(file.document)
        self.blob = bytearray()
        self.views: list[dict[str, Any]] = []

    def glb(self) -> bytes:
        for i, view in enumerate(objects(self.document, "bufferViews")):
            kept: dict[str, Any] = {key: view[key] for key in ("byteStride", "target") if key in view}
            self._view(bytes(self.file.view(i)), kept)
        for image in objects(self.document, "images"):
            if "uri" in image:
                data = self.file.resource(image.pop("uri"))
                image["bufferView"] = self._view(data, {})
                image.setdefault("mimeType", "image/png" if data[:4] == b"\x89PNG" else "image/jpeg")
        for mesh in objects(self.document, "meshes"):
            for primitive in objects(mesh, "primitives"):
                self._unpack(primitive)
        for key in ("extensionsUsed", "extensionsRequired"):
            names = [name for name in self.document.pop(key, []) if name not in _CODECS]
            self.document |= {key: names} if names else {}
        self.document |= {"bufferViews": self.views, "buffers": [{"byteLength": len(self.blob)}]}
        return _glb(self.document, bytes(self.blob))

    def _view(self, data: bytes, more: dict[str, Any]) -> int:
        self.blob += bytes(-len(self.blob) % 4)
        self.views.append({**more, "buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)})
        self.blob += data
        return len(self.views) - 1

    def _unpack(self, primitive: dict[str, Any]) -> None:
        """What Draco packed becomes the views of the primitive's accessors, which have none."""
        packed = self.file.draco(primitive)
        if packed is None:
            return
        columns, corners = packed
        if "indices" not in primitive:
            primitive["indices"] = len(self.document["accessors"])
            self.document["accessors"].append({"type": "SCALAR"})
        self._fill(primitive["indices"], corners.astype("<u4"), 5125)
        for name, table in columns.items():
            accessor = primitive["attributes"][name]
            kind = self.file.part("accessors", accessor)["componentType"]
            self._fill(accessor, table.astype(COMPONENTS[kind]), kind)
        del primitive["extensions"][DRACO]

    def _fill(self, accessor: int, table: np.ndarray, kind: int) -> None:
        size = table.nbytes // max(len(table), 1)
        stride = size if table.ndim == 1 else -(-size // 4) * 4  # rows of attributes begin at every fourth byte
        rows = np.zeros((len(table), stride), np.uint8)
        rows[:, :size] = np.ascontiguousarray(table).view(np.uint8).reshape(len(table), size)
        about = {"bufferView": self._view(rows.tobytes(), {"byteStride": stride} if table.ndim > 1 else {})}
        about |= {"byteOffset": 0, "componentType": kind, "count": len(table)}
        self.document["accessors"][accessor] |= about


def _glb(document: dict[str, Any], blob: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    blob += bytes(-len(blob) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
