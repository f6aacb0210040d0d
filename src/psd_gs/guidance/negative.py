"""Online refinement of the negative prompt's embedding, the part of PSD that learns.

The only learnt tensor is the change of the negative embedding (ReNeg, 2412.19637; PSD, 2603.01594, re-derived).
With ``x0(n) = x0_neg(n) + s (x0_cond - x0_neg(n))`` only the negative branch carries gradient. This gradient is
not filtered by the denoiser's Jacobian as the preference score is, hence the trust region.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.adam import Adam
from psd_gs.config.guidance import NegativeConfig
from psd_gs.errors import ConfigError
from psd_gs.priors.base import TextEmbedding

GRADIENT_CLIP = 1.0


def pull_loss(loser: Float[Tensor, "G V C h w"], winner: Float[Tensor, "G V C h w"]) -> Float[Tensor, ""]:
    """Half the squared distance of the loser's clean estimate to the winner's, averaged over groups."""
    return 0.5 * (loser - winner.detach()).square().sum() / len(loser)


class NegativeEmbedding:
    """A negative embedding, its learnt change and the optimizer of that.

    Args:
        initial: one row, from the prior's text encoder.
        config: options.

    Raises:
        ConfigError: the initial embedding is zero, so that the trust region is a point.
    """

    def __init__(self, initial: TextEmbedding, config: NegativeConfig) -> None:
        self.initial = initial
        self.config = config
        # Never below float32: updates of a thousandth vanish in half precision.
        master = torch.promote_types(initial.sequence.dtype, torch.float32)
        self.delta = torch.zeros_like(initial.sequence, dtype=master)
        self.limit = config.radius * initial.sequence.to(master).norm()
        self.last_step = -config.every
        self.optimizer = Adam([self.delta], [config.lr])
        if config.mode != "off" and not bool(self.limit > 0):
            raise ConfigError(
                "NegativeConfig: expected a negative embedding and a radius above zero, received "
                f"norm {float(initial.sequence.norm()):g} and radius {config.radius:g}: nothing could move. "
                "Give a negative prompt, raise the radius or set the mode to off."
            )

    @property
    def embedding(self) -> TextEmbedding:
        """Initial embedding plus change, in the initial dtype; save it with the asset to use it again."""
        sequence = self.initial.sequence
        return replace(self.initial, sequence=(sequence + self.delta).to(sequence.dtype))

    def due(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        """Which groups may refine in this step; ``t`` on the CPU.

        The cadence counts from the last update rather than from step 0, or a time that is often too
        noisy could make all of them miss.
        """
        config = self.config
        on = config.mode != "off" and progress >= config.start and step - self.last_step >= config.every
        return (t <= config.t_max) & on

    def watched(self) -> TextEmbedding:
        """The embedding with gradients into the change."""
        self.delta.requires_grad_(True)
        return self.embedding

    def descend(self, loss: Float[Tensor, ""], step: int) -> None:
        """One Adam step on the change, gradient norm clipped, projected into the trust region."""
        (gradient,) = torch.autograd.grad(loss, self.delta)
        self.delta.requires_grad_(False)
        norm = gradient.norm()
        clipped = gradient * (GRADIENT_CLIP / norm.clamp_min(GRADIENT_CLIP))
        self.delta.grad = torch.where(norm.isfinite(), clipped, 0)
        self.optimizer.step()
        self.delta.grad = None
        length = self.delta.norm()
        self.delta.mul_(torch.where(length > self.limit, self.limit / length, 1))
        self.last_step = step

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: value.clone() for name, value in self.optimizer.state[0].items()}
        return {"delta": self.delta.clone(), "last_step": torch.tensor(self.last_step), **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.delta.copy_(state["delta"])
        self.last_step = int(state["last_step"])
        for name, value in self.optimizer.state[0].items():
            value.copy_(state[name])
