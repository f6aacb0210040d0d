"""Colour transfer: everything is sRGB inside; glTF stores vertex colours and factors linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def srgb_to_linear(srgb: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """The sRGB transfer function of IEC 61966-2-1; values are clipped to [0, 1]."""
    s = np.clip(srgb, 0.0, 1.0)
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """The inverse of :func:`srgb_to_linear`."""
    v = np.clip(linear, 0.0, 1.0)
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)
