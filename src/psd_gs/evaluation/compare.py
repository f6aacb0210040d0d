"""Rows of finished tasks to measures, and arms to differences: the numbers of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from psd_gs.errors import InputError
from psd_gs.evaluation.arms import BASE
from psd_gs.evaluation.statistics import Paired, paired
from psd_gs.rewards import names_of


class Scores(TypedDict, total=False):
    """What :func:`psd_gs.evaluation.scores.model_scores` finds."""

    mean: float | None
    min: float | None
    front: float | None
    back: float | None
    match: float | None
    right: float | None
    views: list[float | None]


class Janus(TypedDict):
    """What is read of :func:`psd_gs.evaluation.scores.janus`."""

    front_by: str
    opposite: float | None
    back_share: float | None
    front: list[float | None]


class Cost(TypedDict):
    """What a run cost, ``cost.json``."""

    steps: int
    seconds: float
    memory: float | None
    gaussians: int
    error: str | None
    machine: dict[str, str | int | None]


class _Files(TypedDict, total=False):
    folder: str  # where the row was read
    files: str  # the folder in it whose run was picked, if there were several


class Row(Cost, _Files):
    """What is read again of a finished task, ``eval.json``."""

    arm: str
    prompt: str
    group: str
    seed: int
    suite: str
    preset: str
    prior: str
    optimized: str
    version: str
    weights: dict[str, str]
    scores: dict[str, Scores]
    janus: Janus


@dataclass(frozen=True)
class Measure:
    """One number of a row.

    Attributes:
        name: for tables.
        of: reads it; NaN where there is none.
        better: 1 if higher is better, -1 if lower is, 0 if neither.
    """

    name: str
    of: Callable[[Row], float]
    better: int = 1


@dataclass(frozen=True)
class Results:
    """Tasks that every arm has finished.

    Attributes:
        arms: names, in the order of the tables.
        seeds: of each prompt, the prompts in the order of the suite.
        rows: by arm, prompt and seed.
        left_out: tasks that lack a partner in another arm.
    """

    arms: list[str]
    seeds: dict[str, list[int]]
    rows: dict[tuple[str, str, int], Row]
    left_out: int

    def of(self, arm: str, prompt: str) -> list[Row]:
        """One row per seed."""
        return [self.rows[arm, prompt, seed] for seed in self.seeds[prompt]]

    def by_prompt(self, arm: str, measure: Measure) -> Float[np.ndarray, " P"]:
        """One value per prompt: the mean over its seeds, NaN where none has a value."""
        values = [[measure.of(row) for row in self.of(arm, prompt)] for prompt in self.seeds]
        return np.array([mean(some) for some in values])

    def mean(self, arm: str, measure: Measure) -> float:
        """Over prompts, seeds averaged first."""
        return mean(self.by_prompt(arm, measure).tolist())

    def only(self, prompts: Sequence[str]) -> Results:
        """The same for some of the prompts."""
        return replace(self, seeds={prompt: self.seeds[prompt] for prompt in prompts})

    @property
    def groups(self) -> dict[str, list[str]]:
        """Headings of the suite to their prompts."""
        out: dict[str, list[str]] = {}
        for prompt in self.seeds:
            out.setdefault(self.of(self.arms[0], prompt)[0]["group"], []).append(prompt)
        return out


def mean(values: Sequence[float]) -> float:
    """Of the finite ones; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def results(rows: Iterable[Row], arms: Sequence[str] = (), prompts: Sequence[str] = ()) -> Results:
    """Those of the rows that can be compared.

    Args:
        rows: of :func:`psd_gs.evaluation.sweep.collect`.
        arms: which, in order; by default all, in the order found.
        prompts: their order; others follow as found.

    Raises:
        InputError: no prompt and seed that all arms have.
    """
    table = {(row["arm"], row["prompt"], row["seed"]): row for row in rows}
    arms = list(arms or dict.fromkeys(arm for arm, _, _ in table))
    tasks = {arm: {(p, seed) for a, p, seed in table if a == arm} for arm in arms}
    common = set.intersection(*tasks.values())
    if not common:
        counts = ", ".join(f"{arm} {len(done)}" for arm, done in tasks.items())
        raise InputError(f"expected tasks that all arms have finished, received none in common ({counts}).")
    order = dict.fromkeys([*prompts, *(prompt for _, prompt, _ in table)])
    seeds = {prompt: sorted(seed for p, seed in common if p == prompt) for prompt in order}
    kept = {(arm, *task): table[arm, *task] for arm in arms for task in common}
    left_out = sum(map(len, tasks.values())) - len(kept)
    return Results(arms, {prompt: some for prompt, some in seeds.items() if some}, kept, left_out)


# --- measures --------------------------------------------------------------------------------------------------------


def score_of(model: str, part: str) -> Callable[[Row], float]:
    """Reads ``scores[model][part]``."""

    def read(row: Row) -> float:
        return _number(row["scores"].get(model, {}).get(part))

    return read


def janus_of(part: str) -> Callable[[Row], float]:
    """Reads ``janus[part]``."""
    return lambda row: _number(row["janus"].get(part))


def cost_of(part: str) -> Callable[[Row], float]:
    """Reads a number of the run itself."""
    return lambda row: _number(row.get(part))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def judges(row: Row) -> list[str]:
    """Models that scored and were not optimized."""
    return held_out(row["optimized"], row["scores"])


def held_out(reward: str, models: Iterable[str]) -> list[str]:
    """Those of the models that are not in the reward's expression."""
    climbed = {reward, *names_of(reward)}
    return [name for name in models if not climbed & {name, name.partition("=")[0]}]


def headline(row: Row) -> list[Measure]:
    """What arms are compared by: the first judge in all respects, the others' means, the proxy for two faces, and
    last the reward that was optimized."""
    judging = judges(row)
    parts = {
        "mean": "",
        "worst_set": ", worse set",
        "min": ", worst view",
        "back": ", back",
        "match": ", prompt match",
    }
    found = [Measure(judging[0] + text, score_of(judging[0], part)) for part, text in parts.items()] if judging else []
    found += [Measure(name, score_of(name, "mean")) for name in judging[1:]]
    found.append(Measure("front seen behind", janus_of("back_share"), -1))
    found.append(Measure("opposite views alike", janus_of("opposite"), -1))
    if row["optimized"] in row["scores"]:
        found.append(Measure(f"{row['optimized']} (optimized)", score_of(row["optimized"], "mean")))
    return found


# --- comparisons -----------------------------------------------------------------------------------------------------


def pairs(arms: Sequence[str], against: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Which arms are set against which: all against the base, and the first one against all others.

    Args:
        arms: in order.
        against: instead: all others against these.

    Raises:
        InputError: ``against`` names an arm that is not there.
    """
    if missing := [name for name in against if name not in arms]:
        raise InputError(f"against: expected arms of {', '.join(arms)}, received {', '.join(missing)}.")
    if against:
        return [(arm, other) for other in against for arm in arms if arm not in against]
    base = BASE if BASE in arms else arms[-1]
    first = next((arm for arm in arms if arm != base), arms[0])
    found = [(arm, base) for arm in arms if arm != base]
    return found + [(first, other) for other in arms if other not in (first, base)]


def compare(found: Results, first: str, second: str, measure: Measure) -> Paired | None:
    """Two arms by one measure."""
    return paired(found.by_prompt(first, measure), found.by_prompt(second, measure))
