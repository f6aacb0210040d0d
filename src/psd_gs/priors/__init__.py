"""Diffusion priors by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psd_gs.errors import ConfigError
from psd_gs.priors.base import Prior, TextEmbedding

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILY", "Prior", "TextEmbedding", "load_prior"]

FAMILY = {"mini": "mini"}
"""The section of the presets that a prior reads."""


def load_prior(name: str, device: torch.device | str = "cpu") -> Prior:
    """A prior, frozen and ready.

    Args:
        name: ``mini``, the embedded model; or a folder that ``MultiViewPipeline.save_pretrained`` wrote.
        device: where it runs.

    Raises:
        ConfigError: no such name or folder.
        ModelError: files that are missing, damaged or of another architecture.
    """
    from psd_gs.priors import mini
    from psd_gs.priors.multiview import MultiViewPrior, fast_dtype

    if name == "mini":
        return MultiViewPrior.from_pretrained(
            mini.folder("prior"), name="mini", device=device, dtype=fast_dtype(device)
        )
    if Path(name).is_dir():
        return MultiViewPrior.from_pretrained(name, name=Path(name).name, device=device)
    raise ConfigError(
        f"unknown prior {name!r}: expected mini, or a folder that MultiViewPipeline.save_pretrained wrote."
    )
