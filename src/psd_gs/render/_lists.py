"""CPU kernels: from projected Gaussians to one depth-sorted list per tile of the image.

The Gaussians stay where they are, and are fetched ahead of their turn: by depth, their places are at random. Every
kernel works on the tasks ``first`` to ``last`` of its own kind and writes nothing that another task writes, so that
threads may share the work and the result is the same for any sharing.
"""

import math

import numpy as np

from psd_gs.kernels import njit, part
from psd_gs.render._constants import TILE
from psd_gs.render._vectors import fetch

_AHEAD = 8
"""Gaussians between a fetch and its use."""


@njit(nogil=True, error_model="numpy")
def sort_by_depth(first, last, rows, bits, order, count):
    """For cameras first to last: the visible Gaussians, nearest first, ties by index.

    Fills ``order [C,N]`` up to ``count [C]``. A least-significant-digit radix sort of the depths, which
    are positive float32, by their ``bits`` (``rows`` as uint32).
    """
    N = rows.shape[1]
    keys, keys2 = np.empty(N, np.uint32), np.empty(N, np.uint32)
    ids, ids2 = np.empty(N, np.int32), np.empty(N, np.int32)
    start = np.empty(2049, np.int64)
    mask = np.uint32(2047)
    for c in range(first, last):
        m = 0
        for n in range(N):
            if rows[c, n, 8] >= 0.0:
                keys[m], ids[m] = bits[c, n, 7], n
                m += 1
        for digit in range(3):
            shift = np.uint32(11 * digit)
            for i in range(2049):
                start[i] = 0
            for i in range(m):
                start[((keys[i] >> shift) & mask) + np.uint32(1)] += 1
            for i in range(2048):
                start[i + 1] += start[i]
            for i in range(m):
                bucket = (keys[i] >> shift) & mask
                keys2[start[bucket]], ids2[start[bucket]] = keys[i], ids[i]
                start[bucket] += 1
            keys, keys2 = keys2, keys
            ids, ids2 = ids2, ids
        for i in range(m):
            order[c, i] = ids[i]
        count[c] = m


@part(error_model="numpy")
def _pixels(centre, reach, size):
    """First and one-past-last of ``size`` pixels whose centres lie within ``reach`` of ``centre``."""
    return max(0, math.ceil(centre - reach - 0.5)), min(size, math.floor(centre + reach - 0.5) + 1)


@part(error_model="numpy")
def _tiles(centre, reach, size):
    """First and one-past-last tile along an axis of ``size`` pixels, in the same sense."""
    low, high = _pixels(centre, reach, size)
    return (low // TILE, (high - 1) // TILE + 1) if low < high else (0, 0)


@part(error_model="numpy")
def _tiles_of_band(band, row, width):
    """First and one-past-last tile of a band of TILE pixel rows that the ellipse sigma <= cutoff touches."""
    a, k, h, level = np.float64(row[0]), np.float64(row[1]), np.float64(row[2]), 2.0 * np.float64(row[8])
    y, reach = np.float64(row[10]), np.float64(row[11])
    low, high = max(band * TILE + 0.5 - y, -reach), min(band * TILE + TILE - 0.5 - y, reach)
    # x(dy) = k dy +- sqrt((level - h dy^2) / a) is extremal at dy = +- (k / h) sqrt(level / cov_xx).
    extremal = k / h * math.sqrt(level / (1.0 / a + k * k / h))
    right, left = min(max(extremal, low), high), min(max(-extremal, low), high)
    x_right = k * right + math.sqrt(max(0.0, level - h * right * right) / a)
    x_left = k * left - math.sqrt(max(0.0, level - h * left * left) / a)
    half = 0.5 * (x_right - x_left) + 1e-3
    return _tiles(row[9] + 0.5 * (x_right + x_left), half, width)


@part(error_model="numpy")
def _band(band, row, box, width):
    """``_tiles_of_band``; a bounding box of one row or column of tiles is not worth the trouble."""
    if box[1] - box[0] <= 1 or box[3] - box[2] <= 1:
        return np.int64(box[0]), np.int64(box[1])
    return _tiles_of_band(band, row, width)


@njit(nogil=True, error_model="numpy")
def count_tiles(begin, end, rows, order, count, width, height, boxes, per_tile, per_row):
    """For chunks of the depth order begin to end: count the tiles of the Gaussians.

    Fills ``boxes [C,N,4]`` by depth (tiles of the bounding box: x first and last, y first and last),
    ``per_tile [C,chunks,tiles]`` and ``per_row [C,N]`` (both zero on entry).
    """
    chunks = per_tile.shape[1]
    tiles_x = (width + TILE - 1) // TILE
    for task in range(begin, end):
        c, chunk = task // chunks, task % chunks
        for i in range(count[c] * chunk // chunks, count[c] * (chunk + 1) // chunks):
            fetch(rows[c, order[c, min(i + _AHEAD, count[c] - 1)]])
            row, box = rows[c, order[c, i]], boxes[c, i]
            a, k, h, level = np.float64(row[0]), np.float64(row[1]), np.float64(row[2]), 2.0 * np.float64(row[8])
            box[0], box[1] = _tiles(np.float64(row[9]), math.sqrt(level * (1.0 / a + k * k / h)) + 1e-3, width)
            box[2], box[3] = _tiles(np.float64(row[10]), np.float64(row[11]), height)
            total = 0
            for band in range(box[2], box[3]):
                low, high = _band(band, row, box, width)
                for tile in range(band * tiles_x + low, band * tiles_x + high):
                    per_tile[c, chunk, tile] += 1
                total += high - low
            per_row[c, order[c, i]] = total


@njit(error_model="numpy")
def offsets_of(per_tile):
    """Where each (camera, tile) list starts ``[C * tiles + 1]``, and each chunk's part of it."""
    C, chunks, tiles = per_tile.shape
    starts = np.empty(C * tiles + 1, np.int64)
    parts = np.empty((C, chunks, tiles), np.int64)
    total = 0
    for c in range(C):
        for tile in range(tiles):
            starts[c * tiles + tile] = total
            for chunk in range(chunks):
                parts[c, chunk, tile] = total
                total += per_tile[c, chunk, tile]
    starts[C * tiles] = total
    return starts, parts


@njit(nogil=True, error_model="numpy")
def fill_tiles(begin, end, rows, order, count, width, boxes, parts, first_slot, ids, slots):
    """The lists: the row ``c * N + n``, and the gradient slot that is the row's own in this tile."""
    N = rows.shape[1]
    chunks = parts.shape[1]
    tiles_x = (width + TILE - 1) // TILE
    for task in range(begin, end):
        c, chunk = task // chunks, task % chunks
        for i in range(count[c] * chunk // chunks, count[c] * (chunk + 1) // chunks):
            later = order[c, min(i + _AHEAD, count[c] - 1)]
            fetch(rows[c, later])
            fetch(first_slot[c * N + later : c * N + later + 1])
            n = order[c, i]
            slot = first_slot[c * N + n]
            for band in range(boxes[c, i, 2], boxes[c, i, 3]):
                low, high = _band(band, rows[c, n], boxes[c, i], width)
                for tile in range(band * tiles_x + low, band * tiles_x + high):
                    at = parts[c, chunk, tile]
                    parts[c, chunk, tile] = at + 1
                    ids[at], slots[at] = c * N + n, slot
                    slot += 1
