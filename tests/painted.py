"""A fast prior that knows what it wants: views of given Gaussians, with the exact denoiser of Gaussian data.

The data of the prompt are the target's views plus noise of standard deviation 0.1 per pixel; those of the
negative branch lie around a grey that the negative embedding sets, with 0.5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.config import CameraConfig, Config, DensifyConfig, InitConfig
from psd_gs.config.guidance import GuidanceConfig, NegativeConfig, PSDConfig
from psd_gs.gaussians import Gaussians, random_ball, rgb_to_sh0
from psd_gs.guidance.guide import Guidance
from psd_gs.priors.base import TextEmbedding
from psd_gs.render import render
from psd_gs.rewards.base import CallableReward
from psd_gs.testing import PixelPrior
from psd_gs.trainer import Trainer

RED = (0.9, 0.1, 0.1)


def bright(name: str = "bright") -> CallableReward:
    """A judge: how bright the pictures are."""
    judge = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), name)
    judge.render_size = RedReward.render_size
    return judge


def red_ball() -> Gaussians:
    ball = random_ball(150, 0.4, scale=0.06, opacity=0.8, generator=torch.Generator().manual_seed(0))
    return replace(ball, sh0=rgb_to_sh0(torch.tensor(RED)).expand(150, 1, 3).clone())


class PaintedPrior(PixelPrior):
    """Implements ``Prior``; ``broken`` holds the numbers of the calls that answer NaN."""

    name = "painted"
    views = 4
    image_size = 16
    device = torch.device("cpu")

    def __init__(self, target: Gaussians | None = None, broken: tuple[int, ...] = ()) -> None:
        self.target = target or red_ball()
        self.broken = broken
        self.calls = 0

    def embed(self, prompts: list[str]) -> TextEmbedding:
        return TextEmbedding(torch.stack([torch.full((2, 3), 0.1 + 0.01 * len(prompt)) for prompt in prompts]))

    def paint(self, cameras: Cameras) -> Tensor:
        """The target's views ``[G V 3 H W]`` on white, as latents."""
        rgb = render(self.target, cameras, torch.ones(3)).rgb
        return self.encode(rgb.permute(0, 3, 1, 2).unflatten(0, (-1, self.views)))

    def predict(
        self, x_t: Tensor, t: Tensor, text: TextEmbedding, negative: TextEmbedding, cameras: Cameras
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        alpha, sigma = self.alpha_sigma(t)

        def denoise(mean: Tensor, std: float) -> Tensor:
            return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)

        cond, neg = denoise(self.paint(cameras), 0.1), denoise(negative.sequence.mean(), 0.5)
        return (cond * math.nan, neg) if self.calls in self.broken else (cond, neg)


class RedReward:
    """How red the pictures are; differentiable."""

    name = "red"
    differentiable = True
    render_size = 64

    def score(self, images: Tensor, prompts: list[str], cameras: Cameras | None = None) -> Tensor:
        assert len(prompts) == len(images)
        return (images[:, :, 0] - images[:, :, 1]).mean((1, 2, 3))


def tiny_config(**options) -> Config:
    """A run of seconds in which everything acts: pairs, refinement, growing and pruning."""
    defaults = {
        "prompt": "a red ball",
        "steps": 40,
        "backgrounds": "white",
        "guidance": GuidanceConfig(
            method="recon",
            guidance_scale=1.5,
            psd=PSDConfig(pair_scale=1.5),
            negative=NegativeConfig(every=3, t_max=0.9),
        ),
        "init": InitConfig(count=120, scale=0.07, opacity=0.6),
        "cameras": CameraConfig(size=(16, 16)),
        "densify": DensifyConfig(every=0.1, grow=0.2, cap=250),
    }
    return Config(**{**defaults, **options})


def make_trainer(config: Config | None = None, folder: Path | None = None, prior=None, reward=None) -> Trainer:
    """A training of the red ball, or of what ``prior`` wants."""
    config = config or tiny_config()
    guidance = Guidance(
        prior or PaintedPrior(), config.prompt, config.guidance, reward=reward or RedReward(), seed=config.seed
    )
    init = config.init
    start = random_ball(
        init.count, init.radius, scale=init.scale, opacity=init.opacity, generator=torch.Generator().manual_seed(1)
    )
    return Trainer(config, guidance, start, folder)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Two states are equal to the bit, NaN where NaN."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value.nan_to_num(nan=-7.0), b[name].nan_to_num(nan=-7.0)), name
