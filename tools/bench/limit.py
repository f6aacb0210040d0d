"""How near the CPU rasterizer is to what the machine can do: pairs of pixel and Gaussian, operations, bytes.

A pair is *visited* if it is computed, with the seven beside it, and *contributes* if the pixel changes: the Gaussian
reaches it and the pixel is not opaque yet. Operations are those of the kernels' inner loops (``psd_gs.render._raster``)
by hand, additions and multiplications each one, comparisons none. The machine's rate is that of a matrix product in
float32, which is all fused multiply-adds, on one thread like the kernels here. Times are of the processor, so other
programs hardly matter.
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
from psd_gs.render._constants import ALPHA_MAX, T_MIN, TILE
from psd_gs.render._project import ROW
from psd_gs.render._raster import GRAD, rasterize_backward, rasterize_forward
from psd_gs.render._vectors import LANES
from psd_gs.render.cpu import _numpy, _Project, _tile_lists

FORWARD, BACKWARD = 29, 55
"""Operations per visited pair: 4 to sigma, 14 to the exponential, 1 to alpha, 2 for the transmittance, and forward 8
for colour and depth; backward 7 for the pixel's gradient on the pair, 2 + 5 to that on sigma, 8 for colour and depth,
12 for the moments."""


@dataclass(frozen=True)
class Pairs:
    """What the tiles of an image ask for.

    Attributes:
        listed: entries of all tiles' lists.
        visited: pairs that are computed.
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
    lists = _tile_lists(*_numpy(projected[1]), width, height)
    tiles, entries, pixels = len(lists.starts) - 1, len(lists.ids), views * height * width
    rgb = np.empty((views, height, width, 3), np.float32)
    alpha, depth, median = np.empty((3, views, height, width), np.float32)
    inputs = lists.rows, lists.starts, lists.ids
    background = np.zeros((views, 3), np.float32)
    grads, g_tiles = np.empty((entries, GRAD), np.float32), np.zeros((tiles, 3), np.float32)
    g_rgb, g_flat = np.ones_like(rgb), np.zeros_like(alpha)
    pictures = rgb, alpha, depth, median
    forward = fastest(
        lambda: rasterize_forward(0, tiles, *inputs, background, False, lists.masks, *pictures), repetitions
    )
    outputs = rgb, alpha, depth, g_rgb, g_flat, g_flat
    backward = fastest(
        lambda: rasterize_backward(0, tiles, *inputs, lists.masks, lists.slots, *outputs, False, grads, g_tiles),
        repetitions,
    )
    pairs = Pairs(entries, *map(int, count_pairs(*inputs, lists.masks, views, width, height)))
    read = entries * 4 * (ROW + 2)
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
def count_pairs(rows, starts, ids, masks, views, width, height):
    """Visited and contributing pairs of all tiles: the vectors that ``masks`` names, with the true exponential."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    visited = contributing = 0
    for t in range(views * tiles_x * tiles_y):
        x0, y0 = t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        T = np.ones((TILE, TILE))
        T[height - y0 :], T[:, width - x0 :] = 0.0, 0.0
        for i in range(starts[t], starts[t + 1]):
            a, k, h, opacity, cutoff, x, y = rows[ids[i]][np.array((0, 1, 2, 3, 8, 9, 10))]
            for v in range(TILE * TILE // LANES):
                if not masks[i] >> v & 1:
                    continue
                visited += LANES
                row, left = v % TILE, v // TILE * LANES
                for column in range(left, left + LANES):
                    dy = y0 + row + 0.5 - y
                    u = x0 + column + 0.5 - x - k * dy
                    sigma = 0.5 * (a * u * u + h * dy * dy)
                    if sigma > cutoff or T[row, column] == 0.0:
                        continue
                    remaining = T[row, column] * (1.0 - min(opacity * np.exp(-sigma), ALPHA_MAX))
                    contributing += remaining > T_MIN
                    T[row, column] = remaining if remaining > T_MIN else 0.0
    return visited, contributing
