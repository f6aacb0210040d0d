"""Writing files so that a reader never sees half of one, and reading those of strangers within bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import logging
import os
import re
import reprlib
import secrets
import shutil
import stat
import sys
import tempfile
import types
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from psd_gs.errors import FormatError, InputError, OutputError, UnsupportedError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

T = TypeVar("T")

JSON_BYTES = 4 << 20
"""Largest JSON file; in memory it can become 25 times as large."""
JSON_DEPTH = 32
"""Deepest nesting of JSON."""
LARGEST = 1e100
"""Nothing that is measured is larger; its square is still finite."""
YAML_BYTES = 128 << 10
"""Largest YAML file; none of ours has 10 KiB."""
_SCALAR = 64
"""Most characters of a number, date or the like."""
STREAM = "-"
"""In place of a file's name: standard input, or standard output."""
_STEM = 32
"""Characters of a name in a temporary one: a name may be as long as the file system has it."""
PICTURE_BYTES = 64 << 20
PICTURE_PIXELS = 1 << 25
"""Largest picture, compressed and decoded: 8192 x 4096."""
PICTURES = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that are decoded; Pillow has others, some of which run programs."""
_OTHER_PICTURES = {
    rb"II\*\0|MM\0\*": "TIFF",
    rb"BM": "BMP",
    rb"....ftyp(avi|hei|mif)": "AVIF or HEIC",
    rb"\0\0\0\x0cJXL|\xff\x0a": "JPEG XL",
    rb"8BPS": "Photoshop",
    rb"\x76\x2f\x31\x01|#\?RADIANCE|.KTX |DDS ": "OpenEXR, Radiance, KTX or DDS",
    rb"\s*<(svg|\?xml)": "SVG",
}
"""How pictures begin that are known and not read."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error.

    A link is followed: what it names is replaced. A device or pipe gets the bytes, and stays what it is. The temporary
    name keeps the suffix, because most writers choose a format by it.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    target = Path(os.path.realpath(path))
    with writing(path):
        special = target.exists() and not target.is_file() and not target.is_dir()
    if special:
        with tempfile.TemporaryDirectory() as folder, writing(path):
            temporary = Path(folder) / f"output{target.suffix}"
            yield temporary
            with temporary.open("rb") as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    temporary = target.with_name(f".{target.stem[:_STEM]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        with writing(path):
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until the content is on the disk, so that no crash of the machine leaves an empty file of the new name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sweep_parts(folder: Path, *, below: bool = True) -> None:
    """Delete what :func:`atomic_path` was writing in ``folder``, and ``below``, when its process was killed."""
    for path in folder.glob("**/.*.part*" if below else ".*.part*"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def sharing(folders: Iterable[Path], token: Path) -> Iterator[None]:
    """Write in folders beside other processes; one that is alone there sweeps them first, see :func:`sweep_parts`.

    Args:
        folders: without what lies below them.
        token: a file that all of the processes hold meanwhile; made if it is missing.

    Raises:
        OutputError: the token cannot be made.
    """
    with writing(token):
        file = token.open("ab+")
    with file:
        if os.name != "nt":  # which has no locks that are shared
            import fcntl

            with contextlib.suppress(OSError):  # a file system without locks
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for folder in folders:
                        sweep_parts(folder, below=False)
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[None]:
    """Tell the user what the operating system says against writing ``target``.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {target}: {reason}. Free some space or choose another place.") from error


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace ``path`` by ``data`` in one step; text is written as UTF-8, what that lacks as question marks.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode(errors="replace") if isinstance(data, str) else data)


def append(path: str | os.PathLike[str], line: bytes) -> None:
    """Add a line to a file, whole or not at all.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(line) < len(line):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def locked(file: BinaryIO) -> Iterator[None]:
    """Hold an open file against all other processes that do so, and wait for those that hold it now.

    Raises:
        OSError: the file system knows no locks.
    """
    if os.name == "nt":
        import msvcrt

        def lock(mode: int) -> None:
            file.seek(0)  # its locks are of bytes from here on
            msvcrt.locking(file.fileno(), mode, 1)  # type: ignore[attr-defined]

        take, leave = msvcrt.LK_LOCK, msvcrt.LK_UNLCK  # type: ignore[attr-defined]
    else:
        import fcntl

        def lock(mode: int) -> None:
            fcntl.flock(file, mode)

        take, leave = fcntl.LOCK_EX, fcntl.LOCK_UN
    lock(take)
    try:
        yield
    finally:
        lock(leave)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_bounded(path: str | os.PathLike[str], limit: int, start: int = 0) -> bytes:
    """A regular file to its end.

    Args:
        path: of the file; links are followed.
        limit: most bytes.
        start: bytes to leave out.

    Raises:
        FormatError: a larger file.
        InputError: it cannot be opened, or is a folder, device or pipe.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"cannot read {path}: it is a folder, device or pipe. Name a regular file.")
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}. Check the path.") from error
    return _within(data, limit, path)


def called(path: str | os.PathLike[str]) -> str:
    """What messages call a file that a person names, which may be standard input."""
    return "standard input" if str(path) == STREAM else str(path)


def read_given(path: str | os.PathLike[str], limit: int) -> bytes:
    """What a person names on the command line: a file, what comes out of a pipe (``<(...)``, ``/dev/stdin``), or ``-``
    for standard input. Names that stand in files go to :func:`read_bounded` instead.

    Raises:
        FormatError: more than ``limit`` bytes.
        InputError: it cannot be opened, or is a folder.
    """
    stream = str(path) == STREAM
    if not stream and not Path(path).is_fifo() and not Path(path).is_char_device():
        return read_bounded(path, limit)
    try:
        if stream:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read {called(path)}: {error.strerror or error}. Check the path.") from error
    return _within(data, limit, called(path))


def _within(data: bytes, limit: int, path: str | os.PathLike[str]) -> bytes:
    if len(data) > limit:
        raise FormatError(f"{path}: expected at most {limit:,} bytes, received more. This is no such file.")
    return data


def read_json(path: str | os.PathLike[str], shape: type[T], *, limit: int = JSON_BYTES) -> T:
    """A JSON file, checked against what it should hold, see :func:`loads`.

    Raises:
        FormatError: not JSON, another shape, too large or too deep.
        InputError: it cannot be opened, or is a folder, device or pipe.
    """
    data = read_bounded(path, limit)
    try:
        return loads(data, shape)
    except ValueError as error:
        raise FormatError(f"{path}: {error}. The file is damaged or of another kind; copy or make it again.") from error


def loads(text: str | bytes, shape: type[T]) -> T:
    """JSON, checked against what it should hold.

    Args:
        text: the JSON; NaN and infinities, which are not JSON, become null.
        shape: a TypedDict, whose further fields may hold anything; a dataclass, whose further fields are dropped;
            or str, int (of 64 bits), float (below :data:`LARGEST`), bool, None, Literal, Any, and lists, dicts and
            unions of them.

    Raises:
        ValueError: one line about what is wrong.
    """
    try:
        return conform(json.loads(text, object_pairs_hook=_distinct, parse_constant=lambda name: None), shape)
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH} levels") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a name that occurs twice in one object")
    return out


def conform(value: Any, shape: Any, depth: int = 0) -> Any:
    """A parsed ``value`` as ``shape`` wants it, see :func:`loads`.

    Raises:
        ValueError: it is something else.
    """
    if depth >= JSON_DEPTH and isinstance(value, dict | list):
        raise ValueError(f"nested deeper than {JSON_DEPTH} levels")
    origin, args = get_origin(shape), get_args(shape)
    if shape is Any:
        if isinstance(value, float):
            return value
        kinds: dict[type, Any] = {dict: dict[str, Any], list: list[Any]}
        shape = kinds.get(type(value), type(value))
        origin, args = get_origin(shape), get_args(shape)
    if origin in (Union, types.UnionType):
        for arg in args:
            with contextlib.suppress(ValueError):
                return conform(value, arg, depth)
    elif origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
    elif origin is list and isinstance(value, list):
        return [_inside(i, item, args[0], depth) for i, item in enumerate(value)]
    elif origin is dict and isinstance(value, dict):
        return {conform(name, args[0]): _inside(name, item, args[1], depth) for name, item in value.items()}
    elif (
        isinstance(shape, type) and isinstance(value, dict) and (is_typeddict(shape) or dataclasses.is_dataclass(shape))
    ):
        hints, required = _fields(shape)
        if missing := [name for name in required if name not in value]:
            raise ValueError(f"{missing[0]} is missing")
        known = {name: _inside(name, value[name], hint, depth) for name, hint in hints.items() if name in value}
        if dataclasses.is_dataclass(shape):
            return shape(**known)
        return {conform(k, str): known[k] if k in known else _inside(k, item, Any, depth) for k, item in value.items()}
    elif shape is float and type(value) in (int, float) and abs(value) < LARGEST:
        return float(value)
    elif shape is int and type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    elif shape is str and isinstance(value, str):
        if not any("\ud800" <= c <= "\udfff" for c in value):
            return value
        raise ValueError("a text with half a surrogate pair")
    elif shape in (bool, None, type(None)) and (value is None if shape is not bool else isinstance(value, bool)):
        return value
    raise ValueError(f"expected {_called(shape)}, received {short(value)}")


def _inside(name: object, value: Any, shape: Any, depth: int) -> Any:
    try:
        return conform(value, shape, depth + 1)
    except ValueError as error:
        raise ValueError(f"{short(name)}: {error}" if depth < 3 else str(error)) from None


@lru_cache
def _fields(shape: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Annotations of a TypedDict or dataclass, and which of its fields must be there."""
    if is_typeddict(shape):
        return get_type_hints(shape), frozenset(shape.__required_keys__)  # type: ignore[attr-defined]
    missing = dataclasses.MISSING
    needed = (f.name for f in dataclasses.fields(shape) if f.default is missing and f.default_factory is missing)
    return get_type_hints(shape), frozenset(needed)


def _called(shape: Any) -> str:
    names = {int: "an integer of 64 bits", float: "a finite number", str: "a text", bool: "true or false"}
    if get_origin(shape) in (Union, types.UnionType):
        return " or ".join(map(_called, get_args(shape)))
    if get_origin(shape) is Literal:
        return " or ".join(map(repr, get_args(shape)))
    if get_origin(shape) is list:
        return "a list"
    return "null" if shape in (None, type(None)) else names.get(shape, "fields by name")


def parse_yaml(text: str | bytes) -> Any:
    """Plain YAML: no aliases, which let a few lines unfold to gigabytes, no key twice, and no deeper than JSON is.

    Raises:
        ValueError: one line about what is wrong.
    """
    import yaml

    try:
        depth = 0
        events: Iterable[Any] = yaml.parse(text, _loader())
        for event in events:  # before anything is built of them
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > JSON_DEPTH:
                problem = "nested too deep" if depth > JSON_DEPTH else "an alias"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return conform(yaml.load(text, _loader()), Any)  # a subclass of the safe loader
    except ValueError:
        raise
    except Exception as error:  # its constructors raise whatever a wrong scalar leads them into
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise ValueError(f"{short(reason)[1:-1]}, line {mark.line + 1}" if mark else str(reason)) from error


@lru_cache
def _loader() -> Any:
    import yaml

    safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as quick, where PyYAML has it

    class Loader(safe):
        def construct_scalar(self, node: Any) -> Any:
            if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _SCALAR:
                raise yaml.MarkedYAMLError(problem="a number that long", problem_mark=node.start_mark)
            return super().construct_scalar(node)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise yaml.MarkedYAMLError(problem="a key that occurs twice", problem_mark=node.start_mark)
            return mapping

    return Loader


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlevel = _REPR.maxdict = 2
_REPR.maxlist = 3


def printable(text: str) -> str:
    """A line of text in which what a terminal would obey, or a reader would not see, is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(value: object) -> str:
    """What a message says of a value that may be huge, or hold anything."""
    return _REPR.repr(value)


def read_picture(
    source: str | os.PathLike[str] | bytes, mode: Literal["RGB", "RGBA"] = "RGB", *, upright: bool = False
) -> Image.Image:
    """A picture, decoded; the first frame of a film.

    Args:
        source: a file of one of :data:`PICTURES`, or what it holds.
        mode: of the result.
        upright: turn it as the camera says that it was held (Exif).

    Raises:
        UnsupportedError: a picture of another kind.
        FormatError: a damaged one, or one beyond :data:`PICTURE_BYTES` or :data:`PICTURE_PIXELS`.
        InputError: it cannot be opened, or is a folder, device or pipe.
    """
    import numpy as np
    from PIL import Image, ImageOps

    name = "the picture" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bounded(source, PICTURE_BYTES)
    if kind := other_picture(data):
        raise UnsupportedError(f"{name}: {kind} pictures are not read. Convert it to PNG first.")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            width, height = picture.size
            if width * height > PICTURE_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {PICTURE_PIXELS:,}")
            if getattr(picture, "is_animated", False):
                logger.warning("%s: a film, of which the first picture is taken", name)
            turned: Image.Image = ImageOps.exif_transpose(picture) if upright else picture
            if turned.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would cut off at 255
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            return turned.convert(mode)
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them into
        raise FormatError(
            f"{name}: expected a sound {', '.join(PICTURES)} file ({picture_fault(error)}). Make it again."
        ) from error


def other_picture(data: bytes) -> str | None:
    """The kind of a picture that is known and not read."""
    return next((kind for start, kind in _OTHER_PICTURES.items() if re.match(start, data, re.DOTALL)), None)


def picture_fault(error: Exception) -> str:
    """What Pillow says is wrong, in one short line, without the address of the file in memory."""
    return re.sub(r" <_io\.\w+ [^>]*>", "", " ".join(str(error).split()))[:100]
