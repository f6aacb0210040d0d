"""What score distillation needs from a diffusion model, whatever the model predicts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import InputError


@dataclass(frozen=True)
class TextEmbedding:
    """B prompts as a text encoder gives them to the network.

    Attributes:
        sequence: one vector per token (cross-attention context).
        pooled: one vector per prompt, for the models that take one (SDXL, SD3).
        mask: true where a token is real, for the models that mask padding.
    """

    sequence: Float[Tensor, "B L D"]
    pooled: Float[Tensor, "B P"] | None = None
    mask: Bool[Tensor, "B L"] | None = None

    def __len__(self) -> int:
        return self.sequence.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> TextEmbedding:
        """The prompts that ``rows`` (a slice or integer indices) picks."""
        return self._map(lambda tensor: tensor[rows])

    def expand(self, rows: int) -> TextEmbedding:
        """One row repeated ``rows`` times, or exactly ``rows`` rows as they are.

        Raises:
            InputError: the number of rows is neither 1 nor ``rows``.
        """
        if len(self) == rows:
            return self
        if len(self) != 1:
            raise InputError(
                f"expected 1 text embedding or {rows} (one per view), received {len(self)}. "
                "Embed the prompt once, or once per view."
            )
        return self._map(lambda tensor: tensor.expand(rows, *tensor.shape[1:]))

    def joined(self, other: TextEmbedding) -> TextEmbedding:
        """The rows of both, one after the other; both must come from one prior."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return replace(self, **{name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None})

    def to(self, target: torch.device | str | torch.dtype) -> TextEmbedding:
        """On a device, or the real numbers in a type."""
        if isinstance(target, torch.dtype):
            return self._map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return self._map(lambda tensor: tensor.to(target))

    def float(self) -> TextEmbedding:
        return self.to(torch.float32)

    def _map(self, function) -> TextEmbedding:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if x is not None})


class Prior(Protocol):
    """A frozen text-to-image or text-to-multi-view diffusion model, seen through its clean estimates.

    Shapes: G groups of V views; the views of a group are denoised together and share one timestep.
    Latents ``x0`` are ``[G, V, C, h, w]`` in float32 whatever precision the network runs in
    (C = 3 for pixel-space models).
    ``t`` is a fraction of the diffusion time, 0 clean, 1 pure noise; an implementation maps it onto
    its own timesteps, and does so equally in ``add_noise``, ``alpha_sigma`` and ``predict``.
    The weights must not require gradients.
    """

    @property
    def name(self) -> str:
        """Short name for logs and messages."""
        ...

    @property
    def views(self) -> int:
        """V: 4 for multi-view models, 1 otherwise."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square images that ``encode`` takes and ``decode`` gives, pixels."""
        ...

    @property
    def device(self) -> torch.device: ...

    def embed(self, prompts: list[str]) -> TextEmbedding:
        """Text encoding, one row per prompt; the empty prompt is the unconditional one."""
        ...

    def encode(self, images: Float[Tensor, "G V 3 H W"]) -> Float[Tensor, "G V C h w"]:
        """sRGB images in [0, 1] to clean latents; deterministic and differentiable."""
        ...

    def decode(self, x0: Float[Tensor, "G V C h w"]) -> Float[Tensor, "G V 3 H W"]:
        """Clean latents to sRGB images in [0, 1]; differentiable."""
        ...

    def alpha_sigma(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        """Signal and noise levels of ``x_t = alpha x0 + sigma noise``; both positive in the open interval (0, 1)."""
        ...

    def add_noise(
        self, x0: Float[Tensor, "G V C h w"], noise: Float[Tensor, "G V C h w"], t: Float[Tensor, " G"]
    ) -> Float[Tensor, "G V C h w"]:
        """``alpha(t) x0 + sigma(t) noise``."""
        ...

    def predict(
        self,
        x_t: Float[Tensor, "G V C h w"],
        t: Float[Tensor, " G"],
        text: TextEmbedding,
        negative: TextEmbedding,
        cameras: Cameras,
    ) -> tuple[Float[Tensor, "G V C h w"], Float[Tensor, "G V C h w"]]:
        """One-step clean estimates under the prompt and under the negative prompt, in one batched call.

        Args:
            x_t: noisy latents.
            t: one timestep per group.
            text: 1 row for all views, or G*V rows (one per view, the views of a group adjacent).
            negative: likewise. When gradients are enabled they flow into ``negative.sequence``. The same object as
                ``text`` asks for one branch, at half the cost.
            cameras: G*V cameras in the same order; single-view models may ignore them.

        Returns:
            ``(x0_cond, x0_neg)``. Classifier-free guidance with scale s is ``x0_neg + s (x0_cond - x0_neg)``,
            the same in epsilon, v and x0, because all are linear in the network's output at one x_t.
        """
        ...


class PicturedPrior(Prior, Protocol):
    """A prior that looks at a picture of the thing; where it is not shown one, it sees a blank."""

    @property
    def pictured(self) -> bool:
        """True."""
        ...

    def with_picture(self, text: TextEmbedding, picture: Float[Tensor, "3 H W"]) -> TextEmbedding:
        """Embedded prompts beside a square picture, sRGB in [0, 1] over white."""
        ...
