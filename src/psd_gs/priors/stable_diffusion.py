"""Stable Diffusion 1.x, 2.x (arXiv 2112.10752) and XL (arXiv 2307.01952): single views, U-Nets, noise or velocity."""

from __future__ import annotations

from typing import Any

import torch

from psd_gs.cameras import Cameras
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.latent import LatentPrior


class StableDiffusionPrior(LatentPrior):
    """Stable Diffusion 1.5, 2.1 and everything of their shape."""

    pipeline_class = "diffusers:StableDiffusionPipeline"
    family = "sd"

    @property
    def unet(self) -> Any:
        return self.denoiser

    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        return TextEmbedding(self.pipeline.encode_prompt(prompts, device, 1, False)[0])


class StableDiffusionXLPrior(StableDiffusionPrior):
    """Stable Diffusion XL: two text encoders, and sizes that the network is told.

    The empty prompt is encoded as text. diffusers' own pipeline takes zeros when no negative prompt is given;
    here the negative embedding is a variable, and zeros would leave it no room (``NegativeConfig.radius``).
    """

    pipeline_class = "diffusers:StableDiffusionXLPipeline"
    family = "sdxl"
    vae_overflows = True
    native_size = 1024
    """Side in pixels of the pictures that the model takes its inputs to be crops of; smaller ones look blurred."""

    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        sequence, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        return TextEmbedding(sequence, pooled)

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict[str, Any]:
        """Pooled text, and original size, crop corner and target size (2307.01952, section 2.2)."""
        original, target = max(self.native_size, self.image_size), self.image_size
        sizes = torch.tensor([original, original, 0, 0, target, target], dtype=self.dtype, device=self.device)
        return {"added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": sizes.expand(len(text), 6)}}
