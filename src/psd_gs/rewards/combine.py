"""Several rewards as one: ``hpsv2.1,pickscore:0.5`` is a weighted sum of standardized scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import ConfigError
from psd_gs.rewards.base import Reward
from psd_gs.rewards.parked import move


@dataclass(frozen=True)
class Term:
    """One item of an expression.

    Attributes:
        name: ``imagereward``, ``imagereward=PATH``, ``module:function`` or ``file.py:function``.
        weight: its factor.
    """

    name: str
    weight: float = 1.0


def parse_expression(text: str) -> list[Term]:
    """The items of ``a,b:0.5``: names apart by commas, each with a weight (1 unless told) after its last colon.

    Raises:
        ConfigError: an empty item, or a weight that is zero or not finite.
    """
    terms = []
    for item in text.split(","):
        name, colon, number = item.strip().rpartition(":")
        try:
            term = Term(name.strip(), float(number)) if colon else Term(item.strip())
        except ValueError:
            term = Term(item.strip())  # the colon belongs to a function or a drive
        if not term.name or not math.isfinite(term.weight) or term.weight == 0:
            raise ConfigError(
                f"reward {text!r}: expected names with optional weights, such as hpsv2.1,pickscore:0.5, "
                f"received {item.strip()!r}."
            )
        terms.append(term)
    return terms


@dataclass(frozen=True)
class Scored:
    """A reward in a sum.

    Attributes:
        reward: what scores.
        weight: its factor.
        mean: typical score, subtracted.
        std: typical standard deviation of its scores, divided by.
    """

    reward: Reward
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0


class WeightedSum:
    """A :class:`~psd_gs.rewards.base.Reward`: ``sum_k weight_k (score_k - mean_k) / std_k``.

    Means and deviations are constants of each reward (of a render's scores, roughly; see
    ``psd_gs.entries.REWARDS``), never estimated from the images at hand: the same images always get
    the same score, whatever was scored before, and an interrupted run goes on exactly. Within a pair
    of candidates a z-score proper would only leave the sign.

    A score per group counts for each of its views, so pooling over views (mean, min, softmin) acts
    on the sum; it is a score per group only if all are.

    Args:
        parts: at least one.
        name: for logs and messages.
    """

    def __init__(self, parts: Sequence[Scored], name: str) -> None:
        self.parts, self.name = tuple(parts), name

    @property
    def differentiable(self) -> bool:
        return all(part.reward.differentiable for part in self.parts)

    @property
    def views(self) -> int:
        """What a group must have for all parts."""
        return max(getattr(part.reward, "views", 1) for part in self.parts)

    @property
    def render_size(self) -> int | None:
        """The largest of the parts'; None, the default of rewards, if any has none."""
        sizes: list[Any] = [getattr(part.reward, "render_size", None) for part in self.parts]
        return max(sizes) if all(sizes) else None

    def to(self, device: torch.device | str) -> None:
        for part in self.parts:
            move(part.reward, device)

    def score(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """The sum, float32; NaN where any part gives none.

        Args:
            images: sRGB in [0, 1].
            prompts: G prompts, one per group.
            cameras: G*V cameras; None where unknown.

        Raises:
            InputError: shapes do not agree.
        """
        scores = [
            part.weight * (part.reward.score(images, prompts, cameras).float() - part.mean) / part.std
            for part in self.parts
        ]
        if any(score.ndim == 2 for score in scores):
            scores = [score if score.ndim == 2 else score[:, None] for score in scores]
        return torch.stack(torch.broadcast_tensors(*scores)).sum(0)
