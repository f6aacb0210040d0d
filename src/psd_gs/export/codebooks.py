"""Vector quantization: a few values, or a few vectors, that stand for many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_BINS = 1 << 16
_ROUNDS = 20


def codebook(values: Float[np.ndarray, "*B"], size: int = 256) -> Float[np.ndarray, " size"]:
    """``size`` sorted values that stand for all: Lloyd's 1-D k-means on a histogram, started evenly over the
    range and the mass by halves, so that rare extremes have their neighbours too.
    """
    flat = np.ravel(values).astype(np.float64)
    distinct = np.unique(flat)
    if len(distinct) <= size:
        return np.concatenate([distinct, np.full(size - len(distinct), distinct[-1])]).astype(np.float32)
    weights, edges = np.histogram(flat, bins=_BINS)
    places = (edges[:-1] + edges[1:]) / 2
    mass = np.cumsum(weights) / len(flat)
    even = np.linspace(edges[0], edges[-1], size - size // 2)
    quantiles = places[np.searchsorted(mass, (np.arange(size // 2) + 0.5) / (size // 2)).clip(0, _BINS - 1)]
    codes = np.sort(np.concatenate([even, quantiles]))
    for _ in range(_ROUNDS):
        nearest = _nearest(codes, places)
        total = np.bincount(nearest, weights, size)
        sums = np.bincount(nearest, weights * places, size)
        codes = np.sort(np.where(total > 0, sums / np.maximum(total, 1), codes))
    return codes.astype(np.float32)


def nearest_code(codes: Float[np.ndarray, " S"], values: Float[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
    """Index of the code that is nearest to each value; ``codes`` are sorted."""
    return _nearest(codes.astype(np.float64), values)


def _nearest(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.searchsorted((codes[1:] + codes[:-1]) / 2, values)


def palette(vectors: Float[np.ndarray, "N D"], size: int) -> tuple[Float[np.ndarray, "M D"], Int[np.ndarray, " N"]]:
    """At most ``size`` (a power of two) vectors that stand for all, and which one stands for each.

    Median cut (Heckbert 1982): every cell is halved at the median along its axis of largest variance until
    there are enough. If there are no more vectors than that, they are their own palette.
    """
    n, dims = vectors.shape
    if n <= size:
        return vectors, np.arange(n)
    order = np.arange(n)
    starts = np.array([0])
    while len(starts) < size:
        counts = np.diff(np.append(starts, n))
        variance = np.empty((dims, len(starts)))
        for axis in range(dims):
            column = vectors[order, axis].astype(np.float64)
            mean = np.add.reduceat(column, starts) / counts
            variance[axis] = np.add.reduceat(column * column, starts) / counts - mean**2
        cell = np.repeat(np.arange(len(starts)), counts)
        along = vectors[order, variance.argmax(0)[cell]]
        order = order[np.lexsort((along, cell))]
        starts = np.sort(np.concatenate([starts, starts + counts // 2]))
    counts = np.diff(np.append(starts, n))
    centres = np.stack([np.add.reduceat(vectors[order, axis], starts) / counts for axis in range(dims)], axis=1)
    labels = np.empty(n, np.int64)
    labels[order] = np.repeat(np.arange(size), counts)
    return centres, labels
