"""What annotators said of pairs: one JSON line per answer, and how far they agree."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from psd_gs.errors import FormatError, InputError
from psd_gs.files import writing

logger = logging.getLogger(__name__)

VERDICTS = {"1": -2, "2": -1, "3": 0, "4": 1, "5": 2, "skip": None}
"""Key to degree: how much better the right one is; None is no opinion at all."""


@dataclass(frozen=True)
class Answer:
    """One verdict on one pair.

    Attributes:
        prompt: of both runs.
        left: run folder that was shown on the left, relative to the file of answers where that is possible.
        right: the other one.
        verdict: 2 (the right one is much better) to -2 (the left one is), 0 for a tie; None if it was skipped.
        annotator: who said so.
        repeat: how often this annotator had been asked about this pair before.
        seconds: between showing and answering.
        time: of the answer, ISO 8601.
    """

    prompt: str
    left: str
    right: str
    verdict: int | None
    annotator: str = "anonymous"
    repeat: int = 0
    seconds: float = 0.0
    time: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """Both runs, in one order whichever side they were on."""
        return (self.left, self.right) if self.left <= self.right else (self.right, self.left)

    @property
    def toward_second(self) -> int | None:
        """The verdict in the order of :attr:`pair`."""
        return self.verdict if self.verdict is None or self.left <= self.right else -self.verdict


def read_answers(path: str | Path) -> list[Answer]:
    """All complete lines of a file of answers; a line that a crash tore is left out.

    Raises:
        FormatError: lines that are JSON but no answers.
        InputError: the file cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    out = []
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
        except ValueError:
            if line.strip():
                logger.warning("%s, line %d is torn and left out", path, number)
            continue
        out.append(_answer(data, f"{path}, line {number}"))
    return out


def _answer(data: object, where: str) -> Answer:
    if isinstance(data, dict):
        known = {field.name: data[field.name] for field in fields(Answer) if field.name in data}
        texts = (known.get(name) for name in ("prompt", "left", "right"))
        if all(isinstance(text, str) for text in texts) and known.get("verdict", "missing") in VERDICTS.values():
            return Answer(**known)
    raise FormatError(
        f"{where}: expected prompt, left, right and a verdict of -2 to 2 or null, received {str(data)[:80]}. "
        "Give a file that `psd-gs rank` wrote."
    )


def append_answer(path: str | Path, answer: Answer) -> None:
    """Add a line, on the disk when this returns; a torn line before it is closed first.

    Raises:
        OutputError: the file cannot be written; it is left as it was as far as possible.
    """
    path = Path(path)
    line = json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise


# --- agreement -------------------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How often two answers about the same pair name the same winner.

    Attributes:
        same: number of such pairs of answers (both ties count as the same).
        total: number of pairs of answers.
        alpha: Krippendorff's alpha of the degrees, 1 for perfect agreement, 0 for chance; None if undefined.
    """

    same: int
    total: int
    alpha: float | None


def agreement(answers: Iterable[Answer]) -> dict[str, Agreement]:
    """``repeats``: within the same annotator; ``annotators``: between the first answers of different ones."""
    by_pair: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.verdict is not None:
            by_pair[answer.pair].append(answer)
    within, between = [], []
    for group in by_pair.values():
        by_name: dict[str, list[int]] = defaultdict(list)
        for answer in group:
            by_name[answer.annotator].append(answer.toward_second or 0)
        within += list(by_name.values())
        between.append([values[0] for values in by_name.values()])
    return {"repeats": _agreement(within), "annotators": _agreement(between)}


def _agreement(units: Sequence[Sequence[int]]) -> Agreement:
    both = [pair for values in units for pair in combinations(values, 2)]
    same = sum((a > 0) - (a < 0) == (b > 0) - (b < 0) for a, b in both)
    return Agreement(same, len(both), krippendorff_alpha(units))


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Agreement beyond chance of values on an interval scale, ``1 - D_observed / D_expected``.

    Args:
        units: the values that each unit was given; those with fewer than two do not count.

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E, squared differences.
    """
    units = [values for values in units if len(values) > 1]
    pooled = [value for values in units for value in values]
    if not pooled:
        return None
    observed = sum(_squares(values) / (len(values) - 1) for values in units) / len(pooled)
    expected = _squares(pooled) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected if expected else None


def _squares(values: Sequence[float]) -> float:
    """Sum of the squared differences of all ordered pairs."""
    return 2 * (len(values) * sum(v * v for v in values) - sum(values) ** 2)
