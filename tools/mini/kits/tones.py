"""Colours of the pack by name: the project's fourteen, each with the in-between tones that the kits use for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from skimage.color import rgb2lab

from mini.scenes import COLOURS

LEAST = 0.12
"""Share from which on a second and third colour is named."""
TONES: dict[str, Sequence[tuple[float, float, float]]] = {
    "gray": ((0.35, 0.36, 0.40), (0.72, 0.74, 0.78), (0.45, 0.48, 0.55)),
    "black": ((0.18, 0.18, 0.21),),
    "brown": ((0.62, 0.40, 0.26), (0.72, 0.48, 0.32), (0.33, 0.22, 0.18), (0.90, 0.60, 0.40), (0.88, 0.50, 0.34)),
    "beige": ((0.93, 0.86, 0.74), (0.82, 0.68, 0.50)),
    "green": ((0.30, 0.68, 0.38), (0.15, 0.40, 0.22), (0.40, 0.60, 0.25), (0.25, 0.70, 0.55)),
    "blue": ((0.25, 0.45, 0.80), (0.18, 0.30, 0.55), (0.35, 0.50, 0.90), (0.41, 0.64, 0.82), (0.36, 0.57, 0.80)),
    "cyan": ((0.55, 0.85, 0.92),),
    "red": ((0.75, 0.22, 0.20), (0.90, 0.32, 0.30), (0.55, 0.10, 0.12), (0.94, 0.39, 0.27), (0.90, 0.37, 0.26)),
    "orange": ((0.94, 0.53, 0.22), (0.95, 0.62, 0.30)),
    "yellow": ((0.96, 0.78, 0.25), (0.98, 0.90, 0.50)),
    "purple": ((0.55, 0.35, 0.75), (0.40, 0.25, 0.50)),
    "pink": ((0.90, 0.45, 0.60), (0.98, 0.75, 0.80)),
    "lime": ((0.70, 0.85, 0.40),),
    "white": ((0.87, 0.89, 0.92),),
}
ANCHORS = [(name, tone) for name in COLOURS for tone in (COLOURS[name], *TONES.get(name, ()))]


def nearest_names(colours: Float[np.ndarray, "N 3"]) -> list[str]:
    """The name of the nearest anchor (CIE Lab) of every sRGB colour in [0, 1]."""
    anchors = rgb2lab(np.array([tone for _, tone in ANCHORS]))
    gaps = ((rgb2lab(np.asarray(colours, float))[:, None] - anchors) ** 2).sum(-1)
    return [ANCHORS[i][0] for i in gaps.argmin(1)]


def main_colours(colours: Float[np.ndarray, "N 3"], weights: Float[np.ndarray, " N"]) -> list[str]:
    """Up to three names by their share of the weights; the second and third from ``LEAST`` on."""
    share: dict[str, float] = {}
    for name, weight in zip(nearest_names(colours), weights / weights.sum(), strict=True):
        share[name] = share.get(name, 0.0) + float(weight)
    ranked = sorted(share, key=lambda name: -share[name])[:3]
    return [name for i, name in enumerate(ranked) if i == 0 or share[name] >= LEAST]
