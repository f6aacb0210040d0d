"""Preference score distillation (2603.01594), re-derived.

From one render and one timestep, N noises give N one-step clean estimates; the same estimates are decoded, ranked and
contrasted. In epsilon the pair's contrast is
``(eps_w - noise_w) - (eps_l - noise_l) = -(alpha / sigma) (x0_w - x0_l)``, hence in x0 a descent step moves
the render from the loser's estimate toward the winner's. No gradient of the reward reaches the render,
which moves only along directions that the denoiser can paint; one may choose the noises (``PSDConfig.turn``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.config.guidance import GuidanceConfig, PSDConfig, Scale
from psd_gs.errors import ConfigError
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction
from psd_gs.guidance.negative import NegativeEmbedding, pull_loss
from psd_gs.guidance.preference import (
    Candidates,
    PairPreference,
    Setup,
    Step,
    Verdict,
    group_norm,
    judge,
    sample_noise,
    take,
)

GAP_DECAY = 0.99
GAP_CLIP = 3.0
TYPICAL_WEIGHT = 2.0

logger = logging.getLogger(__name__)


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


def guarded(
    score: Float[Tensor, "G V C h w"], reference: Float[Tensor, " G"], ratio: float
) -> Float[Tensor, "G V C h w"]:
    """Shrink each group of ``score`` to a norm of at most ``ratio * reference``."""
    if math.isinf(ratio):
        return score
    norm = group_norm(score).clamp_min(torch.finfo(score.dtype).tiny)
    return score * (ratio * reference / norm).clamp(max=1)[:, None, None, None, None]


def turned(
    noise: Float[Tensor, "N G V C h w"], direction: Float[Tensor, "G V C h w"], degrees: float
) -> Float[Tensor, "2*N G V C h w"]:
    """Each noise turned toward a direction by an angle, then each turned away from it; lengths are kept.

    With the gradient g of a reward as direction, the clean estimates of such a pair differ, to first order, by the
    denoiser's Jacobian times g. That Jacobian is ``alpha / sigma^2 Cov[x0 | x_t]`` (Tweedie, second order), and
    ``Cov[x0 | x_t] g`` is how ``E[x0 | x_t]`` changes when the prior is tilted by ``exp(reward)``: the contrast of
    the pair is the preferred change that the prior believes in, without the chance of two draws. Ours.

    A group whose direction is zero or not finite keeps its noises.
    """
    flat, toward = noise.flatten(2), torch.nan_to_num(direction, nan=0.0, posinf=0.0, neginf=0.0).flatten(1)
    length = flat.norm(dim=2, keepdim=True)
    across = toward - (flat * toward).sum(2, keepdim=True) / length.square() * flat
    size = across.norm(dim=2, keepdim=True)
    across = across * (length / size.clamp_min(torch.finfo(size.dtype).tiny))
    angle = math.radians(degrees)
    pair = torch.cat([math.cos(angle) * flat + sign * math.sin(angle) * across for sign in (1, -1)])
    return torch.where(torch.cat([size, size]) > 0, pair, torch.cat([flat, flat])).view(-1, *noise.shape[1:])


class PSD(PairPreference):
    """The contrast of ranked estimates beside the base score, and the refinement of the negative embedding.

    Its running state is the mean gap and the count of pairs without a verdict. Logs ``kappa`` (the confidence),
    ``pair_share`` (norm of the weighted, guarded score relative to the base residual), ``pair_cos`` (between contrast
    and base residual), ``nan_pairs`` (so far) and, where the negative embedding was refined, ``negative_loss`` and
    ``negative_shift`` (norm of its change).
    """

    options: PSDConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.gap_mean = torch.tensor(torch.nan, device=self.prior.device)
        self.nan_pairs = torch.tensor(0, device=self.prior.device)
        options, mode = self.options, self.config.negative.mode
        if mode == "reward" and self.black_box:
            raise ConfigError(
                f"NegativeConfig.mode: expected a differentiable reward for mode reward, received the black box "
                f"{self.black_box}. Set the mode to pull, which needs no gradient of the reward."
            )
        if mode == "auto":
            mode = "pull" if self.black_box else "reward"
        self.negative = NegativeEmbedding(setup.negative, replace(self.config.negative, mode=mode))
        if options.turn and self.black_box:
            logger.warning("psd turn: %s is a black box without a gradient, so its pairs are drawn", self.black_box)
            self.options = replace(options, turn=0.0)
        if options.weight > TYPICAL_WEIGHT and math.isinf(options.guard):
            logger.warning(
                "psd weight %g without a guard: above %g renders leave the prior's typical set",
                options.weight,
                TYPICAL_WEIGHT,
            )

    @classmethod
    def check(cls, config: GuidanceConfig) -> None:
        if config.negative.mode != "off" and config.psd.pair_scale == 1:
            raise ConfigError(
                "PSDConfig.pair_scale: expected a value other than 1 to refine the negative embedding, received 1: "
                "the negative branch enters with the factor 1 - scale, so no gradient reaches it. "
                "Raise pair_scale or set the negative mode to off."
            )

    def acts(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        return super().acts(progress, step, t) & (self.options.weight > 0)

    def noises(self, x0: Float[Tensor, "G V C h w"], cameras: Cameras, generator: torch.Generator) -> Latents:
        options = self.options
        if not options.turn:
            return super().noises(x0, cameras, generator)
        noise = sample_noise(x0, options.n_noises // 2, options.antithetic, generator)
        return turned(noise, self._uphill(x0, cameras), options.turn)

    @torch.enable_grad()
    def _uphill(self, x0: Float[Tensor, "G V C h w"], cameras: Cameras) -> Float[Tensor, "G V C h w"]:
        """Gradient of the reward of the decoded ``x0``."""
        x0 = x0.clone().requires_grad_(True)
        scores = judge(self.rewards[0], self.prior.decode(x0), self.prompt, cameras, self.options)
        return torch.autograd.grad(scores.sum(), x0)[0]

    def contrasted(self, estimates: Latents, prediction: Prediction, denoiser: Denoiser) -> Latents:
        """The estimates, or as an ablation bare predictions of the noise, as an x0."""
        if self.options.keep_noise:
            return estimates
        return estimates - prediction.x_t / denoiser.levels(denoiser.t)[0]

    def decide(self, candidates: Candidates) -> Verdict:
        """Rank and contrast; the base residuals serve the guard."""
        estimates, rewards, residuals = candidates.estimates, candidates.rewards, candidates.residuals
        valid = rewards.isfinite().all(0)
        known = torch.where(valid, rewards, 0)
        weights, gap = advantages(known)
        self._update(gap, valid)
        mean = self.gap_mean.clamp_min(torch.finfo(gap.dtype).tiny)
        kappa = torch.where(valid, SCALES[self.options.scale](gap, mean, self.options.threshold), 0)
        raw = contrast(estimates, weights)
        base = residuals.mean(0)
        norm, base_norm = group_norm(raw), group_norm(base)
        reference = {
            "noise": residuals.flatten(2).square().sum(2).mean(0).sqrt(),
            "base": base_norm,
            "contrast": norm,
        }[self.options.guard_reference]
        score = guarded(self.options.weight * contrast(estimates, kappa * weights), reference, self.options.guard)
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

    def learn(self, verdict: Verdict, step: Step) -> dict[str, Tensor]:
        """Refine the negative embedding where that is due."""
        due = self.negative.due(step.denoiser.progress, step.number, step.denoiser.t).nonzero().squeeze(1)
        if not len(due):
            return {}
        return self._refine(step.prediction[due], verdict[due], step.denoiser[due], step.number)

    @torch.enable_grad()
    def _refine(self, pair: Prediction, verdict: Verdict, denoiser: Denoiser, step: int) -> dict[str, Tensor]:
        """One update of the negative embedding from judged pairs; their noises and conditional branch are reused."""
        pull, scale = self.negative.config.mode == "pull", self.options.pair_scale
        moved = verdict.worst if pull else verdict.best
        x_t, cond = take(pair.x_t, moved), take(pair.cond, moved)
        watched = self.negative.watched()
        _, neg = denoiser.branches(x_t[None], denoiser.t, watched, watched)
        estimate = neg[0] + scale * (cond - neg[0])
        if pull:
            loss = pull_loss(estimate, take(pair.guided(scale), verdict.best))
        else:
            images = self.prior.decode(estimate)
            loss = -judge(self.rewards[0], images, self.prompt, denoiser.cameras, self.options).mean()
        self.negative.descend(loss, step)
        return {"negative_loss": loss.detach(), "negative_shift": self.negative.delta.norm()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"gap_mean": self.gap_mean.clone(), "nan_pairs": self.nan_pairs.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.gap_mean = state["gap_mean"].to(self.gap_mean.device, copy=True)
        self.nan_pairs = state["nan_pairs"].to(self.nan_pairs.device, copy=True)
