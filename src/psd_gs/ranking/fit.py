"""Fit a reward to answers: a linear head on the features of another reward.

Each answer is a difference of features, ``d = f(right) - f(left)``, and a degree y in {-2, ..., 2}.
With ``z = w . d`` the loss of one answer is, turned so that y >= 0,

- bt: ``-(1 - e) log sigmoid(z - m) - e log sigmoid(m - z)``, Bradley-Terry with the margin ``m = MARGIN * y / 2``
  (Llama 2, arXiv 2307.09288, eq. 2) and smoothed labels (e = SMOOTHING), so that the best z is finite; a tie counts
  half for either side;
- ipo: ``(z - y / 2 / (2 BETA))^2``, a bounded target (Azar et al., arXiv 2310.12036, eq. 17), here growing with the
  degree.

Ties weigh TIE. The penalty ``l * n * |w|^2`` spares the weight of the base's own score, so without
evidence the base remains. Both problems are convex and are solved to the end: nothing is random.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from psd_gs.errors import ConfigError, InputError
from psd_gs.evaluation.statistics import wilson
from psd_gs.ranking.answers import Answer, read_answers
from psd_gs.ranking.pairs import folder_of
from psd_gs.rewards.base import FeatureReward, Reward
from psd_gs.rewards.fitted import LinearHead, features_and_scores, save_fitted
from psd_gs.runs import ASSET

Loss = Literal["bt", "ipo"]

MARGIN, SMOOTHING, BETA, TIE = 1.0, 0.1, 0.5, 0.3
PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Tried for l; features are standardized."""
MIN_PAIRS, MIN_PROMPTS = 50, 5
"""Fewer decided pairs leave a 95 % interval of the accuracy wider than 14 points to either side; fewer
prompts cannot be held out in five folds."""


@dataclass(frozen=True)
class Comparisons:
    """Answers as tensors; ties included, skipped ones not.

    Attributes:
        features: of every run that was compared; the last one is the base's score.
        left: row of the left run of each answer.
        right: row of the right one.
        degree: -2 to 2, positive if the right one is better.
        prompts: of each answer.
    """

    features: Float[Tensor, "R D+1"]
    left: Int[Tensor, " N"]
    right: Int[Tensor, " N"]
    degree: Float[Tensor, " N"]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """Share of decided pairs whose winner is named, with its 95 % interval."""

    share: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Fit:
    """A fitted head and what it is worth.

    Attributes:
        head: fitted on everything.
        penalty: l that was chosen.
        held_out: accuracy on prompts that were not fitted on.
        base: accuracy of the unfitted reward on the same pairs.
        gain: difference of both with its 95 % interval, by resampling prompts.
    """

    head: LinearHead
    penalty: float
    held_out: Accuracy
    base: Accuracy
    gain: tuple[float, float, float]


def fit_reward(path: str | Path, base: Reward, base_name: str, out: str | Path, loss: Loss = "bt") -> Fit:
    """Fit ``base`` to a file of answers and save it; ``out`` is a reward's name from then on.

    Args:
        path: what ``psd-gs rank`` wrote; the runs must still be where they were.
        base: whose features are read.
        base_name: its expression.
        out: folder.
        loss: ``bt`` or ``ipo``.

    Raises:
        ConfigError: ``base`` does not tell its features.
        InputError: too few answers, or runs that are gone.
    """
    if not isinstance(base, FeatureReward):
        raise ConfigError(
            f"--from {base_name}: expected a reward whose features can be read, received a sum, a function or a fitted "
            "one. Choose mini, hpsv2.1, pickscore, imagereward, clip or aesthetic."
        )
    answers = [answer for answer in read_answers(path) if answer.verdict is not None]
    check_enough(answers)
    fit = cross_validated(comparisons(answers, Path(path), base), loss)
    config: dict[str, Any] = {
        "base": base_name,
        "loss": loss,
        "penalty": fit.penalty,
        "answers": len(answers),
        "prompts": len({answer.prompt for answer in answers}),
        "annotators": sorted({answer.annotator for answer in answers}),
        "data_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "held_out_accuracy": fit.held_out.__dict__,
        "base_accuracy": fit.base.__dict__,
        "gain": fit.gain,
    }
    save_fitted(out, fit.head, config)
    return fit


def check_enough(answers: Sequence[Answer]) -> None:
    """Refuse what cannot show that anything was learned.

    Raises:
        InputError: fewer than :data:`MIN_PAIRS` decided pairs or :data:`MIN_PROMPTS` prompts; tells how many more.
    """
    decided = [answer for answer in answers if answer.verdict]
    pairs, prompts = {answer.pair for answer in decided}, {answer.prompt for answer in decided}
    if len(pairs) < MIN_PAIRS:
        width = 100 * 0.98 / math.sqrt(MIN_PAIRS)
        raise InputError(
            f"expected at least {MIN_PAIRS} different pairs with a winner, received {len(pairs)}: with fewer, the "
            f"95 % interval of the accuracy is wider than {width:.0f} points to either side, and a head that learned "
            f"something looks like a coin. Answer {MIN_PAIRS - len(pairs)} more with `psd-gs rank`; a few hundred are "
            "better."
        )
    if len(prompts) < MIN_PROMPTS:
        raise InputError(
            f"expected pairs of at least {MIN_PROMPTS} prompts, received {len(prompts)}: accuracy is measured on "
            f"prompts that were left out. Compare runs of {MIN_PROMPTS - len(prompts)} more."
        )


@torch.no_grad()
def comparisons(answers: Sequence[Answer], path: Path, base: FeatureReward) -> Comparisons:
    """Features of the runs that were compared, over the eight evaluation views.

    Raises:
        InputError: a run is no longer there.
    """
    from psd_gs.export.formats import load
    from psd_gs.scoring import evaluation_cameras, evaluation_images, render_size

    size = render_size(base)
    cameras = evaluation_cameras(size)
    rows: dict[tuple[str, str], int] = {}
    features: list[Tensor] = []
    for answer in answers:
        for name in (answer.left, answer.right):
            if (name, answer.prompt) in rows:
                continue
            splat = folder_of(name, path) / ASSET
            if not splat.is_file():
                raise InputError(f"{path} compares {splat}, which is not there. Move it back, with the file beside it.")
            images = evaluation_images(load(splat), size)
            seen, scores = features_and_scores(base, images, [answer.prompt] * len(images), cameras)
            both = torch.cat([seen.float(), scores.float()[..., None]], -1)
            rows[name, answer.prompt] = len(features)
            features.append(both.flatten(0, -2).mean(0).cpu())
    return Comparisons(
        torch.stack(features),
        torch.tensor([rows[answer.left, answer.prompt] for answer in answers]),
        torch.tensor([rows[answer.right, answer.prompt] for answer in answers]),
        torch.tensor([float(answer.verdict or 0) for answer in answers]),
        tuple(answer.prompt for answer in answers),
    )


# --- losses ----------------------------------------------------------------------------------------------------------


def bt_loss(z: Float[Tensor, " N"], degree: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Bradley-Terry with margin and smoothed labels; see the module."""
    sign = torch.where(degree < 0, -1.0, 1.0).to(z)
    away = sign * z - MARGIN * degree.abs() / 2
    wrong = torch.where(degree == 0, 0.5, SMOOTHING).to(z)
    return -(1 - wrong) * logsigmoid(away) - wrong * logsigmoid(-away)


def ipo_loss(z: Float[Tensor, " N"], degree: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Squared distance to a bounded target; see the module."""
    return (z - degree / (4 * BETA)).square()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bt": bt_loss, "ipo": ipo_loss}


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_head(data: Comparisons, loss: Loss, penalty: float, rows: Tensor | None = None) -> LinearHead:
    """Weights that minimize the loss of some answers (all of them if ``rows`` is None).

    The result is scaled so that the scores of the compared runs have standard deviation 1.
    """
    rows = torch.arange(len(data.degree)) if rows is None else rows
    used = data.features[torch.cat([data.left[rows], data.right[rows]]).unique()].double()
    mean = used.mean(0)
    std = used.std(0).clamp_min(1e-6 * (1 + mean.abs()))
    degree = data.degree[rows].double()
    difference = (data.features[data.right[rows]] - data.features[data.left[rows]]).double() / std
    weights = torch.where(degree == 0, TIE, 1.0).double()
    ridge = torch.full_like(mean, penalty)
    ridge[-1] = 1e-6
    fitted = newton(difference, degree, weights / weights.sum(), LOSSES[loss], ridge) / std
    spread = ((used - mean) @ fitted).std().clamp_min(1e-9)
    return LinearHead(mean.float(), (fitted / spread).float())


def newton(
    difference: Float[Tensor, "N D"],
    degree: Float[Tensor, " N"],
    weights: Float[Tensor, " N"],
    loss: Callable[[Tensor, Tensor], Tensor],
    ridge: Float[Tensor, " D"],
    steps: int = 30,
) -> Float[Tensor, " D"]:
    """The w that minimizes ``sum weights * loss(difference @ w, degree) + sum ridge * w^2``, by Newton's method.

    The best w is ``ridge^-1 difference^T v``, so the systems to solve are as large as there are answers, not
    features (the representer theorem).
    """
    scaled = difference / ridge
    gram = scaled @ difference.T
    v = torch.zeros_like(degree)

    def value(v: Tensor) -> Tensor:
        z = gram @ v
        return (weights * loss(z, degree)).sum() + v @ z

    for _ in range(steps):
        z = (gram @ v).requires_grad_()
        (slope,) = torch.autograd.grad((weights * loss(z, degree)).sum(), z, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), z)
        residual = slope.detach() + 2 * v
        move = torch.linalg.solve(curvature[:, None] * gram + 2 * torch.eye(len(v)).to(v), residual)
        before, size = value(v), 1.0
        while value(v - size * move) > before and size > 1e-6:
            size /= 2
        v = v - size * move
        if float(residual.abs().max()) < 1e-10:
            break
    return scaled.T @ v


def folds_of(prompts: Sequence[str], count: int, seed: int = 0) -> list[Tensor]:
    """Rows of each fold; the answers about a prompt stay together."""
    names = sorted(set(prompts))
    Random(seed).shuffle(names)
    fold = {name: i % count for i, name in enumerate(names)}
    return [
        torch.tensor([row for row, prompt in enumerate(prompts) if fold[prompt] == k])
        for k in range(min(count, len(names)))
    ]


def predicted(head: LinearHead, data: Comparisons, rows: Tensor) -> Float[Tensor, " n"]:
    """Score of the right run minus that of the left one."""
    return (data.features[data.right[rows]] - data.features[data.left[rows]]) @ head.weight


def choose_penalty(data: Comparisons, loss: Loss, rows: Tensor) -> float:
    """The one with the most winners right on held-out prompts among ``rows``; the largest if several are."""
    prompts = [data.prompts[row] for row in rows.tolist()]
    folds = folds_of(prompts, 4, seed=1)
    right = {}
    for penalty in PENALTIES:
        total = 0
        for fold in folds:
            kept = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, fold, False)
            head = fit_head(data, loss, penalty, rows[kept])
            total += int(_right(predicted(head, data, rows[fold]), data.degree[rows[fold]]).sum())
        right[penalty] = total
    return max(PENALTIES, key=lambda penalty: (right[penalty], penalty))


def _right(z: Tensor, degree: Tensor) -> Tensor:
    """Which decided answers ``z`` gets right."""
    return z * degree > 0


def cross_validated(data: Comparisons, loss: Loss) -> Fit:
    """Five folds by prompt, the penalty chosen anew within each; then a head of everything."""
    z = torch.zeros(len(data.degree))
    for fold in folds_of(data.prompts, MIN_PROMPTS):
        rows = torch.ones(len(z), dtype=torch.bool).index_fill_(0, fold, False).nonzero()[:, 0]
        head = fit_head(data, loss, choose_penalty(data, loss, rows), rows)
        z[fold] = predicted(head, data, fold)
    decided = data.degree != 0
    fitted = _right(z, data.degree)[decided]
    base = _right(data.features[data.right, -1] - data.features[data.left, -1], data.degree)[decided]
    prompts = [prompt for prompt, kept in zip(data.prompts, decided.tolist(), strict=True) if kept]
    everything = torch.arange(len(z))
    penalty = choose_penalty(data, loss, everything)
    return Fit(fit_head(data, loss, penalty), penalty, accuracy(fitted), accuracy(base), gain(fitted, base, prompts))


# --- statistics ------------------------------------------------------------------------------------------------------


def accuracy(right: Tensor) -> Accuracy:
    """Share of True with Wilson's 95 % score interval."""
    return Accuracy(float(right.double().mean()), *wilson(float(right.sum()), right.numel()), right.numel())


def gain(fitted: Tensor, base: Tensor, prompts: Sequence[str], draws: int = 2000) -> tuple[float, float, float]:
    """Mean of ``fitted - base`` with its 95 % interval over resampled prompts."""
    names = sorted(set(prompts))
    index = torch.tensor([names.index(prompt) for prompt in prompts])
    change = fitted.double() - base.double()
    sums = torch.zeros(len(names)).double().index_add_(0, index, change)
    counts = torch.zeros(len(names)).double().index_add_(0, index, torch.ones_like(change))
    picks = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(0))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975]).double()).tolist()
    return float(change.mean()), low, high
