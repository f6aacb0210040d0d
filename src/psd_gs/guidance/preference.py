"""Preference scores: what a judge of the prior's clean estimates adds to the base score.

PSD (2603.01594), re-derived: from one render and one timestep, N noises give N one-step clean estimates;
the same estimates are decoded, ranked and contrasted. In epsilon the pair's contrast is
``(eps_w - noise_w) - (eps_l - noise_l) = -(alpha / sigma) (x0_w - x0_l)``, hence in x0 a descent step moves
the render from the loser's estimate toward the winner's. No gradient of the reward reaches the render,
which moves only along directions that the denoiser can paint; one may choose the noises (``PSDConfig.turn``).
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.guidance.config import JudgingConfig, PairConfig, PSDConfig, Scale
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.rewards.base import Reward, group_score

GAP_DECAY = 0.99
GAP_CLIP = 3.0
TYPICAL_WEIGHT = 2.0

logger = logging.getLogger(__name__)


def judge(
    reward: Reward, images: Float[Tensor, "G V 3 H W"], prompt: str, cameras: Cameras, config: JudgingConfig
) -> Float[Tensor, "G U"]:
    """Scores per unit of comparison: U = 1 (pair group) or U = V (pair view).

    A reward that judges a group as a whole is asked about each view as a group of one where the pair is per view.
    """
    groups, views = images.shape[:2]

    def singly(prompts: list[str]) -> Float[Tensor, "G V"]:
        return reward.score(images.flatten(0, 1)[:, None], prompts, cameras).reshape(groups, views)

    if config.reward_prompt == "view":
        prompts = directed(prompt)
        scores = singly([prompts[i] for i in direction_index(cameras).tolist()])
    else:
        scores = reward.score(images, [prompt] * groups, cameras)
    if config.pair == "group":
        return group_score(scores, config.pooling, config.pooling_temperature)[:, None]
    return scores if scores.ndim == 2 else singly([prompt] * groups * views)


def advantages(rewards: Float[Tensor, "N G U"]) -> tuple[Float[Tensor, "N G U"], Float[Tensor, "G U"]]:
    """Weights of N estimates from their rewards, and the reward gap.

    Twice the z-score over N (the evolution-strategy gradient, 1703.03864), and twice the standard deviation:
    for N = 2 exactly +1 and -1, and the difference of the two rewards. The weights sum to zero; equal rewards
    give zero.
    """
    centred = rewards - rewards[:1]  # exact for close scores, so that +-1 comes out to rounding
    centred = centred - centred.mean(0)
    spread = centred.square().mean(0).sqrt()
    return 2 / len(rewards) * centred / spread.clamp_min(torch.finfo(spread.dtype).tiny), 2 * spread


SCALES: dict[Scale, Callable[[Tensor, Tensor, float], Tensor]] = {
    "gap": lambda gap, mean, threshold: (gap / mean).clamp(0, GAP_CLIP),
    "sign": lambda gap, mean, threshold: torch.ones_like(gap),
    "ramp": lambda gap, mean, threshold: (gap / threshold).clamp(0, 1),
    "bt": lambda gap, mean, threshold: 2 * torch.sigmoid(gap / mean) - 1,
}
"""Confidence kappa from the gap ``[G, U]``, its running mean and the threshold."""


def contrast(estimates: Float[Tensor, "N G V C h w"], weights: Float[Tensor, "N G U"]) -> Float[Tensor, "G V C h w"]:
    """The preference score in x0: minus the weighted sum of the estimates; for a pair ``-(x0_w - x0_l)``."""
    return -(weights[..., None, None, None] * estimates).sum(0)


def group_norm(x: Float[Tensor, "G V C h w"]) -> Float[Tensor, " G"]:
    """Euclidean norm of each group."""
    return x.flatten(1).norm(dim=1)


def guarded(
    score: Float[Tensor, "G V C h w"], reference: Float[Tensor, " G"], ratio: float
) -> Float[Tensor, "G V C h w"]:
    """Shrink each group of ``score`` to a norm of at most ``ratio * reference``."""
    if math.isinf(ratio):
        return score
    norm = group_norm(score).clamp_min(torch.finfo(score.dtype).tiny)
    return score * (ratio * reference / norm).clamp(max=1)[:, None, None, None, None]


def take(x: Float[Tensor, "N G V C h w"], index: Int[Tensor, "G U"]) -> Float[Tensor, "G V C h w"]:
    """The noise that ``index`` names for each group (U = 1) or view (U = V)."""
    return x.gather(0, index[None, :, :, None, None, None].expand(1, *x.shape[1:])).squeeze(0)


@dataclass(frozen=True)
class Candidates:
    """What a preference score decides on: G groups under N noises.

    Attributes:
        estimates: clean estimates, those that were decoded and scored.
        rewards: their scores, per group or per view; a unit with a non-finite score has no say and is counted.
        residuals: the base score's ``x0 - target`` under the same noises (a single one for a method without noise).
        unguided: residuals toward the text-only estimates.
        votes: scores of further judges.
    """

    estimates: Float[Tensor, "N G V C h w"]
    rewards: Float[Tensor, "N G U"]
    residuals: Float[Tensor, "N G V C h w"]
    unguided: Float[Tensor, "N G V C h w"] | None = None
    votes: list[Float[Tensor, "N G U"]] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What a preference says about G groups.

    Attributes:
        score: a residual in x0 to add to the base residual.
        best: index of the winning noise.
        worst: index of the losing noise.
        logs: scalars.
    """

    score: Float[Tensor, "G V C h w"]
    best: Int[Tensor, "G U"]
    worst: Int[Tensor, "G U"]
    logs: dict[str, Tensor]

    def __getitem__(self, groups: Tensor) -> Verdict:
        """The groups that integer indices pick."""
        return replace(self, score=self.score[groups], best=self.best[groups], worst=self.worst[groups])


def acts(config: JudgingConfig, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
    """Which groups are judged in this step; ``t`` on the CPU, so that nothing waits for a device."""
    on = config.start <= progress <= config.end and step % config.every == 0
    return (t <= config.t_max) & on


class PairPreference(ABC):
    """A preference score from ranked estimates; :class:`PSD`, DreamDPO and RewardSDS. Stateless unless overridden."""

    def __init__(self, config: PairConfig) -> None:
        self.config = config

    def acts(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        """Which groups are judged in this step."""
        return acts(self.config, progress, step, t)

    @abstractmethod
    def __call__(self, candidates: Candidates) -> Verdict:
        """Rank, and say what to add to the mean of the base residuals."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - nothing to restore is the default
        """Continue where ``state_dict`` was taken."""


class PSD(PairPreference):
    """Preference score distillation with its running state: the mean gap and the count of pairs without a verdict."""

    config: PSDConfig

    def __init__(self, config: PSDConfig, device: torch.device) -> None:
        super().__init__(config)
        self.gap_mean = torch.tensor(torch.nan, device=device)
        self.nan_pairs = torch.tensor(0, device=device)
        if config.weight > TYPICAL_WEIGHT and math.isinf(config.guard):
            logger.warning(
                "psd weight %g without a guard: above %g renders leave the prior's typical set",
                config.weight,
                TYPICAL_WEIGHT,
            )

    def acts(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        return super().acts(progress, step, t) & (self.config.weight > 0)

    def __call__(self, candidates: Candidates) -> Verdict:
        """Rank and contrast; the base residuals serve the guard."""
        estimates, rewards, residuals = candidates.estimates, candidates.rewards, candidates.residuals
        valid = rewards.isfinite().all(0)
        known = torch.where(valid, rewards, 0)
        weights, gap = advantages(known)
        self._update(gap, valid)
        mean = self.gap_mean.clamp_min(torch.finfo(gap.dtype).tiny)
        kappa = torch.where(valid, SCALES[self.config.scale](gap, mean, self.config.threshold), 0)
        raw = contrast(estimates, weights)
        base = residuals.mean(0)
        norm, base_norm = group_norm(raw), group_norm(base)
        reference = {
            "noise": residuals.flatten(2).square().sum(2).mean(0).sqrt(),
            "base": base_norm,
            "contrast": norm,
        }[self.config.guard_reference]
        score = guarded(self.config.weight * contrast(estimates, kappa * weights), reference, self.config.guard)
        share = group_norm(score) / base_norm.clamp_min(torch.finfo(base_norm.dtype).tiny)
        cosine = torch.cosine_similarity(raw.flatten(1), base.flatten(1), dim=1)
        logs = {
            "reward_win": known.amax(0).mean(),
            "reward_lose": known.amin(0).mean(),
            "gap": gap.mean(),
            "kappa": kappa.mean(),
            "pair_norm": norm.mean(),
            "pair_share": share.mean(),
            "pair_cos": cosine.mean(),
            "nan_pairs": self.nan_pairs,
        }
        return Verdict(score, known.argmax(0), known.argmin(0), logs)

    def _update(self, gap: Float[Tensor, "G U"], valid: Bool[Tensor, "G U"]) -> None:
        """Running mean of the gap over valid units; the first one starts it."""
        count = valid.sum()
        now = (gap * valid).sum() / count  # 0 / 0 where nothing is valid
        blend = torch.where(self.gap_mean.isnan(), now, GAP_DECAY * self.gap_mean + (1 - GAP_DECAY) * now)
        self.gap_mean = torch.where(count > 0, blend, self.gap_mean)
        self.nan_pairs = self.nan_pairs + (~valid).sum()

    def state_dict(self) -> dict[str, Tensor]:
        return {"gap_mean": self.gap_mean.clone(), "nan_pairs": self.nan_pairs.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.gap_mean = state["gap_mean"].to(self.gap_mean.device, copy=True)
        self.nan_pairs = state["nan_pairs"].to(self.nan_pairs.device, copy=True)
