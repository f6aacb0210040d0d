"""What all priors from diffusers have in common: frozen modules, an autoencoder, clean estimates from any output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_gs.cameras import Cameras
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.plugins import resolved
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.memory import Memory, one_at_a_time, slice_attention
from psd_gs.resize import clamped

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MULTIPLE = 64
"""Image sides are multiples of this, so that every level of every network has whole pixels."""


class LatentPrior(ABC):
    """A :class:`~psd_gs.priors.base.Prior` over a diffusers pipeline with discrete, variance-preserving times.

    A subclass says how texts are encoded and how the network is called; flow models also replace the levels.

    Args:
        pipeline: its modules are frozen and used as they are.
        name: for logs and messages.
        device: where the networks run.
        memory: what is given up for memory.
        image_size: side of the images in pixels; 0 is what the model was trained for.

    Raises:
        ConfigError: an image size that the networks cannot divide.
        ModelError: an output that is neither noise, velocity nor the clean picture.
    """

    pipeline_class: ClassVar[str]
    """As ``module:name``: diffusers takes seconds to import, which only folders need."""
    family: ClassVar[str]
    """Section of the presets."""
    overflows: ClassVar[bool] = False
    """Whether float16 is too narrow for the denoiser and its text encoders."""
    vae_overflows: ClassVar[bool] = False
    """Whether it is for the autoencoder, unless its configuration says otherwise."""
    views = 1

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name: str,
        *,
        device: torch.device | str | None = None,
        memory: Memory | None = None,
        image_size: int = 0,
    ) -> None:
        self.pipeline, self.name, self.memory = pipeline, name, memory or Memory()
        self.denoiser: Any = getattr(pipeline, "unet", None) or pipeline.transformer
        self.vae = pipeline.vae
        self.device = torch.device(device) if device else self.denoiser.device
        for module in (self.denoiser, self.vae, *self._text_encoders()):
            if module is not None:
                module.requires_grad_(False).eval()
        self.factor = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        if image_size % MULTIPLE:
            raise ConfigError(
                f"prior {name}: expected an image size that is a multiple of {MULTIPLE}, received {image_size}."
            )
        self.latent_size = image_size // self.factor or self.denoiser.config.sample_size
        self.image_size = self.latent_size * self.factor
        self.latent_shape = (self.denoiser.config.in_channels, self.latent_size, self.latent_size)
        self._adopt_schedule(pipeline.scheduler)
        self._away = self.denoiser.device.type != self.device.type
        self._place()

    @classmethod
    def fast_dtype(cls, device: torch.device | str) -> torch.dtype:
        """What ``--dtype auto`` means: float32 on the CPU; elsewhere float16, or bfloat16 where float16 overflows.

        Guidance lives on the difference of two predictions, in which bfloat16 errs by 1.3 % at time 0.98, 8.7 % at 0.5
        and 18.9 % at 0.05, float16 by 0.1, 1.1 and 2.4 % (embedded prior). Published halves are float16 as well.
        """
        if torch.device(device).type == "cpu":
            return torch.float32
        return wide_half(device, torch.float16) if cls.overflows else torch.float16

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, name: str, dtype: torch.dtype = torch.float32, **options: Any
    ) -> LatentPrior:
        """Load a folder as ``save_pretrained`` or the hub lays it out.

        Args:
            folder: of the pipeline.
            name: for logs and messages.
            dtype: of the weights.
            options: of the constructor.

        Raises:
            ModelError: files are missing, truncated or of another architecture.
        """
        from psd_gs.priors.loading import load_pipeline

        return cls(load_pipeline(resolved(cls.pipeline_class), Path(folder), dtype), name, **options)

    # --- subclasses ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        """One row per prompt."""

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict[str, Any]:
        """Arguments of the network besides latents, times and the token sequence; one row per text."""
        return {}

    def _latents(self, x: Float[Tensor, "B C h w"], text: TextEmbedding) -> Float[Tensor, "B C h w"]:
        """What the network is shown of noisy latents; one row per text."""
        return x

    def _adopt_schedule(self, scheduler: Any) -> None:
        self.prediction_type = scheduler.config.get("prediction_type")
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ModelError(
                f"prior {self.name}: expected a scheduler with prediction_type epsilon, v_prediction or sample, "
                f"received {self.prediction_type}. Name another folder."
            )
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device)

    def timesteps(self, t: Float[Tensor, " G"]) -> Tensor:
        """Fractions of the diffusion time to what the network is told."""
        last = len(self.alphas_cumprod) - 1
        return (t * last).round().long().clamp(0, last)

    def alpha_sigma(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        a = self.alphas_cumprod[self.timesteps(t)].view(-1, 1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def to_x0(self, output: Tensor, x_t: Tensor, t: Float[Tensor, " G"]) -> Tensor:
        """The clean estimate in an output: ``(x_t - sigma eps) / alpha`` (DDPM, 2006.11239) or
        ``alpha x_t - sigma v`` (Salimans and Ho, 2202.00512, appendix D); a sample is one already."""
        if self.prediction_type == "sample":
            return output
        alpha, sigma = self.alpha_sigma(t)
        return (
            alpha * x_t - sigma * output if self.prediction_type == "v_prediction" else (x_t - sigma * output) / alpha
        )

    @property
    def frames(self) -> int:
        """Rows of the network's batch that see each other."""
        return self.views

    # --- the protocol -------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> TextEmbedding:
        """A text encoder is on the device only while it runs, and the denoiser not before all of them are done."""
        place = torch.device("cpu") if self.memory.offload else self.device
        self._set_aside()
        with one_at_a_time(self._text_encoders(), place):
            return self._encode_text(prompts, place).to(self.device).float()

    def encode(self, images: Float[Tensor, "G V 3 H W"]) -> Float[Tensor, "G V C h w"]:
        if self.vae is None:
            return 2 * images - 1
        self._make_room()
        scaled = 2 * clamped(images).flatten(0, 1) - 1
        mean = self.vae.encode(scaled.to(self.vae.dtype)).latent_dist.mean.float()
        latents = ((mean - self._shift) * self.vae.config.scaling_factor).unflatten(0, images.shape[:2])
        if latents.requires_grad:  # the gradient comes back after the denoiser has spoken
            latents.register_hook(lambda gradient: self._make_room())
        return latents

    def decode(self, x0: Float[Tensor, "G V C h w"]) -> Float[Tensor, "G V 3 H W"]:
        if self.vae is not None:
            if not torch.is_grad_enabled():  # a denoiser in a graph has to stay where it is
                self._make_room()
            latents = x0.flatten(0, 1) / self.vae.config.scaling_factor + self._shift
            x0 = self.vae.decode(latents.to(self.vae.dtype)).sample.float().unflatten(0, x0.shape[:2])
        return (0.5 * x0 + 0.5).clamp(0, 1)

    def add_noise(
        self, x0: Float[Tensor, "G V C h w"], noise: Float[Tensor, "G V C h w"], t: Float[Tensor, " G"]
    ) -> Float[Tensor, "G V C h w"]:
        alpha, sigma = self.alpha_sigma(t)
        return alpha * x0 + sigma * noise

    def network(
        self,
        x_t: Float[Tensor, "G V C h w"],
        timesteps: Float[Tensor, " G"],
        text: TextEmbedding,
        negative: TextEmbedding,
        cameras: Cameras,
    ) -> tuple[Float[Tensor, "G V C h w"], Float[Tensor, "G V C h w"]]:
        """The raw outputs (noise or velocity) under both texts, from one batched call; one text is computed once."""
        if self._away:
            self.denoiser.to(self.device)
            self._away = False
        groups, views = x_t.shape[:2]
        rows = text.expand(groups * views)
        rows = (rows if negative is text else rows.joined(negative.expand(groups * views))).to(self.dtype)
        branches = len(rows) // (groups * views)
        out = self.denoiser(
            self._latents(x_t.repeat(branches, 1, 1, 1, 1).flatten(0, 1), rows).to(self.dtype),
            timestep=timesteps.repeat_interleave(views).repeat(branches),
            encoder_hidden_states=rows.sequence,
            return_dict=False,
            **self._conditions(rows, cameras),
        )[0]
        outputs = out.float().unflatten(0, (branches * groups, views)).chunk(branches)
        return outputs[0], outputs[-1]

    def predict(
        self,
        x_t: Float[Tensor, "G V C h w"],
        t: Float[Tensor, " G"],
        text: TextEmbedding,
        negative: TextEmbedding,
        cameras: Cameras,
    ) -> tuple[Float[Tensor, "G V C h w"], Float[Tensor, "G V C h w"]]:
        rows = x_t.shape[0] * x_t.shape[1]
        if len(cameras) != rows:
            raise InputError(f"expected {rows} cameras (groups x views), received {len(cameras)}.")
        cond, neg = self.network(x_t, self.timesteps(t), text, negative, cameras)
        return self.to_x0(cond, x_t, t), self.to_x0(neg, x_t, t)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _text_encoders(self) -> list[nn.Module]:
        found = (getattr(self.pipeline, f"text_encoder{suffix}", None) for suffix in ("", "_2", "_3"))
        return [encoder for encoder in found if encoder is not None]

    def _place(self) -> None:
        """Apply what saves memory; the denoiser comes to the device when it is first asked."""
        if self.memory.slice_attention:
            slice_attention(self.denoiser, self.frames)
        if self.vae is None:
            return
        self._shift = self.vae.config.get("shift_factor") or 0.0
        overflows = self.vae_overflows and self.vae.config.force_upcast and self.vae.dtype == torch.float16
        self.vae.to(self.device, wide_half(self.device, torch.float32) if overflows else None)
        if self.memory.slice_vae:
            self.vae.enable_slicing()
        # The decoder is in a graph only where a reward's gradient is asked for, and that graph is the largest of all.
        self.vae.enable_gradient_checkpointing()
        self.vae.encoder.gradient_checkpointing = self.memory.checkpoint

    def _make_room(self) -> None:
        if self.memory.offload:
            self._set_aside()

    def _set_aside(self) -> None:
        if self.device.type != "cpu" and not self._away:
            self.denoiser.to("cpu")
            self._away = True


def wide_half(device: torch.device | str, otherwise: torch.dtype) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else ``otherwise``."""
    kind = torch.device(device).type
    slow = kind == "cpu" or (kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False))
    return otherwise if slow else torch.bfloat16
