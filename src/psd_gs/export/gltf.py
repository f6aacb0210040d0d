"""Binary glTF with ``KHR_gaussian_splatting`` (Khronos, ratified 2026): splats as a point primitive.

Positions, unit quaternions xyzw, linear scales, opacities and one vector per spherical harmonic are
plain float32 accessors in glTF's own frame. ``COLOR_0`` shows a point cloud where the extension is
unknown. Read are also its drafts of 2025 (``_ROTATION``, ``_SCALE``, colour and opacity in ``COLOR_0``) and SPZ inside.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psd_gs import __version__
from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.errors import FormatError, InputError, PsdGsError, UnsupportedError
from psd_gs.export.blocks import (
    blocks,
    check_unpacked,
    damaged,
    exp,
    gather,
    log_scale,
    logit,
    sigmoid,
    usable_rows,
    with_degree,
)
from psd_gs.export.frames import Frame, similarity, transform
from psd_gs.export.gltf_file import MESHOPT, GltfFile, decoded, extensions, objects
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.export.spz import unpack_spz
from psd_gs.files import atomic_path, conform, short
from psd_gs.splats import SH_C0, RenderMode, Splats, ranges, sh0_to_rgb

logger = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
_COLOR_SPACE, _LINEAR = "srgb_rec709_display", "lin_rec709_display"
_SPZ = (f"{EXTENSION}_compression_spz_2", f"{EXTENSION}_compression_spz")
_DRAFTS = ("KHR_spz_gaussian_splats_compression", "KHR_spz_compression", "CESIUM_gaussian_splats")
"""Extensions of a primitive before there was :data:`EXTENSION`."""
_SPLATS = {EXTENSION, *_DRAFTS}
_UNDERSTOOD = {
    *(EXTENSION, *_SPZ, *_DRAFTS, *MESHOPT, "KHR_mesh_quantization", "KHR_materials_unlit", "KHR_texture_transform"),
    "KHR_node_visibility",
}
_KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_FLOAT, _USHORT, _ARRAY_BUFFER, _POINTS = 5126, 5123, 34962, 0
_MODE = "render_mode"  # in the extras of the extension, which has no field for it


def write_gltf(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "gltf", metadata: Metadata | None = None
) -> None:
    """Write a ``.glb`` with one node, one mesh, one primitive of points.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`; more than 4 GiB are an
    :class:`InputError`.
    Metadata goes into ``extras.psd_gs`` of the asset and, because some importers keep only that, of the node.
    """
    rows = usable_rows(splats, path)
    attributes = next(_attributes(g) for g in blocks(splats, rows[:1], frame))
    lengths = {name: len(rows) * values[0].nbytes for name, values in attributes.items()}
    offsets = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    size = sum(lengths.values())
    if size >= 2**32 - 2**20:
        raise InputError(
            f"cannot write {path}: expected at most 4 GiB, received {len(rows)} Gaussians of {size} bytes. "
            "Lower --sh-degree or --max-splats."
        )
    places = splats.means[rows]
    if frame == "rdf":
        places *= np.array([1, -1, -1], np.float32)
    accessors = [
        {
            "bufferView": i,
            "componentType": _USHORT if name == "COLOR_0" else _FLOAT,
            "count": len(rows),
            "type": _KINDS[values.shape[1]],
            **({"normalized": True} if name == "COLOR_0" else {}),
            **({"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()} if name == "POSITION" else {}),
        }
        for i, (name, values) in enumerate(attributes.items())
    ]
    extras = {} if metadata is None else {"extras": {"psd_gs": jsonable(metadata)}}
    mode = {} if splats.mode == "default" else {"extras": {_MODE: splats.mode}}
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
        for g in blocks(splats, rows, frame):
            for name, values in _attributes(g).items():
                file.seek(len(head) + offsets[name] + done * values[0].nbytes)
                file.write(values.tobytes())
            done += len(g)


def _attributes(g: Splats) -> dict[str, np.ndarray]:
    """The vertex attributes of a block, [N, C] each in the type of the file."""
    alpha = sigmoid(g)[:, None]
    fallback = np.concatenate([srgb_to_linear(sh0_to_rgb(g.sh0[:, 0])), alpha], axis=1)
    columns = {
        "POSITION": g.means,
        "COLOR_0": np.rint(fallback * 65535),
        f"{EXTENSION}:ROTATION": g.quats[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": exp(g.scales),
        f"{EXTENSION}:OPACITY": alpha,
        **dict(zip(_harmonics(g.sh_degree), g.sh.swapaxes(0, 1), strict=True)),
    }
    return {name: np.asarray(column, "<u2" if name == "COLOR_0" else "<f4") for name, column in columns.items()}


def _harmonics(degree: int, prefix: str = f"{EXTENSION}:") -> list[str]:
    """Attribute names of the spherical harmonics, degree 0 first."""
    return [f"{prefix}SH_DEGREE_{band}_COEF_{n}" for band in range(degree + 1) for n in range(2 * band + 1)]


def read_gltf(
    path: str | os.PathLike[str], *, frame: Frame = "gltf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read all splats of a ``.glb`` or ``.gltf``, with the transforms of their nodes; those of linear colours become
    sRGB.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`.
    """
    with _sound(path):
        file = GltfFile(path)
        _check_required(file)
        found = list(_splat_primitives(file))
        if not found:
            raise FormatError(
                f"{path} has no {EXTENSION}: expected splats, received a glTF of something else. "
                "A mesh can start a run with --init, or get other colours with psd-gs retexture."
            )
        for what in file.unused():
            logger.warning("%s: %s are not kept", path, what)
        clouds = []
        count = degree = 0
        for primitive, matrix in found:
            _check_matrix(matrix, path)
            cloud = _cloud(file, primitive, large)
            count, degree = count + cloud.count, max(degree, cloud.degree)
            check_unpacked(path, count, degree, file.size, large)
            clouds.append((cloud, matrix))

    def parts() -> Iterator[Splats]:
        for cloud, matrix in clouds:
            for block in cloud.blocks:
                part = with_degree(block, degree)
                yield part if matrix is None else transform(part, matrix)

    modes = {cloud.mode for cloud, _ in clouds}
    return gather(parts(), count, path, frame, lenient, modes.pop() if len(modes) == 1 else "default")


@contextmanager
def _sound(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong with a document becomes one line.

    Raises:
        FormatError: it is.
    """
    try:
        yield
    except PsdGsError:
        raise
    # broken bytes lead parsers, ours and those of the codecs, into errors of any kind
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise damaged(path, f"no sound glTF ({reason[:100]})") from error


@dataclass(frozen=True)
class _Cloud:
    """The splats of one primitive."""

    count: int
    degree: int
    blocks: Iterable[Splats]
    mode: RenderMode


def _check_required(file: GltfFile) -> None:
    """Raises:
    UnsupportedError: the file needs an extension that is not read.
    """
    unknown = [name for name in file.names("extensionsRequired") if name not in _UNDERSTOOD]
    if unknown:
        raise UnsupportedError(
            f"{file.path}: needs the glTF extension {short(unknown[0])}, which is not read for splats. Export it again "
            "without it, for instance with gltf-transform copy IN.glb OUT.glb."
        )


def _check_matrix(matrix: np.ndarray | None, path: str | os.PathLike[str]) -> None:
    """Raises:
    UnsupportedError: no Gaussian can follow it exactly.
    """
    try:
        similarity(np.eye(4) if matrix is None else matrix)
    except ValueError as error:
        raise UnsupportedError(
            f"{path}: a node shears its splats or scales their axes differently: {error}. Apply its transform in the "
            "tool that made it."
        ) from error


def _splat_primitives(file: GltfFile) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """Primitives with the extension in the visible nodes of the scene, with their matrices (None for the identity);
    others are counted and logged."""
    others = 0
    for i, matrix in file.placed.items():
        node = file.part("nodes", i)
        for primitive in objects(file.part("meshes", node["mesh"]), "primitives") if "mesh" in node else ():
            if _SPLATS & extensions(primitive).keys():
                yield primitive, None if np.array_equal(matrix, np.eye(4)) else matrix
            else:
                others += 1
    if others:
        logger.warning("%s: %d meshes beside the splats are not kept", file.path, others)


def _cloud(file: GltfFile, primitive: dict[str, Any], large: bool) -> _Cloud:
    """What a primitive holds, in whichever of the ways that there are.

    Raises:
        FormatError: an SPZ in it is damaged, or it is of a kind that is not read.
        ValueError: unsound.
    """
    found = extensions(primitive)
    ours = found.get(EXTENSION, {})
    kernel, space = ours.get("kernel", "ellipse"), ours.get("colorSpace", _COLOR_SPACE)
    if kernel != "ellipse" or space not in (_COLOR_SPACE, _LINEAR):
        raise UnsupportedError(
            f"{file.path}: splats of kernel {short(kernel)} and colour space {short(space)}, expected ellipse and "
            f"{_COLOR_SPACE} or {_LINEAR}. Export it again with these."
        )
    named = ours.get("extras", {}).get(_MODE) if isinstance(ours.get("extras"), dict) else None
    mode: RenderMode = named if named in ("antialiased", "2dgs") else "default"
    packed = next(
        (where[name] for where in (extensions(ours), found) for name in (*_SPZ, *_DRAFTS[:2]) if name in where), None
    )
    if packed is None:
        arrays, degree = _columns(file, primitive["attributes"])
        plain = _blocks(*arrays)
        return _Cloud(len(arrays[0]), degree, map(_to_srgb, plain) if space == _LINEAR else plain, mode)
    unpacked = unpack_spz(bytes(file.view(packed["bufferView"])), file.path, large)
    about_y = _turned(file.part("accessors", primitive["attributes"]["POSITION"]), unpacked.blocks())
    turned = (transform(block, _ABOUT_Y) for block in unpacked.blocks()) if about_y else unpacked.blocks()
    return _Cloud(unpacked.count, min(unpacked.degree, 3), turned, mode if mode != "default" else unpacked.mode)


_ABOUT_Y = np.diag([-1.0, 1.0, -1.0, 1.0])


def _turned(accessor: dict[str, Any], found: Iterable[Splats]) -> bool:
    """Whether an SPZ holds the numbers of glTF turned about Y: writers disagree, and the bounds that the accessor of
    POSITION must have tell, unless both fit."""
    if not {"min", "max"} <= accessor.keys():
        return False
    given = np.array([accessor["min"], accessor["max"]], np.float64).reshape(2, 3)
    means = np.concatenate([block.means for block in found])
    box = np.stack([means.min(axis=0), means.max(axis=0)])
    turned = np.where([True, False, True], -box[::-1], box)
    slack = 1e-2 * float((box[1] - box[0]).max())
    return float(np.abs(turned - given).max()) < slack < float(np.abs(box - given).max())


def _blocks(
    means: np.ndarray, quats: np.ndarray, logs: np.ndarray, logits: np.ndarray, sh: list[np.ndarray]
) -> Iterator[Splats]:
    for begin, end in ranges(len(means)):
        rows = slice(begin, end)
        yield Splats(
            means=means[rows].astype(np.float64),
            quats=quats[rows][:, [3, 0, 1, 2]],
            scales=log_scale(logs[rows]),
            opacities=logit(logits[rows]),
            sh0=sh[0][rows, None],
            shN=np.stack([band[rows] for band in sh[1:]], axis=1) if len(sh) > 1 else np.zeros((end - begin, 0, 3)),
        )


def _to_srgb(block: Splats) -> Splats:
    """Linear colours as sRGB: exactly for degree 0, to first order for what the direction adds."""
    linear = sh0_to_rgb(block.sh0.astype(np.float64))
    step = 1e-4
    slope = (linear_to_srgb(linear + step) - linear_to_srgb(linear - step)) / (2 * step)
    return replace(block, sh0=(linear_to_srgb(linear) - 0.5) / SH_C0, shN=block.shN * slope)


def _columns(
    file: GltfFile, attributes: dict[str, int]
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
    means, quats, scales, *sh = (_values(file, attributes[name]) for name in names)
    if colour and sh[0].shape[1] == 3:
        sh[0] = np.concatenate([sh[0], np.ones((len(sh[0]), 1))], axis=1)
    if f"{prefix}OPACITY" in attributes:
        opacities = _values(file, attributes[f"{prefix}OPACITY"])
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


def _values(file: GltfFile, i: Any) -> np.ndarray:
    """A table [count, components]; floats are a view of the file, normalized integers are converted."""
    table = file.raw(i)
    if table.dtype.kind == "f":
        return table
    return decoded(table, file.part("accessors", i).get("normalized") is True, None)


def holds_splats(path: str | os.PathLike[str]) -> bool:
    """Whether a ``.glb`` or ``.gltf`` has splats, of the extension or one of its drafts; others hold meshes.

    Raises:
        FormatError: no sound glTF.
        InputError: the file cannot be opened.
    """
    with _sound(path):
        meshes = objects(GltfFile(path).document, "meshes")
        return any(_SPLATS & extensions(part).keys() for mesh in meshes for part in objects(mesh, "primitives"))


def read_gltf_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_gltf` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        return conform(GltfFile(path).document["asset"]["extras"]["psd_gs"], dict[str, Any])
    except (FormatError, KeyError, TypeError, ValueError):
        return None
