"""How near the CPU rasterizer is to what the machine can do: pairs of pixel and Gaussian, operations, bytes.

A pair is *visited* if its lanes are computed, and *contributes* if the pixel changes: the Gaussian reaches it and the
pixel is not opaque yet. Operations are those of the kernels' inner loops (``psd_gs.render._raster``) by hand, additions
and multiplications each one, comparisons none. The machine's rate is that of a matrix product in float32, which is all
fused multiply-adds, on one thread like the kernels here. Times are of the processor, so other programs hardly matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.gaussians import Gaussians
from psd_gs.render._constants import TILE
from psd_gs.render._lists import ROW
from psd_gs.render._raster import (
    _BATCH,
    GRAD,
    T_MIN,
    _any_live,
    _load,
    _new_tile,
    rasterize_backward,
    rasterize_forward,
)
from psd_gs.render.cpu import _numpy, _Project, _tile_lists

FORWARD, BACKWARD = 34, 62
"""Operations per visited pair: 9 to sigma, 12 to the exponential, 3 to alpha, 2 for the transmittance, and forward 8
for colour and depth; backward 7 for the pixel's gradient on the pair, 2 + 4 + 1 to that on sigma, 14 for the moments,
8 for colour and depth."""


@dataclass(frozen=True)
class Pairs:
    """What the tiles of an image ask for.

    Attributes:
        listed: entries of all tiles' lists.
        visited: pairs that are computed; a tile stops at the batch after which no pixel is left.
        contributing: pairs that change a pixel.
    """

    listed: int
    visited: int
    contributing: int


@dataclass(frozen=True)
class Work:
    """One direction of a scene.

    Attributes:
        seconds: fastest call on one thread.
        operations: of all visited pairs.
        bytes: read and written beyond a tile's own planes.
    """

    seconds: float
    operations: int
    bytes: int


def measure(gaussians: Gaussians, cameras: Cameras, repetitions: int) -> tuple[Pairs, Work, Work]:
    """Pairs, forward and backward of the compositing kernels alone, without projection and lists."""
    width, height, views = cameras.width, cameras.height, len(cameras)
    with torch.no_grad():
        projected = _Project.apply(
            *gaussians.params().values(), cameras.viewmats, cameras.Ks, cameras.positions, (width, height, 0, False)
        )
    lists = _tile_lists(*_numpy(*projected[:2]), width, height)
    tiles, entries, pixels = len(lists.starts) - 1, len(lists.ids), views * height * width
    rgb = np.empty((views, height, width, 3), np.float32)
    alpha, depth, median = np.empty((3, views, height, width), np.float32)
    inputs = lists.rows, lists.starts, lists.ids
    background = np.zeros((views, 3), np.float32)
    grads, g_tiles = np.empty((entries, GRAD), np.float32), np.zeros((tiles, 3), np.float32)
    g_rgb, g_flat = np.ones_like(rgb), np.zeros_like(alpha)
    forward = fastest(lambda: rasterize_forward(0, tiles, *inputs, background, rgb, alpha, depth, median), repetitions)
    outputs = rgb, alpha, depth, g_rgb, g_flat, g_flat
    backward = fastest(
        lambda: rasterize_backward(0, tiles, *inputs, lists.slots, *outputs, False, grads, g_tiles), repetitions
    )
    visited, contributing = count_pairs(*inputs, views, width, height)
    pairs = Pairs(entries, int(visited), int(contributing))
    read = entries * 4 * (ROW + 1)
    return (
        pairs,
        Work(forward, FORWARD * pairs.visited, read + pixels * 4 * 6),
        Work(backward, BACKWARD * pairs.visited, read + entries * 4 * (GRAD + 1) + pixels * 4 * 10),
    )


def fastest(call: Callable[[], Any], repetitions: int) -> float:
    """Seconds of this thread in the best call after one that compiles."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def fma_rate(repetitions: int = 10, size: int = 1024) -> float:
    """Operations per second of one thread in a product of square matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.rand(2, size, size)
    out: Tensor = torch.empty(size, size)
    seconds = fastest(lambda: torch.mm(a, b, out=out), repetitions)
    torch.set_num_threads(threads)
    return 2 * size**3 / seconds


@numba.njit(error_model="numpy")
def count_pairs(rows, starts, ids, views, width, height):
    """Visited and contributing pairs of all tiles, by the walk of ``_composite``, with the true exponential."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    batch, spans = np.empty((_BATCH, ROW), np.float32), np.empty((_BATCH, 2), np.uint64)
    visited = contributing = 0
    for t in range(views * tiles_x * tiles_y):
        x0, y0 = t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile, tile_height, _ = _new_tile(8, height, y0, width, x0)
        listed = ids[starts[t] : starts[t + 1]]
        for start in range(0, len(listed), _BATCH):
            now = listed[start : start + _BATCH]
            _load(rows, now, x0, y0, tile_height, batch, spans)
            for i in range(len(now)):
                s = batch[i]
                for p in range(spans[i, 0], spans[i, 1]):
                    visited += 1
                    dy = tile[7 * TILE * TILE + p] - s[1]
                    u = tile[6 * TILE * TILE + p] - s[0] - s[3] * dy
                    sigma = 0.5 * (s[2] * u * u + s[4] * dy * dy)
                    T = tile[p]
                    if sigma > s[10] or T <= 0:
                        continue
                    left = T - T * min(s[5] * np.exp(-sigma), np.float32(0.999))
                    if left > T_MIN:
                        contributing += 1
                        tile[p] = left
                    else:
                        tile[p] = -T
            if not _any_live(tile, tile_height):
                break
    return visited, contributing
