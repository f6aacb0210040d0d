"""Which of the fourteen colour names a pixel shows, whatever its shading."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.scenes import COLOURS, Look

NAMES = tuple(COLOURS)
BRIGHTNESS = (0.45, 1.12)
"""Range of the factor that the generator's light puts on a surface's colour."""

LEVELS = 30
MOST, SOME = 0.5, 0.1
"""Least share of the object's pixels if one colour is named, and of each if several are."""

OF_GENERATOR = 0.8
"""Nothing is asked beyond this part of the share that a colour has in the generator's own pictures: a pink house
has doors and windows, and a blue scarf is small."""


def lab(rgb: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """sRGB in [0, 1] to CIELAB."""
    from skimage.color import rgb2lab

    return torch.from_numpy(rgb2lab(rgb.double().numpy().reshape(-1, 1, 3)).reshape(-1, 3)).float()


def classify(rgb: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Index into :data:`NAMES` of the nearest colour (CIELAB) at any brightness in :data:`BRIGHTNESS`."""
    factor = torch.linspace(*BRIGHTNESS, LEVELS)[:, None, None]
    shaded = (factor * torch.tensor(list(COLOURS.values()))).clamp(0, 1)
    distance = torch.cdist(lab(rgb), lab(shaded.reshape(-1, 3)))
    return distance.view(len(rgb), LEVELS, len(NAMES)).amin(1).argmin(1)


def shares(rgba: Float[Tensor, "B 4 H W"]) -> dict[str, float]:
    """Share of each colour in the object's pixels (alpha above a half) of premultiplied pictures."""
    pixels = rgba.permute(0, 2, 3, 1).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 0.5]
    if not len(pixels):
        return {}
    names = classify((pixels[:, :3] / pixels[:, 3:]).clamp(0, 1))
    count = np.bincount(names.numpy(), minlength=len(NAMES)) / len(names)
    return {name: round(float(share), 4) for name, share in zip(NAMES, count, strict=True) if share > 0}


def named(look: Look) -> list[str]:
    """The colours that a look's caption names."""
    found = (colour for i in look.items for colour in (i.colour, i.part_colour, i.accessory_colour))
    return list(dict.fromkeys(colour for colour in found if colour))


def needed(look: Look, in_generator: dict[str, float] | None = None) -> dict[str, float]:
    """Least share of each named colour; with the generator's shares the lesser of the bar and what it shows."""
    colours = named(look)
    bar = MOST if len(colours) == 1 else SOME
    if in_generator is None:
        return dict.fromkeys(colours, bar)
    return {colour: min(bar, OF_GENERATOR * in_generator.get(colour, 0.0)) for colour in colours}


def fits(have: dict[str, float], need: dict[str, float]) -> bool:
    """Whether each needed colour has its share."""
    return all(have.get(colour, 0.0) >= least for colour, least in need.items())
