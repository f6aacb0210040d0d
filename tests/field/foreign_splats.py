"""Splat files as other programs write them, made with NumPy and struct alone, and what readers must find in them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mesh_builders import container

C0 = 0.28209479177387814
NUMPY = {"float": "<f4", "double": "<f8", "uchar": "u1", "ushort": "<u2", "int": "<i4"}
Columns = dict[str, np.ndarray]


def ball(n: int = 200, *, degree: int = 0, radius: float = 0.5, size: float = 0.02, seed: int = 0) -> Columns:
    """Splats on a sphere as columns of a 3DGS PLY, in the axes of the file."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    columns = dict(zip("xyz", (radius * normal).T, strict=True))
    columns |= {f"f_dc_{i}": 0.4 * normal[:, i] / C0 for i in range(3)}
    columns |= {f"f_rest_{i}": 0.1 * rng.normal(size=n) for i in range(3 * ((degree + 1) ** 2 - 1))}
    columns["opacity"] = np.full(n, 3.0)
    columns |= {f"scale_{i}": np.log(size) + 0.2 * rng.normal(size=n) for i in range(3)}
    quats = rng.normal(size=(n, 4))
    return columns | {f"rot_{i}": (quats / np.linalg.norm(quats, axis=1, keepdims=True))[:, i] for i in range(4)}


def resized(columns: Columns, factor: float, place: Sequence[float] = (0, 0, 0)) -> Columns:
    """The same ball ``factor`` times as large, at another place."""
    moved = {axis: columns[axis] * factor + offset for axis, offset in zip("xyz", place, strict=True)}
    return columns | moved | {f"scale_{i}": columns[f"scale_{i}"] + np.log(factor) for i in range(3)}


def write_ply(
    path: Path,
    columns: Columns,
    *,
    types: Mapping[str, str] = {},
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
    head: bytes = b"",
    tail: bytes = b"",
    eol: bytes = b"\n",
    end: bytes = b"end_header",
    form: str = "binary_little_endian",
) -> None:
    """A PLY; ``before`` and ``after`` are header lines around the element, ``head`` and ``tail`` their data."""
    n = len(columns["x"])
    kinds = {name: types.get(name, "float") for name in columns}
    properties = [f"property {kind} {name}".encode() for name, kind in kinds.items()]
    lines = [b"ply", f"format {form} 1.0".encode(), *before, f"element vertex {n}".encode(), *properties, *after, end]
    row = np.dtype([(name, NUMPY[kind]) for name, kind in kinds.items()])
    table = np.empty(n, row.newbyteorder(">") if form == "binary_big_endian" else row)
    for name, values in columns.items():
        table[name] = values
    body = table.tobytes()
    if form == "ascii":
        body = "".join(" ".join(repr(float(v)) for v in values) + "\n" for values in table.tolist()).encode()
    path.write_bytes(eol.join([*lines, b""]) + head + body + tail)


def read_ply(path: Path) -> tuple[Columns, list[str]]:
    """Columns and comments of a binary little-endian PLY of one element."""
    data = path.read_bytes()
    end = data.index(b"end_header\n") + 11
    lines = data[:end].decode().split("\n")
    kinds = [(words[2], NUMPY[words[1]]) for words in map(str.split, lines) if words[:1] == ["property"]]
    table = np.frombuffer(data, np.dtype(kinds), -1, end)
    comments = [line.removeprefix("comment ") for line in lines if line.startswith("comment ")]
    return {name: table[name].astype(float) for name, _ in kinds}, comments


def spz(columns: Columns, *, fraction: int = 12, flags: int = 0, records: bytes = b"") -> bytes:
    """SPZ of version 2 without harmonics and with unturned splats."""
    n = len(columns["x"])
    fixed = np.rint(np.stack([columns[axis] for axis in "xyz"], 1) * 2**fraction).astype("<i4")
    sh = np.stack([columns[f"f_dc_{i}"] for i in range(3)], 1)
    scales = np.stack([columns[f"scale_{i}"] for i in range(3)], 1)
    body = struct.pack("<4sIIBBBB", b"NGSP", 2, n, 0, fraction, flags, 0)
    body += np.ascontiguousarray(fixed.view("u1").reshape(n, 3, 4)[..., :3]).tobytes() + bytes([243] * n)
    body += np.clip(np.rint((sh * 0.15 + 0.5) * 255), 0, 255).astype("u1").tobytes()
    body += np.clip(np.rint((scales + 10) * 16), 0, 255).astype("u1").tobytes() + bytes([128] * 3 * n)
    return gzip.compress(body + records)


def read_spz(data: bytes) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Positions, log scales, bits below the point and flags of an SPZ of version 2 or 3."""
    data = gzip.decompress(data)
    _, _, n, _, fraction, flags, _ = struct.unpack_from("<4sIIBBBB", data)
    b = np.frombuffer(data, np.uint8, 9 * n, 16).reshape(n, 3, 3).astype(np.int64)
    whole = b[..., 0] | b[..., 1] << 8 | b[..., 2] << 16
    scales = np.frombuffer(data, np.uint8, 3 * n, 16 + 13 * n).reshape(n, 3) / 16 - 10
    return np.where(whole >= 1 << 23, whole - (1 << 24), whole) / 2.0**fraction, scales, fraction, flags


def glb(document: dict, blob: bytes) -> bytes:
    """A binary glTF of one buffer."""
    document = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], **document}
    return container({**document, "buffers": [{"byteLength": len(blob)}]}, blob)


def glb_of(attributes: Mapping[str, np.ndarray], extensions: dict, **document: object) -> bytes:
    """A binary glTF of points with float attributes."""
    arrays = [np.ascontiguousarray(values, "<f4") for values in attributes.values()]
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)])[:-1].tolist()
    kinds = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
    accessors = [
        {"bufferView": i, "componentType": 5126, "count": len(a), "type": kinds[a.reshape(len(a), -1).shape[1]]}
        for i, a in enumerate(arrays)
    ]
    primitive = {"mode": 0, "attributes": {name: i for i, name in enumerate(attributes)}, "extensions": extensions}
    views = [{"buffer": 0, "byteOffset": o, "byteLength": a.nbytes} for o, a in zip(offsets, arrays, strict=True)]
    parts = {"nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], "accessors": accessors}
    used = {"extensionsUsed": list(extensions), "bufferViews": views}
    return glb({**parts, **used, **document}, b"".join(array.tobytes() for array in arrays))
