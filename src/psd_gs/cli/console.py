"""What the command line shows: plain lines, in which nothing that a file holds can steer the terminal."""

from __future__ import annotations

import logging
import sys
import unicodedata
from typing import Any

from rich.console import Console

_KEPT = "\n\t"


def shown(text: str) -> str:
    """``text`` with control characters, and those that turn the direction of writing, as escapes."""
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else ascii(c)[1:-1] for c in text
    )


class _Plain(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        plain = [shown(item) if isinstance(item, str) else item for item in objects]
        super().print(*plain, **{"soft_wrap": True, **options})


def console(**options: Any) -> Console:
    """A console that prints lines as they are, without markup, colours and breaks of its own."""
    return _Plain(highlight=False, markup=False, emoji=False, **options)


class NoteHandler(logging.StreamHandler):
    """Shows what the package logs as lines on standard error."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))
