"""Time the steps of published priors, against the bare calls of the networks in them.

    python tools/bench/step.py                     # full-size networks on CUDA, tiny ones elsewhere
    python tools/bench/step.py --case mvdream --gaussians 100000

Networks have the published architectures and random weights, so no download is needed and no picture is made; steps are
timed as ``psd-gs bench`` does. ``floor`` is the sum of the bare U-Net, VAE and reward calls of the same shapes.
``ideal`` is the ratio of the FLOPs that these calls take in a step with preferences and in one without; they are
counted on shapes alone, so this number is that of the full-size networks on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import tiny_models

from bench import memory
from psd_gs.benchmark import milliseconds, step_times, table
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.priors import mini
from psd_gs.priors.latent import LatentPrior
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.stable_diffusion import StableDiffusionPrior
from psd_gs.rewards.clip import CLIPReward, vit_h_14

CASES = {"sd21": "sd", "mvdream": "mvdream"}
"""Family of each."""
EVERY = 3
"""Cadence of the cheaper variant."""
REPEATS = 10


def build_prior(case: str, device: torch.device) -> LatentPrior:
    """Tiny on a CPU, else full size."""
    if device.type == "cpu":
        kind = MultiViewPrior if case == "mvdream" else StableDiffusionPrior
        return kind(tiny_models.PIPELINES[case](), case, device=device)
    with torch.device(device):
        return memory.build_prior(CASES[case], device=device, tokenizer=tokenizer())


def build_reward(device: torch.device) -> CLIPReward:
    """HPSv2.1's architecture, or a tiny one."""
    config, dtype = vit_h_14(), torch.float32 if device.type == "cpu" else torch.float16
    if device.type == "cpu":
        for part in (config.text_config, config.vision_config):
            part.hidden_size, part.intermediate_size, part.num_hidden_layers, part.num_attention_heads = 32, 64, 1, 2
        config.vision_config.patch_size = 56
    with torch.device(device):
        model = CLIPModel(config)
    return CLIPReward(model.to(device, dtype), tokenizer(), "hpsv2.1", fit="pad")


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(mini.folder("prior") / "tokenizer")


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
def full_size_flops(case: str) -> tuple[float, float]:
    """TFLOPs of the networks in a step without preferences and in one with them, at full size, from shapes alone."""
    device, counts = torch.device("meta"), {}
    for name, call in bare_calls(build_prior(case, device), build_reward(device)).items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops() / 1e12
    return counts["encode"] + counts["predict"] / 2, sum(counts.values())


def measure(console: Console, case: str, count: int, device: torch.device) -> None:
    prior, reward = build_prior(case, device), build_reward(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timings = list(step_times(TextTo3DPipeline(prior, reward), count, REPEATS))
    with torch.no_grad():
        bare = {name: milliseconds(call, device, REPEATS) for name, call in bare_calls(prior, reward).items()}
    console.print(table(timings))
    parts = ", ".join(f"{name} {value:.1f}" for name, value in bare.items())
    console.print(f"bare networks, ms: {parts}; floor {sum(bare.values()):.1f}")
    if device.type == "cuda":
        console.print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--gaussians", type=int, action="append")
    options = parser.parse_args(arguments)
    full = torch.cuda.is_available()
    device = torch.device("cuda" if full else "cpu")
    console = Console(highlight=False, soft_wrap=True)
    if full:
        console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        torch.backends.cudnn.benchmark = True
    else:
        console.print("no CUDA GPU: tiny networks, which say nothing about the real ones")
    for case in options.case or CASES:
        sds, psd = full_size_flops(case)
        console.print(
            f"{case} at full size, TFLOPs: sds {sds:.1f}, psd {psd:.1f}; ideal psd / sds {psd / sds:.2f}, "
            f"every {EVERY} steps {1 + (psd / sds - 1) / EVERY:.2f}"
        )
        for count in options.gaussians or ((10_000, 100_000) if full else (200,)):
            measure(console, case, count, device)


if __name__ == "__main__":
    main()
