"""RewardSDS (2503.09601): residuals of N noises, weighed by the rewards of what each of them denoises to.

``G = w sum_i w_i res_i`` (its Eq. 4), where res is the residual of the method: RewardVSD (Eq. 5) is this with vsd.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.config.guidance import GuidanceConfig, RewardSDSConfig
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction, epsilon
from psd_gs.guidance.preference import Candidates, PairPreference, Verdict, check_noises_tell, group_norm, take

BEST_WEIGHT, WORST_WEIGHT = 0.9, -0.1


def noise_weights(rewards: Float[Tensor, "N G U"], kind: str) -> Float[Tensor, "N G U"]:
    """Weight of each noise from its reward.

    ``min-max``: 0.9 shared by the best two and -0.1 by the worst two (one each below four noises), 0.8 in sum;
    ``best``: 1 on the best; ``softmax`` of the rewards as they are.
    """
    if kind == "softmax":
        return rewards.softmax(0)
    place = rewards.argsort(dim=0, descending=True, stable=True).argsort(0)
    if kind == "best":
        return (place == 0).to(rewards)
    k = 2 if len(rewards) >= 4 else 1
    best, worst = place < k, place >= len(rewards) - k
    return BEST_WEIGHT / k * best.to(rewards) + WORST_WEIGHT / k * worst.to(rewards)


def preview(prediction: Prediction, denoiser: Denoiser, scale: float, steps: int) -> Latents:
    """Denoise every ``x_t`` to a clean latent by DDIM (2010.02502, Eq. 12), guided, without noise on the way.

    Args:
        prediction: at the denoiser's times; its estimates are the first step.
        denoiser: asked for the others.
        scale: of the guidance.
        steps: of a denoising from pure noise; from time t on it takes ``ceil(t steps)`` of them.
    """
    count = max(1, math.ceil(float(denoiser.t.max()) * steps))
    x0, x, t = prediction.guided(scale), prediction.x_t, denoiser.t
    for k in range(1, count):
        noise = epsilon(x, x0, *denoiser.levels(t))
        t = denoiser.t * (1 - k / count)
        alpha, sigma = denoiser.levels(t)
        x = alpha * x0 + sigma * noise
        cond, neg = denoiser.predict(x, t)
        x0 = neg + scale * (cond - neg)
    return x0


class RewardSDS(PairPreference):
    """The weighed sum in place of the base score."""

    options: RewardSDSConfig

    @classmethod
    def check(cls, config: GuidanceConfig) -> None:
        check_noises_tell(config)

    def estimates(self, prediction: Prediction, denoiser: Denoiser) -> Latents:
        return preview(prediction, denoiser, self.options.pair_scale, self.options.preview_steps)

    def decide(self, candidates: Candidates) -> Verdict:
        rewards = candidates.rewards
        valid = rewards.isfinite().all(0)
        known = torch.where(valid, rewards, 0)
        weights = torch.where(valid, noise_weights(known, self.options.weights), 1 / len(rewards))
        wanted = (weights[..., None, None, None] * candidates.residuals).sum(0)
        best, worst = known.argmax(0), known.argmin(0)
        logs = {
            "reward_win": known.amax(0).mean(),
            "reward_lose": known.amin(0).mean(),
            "gap": (known.amax(0) - known.amin(0)).mean(),
            "pair_norm": group_norm(take(candidates.estimates, best) - take(candidates.estimates, worst)).mean(),
        }
        return Verdict(wanted - candidates.residuals.mean(0), best, worst, logs)
