"""Variational score distillation, ProlificDreamer (2305.16213), Eq. 9: ``w (eps_hat(x_t) - eps_lora(x_t; y))``.

A copy of the prior, as LoRA weights on its attention layers, is trained beside the asset on noisy renders and stands
for the score of the renders. It sees what the prior sees: the prompt, and the view through the prompt's direction or
the cameras; the paper's extra camera embedding is left out.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.config.guidance import GuidanceConfig, VSDConfig
from psd_gs.errors import ConfigError
from psd_gs.guidance.base_scores import BaseScore
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction
from psd_gs.priors.base import Prior

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
T_RANGE = (1e-3, 0.999)
"""Times that the copy is trained at."""

_count = itertools.count()


def vsd(prediction: Prediction, denoiser: Denoiser, config: GuidanceConfig) -> Latents:
    """The residual toward the guided estimate, from what the copy makes of the same noisy render."""
    assert denoiser.lora is not None
    return denoiser.lora(denoiser, prediction.x_t) - prediction.guided(config.guidance_scale)


class Lora:
    """LoRA weights on a prior's network, with their optimizer; without effect on the prior outside their own calls.

    Args:
        prior: keeps its diffusion network in ``denoiser``, a diffusers model.
        config: options.
        generator: draws the initial weights, and the noise and times of the training.

    Raises:
        ConfigError: the prior cannot take LoRA, or peft is not installed.
    """

    def __init__(self, prior: Prior, config: VSDConfig, generator: torch.Generator) -> None:
        self.network: Any = _network(prior)
        self.generator = generator
        from peft import LoraConfig

        self.name = f"vsd_{next(_count)}"  # several may share a prior
        options = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=LAYERS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            self.network.add_adapter(options, adapter_name=self.name)
        weakref.finalize(self, self.network.delete_adapters, self.name).atexit = False
        mark = f".{self.name}."
        self.weights = {k.replace(mark, "."): p for k, p in self.network.named_parameters() if mark in k}
        self.network.disable_adapters()
        for name, weight in self.weights.items():
            weight.data = weight.data.float()  # updates of a ten-thousandth vanish in half precision
            if "lora_A" in name:  # as peft, from our own generator; lora_B is zero
                bound = weight.shape[1] ** -0.5
                drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
                weight.data.copy_(drawn)
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=config.lr, weight_decay=0.0)
        for weight in self.weights.values():
            self.optimizer.state[weight] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(weight, device=prior.device),
                "exp_avg_sq": torch.zeros_like(weight, device=prior.device),
            }

    def __call__(self, denoiser: Denoiser, x_t: Latents) -> Latents:
        """Clean estimates of the copy under the prompt, without guidance."""
        with self._active():
            return denoiser.branches(x_t, denoiser.t, denoiser.text, denoiser.text)[0]

    @torch.enable_grad()
    def train(self, denoiser: Denoiser, x0: Float[Tensor, "G V C h w"]) -> Float[Tensor, ""]:
        """One step toward the score of the renders; returns the mean squared error in epsilon."""
        low, high = T_RANGE
        t = low + (high - low) * torch.rand(len(x0), generator=self.generator)
        noise = torch.randn(1, *x0.shape, generator=self.generator, dtype=x0.dtype).to(x0.device)
        x_t = denoiser.add_noise(x0, noise, t)
        alpha, sigma = denoiser.levels(t)
        with self._active():
            estimate, _ = denoiser.branches(x_t, t, denoiser.text, denoiser.text)
            loss = (alpha / sigma * (estimate - x0)).square().mean()
            gradients = torch.autograd.grad(loss, list(self.weights.values()))
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @contextmanager
    def _active(self) -> Iterator[None]:
        self.network.enable_adapters()
        self.network.set_adapter(self.name)
        try:
            yield
        finally:
            self.network.disable_adapters()

    def state_dict(self) -> dict[str, Tensor]:
        state = {"generator": self.generator.get_state()}
        for name, weight in self.weights.items():
            state[name] = weight.detach().clone()
            state |= {f"{name}.{key}": value.clone() for key, value in self.optimizer.state[weight].items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
        for name, weight in self.weights.items():
            weight.copy_(state[name])
            for key, value in self.optimizer.state[weight].items():
                value.copy_(state[f"{name}.{key}"])


def _network(prior: Prior) -> Any:
    """The module that can take LoRA."""
    network = prior.adaptable() if hasattr(prior, "adaptable") else getattr(prior, "denoiser", None)
    if not hasattr(network, "add_adapter"):
        raise ConfigError(
            f"method vsd: expected a prior whose network can take LoRA weights, a diffusers model, received "
            f"{prior.name}. Choose another prior, or method asd, which needs no copy of it."
        )
    if find_spec("peft") is None:
        raise ConfigError(
            'method vsd: expected the package peft, received none. Install it with pip install "psd-gs[vsd]", or '
            "choose method asd."
        )
    return network


VSD = BaseScore(vsd, "sds", lora=lambda prior, config, generator: Lora(prior, config.vsd, generator))
