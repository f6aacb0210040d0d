"""Time one optimization step by part, against the bare calls of the networks in it.

    python tools/bench/step.py                     # full-size networks on CUDA, tiny ones elsewhere
    python tools/bench/step.py --case mvdream --gaussians 100000 --size 512

Networks have the published architectures and random weights, so no download is needed and no picture is made.
``floor`` is the sum of the bare U-Net, VAE and reward calls of the same shapes. ``ideal`` is the ratio of the
FLOPs that these calls take in a step with preferences and in one without; they are counted on shapes alone, so this
number is that of the full-size networks on any machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from psd_gs import TextTo3DPipeline, trainer
from psd_gs.config import make_config
from psd_gs.priors import mini
from psd_gs.priors.latent import LatentPrior
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import SD21_4VIEW, scheduler, unet_config
from psd_gs.priors.stable_diffusion import StableDiffusionPrior
from psd_gs.rewards.clip import CLIPReward, vit_h_14

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny_models

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CASES = ("sd21", "mvdream")
EVERY = 3
"""Cadence of the cheaper variant."""
WARM, REPEATS = 3, 10


def build_prior(case: str, device: torch.device, dtype: torch.dtype) -> LatentPrior:
    """Tiny on a CPU, else full size; the text encoder is small, for it does not run in a step."""
    many = case == "mvdream"
    with torch.device(device):
        if device.type == "cpu":
            pipeline = tiny_models.PIPELINES[case]()
        else:
            config = unet_config(SD21_4VIEW)  # Stable Diffusion 2.1's, with cameras
            if not many:
                config |= {"sample_size": 64, "class_embed_type": None, "projection_class_embeddings_input_dim": None}
            words = tokenizer()
            text = CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=1024,
                num_hidden_layers=1,
                num_attention_heads=16,
                max_position_embeddings=words.model_max_length,
            )
            parts: dict[str, Any] = {
                "tokenizer": words,
                "text_encoder": CLIPTextModel(text),
                "unet": UNet2DConditionModel(**config),
                "scheduler": scheduler(),
                "vae": AutoencoderKL(**VAE),
            }
            if many:
                pipeline = MultiViewPipeline(**parts)
            else:
                extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
                pipeline = StableDiffusionPipeline(**parts, **extras)
    kind = MultiViewPrior if many else StableDiffusionPrior
    return kind(pipeline.to(device, dtype), case, device=device)


def build_reward(device: torch.device, dtype: torch.dtype) -> CLIPReward:
    """HPSv2.1's architecture, or a tiny one."""
    config = vit_h_14()
    if device.type == "cpu":
        for part in (config.text_config, config.vision_config):
            part.hidden_size, part.intermediate_size, part.num_hidden_layers, part.num_attention_heads = 32, 64, 1, 2
        config.vision_config.patch_size = 56
    with torch.device(device):
        model = CLIPModel(config)
    return CLIPReward(model.to(device, dtype), tokenizer(), "hpsv2.1", fit="pad")


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(mini.folder("prior") / "tokenizer")


# --- clocks ----------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median of single calls, after warming up."""
    times = []
    for i in range(WARM + repeats):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        if i >= WARM:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


@contextmanager
def watched(prior: LatentPrior, reward: CLIPReward) -> Iterator[dict[str, list[float]]]:
    """Milliseconds of each part of a step; waits for the device around each, so the sum exceeds a step's time."""
    times: dict[str, list[float]] = defaultdict(list)
    places = [(trainer, "render"), (prior, "encode"), (prior, "predict"), (prior, "decode"), (reward, "score")]
    places.append((torch.Tensor, "backward"))
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]

    def timed(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        wait(prior.device)
        start = time.perf_counter()
        out = function(*args, **kwargs)
        wait(prior.device)
        times[name].append(1e3 * (time.perf_counter() - start))
        return out

    for owner, name, function in kept:
        if isinstance(owner, type):  # keeps binding the tensor
            setattr(owner, name, lambda self, *a, _n=name, _f=function, **k: timed(_n, _f, self, *a, **k))
        else:
            setattr(owner, name, partial(timed, name, function))
    try:
        yield times
    finally:
        for owner, name, function in kept:
            if owner is prior or owner is reward:
                delattr(owner, name)
            else:
                setattr(owner, name, function)


# --- what is measured ------------------------------------------------------------------------------------------------


def make_trainer(pipeline: TextTo3DPipeline, case: str, preference: str, count: int, size: int, every: int = 1):
    """A training in the middle of its run, where every part acts, without densification."""
    tiny = pipeline.prior.device.type != "cuda"
    config = make_config(
        "default",
        {"sd21": "sd", "mvdream": "mvdream"}[case],
        {
            "prompt": "a corgi",
            "steps": 10**6,
            "guidance": {
                "preference": preference,
                "psd": {"start": 0.0, "t_max": 1.0, "every": every},
                "negative": {"mode": "off"},
            },
            "init": {"count": 200 if tiny else count, "scale": 0.006},
            "cameras": {"size": [32, 32] if tiny else [size, size]},
            "densify": {"enabled": False},
        },
    )
    return pipeline.trainer(config)


def bare_calls(prior: LatentPrior, reward: CLIPReward) -> dict[str, Callable[[], Any]]:
    """The networks alone, as in a step with preferences: one encoding with its backward pass, one prediction and
    decoding of the pair, one scoring."""
    views, device = prior.views, prior.device
    images = torch.rand(views, 3, prior.image_size, prior.image_size, device=device, dtype=prior.vae.dtype)
    latents = torch.randn(4 * views, *prior.latent_shape, device=device, dtype=prior.dtype)
    width = prior.denoiser.config.cross_attention_dim
    text = torch.randn(4 * views, 77, width, device=device, dtype=prior.dtype)
    labels = torch.zeros(4 * views, 16, device=device, dtype=prior.dtype) if views > 1 else None
    times = torch.full((4 * views,), 500, device=device)
    pictures = torch.rand(2, views, 3, prior.image_size, prior.image_size, device=device)

    def encode() -> None:
        with torch.enable_grad():
            prior.vae.encode(images.requires_grad_()).latent_dist.mean.sum().backward()

    return {
        "encode": encode,
        "predict": lambda: prior.denoiser(latents, times, encoder_hidden_states=text, class_labels=labels),
        "decode": lambda: prior.vae.decode(latents[: 2 * views].to(prior.vae.dtype)),
        "reward": lambda: reward.score(pictures, ["a corgi"] * 2),
    }


@torch.no_grad()
def full_size_flops(case: str, dtype: torch.dtype) -> tuple[float, float]:
    """TFLOPs of the networks in a step without preferences and in one with them, at full size, from shapes alone."""
    device = torch.device("meta")
    counts = {}
    for name, call in bare_calls(build_prior(case, device, dtype), build_reward(device, dtype)).items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops() / 1e12
    return counts["encode"] + counts["predict"] / 2, sum(counts.values())


def measure(console: Console, case: str, count: int, size: int, device: torch.device, dtype: torch.dtype) -> None:
    prior, reward = build_prior(case, device, dtype), build_reward(device, dtype)
    pipeline = TextTo3DPipeline(prior, reward)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = {
        "sds": make_trainer(pipeline, case, "none", count, size),
        "psd": make_trainer(pipeline, case, "psd", count, size),
        f"psd every {EVERY}": make_trainer(pipeline, case, "psd", count, size, every=EVERY),
    }
    console.print(f"{case}: {len(runs['psd'].gaussians)} Gaussians, {prior.views} x {prior.image_size} pixels, {dtype}")
    steps = {}
    for name, made in runs.items():
        cycle = EVERY if "every" in name else 1

        def turn(made=made, cycle=cycle) -> None:
            for _ in range(cycle):
                made._step()

        steps[name] = milliseconds(turn, device) / cycle
    with watched(prior, reward) as parts:
        for _ in range(WARM + REPEATS):
            runs["psd"]._step()
    with torch.no_grad():
        bare = {name: milliseconds(call, device) for name, call in bare_calls(prior, reward).items()}
    floor = sum(bare.values())
    median = {name: sorted(v[WARM:])[len(v[WARM:]) // 2] for name, v in parts.items()}
    console.print("  parts of a psd step, ms: " + ", ".join(f"{name} {value:.1f}" for name, value in median.items()))
    console.print("  bare networks, ms:       " + ", ".join(f"{name} {value:.1f}" for name, value in bare.items()))
    for name, value in steps.items():
        console.print(
            f"  {name:12s} {value:8.1f} ms   / sds {value / steps['sds']:5.2f}   / floor {value / floor:5.2f}"
        )
    console.print(f"  floor {floor:.1f} ms")
    if device.type == "cuda":
        console.print(f"  peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--gaussians", type=int, action="append")
    parser.add_argument("--size", type=int, action="append", help="side of the renders, pixels")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    console = Console(highlight=False, soft_wrap=True)
    if device.type == "cuda":
        console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        torch.backends.cudnn.benchmark = True
    else:
        console.print("no CUDA GPU: tiny networks, which say nothing about the real ones")
    full = device.type == "cuda"
    for case in options.case or CASES:
        sds, psd = full_size_flops(case, torch.bfloat16)
        console.print(
            f"{case} at full size, TFLOPs: sds {sds:.1f}, psd {psd:.1f}; ideal psd / sds {psd / sds:.2f}, "
            f"every {EVERY} steps {1 + (psd / sds - 1) / EVERY:.2f}"
        )
        for size in options.size or ((256, 512) if full else (32,)):
            for count in options.gaussians or ((10_000, 100_000) if full else (200,)):
                measure(console, case, count, size, device, dtype)


if __name__ == "__main__":
    main()
