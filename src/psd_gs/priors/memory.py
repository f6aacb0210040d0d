"""Fitting large priors into little GPU memory, without changing what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """What is given up for memory. Text encoders leave the GPU after embedding in any case.

    Attributes:
        slice_vae: encode and decode one image at a time.
        checkpoint: compute the inside of the image encoder again for its gradient, instead of keeping it.
        slice_attention: attend in slices of the batch.
        offload: the denoiser stays on the GPU only while it runs, and text encoders run on the CPU.
    """

    slice_vae: bool = False
    checkpoint: bool = False
    slice_attention: bool = False
    offload: bool = False


PRESETS = {
    0: Memory(),
    24: Memory(slice_vae=True),
    12: Memory(slice_vae=True, checkpoint=True, slice_attention=True),
    8: Memory(slice_vae=True, checkpoint=True, slice_attention=True, offload=True),
}
"""By ``--vram``, GB; 0 is as much as there is. ``tools/bench/memory.py`` computes what each takes."""


class SlicedProcessor(nn.Module):
    """An attention processor that sees a few rows of the batch at a time.

    Rows do not see each other, so the result is the same and the memory for attention falls with their number.

    Args:
        processor: does the work.
        rows: of a slice; the views of a set stay together.
    """

    def __init__(self, processor: Callable[..., Any], rows: int) -> None:
        super().__init__()
        self.processor, self.rows = processor, rows

    def forward(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch = len(hidden_states)

        def part(value: Any, start: int) -> Any:
            whole = isinstance(value, Tensor) and len(value) == batch
            return value[start : start + self.rows] if whole else value

        slices = [
            self.processor(
                attn,
                hidden_states[start : start + self.rows],
                *(part(value, start) for value in args),
                **{name: part(value, start) for name, value in kwargs.items()},
            )
            for start in range(0, batch, self.rows)
        ]
        if isinstance(slices[0], tuple):  # joint attention answers for image and text
            return tuple(torch.cat(each) for each in zip(*slices, strict=True))
        return torch.cat(slices)


def slice_attention(denoiser: Any, rows: int) -> None:
    """Let every attention layer of a diffusers model work on ``rows`` rows at a time."""
    denoiser.set_attn_processor({name: SlicedProcessor(p, rows) for name, p in denoiser.attn_processors.items()})


@contextmanager
def one_at_a_time(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Each network is on ``device`` only while it runs, or until the next one does; then on the CPU."""
    if device.type == "cpu":
        for network in networks:
            network.to(device)
        yield
        return
    from accelerate import cpu_offload_with_hook

    hooks: list[Any] = []
    for network in networks:
        hooks.append(cpu_offload_with_hook(network, device, hooks[-1] if hooks else None)[1])
    try:
        yield
    finally:
        for hook in hooks:
            hook.offload()
            hook.remove()
