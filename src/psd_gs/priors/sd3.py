"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): single views, a transformer, rectified flow.

``x_t = (1 - tau) x0 + tau noise`` and the network answers ``v = noise - x0``, hence ``x0 = x_t - tau v`` and
``noise = x_t + (1 - tau) v``. With clean estimates the flow is one more pair (alpha, sigma), and preference score
distillation carries over: ``(v_w - (noise_w - x0)) - (v_l - (noise_l - x0)) = -(x0_w - x0_l) / tau``.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import ModelError
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.latent import LatentPrior

EDGE = 1e-4
"""Flow times stay this far from 0 and 1, where one of the levels vanishes. Of the 1000 levels at which the network was
trained only pure noise lies within it."""


class StableDiffusion3Prior(LatentPrior):
    """Stable Diffusion 3 and 3.5, with or without its third text encoder."""

    pipeline_class = "diffusers:StableDiffusion3Pipeline"
    family = "sd3"
    overflows = True  # T5 does; the model card of 3.5 asks for bfloat16

    def _adopt_schedule(self, scheduler: Any) -> None:
        shift = scheduler.config.get("shift")
        if shift is None:
            raise ModelError(
                f"prior {self.name}: expected a flow-matching scheduler with a shift, received "
                f"{type(scheduler).__name__}. Name another folder."
            )
        self.shift = float(shift)

    def flow_time(self, t: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
        """Fractions of the schedule to tau, shifted toward noise as in sampling (2403.03206, Eq. 23)."""
        return (self.shift * t / (1 + (self.shift - 1) * t)).clamp(EDGE, 1 - EDGE)

    def timesteps(self, t: Float[Tensor, " G"]) -> Tensor:
        return 1000 * self.flow_time(t)

    def alpha_sigma(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        tau = self.flow_time(t).view(-1, 1, 1, 1, 1)
        return 1 - tau, tau

    def to_x0(self, output: Tensor, x_t: Tensor, t: Float[Tensor, " G"]) -> Tensor:
        return x_t - self.alpha_sigma(t)[1] * output

    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=device, do_classifier_free_guidance=False
        )
        return TextEmbedding(sequence, pooled)

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict[str, Any]:
        return {"pooled_projections": text.pooled}
