"""PLY files of any content: the header, and the rows of an element as structured arrays.

Comments may hold any bytes, lines may end in any way, elements and properties may be any: what is not asked for is
passed over.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO

import numpy as np

from psd_gs.errors import FormatError
from psd_gs.export.blocks import damaged, open_file, say_surplus
from psd_gs.files import short
from psd_gs.splats import ranges

logger = logging.getLogger(__name__)

_HEADER_LIMIT = 1 << 22
_MOST_PROPERTIES = 1000
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("long", "int64"), "i8"),
    **dict.fromkeys(("ulong", "uint64"), "u8"),
    **dict.fromkeys(("half", "float16"), "f2"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
PLY_START = re.compile(rb"(?i)(?:\xef\xbb\xbf)?ply[ \t]*(\r*\n|\r)")
"""The first line, also behind the mark that editors of Windows put before it; its end is a group."""
_ODD_NUMBERS = ((re.compile(r"(?i)1\.#inf\w*"), "inf"), (re.compile(r"(?i)1\.#\w+|nan\(\w*\)"), "nan"))
"""How programs that were built with Visual Studio write what is not finite."""
_FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")
_LIST = "list"


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY file says of itself.

    Attributes:
        format: ``ascii``, ``binary_little_endian`` or ``binary_big_endian``.
        elements: element name to its number of rows and its properties (name to NumPy type, or ``list`` with the types
            of length and items), names in small letters. Of properties of one name the second is called ``name#2``.
        comments: without the leading word; bytes that are no UTF-8 are escaped as surrogates.
        size: of the header, bytes.
        surplus: bytes behind the last row, as far as the header tells: none where rows have lists or are text.
    """

    format: str
    elements: dict[str, tuple[int, dict[str, str]]]
    comments: list[str]
    size: int = 0
    surplus: int = 0

    def scalars(self, element: str) -> dict[str, str]:
        """Types of the properties that hold one number; empty if there is no such element."""
        properties = self.elements.get(element, (0, {}))[1]
        return {name: kind for name, kind in properties.items() if not kind.startswith(_LIST)}


def read_ply_header(path: str | os.PathLike[str]) -> PlyHeader:
    """Parse the header and check that the file is long enough for it, before any data is read.

    Raises:
        FormatError: not a PLY file, a malformed header, or fewer bytes than it promises.
        InputError: the file cannot be opened.
    """
    with open_file(path) as file:
        start = file.read(1 << 16)
        found = PLY_START.match(start)
        if not found:
            raise FormatError(f"{path} is not a PLY file: expected it to begin with 'ply', received {start[:8]!r}.")
        # After a header of lines that end in \r alone, \n is data.
        end_line = re.compile(rb"(?i)[\r\n][ \t]*end_header[ \t]*" + (rb"\r" if found[1] == b"\r" else rb"\r*\n"))
        while not (end := end_line.search(start)) and len(start) < _HEADER_LIMIT and (more := file.read(1 << 20)):
            start += more
        size = file.seek(0, os.SEEK_END)
    if not end:
        raise FormatError(f"{path}: the PLY header does not end. The file is truncated; copy or export it again.")
    lines = start[found.end() : end.start()].decode("utf-8", "surrogateescape")
    try:
        # Without empty lines, of which a file may have millions.
        header, minimum = _parse_header(re.split(r"[\r\n]\s*", lines))
    except ValueError as error:
        raise FormatError(f"{path}: malformed PLY header ({error}). Copy or export the file again.") from error
    if size - end.end() < minimum:
        raise FormatError(
            f"{path} is truncated: expected at least {minimum} bytes after the header, received {size - end.end()}. "
            "Copy or export the file again."
        )
    kinds = [kind for _, properties in header.elements.values() for kind in properties.values()]
    known = header.format != "ascii" and not any(kind.startswith(_LIST) for kind in kinds)
    return replace(header, size=end.end(), surplus=size - end.end() - minimum if known else 0)


def _parse_header(lines: list[str]) -> tuple[PlyHeader, int]:
    """The header and the fewest bytes that its elements take; ValueError if a line is wrong."""
    file_format = ""
    elements: dict[str, tuple[int, dict[str, str]]] = {}
    comments: list[str] = []
    properties: dict[str, str] | None = None
    for line in lines:
        first, *words = line.split() or [""]
        match [first.lower(), *words]:
            case [""]:
                pass
            case ["format", kind, "1.0"] if kind.lower() in _FORMATS:
                file_format = kind.lower()
            case ["comment" | "obj_info", *_]:
                comments.append(line.strip()[len(first) :].lstrip())
            case ["element", name, number] if number.isdecimal() and len(number) < 20 and name.lower() not in elements:
                properties = {}
                elements[name.lower()] = (int(number), properties)
            case ["property", *kinds, name] if properties is not None and _stored(kinds):
                _add(properties, name, _stored(kinds))
            case _:
                raise ValueError(f"line {short(line)}")
    if not file_format:
        raise ValueError("no format line")
    # The last number of an ASCII file need not be followed by a separator.
    text = file_format == "ascii"
    width = {kind: 2 if text else np.dtype(kind.split()[-1]).itemsize for kind in _TYPES.values()}
    fewest = [
        count * sum(width[kind.split()[1] if kind.startswith(_LIST) else kind] for kind in kinds.values())
        for count, kinds in elements.values()
    ]
    minimum = sum(fewest)
    return PlyHeader(file_format, elements, comments), minimum - (text and minimum > 0)


def _stored(kinds: list[str]) -> str:
    """What :class:`PlyHeader` says of a type; empty if there is no such type."""
    words = [kind.lower() for kind in kinds]
    listed = [_LIST] if len(words) == 3 and words[0] == _LIST else []
    types = [_TYPES.get(word, "") for word in words[len(listed) :]]
    return " ".join(listed + types) if all(types) and (listed or len(types) == 1) else ""


def _add(properties: dict[str, str], name: str, kind: str) -> None:
    if len(properties) >= _MOST_PROPERTIES:
        raise ValueError(f"more than {_MOST_PROPERTIES} properties")
    name = name.lower()
    number = 2
    unique = name
    while unique in properties:
        unique, number = f"{name}#{number}", number + 1
    properties[unique] = kind


def read_ply_blocks(path: str | os.PathLike[str], header: PlyHeader, element: str) -> Iterator[np.ndarray]:
    """The rows of an element as structured arrays of its properties that hold one number, block by block.

    Raises:
        FormatError: the data is malformed or truncated.
    """
    count, properties = header.elements[element]
    names = list(header.elements)
    before = [header.elements[name] for name in names[: names.index(element)]]
    order = ">" if header.format == "binary_big_endian" else "<"
    with open_file(path) as file:
        file.seek(header.size)
        try:
            if header.format == "ascii":
                yield from _text_blocks(file, before, count, properties)
                return
            for rows, kinds in before:
                _skip(file, rows, kinds, order)
            if any(kind.startswith(_LIST) for kind in properties.values()):
                yield from _mixed_blocks(file, count, properties, order)
                return
            row = np.dtype([(name, order + kind) for name, kind in properties.items()])
            for begin, end in ranges(count):
                yield np.frombuffer(file.read((end - begin) * row.itemsize), row, end - begin)
        except (ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise damaged(path, f"malformed PLY data ({reason})") from error


def say_rest(path: str | os.PathLike[str], header: PlyHeader) -> None:
    """Log what is behind the last row of the last element, if anything is."""
    say_surplus(path, header.surplus, "the last row")
    if header.format == "ascii":
        rows = sum(count for count, properties in header.elements.values() if properties)
        with open_file(path) as file:
            file.seek(header.size)
            more = sum(1 for line in _lines(file) if line.strip()) - rows
        if more > 0:
            logger.warning("%s: %d lines behind the last row are not kept", path, more)


def _skip(file: BinaryIO, rows: int, kinds: dict[str, str], order: str) -> None:
    if not any(kind.startswith(_LIST) for kind in kinds.values()):
        file.seek(rows * sum(np.dtype(kind).itemsize for kind in kinds.values()), os.SEEK_CUR)
        return
    for _ in range(rows):
        _read_row(file, kinds, order)


def _read_row(file: BinaryIO, kinds: dict[str, str], order: str) -> list[float]:
    """The numbers of one binary row; lists are passed over."""
    numbers = []
    for kind in kinds.values():
        *of_list, item = kind.removeprefix(_LIST).split()
        length = 1
        if of_list:
            length = int(np.frombuffer(file.read(np.dtype(of_list[0]).itemsize), order + of_list[0], 1)[0])
        size = np.dtype(item).itemsize * length
        if of_list and length >= 0:
            file.seek(size, os.SEEK_CUR)
        else:
            numbers.append(float(np.frombuffer(file.read(max(size, 0)), order + item, 1)[0]))
    return numbers


def _mixed_blocks(file: BinaryIO, count: int, kinds: dict[str, str], order: str) -> Iterator[np.ndarray]:
    row = np.dtype([(name, "f8") for name, kind in kinds.items() if not kind.startswith(_LIST)])
    for begin, end in ranges(count):
        yield np.array([tuple(_read_row(file, kinds, order)) for _ in range(begin, end)], row)


def _text_blocks(
    file: BinaryIO, before: list[tuple[int, dict[str, str]]], count: int, kinds: dict[str, str]
) -> Iterator[np.ndarray]:
    row = np.dtype([(name, "f8") for name, kind in kinds.items() if not kind.startswith(_LIST)])
    width = len(row.names or ())
    lists = width < len(kinds)
    lines = (line for line in _lines(file) if line.strip())
    skipped = sum(rows for rows, kinds in before if kinds)
    if sum(1 for _ in islice(lines, skipped)) < skipped:
        raise ValueError("too few lines")
    for begin, end in ranges(count):
        part = list(islice(lines, end - begin))
        if len(part) < end - begin:
            raise ValueError(f"expected {count} rows of numbers, received {begin + len(part)}")
        if lists:
            table = np.array([_text_row(line, kinds) for line in part], np.float64)
        else:
            table = np.loadtxt([plain_numbers(line) for line in part], np.float64, comments=None, ndmin=2)
        if table.shape[1] != width:
            raise ValueError(f"expected {width} numbers in a row, received {table.shape[1]}")
        yield np.ascontiguousarray(table).view(row)[:, 0]


def plain_numbers(text: str) -> str:
    """Numbers as Python reads them, see :data:`_ODD_NUMBERS`."""
    if "#" in text or "(" in text:
        for pattern, plain in _ODD_NUMBERS:
            text = pattern.sub(plain, text)
    return text


def _lines(file: BinaryIO) -> Iterator[str]:
    return io.TextIOWrapper(file, "latin-1", newline=None)


def _text_row(line: str, kinds: dict[str, str]) -> list[float]:
    """The numbers of one row of text; lists are passed over."""
    words = iter(plain_numbers(line).split())
    numbers = []
    for kind in kinds.values():
        word = next(words, "")
        if not kind.startswith(_LIST):
            numbers.append(float(word))
        elif word.isdecimal():
            next(islice(words, int(word), int(word)), None)
        else:
            raise ValueError(f"a list of {short(word)} items")
    return numbers


def columns(table: np.ndarray, names: Collection[str]) -> np.ndarray:
    """Properties of a structured array side by side, [N, len(names)]: a view where they lie so, as files have them."""
    if not names:
        return np.zeros((len(table), 0))
    fields = dict(table.dtype.fields or {})
    kinds, places = zip(*(fields[name][:2] for name in names), strict=True)
    size = kinds[0].itemsize
    if len({*kinds}) == 1 and places == tuple(range(places[0], places[0] + size * len(names), size)):
        return np.ndarray((len(table), len(names)), kinds[0], table, places[0], (table.strides[0], size))
    return np.stack([table[name] for name in names], axis=1)
