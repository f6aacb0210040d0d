"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from psd_gs.errors import OutputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error.

    The temporary name keeps the suffix, because most writers choose a format by it.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        with writing(target):
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


def sweep_parts(folder: Path) -> None:
    """Delete what :func:`atomic_path` was writing in ``folder`` and below when its process was killed."""
    for path in folder.rglob(".*.part*"):
        with contextlib.suppress(OSError):
            path.unlink()


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
    """Replace ``path`` by ``data`` (text is written as UTF-8) in one step.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
