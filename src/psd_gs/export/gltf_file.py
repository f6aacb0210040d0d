"""A glTF 2.0 file as data: container, buffers, accessors, nodes (Khronos glTF 2.0 specification).

What meshes and splats mean is decided elsewhere; here every count is compared with the bytes that are there before
anything is allocated, and every index is checked. What is unsound is a ValueError, which the caller explains.

Read here and by none of the libraries looked at: trimesh 5 ignores normalization, sparse values and unknown required
extensions; pygltflib and gltflib parse the JSON alone; Assimp (assimp-py, impasse) opens whatever file a URI names.
Compressed data go to the codecs' own libraries, DracoPy and meshopt.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import numpy as np

from psd_gs.errors import UnsupportedError
from psd_gs.export.blocks import read_bytes
from psd_gs.export.siblings import read_sibling

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}

MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
DRACO = "KHR_draco_mesh_compression"
_MAX_RATIO = 1000
"""A packed view or primitive that promises more than so many times its bytes is refused: no mesh packs like that."""
_MAX_BUFFER = 1 << 32
_GLB_HEAD, _CHUNK_HEAD, _PADDING = 12, 8, 3
_MAX_PICTURE = 1 << 28
_MAX_UNPACKED = 1 << 30
"""Bytes that all compressed views of a file unpack to."""


class GltfFile:
    """One ``.glb`` or ``.gltf``, whatever its name says.

    Attributes:
        path: of the file.
        document: its JSON.
        size: bytes of the file and of the buffers beside it that have been read.
        is_binary: whether it is a container with chunks.
        blob: the binary chunk.
        other_chunks: kind and bytes of those that are neither JSON nor the binary chunk.
        behind: bytes after the last chunk.

    Raises:
        FormatError: it names a file outside its folder.
        InputError: the file cannot be opened.
        UnsupportedError: it is glTF 1.
        ValueError: the container is unsound.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        data = read_bytes(path)
        self.size = len(data)
        self.is_binary = data[:4] == b"glTF"
        self.document, self.blob, self.other_chunks, self.behind = _chunks(data, path)
        self._lists: dict[str, list[dict[str, Any]]] = {}
        self._buffers: dict[int, memoryview] = {}
        self._unpacked: dict[int, memoryview] = {}
        version = objects({"asset": [self.document.get("asset", {})]}, "asset")[0].get("version", "2.0")
        if not str(version).startswith("2."):
            raise UnsupportedError(
                f"{path}: expected glTF 2.0, received version {str(version)!r:.20}. Import it into Blender and "
                "export it again."
            )

    def names(self, key: str) -> list[str]:
        """The strings of a list at the top, such as ``extensionsRequired``."""
        found = self.document.get(key, [])
        if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
            raise ValueError(f"{key} is no list of names")
        return found

    def part(self, key: str, i: Any) -> dict[str, Any]:
        """Entry ``i`` of a list at the top, such as ``meshes``."""
        if key not in self._lists:  # checked once, however many entries are asked for
            self._lists[key] = objects(self.document, key)
        entries = self._lists[key]
        return entries[index(i, len(entries), key)]

    def unused(self) -> list[str]:
        """What of the container nothing in the document names, each a phrase."""
        first = next(iter(objects(self.document, "buffers")), {"uri": ""})
        named = 0 if "uri" in first else first.get("byteLength")
        left = len(self.blob) - named if type(named) is int else 0
        others = sum(len(chunk) for _, chunk in self.other_chunks)
        return [
            *([f"{left} bytes behind the buffer of the binary chunk"] if left > _PADDING else []),
            *([f"{others} bytes in {len(self.other_chunks)} further chunks"] if self.other_chunks else []),
            *([f"{self.behind} bytes behind the last chunk"] if self.behind else []),
        ]

    # --- buffers -----------------------------------------------------------------------------------------------------

    def buffer(self, i: int) -> memoryview:
        """A whole buffer: the binary chunk, or what its URI names."""
        if i not in self._buffers:
            about = self.part("buffers", i)
            if "uri" in about:
                length = integer(about, "byteLength")
                data = memoryview(self.resource(about["uri"], _MAX_BUFFER))
                if len(data) < length:
                    raise ValueError(f"buffer {i} has {len(data)} of {length} bytes")
                self.size += len(data)
                self._buffers[i] = data[:length]
            else:
                self._buffers[i] = self.blob if i == 0 else memoryview(b"")
        return self._buffers[i]

    def resource(self, uri: Any, limit: int = _MAX_PICTURE) -> bytes:
        """What a URI holds or names.

        Raises:
            FileNotFoundError: there is no such file beside this one.
        """
        if not isinstance(uri, str):
            raise ValueError("a URI that is no text")
        if uri[:5].lower() != "data:":
            try:
                return read_sibling(self.path, uri, limit, uri=True)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"there is no {uri!r:.100} beside it") from error
        head, comma, body = uri.partition(",")
        if not comma:
            raise ValueError("a data URI without data")
        raw = unquote_to_bytes(body)
        if not head.lower().endswith(";base64"):
            return raw
        try:
            return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
        except binascii.Error as error:
            raise ValueError(f"a data URI that is no base64 ({error})") from error

    def view(self, i: Any) -> memoryview:
        """The bytes of a buffer view, unpacked."""
        about = self.part("bufferViews", i)
        packed = next((extensions(about)[name] for name in MESHOPT if name in extensions(about)), None)
        if packed is None:
            return self._slice(about)
        if i not in self._unpacked:
            count, stride = integer(packed, "count"), integer(packed, "byteStride")
            data = self._slice(packed)
            total = count * stride + sum(map(len, self._unpacked.values()))
            if count * stride > _MAX_RATIO * len(data) or total > _MAX_UNPACKED:
                raise ValueError(f"buffer view {i} promises {count * stride} bytes from {len(data)}")
            decode = self._codec("meshopt", MESHOPT[0]).decode_gltf_buffer
            rows = decode(bytes(data), count, stride, packed.get("mode"), packed.get("filter", "NONE"))
            self._unpacked[i] = memoryview(rows.tobytes())
        return self._unpacked[i]

    def _slice(self, about: dict[str, Any]) -> memoryview:
        data = self.buffer(integer(about, "buffer"))
        offset, length = integer(about, "byteOffset", 0), integer(about, "byteLength")
        if offset + length > len(data):
            raise ValueError(f"{length} bytes at {offset} go beyond a buffer of {len(data)}")
        return data[offset : offset + length]

    def _codec(self, module: str, extension: str) -> Any:
        import importlib

        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise UnsupportedError(
                f"{self.path}: compressed ({extension}), and {module} is not installed. Install it with "
                'pip install "psd-gs[compressed]", or import the file into Blender and export it uncompressed.'
            ) from error

    # --- accessors ---------------------------------------------------------------------------------------------------

    def raw(self, i: Any) -> Shaped[np.ndarray, "count width"]:
        """The numbers of an accessor as they are stored."""
        about = self.part("accessors", i)
        count = integer(about, "count")
        if "bufferView" in about:
            view = self.part("bufferViews", about["bufferView"])
            packed = next((extensions(view)[name] for name in MESHOPT if name in extensions(view)), view)
            tight = packed is not view and packed.get("mode") != "ATTRIBUTES"
            stride = 0 if tight else integer(packed, "byteStride", 0)
            values = _table(about, count, self.view(about["bufferView"]), stride)
        else:
            # it takes no byte of the file: as many as the file has bytes are more than anybody overlays
            if count > self.size:
                raise ValueError(f"accessor {i} promises {count} elements, which {self.size} bytes cannot hold")
            values = np.zeros((count, _width(about)), _dtype(about))
        if "sparse" not in about:
            return values
        sparse = about["sparse"]
        changed = integer(sparse, "count")
        where, what = sparse["indices"], sparse["values"]
        rows = _table({**where, "type": "SCALAR"}, changed, self.view(where.get("bufferView")), 0)
        offset = {"byteOffset": integer(what, "byteOffset", 0)}
        new = _table({**about, **offset}, changed, self.view(what.get("bufferView")), 0)
        if changed and rows.max() >= count:
            raise ValueError(f"a sparse accessor changes element {rows.max()} of {count}")
        values = values.copy()
        values[rows[:, 0]] = new
        return values

    def values(self, i: Any, width: int | None = None) -> Float[np.ndarray, "count width"]:
        """The numbers of an accessor as float64; normalized integers in [0, 1] or [-1, 1].

        Args:
            i: of the accessor.
            width: components that it must have.
        """
        return decoded(self.raw(i), bool(self.part("accessors", i).get("normalized", False)), width)

    def draco(self, primitive: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
        """Attributes by name, as they are stored, and the corners of a primitive that Draco packed, else None."""
        packed = extensions(primitive).get(DRACO)
        if packed is None:
            return None
        data = bytes(self.view(packed.get("bufferView")))
        accessors = [i for i in (primitive["attributes"].get("POSITION"), primitive.get("indices")) if i is not None]
        if any(integer(self.part("accessors", i), "count") > _MAX_RATIO * len(data) for i in accessors):
            raise ValueError(f"a primitive promises more than {_MAX_RATIO} times its {len(data)} bytes")
        mesh = self._codec("DracoPy", DRACO).decode(data)
        by_id = {attribute["unique_id"]: np.asarray(attribute["data"]) for attribute in mesh.attributes}
        found = {name: by_id[key].reshape(len(by_id[key]), -1) for name, key in packed["attributes"].items()}
        return found, np.asarray(getattr(mesh, "faces", np.zeros(0)), np.int64).reshape(-1)

    # --- nodes -------------------------------------------------------------------------------------------------------

    @cached_property
    def placed(self) -> dict[int, Float[np.ndarray, "4 4"]]:
        """World matrix of every visible node of the scene, parents first."""
        nodes = objects(self.document, "nodes")
        scenes = objects(self.document, "scenes")
        if scenes:
            roots = scenes[index(self.document.get("scene", 0), len(scenes), "scenes")].get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [i for i in range(len(nodes)) if i not in children]
        found: dict[int, np.ndarray] = {}
        waiting = [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            i, above = waiting.pop()
            node = nodes[index(i, len(nodes), "nodes")]
            if i in found:
                raise ValueError(f"node {i} has two parents")
            if extensions(node).get("KHR_node_visibility", {}).get("visible", True) is False:
                continue
            found[i] = above @ local_matrix(node)
            waiting += [(child, found[i]) for child in reversed(node.get("children", []))]
        return found


def local_matrix(node: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    """Of a node, with respect to its parent."""
    if "matrix" in node:
        return numbers(node, "matrix", 16).reshape(4, 4).T
    translation, scale = numbers(node, "translation", 3, [0, 0, 0]), numbers(node, "scale", 3, [1, 1, 1])
    return matrices(translation[None], numbers(node, "rotation", 4, [0, 0, 0, 1])[None], scale[None])[0]


def matrices(
    translation: Float[np.ndarray, "N 3"], rotation: Float[np.ndarray, "N 4"], scale: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "N 4 4"]:
    """Translation times rotation (quaternions xyzw) times scale."""
    from scipy.spatial.transform import Rotation

    matrix = np.tile(np.eye(4), (len(translation), 1, 1))
    matrix[:, :3, :3] = Rotation.from_quat(rotation).as_matrix() * scale[:, None, :]
    matrix[:, :3, 3] = translation
    return matrix


def decoded(table: np.ndarray, normalized: bool, width: int | None) -> Float[np.ndarray, "count width"]:
    """Stored numbers as float64 (glTF 2.0, 3.6.2.2: integers are divided by their largest value)."""
    if width is not None and table.shape[1] != width:
        raise ValueError(f"expected {width} numbers an element, received {table.shape[1]}")
    values = table.astype(np.float64)
    return np.maximum(values / np.iinfo(table.dtype).max, -1) if normalized and table.dtype.kind in "iu" else values


def objects(holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of JSON objects; empty if there is none."""
    found = holder.get(key, [])
    if not (isinstance(found, list) and all(isinstance(entry, dict) for entry in found)):
        raise ValueError(f"{key} is no list of objects")
    return found


def extensions(holder: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The extensions of a JSON object by name."""
    found = holder.get("extensions", {})
    if not (isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values())):
        raise ValueError("extensions that are no objects")
    return found


def index(i: Any, count: int, key: str) -> int:
    """``i``, if it is an index of ``count`` things."""
    if type(i) is not int or not 0 <= i < count:
        raise ValueError(f"{key} has no entry {i!s:.20}")
    return i


def integer(holder: dict[str, Any], key: str, default: int | None = None) -> int:
    """A count or offset."""
    found = holder.get(key, default)
    if type(found) is not int or found < 0:
        raise ValueError(f"{key} is {found!s:.20}")
    return found


def numbers(holder: dict[str, Any], key: str, count: int, default: list[float] | None = None) -> np.ndarray:
    """So many finite numbers as float64."""
    found = holder.get(key, default)
    values = np.array(found if isinstance(found, list) else [found], np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{key}: expected {count} finite numbers")
    return values


def _chunks(
    data: bytes, path: str | os.PathLike[str]
) -> tuple[dict[str, Any], memoryview, list[tuple[bytes, memoryview]], int]:
    """The JSON document, the binary chunk, all others, and how many bytes are behind them."""
    if data[:4] != b"glTF":
        return _document(data), memoryview(b""), [], 0
    chunks = list(_glb_chunks(data, path))
    behind = len(data) - _GLB_HEAD - sum(_CHUNK_HEAD + len(chunk) for _, chunk in chunks)
    parts, known = dict(chunks), (b"JSON", b"BIN\0")
    if b"JSON" not in parts:
        raise ValueError("no JSON chunk")
    others = [chunk for chunk in chunks if chunk[0] not in known]
    return _document(bytes(parts[b"JSON"])), parts.get(b"BIN\0", memoryview(b"")), others, behind


def _glb_chunks(data: bytes, path: str | os.PathLike[str]) -> Iterator[tuple[bytes, memoryview]]:
    if len(data) < _GLB_HEAD:
        raise ValueError("no whole header")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise UnsupportedError(
            f"{path}: expected binary glTF 2, received version {version}. Import it into Blender and export it again."
        )
    if length > len(data):
        raise ValueError(f"it is truncated: {len(data)} of {length} bytes")
    begin = _GLB_HEAD
    while begin + _CHUNK_HEAD <= length:
        size, kind = struct.unpack_from("<I4s", data, begin)
        begin += _CHUNK_HEAD
        if begin + size > length:
            raise ValueError(f"a chunk of {size} bytes goes beyond the file")
        yield kind, memoryview(data)[begin : begin + size]
        begin += size


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text.rstrip(b"\0").decode("utf-8-sig"))  # some pad it with zeros
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    if not isinstance(document, dict):
        raise ValueError("its JSON is no object")
    return document


def _dtype(about: dict[str, Any]) -> np.dtype:
    kind = about.get("componentType")
    if kind not in COMPONENTS:
        raise ValueError(f"a component type {kind!s:.20}")
    return np.dtype(COMPONENTS[kind])


def _width(about: dict[str, Any]) -> int:
    kind = about.get("type")
    if kind not in WIDTHS:
        raise ValueError(f"an accessor of {kind!s:.20}")
    return WIDTHS[kind]


def _table(about: dict[str, Any], count: int, data: memoryview, stride: int) -> np.ndarray:
    """``count`` elements in ``data``; a stride of 0 packs them tightly."""
    dtype, width = _dtype(about), _width(about)
    item = width * dtype.itemsize
    stride = stride or item
    offset = integer(about, "byteOffset", 0)
    if stride < item or (count and offset + stride * (count - 1) + item > len(data)):
        raise ValueError(f"{count} elements of {item} bytes go beyond a view of {len(data)}")
    return np.ndarray((count, width), dtype, data if count else b"", offset if count else 0, (stride, dtype.itemsize))
