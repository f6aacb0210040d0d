"""What the prior makes of pictures under noise: more to learn from for those who judge its pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.priors.mini import computes_in_bfloat16
from psd_gs.priors.multiview import MultiViewPrior


class Dreamer:
    """Paints sets anew with a multi-view prior: adds noise and takes it away again, in a few DDIM steps (2010.02502).

    One step gives the clean estimates that preference distillation ranks.
    """

    def __init__(self, prior: MultiViewPrior, steps: int) -> None:
        self.prior, self.steps = prior, steps

    @torch.no_grad()
    def __call__(
        self,
        sets: Float[Tensor, "S V 3 h w"],
        captions: list[str],
        cameras: Cameras,
        t: Float[Tensor, " S"],
        scale: Float[Tensor, " S"],
        generator: torch.Generator,
    ) -> Float[Tensor, "S V 3 h w"]:
        """Sets of the prior's size, from diffusion times ``t``, guided by their captions at ``scale``."""
        prior = self.prior
        x0 = prior.encode(sets)
        noise = torch.randn(x0.shape, generator=generator)
        text = prior.embed(captions)[torch.arange(len(captions)).repeat_interleave(prior.views)]
        for left in range(self.steps, 0, -1):
            now = t * left / self.steps
            x_t = prior.add_noise(x0, noise, now)
            with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16()):
                cond, neg = prior.predict(x_t, now, text, prior.embed([""]), cameras)
            x0 = (neg + scale[:, None, None, None, None] * (cond - neg)).float().clamp(-1, 1)
            alpha, sigma = prior.alpha_sigma(now)
            noise = (x_t - alpha * x0) / sigma
        return prior.decode(x0)
