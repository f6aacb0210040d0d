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
    """A reward whose networks are on the device only while it scores, and until its gradient is known.

    For a judge, which speaks a few times in a run, and for a reward where memory is short. Everything else is as the
    reward has it.

    Args:
        reward: is moved to the CPU.
        device: where it scores.
    """

    def __init__(self, reward: Reward, device: torch.device) -> None:
        self._reward, self._device = reward, device
        self._leave()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """That of the reward, as far as ``isinstance`` asks: who describes pictures looks for a CLIP."""
        return type(self._reward)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._reward, name)
        if name == "parts":  # of a weighted sum, which are scored one by one, too
            return tuple(replace(part, reward=ParkedReward(part.reward, self._device)) for part in value)
        return value

    def to(self, device: torch.device | str) -> None:
        """Nothing: it comes and goes by itself."""

    def score(self, images: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """As of the reward."""
        move(self._reward, self._device)
        if torch.is_grad_enabled() and images.requires_grad:
            images = images.view_as(images)  # a hook of this call, however often the same images are scored
            images.register_hook(lambda gradient: self._leave())
        try:
            scores = self._reward.score(images, *arguments, **named)
        except BaseException:
            self._leave()
            raise
        if not scores.requires_grad:
            self._leave()
        return scores

    def _leave(self) -> None:
        move(self._reward, "cpu")
