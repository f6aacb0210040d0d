"""Diffusion priors by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from psd_gs.errors import ConfigError, ModelError
from psd_gs.priors.base import Prior, TextEmbedding

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILY", "NAMES", "Prior", "TextEmbedding", "load_prior", "prior_family"]

FAMILY = {"mini": "mini", "mvdream": "mvdream", "sd15": "sd", "sd21": "sd", "sdxl": "sdxl", "sd3": "sd3"}
"""The section of the presets that a prior reads."""

NAMES = tuple(FAMILY)

FAMILY_OF_CLASS = {
    "MultiViewPipeline": "mvdream",
    "MVDreamPipeline": "mvdream",
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
}
"""By the class that a ``model_index.json`` names."""

DType = Literal["auto", "float32", "float16", "bfloat16"]


def load_prior(
    name: str, device: torch.device | str = "cpu", *, dtype: DType = "auto", vram: int = 0, image_size: int = 0
) -> Prior:
    """A prior, frozen and ready.

    Args:
        name: ``mini``, the embedded model; ``mvdream``, ``sd15``, ``sd21``, ``sdxl`` or ``sd3``; a hub id; or a folder
            that diffusers or ``MultiViewPipeline.save_pretrained`` wrote.
        device: where it runs.
        dtype: of the weights; auto is what the device computes fastest.
        vram: GPU memory to fit into, GB: 8, 12 or 24; 0 is all there is.
        image_size: side of the images in pixels; 0 is what the model was trained for.

    Raises:
        ConfigError: no such name, folder or memory preset.
        ModelError: files that cannot be had, are missing, damaged or of another architecture.
    """
    import torch

    from psd_gs import weights
    from psd_gs.priors import mini
    from psd_gs.priors.memory import PRESETS
    from psd_gs.priors.multiview import MultiViewPrior

    if vram not in PRESETS:
        raise ConfigError(f"vram: expected one of {', '.join(map(str, PRESETS))} GB, received {vram}.")
    chosen = fast_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    options = {"device": device, "memory": PRESETS[vram], "image_size": image_size}
    if name == "mini":
        if dtype == "auto" and torch.device(device).type != "cpu":
            chosen = torch.float32  # so small that nothing is gained
        return MultiViewPrior.from_pretrained(mini.folder("prior"), name="mini", dtype=chosen, **options)
    folder = weights.locate(name)
    if dtype == "auto" and torch.device(device).type == "cpu":
        chosen = torch.float32
    return _class_of(folder).from_pretrained(
        folder, name=name if name in NAMES else folder.name, dtype=chosen, **options
    )


def _class_of(folder: Path):
    """The prior that reads a folder."""
    from psd_gs import weights
    from psd_gs.priors import mvdream, sd3, stable_diffusion
    from psd_gs.priors.multiview import MultiViewPrior

    classes = {
        "MultiViewPipeline": MultiViewPrior,
        "MVDreamPipeline": mvdream.MVDreamPrior,
        "StableDiffusionPipeline": stable_diffusion.StableDiffusionPrior,
        "StableDiffusionXLPipeline": stable_diffusion.StableDiffusionXLPrior,
        "StableDiffusion3Pipeline": sd3.StableDiffusion3Prior,
    }
    found = weights.pipeline_class(folder)
    if found not in classes:
        raise ModelError(
            f"prior {folder}: expected a {', '.join(list(classes)[:-1])} or {list(classes)[-1]}, received {found}. "
            "Name another folder."
        )
    return classes[found]


def prior_family(name: str) -> str:
    """The section of the presets that a prior reads; weights of an unknown name are fetched to find out.

    Raises:
        ConfigError: no such name or folder.
        ModelError: files that cannot be had.
    """
    if name in FAMILY:
        return FAMILY[name]
    from psd_gs import weights

    folder = weights.locate(name)
    kind = weights.pipeline_class(folder)
    if kind == "MultiViewPipeline" and "vae" not in weights.components_of(folder):
        return "mini"
    return FAMILY_OF_CLASS.get(kind, "mini")


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on GPUs and CPUs with instructions for it; else float16 on GPUs and float32 on CPUs."""
    import torch

    if torch.device(device).type != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
