"""Judges of images against prompts, and the embedded ones by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from psd_gs.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from psd_gs.rewards.base import Reward

EMBEDDED = {"mini": "reward", "mini-judge": "judge"}
"""Name to folder of the weights that ship with the package."""


def load_reward(name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Reward:
    """Load an embedded reward.

    Args:
        name: ``mini``, to optimize for, or ``mini-judge``, of another architecture, to evaluate with.
        device: where it runs.
        dtype: of its weights; default float32.

    Raises:
        ConfigError: no reward has this name.
        ModelError: its files are missing or damaged.
    """
    import torch

    from psd_gs.rewards.mini import MiniReward

    if name not in EMBEDDED:
        raise ConfigError(f"unknown reward {name!r}; expected one of {', '.join(EMBEDDED)}.")
    with as_file(files("psd_gs") / "assets" / "mini" / EMBEDDED[name]) as folder:
        return MiniReward.from_pretrained(folder, name=name, device=device, dtype=dtype or torch.float32)
