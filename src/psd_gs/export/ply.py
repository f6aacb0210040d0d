"""3D Gaussian splatting PLY, the lossless master format (Kerbl et al. 2023, 3DGS).

One ``vertex`` element of float32, little endian: x y z, nx ny nz (zeros), f_dc_0..2,
f_rest_0..(3K-1) channel-major, opacity (logit), scale_0..2 (log), rot_0..3 (wxyz). Files are turned
by 180 degrees about X with respect to our world frame (see :mod:`psd_gs.export.frames`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from psd_gs.errors import FormatError
from psd_gs.export.blocks import blocks, gather, open_file, ranges, tensors, usable_rows
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata, to_json
from psd_gs.files import atomic_path
from psd_gs.gaussians import Gaussians

_COMMENT = "psd-gs "
_COMMENT_LIMIT = 1000  # some readers keep a header line in a fixed buffer of 1 kB
_HEADER_LIMIT = 1 << 16
_DTYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")
_REQUIRED = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def write_ply(
    gaussians: Gaussians, path: str | os.PathLike[str], *, frame: Frame = "rdf", metadata: Metadata | None = None
) -> None:
    """Write a 3DGS PLY that every splat viewer reads.

    Quaternions are normalized, opacity logits clipped to +-15 and log scales to +-20; rows that are
    not finite or have no rotation are dropped.

    Args:
        gaussians: what to write, in the world frame.
        path: of the file; replaced in one step.
        frame: axes of the file.
        metadata: goes into the header as one comment of less than 1 kB, long texts shortened.

    Raises:
        InputError: no usable Gaussian is left.
        OutputError: the file cannot be written.
    """
    rows = usable_rows(gaussians, path)
    rest = [f"f_rest_{i}" for i in range(3 * gaussians.shN.shape[1])]
    names = ["x", "y", "z", "nx", "ny", "nz", *_REQUIRED[3:6], *rest, *_REQUIRED[6:]]
    header = make_ply_header({"vertex": (len(rows), dict.fromkeys(names, "float"))}, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for g in blocks(gaussians, rows, frame):
            n = len(g)
            columns = [
                *(g.means, torch.zeros(n, 3), g.sh0.reshape(n, 3), g.shN.transpose(1, 2).reshape(n, len(rest))),
                *(g.opacities[:, None], g.scales, g.quats),
            ]
            file.write(torch.cat(columns, dim=1).numpy().astype("<f4", copy=False).data)


def make_ply_header(elements: dict[str, tuple[int, dict[str, str]]], metadata: Metadata | None = None) -> bytes:
    """Header of a binary little-endian PLY.

    Args:
        elements: name to its number of rows and its properties (name to PLY type).
        metadata: goes into one comment of less than 1 kB, long texts shortened.
    """
    lines = ["ply", "format binary_little_endian 1.0"]
    if metadata is not None:
        lines.append(f"comment {_COMMENT}{to_json(metadata, limit=_COMMENT_LIMIT)}")
    for element, (count, properties) in elements.items():
        lines.append(f"element {element} {count}")
        lines += [f"property {kind} {name}" for name, kind in properties.items()]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def read_ply(path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False) -> Gaussians:
    """Read a 3DGS PLY of any writer: other property order or types, no normals, SH degree 0 to 3.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

    Raises:
        FormatError: another kind of file, a truncated one, or one with non-finite values.
        InputError: the file cannot be opened.
    """
    header = read_ply_header(path)
    properties = header.scalars("vertex")
    missing = [name for name in _REQUIRED if name not in properties]
    if missing:
        raise FormatError(
            f"{path} is a PLY but not a 3D Gaussian one: expected the properties of a splat, "
            f"{', '.join(missing)} missing. Pass a splat.ply; a point cloud or mesh can start a run with --init."
        )
    rest = sorted((name for name in properties if re.fullmatch(r"f_rest_\d+", name)), key=lambda name: int(name[7:]))
    if len(rest) not in (0, 9, 24, 45):
        raise FormatError(
            f"{path}: expected 0, 9, 24 or 45 f_rest properties (SH degree 0 to 3), received {len(rest)}. "
            "Export it again with an SH degree of at most 3."
        )

    def parts() -> Iterator[Gaussians]:
        for block in read_ply_blocks(path, header, "vertex"):
            shN = columns(block, rest).reshape(len(block), 3, len(rest) // 3).swapaxes(1, 2)
            yield tensors(
                means=columns(block, ["x", "y", "z"]),
                quats=columns(block, ["rot_0", "rot_1", "rot_2", "rot_3"]),
                scales=columns(block, ["scale_0", "scale_1", "scale_2"]),
                opacities=block["opacity"],
                sh0=columns(block, ["f_dc_0", "f_dc_1", "f_dc_2"]),
                shN=shN,
            )

    return gather(parts(), header.elements["vertex"][0], path, frame, lenient)


def columns(table: np.ndarray, names: Collection[str]) -> np.ndarray:
    """Properties of a structured array side by side, [N, len(names)]."""
    return np.stack([table[name] for name in names], axis=1) if names else np.zeros((len(table), 0))


def read_ply_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_ply` stored; None if the file is from elsewhere.

    Raises:
        FormatError: not a PLY file, or a truncated one.
        InputError: the file cannot be opened.
    """
    for comment in read_ply_header(path).comments:
        if comment.startswith(_COMMENT):
            try:
                metadata = json.loads(comment.removeprefix(_COMMENT))
            except ValueError:
                return None
            return metadata if isinstance(metadata, dict) else None
    return None


def is_gaussian_ply(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PLY with the properties of Gaussians.

    Raises:
        FormatError: a PLY whose header is malformed or promises more than the file holds.
        InputError: the file cannot be opened.
    """
    with open_file(path) as file:
        if file.read(3) != b"ply":
            return False
    return read_ply_header(path).scalars("vertex").issuperset(_REQUIRED)


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY file says of itself.

    Attributes:
        format: ``ascii``, ``binary_little_endian`` or ``binary_big_endian``.
        elements: element name to its number of rows and its properties (name to NumPy type or ``list``).
        comments: without the leading word.
        size: of the header, bytes.
    """

    format: str
    elements: dict[str, tuple[int, dict[str, str]]]
    comments: list[str]
    size: int = 0

    def scalars(self, element: str) -> set[str]:
        """Names of the properties that hold one number; empty if there is no such element."""
        return {name for name, kind in self.elements.get(element, (0, {}))[1].items() if kind != "list"}


def read_ply_header(path: str | os.PathLike[str]) -> PlyHeader:
    """Parse the header and check that the file is long enough for it, before any data is read.

    Raises:
        FormatError: not a PLY file, a malformed header, or fewer bytes than it promises.
        InputError: the file cannot be opened.
    """
    with open_file(path) as file:
        start = file.read(_HEADER_LIMIT)
        size = file.seek(0, os.SEEK_END)
    if not re.match(rb"ply\r?\n", start):
        raise FormatError(f"{path} is not a PLY file: expected it to begin with 'ply', received {start[:8]!r}.")
    end = re.search(rb"\nend_header\r?\n", start)
    if not end:
        raise FormatError(f"{path}: the PLY header does not end. The file is truncated; copy or export it again.")
    try:
        header, minimum = _parse_header(re.split(r"\r?\n", start[: end.start()].decode("ascii"))[1:])
    except ValueError as error:
        raise FormatError(f"{path}: malformed PLY header ({error}). Copy or export the file again.") from error
    if size - end.end() < minimum:
        raise FormatError(
            f"{path} is truncated: expected at least {minimum} bytes after the header, received {size - end.end()}. "
            "Copy or export the file again."
        )
    return replace(header, size=end.end())


def _parse_header(lines: list[str]) -> tuple[PlyHeader, int]:
    """The header and the fewest bytes that its elements take; ValueError if a line is wrong."""
    file_format = ""
    elements: dict[str, tuple[int, dict[str, str]]] = {}
    comments: list[str] = []
    properties: dict[str, str] | None = None
    minimum = count = 0
    for line in lines:
        match line.split():
            case ["format", kind, "1.0"] if kind in _FORMATS:
                file_format = kind
            case ["comment", *_]:
                comments.append(line[len("comment ") :])
            case ["obj_info", *_]:
                pass
            case ["element", name, number] if number.isdecimal() and name not in elements:
                count, properties = int(number), {}
                elements[name] = (count, properties)
            case ["property", "list", length, item, name] if (
                properties is not None and name not in properties and {length, item} <= set(_DTYPES)
            ):
                properties[name] = "list"
                minimum += count * (2 if file_format == "ascii" else np.dtype(_DTYPES[length]).itemsize)
            case ["property", kind, name] if properties is not None and name not in properties and kind in _DTYPES:
                properties[name] = _DTYPES[kind]
                minimum += count * (2 if file_format == "ascii" else np.dtype(_DTYPES[kind]).itemsize)
            case _:
                raise ValueError(f"line {line[:60]!r}")
    if not file_format:
        raise ValueError("no format line")
    if not all(kinds for _, kinds in elements.values()):
        raise ValueError("an element without properties")
    # The last number of an ASCII file need not be followed by a separator.
    return PlyHeader(file_format, elements, comments), minimum - (file_format == "ascii" and minimum > 0)


def read_ply_blocks(path: str | os.PathLike[str], header: PlyHeader, element: str) -> Iterator[np.ndarray]:
    """The rows of an element as structured arrays, block by block.

    Raises:
        FormatError: the data is malformed.
    """
    from plyfile import PlyData, PlyParseError

    count, properties = header.elements[element]
    names = list(header.elements)
    before = [header.elements[name] for name in names[: names.index(element)]]
    kinds = [kind for _, kinds in [*before, (count, properties)] for kind in kinds.values()]
    if header.format == "ascii" or "list" in kinds:
        try:
            table = PlyData.read(str(path), mmap="r")[element].data
        except (PlyParseError, ValueError, OverflowError) as error:
            raise FormatError(f"{path}: malformed PLY data ({error}). Copy or export the file again.") from error
        yield from (table[begin:end] for begin, end in ranges(len(table)))
        return
    # Not mapped: the pages of a large file would count as memory until it is closed.
    order = "<" if header.format == "binary_little_endian" else ">"
    row = np.dtype([(name, order + kind) for name, kind in properties.items()])
    skipped = sum(rows * sum(np.dtype(kind).itemsize for kind in kinds.values()) for rows, kinds in before)
    with open_file(path) as file:
        file.seek(header.size + skipped)
        for begin, end in ranges(count):
            yield np.frombuffer(file.read((end - begin) * row.itemsize), row)
