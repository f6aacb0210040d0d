"""What annotators said of pairs: one JSON line per answer, and how far they agree."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from psd_gs.errors import FormatError
from psd_gs.files import loads, locked, read_bounded, writing

logger = logging.getLogger(__name__)

Degree = Literal[-2, -1, 0, 1, 2]
VERDICTS: dict[str, Degree | None] = {"1": -2, "2": -1, "3": 0, "4": 1, "5": 2, "skip": None}
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
    verdict: Degree | None
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


BYTES = 64 << 20
"""Largest file of answers, a quarter of a million of them."""


def read_answers(path: str | Path) -> list[Answer]:
    """All complete lines of a file of answers; a line that a crash tore is left out.

    Raises:
        FormatError: lines that are JSON but no answers, or a file that is too large.
        InputError: the file cannot be read.
    """
    return _answers(read_bounded(path, BYTES), path, 1)


def _answers(data: bytes, path: str | Path, first: int) -> list[Answer]:
    out = []
    for number, line in enumerate(data.split(b"\n"), first):
        try:
            out += [loads(line, Answer)] if line.strip() else []
        except (json.JSONDecodeError, UnicodeDecodeError):
            logger.warning("%s, line %d is torn and left out", path, number)
        except ValueError as error:
            raise FormatError(
                f"{path}, line {number}: expected prompt, left, right and a verdict of -2 to 2 or null ({error}). "
                "Give a file that `psd-gs rank` wrote."
            ) from error
    return out


class AnswerFile:
    """A file of answers that others may append to as well.

    Args:
        path: JSON lines; need not exist.

    Attributes:
        answers: that were there at the last look.

    Raises:
        FormatError: see :func:`read_answers`.
        InputError: see :func:`read_answers`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.answers: list[Answer] = []
        self._seen, self._line = 0, 1
        self.look()

    def look(self) -> list[Answer]:
        """What was added since the last look; a last line that is not whole is left for the next one."""
        data = read_bounded(self.path, BYTES, self._seen) if self.path.exists() else b""
        end = data.rfind(b"\n") + 1
        with contextlib.suppress(ValueError):
            loads(data[end:], Answer)
            end = len(data)
        new = _answers(data[:end], self.path, self._line)
        self._seen += end
        self._line += data[:end].count(b"\n")
        self.answers += new
        return new


def append_answer(path: str | Path, answer: Answer, unless: Callable[[], bool] = lambda: False) -> bool:
    """Add a line, on the disk when this returns; a torn line before it is closed first.

    Args:
        path: JSON lines; held against other processes meanwhile.
        answer: what to add.
        unless: asked once nobody else can write; if True nothing is added.

    Returns:
        Whether it was added.

    Raises:
        OutputError: the file cannot be written; it is left as it was as far as possible.
    """
    path = Path(path)
    line = json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file, locked(file):
            if unless():
                return False
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
    return True


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
