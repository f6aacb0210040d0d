"""Camera-conditioned multi-view diffusion in MVDream's architecture (arXiv 2308.16512).

A stock ``UNet2DConditionModel``: the 16 numbers of the camera enter as class labels
(``class_embed_type="projection"``), and every self-attention layer attends over all views of a
set. Everything else is per view. The embedded ``mini`` prior is such a model in pixel space; with patches, its network
sees a coarser grid whose cells hold the pixels of a square (simple diffusion, arXiv 2301.11093), and nobody else does:
outside there are noisy pictures and clean estimates.
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
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextModel, CLIPTokenizer

from psd_gs.cameras import Cameras, mvdream_cameras, turntable
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.latent import LatentPrior


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


def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Float[Tensor, "B L D"]:
    """Token features of each prompt, padded to the tokenizer's length."""
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


def to_cells(
    x_t: Float[Tensor, "*B 3 H W"], alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], patch: int
) -> Float[Tensor, "*B 3*p*p H/p W/p"]:
    """Noisy pictures as the network reads them: its cells hold the pixels of a ``patch`` x ``patch`` square.

    The mean of a square has less noise than a pixel, so it is weaker; it is brought back to unit deviation.
    """
    cells = pixel_unshuffle(x_t, patch).unflatten(-3, (-1, patch**2))
    mean = cells.mean(-3, keepdim=True)
    scale = (alpha**2 + (sigma / patch) ** 2).rsqrt().unsqueeze(-1)
    return (cells + (scale - 1) * mean).flatten(-4, -3)


def from_cells(
    output: Float[Tensor, "*B 3*p*p H/p W/p"],
    x_t: Float[Tensor, "*B 3 H W"],
    alpha: Float[Tensor, "*b"],
    sigma: Float[Tensor, "*b"],
    patch: int,
) -> Float[Tensor, "*B 3 H W"]:
    """The clean estimate in what the network says of :func:`to_cells`.

    Of the mean of a square it says the velocity, which is as easy to learn at every time (Salimans and Ho, 2202.00512);
    of what differs from the mean the clean picture: that has few degrees of freedom, the velocity as many as there are
    pixels, more than a cell has channels for (2511.13720). With a patch of 1 this is a prediction of the velocity.
    """
    out = output.unflatten(-3, (-1, patch**2))
    said = out.mean(-3, keepdim=True)
    mean = pixel_unshuffle(x_t, patch).unflatten(-3, (-1, patch**2)).mean(-3, keepdim=True)
    alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1) / patch
    total = alpha**2 + sigma**2
    clean = (alpha * mean - sigma * total.sqrt() * said) / total
    return pixel_shuffle((out - said + clean).flatten(-4, -3), patch)


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


class MultiViewPrior(LatentPrior):
    """A :class:`~psd_gs.priors.base.Prior` over a multi-view pipeline; in pixel space without ``vae``."""

    pipeline_class = MultiViewPipeline

    def __init__(self, pipeline: MultiViewPipeline, name: str = "mvdream", **options: Any) -> None:
        self.views, self.patch = pipeline.config.views, pipeline.config.patch
        super().__init__(pipeline, name, **options)
        if self.patch > 1:
            if not options.get("image_size"):
                self.image_size = self.latent_size = self.denoiser.config.sample_size * self.patch
            self.latent_shape = (self.latent_shape[0] // self.patch**2, self.latent_size, self.latent_size)

    @property
    def family(self) -> str:  # type: ignore[override]
        return "mini" if self.vae is None else "mvdream"

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.denoiser

    def network(
        self,
        x_t: Float[Tensor, "G V C H W"],
        timesteps: Float[Tensor, " G"],
        text: TextEmbedding,
        negative: TextEmbedding,
        cameras: Cameras,
    ) -> tuple[Float[Tensor, "G V C H W"], Float[Tensor, "G V C H W"]]:
        if self.patch == 1:
            return super().network(x_t, timesteps, text, negative, cameras)
        a = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        levels = a.sqrt(), (1 - a).sqrt(), self.patch
        outputs = super().network(to_cells(x_t, *levels), timesteps, text, negative, cameras)
        return from_cells(outputs[0], x_t, *levels), from_cells(outputs[1], x_t, *levels)

    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        return TextEmbedding(encode_prompts(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts))

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict[str, Any]:
        labels = mvdream_cameras(cameras).to(self.device, self.dtype)
        return {"class_labels": labels.repeat(len(text) // len(cameras), 1)}


def cosine_scheduler(patch: int = 1) -> DDIMScheduler:
    """The schedule of the embedded model: cosine, trailing steps; of velocities, or with patches of clean pictures.

    The mean over a patch of ``p x p`` pixels has ``p^2`` times the signal-to-noise ratio of a pixel, so the ratio is
    divided by it (log-SNR lowered by ``2 log p``, simple diffusion, 2301.11093, Eq. 4): a time spoils as much of the
    layout as it does without patches.
    """
    options: dict[str, Any] = {"clip_sample": True, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    plain = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", **options)
    if patch == 1:
        return plain
    alphas = plain.alphas_cumprod.double()
    shifted = alphas / (alphas + patch**2 * (1 - alphas))
    betas = 1 - shifted / torch.cat([torch.ones(1), shifted[:-1]])
    return DDIMScheduler(trained_betas=betas.tolist(), prediction_type="sample", **options)
