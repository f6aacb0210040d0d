"""Triton kernels: which tiles of the image a Gaussian touches. The rule is that of ``_lists``, in float32.

Between the two kernels the host learns how many entries there are; ``torch.sort`` then orders them by tile.
"""

import triton
import triton.language as tl

import psd_gs.render._constants as _constants

SPLAT: tl.constexpr = tl.constexpr(_constants.SPLAT)
TILE: tl.constexpr = tl.constexpr(_constants.TILE)


@triton.jit
def _tiles(centre, reach, size):
    """First and one-past-last tile of an axis of ``size`` pixels with a pixel centre within ``reach`` of ``centre``."""
    low = tl.maximum(tl.ceil(centre - reach - 0.5), 0.0)
    high = tl.minimum(tl.floor(centre + reach + 0.5), size * 1.0)
    some = low < high
    return tl.where(some, low, 0.0).to(tl.int32) // TILE, (tl.where(some, high, 0.0).to(tl.int32) + TILE - 1) // TILE


@triton.jit
def _ellipse(means2d, splats, row, mask):
    """Centre, a, k, h, twice the sigma at which it ends, and the half extents of its bounding box with a margin."""
    x, y = tl.load(means2d + 2 * row, mask, 0.0), tl.load(means2d + 2 * row + 1, mask, 0.0)
    splat = splats + row * SPLAT
    a, k, h = tl.load(splat, mask, 1.0), tl.load(splat + 1, mask, 0.0), tl.load(splat + 2, mask, 1.0)
    level = 2.0 * tl.maximum(tl.load(splat + 8, mask, 0.0), 0.0)
    reach_x, reach_y = tl.sqrt(level * (1.0 / a + k * k / h)), tl.sqrt(level / h)
    # What float32 loses, of a huge Gaussian more.
    margin = 1e-2 + 1e-5 * (reach_x + reach_y)
    return x, y, a, k, h, level, reach_x + margin, reach_y + margin, margin


@triton.jit
def _band(band, x, y, a, k, h, level, reach_x, reach_y, margin, width):
    """First and one-past-last tile of a band of TILE pixel rows that the ellipse touches."""
    low = tl.maximum(band * TILE + 0.5 - y, -reach_y)
    high = tl.minimum(band * TILE + TILE - 0.5 - y, reach_y)
    # x(dy) = k dy +- sqrt((level - h dy^2) / a) is extremal at dy = +- (k / h) sqrt(level / cov_xx).
    extremal = k / h * tl.sqrt(level / (1.0 / a + k * k / h))
    right = tl.minimum(tl.maximum(extremal, low), high)
    left = tl.minimum(tl.maximum(-extremal, low), high)
    x_right = k * right + tl.sqrt(tl.maximum(0.0, level - h * right * right) / a) + margin
    x_left = k * left - tl.sqrt(tl.maximum(0.0, level - h * left * left) / a) - margin
    x_right, x_left = tl.minimum(x_right, reach_x), tl.maximum(x_left, -reach_x)
    return _tiles(x + 0.5 * (x_right + x_left), 0.5 * (x_right - x_left), width)


@triton.jit(do_not_specialize=["total", "width", "height"])
def count_tiles(order, means2d, splats, counts, total, width, height, BLOCK: tl.constexpr):
    """Program per block of the depth order: how many tiles each of its Gaussians touches."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    row = tl.load(order + i, mask, 0)
    mask &= tl.load(splats + row * SPLAT + 8, mask, -1.0) >= 0.0
    x, y, a, k, h, level, reach_x, reach_y, margin = _ellipse(means2d, splats, row, mask)
    top, bottom = _tiles(y, reach_y, height)
    bands = tl.where(mask, bottom - top, 0)
    count = tl.zeros([BLOCK], tl.int32)
    for band in range(tl.max(bands, 0)):
        first, last = _band(top + band, x, y, a, k, h, level, reach_x, reach_y, margin, width)
        count += tl.where(band < bands, last - first, 0)
    tl.store(counts + i, count, i < total)


@triton.jit(do_not_specialize=["total", "N", "width", "height", "tiles_x", "tiles_y"])
def fill_tiles(
    order, means2d, splats, counts, ends, tiles, rows, total, N, width, height, tiles_x, tiles_y, BLOCK: tl.constexpr
):
    """The entries ``[M]`` in depth order: the tile (of all cameras), and the Gaussian's row in ``splats``."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    row = tl.load(order + i, mask, 0)
    count = tl.load(counts + i, mask, 0)
    at = tl.load(ends + i, mask, 0) - count
    mask &= count > 0
    x, y, a, k, h, level, reach_x, reach_y, margin = _ellipse(means2d, splats, row, mask)
    top, bottom = _tiles(y, reach_y, height)
    bands = tl.where(mask, bottom - top, 0)
    for band in range(tl.max(bands, 0)):
        first, last = _band(top + band, x, y, a, k, h, level, reach_x, reach_y, margin, width)
        columns = tl.where(band < bands, last - first, 0)
        tile = (row // N * tiles_y + top + band) * tiles_x + first
        for column in range(tl.max(columns, 0)):
            tl.store(tiles + at + column, tile + column, column < columns)
            tl.store(rows + at + column, row, column < columns)
        at += columns
