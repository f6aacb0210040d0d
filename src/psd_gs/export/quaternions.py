"""Unit quaternions as three numbers: the largest component follows from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def smallest_three(quats: Float[np.ndarray, "N 4"]) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N 3"]]:
    """Which component of each unit quaternion is largest, and the other three in order, each within +-sqrt(1/2).

    The sign of the quaternion, which means nothing, is chosen so that the largest component is positive.
    """
    place = np.abs(quats).argmax(axis=1)
    largest = np.take_along_axis(quats, place[:, None], axis=1)
    return place, np.take_along_axis(quats, _OTHERS[place], axis=1) * np.where(largest < 0, -1, 1)


def from_smallest_three(place: Int[np.ndarray, " N"], three: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 4"]:
    """The inverse of :func:`smallest_three`, up to the sign."""
    quats = np.empty((len(three), 4))
    np.put_along_axis(quats, _OTHERS[place], three, axis=1)
    largest = np.sqrt(np.maximum(1 - (three**2).sum(axis=1), 0))
    np.put_along_axis(quats, place[:, None].astype(np.int64), largest[:, None], axis=1)
    return quats


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The places of the other components, by the place of the largest."""
