"""What the judge says about a picture, and what follows from many such verdicts: measures, intervals, tables.

A verdict is the list of scores of every set of views (outer) with every caption (inner): the right caption first,
then the distractors, group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.evaluation.report import markdown_table
from psd_gs.evaluation.statistics import bootstrap
from psd_gs.rewards.base import Reward, group_score

Row = dict[str, Any]
Measure = Callable[[Row], float]

GROUPS = {"objects": slice(1, 5), "colours": slice(5, 8), "arrangements": slice(8, 11)}
"""Kinds of distractors, and where they stand among the captions."""


def captions(prompt: Row) -> list[str]:
    """The right caption, then all distractors, group by group."""
    return [prompt["prompt"], *(text for group in GROUPS for text in prompt["distractors"][group])]


@torch.no_grad()
def verdict(images: Float[Tensor, "S V 3 H W"], prompt: Row, models: dict[str, Reward]) -> dict[str, list[list[float]]]:
    """Scores of every model for every set (outer) and caption (inner, the right one first).

    The views of a set are judged together; a model that scores views one by one is averaged over them.
    """
    texts = captions(prompt)
    out = {}
    for name, model in models.items():
        sets = [group_score(model.score(views.expand(len(texts), *views.shape), texts, None)) for views in images]
        out[name] = [[round(float(s), 4) for s in scores] for scores in sets]
    return out


def logit_scale(model: Reward) -> float:
    """Factor from a model's score to the logit of its Bradley-Terry loss: embedded models standardize."""
    config = getattr(getattr(model, "network", None), "config", None)
    return float(getattr(config, "score_std", 1.0))


def right_score(row: Row, model: str = "judge") -> float:
    """Score of the right caption, mean over sets."""
    return float(np.mean([scores[0] for scores in row[model]]))


def worst_score(row: Row, model: str = "judge") -> float:
    """Score of the right caption in the worse set."""
    return min(scores[0] for scores in row[model])


def match_probability(row: Row, scale: float, model: str = "judge") -> float:
    """Probability of the right caption among its distractors, a softmax over the logits; mean over sets."""
    logits = scale * np.array(row[model])
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return float((odds[:, 0] / odds.sum(1)).mean())


def accuracy(row: Row, group: str | None = None, model: str = "judge") -> float:
    """Share of the sets in which the right caption beats all distractors (of one group)."""
    others = GROUPS[group] if group else slice(1, None)
    return float(np.mean([scores[0] > max(scores[others]) for scores in row[model]]))


def by_prompt(prompts: list[list[Row]], measure: Measure) -> Float[np.ndarray, " P"]:
    """One value per prompt: the mean of ``measure`` over its rows (seeds or draws)."""
    return np.array([np.mean([measure(row) for row in rows]) for rows in prompts])


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """``mean [low, high]`` of values that can have either sign."""
    low, high = bootstrap(values)
    return f"{np.mean(values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    return markdown_table([header, *rows])


def percent(values: Float[np.ndarray, " N"]) -> str:
    """Mean of shares."""
    return f"{100 * np.mean(values):.0f} %" if len(values) else ""


def yes(met: bool) -> str:
    return "yes" if met else "no"
