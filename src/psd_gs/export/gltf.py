"""Binary glTF with ``KHR_gaussian_splatting`` (Khronos, ratified 2026): splats as a point primitive.

Positions, unit quaternions xyzw, linear scales, opacities and one vector per spherical harmonic are
plain float32 accessors in glTF's own frame. ``COLOR_0`` shows a point cloud where the extension is
unknown.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psd_gs import __version__
from psd_gs.colours import srgb_to_linear
from psd_gs.errors import FormatError, InputError
from psd_gs.export.blocks import (
    MAX_RATIO,
    blocks,
    damaged,
    gather,
    log_scale,
    logit,
    ranges,
    read_bytes,
    sigmoid,
    tensors,
    usable_rows,
)
from psd_gs.export.frames import Frame, similarity, transform
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.files import atomic_path
from psd_gs.gaussians import Gaussians, sh0_to_rgb

EXTENSION = "KHR_gaussian_splatting"
_COLOR_SPACE = "srgb_rec709_display"
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_KINDS = {width: kind for kind, width in _WIDTHS.items()}
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_FLOAT, _USHORT, _ARRAY_BUFFER, _POINTS = 5126, 5123, 34962, 0


def write_gltf(
    gaussians: Gaussians, path: str | os.PathLike[str], *, frame: Frame = "gltf", metadata: Metadata | None = None
) -> None:
    """Write a ``.glb`` with one node, one mesh, one primitive of points.

    Args:
        gaussians: what to write, in the world frame.
        path: of the file; replaced in one step.
        frame: axes of the file.
        metadata: goes into ``extras.psd_gs`` of the asset and, because some importers keep only that, of the node.

    Raises:
        InputError: no usable Gaussian is left, or more than a GLB of 4 GiB holds.
        OutputError: the file cannot be written.
    """
    rows = usable_rows(gaussians, path)
    attributes = next(_attributes(g) for g in blocks(gaussians, rows[:1], frame))
    lengths = {name: len(rows) * values[0].nbytes for name, values in attributes.items()}
    offsets = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    size = sum(lengths.values())
    if size >= 2**32 - 2**20:
        raise InputError(
            f"cannot write {path}: expected at most 4 GiB, received {len(rows)} Gaussians of {size} bytes. "
            "Lower --sh-degree or --max-splats."
        )
    box = gaussians.means.detach()[rows].float()
    if frame == "rdf":
        box *= box.new_tensor([1.0, -1.0, -1.0])
    accessors = [
        {
            "bufferView": i,
            "componentType": _USHORT if name == "COLOR_0" else _FLOAT,
            "count": len(rows),
            "type": _KINDS[values.shape[1]],
            **({"normalized": True} if name == "COLOR_0" else {}),
            **({"min": box.amin(0).tolist(), "max": box.amax(0).tolist()} if name == "POSITION" else {}),
        }
        for i, (name, values) in enumerate(attributes.items())
    ]
    extras = {} if metadata is None else {"extras": {"psd_gs": jsonable(metadata)}}
    primitive = {
        "mode": _POINTS,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": _COLOR_SPACE}},
    }
    document = {
        "asset": {"version": "2.0", "generator": f"psd-gs {__version__}", **extras},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "asset", "mesh": 0, **extras}],
        "meshes": [{"name": "asset", "primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": offsets[name], "byteLength": length, "target": _ARRAY_BUFFER}
            for name, length in lengths.items()
        ],
        "buffers": [{"byteLength": size}],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + size)
    head += struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", size, b"BIN\0")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        done = 0
        for g in blocks(gaussians, rows, frame):
            for name, values in _attributes(g).items():
                file.seek(len(head) + offsets[name] + done * values[0].nbytes)
                file.write(values.tobytes())
            done += len(g)


def _attributes(g: Gaussians) -> dict[str, np.ndarray]:
    """The vertex attributes of a block, [N, C] each in the type of the file."""
    alpha = sigmoid(g)[:, None]
    fallback = np.concatenate([srgb_to_linear(sh0_to_rgb(g.sh0[:, 0]).numpy()), alpha], axis=1)
    columns = {
        "POSITION": g.means.numpy(),
        "COLOR_0": np.rint(fallback * 65535),
        f"{EXTENSION}:ROTATION": g.quats.numpy()[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": g.scales.exp().numpy(),
        f"{EXTENSION}:OPACITY": alpha,
        **dict(zip(_harmonics(g.sh_degree), g.sh.unbind(1), strict=True)),
    }
    return {name: np.asarray(column, "<u2" if name == "COLOR_0" else "<f4") for name, column in columns.items()}


def _harmonics(degree: int) -> list[str]:
    """Attribute names of the spherical harmonics, degree 0 first."""
    return [f"{EXTENSION}:SH_DEGREE_{band}_COEF_{n}" for band in range(degree + 1) for n in range(2 * band + 1)]


def read_gltf(path: str | os.PathLike[str], *, frame: Frame = "gltf", lenient: bool = False) -> Gaussians:
    """Read all splats of a ``.glb``, with the transforms of their nodes.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

    Raises:
        FormatError: another kind of file, a damaged or truncated one, one without splats, or with non-finite values.
        InputError: the file cannot be opened.
    """
    data = read_bytes(path)
    try:
        document, blob = _chunks(data)
        found = list(_splat_primitives(document))
        if not found:
            raise FormatError(
                f"{path} has no {EXTENSION}: expected splats, received a glTF of something else. "
                "A mesh can start a run with --init."
            )
        columns = [(_columns(document, blob, primitive), matrix) for primitive, matrix in found]
        count = sum(len(arrays[0]) for arrays, _ in columns)
        degree_size = max(len(arrays) for arrays, _ in columns)
        if count * degree_size * 12 > MAX_RATIO * len(data):
            raise damaged(path, f"it repeats its splats {len(found)} times")
    except FormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise damaged(path, f"no sound GLB ({reason[:100]})") from error

    def parts() -> Iterator[Gaussians]:
        for (means, quats, scales, opacities, *sh), matrix in columns:
            for begin, end in ranges(len(means)):
                rows = slice(begin, end)
                harmonics = np.zeros((end - begin, degree_size - 5, 3))
                if len(sh) > 1:
                    harmonics[:, : len(sh) - 1] = np.stack([band[rows] for band in sh[1:]], axis=1)
                block = tensors(
                    means=means[rows],
                    quats=quats[rows][:, [3, 0, 1, 2]],
                    scales=log_scale(scales[rows]),
                    opacities=logit(opacities[rows, 0]),
                    sh0=sh[0][rows],
                    shN=harmonics,
                )
                yield block if matrix is None else transform(block, matrix)

    return gather(parts(), count, path, frame, lenient)


def _chunks(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON document and the binary chunk; ValueError if the container is unsound."""
    magic, version, length = struct.unpack_from("<4sII", data)
    if (magic, version) != (b"glTF", 2) or length > len(data):
        raise ValueError(f"expected glTF 2 of {length} bytes, received {magic!r} version {version}, {len(data)} bytes")
    size, kind = struct.unpack_from("<I4s", data, 12)
    if kind != b"JSON" or 20 + size > length:
        raise ValueError("no JSON chunk")
    document = json.loads(data[20 : 20 + size])
    if not isinstance(document, dict):
        raise ValueError("the JSON chunk is no object")
    begin = 20 + size
    if begin == length:
        return document, memoryview(b"")
    size, kind = struct.unpack_from("<I4s", data, begin)
    if kind != b"BIN\0" or begin + 8 + size > length:
        raise ValueError("no whole binary chunk")
    return document, memoryview(data)[begin + 8 : begin + 8 + size]


def _splat_primitives(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
    """Primitives with the extension in the nodes of the scene, with their matrices (None for the identity)."""
    nodes, seen = document["nodes"], set()
    stack = [(i, torch.eye(4, dtype=torch.float64)) for i in document["scenes"][document.get("scene", 0)]["nodes"]]
    while stack:
        i, above = stack.pop()
        if type(i) is not int or i < 0 or i in seen:
            raise ValueError(f"node {i!r} is no node, or has two parents")
        seen.add(i)
        node = nodes[i]
        matrix = above @ _matrix(node)
        stack += [(child, matrix) for child in node.get("children", [])]
        for primitive in document["meshes"][node["mesh"]]["primitives"] if "mesh" in node else ():
            extension = primitive.get("extensions", {}).get(EXTENSION)
            if extension is None:
                continue
            if extension.get("colorSpace", _COLOR_SPACE) != _COLOR_SPACE:
                raise ValueError(f"unknown colour space {extension['colorSpace']!r}, expected {_COLOR_SPACE}")
            similarity(matrix)
            yield primitive, None if torch.equal(matrix, torch.eye(4, dtype=torch.float64)) else matrix


def _matrix(node: dict[str, Any]) -> Tensor:
    """Local transform of a node."""

    def numbers(name: str, default: list[float]) -> Tensor:
        values = torch.tensor(node.get(name, default), dtype=torch.float64)
        if values.shape != (len(default),) or not values.isfinite().all():
            raise ValueError(f"a node's {name}")
        return values

    if "matrix" in node:
        matrix = numbers("matrix", [0.0] * 16).reshape(4, 4).T
    else:
        x, y, z, w = numbers("rotation", [0.0, 0.0, 0.0, 1.0]).tolist()
        rotation = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = torch.tensor(rotation, dtype=torch.float64) * numbers("scale", [1.0] * 3)
        matrix[:3, 3] = numbers("translation", [0.0] * 3)
    return matrix


def _columns(document: dict[str, Any], blob: memoryview, primitive: dict[str, Any]) -> list[np.ndarray]:
    """Positions, rotations, scales, opacities and harmonics of a primitive, of one length."""
    attributes = primitive["attributes"]
    degree = max(band for band in range(4) if f"{EXTENSION}:SH_DEGREE_{band}_COEF_0" in attributes)
    names = ["POSITION", *(f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY")), *_harmonics(degree)]
    columns = [_accessor(document, blob, attributes[name]) for name in names]
    shapes = [column.shape for column in columns]
    widths = [3, 4, 3, 1] + [3] * (degree + 1) ** 2
    if shapes != [(len(columns[0]), width) for width in widths]:
        raise ValueError(f"attributes of different or wrong shapes {sorted(set(shapes))}")
    return columns


def _accessor(document: dict[str, Any], blob: memoryview, i: int) -> np.ndarray:
    """A table [count, components]; floats are a view of ``blob``, normalized integers are converted."""
    accessor = document["accessors"][i]
    view = document["bufferViews"][accessor["bufferView"]]
    if "sparse" in accessor or view["buffer"] != 0 or "uri" in document["buffers"][0]:
        raise ValueError("sparse accessors and external buffers are not supported")
    dtype = np.dtype(_COMPONENTS[accessor["componentType"]])
    width = _WIDTHS[accessor["type"]]
    count, offset = accessor["count"], view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", width * dtype.itemsize)
    numbers = (count, offset, stride, view["byteLength"])
    if any(type(number) is not int or number < 0 for number in numbers) or count == 0:
        raise ValueError(f"an accessor of {count} elements at {offset}")
    end = view.get("byteOffset", 0) + min(view["byteLength"], len(blob))
    if offset + stride * (count - 1) + width * dtype.itemsize > min(end, len(blob)):
        raise ValueError(f"an accessor of {count} elements goes beyond its buffer")
    table = np.ndarray((count, width), dtype, blob, offset, (stride, dtype.itemsize))
    if dtype.kind == "f" or not accessor.get("normalized", False):
        return table
    return np.maximum(table / np.float32(np.iinfo(dtype).max), -1)


def holds_splats(path: str | os.PathLike[str]) -> bool:
    """Whether a ``.glb`` uses the extension; others hold meshes.

    Raises:
        FormatError: not a whole binary glTF.
        InputError: the file cannot be opened.
    """
    try:
        document, _ = _chunks(read_bytes(path))
    except (ValueError, struct.error, RecursionError) as error:
        raise damaged(path, f"no binary glTF ({error})") from error
    used = document.get("extensionsUsed")
    return isinstance(used, list) and EXTENSION in used


def read_gltf_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_gltf` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        found = _chunks(read_bytes(path))[0]["asset"]["extras"]["psd_gs"]
    except (KeyError, TypeError, ValueError, struct.error, RecursionError):
        return None
    return found if isinstance(found, dict) else None
