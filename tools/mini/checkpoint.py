"""What an unfinished training goes on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psd_gs.files import atomic_path


class Checkpoint:
    """Weights, their running means and the states of optimizers in one safetensors file.

    Args:
        path: of the file.
        tensors: by name; loading fills them.
        optimizers: of different types; their parameters are known by their places.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.path, self.tensors = path, {name: tensor.detach() for name, tensor in tensors.items()}
        self.states = {
            f"{type(optimizer).__name__}.{i}.": (optimizer, p)
            for optimizer in optimizers
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
        }

    def save(self, **numbers: float) -> None:
        """Replace the file; the numbers are kept beside the tensors."""
        state = {name: torch.tensor(number) for name, number in numbers.items()} | self.tensors
        for prefix, (optimizer, p) in self.states.items():
            state |= {prefix + name: value for name, value in optimizer.state[p].items()}
        with atomic_path(self.path) as path:
            save_file({name: value.contiguous() for name, value in state.items()}, path)

    def load(self, **numbers: float) -> list[float]:
        """Fill tensors and optimizers; the numbers of the file, or those given if there is none."""
        if not self.path.exists():
            return [*numbers.values()]
        device = next(iter(self.tensors.values())).device
        state = load_file(self.path, str(device))
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
        for prefix, (optimizer, p) in self.states.items():
            optimizer.state[p] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        return [state[name].item() for name in numbers]
