"""CPU kernels: depth-sorted tile lists, front-to-back compositing, and its gradient.

The image is cut into TILE x TILE tiles. A tile is owned by one thread, which walks the tile's
Gaussians from front to back and composites whole rows of pixels at a time (the inner loops have a
constant length and no branches, so that the compiler turns them into vector instructions). The
backward pass replays the same walk. A tile writes the gradient of each of its Gaussians into a row
of its own, and a second kernel sums the rows of a Gaussian in a fixed order: results are equal from
run to run and for every number of threads.
"""

import math

import numpy as np
from numba import njit, prange

TILE = 8
GRAD = 12
"""Columns of a gradient row: x, y, a, k, h, opacity, red, green, blue, z (see ``SPLAT``), |x|, |y|."""

ALPHA_MAX = np.float32(0.999)
T_MIN = np.float32(1e-4)
_F0, _F05, _F1 = np.float32(0.0), np.float32(0.5), np.float32(1.0)
# exp(-s) = (sum of e_i s^i)^8 for s in [0, 5.65]: minimax, relative error below 3e-6 in float32. A
# Gaussian is never evaluated beyond s = ln(255), where alpha falls below 1/255.
_E0, _E1, _E2 = np.float32(0.99999991617), np.float32(-0.12499902591), np.float32(7.8106016866e-03)
_E3, _E4, _E5 = np.float32(-3.2413368453e-04), np.float32(9.7026135797e-06), np.float32(-1.7785827568e-07)

# Not "nnan" and "ninf": a lane outside of its Gaussian may overflow before it is masked.
_MATH = {"contract", "reassoc", "arcp", "nsz"}


@njit(parallel=True, cache=True)
def sort_by_depth(splats):
    """Indices of the visible Gaussians, nearest first (ties by index): ``order [C,N]``, ``count [C]``.

    A least-significant-digit radix sort of the bits of the (positive) float32 depths.
    """
    C, N = splats.shape[:2]
    order = np.empty((C, N), np.int32)
    count = np.zeros(C, np.int64)
    for c in prange(C):
        keys, keys2 = np.empty(N, np.uint32), np.empty(N, np.uint32)
        ids, ids2 = np.empty(N, np.int32), np.empty(N, np.int32)
        depth = np.empty(1, np.float32)
        bits = depth.view(np.uint32)
        m = 0
        for n in range(N):
            if splats[c, n, 8] >= _F0:
                depth[0] = splats[c, n, 7]
                keys[m], ids[m] = bits[0], n
                m += 1
        for digit in range(3):
            shift = np.uint32(11 * digit)
            start = np.zeros(2049, np.int64)
            for i in range(m):
                start[((keys[i] >> shift) & np.uint32(2047)) + np.uint32(1)] += 1
            for i in range(2048):
                start[i + 1] += start[i]
            for i in range(m):
                bucket = (keys[i] >> shift) & np.uint32(2047)
                j = start[bucket]
                start[bucket] += 1
                keys2[j], ids2[j] = keys[i], ids[i]
            keys, keys2 = keys2, keys
            ids, ids2 = ids2, ids
        order[c, :m] = ids[:m]
        count[c] = m
    return order, count


@njit(cache=True)
def _rows(y, h, cutoff, size):
    """First and one-past-last of ``size`` pixel rows whose centres a Gaussian at height ``y`` reaches."""
    reach = math.sqrt(2.0 * cutoff / h) + 1e-3
    return max(0, math.ceil(y - reach - 0.5)), min(size, math.floor(y + reach - 0.5) + 1)


@njit(cache=True)
def _tiles_of_band(band, x, y, splat, width):
    """First and one-past-last tile of a band of TILE rows that the ellipse sigma <= cutoff touches."""
    a, k, h, cutoff = np.float64(splat[0]), np.float64(splat[1]), np.float64(splat[2]), np.float64(splat[8])
    reach = math.sqrt(2.0 * cutoff / h)
    low = max(band * TILE + 0.5 - y, -reach)
    high = min(band * TILE + TILE - 0.5 - y, reach)
    # x(dy) = k dy +- sqrt((2 cutoff - h dy^2) / a) is extremal at dy = +- k / h sqrt(2 cutoff / cov_xx).
    extremal = k / h * math.sqrt(2.0 * cutoff / (1.0 / a + k * k / h))
    right = min(max(extremal, low), high)
    left = min(max(-extremal, low), high)
    x_right = x + k * right + math.sqrt(max(0.0, 2.0 * cutoff - h * right * right) / a) + 1e-3
    x_left = x + k * left - math.sqrt(max(0.0, 2.0 * cutoff - h * left * left) / a) - 1e-3
    first = max(0.0, math.ceil(x_left - 0.5))
    last = min(width - 1.0, math.floor(x_right - 0.5))
    if not first <= last:
        return 0, 0
    return int(first) // TILE, int(last) // TILE + 1


@njit(parallel=True, cache=True)
def count_tiles(means2d, splats, order, count, chunks, width, height):
    """Per (camera, chunk of the depth order, tile) and per Gaussian: how many intersections."""
    C, N = means2d.shape[:2]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    per_tile = np.zeros((C, chunks, tiles_y * tiles_x), np.int32)
    per_splat = np.zeros((C, N), np.int64)
    for task in prange(C * chunks):
        c, chunk = task // chunks, task % chunks
        for i in range(count[c] * chunk // chunks, count[c] * (chunk + 1) // chunks):
            n = order[c, i]
            x, y = np.float64(means2d[c, n, 0]), np.float64(means2d[c, n, 1])
            y0, y1 = _rows(y, np.float64(splats[c, n, 2]), np.float64(splats[c, n, 8]), height)
            total = 0
            for band in range(y0 // TILE, (y1 + TILE - 1) // TILE if y1 > y0 else 0):
                first, last = _tiles_of_band(band, x, y, splats[c, n], width)
                for tile in range(band * tiles_x + first, band * tiles_x + last):
                    per_tile[c, chunk, tile] += 1
                total += last - first
            per_splat[c, n] = total
    return per_tile, per_splat


@njit(cache=True)
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


@njit(parallel=True, cache=True)
def fill_tiles(means2d, splats, order, count, parts, first_row, total, width, height):
    """The lists: index ``c * N + n`` of the Gaussian, and the gradient row that is its own in this tile."""
    C, N = means2d.shape[:2]
    chunks = parts.shape[1]
    tiles_x = (width + TILE - 1) // TILE
    ids, rows = np.empty(total, np.int32), np.empty(total, np.int32)
    for task in prange(C * chunks):
        c, chunk = task // chunks, task % chunks
        for i in range(count[c] * chunk // chunks, count[c] * (chunk + 1) // chunks):
            n = order[c, i]
            x, y = np.float64(means2d[c, n, 0]), np.float64(means2d[c, n, 1])
            y0, y1 = _rows(y, np.float64(splats[c, n, 2]), np.float64(splats[c, n, 8]), height)
            row = first_row[c * N + n]
            for band in range(y0 // TILE, (y1 + TILE - 1) // TILE if y1 > y0 else 0):
                first, last = _tiles_of_band(band, x, y, splats[c, n], width)
                for tile in range(band * tiles_x + first, band * tiles_x + last):
                    at = parts[c, chunk, tile]
                    parts[c, chunk, tile] = at + 1
                    ids[at], rows[at] = c * N + n, row
                    row += 1
    return ids, rows


@njit(fastmath=_MATH, cache=True)
def _composite(means2d, splats, ids, x0, y0, rows, px):
    """Composite the Gaussians ``ids`` over a tile. Planes of ``px``: T (negative once done), r, g, b, z, median, x."""
    for y in range(TILE):
        for x in range(TILE):
            px[0, y, x] = _F1
            px[1, y, x] = px[2, y, x] = px[3, y, x] = px[4, y, x] = px[5, y, x] = _F0
            px[6, y, x] = np.float32(x)
    for i in range(len(ids)):
        s = splats[ids[i]]
        a, k, h, opacity = _F05 * s[0], s[1], _F05 * s[2], s[3]
        red, green, blue, z, cutoff = s[4], s[5], s[6], s[7], s[8]
        mx, my = means2d[ids[i], 0] - np.float32(x0), means2d[ids[i], 1] - np.float32(y0)
        first, last = _rows(np.float64(my), np.float64(s[2]), np.float64(cutoff), rows)
        for y in range(first, last):
            dy = np.float32(y) + _F05 - my
            u0, rest = _F05 - mx - k * dy, h * dy * dy
            for x in range(TILE):
                u = px[6, y, x] + u0
                sigma = a * u * u + rest
                e = _E0 + sigma * (_E1 + sigma * (_E2 + sigma * (_E3 + sigma * (_E4 + sigma * _E5))))
                e *= e
                e *= e
                alpha = min(opacity * e * e, ALPHA_MAX) if sigma <= cutoff else _F0
                T = px[0, y, x]
                T_next = T - T * alpha
                live = T_next > T_MIN
                w = T * alpha if live else _F0
                px[1, y, x] += w * red
                px[2, y, x] += w * green
                px[3, y, x] += w * blue
                px[4, y, x] += w * z
                px[5, y, x] = z if (T > _F05) & (T_next <= _F05) else px[5, y, x]
                px[0, y, x] = T_next if live else -abs(T)
        if i % 8 == 7 and not _any_live(px, rows):
            break


@njit(fastmath=_MATH, cache=True)
def _any_live(px, rows):
    best = _F0
    for y in range(rows):
        for x in range(TILE):
            best = max(best, px[0, y, x])
    return best > _F0


@njit(parallel=True, cache=True)
def rasterize_forward(means2d, splats, starts, ids, background, rgb, alpha, depth, median):
    """Fill the images; ``means2d`` and ``splats`` have C and N flattened, ``starts`` delimits the tile lists."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    for task in prange(tiles):
        t = np.int64(task) * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        px = np.empty((7, TILE, TILE), np.float32)
        rows, columns = min(TILE, height - y0), min(TILE, width - x0)
        _composite(means2d, splats, ids[starts[t] : starts[t + 1]], x0, y0, rows, px)
        for y in range(rows):
            for x in range(columns):
                T = abs(px[0, y, x])
                for j in range(3):
                    rgb[c, y0 + y, x0 + x, j] = px[1 + j, y, x] + T * background[c, j]
                alpha[c, y0 + y, x0 + x] = _F1 - T
                depth[c, y0 + y, x0 + x] = px[4, y, x] / max(_F1 - T, np.float32(1e-10))
                median[c, y0 + y, x0 + x] = px[5, y, x]


@njit(cache=True)
def _spread(n):
    """A stride coprime with ``n`` near its golden section: neighbours land on different threads."""
    stride = max(1, int(n * 0.6180339887))
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride


@njit(fastmath=_MATH, cache=True)
def _differentiate(means2d, splats, ids, rows_of, x0, y0, rows, px, absgrad, grads):
    """Replay ``_composite`` and write the gradient rows of the tile's Gaussians.

    Planes of ``px``: 0 T, 1 what is still to come of dL/d(output) . output, 2-5 dL/d(r, g, b, z), 6 x,
    7 dL/dsigma of the row at hand, 8 scratch whose rows 0-2 sum dL/dsigma * (1, dy', dy'^2) and 3-6 the
    weights times planes 2-5.
    """
    centre = np.float32(0.5 * (TILE - 1))
    for i in range(len(ids)):
        s = splats[ids[i]]
        a, k, h, opacity = _F05 * s[0], s[1], _F05 * s[2], s[3]
        red, green, blue, z, cutoff = s[4], s[5], s[6], s[7], s[8]
        mx, my = means2d[ids[i], 0] - np.float32(x0), means2d[ids[i], 1] - np.float32(y0)
        first, last = _rows(np.float64(my), np.float64(s[2]), np.float64(cutoff), rows)
        for j in range(7):
            for x in range(TILE):
                px[8, j, x] = _F0
        abs_x, abs_y = _F0, _F0
        for y in range(first, last):
            dy = np.float32(y) + _F05 - my
            y_c = np.float32(y) - centre
            u0, rest = _F05 - mx - k * dy, h * dy * dy
            for x in range(TILE):
                u = px[6, y, x] + u0
                sigma = a * u * u + rest
                e = _E0 + sigma * (_E1 + sigma * (_E2 + sigma * (_E3 + sigma * (_E4 + sigma * _E5))))
                e *= e
                e *= e
                raw = opacity * e * e if sigma <= cutoff else _F0
                alpha = min(raw, ALPHA_MAX)
                T = px[0, y, x]
                T_next = T - T * alpha
                live = T_next > T_MIN
                w = T * alpha if live else _F0
                g_r, g_g, g_b, g_z = px[2, y, x], px[3, y, x], px[4, y, x], px[5, y, x]
                q = g_r * red + g_g * green + g_b * blue + g_z * z
                left = px[1, y, x] - w * q
                # dL/dalpha = T q - (what lies behind) / (1 - alpha); none where alpha is clamped.
                g_alpha = T * q - left / (_F1 - alpha)
                g_sigma = -raw * g_alpha if live & (raw <= ALPHA_MAX) else _F0
                px[1, y, x] = left
                px[0, y, x] = T_next if live else -abs(T)
                px[7, y, x] = g_sigma
                px[8, 0, x] += g_sigma
                px[8, 1, x] += g_sigma * y_c
                px[8, 2, x] += g_sigma * y_c * y_c
                px[8, 3, x] += w * g_r
                px[8, 4, x] += w * g_g
                px[8, 5, x] += w * g_b
                px[8, 6, x] += w * g_z
            if absgrad:
                for x in range(TILE):
                    u = px[6, y, x] + u0
                    abs_x += abs(px[7, y, x] * a * u)
                    abs_y += abs(px[7, y, x] * (a * k * u - h * dy))
        # Moments of dL/dsigma about the tile's centre, then about the Gaussian: u = u_c + x' - k y'.
        m00, m10, m20, m01, m11, m02 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        g_r, g_g, g_b, g_z = _F0, _F0, _F0, _F0
        for x in range(TILE):
            x_c = np.float64(x) - 0.5 * (TILE - 1)
            m00 += px[8, 0, x]
            m10 += px[8, 0, x] * x_c
            m20 += px[8, 0, x] * x_c * x_c
            m01 += px[8, 1, x]
            m11 += px[8, 1, x] * x_c
            m02 += px[8, 2, x]
            g_r += px[8, 3, x]
            g_g += px[8, 4, x]
            g_b += px[8, 5, x]
            g_z += px[8, 6, x]
        a, k, h = np.float64(s[0]), np.float64(s[1]), np.float64(s[2])
        dy_c = 0.5 * TILE - my
        u_c = 0.5 * TILE - mx - k * dy_c
        s_u = u_c * m00 + m10 - k * m01
        s_y = dy_c * m00 + m01
        s_yu = u_c * m01 + m11 - k * m02
        s_uu = u_c * s_u + (u_c * m10 + m20 - k * m11) - k * s_yu
        g = grads[rows_of[i]]
        g[0], g[1] = -a * s_u, a * k * s_u - h * s_y
        g[2], g[3], g[4] = 0.5 * s_uu, -a * (dy_c * s_u + s_yu), 0.5 * (dy_c * s_y + dy_c * m01 + m02)
        g[5] = -m00 / opacity
        g[6], g[7], g[8], g[9] = g_r, g_g, g_b, g_z
        g[10], g[11] = np.float32(2.0) * abs_x, np.float32(2.0) * abs_y
        if i % 8 == 7 and not _any_live(px, rows):
            break


@njit(parallel=True, cache=True)
def rasterize_backward(
    means2d, splats, starts, ids, rows_of, rgb, alpha, depth, g_rgb, g_alpha, g_depth, absgrad, grads, g_background
):
    """Fill ``grads [intersections, GRAD]`` (zero on entry) and ``g_background [C * tiles, 3]``."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    for task in prange(tiles):
        t = np.int64(task) * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        px = np.zeros((9, TILE, TILE), np.float32)
        rows = min(TILE, height - y0)
        for y in range(TILE):
            for x in range(TILE):
                px[6, y, x] = np.float32(x)
        for y in range(rows):
            for x in range(min(TILE, width - x0)):
                at = (c, y0 + y, x0 + x)
                T, opaque, g_T = _F1 - alpha[at], max(alpha[at], np.float32(1e-10)), -g_alpha[at]
                px[0, y, x] = _F1
                px[5, y, x] = g_depth[at] / opaque
                # Expected depth is D / alpha: what is to come of D and of alpha's share adds up to depth g / alpha.
                px[1, y, x] = T * g_T + px[5, y, x] * depth[at]
                for j in range(3):
                    px[2 + j, y, x] = g_rgb[c, y0 + y, x0 + x, j]
                    px[1, y, x] += px[2 + j, y, x] * rgb[c, y0 + y, x0 + x, j]
                    g_background[t, j] += T * px[2 + j, y, x]
        _differentiate(
            means2d, splats, ids[starts[t] : starts[t + 1]], rows_of[starts[t] : starts[t + 1]], x0, y0, rows, px,
            absgrad, grads,
        )  # fmt: skip


@njit(parallel=True, cache=True)
def sum_gradients(grads, first_row, g_means2d, g_abs, g_splats):
    """Sum the gradient rows of each Gaussian (they are contiguous) in their fixed order."""
    for i in prange(len(g_means2d)):
        total = np.zeros(GRAD)
        for row in range(first_row[i], first_row[i + 1]):
            for j in range(GRAD):
                total[j] += grads[row, j]
        for j in range(2):
            g_means2d[i, j], g_abs[i, j] = total[j], total[10 + j]
        for j in range(8):
            g_splats[i, j] = total[2 + j]
