"""Paired statistics: is one arm better than another on the same prompts and seeds, by how much, how surely?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Confidence level of every interval."""


def bootstrap(
    values: Sequence[float] | np.ndarray, level: float = LEVEL, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling the values (Efron 1979)."""
    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(len(data), size=(draws, len(data)))
    low, high = np.quantile(data[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(wins: float, n: int) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), which stays in [0, 1] and is not empty at 0 or ``n`` wins.

    Args:
        wins: how many of ``n``; a tie may count as a half.
        n: at least 1.
    """
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    share = wins / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def cohens_d(differences: Float[np.ndarray, " P"]) -> float:
    """Paired effect size d_z (Cohen 1988): mean over standard deviation of the differences; NaN if they are equal."""
    data = np.asarray(differences, dtype=float)
    spread = data.std(ddof=1) if len(data) > 1 else 0.0
    return float(data.mean() / spread) if spread > 1e-12 * max(1.0, float(np.abs(data).max())) else math.nan


def cliffs_delta(first: Float[np.ndarray, " N"], second: Float[np.ndarray, " M"]) -> float:
    """P(a > b) - P(a < b) for random a and b of the two samples (Cliff 1993); in [-1, 1], blind to the pairing."""
    return float(np.sign(np.subtract.outer(np.asarray(first, float), np.asarray(second, float))).mean())


@dataclass(frozen=True)
class Paired:
    """One measure of two arms, compared prompt by prompt (seeds averaged first).

    Attributes:
        n: prompts.
        mean: of the differences, first minus second.
        interval: bootstrap over prompts.
        wins: share of the prompts in which the first is higher; ties count as a half.
        wins_interval: Wilson's.
        d: paired Cohen's d.
        delta: Cliff's delta.
    """

    n: int
    mean: float
    interval: tuple[float, float]
    wins: float
    wins_interval: tuple[float, float]
    d: float
    delta: float


def paired(first: Float[np.ndarray, " P"], second: Float[np.ndarray, " P"]) -> Paired | None:
    """Compare two arms over the prompts where both have a finite value; None if there are none.

    Args:
        first: one value per prompt.
        second: of the other arm, in the same order.
    """
    both = np.isfinite(first) & np.isfinite(second)
    a, b = np.asarray(first, float)[both], np.asarray(second, float)[both]
    if not len(a):
        return None
    differences = a - b
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    return Paired(
        len(a),
        float(differences.mean()),
        bootstrap(differences),
        wins / len(a),
        wilson(wins, len(a)),
        cohens_d(differences),
        cliffs_delta(a, b),
    )
