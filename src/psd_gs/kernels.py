"""Compiled loops that are kept on the disk, wherever a disk will have them; those of a release come compiled."""

from __future__ import annotations

import hashlib
import inspect
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, codegen

BROUGHT = Path(__file__).with_name("compiled")
"""Kernels that the package brings, made by ``tools/compile_kernels.py``. They serve the version of Python and numba and
the system that they were made with; elsewhere kernels are compiled."""

TARGET = "x86-64-v3"
"""LLVM's name of the processors that they are for: x86-64 with AVX2."""
FEATURES = frozenset({"+avx2", "+bmi", "+bmi2", "+f16c", "+fma", "+lzcnt", "+movbe"})
"""What it has beyond other processors of x86-64."""


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with a cache that never stands in the way.

    Numba keeps compiled code beside the source or in the user's cache folder, and refuses to compile where it can write
    to neither: a container without a home and with read-only packages. There a folder of temporary files serves, or
    no cache; and a cache that cannot be written (a full disk) is done without.

    Args:
        options: of ``numba.njit``, such as ``nogil``.
    """

    options["no_cfunc_wrapper"] = True  # nothing else in C calls them

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            dispatcher = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no place that can be written
            if not temporary_cache():
                return numba.njit(**options)(function)
            dispatcher = numba.njit(cache=True, **options)(function)
        dispatcher._cache = Cache(function)
        return dispatcher

    return compiled


def part(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` of a function that only kernels call: without its own entry from Python, and without a cache, it
    is compiled in less time.

    Args:
        options: of ``numba.njit``, such as ``error_model``.
    """
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)


class Cache(caching.FunctionCache):
    """What the package brings, then what was compiled here. Without space on the disk nothing is kept."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        source = hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
        self._brought = caching.IndexDataCacheFile(str(BROUGHT), self._impl.filename_base, source)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        compiler = target_context.codegen()
        if fits() and (found := self._brought.load(self._key(sig, compiler))) is not None:
            return self._impl.rebuild(target_context, found)
        return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)

    def bring(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for :data:`TARGET` in :data:`BROUGHT`."""
        self._brought.save(self._key(sig, data.codegen), self._impl.reduce(data))

    def _key(self, sig: Any, compiler: Any) -> tuple[Any, ...]:
        """Numba's key but for the processor: arguments, system, and the function's code."""
        arguments, (system, _, _), code = self._index_key(sig, compiler)
        return arguments, system, code


@cache
def fits() -> bool:
    """Whether this processor is of the kind :data:`TARGET`, and numba compiles for it and not for another one."""
    told = numba.config.CPU_NAME, numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    return told == (None, None) and set(codegen.get_host_cpu_features().split(",")) >= FEATURES


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
