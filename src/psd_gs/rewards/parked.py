"""Rewards that are away from the GPU while others need its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from psd_gs.rewards.base import Reward


def move(reward: Reward, device: torch.device | str) -> None:
    """Bring the networks of a reward to a device; one that has none, or none that it tells of, stays as it is."""
    to = getattr(reward, "to", None)
    if to is not None:
        to(device)


@contextmanager
def set_aside(reward: Reward | None, device: torch.device) -> Iterator[None]:
    """The networks of a reward are on the CPU in here, and on ``device`` afterwards."""
    if reward is None or device.type == "cpu":
        yield
        return
    move(reward, "cpu")
    try:
        yield
    finally:
        move(reward, device)


class ParkedReward:
    """A reward whose networks are on the device only while it scores: a judge, which speaks a few times in a run.

    Everything else is as the reward has it.

    Args:
        reward: is moved to the CPU.
        device: where it scores.
    """

    def __init__(self, reward: Reward, device: torch.device) -> None:
        self._reward, self._device = reward, device
        move(reward, "cpu")

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """That of the reward, as far as ``isinstance`` asks: who describes pictures looks for a CLIP."""
        return type(self._reward)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._reward, name)
        if name == "parts":  # of a weighted sum, which are scored one by one, too
            return tuple(replace(part, reward=ParkedReward(part.reward, self._device)) for part in value)
        return value

    @torch.no_grad()
    def score(self, *arguments: Any, **named: Any) -> Tensor:
        """As of the reward, without gradients."""
        move(self._reward, self._device)
        try:
            return self._reward.score(*arguments, **named)
        finally:
            move(self._reward, "cpu")
