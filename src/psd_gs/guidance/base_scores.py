"""Base scores: what the prior alone wants of the render.

Everything is written with clean estimates. At one noisy latent ``x_t = alpha x0 + sigma noise`` the
textbook residual is ``eps_hat - noise = (alpha / sigma) (x0 - x0_hat)``, so a method is a residual
``x0 - target`` and a weighting ``w(t) alpha / sigma``; epsilon, v and flow-matching models all fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.guidance.config import GuidanceConfig, Method, Weighting


@dataclass(frozen=True)
class Prediction:
    """The prior's view of one render under N noises at one timestep per group.

    Attributes:
        x0: latents of the render, detached.
        x_t: noisy latents.
        cond: clean estimates under the prompt.
        neg: clean estimates under the negative prompt.
    """

    x0: Float[Tensor, "G V C h w"]
    x_t: Float[Tensor, "N G V C h w"]
    cond: Float[Tensor, "N G V C h w"]
    neg: Float[Tensor, "N G V C h w"]

    def __getitem__(self, groups: Tensor) -> Prediction:
        """The groups that integer indices pick."""
        return Prediction(self.x0[groups], self.x_t[:, groups], self.cond[:, groups], self.neg[:, groups])

    def guided(self, scale: float) -> Float[Tensor, "N G V C h w"]:
        """Classifier-free guidance (2207.12598, Eq. 6) in diffusers' convention of the scale."""
        return self.neg + scale * (self.cond - self.neg)


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


def sds(prediction: Prediction, config: GuidanceConfig) -> Float[Tensor, "N G V C h w"]:
    """Score distillation sampling, DreamFusion (2209.14988), Eq. 3."""
    return prediction.x0 - prediction.guided(config.guidance_scale)


def recon(prediction: Prediction, config: GuidanceConfig) -> Float[Tensor, "N G V C h w"]:
    """The x0-reconstruction loss with rescaled guidance, MVDream (2308.16512), Eq. 4."""
    guided = prediction.guided(config.guidance_scale)
    return prediction.x0 - rescale_guidance(guided, prediction.cond, config.rescale)


BaseScore = Callable[[Prediction, GuidanceConfig], Float[Tensor, "N G V C h w"]]
"""The residual ``x0 - target`` of every noise."""

METHODS: dict[Method, tuple[BaseScore, Weighting]] = {"sds": (sds, "sds"), "recon": (recon, "recon")}
"""Base scores by name, each with the weighting that ``auto`` stands for."""

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
