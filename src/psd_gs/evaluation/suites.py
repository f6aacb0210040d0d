"""Lists of prompts: those that ship with the package, and files of one's own.

A suite is UTF-8 text with one prompt per line. ``# ...`` is a comment; ``[name]`` begins a group of
prompts, which reports show apart; after the prompt, wrong captions may follow, apart by ``|``, for
the measure of prompt match. Without them the suite's other prompts serve as wrong captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from psd_gs.config import check_prompt_text, suggestion
from psd_gs.errors import InputError
from psd_gs.files import read_given

SUITES = ("mini-40", "mini-dev-8", "smoke-5", "dreamfusion-style", "t3bench-style")
"""Those that ship with the package."""

SUITE_BYTES = 4 << 20
"""Bytes of the largest file of one's own."""
WRONG = 10
"""Number of wrong captions for a prompt that names none."""


@dataclass(frozen=True)
class Item:
    """One prompt of a suite.

    Attributes:
        prompt: what to make.
        wrong: captions that do not fit it.
        group: heading that it stands under.
    """

    prompt: str
    wrong: tuple[str, ...] = ()
    group: str = ""


def load_suite(suite: str, count: int | None = None) -> list[Item]:
    """The prompts of a suite.

    Args:
        suite: one of :data:`SUITES`, or a text file.
        count: only so many, evenly spread over it.

    Raises:
        InputError: no such suite or file, no or double prompts, or a line that cannot be a prompt.
    """
    items = parse_suite(_read(suite), suite)
    count = min(len(items) if count is None else count, len(items))
    if count < 1:
        raise InputError(f"suite {suite}: expected 1 prompt or more, received {count}.")
    return [items[i * len(items) // count] for i in range(count)]


def parse_suite(text: str, where: str = "suite") -> list[Item]:
    """The prompts of a suite's text, wrong captions filled in.

    Raises:
        InputError: see :func:`load_suite`.
    """
    items: list[Item] = []
    group = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("\ufeff")
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith("#"):
            prompt, *wrong = (part.strip() for part in line.split("|"))
            try:
                check_prompt_text(prompt)
            except InputError as error:
                raise InputError(f"{where}, line {number}: {error}") from error
            if any(prompt == item.prompt for item in items):
                raise InputError(
                    f"{where}, line {number}: expected different prompts, received {prompt!r} again. Leave it out."
                )
            items.append(Item(prompt, tuple(filter(None, wrong)), group))
    if not items:
        raise InputError(f"{where}: expected one prompt per line, received none.")
    prompts = [item.prompt for item in items]
    return [Item(i.prompt, i.wrong or wrong_captions(i.prompt, prompts), i.group) for i in items]


def wrong_captions(prompt: str, others: list[str]) -> tuple[str, ...]:
    """At most :data:`WRONG` of the other prompts, evenly spread."""
    rest = [other for other in others if other != prompt]
    count = min(WRONG, len(rest))
    return tuple(rest[i * len(rest) // count] for i in range(count))


def _read(suite: str) -> str:
    if suite in SUITES:
        return (resources.files("psd_gs") / "assets" / "suites" / f"{suite}.txt").read_text(encoding="utf-8")
    path = Path(suite)
    if not path.suffix and not path.exists():
        raise InputError(f"unknown suite {suite!r}: expected a suite or a text file.{suggestion(suite, SUITES)}")
    try:
        return read_given(path, SUITE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {suite}: {error}. Give a text file in UTF-8.") from error
