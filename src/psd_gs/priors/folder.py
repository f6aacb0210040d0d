"""Priors from folders as diffusers lays them out: which class reads one, and to which family it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd_gs import weights
from psd_gs.errors import ModelError
from psd_gs.plugins import resolved

if TYPE_CHECKING:
    import torch

    from psd_gs.priors.base import Prior

CLASSES = {
    "MultiViewPipeline": ("psd_gs.priors.multiview:MultiViewPrior", "mvdream"),
    "MVDreamPipeline": ("psd_gs.priors.mvdream:MVDreamPrior", "mvdream"),
    "StableDiffusionPipeline": ("psd_gs.priors.stable_diffusion:StableDiffusionPrior", "sd"),
    "StableDiffusionXLPipeline": ("psd_gs.priors.stable_diffusion:StableDiffusionXLPrior", "sdxl"),
    "StableDiffusion3Pipeline": ("psd_gs.priors.sd3:StableDiffusion3Prior", "sd3"),
}
"""The class that a ``model_index.json`` names, to what reads it and its family."""

PICTURED = ("psd_gs.priors.imagedream:ImageDreamPrior", "imagedream")
"""Likewise, of an MVDreamPipeline with an encoder of pictures."""


def _known(folder: Path) -> tuple[str, str]:
    found = weights.pipeline_class(folder)
    if found == "MVDreamPipeline" and "image_encoder" in weights.components_of(folder):
        return PICTURED
    if found not in CLASSES:
        *names, last = CLASSES
        raise ModelError(
            f"prior {folder}: expected a {', '.join(names)} or {last}, received {found}. Name another folder."
        )
    return CLASSES[found]


def family(folder: Path) -> str:
    """The section of the presets for a folder; a multi-view model in pixel space is like the embedded one.

    Raises:
        ModelError: no pipeline, or of an architecture that no prior reads.
    """
    kind, found = _known(folder)[1], weights.components_of(folder)
    return "mini" if kind == "mvdream" and "vae" not in found else kind


def load(folder: Path, *, dtype: torch.dtype | None, device: torch.device | str, **options: Any) -> Prior:
    """The prior of a folder, in the precision that its class takes on a device unless told.

    Raises:
        ModelError: files are missing, damaged or of another architecture.
    """
    kind = resolved(_known(folder)[0])
    return kind.from_pretrained(folder, dtype=dtype or kind.fast_dtype(device), device=device, **options)
