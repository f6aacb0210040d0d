"""Diffusion priors by name, hub id or folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from psd_gs.entries import PRIORS, PriorEntry
from psd_gs.errors import ConfigError
from psd_gs.plugins import resolved
from psd_gs.priors.base import Prior, TextEmbedding

if TYPE_CHECKING:
    import torch

__all__ = ["Prior", "TextEmbedding", "family_of", "load_prior", "needed", "prior_entry", "prior_family"]

DType = Literal["auto", "float32", "float16", "bfloat16"]


def load_prior(
    name: str, device: torch.device | str = "cpu", *, dtype: DType = "auto", vram: int = 0, image_size: int = 0
) -> Prior:
    """A prior, frozen and ready; it goes by the name that is given.

    Args:
        name: one of :data:`psd_gs.entries.PRIORS`; a hub id; or a folder that diffusers or
            ``MultiViewPipeline.save_pretrained`` wrote.
        device: where it runs.
        dtype: of the weights; auto is what the device computes fastest.
        vram: GPU memory to fit into, GB: 8, 12 or 24; 0 is all there is.
        image_size: side of the images in pixels; 0 is what the model was trained for.

    Raises:
        ConfigError: no such name, folder or memory preset.
        ModelError: files that cannot be had, are missing, damaged or of another architecture.
        PluginError: the package that offers it is broken.
    """
    import torch

    from psd_gs import weights
    from psd_gs.priors.memory import PRESETS

    if vram not in PRESETS:
        raise ConfigError(f"vram: expected one of {', '.join(map(str, PRESETS))} GB, received {vram}.")
    folder = weights.locate(name) if needed(name) else None
    entry = prior_entry(name)
    with PRIORS.explained(name):
        return resolved(entry.load)(
            folder,
            name=name,
            device=device,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            memory=PRESETS[vram],
            image_size=image_size,
        )


def needed(name: str) -> list[str]:
    """What :func:`load_prior` fetches if it is not on this machine: the name itself, or nothing."""
    return [name] if name not in PRIORS or PRIORS[name].weights else []


def prior_entry(name: str) -> PriorEntry:
    """The entry of a name; of a hub id or a folder that of its family, for which the index of a hub id is fetched.

    Raises:
        ConfigError: no such name or folder.
        ModelError: files that cannot be had, or of an architecture that no prior reads.
        PluginError: the package that offers it is broken.
    """
    if name in PRIORS:
        return PRIORS[name]
    from psd_gs import weights
    from psd_gs.priors import folder

    family = folder.family(weights.locate(name, only=("model_index.json",)))
    kin = next(entry for entry in PRIORS.own.values() if entry.family == family)
    return replace(kin, load=folder.load, weights=None)


def prior_family(name: str) -> str:
    """The section of the presets that a prior reads: of a package's prior with presets of its own, its name.

    Raises:
        As :func:`prior_entry`.
    """
    entry = prior_entry(name)
    return name if entry.presets else entry.family


def family_of(prior: Prior) -> str:
    """The section of the presets for a model at hand: by its name, else what it says of itself, else mini."""
    return prior_family(prior.name) if prior.name in PRIORS else str(getattr(prior, "family", "mini"))
