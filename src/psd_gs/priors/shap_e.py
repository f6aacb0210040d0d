"""A coarse coloured mesh from text, to start from: Shap-E (arXiv 2305.02463) through diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs import weights
from psd_gs.errors import InputError
from psd_gs.priors.loading import explained, variant_of, without_bars

if TYPE_CHECKING:
    from diffusers import ShapEPipeline

GUIDANCE_SCALE = 15.0
STEPS = 64
"""Both as in OpenAI's examples."""


def load_shap_e(folder: Path, device: torch.device | str = "cpu") -> ShapEPipeline:
    """The pipeline of a folder, in float32.

    Raises:
        ModelError: files are missing, truncated or of another architecture.
    """
    from diffusers import ShapEPipeline

    with explained(folder), without_bars():
        for file in folder.glob("*/*.safetensors"):
            weights.read_header(file)
        pipeline = ShapEPipeline.from_pretrained(
            folder, local_files_only=True, torch_dtype=None, dtype=torch.float32, variant=variant_of(folder)
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@torch.no_grad()
def text_to_mesh(
    pipeline: ShapEPipeline, prompt: str, generator: torch.Generator
) -> tuple[Float[Tensor, "V 3"], Float[np.ndarray, "F 3"], Float[Tensor, "V 3"]]:
    """Vertices, triangles and linear colours in [0, 1] of one sample, in our frame.

    Shap-E's world is z up and its first camera looks along +y, so the front faces -y: (x, y, z) becomes (x, z, -y).

    Args:
        pipeline: from :func:`load_shap_e`.
        prompt: what it is.
        generator: of the initial noise, on the CPU.

    Raises:
        InputError: the sample has no surface.
    """
    try:
        made = pipeline(
            prompt,
            generator=generator,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=STEPS,
            output_type="mesh",
        ).images[0]
    except ValueError as error:  # diffusers concatenates the colours of no vertices
        raise InputError(f"Shap-E made nothing of {prompt!r}. Try another --seed, or --init ball.") from error
    x, y, z = made.verts.float().cpu().unbind(-1)
    colours = torch.stack([made.vertex_channels[name] for name in "RGB"], -1).float().cpu()
    return torch.stack([x, z, -y], -1), made.faces.cpu().numpy(), colours.clamp(0, 1)
