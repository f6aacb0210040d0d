"""Interval score matching, LucidDreamer (2311.11284), Eq. 17: ``w (eps_hat(x_t; y) - eps(x_s; ))``.

The noisy latents come from the render itself by DDIM inversion under the empty prompt, so that they fit it from
step to step instead of being drawn anew. The last stride goes from s to t: ``x_t = alpha_t a + sigma_t eps(x_s)`` with
``a`` the unconditional clean estimate at s. The residual is hence that of SDS with ``a`` in place of the render.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.config.guidance import GuidanceConfig
from psd_gs.guidance.base_scores import BaseScore, sds
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction, epsilon

T_FIRST = 1e-3
"""Where the inversion starts."""


def invert(x0: Float[Tensor, "G V C h w"], noise: Latents, denoiser: Denoiser, config: GuidanceConfig) -> Prediction:
    """The prior's view of inverted renders; ``x0`` of the result is the unconditional estimate at s.

    Strides of ``config.ism.stride`` lead from a nearly clean latent up to ``s = t - delta``, one more to t; delta falls
    from its first to its second value while the timesteps are annealed.

    Args:
        x0: latents of the render.
        noise: one draw, for the nearly clean latent.
        denoiser: the prior at this step.
        config: options.
    """
    first, last = config.ism.delta
    delta = first + (last - first) * min(denoiser.progress / config.timesteps.anneal_end, 1.0)
    t = denoiser.t
    s = (t - delta).clamp_min(T_FIRST)
    now = torch.full_like(t, T_FIRST)
    x = denoiser.add_noise(x0, noise, now)
    strides = math.ceil(float((s - now).max()) / config.ism.stride - 1e-6)
    for k in range(strides + 1):
        clean = denoiser.predict_null(x, now)
        drawn = epsilon(x, clean, *denoiser.levels(now))
        now = torch.minimum(now + config.ism.stride, s) if k < strides else t
        alpha, sigma = denoiser.levels(now)
        x = alpha * clean + sigma * drawn
    return Prediction(clean[0], x, *denoiser.predict(x, t))


ISM = BaseScore(sds, "recon", invert=invert)
