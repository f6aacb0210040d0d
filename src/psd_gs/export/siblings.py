"""Files that an asset names: buffers, pictures, material libraries. They are read from the asset's own folder only."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from psd_gs.errors import FormatError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""A scheme of a URI, or the drive of Windows."""


def read_sibling(asset: Path, name: str, limit: int, *, uri: bool = False) -> bytes:
    """The bytes of a file that ``asset`` names.

    Exporters of Windows write backslashes; they part folders here as well, and nothing is tried that only another
    system would take for a path.

    Args:
        asset: the file that names the other one.
        name: as it stands there.
        limit: more bytes are refused, not read.
        uri: undo percent-encoding, as glTF asks.

    Raises:
        FormatError: a network address, an absolute path, one out of the folder (by ``..`` or through a link), a
            device, pipe or folder, or more than ``limit`` bytes.
        FileNotFoundError: there is no such file.
    """
    folder = asset.parent.resolve()
    try:
        found = folder.joinpath(sibling_path(asset, name, uri=uri)).resolve(strict=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a file among the folders, bad letters
        raise _outside(asset, name) from error
    if not found.is_relative_to(folder):
        raise _outside(asset, name)
    try:
        # without blocking, should it be a pipe; what was a file a moment ago may have become a link
        handle = os.open(found, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise FormatError(
            f"{asset}: cannot read {name!r:.100} beside it: {error.strerror or error}. Check its rights."
        ) from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise _outside(asset, name)
    with open(handle, "rb") as file:
        if about.st_size > limit:
            raise FormatError(f"{asset}: expected at most {limit} bytes in {name!r:.100}, received {about.st_size}.")
        return file.read(limit)


def sibling_path(asset: Path, name: str, *, uri: bool = False) -> str:
    """Where a file that ``asset`` names lies with respect to its folder, with slashes.

    Args:
        asset: the file that names the other one.
        name: as it stands there.
        uri: undo percent-encoding, as glTF asks.

    Raises:
        FormatError: a network address, an absolute path, or one out of the folder by ``..``.
    """
    path = unquote_to_bytes(name).decode("utf-8", "surrogateescape") if uri else name
    path = path.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or "\0" in path or path.startswith("/") or _ADDRESS.match(path) or ".." in parts:
        raise _outside(asset, name)
    return "/".join(parts)


def _outside(asset: Path, name: str) -> FormatError:
    return FormatError(
        f"{asset}: expected names of files in its own folder, received {name!r:.100}. "
        "Copy that file beside the asset and name it without a path."
    )
