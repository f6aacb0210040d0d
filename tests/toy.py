"""A prior whose every prediction is known in closed form: Gaussian data, exact denoiser, linear reward.

Data have variance 1 in an 8-dimensional subspace of a 64-dimensional space and 0.02**2 off it; the data of the
negative branch are broader (variance 4) in the subspace. The images are latents repeated over the channels, and
not bounded, so that everything stays linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.config.guidance import GuidanceConfig
from psd_gs.guidance.preference import Setup, preference_class
from psd_gs.priors.base import TextEmbedding
from psd_gs.testing import PixelPrior

SIZE = 8
DIM = SIZE * SIZE
RANK = 8
OFF_STD = 0.02
COND_VAR, NEG_VAR = 1.0, 4.0


def on_basis() -> Tensor:
    """Orthonormal basis ``[DIM, RANK]`` of the data's subspace."""
    noise = torch.randn(DIM, RANK, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.linalg.qr(noise).Q


def unit(seed: int, on: bool) -> Tensor:
    """A random unit vector in the data's subspace, or orthogonal to it."""
    basis = on_basis()
    v = torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inside = basis @ (basis.T @ v)
    return torch.nn.functional.normalize(inside if on else v - inside, dim=0)


R_ON, R_OFF = unit(1, on=True), unit(2, on=False)
MEAN = 2 * unit(3, on=True)


def flatten(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-3], DIM)


def gain(alpha: Tensor, sigma: Tensor, variance: float) -> Tensor:
    """Jacobian of the clean estimate in a direction of that data variance."""
    return alpha * variance / (alpha**2 * variance + sigma**2)


class ToyPrior(PixelPrior):
    """Implements ``Prior`` with ``alpha = cos(pi t / 2)``; the first token of an embedding is the data's mean."""

    name = "toy"
    image_size = SIZE
    device = torch.device("cpu")

    def __init__(self, views: int = 1) -> None:
        self.views = views
        self.basis = on_basis()
        self.calls: list[int] = []
        self.decoded = 0

    def embed(self, prompts: list[str]) -> TextEmbedding:
        rows = [torch.stack([MEAN if prompt else 0 * MEAN, torch.ones_like(MEAN)]) for prompt in prompts]
        return TextEmbedding(torch.stack(rows))

    def encode(self, images: Tensor) -> Tensor:
        return images.double().mean(2, keepdim=True)

    def decode(self, x0: Tensor) -> Tensor:
        self.decoded += len(x0)
        return x0.expand(-1, -1, 3, -1, -1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().alpha_sigma(t.double())

    def predict(
        self, x_t: Tensor, t: Tensor, text: TextEmbedding, negative: TextEmbedding, cameras: Cameras
    ) -> tuple[Tensor, Tensor]:
        assert len(cameras) == x_t.shape[0] * x_t.shape[1]
        self.calls.append(len(x_t))
        alpha, sigma = (value.view(-1, 1, 1) for value in self.alpha_sigma(t))

        def denoise(embedding: TextEmbedding, variance: float) -> Tensor:
            mean = embedding.expand(len(cameras)).sequence[:, 0].view(*x_t.shape[:2], DIM)
            z = flatten(x_t) - alpha * mean
            inside = z @ self.basis @ self.basis.T
            off = gain(alpha, sigma, OFF_STD**2)
            return (mean + gain(alpha, sigma, variance) * inside + off * (z - inside)).view(x_t.shape)

        return denoise(text, COND_VAR), denoise(negative, NEG_VAR)


class LinearReward:
    """``r_on . x + 3 r_off . x``: mostly adversarial, as pixel gradients of a learned reward are."""

    name = "linear"
    differentiable = True

    def __init__(self) -> None:
        self.direction = R_ON + 3 * R_OFF
        self.images_scored = 0

    def score(self, images: Tensor, prompts: list[str], cameras: Cameras | None) -> Tensor:
        assert len(prompts) == len(images)
        self.images_scored += images.shape[0] * images.shape[1]
        return flatten(images.mean(2, keepdim=True)) @ self.direction


def cameras_for(groups: int, views: int = 1) -> Cameras:
    return turntable(groups * views, size=SIZE)


def random_images(groups: int, views: int = 1, seed: int = 0) -> Tensor:
    x0 = 0.1 * torch.randn(
        groups, views, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return x0.repeat(1, 1, 3, 1, 1).requires_grad_(True)


def preferring(name: str, options: object):
    """A preference score by itself, with its ``options``."""
    prior = ToyPrior()
    config = GuidanceConfig(preference=name, **{name: options})
    return preference_class(name)(Setup(prior, [LinearReward()], "y", config, prior.embed([""])))
