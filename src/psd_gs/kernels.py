"""Compiled loops that are kept on the disk, wherever a disk will have them."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache that never stands in the way.

    Numba keeps compiled code beside the source or in the user's cache folder, and refuses to compile where it can write
    to neither: a container without a home and with read-only packages. There a folder of temporary files serves, or
    no cache; and a cache that cannot be written (a full disk) is done without.

    Args:
        options: of ``numba.njit``, such as ``nogil``.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            dispatcher = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no place that can be written
            if not temporary_cache():
                return numba.njit(**options)(function)
            dispatcher = numba.njit(cache=True, **options)(function)
        dispatcher._cache = _Forgiving(function)
        return dispatcher

    return compiled


class _Forgiving(caching.FunctionCache):
    """Without space on the disk nothing is kept."""

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


@cache
def temporary_cache() -> Path | None:
    """A folder among the temporary files that only this user can write, made numba's; None if there cannot be one.

    What lies in a cache is run, so a folder that somebody else could have put there is not used.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        folder = Path(tempfile.gettempdir()) / f"psd-gs-kernels-{user}"  # raises where no such folder can be written
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and (os.name == "nt" or (found.st_uid == user and not found.st_mode & 0o077))
    if not private or not os.access(folder, os.W_OK):
        return None
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    return folder
