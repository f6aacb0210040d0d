"""Camera-conditioned multi-view diffusion in MVDream's architecture (arXiv 2308.16512).

A stock ``UNet2DConditionModel``: the 16 numbers of the camera enter as class labels
(``class_embed_type="projection"``), and every self-attention layer attends over all views of a
set. Everything else is per view. The embedded ``mini`` prior is such a model in pixel space.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from psd_gs.cameras import Cameras, mvdream_cameras, turntable
from psd_gs.errors import InputError, ModelError
from psd_gs.priors.base import TextEmbedding


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
        name: MultiViewAttnProcessor(views) if name.endswith("attn1.processor") else AttnProcessor2_0()
        for name in unet.attn_processors
    }
    unet.set_attn_processor(processors)


def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Float[Tensor, "B L D"]:
    """Token features of each prompt, padded to the tokenizer's length."""
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


class MultiViewOutput(BaseOutput):
    """Result of :class:`MultiViewPipeline`: one list of V pictures per prompt, or ``[B, V, 3, H, W]`` in [0, 1]."""

    images: list[list[Image.Image]] | Tensor


class MultiViewPipeline(DiffusionPipeline):
    """Samples V consistent views of one object from a prompt.

    Works in pixel space when there is no ``vae`` (the embedded model), in its latent space otherwise.
    """

    _optional_components = ["vae"]  # noqa: RUF012 - diffusers reads a list

    def __init__(self, tokenizer, text_encoder, unet, scheduler, vae=None, views: int = 4) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(views=views)
        set_views(unet, views)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        cameras: Cameras | None = None,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
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
            generator: source of the initial noise.
            output_type: ``"pil"`` or ``"pt"``.
        """
        prior = MultiViewPrior(self)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        cameras = turntable(prior.views, elevation=15.0) if cameras is None else cameras
        text = encode_prompts(self.tokenizer, self.text_encoder, prompts).repeat_interleave(prior.views, 0)
        negative = prior.embed([negative_prompt]).expand(len(text))
        labels = mvdream_cameras(cameras).repeat(len(prompts), 1).to(self.device)
        x = torch.randn(len(prompts), prior.views, *prior.latent_shape, generator=generator).to(self.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            cond, uncond = prior.network(x, t.expand(len(prompts)), text, negative.sequence, labels)
            guided = uncond + guidance_scale * (cond - uncond)
            x = self.scheduler.step(guided, t, x).prev_sample
        images = prior.decode(x)
        if output_type == "pt":
            return MultiViewOutput(images=images)
        array = (images.permute(0, 1, 3, 4, 2).cpu().numpy() * 255).round().astype(np.uint8)
        return MultiViewOutput(images=[[Image.fromarray(view) for view in views] for views in array])


class MultiViewPrior:
    """A :class:`~psd_gs.priors.base.Prior` over a multi-view pipeline.

    Args:
        pipeline: its modules are frozen and used as they are.
        name: for logs and messages.
    """

    def __init__(self, pipeline: MultiViewPipeline, name: str = "mvdream") -> None:
        self.pipeline = pipeline
        self.name = name
        self.views = pipeline.config.views
        self.unet = pipeline.unet.requires_grad_(False).eval()
        self.vae = pipeline.vae
        self._encode_text = (pipeline.tokenizer, pipeline.text_encoder.requires_grad_(False).eval())
        self.latent_size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, self.latent_size, self.latent_size)
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_size = self.latent_size * factor
        config = pipeline.scheduler.config
        self.prediction_type = config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"prior {name}: expected a scheduler with prediction_type epsilon or v_prediction, "
                f"received {self.prediction_type}. Load a folder that MultiViewPipeline saved."
            )
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(self.device)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> MultiViewPrior:
        """Load a folder that ``MultiViewPipeline.save_pretrained`` wrote.

        Raises:
            ModelError: files are missing, truncated or of another architecture.
        """
        folder = Path(folder)
        try:
            # The text encoder by itself: a pipeline would fill in missing weights at random without a word.
            text_encoder, report = CLIPTextModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, dtype=dtype, output_loading_info=True
            )
            if report["missing_keys"]:
                raise ValueError(f"the text encoder lacks {len(report['missing_keys'])} of its tensors")
            pipeline = MultiViewPipeline.from_pretrained(
                folder, local_files_only=True, torch_dtype=None, dtype=dtype, text_encoder=text_encoder
            )
            expected, received = text_encoder.config.vocab_size, len(pipeline.tokenizer)
            if expected != received:
                raise ValueError(f"expected a tokenizer of {expected} tokens, received {received}")
        except Exception as error:  # safetensors, json, diffusers and transformers each raise their own
            reason = (str(error).splitlines() or [type(error).__name__])[0].split(" For more information")[0]
            raise ModelError(
                f"cannot load the prior in {folder}: {reason[:250]}. Install psd-gs again, or name another folder."
            ) from error
        return cls(pipeline.to(device), name)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> TextEmbedding:
        return TextEmbedding(encode_prompts(*self._encode_text, prompts).float())

    def encode(self, images: Float[Tensor, "G V 3 H W"]) -> Float[Tensor, "G V C h w"]:
        scaled = 2 * images - 1
        if self.vae is None:
            return scaled
        latents = self.vae.encode(scaled.flatten(0, 1).to(self.dtype)).latent_dist.mean * self.vae.config.scaling_factor
        return latents.float().unflatten(0, images.shape[:2])

    def decode(self, x0: Float[Tensor, "G V C h w"]) -> Float[Tensor, "G V 3 H W"]:
        if self.vae is not None:
            x0 = (
                self.vae.decode((x0.flatten(0, 1) / self.vae.config.scaling_factor).to(self.dtype))
                .sample.float()
                .unflatten(0, x0.shape[:2])
            )
        return (0.5 * x0 + 0.5).clamp(0, 1)

    def timesteps(self, t: Float[Tensor, " G"]) -> Tensor:
        """Fractions of the diffusion time to the network's integer timesteps."""
        last = len(self.alphas_cumprod) - 1
        return (t * last).round().long().clamp(0, last)

    def alpha_sigma(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        a = self.alphas_cumprod[self.timesteps(t)].view(-1, 1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(
        self, x0: Float[Tensor, "G V C h w"], noise: Float[Tensor, "G V C h w"], t: Float[Tensor, " G"]
    ) -> Float[Tensor, "G V C h w"]:
        alpha, sigma = self.alpha_sigma(t)
        return alpha * x0 + sigma * noise

    def network(
        self,
        x_t: Float[Tensor, "G V C h w"],
        timesteps: Tensor,
        text: Float[Tensor, "G*V L D"],
        negative: Float[Tensor, "G*V L D"],
        camera_labels: Float[Tensor, "G*V 16"],
    ) -> tuple[Tensor, Tensor]:
        """The raw outputs (epsilon or v) under both texts, from one batched call."""
        shape = x_t.shape
        twice = torch.cat([x_t, x_t]).flatten(0, 1).to(self.dtype)
        times = timesteps.repeat_interleave(shape[1]).repeat(2)
        context = torch.cat([text, negative]).to(self.dtype)
        labels = camera_labels.repeat(2, 1).to(self.dtype)
        out = self.unet(twice, times, encoder_hidden_states=context, class_labels=labels, return_dict=False)[0]
        cond, uncond = out.float().unflatten(0, (2 * shape[0], shape[1])).chunk(2)
        return cond, uncond

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
        out = self.network(
            x_t, self.timesteps(t), text.expand(rows).sequence, negative.expand(rows).sequence, mvdream_cameras(cameras)
        )
        alpha, sigma = self.alpha_sigma(t)
        to_x0: Callable[[Tensor], Tensor]
        if self.prediction_type == "v_prediction":
            to_x0 = lambda v: alpha * x_t - sigma * v  # noqa: E731 - one formula per parametrization
        else:
            to_x0 = lambda eps: (x_t - sigma * eps) / alpha  # noqa: E731
        return to_x0(out[0]), to_x0(out[1])


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on CPUs with instructions for it (about twice as fast there), else float32."""
    if torch.device(device).type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def cosine_scheduler() -> DDIMScheduler:
    """The schedule of the embedded model: cosine, v-prediction, trailing steps."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=True,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=False,
    )
