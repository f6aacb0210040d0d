"""Base scores: what the prior alone wants of the render.

Everything is written with clean estimates. At one noisy latent ``x_t = alpha x0 + sigma noise`` the
textbook residual is ``eps_hat - noise = (alpha / sigma) (x0 - x0_hat)``, so a method is a residual
``x0 - target`` and a weighting ``w(t) alpha / sigma``; epsilon, v and flow-matching models all fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.config.guidance import GuidanceConfig, Weighting
from psd_gs.entries import METHODS
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction, epsilon
from psd_gs.plugins import resolved
from psd_gs.priors.base import Prior

NFSD_CLEAN = 0.2
"""Below this time NFSD takes the unconditional noise itself for the denoising direction."""
T_LAST = 0.999
"""Largest time that is asked of a prior."""


def rescale_guidance(
    guided: Float[Tensor, "N G V C h w"], cond: Float[Tensor, "N G V C h w"], phi: float
) -> Float[Tensor, "N G V C h w"]:
    """Pull the standard deviation of guided estimates back to that of the text-only ones.

    Per noise and group, over views, channels and pixels. Source: Lin et al. (2305.08891), Eqs. 15-16,
    on clean estimates as in MVDream (2308.16512), section 3.3.
    """
    dims = (-4, -3, -2, -1)
    factor = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (phi * factor + (1 - phi))


def sds(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """Score distillation sampling, DreamFusion (2209.14988), Eq. 3: ``w (eps_hat - noise)``."""
    return prediction.x0 - prediction.guided(config.guidance_scale)


def recon(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """The x0-reconstruction loss with rescaled guidance, MVDream (2308.16512), Eq. 4."""
    guided = prediction.guided(config.guidance_scale)
    return prediction.x0 - rescale_guidance(guided, prediction.cond, config.rescale)


def csd(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """Classifier score distillation (2310.19415): ``w (eps(y) - eps(n))``, no noise and no scale.

    What is subtracted may move from the empty prompt to the negative one over the run.
    """
    start, end = config.csd_negative
    share = start + (end - start) * denoiser.progress
    if share == 1:
        return prediction.neg - prediction.cond
    null = denoiser.predict_null(prediction.x_t, denoiser.t)
    return torch.lerp(null, prediction.neg, share) - prediction.cond


def nfsd(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """Noise-free score distillation (2310.17590), Eq. 6: ``w (delta_D + s (eps(y) - eps()))``.

    The denoising direction ``delta_D`` is ``eps() - eps(n)``, with ``n`` a description of poor quality, and at low
    noise ``eps()`` alone.
    """
    null = denoiser.predict_null(prediction.x_t, denoiser.t)
    alpha, _ = denoiser.levels(denoiser.t)
    clean = denoiser.t.to(alpha).view_as(alpha) < NFSD_CLEAN
    denoise = torch.where(clean, prediction.x_t / alpha, prediction.neg) - null
    return denoise + config.guidance_scale * (null - prediction.cond)


def asd(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """Asynchronous score distillation, ScaleDreamer (2407.02040): ``w (eps_hat(x_t) - eps(x_t'; y))``.

    The same noise at a slightly later time t' stands for the score of the renders, for which VSD trains a copy.
    """
    t = denoiser.t
    u = torch.rand(len(t), generator=denoiser.generator)
    later = (t + config.asd_shift * (t - config.timesteps.t_min_end).clamp_min(0) * u).clamp_max(T_LAST)
    alpha, sigma = denoiser.levels(t)
    alpha_later, sigma_later = denoiser.levels(later)
    noise = epsilon(prediction.x_t, prediction.x0, alpha, sigma)
    x_later = denoiser.add_noise(prediction.x0, noise, later)
    cond, _ = denoiser.branches(x_later, later, denoiser.text, denoiser.text)
    noise_later = epsilon(x_later, cond, alpha_later, sigma_later)
    return (prediction.x_t - sigma * noise_later) / alpha - prediction.guided(config.guidance_scale)


@dataclass(frozen=True)
class BaseScore:
    """What the prior alone wants of the render, and what that takes.

    Attributes:
        residual: the residual ``x0 - target`` of every noise.
        weighting: what ``auto`` stands for.
        invert: makes the prior's view of a render from one noise, where that is not the render noised.
        unguided: whether ``x0 - cond``, the residual without guidance, is of the same kind.
        wants_negative: whether it needs a negative prompt.
        lora: the copy of the prior that is trained beside the asset, :attr:`Denoiser.lora`.
    """

    residual: Callable[[Prediction, Denoiser, GuidanceConfig], Latents]
    weighting: Weighting
    invert: Callable[[Float[Tensor, "G V C h w"], Latents, Denoiser, GuidanceConfig], Prediction] | None = None
    unguided: bool = False
    wants_negative: bool = False
    lora: Callable[[Prior, GuidanceConfig, torch.Generator], Any] | None = None


SDS = BaseScore(sds, "sds", unguided=True)
RECON = BaseScore(recon, "recon", unguided=True)
CSD = BaseScore(csd, "uniform")
NFSD = BaseScore(nfsd, "sds", wants_negative=True)
ASD = BaseScore(asd, "sds")


def base_score(name: str) -> BaseScore:
    """One of :data:`psd_gs.entries.METHODS`."""
    return resolved(METHODS[name])


WEIGHTINGS: dict[Weighting, Callable[[Tensor, Tensor], Tensor]] = {
    "sds": lambda alpha, sigma: alpha * sigma,  # w = sigma^2 (DreamFusion)
    "uniform": lambda alpha, sigma: alpha / sigma,  # w = 1
    "recon": lambda alpha, sigma: torch.ones_like(alpha),  # w = sigma / alpha (MVDream, LucidDreamer)
    "fantasia3d": lambda alpha, sigma: alpha**2 * sigma,  # w = alpha sigma^2 (Fantasia3D)
}
"""Factor on the x0 residual, ``w(t) alpha / sigma`` with the w(t) of the epsilon residual in the comment."""


def score_loss(x0: Float[Tensor, "G V C h w"], gradient: Float[Tensor, "G V C h w"]) -> Float[Tensor, ""]:
    """A loss whose gradient on ``x0`` is ``gradient / B`` with B = G*V images."""
    target = (x0 - gradient).detach()
    return 0.5 * (x0 - target).square().sum() / (x0.shape[0] * x0.shape[1])
