"""Which pairs of runs are asked about, in which order, and which run is on the left."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

from psd_gs import runs
from psd_gs.errors import InputError
from psd_gs.ranking.answers import Answer

logger = logging.getLogger(__name__)

MOST = 10_000
"""Pairs that are asked about; of more, so many are drawn, the same for all annotators."""
FILM = "turntable.mp4"


@dataclass(frozen=True)
class Pair:
    """Two runs of a prompt as they are shown.

    Attributes:
        prompt: of both.
        left: name of a run, see :func:`name_of`.
        right: of the other.
        repeat: how often this annotator has been asked about it before.
    """

    prompt: str
    left: str
    right: str
    repeat: int = 0

    @property
    def key(self) -> str:
        """Short name that tells nothing of the runs."""
        text = json.dumps([*sorted((self.left, self.right)), self.repeat])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_runs(folders: Iterable[str | Path]) -> dict[str, list[Path]]:
    """Finished runs with a turntable, by prompt.

    Args:
        folders: run folders, or folders of them at any depth.

    Raises:
        InputError: a folder without finished runs.
    """
    found: dict[str, dict[Path, None]] = defaultdict(dict)
    for folder in map(Path, folders):
        inside = sorted(path.parent for path in folder.rglob(FILM) if runs.is_finished(path.parent))
        if not inside:
            raise InputError(
                f"{folder}: expected finished runs (folders with {FILM} and {runs.ASSET}), received "
                f"{'none' if folder.is_dir() else 'no such folder'}. Make some with `psd-gs generate` or `batch`."
            )
        for run in inside:
            found[_prompt_of(run)][run.resolve()] = None
    return {prompt: list(some) for prompt, some in found.items()}


def _prompt_of(run: Path) -> str:
    return runs.read_record(run, "prompt")["prompt"]


def name_of(run: Path, answers: Path) -> str:
    """A run as the file of answers names it: relative to that file if it lies below its folder, else absolute."""
    run, root = run.resolve(), answers.resolve().parent
    return (run.relative_to(root) if run.is_relative_to(root) else run).as_posix()


def folder_of(name: str, answers: Path) -> Path:
    """The run folder of a name."""
    return answers.resolve().parent / name


def plan(
    names: Mapping[str, Sequence[str]], answers: Iterable[Answer], annotator: str, *, repeats: int = 0, seed: int = 0
) -> list[Pair]:
    """What is left to ask ``annotator``, in order: new pairs, then repeats with sides exchanged.

    Order and sides depend on nothing but the arguments, so whoever resumes finds the same plan.

    Args:
        names: of the runs, by prompt.
        answers: all that were given, by anyone.
        annotator: who is asked.
        repeats: how many pairs are to be asked a second time, to see how steady the answers are.
        seed: of order and sides.
    """
    times: dict[tuple[str, str], int] = defaultdict(int)
    for answer in answers:
        if answer.annotator == annotator:
            times[answer.pair] += 1
    pairs = _pairs(names, seed)
    Random(f"order {seed} {annotator}").shuffle(pairs)
    shown = [_sided(prompt, a, b, seed, annotator) for prompt, a, b in pairs]
    again = [Pair(pair.prompt, pair.right, pair.left, 1) for pair in shown[:repeats]]
    return [
        pair for pair in shown + again if times[min(pair.left, pair.right), max(pair.left, pair.right)] <= pair.repeat
    ]


def _pairs(names: Mapping[str, Sequence[str]], seed: int) -> list[tuple[str, str, str]]:
    """All pairs of runs of one prompt, or :data:`MOST` of them; never all at once in memory if there are more."""
    groups = [(prompt, sorted(set(some))) for prompt, some in sorted(names.items())]
    ends = list(accumulate(math.comb(len(some), 2) for _, some in groups))
    total = ends[-1] if ends else 0
    if total > MOST:
        logger.warning("of %d pairs %d are drawn", total, MOST)
    out = []
    for i in range(total) if total <= MOST else Random(f"pairs {seed}").sample(range(total), MOST):
        group = bisect(ends, i)
        prompt, some = groups[group]
        place = i - (ends[group - 1] if group else 0)
        second = (1 + math.isqrt(1 + 8 * place)) // 2  # of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ...
        out.append((prompt, some[place - second * (second - 1) // 2], some[second]))
    return out


def _sided(prompt: str, a: str, b: str, seed: int, annotator: str) -> Pair:
    swap = Random(f"sides {seed} {annotator} {a} {b}").random() < 0.5
    return Pair(prompt, b, a) if swap else Pair(prompt, a, b)
