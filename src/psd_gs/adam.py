"""Adam (Kingma and Ba, 1412.6980) over a few tensors.

``torch.optim.Adam`` imports torch's compiler when it is made, which takes seconds and is of no use here; this calls
the same function of torch, so that updates are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Tensors, each with its rate and its moments.

    Attributes:
        rates: of each tensor; may be changed between steps.
        state: of each tensor: ``step``, ``exp_avg`` and ``exp_avg_sq``, as torch names them; may be replaced.

    Args:
        params: tensors that require gradients when they are stepped.
        rates: of each.
        betas: decay of the two moments.
        eps: added to the root of the second.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        rates: Sequence[float],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.params, self.rates, self.betas, self.eps = tuple(params), list(rates), betas, eps
        self.state: list[dict[str, Tensor]] = [
            {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for p in self.params
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every tensor that has a gradient."""
        for param, rate, state in zip(self.params, self.rates, self.state, strict=True):
            if param.grad is not None:
                adam(
                    [param], [param.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
                    amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=rate, weight_decay=0.0, eps=self.eps,
                    maximize=False,
                )  # fmt: skip

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None
