"""What the command line shows: plain lines, in which nothing that a file holds can steer the terminal."""

from __future__ import annotations

import errno
import logging
import sys
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

_KEPT = "\n\t"


def shown(text: str) -> str:
    """``text`` with control characters, and those that turn the direction of writing, as escapes."""
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else ascii(c)[1:-1] for c in text
    )


def say(*lines: str, errors: bool = False) -> None:
    """Print lines as they are, on standard output or among the errors."""
    stream = sys.stderr if errors else sys.stdout
    stream.write("".join(f"{shown(line)}\n" for line in lines))
    stream.flush()


def console(**options: Any) -> Console:
    """A console that prints lines as they are, without markup, colours and breaks of its own."""
    from rich.console import Console

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            plain = [shown(item) if isinstance(item, str) else item for item in objects]
            super().print(*plain, **{"soft_wrap": True, **options})

    return Plain(highlight=False, markup=False, emoji=False, **options)


class _Steady:
    """Standard output, whose lines alone are lost when the disk behind it is full, which is said once."""

    def __init__(self) -> None:
        self._stream, self._said = sys.stdout, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._said:
                logger.warning("standard output: %s. Going on without it", error.strerror)
            self._said = True


def work_console(**options: Any) -> Console:
    """For commands whose work is files, which need not end because nobody can be told."""
    from rich.console import Console

    return Console(highlight=False, markup=False, file=cast(Any, _Steady()), **options)


class NoteHandler(logging.StreamHandler):
    """Shows what the package logs as lines on standard error."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))
