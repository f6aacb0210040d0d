"""Camera-conditioned multi-view diffusion as a pipeline of diffusers: to sample from, to train and to save.

A stock ``UNet2DConditionModel``: the 16 numbers of the camera enter as class labels
(``class_embed_type="projection"``), and every self-attention layer attends over all views of a
set. Everything else is per view.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.priors.multiview import MultiViewPrior


class MultiViewAttnProcessor:
    """Self-attention over all tokens of all views of a set (MVDream, section 3.1).

    Args:
        views: number of views V; the batch is set-major, view-fastest.
    """

    def __init__(self, views: int) -> None:
        self.views = views
        self.attend = AttnProcessor2_0()

    def __call__(self, attn, hidden_states: Float[Tensor, "B*V L C"], *args, **kwargs) -> Float[Tensor, "B*V L C"]:
        rows, length, channels = hidden_states.shape
        together = hidden_states.reshape(rows // self.views, self.views * length, channels)
        return self.attend(attn, together, *args, **kwargs).reshape(rows, length, channels)


def set_views(unet: UNet2DConditionModel, views: int) -> None:
    """Make every self-attention layer of ``unet`` attend across ``views`` views; cross-attention stays per view."""
    processors = {
        name: MultiViewAttnProcessor(views) if name.endswith("attn1.processor") else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)


class MultiViewOutput(BaseOutput):
    """Result of :class:`MultiViewPipeline`: one list of V pictures per prompt, or ``[B, V, 3, H, W]`` in [0, 1]."""

    images: list[list[Image.Image]] | Tensor


class MultiViewPipeline(DiffusionPipeline):
    """Samples V consistent views of one object from a prompt.

    Works in pixel space when there is no ``vae`` (the embedded model), in its latent space otherwise.

    Args:
        views: number of views V.
        patch: side of the squares of pixels that become one cell of the network's grid; 1 where there is a ``vae``.
    """

    _optional_components = ["vae"]  # noqa: RUF012 - diffusers reads a list

    def __init__(self, tokenizer, text_encoder, unet, scheduler, vae=None, views: int = 4, patch: int = 1) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(views=views, patch=patch)
        set_views(unet, views)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        cameras: Cameras | None = None,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 30,
        guidance_scale: float = 3.0,
        guidance_rescale: float = 0.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> MultiViewOutput:
        """Sample one set of views per prompt.

        Args:
            prompt: one or more prompts.
            cameras: V cameras, shared by all prompts; default four orthogonal ones, the first in front.
            negative_prompt: what classifier-free guidance moves away from.
            num_inference_steps: of the scheduler.
            guidance_scale: 1 switches guidance off.
            guidance_rescale: share of the rescale against oversaturation (Lin et al., 2305.08891, Eqs. 15-16), in
                [0, 1]. For latents; colours are clipped by the scheduler instead.
            generator: source of the initial noise.
            output_type: ``"pil"`` or ``"pt"``.
        """
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        prior = MultiViewPrior(self)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        cameras = turntable(prior.views, elevation=15.0) if cameras is None else cameras
        text = prior.embed(prompts)[torch.arange(len(prompts)).repeat_interleave(prior.views)]
        negative = prior.embed([negative_prompt])
        x = torch.randn(len(prompts), prior.views, *prior.latent_shape, generator=generator).to(prior.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            cond, uncond = prior.network(x, t.expand(len(prompts)), text, negative, cameras)
            guided = rescale_noise_cfg(uncond + guidance_scale * (cond - uncond), cond, guidance_rescale)
            # a clipped estimate needs the noise that belongs to it, else early steps decide on wrong colours
            x = self.scheduler.step(guided, t, x, use_clipped_model_output=True).prev_sample
        images = prior.decode(x)
        if output_type == "pt":
            return MultiViewOutput(images=images)
        array = (images.permute(0, 1, 3, 4, 2).cpu().numpy() * 255).round().astype(np.uint8)
        return MultiViewOutput(images=[[Image.fromarray(view) for view in views] for views in array])


def cosine_scheduler(patch: int = 1, shift: float | None = None) -> DDIMScheduler:
    """The schedule of the embedded model: cosine, trailing steps; of velocities, or with patches of clean pictures.

    The mean over a square of ``s x s`` pixels has ``s^2`` times the signal-to-noise ratio of a pixel, so the ratio is
    divided by it (log-SNR lowered by ``2 log s``, simple diffusion, 2301.11093, Eq. 4): a time spoils as much of the
    layout as it does where each square is one pixel.

    Args:
        patch: of the network.
        shift: side of the squares, pixels; None for ``patch``.
    """
    options: dict[str, Any] = {"clip_sample": True, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    options["prediction_type"] = "v_prediction" if patch == 1 else "sample"
    plain = DDIMScheduler(beta_schedule="squaredcos_cap_v2", **options)
    if (shift or patch) == 1:
        return plain
    alphas = plain.alphas_cumprod.double()
    shifted = alphas / (alphas + (shift or patch) ** 2 * (1 - alphas))
    betas = 1 - shifted / torch.cat([torch.ones(1), shifted[:-1]])
    return DDIMScheduler(trained_betas=betas.tolist(), **options)
