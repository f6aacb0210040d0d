"""CPU kernels: front-to-back compositing of the tile lists, and its gradient.

A tile is owned by one thread, which walks the tile's Gaussians from front to back and composites
whole rows of pixels at a time. The inner loops have no branches and unsigned indices, so that the
compiler turns them into vector instructions. The backward pass replays the same walk. It writes the
gradient of each Gaussian in each tile into a slot of its own, and a second kernel sums the slots of a
Gaussian in a fixed order: results are equal from run to run and for every number of threads.
"""

import math

import numpy as np

import psd_gs.render._constants as _constants
from psd_gs.kernels import njit, part
from psd_gs.render._constants import TILE
from psd_gs.render._lists import ROW

GRAD = 12
"""Columns of a gradient slot: x, y, a, k, h, opacity, red, green, blue, z (see ``ROW``), |x|, |y|."""

ALPHA_MAX, T_MIN = np.float32(_constants.ALPHA_MAX), np.float32(_constants.T_MIN)
_BATCH = 16
_PLANE = TILE * TILE
# Unsigned offsets of a tile's planes: the vectorizer cannot see through the handling of negative indices.
_P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8 = (np.uint64(j * _PLANE) for j in range(1, 9))
_F0, _F05, _F1 = np.float32(0.0), np.float32(0.5), np.float32(1.0)
# exp(-s) = (sum of e_i s^i)^8 for s in [0, 5.65]: minimax, relative error below 3e-6 in float32. A
# Gaussian is never evaluated beyond s = ln(255), where alpha falls below 1/255.
_E0, _E1, _E2 = np.float32(0.99999991617), np.float32(-0.12499902591), np.float32(7.8106016866e-03)
_E3, _E4, _E5 = np.float32(-3.2413368453e-04), np.float32(9.7026135797e-06), np.float32(-1.7785827568e-07)

# Not "nnan" and "ninf": a lane outside of its Gaussian may overflow before it is masked.
_MATH = {"contract", "reassoc", "arcp", "nsz"}


@part(error_model="numpy")
def _load(rows, ids, x0, y0, height, batch, spans):
    """Copy the rows ``ids`` next to each other, relative to the tile, with the pixels that each covers."""
    for i in range(len(ids)):
        for j in range(ROW):
            batch[i, j] = rows[ids[i], j]
        batch[i, 0] -= np.float32(x0)
        batch[i, 1] -= np.float32(y0)
        first = max(0, math.ceil(batch[i, 1] - batch[i, 11] - _F05))
        last = min(height, math.floor(batch[i, 1] + batch[i, 11] - _F05) + 1)
        spans[i, 0], spans[i, 1] = first * TILE, max(first, last) * TILE


@part(fastmath=_MATH, error_model="numpy", inline="always")
def _composite(rows, ids, x0, y0, height, tile):
    """Composite the Gaussians ``ids`` over a tile.

    Planes of ``tile [8, TILE * TILE]``: 0 T (negative once the pixel is done), 1-4 r, g, b, z, 5 median
    depth, 6-7 pixel centres relative to (x0, y0).
    """
    batch, spans = np.empty((_BATCH, ROW), np.float32), np.empty((_BATCH, 2), np.uint64)
    for start in range(0, len(ids), _BATCH):
        now = ids[start : start + _BATCH]
        _load(rows, now, x0, y0, height, batch, spans)
        for i in range(len(now)):
            s = batch[i]
            mx, my, a, k, h, opacity = s[0], s[1], _F05 * s[2], s[3], _F05 * s[4], s[5]
            red, green, blue, z, cutoff = s[6], s[7], s[8], s[9], s[10]
            span = range(spans[i, 0], spans[i, 1])
            for p in span:
                dy = tile[p + _P7] - my
                u = tile[p + _P6] - mx - k * dy
                sigma = a * u * u + h * dy * dy
                e = _E0 + sigma * (_E1 + sigma * (_E2 + sigma * (_E3 + sigma * (_E4 + sigma * _E5))))
                e *= e
                e *= e
                alpha = min(opacity * e * e, ALPHA_MAX) if sigma <= cutoff else _F0
                T = tile[p]
                T_next = T - T * alpha
                live = T_next > T_MIN
                w = T * alpha if live else _F0
                tile[p + _P1] += w * red
                tile[p + _P2] += w * green
                tile[p + _P3] += w * blue
                tile[p + _P4] += w * z
                tile[p + _P5] = z if (T > _F05) & (T_next <= _F05) else tile[p + _P5]
                tile[p] = T_next if live else -abs(T)
        if not _any_live(tile, height):
            break


@part(fastmath=_MATH, error_model="numpy", inline="always")
def _any_live(tile, height):
    best = _F0
    for p in range(height * TILE):
        best = max(best, tile[p])
    return best > _F0


@part(error_model="numpy")
def _new_tile(planes, height, y0, width, x0):
    """A tile whose planes are zero but for T = 1 inside the image, and the pixel centres."""
    tile = np.zeros(planes * TILE * TILE, np.float32)
    rows, columns = min(TILE, height - y0), min(TILE, width - x0)
    for y in range(TILE):
        for x in range(TILE):
            p = y * TILE + x
            tile[p] = _F1 if y < rows and x < columns else -_F1
            tile[6 * _PLANE + p], tile[7 * _PLANE + p] = np.float32(x) + _F05, np.float32(y) + _F05
    return tile, rows, columns


@njit(nogil=True, fastmath=_MATH, error_model="numpy")
def rasterize_forward(begin, end, rows, starts, ids, background, rgb, alpha, depth, median):
    """For tiles begin to end: fill the images. ``rows`` has C and N flattened, ``starts`` delimits the lists."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    for task in range(begin, end):
        t = task * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile, tile_height, tile_width = _new_tile(8, height, y0, width, x0)
        _composite(rows, ids[starts[t] : starts[t + 1]], x0, y0, tile_height, tile)
        for y in range(tile_height):
            for x in range(tile_width):
                p = y * TILE + x
                T = abs(tile[p])
                for j in range(3):
                    rgb[c, y0 + y, x0 + x, j] = tile[(1 + j) * _PLANE + p] + T * background[c, j]
                alpha[c, y0 + y, x0 + x] = _F1 - T
                depth[c, y0 + y, x0 + x] = tile[4 * _PLANE + p] / max(_F1 - T, np.float32(1e-10))
                median[c, y0 + y, x0 + x] = tile[5 * _PLANE + p]


@part(error_model="numpy")
def _spread(n):
    """A stride coprime with ``n`` near its golden section: neighbours land on different threads."""
    stride = max(1, int(n * 0.6180339887))
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride


@part(fastmath=_MATH, error_model="numpy", inline="always")
def _differentiate(rows, ids, slots, x0, y0, height, tile, absgrad, grads):
    """Replay ``_composite`` and write the gradient slots of the tile's Gaussians.

    Planes of ``tile [9, TILE * TILE]``: 0 T, 1 what is still to come of dL/d(output) . output, 2-5
    dL/d(r, g, b, z), 6-7 pixel centres relative to (x0, y0), 8 dL/dsigma of the Gaussian at hand.
    """
    batch, spans = np.empty((_BATCH, ROW), np.float32), np.empty((_BATCH, 2), np.uint64)
    for start in range(0, len(ids), _BATCH):
        now = ids[start : start + _BATCH]
        _load(rows, now, x0, y0, height, batch, spans)
        for i in range(len(now)):
            s = batch[i]
            mx, my, a, k, h, opacity = s[0], s[1], _F05 * s[2], s[3], _F05 * s[4], s[5]
            red, green, blue, z, cutoff = s[6], s[7], s[8], s[9], s[10]
            span = range(spans[i, 0], spans[i, 1])
            m, m_u, m_y, m_uu, m_uy, m_yy = _F0, _F0, _F0, _F0, _F0, _F0
            g_red, g_green, g_blue, g_z = _F0, _F0, _F0, _F0
            for p in span:
                dy = tile[p + _P7] - my
                u = tile[p + _P6] - mx - k * dy
                sigma = a * u * u + h * dy * dy
                e = _E0 + sigma * (_E1 + sigma * (_E2 + sigma * (_E3 + sigma * (_E4 + sigma * _E5))))
                e *= e
                e *= e
                raw = opacity * e * e if sigma <= cutoff else _F0
                alpha = min(raw, ALPHA_MAX)
                T = tile[p]
                T_next = T - T * alpha
                live = T_next > T_MIN
                w = T * alpha if live else _F0
                q = tile[p + _P2] * red + tile[p + _P3] * green + tile[p + _P4] * blue + tile[p + _P5] * z
                behind = tile[p + _P1] - w * q
                # dL/dalpha = T q - (what lies behind) / (1 - alpha); none where alpha is clamped.
                g_alpha = T * q - behind / (_F1 - alpha)
                g_sigma = -raw * g_alpha if live & (raw <= ALPHA_MAX) else _F0
                tile[p + _P1] = behind
                tile[p] = T_next if live else -abs(T)
                tile[p + _P8] = g_sigma
                m += g_sigma
                m_u += g_sigma * u
                m_y += g_sigma * dy
                m_uu += g_sigma * u * u
                m_uy += g_sigma * u * dy
                m_yy += g_sigma * dy * dy
                g_red += w * tile[p + _P2]
                g_green += w * tile[p + _P3]
                g_blue += w * tile[p + _P4]
                g_z += w * tile[p + _P5]
            # sigma = (s[2] u^2 + s[4] dy^2) / 2 with u = x - mx - k dy and dy = y - my.
            g = grads[slots[start + i]]
            g[0], g[1] = -s[2] * m_u, s[2] * k * m_u - s[4] * m_y
            g[2], g[3], g[4], g[5] = _F05 * m_uu, -s[2] * m_uy, _F05 * m_yy, -m / opacity
            g[6], g[7], g[8], g[9] = g_red, g_green, g_blue, g_z
            m_u, m_y = _F0, _F0
            if absgrad:
                for p in span:
                    dy = tile[p + _P7] - my
                    u = tile[p + _P6] - mx - k * dy
                    m_u += abs(tile[p + _P8] * s[2] * u)
                    m_y += abs(tile[p + _P8] * (s[2] * k * u - s[4] * dy))
            g[10], g[11] = m_u, m_y
        if not _any_live(tile, height):
            for i in range(start + len(now), len(ids)):
                for j in range(GRAD):
                    grads[slots[i], j] = _F0
            break


@njit(nogil=True, fastmath=_MATH, error_model="numpy")
def rasterize_backward(
    begin, end, rows, starts, ids, slots, rgb, alpha, depth, g_rgb, g_alpha, g_depth, absgrad,
    grads, g_background,
):  # fmt: skip
    """For tiles begin to end: fill ``grads [M,GRAD]`` and ``g_background [C*tiles,3]`` (zero on entry)."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    for task in range(begin, end):
        t = task * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile, tile_height, tile_width = _new_tile(9, height, y0, width, x0)
        for y in range(tile_height):
            for x in range(tile_width):
                p, at = y * TILE + x, (c, y0 + y, x0 + x)
                T = _F1 - alpha[at]
                # Expected depth is D / alpha: what is to come of D, and alpha's share, add up to depth g / alpha.
                tile[5 * _PLANE + p] = g_depth[at] / max(alpha[at], np.float32(1e-10))
                tile[1 * _PLANE + p] = tile[5 * _PLANE + p] * depth[at] - T * g_alpha[at]
                for j in range(3):
                    g = g_rgb[c, y0 + y, x0 + x, j]
                    tile[(2 + j) * _PLANE + p] = g
                    tile[1 * _PLANE + p] += g * rgb[c, y0 + y, x0 + x, j]
                    g_background[t, j] += T * g
        _differentiate(
            rows, ids[starts[t] : starts[t + 1]], slots[starts[t] : starts[t + 1]], x0, y0, tile_height, tile,
            absgrad, grads,
        )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def sum_gradients(first, last, grads, first_slot, order, count, g_means2d, g_abs, g_splats):
    """For sorted rows first to last: sum the slots (they are contiguous) in their fixed order."""
    N = order.shape[1]
    total = np.empty(GRAD)
    for row in range(first, last):
        c, i = row // N, row % N
        if i >= count[c]:
            continue
        total[:] = 0.0
        for slot in range(first_slot[row], first_slot[row + 1]):
            for j in range(GRAD):
                total[j] += grads[slot, j]
        n = order[c, i]
        for j in range(2):
            g_means2d[c, n, j], g_abs[c, n, j] = total[j], total[10 + j]
        for j in range(8):
            g_splats[c, n, j] = total[2 + j]
