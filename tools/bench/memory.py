"""Peak GPU memory of a run, computed on any machine: the package's own code on tensors without data.

    python tools/bench/memory.py                          # every family, every --vram
    python tools/bench/memory.py --family mvdream --vram 0 8 --stages

Networks have the published architectures; ``FakeTensorMode`` stands in for the GPU, so that shapes, devices and
lifetimes are real and nothing is computed. What is counted: weights, activations and what autograd keeps, of embedding
the texts, of looking at the picture where the prior does, of a step with a judged pair, of the step that refines the
negative embedding, and of scoring. What is not:
the CUDA context (0.3 to 0.6 GB), workspaces of cuDNN and cuBLAS, fragmentation, and the Gaussians with their renders
(0.1 GB at 100 000). GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5EncoderModel,
)

from psd_gs.cameras import Cameras, joined, turntable
from psd_gs.config import make_config
from psd_gs.guidance.negative import pull_loss
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.imagedream import SD21_4VIEW_IPMV, ImageDreamPrior, ImageDreamUNet
from psd_gs.priors.latent import LatentPrior
from psd_gs.priors.memory import PRESETS, one_at_a_time
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import SD21_4VIEW, scheduler, unet_config
from psd_gs.priors.sd3 import StableDiffusion3Prior
from psd_gs.priors.stable_diffusion import StableDiffusionPrior, StableDiffusionXLPrior
from psd_gs.rewards import images
from psd_gs.rewards.clip import image_features, vit_h_14
from psd_gs.rewards.parked import ParkedReward

GB = 1e9
FAMILIES = ("mvdream", "imagedream", "sd", "sdxl", "sd3")
GPU = torch.device("meta")
"""A device that is not the CPU and that every build of torch can slice tensors of."""


class Meter(TorchDispatchMode):
    """Bytes of all storages on the GPU that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == GPU.type:
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


class Attention(torch.autograd.Function):
    """What the GPU's kernels keep: arguments and result, but no matrix of weights as without them."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
    return Attention.apply(query, key, value)


def _tensor_to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``tensor.to``, which takes a copy to a device without data for an error."""
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype)
    return _moved(tensor, *torch._C._nn._parse_to(*args, **kwargs)[:2])


def _moved(tensor: torch.Tensor, device: torch.device | None, dtype: torch.dtype | None) -> torch.Tensor:
    device, dtype = device or tensor.device, dtype or tensor.dtype
    if (device.type, dtype) == (tensor.device.type, tensor.dtype):
        return tensor
    return torch.ops.aten._to_copy(tensor, device=device, dtype=dtype)


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """``module.to``, which exchanges the data of its parameters and cannot without any."""
    device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    new = _moved(tensor.detach(), device, dtype if tensor.is_floating_point() else None)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    own[name] = new  # type: ignore[assignment]
    return module


@contextmanager
def without_data() -> Iterator[Meter]:
    """A GPU of unlimited size on which nothing is computed."""
    images._statistics.cache_clear()
    with (
        patch.object(nn.Module, "to", _module_to),
        patch.object(torch.Tensor, "to", _tensor_to),
        patch.object(nn.functional, "scaled_dot_product_attention", _attention),
        FakeTensorMode(allow_non_fake_inputs=True),  # a statistic of a reward is one
        Meter() as meter,
    ):
        yield meter
    images._statistics.cache_clear()


# --- the published architectures -------------------------------------------------------------------------------------

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def _clip_l(kind: type = CLIPTextModel, **options: Any) -> Any:
    return kind(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, **options))


def _clip_h(**options: Any) -> Any:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    return CLIPTextModel(CLIPTextConfig(**sizes, **options))


def _clip_h_vision() -> CLIPVisionModel:
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14))


def _multiview(unet: UNet2DConditionModel, tokenizer: Any = None) -> Any:
    return MultiViewPipeline(tokenizer, _clip_h(), unet, scheduler(), AutoencoderKL(**VAE), views=4)


def _clip_g() -> Any:
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=1280))


def build_prior(
    family: str, vram: int = 0, size: int = 0, device: torch.device = GPU, tokenizer: Any = None
) -> LatentPrior:
    """The prior of a family, as ``load_prior`` makes it, with random weights or without data."""
    options: dict[str, Any] = {"device": device, "memory": PRESETS[vram], "image_size": size}
    half = torch.bfloat16 if family == "sd3" else torch.float16
    if family == "imagedream":
        model = ImageDreamUNet(SD21_4VIEW_IPMV).to(half)
        options |= {"resampler": model.resampler, "image_encoder": _clip_h_vision().to(half)}
        return ImageDreamPrior(_multiview(model.unet).to(half), **options)
    if family in ("mvdream", "sd"):
        config = unet_config(SD21_4VIEW)
        if family == "mvdream":
            return MultiViewPrior(_multiview(UNet2DConditionModel(**config), tokenizer).to(half), **options)
        config |= {"sample_size": 64, "class_embed_type": None, "projection_class_embeddings_input_dim": None}
        pipeline: Any = StableDiffusionPipeline(
            AutoencoderKL(**VAE), _clip_h(), tokenizer, UNet2DConditionModel(**config), scheduler(),
            None, None, None, False,
        )  # fmt: skip
        return StableDiffusionPrior(pipeline.to(half), "sd21", **options)
    if family == "sdxl":
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = AutoencoderKL(**VAE, scaling_factor=0.13025, force_upcast=True)
        texts = _clip_l(), _clip_g()
        pipeline = StableDiffusionXLPipeline(vae, *texts, None, None, unet, scheduler())
        return StableDiffusionXLPrior(pipeline.to(half), "sdxl", **options)
    transformer = SD3Transformer2DModel(  # Stable Diffusion 3.5 medium
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(**VAE, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False)
    t5 = T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu")
    texts = _clip_l(CLIPTextModelWithProjection), _clip_g(), T5EncoderModel(t5)
    with unset_fake_temporarily():  # it looks at its own numbers
        flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = StableDiffusion3Pipeline(
        transformer,
        flow,
        vae,
        texts[0],
        None,
        texts[1],
        None,
        texts[2],
        None,
    )
    return StableDiffusion3Prior(pipeline.to(half), "sd3", **options)


class FakeReward:
    """HPS v2.1 or PickScore by shape: a ViT-H/14 in half precision that scores every view."""

    def __init__(self) -> None:
        self.model = CLIPModel(vit_h_14()).to(torch.float16).requires_grad_(False).eval()

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    def score(self, images: torch.Tensor) -> torch.Tensor:
        return image_features(self.model, images.flatten(0, 1), "pad").sum(1)


# --- a run -----------------------------------------------------------------------------------------------------------


def stages(
    family: str, vram: int, *, turn: bool = True, refine: bool = True, space: str = "latent"
) -> dict[str, float]:
    """Peak of each stage of a run with the default preset, GB.

    Args:
        family: of the prior.
        vram: as the option.
        turn: the pair is turned along the reward's gradient.
        refine: the negative embedding is refined (pull).
        space: of the residual, as ``guidance.space``.
    """
    config = make_config("default", family)
    with without_data() as meter:
        peaks: dict[str, float] = {}

        def peak(name: str) -> None:
            peaks[name] = max(peaks.get(name, 0), meter.peak / GB)
            meter.peak = meter.now

        prior = build_prior(family, vram, config.prior_size)
        reward, judge = FakeReward(), ParkedReward(FakeReward(), GPU)
        if prior.memory.offload:
            reward = ParkedReward(reward, GPU)
        views, size = prior.views, prior.image_size
        place = torch.device("cpu") if prior.memory.offload else GPU
        prior._set_aside()
        with torch.no_grad(), one_at_a_time(prior._text_encoders(), place):
            for encoder in prior._text_encoders():
                encoder(torch.zeros(3, 77, dtype=torch.long))
        peak("texts")
        text = embedding(prior)
        if isinstance(prior, ImageDreamPrior):
            text = prior.with_picture(text, torch.rand(3, 512, 512, device=GPU))
            peak("picture")
        reward.to(GPU)
        cameras = turntable(views, size=size).to(GPU)
        # a step with a pair
        renders = torch.rand(1, views, 3, size, size, device=GPU, requires_grad=True)
        with torch.set_grad_enabled(space == "latent"):
            x0 = prior.encode(renders)
        peak("encode")
        t = torch.full((1,), 0.3, device=GPU)
        if turn:
            leaf = x0.detach().requires_grad_(True)
            torch.autograd.grad(reward.score(prior.decode(leaf)).sum(), leaf)
            del leaf
            peak("turn")
        with torch.no_grad():
            x_t = torch.randn(2, *x0.shape[1:], device=GPU)
            cond, neg = prior.predict(x_t, t.repeat(2), text, embedding(prior), joined([cameras] * 2))
            peak("predict")
            reward.score(prior.decode(neg + 7.5 * (cond - neg)))
            peak("reward")
        if refine:
            refined(prior, x_t[:1], cond[:1], neg[:1], t, cameras)
            peak("refine")
        del cond, neg, x_t
        if space == "image":
            with torch.no_grad():
                picture = prior.decode(x0)
            (renders - picture).square().sum().backward()
            del picture
        else:
            (x0 - 1).square().sum().backward()
        peak("backward")
        del x0, renders
        with torch.no_grad():
            judge.score(torch.rand(2, 4, 3, 256, 256, device=GPU))
        peak("scoring")
        return peaks


def embedding(prior: LatentPrior) -> TextEmbedding:
    """One row, as the text encoders give it."""
    width = prior.denoiser.config.get("cross_attention_dim") or prior.denoiser.config.joint_attention_dim
    pooled = {"sdxl": 1280, "sd3": 2048, "imagedream": math.prod(prior.latent_shape)}.get(prior.family)
    length = {"sd3": 154, "imagedream": 77 + 16}.get(prior.family, 77)
    return TextEmbedding(
        torch.randn(1, length, width, device=GPU), torch.randn(1, pooled, device=GPU) if pooled else None
    )


def refined(prior: LatentPrior, x_t: Any, cond: Any, neg: Any, t: Any, cameras: Cameras) -> None:
    """The graph of one update of the negative embedding."""
    watched = embedding(prior)
    watched.sequence.requires_grad_(True)
    _, moved = prior.predict(x_t, t, watched, watched, cameras)
    loss = pull_loss(moved + 7.5 * (cond - moved), cond + 7.5 * (cond - neg))
    torch.autograd.grad(loss, watched.sequence)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=FAMILIES)
    parser.add_argument("--vram", type=int, choices=list(PRESETS), nargs="+", default=list(PRESETS))
    parser.add_argument("--space", choices=["latent", "image"], default="latent", help="guidance.space")
    parser.add_argument("--stages", action="store_true", help="the peak of each")
    options = parser.parse_args(arguments)
    print("| prior | --vram | peak, GB | of it |")
    print("|---|---|---|---|")
    for family in options.family:
        for vram in options.vram:
            found = stages(family, vram, space=options.space)
            top = max(found, key=lambda name: found[name])
            all_of_it = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
            print(f"| {family} | {vram} | {found[top]:.2f} | {all_of_it if options.stages else top} |", flush=True)


if __name__ == "__main__":
    main()
