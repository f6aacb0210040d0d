"""Opening splats of any origin, with all that is known of them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from psd_gs.errors import InputError, PsdGsError
from psd_gs.export.blocks import open_file
from psd_gs.export.formats import (
    FORMATS,
    format_of,
    geometry,
    is_known,
    read_metadata,
    read_splats,
    sniff,
    stored_frame,
)
from psd_gs.export.frames import Frame
from psd_gs.export.gltf import holds_splats
from psd_gs.export.metadata import Metadata
from psd_gs.export.ply import is_gaussian_ply
from psd_gs.files import STREAM, called
from psd_gs.splats import RenderMode, Splats, scaled

if TYPE_CHECKING:
    from psd_gs.gaussians import Gaussians

SPLAT = "splat.ply"
"""Of a run folder, which can be named in its place."""


@dataclass(frozen=True)
class Asset:
    """A splat file, read.

    Attributes:
        splats: in the world frame, in metres as far as is known.
        metadata: where it comes from; empty if that is unknown.
        format: name of the format.
        frame: axes of the file.
        size: of the file, bytes.
    """

    splats: Splats
    metadata: Metadata
    format: str
    frame: Frame
    size: int

    @cached_property
    def gaussians(self) -> Gaussians:
        """The splats as tensors, in the same memory."""
        from psd_gs.gaussians import Gaussians

        return Gaussians.of(self.splats)

    def describe(self) -> dict[str, Any]:
        """Format, size in bytes, frame, number, SH degree, bounds, and metadata as far as they say more."""
        facts = geometry(self.splats)
        known = {*facts, "format", "frame"}
        more = {name: value for name, value in self.metadata.items() if name not in known}
        return {"format": self.format, "bytes": self.size, "frame": self.frame, **facts, "metadata": more}


def open_splats(
    path: str | os.PathLike[str], *, frame: Frame | None = None, lenient: bool = True, large: bool = False
) -> Asset:
    """Read a splat file of any format with its metadata, which also say what the format has no room for: axes, units,
    place and render mode.

    Args:
        path: of the file, of a run folder, or of a pipe; ``-`` is standard input. A name without the extension of a
            format is read as what its content looks like.
        frame: axes of the file; None for those that its metadata or the file name, or are usual for its format.
        lenient: leave out broken Gaussians, and log how many, instead of refusing the file.
        large: read a compressed file whatever it becomes in memory.

    Raises:
        FormatError: another kind of file than its name says, a damaged or truncated one, or no Gaussians in it.
        InputError: an unknown extension, or the file cannot be opened.
    """
    with on_disk(path) as file:
        kind = format_of(file)
        metadata = read_metadata(file)
        frame = frame or stored_frame(metadata)
        splats = read_splats(file, frame=frame, lenient=lenient, large=large)
        size = file.stat().st_size
    return Asset(_placed(splats, metadata), metadata, kind.name, frame or kind.frame, size)


def holds_gaussians(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a splat; ``.ply`` and ``.glb`` may also be meshes.

    Raises:
        FormatError: a damaged file.
        InputError: it cannot be opened.
    """
    name = Path(path).name.lower()
    if name.endswith((".glb", ".gltf")):
        return holds_splats(path)
    if name.endswith(".ply"):
        return is_gaussian_ply(path)
    return not name.endswith((".obj", ".stl"))


def _placed(splats: Splats, metadata: Metadata) -> Splats:
    """With the units, the place and the render mode that the file itself has no room for."""
    scale, offset, mode = (metadata.get(name) for name in ("scale", "offset", "render_mode"))
    if isinstance(scale, float | int) and 0 < scale < 1e30 and scale != 1:
        splats = scaled(splats, float(scale))
    if not any(splats.origin) and isinstance(offset, list) and len(offset) == 3:
        with contextlib.suppress(TypeError, ValueError):
            x, y, z = map(float, offset)
            splats = replace(splats, origin=(x, y, z))
    modes: tuple[RenderMode, ...] = get_args(RenderMode)
    if splats.mode == "default" and mode in modes:
        splats = replace(splats, mode=mode)
    return splats


@contextlib.contextmanager
def on_disk(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file with the extension of its format: ``path`` itself, the splat of a run folder, or else a copy.

    Raises:
        InputError: it cannot be opened, or its content is none that is known.
    """
    path = Path(path)
    if path.is_dir():
        path = path / SPLAT
        if not path.is_file():
            raise InputError(
                f"{path.parent}: expected a run folder with {SPLAT}, received one without. Name a file in it."
            )
    stream = str(path) == STREAM or (path.exists() and not path.is_file())
    there = stream or path.exists()
    if not stream and (is_known(path) or (path.suffix and not there)):
        yield path
        return
    if not there:  # such as a run folder, misspelt
        raise InputError(f"cannot read {path}: {os.strerror(errno.ENOENT)}. Check the path.")
    name = called(path)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            file = sys.stdin.buffer if str(path) == STREAM else stack.enter_context(path.open("rb"))
            start = file.read(1 << 10)
            extension = sniff(start)
            copy = Path(folder) / f"input{extension or ''}"
            with copy.open("wb") as target:
                target.write(start)
                if extension:
                    shutil.copyfileobj(file, target)
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror or error}. Check the path.") from error
        stack.enter_context(_called(copy, name))
        try:
            if extension is None:
                open_file(copy).close()  # says what it is, if that is known
                raise InputError(
                    f"{name}: expected a splat file, one of {', '.join(FORMATS)}, received something that begins "
                    f"with {start[:8]!r}. Give the file the extension of its format."
                )
            yield copy
        except PsdGsError as error:
            raise type(error)(str(error).replace(str(copy), name)) from error


@contextlib.contextmanager
def _called(copy: Path, name: str) -> Iterator[None]:
    """What is logged names the file that was given, for nobody knows its copy."""

    def rename(record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().replace(str(copy), name), ()
        return True

    handlers = [*logging.getLogger("psd_gs").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(rename)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(rename)
