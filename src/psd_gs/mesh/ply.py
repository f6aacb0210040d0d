"""PLY as a scene: polygons, strips and point clouds, with colours under the names and types that people use."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from psd_gs.errors import UnsupportedError
from psd_gs.export.blocks import read_bytes
from psd_gs.export.ply_table import PlyHeader, plain_numbers, read_ply_header
from psd_gs.export.siblings import read_sibling
from psd_gs.mesh.picture import Picture, Texture
from psd_gs.mesh.scene import PLAIN, Material, Part, Scene, kept, label, linear_rgba, triangulated, unit
from psd_gs.splats import SH_C0

_CHANNELS = (("red", "green", "blue"), ("r", "g", "b"))
_CORNERS = ("vertex_indices", "vertex_index", "vertex_ids", "vertices", "indices")
_COORDINATES = (("texture_u", "texture_v"), ("s", "t"), ("u", "v"), ("tx", "ty"), ("tex_u", "tex_v"))
_MAX_PICTURE = 1 << 28


@dataclass(frozen=True)
class _Lists:
    """A property of lists: the numbers of all rows one after the other, and how many each row has."""

    items: np.ndarray
    counts: Int[np.ndarray, " N"]


def read_ply_scene(path: str | os.PathLike[str]) -> Scene:
    """The polygons of a PLY, or its points if it has none.

    Raises:
        FormatError: a damaged header.
        InputError: the file cannot be opened.
        UnsupportedError: splats.
        ValueError, LookupError: the data are unsound.
    """
    header = read_ply_header(path)
    properties = set(header.elements.get("vertex", (0, {}))[1])
    if properties & {"rot_0", "scale_0", "packed_position"}:
        raise UnsupportedError(
            f"{path}: expected a point cloud or mesh, received splats (the vertices have rotations or scales), of "
            "which properties are missing or unknown. Export it again as a 3DGS PLY."
        )
    notes: list[str] = []
    elements = dict(_elements(path, header, notes))
    vertex = elements.get("vertex", {})
    positions = np.stack([_scalars(vertex, axis).astype(np.float64) for axis in "xyz"], axis=1)
    colors = _colors(vertex)
    face = elements.get("face", elements.get("faces", {}))
    if not any(isinstance(column, _Lists) for column in face.values()) or not len(_corners(face).counts):
        strips = next((elements[name] for name in ("tristrips", "tristrip") if name in elements), None)
        faces = np.zeros((0, 3), np.int64) if strips is None else _strips(_corners(strips).items.astype(np.int64))
        material = PLAIN if colors is None else Material()
        return Scene([Part("ply", positions, _checked(faces, len(positions)), material, colors)], notes)
    lists = _corners(face)
    corners = _checked(lists.items.astype(np.int64), len(positions))
    entries, owner = triangulated(corners, lists.counts, positions)
    short = int((lists.counts < 3).sum())
    if short:
        notes.append(f"{short} of {len(lists.counts)} faces have fewer than three corners: left out")
    uv = _coordinates(vertex, face, corners, lists.counts)
    pictures = _pictures(Path(path), header, notes, used=uv is not None)
    face_colors = _colors(face) if colors is None else None
    number = np.zeros(len(owner), np.int64)
    if "texnumber" in face and len(pictures) > 1:
        number = _scalars(face, "texnumber").astype(np.int64)[owner].clip(0, len(pictures) - 1)
    parts = []
    for i in range(max(len(pictures), 1)):
        mine = number == i
        picture = pictures[i] if i < len(pictures) else None
        # where a texture is, it has the colours
        vertex_colors, own = (None, None) if picture else (colors, face_colors)
        material = PLAIN if picture is None and vertex_colors is None and own is None else Material()
        if picture is not None:
            material = Material("texture", texture=Texture(picture), pictures={"color": picture})
        part = Part(
            f"ply {i}" if i else "ply",
            positions,
            corners[entries[mine]],
            material,
            vertex_colors,
            None if own is None else own[owner[mine]],
            {} if uv is None else {0: uv[entries[mine]]},
        )
        parts.append(part if len(pictures) < 2 else _used(part))
    return Scene([part for part in parts if len(part.faces)], notes)


def _elements(
    path: str | os.PathLike[str], header: PlyHeader, notes: list[str]
) -> Iterator[tuple[str, dict[str, np.ndarray | _Lists]]]:
    """The columns of every element, by the name of the property; what is behind the last one becomes a note."""
    data = memoryview(read_bytes(path))
    ascii_numbers = None
    at = header.size
    if header.format == "ascii":
        # all numbers are equal there: one table of doubles
        text = plain_numbers(bytes(data[header.size :]).decode("latin-1"))
        ascii_numbers = np.fromiter(map(float, text.split()), np.float64)
        data, at = memoryview(ascii_numbers.tobytes()), 0
    order = ">" if header.format == "binary_big_endian" else "<"
    for element, (count, properties) in header.elements.items():
        kinds = [
            (name, [np.dtype("=f8" if ascii_numbers is not None else order + one) for one in kind.split()[-2:]])
            for name, kind in properties.items()
        ]
        columns, at = _columns(data, at, count, kinds)
        if ascii_numbers is not None:  # back to what the header says, on which the range of colours depends
            columns = {
                name: column.astype(properties[name], casting="unsafe") if properties[name][:1] in "iu" else column
                for name, column in columns.items()
                if not isinstance(column, _Lists)
            } | {name: column for name, column in columns.items() if isinstance(column, _Lists)}
        yield element, columns
    if left := len(data) - at:
        what = f"{left} bytes" if ascii_numbers is None else f"{left // 8} numbers"
        notes.append(f"{what} behind the last row are ignored")


def _columns(
    data: memoryview, at: int, count: int, kinds: list[tuple[str, list[np.dtype]]]
) -> tuple[dict[str, np.ndarray | _Lists], int]:
    """The columns of an element that begins at a byte, and the byte after it.

    Rows whose lists all have the lengths of the first row are one table; otherwise every row is walked once.
    """
    lengths = [_row(data, at, kinds)[0]] if count else [[0] * len(kinds)]
    dtype = _table(kinds, lengths[0])
    if count * dtype.itemsize <= len(data) - at:
        table = np.frombuffer(data, dtype, count, at)
        listed = {name: n for (name, kind), n in zip(kinds, lengths[0], strict=True) if len(kind) == 2}
        if all((table[f"{name} count"] == n).all() for name, n in listed.items()):
            return {
                name: _Lists(table[name].reshape(-1), np.full(count, listed[name])) if name in listed else table[name]
                for name, _ in kinds
            }, at + count * dtype.itemsize
    lengths, starts = [], []
    for _ in range(count):
        starts.append(at)
        row, at = _row(data, at, kinds)
        lengths.append(row)
    return _gathered(data, np.array(starts), np.array(lengths, np.int64).reshape(count, len(kinds)), kinds), at


def _row(data: memoryview, at: int, kinds: list[tuple[str, list[np.dtype]]]) -> tuple[list[int], int]:
    """The length of every property of the row at a byte, 1 for a number, and the byte after the row."""
    lengths = []
    for _, kind in kinds:
        n = 1
        if len(kind) == 2:
            n = int(struct.unpack_from(kind[0].byteorder.replace("|", "<") + kind[0].char, data, at)[0])
            at += kind[0].itemsize
        at += n * kind[-1].itemsize
        if n < 0 or at > len(data):
            raise ValueError(f"it is truncated: a list of {n} numbers goes beyond its end")
        lengths.append(n)
    return lengths, at


def _table(kinds: list[tuple[str, list[np.dtype]]], lengths: list[int]) -> np.dtype:
    """One row whose lists have the given lengths."""
    fields: list = []
    for (name, kind), n in zip(kinds, lengths, strict=True):
        fields += [(f"{name} count", kind[0]), (name, kind[1], (n,))] if len(kind) == 2 else [(name, kind[0])]
    return np.dtype(fields)


def _gathered(
    data: memoryview, starts: np.ndarray, lengths: np.ndarray, kinds: list[tuple[str, list[np.dtype]]]
) -> dict[str, np.ndarray | _Lists]:
    """Columns of rows of different lengths, all rows of one shape at once."""
    total = {name: np.empty(int(lengths[:, i].sum()), kind[-1]) for i, (name, kind) in enumerate(kinds)}
    first = np.cumsum(lengths, axis=0) - lengths
    raw = np.frombuffer(data, np.uint8)
    for shape in np.unique(lengths, axis=0):
        rows = np.flatnonzero((lengths == shape).all(1))
        dtype = _table(kinds, shape.tolist())
        table = raw[starts[rows, None] + np.arange(dtype.itemsize)].view(dtype)[:, 0]
        for i, (name, _) in enumerate(kinds):
            total[name][first[rows, i, None] + np.arange(shape[i])] = table[name].reshape(len(rows), shape[i])
    return {
        name: _Lists(total[name], lengths[:, i]) if len(kind) == 2 else total[name]
        for i, (name, kind) in enumerate(kinds)
    }


def _scalars(columns: Mapping[str, np.ndarray | _Lists], name: str) -> np.ndarray:
    found = columns.get(name)
    if not isinstance(found, np.ndarray):
        raise ValueError(f"no property {name}")
    return found


def _corners(face: Mapping[str, np.ndarray | _Lists]) -> _Lists:
    """The list of corners: the one with a usual name, else the first of whole numbers."""
    lists = {name: column for name, column in face.items() if isinstance(column, _Lists)}
    usual = [lists[name] for name in _CORNERS if name in lists]
    others = [column for name, column in lists.items() if "tex" not in name and "col" not in name]
    if not usual + others:
        raise ValueError("faces without corners")
    return (usual + others)[0]


def _checked(corners: np.ndarray, count: int) -> np.ndarray:
    if corners.size and not 0 <= corners.min() <= corners.max() < count:
        raise ValueError(f"a face has a corner that is none of {count} vertices")
    return corners


def _strips(indices: Int[np.ndarray, " N"]) -> Int[np.ndarray, "F 3"]:
    """Triangles of strips that -1 parts."""
    ends = np.flatnonzero(indices < 0)
    faces = []
    for strip in np.split(indices, ends):
        strip = strip[strip >= 0]
        if len(strip) >= 3:
            cut = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1)
            cut[1::2] = cut[1::2][:, [1, 0, 2]]
            faces.append(cut)
    found = np.concatenate([np.zeros((0, 3), np.int64), *faces])
    a, b, c = found.T
    return found[(a != b) & (b != c) & (c != a)]


def _colors(columns: Mapping[str, np.ndarray | _Lists]) -> Float[np.ndarray, "N 4"] | None:
    """Linear RGBA of the rows; None if they have no colours."""
    numbers = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    for channels in _CHANNELS:
        for name in sorted(numbers, key=lambda name: (name != channels[0], "diffuse" not in name)):
            # a word of the name: red, diffuse_red, color_r, scalar_red
            words = re.split(rf"(?<![a-z]){channels[0]}(?![a-z])", name)
            names = [channel.join(words) for channel in channels]
            if len(words) == 2 and set(names) <= set(numbers):
                # together: their type tells the range, and so does the largest of all three
                return linear_rgba(unit(np.stack([numbers[one] for one in names], axis=1)))
    if {"f_dc_0", "f_dc_1", "f_dc_2"} <= set(numbers):  # of degree 0, as 3DGS stores them
        dc = np.stack([numbers[f"f_dc_{i}"] for i in range(3)], axis=1).astype(np.float64)
        return linear_rgba(np.nan_to_num(0.5 + SH_C0 * dc).clip(0, 1))
    return None


def _coordinates(
    vertex: Mapping[str, np.ndarray | _Lists],
    face: Mapping[str, np.ndarray | _Lists],
    corners: Int[np.ndarray, " C"],
    counts: Int[np.ndarray, " P"],
) -> Float[np.ndarray, "C 2"] | None:
    """Texture coordinates of every corner, v down; None if there are none."""
    listed = face.get("texcoord")
    found = None
    if isinstance(listed, _Lists) and (listed.counts == 2 * counts).all():
        found = listed.items.reshape(-1, 2).astype(np.float64)
    else:
        names = next((pair for pair in _COORDINATES if set(pair) <= set(vertex)), None)
        if names is not None:
            found = np.stack([_scalars(vertex, name).astype(np.float64) for name in names], axis=1)[corners]
    return None if found is None else found * [1, -1] + [0, 1]


def _pictures(path: Path, header: PlyHeader, notes: list[str], *, used: bool) -> list[Picture | None]:
    """The textures that the comments name, in their order; none if there are no coordinates by which they are used."""
    words = (re.fullmatch(r"TextureFile[:\s]\s*(.+)", comment.strip(), re.IGNORECASE) for comment in header.comments)
    names = [found[1] for found in words if found]
    if names and not used:
        notes.append(f"the texture {label(names[0])} has no coordinates here: ignored")
        return []
    found: list[Picture | None] = []
    for name in names:
        try:
            found.append(Picture(f"{path}: {name!r:.100}", read_sibling(path, name, _MAX_PICTURE)))
        except FileNotFoundError:
            notes.append(f"the texture {label(name)} is not beside it: ignored")
            found.append(None)
    return found


def _used(part: Part) -> Part:
    """The part without the vertices that none of its faces has."""
    used = np.zeros(len(part.positions), bool)
    used[part.faces] = True
    return kept(part, used)
