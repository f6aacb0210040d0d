"""Binary glTF with ``KHR_gaussian_splatting`` (Khronos, ratified 2026): splats as a point primitive.

Positions, unit quaternions xyzw, linear scales, opacities and one vector per spherical harmonic are
plain float32 accessors in glTF's own frame. ``COLOR_0`` shows a point cloud where the extension is
unknown. Read are also its drafts of 2025 (``_ROTATION``, ``_SCALE``, colour and opacity in ``COLOR_0``) and SPZ inside.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psd_gs import __version__
from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.errors import FormatError, InputError, UnsupportedError
from psd_gs.export.blocks import (
    blocks,
    check_unpacked,
    damaged,
    gather,
    log_scale,
    logit,
    ranges,
    read_bytes,
    sigmoid,
    tensors,
    usable_rows,
    with_degree,
)
from psd_gs.export.frames import Frame, similarity, transform
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.export.spz import unpack_spz
from psd_gs.files import atomic_path, conform, short
from psd_gs.gaussians import SH_C0, Gaussians, RenderMode, sh0_to_rgb

EXTENSION = "KHR_gaussian_splatting"
_COLOR_SPACE, _LINEAR = "srgb_rec709_display", "lin_rec709_display"
_SPZ = (f"{EXTENSION}_compression_spz_2", f"{EXTENSION}_compression_spz")
_DRAFTS = ("KHR_spz_gaussian_splats_compression", "KHR_spz_compression", "CESIUM_gaussian_splats")
"""Extensions of a primitive before there was :data:`EXTENSION`."""
_UNDERSTOOD = {EXTENSION, *_SPZ, *_DRAFTS, "KHR_mesh_quantization", "KHR_materials_unlit", "KHR_texture_transform"}
_PACKED = {
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
    "KHR_draco_mesh_compression": "Draco",
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_KINDS = {width: kind for kind, width in _WIDTHS.items()}
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_FLOAT, _USHORT, _ARRAY_BUFFER, _POINTS = 5126, 5123, 34962, 0
_MODE = "render_mode"  # in the extras of the extension, which has no field for it


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
    mode = {} if gaussians.mode == "default" else {"extras": {_MODE: gaussians.mode}}
    primitive = {
        "mode": _POINTS,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": _COLOR_SPACE, **mode}},
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


def _harmonics(degree: int, prefix: str = f"{EXTENSION}:") -> list[str]:
    """Attribute names of the spherical harmonics, degree 0 first."""
    return [f"{prefix}SH_DEGREE_{band}_COEF_{n}" for band in range(degree + 1) for n in range(2 * band + 1)]


def read_gltf(
    path: str | os.PathLike[str], *, frame: Frame = "gltf", lenient: bool = False, large: bool = False
) -> Gaussians:
    """Read all splats of a ``.glb``, with the transforms of their nodes; those of linear colours become sRGB.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out broken rows, and log how many, instead of refusing the file.
        large: read it whatever it becomes in memory.

    Raises:
        FormatError: another kind of file, a damaged or truncated one, one without splats, or with broken rows.
        InputError: the file cannot be opened.
    """
    data = read_bytes(path)
    try:
        document, blob = _chunks(data)
        _check_required(document, path)
        found = list(_splat_primitives(document))
        if not found:
            raise FormatError(
                f"{path} has no {EXTENSION}: expected splats, received a glTF of something else. "
                "A mesh can start a run with --init, or get other colours with psd-gs retexture."
            )
        clouds = []
        count = degree = 0
        for primitive, matrix in found:
            _check_matrix(matrix, path)
            cloud = _cloud(document, blob, primitive, path, large)
            count, degree = count + cloud.count, max(degree, cloud.degree)
            check_unpacked(path, count, degree, len(data), large)
            clouds.append((cloud, matrix))
    except FormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise damaged(path, f"no sound GLB ({reason[:100]})") from error

    def parts() -> Iterator[Gaussians]:
        for cloud, matrix in clouds:
            for block in cloud.blocks:
                part = with_degree(block, degree)
                yield part if matrix is None else transform(part, matrix)

    modes = {cloud.mode for cloud, _ in clouds}
    return gather(parts(), count, path, frame, lenient, modes.pop() if len(modes) == 1 else "default")


@dataclass(frozen=True)
class _Cloud:
    """The splats of one primitive."""

    count: int
    degree: int
    blocks: Iterable[Gaussians]
    mode: RenderMode


def _check_required(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raises:
    UnsupportedError: the file needs an extension that is not read.
    """
    required = document.get("extensionsRequired", [])
    for name in required if isinstance(required, list) else []:
        if name in _PACKED:
            raise UnsupportedError(
                f"{path}: compressed with {_PACKED[name]} ({name}), which is not read for splats. Decode it first, for "
                "instance with gltf-transform copy IN.glb OUT.glb."
            )
        if name not in _UNDERSTOOD:
            raise UnsupportedError(
                f"{path}: needs the glTF extension {short(name)}, which is not read. Export it again without it."
            )


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


def _check_matrix(matrix: Tensor | None, path: str | os.PathLike[str]) -> None:
    """Raises:
    UnsupportedError: no Gaussian can follow it exactly.
    """
    try:
        similarity(torch.eye(4) if matrix is None else matrix)
    except ValueError as error:
        raise UnsupportedError(
            f"{path}: a node shears its splats or scales their axes differently: {error}. Apply its transform in the "
            "tool that made it."
        ) from error


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
            if {EXTENSION, *_DRAFTS} & primitive.get("extensions", {}).keys():
                yield primitive, None if torch.equal(matrix, torch.eye(4, dtype=torch.float64)) else matrix


def _cloud(
    document: dict[str, Any], blob: memoryview, primitive: dict[str, Any], path: str | os.PathLike[str], large: bool
) -> _Cloud:
    """What a primitive holds, in whichever of the ways that there are.

    Raises:
        FormatError: an SPZ in it is damaged, or it is of a kind that is not read.
        ValueError: unsound.
    """
    extensions = primitive["extensions"]
    ours = extensions.get(EXTENSION, {})
    kernel, space = ours.get("kernel", "ellipse"), ours.get("colorSpace", _COLOR_SPACE)
    if kernel != "ellipse" or space not in (_COLOR_SPACE, _LINEAR):
        raise UnsupportedError(
            f"{path}: splats of kernel {short(kernel)} and colour space {short(space)}, expected ellipse and "
            f"{_COLOR_SPACE} or {_LINEAR}. Export it again with these."
        )
    named = ours.get("extras", {}).get(_MODE) if isinstance(ours.get("extras"), dict) else None
    mode: RenderMode = named if named in ("antialiased", "2dgs") else "default"
    inner = ours.get("extensions", {})
    packed = next(
        (where[name] for where in (inner, extensions) for name in (*_SPZ, *_DRAFTS[:2]) if name in where), None
    )
    if packed is None:
        arrays, degree = _columns(document, blob, primitive["attributes"], path)
        found = _blocks(*arrays)
        return _Cloud(len(arrays[0]), degree, map(_to_srgb, found) if space == _LINEAR else found, mode)
    view = document["bufferViews"][packed["bufferView"]]
    begin, length = view.get("byteOffset", 0), view["byteLength"]
    if type(begin) is not int or type(length) is not int or not 0 <= begin <= begin + length <= len(blob):
        raise ValueError("an SPZ beyond its buffer")
    unpacked = unpack_spz(bytes(blob[begin : begin + length]), path, large)
    about_y = _turned(document, primitive, unpacked.blocks())
    found = (transform(block, _ABOUT_Y) for block in unpacked.blocks()) if about_y else unpacked.blocks()
    return _Cloud(unpacked.count, min(unpacked.degree, 3), found, mode if mode != "default" else unpacked.mode)


_ABOUT_Y = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))


def _turned(document: dict[str, Any], primitive: dict[str, Any], found: Iterable[Gaussians]) -> bool:
    """Whether an SPZ holds the numbers of glTF turned about Y: writers disagree, and the bounds that a POSITION must
    have tell, unless both fit."""
    accessor = document["accessors"][primitive["attributes"]["POSITION"]]
    if not {"min", "max"} <= accessor.keys():
        return False
    given = torch.tensor([accessor["min"], accessor["max"]], dtype=torch.float64).reshape(2, 3)
    means = torch.cat([block.means for block in found])
    box = torch.stack([means.amin(0), means.amax(0)])
    turned = torch.where(torch.tensor([True, False, True]), -box.flip(0), box)
    slack = 1e-2 * float((box[1] - box[0]).max())
    return float((turned - given).abs().max()) < slack < float((box - given).abs().max())


def _blocks(
    means: np.ndarray, quats: np.ndarray, logs: np.ndarray, logits: np.ndarray, sh: list[np.ndarray]
) -> Iterator[Gaussians]:
    for begin, end in ranges(len(means)):
        rows = slice(begin, end)
        yield tensors(
            means=means[rows].astype(np.float64),
            quats=quats[rows][:, [3, 0, 1, 2]],
            scales=log_scale(logs[rows]),
            opacities=logit(logits[rows]),
            sh0=sh[0][rows],
            shN=np.stack([band[rows] for band in sh[1:]], axis=1) if len(sh) > 1 else np.zeros((end - begin, 0, 3)),
        )


def _to_srgb(block: Gaussians) -> Gaussians:
    """Linear colours as sRGB: exactly for degree 0, to first order for what the direction adds."""
    linear = sh0_to_rgb(block.sh0).double().numpy()
    step = 1e-4
    slope = (linear_to_srgb(linear + step) - linear_to_srgb(linear - step)) / (2 * step)
    block.sh0 = torch.from_numpy((linear_to_srgb(linear) - 0.5) / SH_C0).float()
    block.shN = block.shN * torch.from_numpy(slope).float()
    return block


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


def _columns(
    document: dict[str, Any], blob: memoryview, attributes: dict[str, int], path: str | os.PathLike[str]
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]], int]:
    """Positions, rotations, scales, opacities and harmonics of a primitive, of one length, and the degree.

    In the drafts the attributes are called ``_ROTATION`` and so on, and ``COLOR_0`` is the colour of degree 0 (sRGB)
    with the opacity.
    """
    prefix = "_" if f"{EXTENSION}:ROTATION" not in attributes and "_ROTATION" in attributes else f"{EXTENSION}:"
    degree = max((band for band in range(1, 4) if f"{prefix}SH_DEGREE_{band}_COEF_0" in attributes), default=0)
    names = ["POSITION", f"{prefix}ROTATION", f"{prefix}SCALE", *_harmonics(degree, prefix)]
    colour = names[3] not in attributes  # in COLOR_0
    if colour:
        names[3] = "COLOR_0"
    means, quats, scales, *sh = (_accessor(document, blob, attributes[name], path) for name in names)
    if colour and sh[0].shape[1] == 3:
        sh[0] = np.concatenate([sh[0], np.ones((len(sh[0]), 1))], axis=1)
    if f"{prefix}OPACITY" in attributes:
        opacities = _accessor(document, blob, attributes[f"{prefix}OPACITY"], path)
    elif colour:
        opacities = sh[0][:, 3:]
    else:
        raise ValueError("no OPACITY")
    if colour:
        sh[0] = (sh[0][:, :3].astype(np.float64) - 0.5) / SH_C0
    shapes = [column.shape for column in (means, quats, scales, opacities, *sh)]
    if shapes != [(len(means), width) for width in [3, 4, 3, 1] + [3] * (degree + 1) ** 2]:
        raise ValueError(f"attributes of different or wrong shapes {sorted(set(shapes))}")
    return (means, quats, scales, opacities[:, 0], sh), degree


def _accessor(document: dict[str, Any], blob: memoryview, i: int, path: str | os.PathLike[str]) -> np.ndarray:
    """A table [count, components]; floats are a view of ``blob``, normalized integers are converted."""
    accessor = document["accessors"][i]
    view = document["bufferViews"][accessor["bufferView"]] if "bufferView" in accessor else {}
    packed = next((_PACKED[name] for name in view.get("extensions", {}) if name in _PACKED), None)
    outside = view.get("buffer", 0) != 0 or "uri" in document["buffers"][0]
    if packed or outside or "sparse" in accessor or not view:
        what = packed or ("other files" if outside else "sparse or empty accessors")
        raise UnsupportedError(
            f"{path}: keeps its splats in {what}, which is not read. Write one plain .glb first, for instance with "
            "gltf-transform copy IN.glb OUT.glb."
        )
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
    """Whether a ``.glb`` uses the extension or one of its drafts; others hold meshes.

    Raises:
        FormatError: not a whole binary glTF.
        InputError: the file cannot be opened.
    """
    try:
        document, _ = _chunks(read_bytes(path))
    except (ValueError, struct.error, RecursionError) as error:
        raise damaged(path, f"no binary glTF ({error})") from error
    used = document.get("extensionsUsed")
    return isinstance(used, list) and any(name in used for name in (EXTENSION, *_DRAFTS))


def read_gltf_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_gltf` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        found = _chunks(read_bytes(path))[0]["asset"]["extras"]["psd_gs"]
    except (KeyError, TypeError, ValueError, struct.error, RecursionError):
        return None
    try:
        return conform(found, dict[str, Any])
    except ValueError:
        return None
