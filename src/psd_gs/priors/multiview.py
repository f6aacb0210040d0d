"""Camera-conditioned multi-view diffusion in MVDream's architecture (arXiv 2308.16512).

A stock ``UNet2DConditionModel``: the 16 numbers of the camera enter as class labels
(``class_embed_type="projection"``), and every self-attention layer attends over all views of a
set. Everything else is per view. The embedded ``mini`` prior is such a model in pixel space; with patches, its network
sees a coarser grid whose cells hold the pixels of a square (simple diffusion, arXiv 2301.11093), and nobody else does:
outside there are noisy pictures and clean estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from psd_gs.cameras import Cameras, mvdream_cameras
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.latent import LatentPrior

if TYPE_CHECKING:
    from psd_gs.priors.multiview_pipeline import MultiViewPipeline


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> Float[Tensor, "B L D"]:
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


class MultiViewPrior(LatentPrior):
    """A :class:`~psd_gs.priors.base.Prior` over a multi-view pipeline; in pixel space without ``vae``."""

    pipeline_class = "psd_gs.priors.multiview_pipeline:MultiViewPipeline"

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
    def unet(self) -> Any:
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
