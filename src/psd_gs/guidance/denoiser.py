"""The prior as one optimization step sees it: texts, cameras and times are fixed, only noisy latents vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras, joined
from psd_gs.guidance.perp_neg import PerpNeg, perp_neg
from psd_gs.priors.base import Prior, TextEmbedding

Latents = Float[Tensor, "N G V C h w"]


@dataclass(frozen=True)
class Prediction:
    """The prior's view of one render under N noises at one timestep per group.

    Attributes:
        x0: latents that residuals start from: of the render, detached.
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


@dataclass(frozen=True)
class Denoiser:
    """A prior with everything but the noisy latents filled in, for G groups of V views.

    Attributes:
        prior: the diffusion model.
        t: times of this step, on the CPU.
        cameras: G*V, the views of a group adjacent.
        text: the prompt, 1 row or G*V.
        negative: the negative prompt, 1 row.
        null: the empty prompt, 1 row; for the methods that need it beside the negative one.
        progress: position in the run, 0 to 1.
        generator: for the methods that draw, on the CPU.
        perp: further prompts per view that are removed from the conditional estimate.
        lora: the prediction of the prior's fine-tuned copy (method vsd).
    """

    prior: Prior
    t: Float[Tensor, " G"]
    cameras: Cameras
    text: TextEmbedding
    negative: TextEmbedding
    null: TextEmbedding
    progress: float
    generator: torch.Generator
    perp: PerpNeg | None = None
    lora: Callable[[Denoiser, Latents], Latents] | None = None

    def __getitem__(self, groups: Int[Tensor, " K"]) -> Denoiser:
        """The groups that integer indices (on the CPU) pick."""
        views = self.prior.views
        rows = (groups[:, None] * views + torch.arange(views)).flatten()
        text = self.text[rows.to(self.text.sequence.device)] if len(self.text) > 1 else self.text
        perp = self.perp and self.perp[rows]
        return replace(self, t=self.t[groups], cameras=self.cameras[rows], text=text, perp=perp)

    def levels(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        """Signal and noise levels at ``t``, on the prior's device."""
        return self.prior.alpha_sigma(t.to(self.prior.device))

    def add_noise(self, x0: Float[Tensor, "G V C h w"], noise: Latents, t: Float[Tensor, " G"]) -> Latents:
        """The same render under each noise."""
        n = len(noise)
        times = t.to(x0.device).repeat(n)
        return self.prior.add_noise(x0.repeat(n, 1, 1, 1, 1), noise.flatten(0, 1), times).view(noise.shape)

    def branches(
        self, x_t: Latents, t: Float[Tensor, " G"], text: TextEmbedding, negative: TextEmbedding
    ) -> tuple[Latents, Latents]:
        """Clean estimates under two texts, or twice under one, in one call: noises are stacked along the groups."""
        n = len(x_t)
        cameras = joined([self.cameras] * n)
        rows = _tiled(text, n)
        others = rows if negative is text else _tiled(negative, n)
        cond, neg = self.prior.predict(x_t.flatten(0, 1), t.to(x_t.device).repeat(n), rows, others, cameras)
        return cond.view(x_t.shape), neg.view(x_t.shape)

    def predict(self, x_t: Latents, t: Float[Tensor, " G"]) -> tuple[Latents, Latents]:
        """Clean estimates under the prompt (Perp-Neg included) and under the negative prompt."""
        cond, neg = self.branches(x_t, t, self.text, self.negative)
        if self.perp:
            others = self.branches(x_t, t, *self.perp.texts)
            cond = perp_neg(cond, neg, others, self.perp.weights.to(cond).unflatten(1, cond.shape[1:3]))
        return cond, neg

    def predict_null(self, x_t: Latents, t: Float[Tensor, " G"]) -> Latents:
        """Clean estimates under the empty prompt."""
        return self.branches(x_t, t, self.null, self.null)[1]

    def noised(self, x0: Float[Tensor, "G V C h w"], noise: Latents) -> Prediction:
        """Both guidance branches of a render under every noise, at the step's times."""
        x_t = self.add_noise(x0, noise, self.t)
        return Prediction(x0, x_t, *self.predict(x_t, self.t))


def epsilon(x_t: Latents, x0: Latents, alpha: Tensor, sigma: Tensor) -> Latents:
    """The noise that a clean estimate implies."""
    return (x_t - alpha * x0) / sigma


def _tiled(text: TextEmbedding, n: int) -> TextEmbedding:
    """All rows ``n`` times over; a single row serves all as it is."""
    return text if len(text) == 1 else text[torch.arange(len(text), device=text.sequence.device).repeat(n)]
