"""CPU kernels: front-to-back compositing of the tile lists, and its gradient.

A tile is owned by one thread, which walks the tile's Gaussians from front to back. Its pixels are 32 vectors of eight
in a row, numbered down the left half and then down the right; of a Gaussian only those are computed that its ellipse
reaches and that have a pixel left which is not opaque. The backward pass replays the same walk. It writes the moments
of each Gaussian in each tile into a slot of its own, and a second kernel sums the slots of a Gaussian in a fixed order:
results are equal from run to run and for every number of threads.
"""

import math

import numpy as np

import psd_gs.render._constants as _constants
from psd_gs.kernels import njit, part
from psd_gs.render._constants import TILE
from psd_gs.render._vectors import (
    LANES,
    bits,
    fetch,
    held,
    load,
    lowest,
    root,
    select,
    size,
    smaller,
    spread,
    store,
    sums,
)

GRAD = 12
"""Columns of a gradient slot, sums over pixels of g = dL/dsigma and w = T alpha: g, g u, g dy, g u^2, g u dy, g dy^2,
|dL/dx|, |dL/dy|, and w times dL/d(red, green, blue, z)."""

ALPHA_MAX, T_MIN = np.float32(_constants.ALPHA_MAX), np.float32(_constants.T_MIN)
_VECTORS = TILE * TILE // LANES
_STRIDE = 8 * LANES
"""Floats that a tile keeps of a vector: up to eight planes, side by side."""
_F0, _F05, _F1 = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TINY = np.float32(1e-10)
_SLACK = np.float32(1.0001)
"""Over the cutoff, for the rounding of a square root: which pixels change is decided by sigma itself."""
# exp(-s) = (sum of e_i s^i)^8 for s in [0, 5.65]: minimax, relative error below 3e-6 in float32. A
# Gaussian is never evaluated beyond s = ln(255), where alpha falls below 1/255.
_E0, _E1, _E2 = np.float32(0.99999991617), np.float32(-0.12499902591), np.float32(7.8106016866e-03)
_E3, _E4, _E5 = np.float32(-3.2413368453e-04), np.float32(9.7026135797e-06), np.float32(-1.7785827568e-07)
# Unsigned, which spares the handling of negative indices.
_P1, _P2, _P3, _P4, _P5, _P6 = (np.uint64(j * LANES) for j in range(1, 7))
_ONE, _EIGHT, _LINES, _SPACE = np.uint64(1), np.uint64(LANES), np.uint64(_VECTORS), np.uint64(_STRIDE)
_AHEAD = 8
"""Entries between a fetch and its use."""
_BATCH = 16
"""Entries whose vectors are found at once, among those that have a pixel which is not opaque yet."""


@part(error_model="numpy", inline="always")
def _series():
    """What :func:`_exp_minus` needs."""
    return held(_E0), held(_E1), held(_E2), held(_E3), held(_E4), held(_E5)


@part(error_model="numpy", inline="always")
def _exp_minus(s, series):
    e0, e1, e2, e3, e4, e5 = series
    ss = s * s
    e = (e0 + s * e1) + ss * ((e2 + s * e3) + ss * (e4 + s * e5))
    e = e * e
    e = e * e
    return e * e


@part(error_model="numpy", inline="always")
def _aim(x, y, k, h, centres, lines):
    """Fill ``lines [3,32]``, flat, for the tile's vectors: where u is 0, from their left end, h dy^2 and dy."""
    for first in range(np.uint64(0), np.uint64(TILE), _EIGHT):
        dy = load(centres, first) - y
        centre, fall, right = dy * k + x, dy * dy * h, first + np.uint64(TILE)
        store(lines, first, centre)
        store(lines, right, centre - np.float32(LANES))
        store(lines, first + _LINES, fall)
        store(lines, right + _LINES, fall)
        store(lines, first + _LINES + _LINES, dy)
        store(lines, right + _LINES + _LINES, dy)


@part(error_model="numpy", inline="always")
def _reached(s, x0, y0, centres):
    """Bits of the vectors that a Gaussian's ellipse sigma = cutoff reaches; rounding as in ``_aim``."""
    x, y, k, h, found = s[9] - x0, s[10] - y0, s[1], _F05 * s[2], np.uint64(0)
    level, inverse = s[8] * _SLACK, _F1 / (_F05 * s[0])
    for first in range(np.uint64(0), np.uint64(TILE), _EIGHT):
        dy = load(centres, first) - y
        centre = dy * k + x
        # Not a number, hence below nothing, where a row is out of reach.
        reach = root((level - dy * dy * h) * inverse)
        left = (_F05 - centre <= reach) & (centre - np.float32(7.5) <= reach)
        right = (np.float32(8.5) - centre <= reach) & (centre - np.float32(15.5) <= reach)
        found |= (bits(left) | bits(right) << np.uint64(TILE)) << first
    return found


@part(error_model="numpy", inline="always")
def _live(tile):
    """Bits of the vectors with a pixel that is not opaque yet."""
    found = np.uint64(0)
    for v in range(_LINES):
        if bits(load(tile, v * _SPACE) > _F0) != 0:
            found |= _ONE << v
    return found


@part(error_model="numpy", inline="always")
def _composite(rows, ids, masks, x0, y0, centres, lines, want_median, tile):
    """Composite the Gaussians ``ids`` over a tile, and note in ``masks`` which vectors each was computed on.

    Planes of the ``tile``: 0 T (negative once the pixel is done), 1-4 r, g, b, z, 5 median depth.
    """
    series, half, most, least, places = _series(), held(_F05), held(ALPHA_MAX), held(T_MIN), load(centres, 0)
    for i in range(len(ids)):
        if i % _BATCH == 0:  # masks long before they are used: the processor knows how often it will go round
            live = _live(tile)
            if live == 0:
                masks[i:] = 0
                break
            for j in range(i, min(i + _BATCH, len(ids))):
                fetch(rows[ids[min(j + _AHEAD, len(ids) - 1)]])
                masks[j] = live & _reached(rows[ids[j]], x0, y0, centres)
        s = rows[ids[i]]
        a, opacity, cutoff = _F05 * s[0], s[3], s[8]
        red, green, blue, z = s[4], s[5], s[6], s[7]
        _aim(s[9] - x0, s[10] - y0, s[1], _F05 * s[2], centres, lines)
        todo = np.uint64(masks[i])
        while todo != 0:
            v = lowest(todo)
            todo &= todo - _ONE
            p, u = v * _SPACE, places - lines[v]
            sigma = u * u * a + lines[v + _LINES]
            alpha = select(sigma <= cutoff, smaller(_exp_minus(sigma, series) * opacity, most), _F0)
            T = load(tile, p)
            T_next = T - T * alpha
            clear = T_next > least
            w = select(clear, T * alpha, _F0)
            store(tile, p + _P1, load(tile, p + _P1) + w * red)
            store(tile, p + _P2, load(tile, p + _P2) + w * green)
            store(tile, p + _P3, load(tile, p + _P3) + w * blue)
            store(tile, p + _P4, load(tile, p + _P4) + w * z)
            if want_median:
                store(tile, p + _P5, select((half < T) & (T_next <= half), z, load(tile, p + _P5)))
            store(tile, p, select(clear, T_next, _F0 - size(T)))


@part(error_model="numpy")
def _start(rows, columns, tile):
    """Zero a tile but T, which is 1 inside the image and -1 outside."""
    tile[:] = _F0
    for y in range(TILE):
        for x in range(TILE):
            tile[_place(y, x)] = _F1 if y < rows and x < columns else -_F1


@part(error_model="numpy")
def _place(y, x):
    """Of a pixel in plane 0 of a tile; LANES further in the next plane."""
    return (x // LANES * TILE + y) * _STRIDE + x % LANES


@part(error_model="numpy")
def _centres():
    return np.arange(TILE).astype(np.float32) + _F05


@njit(nogil=True, error_model="numpy")
def rasterize_forward(begin, end, rows, starts, ids, background, want_median, masks, rgb, alpha, depth, median):
    """For tiles begin to end: fill the images and ``masks [M]``.

    ``rows`` has C and N flattened, ``starts`` delimits the lists.
    """
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    tile, lines, centres = np.empty(_VECTORS * _STRIDE, np.float32), np.empty(3 * _VECTORS, np.float32), _centres()
    for task in range(begin, end):
        t = task * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile_height, tile_width = min(TILE, height - y0), min(TILE, width - x0)
        _start(tile_height, tile_width, tile)
        listed = slice(starts[t], starts[t + 1])
        _composite(rows, ids[listed], masks[listed], np.float32(x0), np.float32(y0), centres, lines, want_median, tile)
        for y in range(tile_height):
            for x in range(tile_width):
                p = _place(y, x)
                T = abs(tile[p])
                for j in range(3):
                    rgb[c, y0 + y, x0 + x, j] = tile[p + (1 + j) * LANES] + T * background[c, j]
                alpha[c, y0 + y, x0 + x] = _F1 - T
                depth[c, y0 + y, x0 + x] = tile[p + 4 * LANES] / max(_F1 - T, _TINY)
                median[c, y0 + y, x0 + x] = tile[p + 5 * LANES]


@part(error_model="numpy")
def _spread(n):
    """A stride coprime with ``n`` near its golden section: neighbours land on different threads."""
    stride = max(1, int(n * 0.6180339887))
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride


@part(error_model="numpy", inline="always")
def _differentiate(rows, ids, masks, slots, x0, y0, centres, lines, tile, absgrad, grads):
    """Replay ``_composite`` and write the gradient slots of the tile's Gaussians.

    Planes of the ``tile``: 0 T, 1 what is still to come of dL/d(output) . output, 2-5
    dL/d(r, g, b, z), 6 dL/dsigma of the Gaussian at hand.
    """
    series, one, most, least, places = _series(), held(_F1), held(ALPHA_MAX), held(T_MIN), load(centres, 0)
    zero = spread(_F0)
    for i in range(len(ids)):
        later = min(i + _AHEAD, len(ids) - 1)
        fetch(rows[ids[later]])
        fetch(grads[slots[later]])
        slot = grads[slots[i]]
        if masks[i] == 0:
            store(slot, 0, zero)
            store(slot, 4, zero)
            continue
        s = rows[ids[i]]
        a, k, opacity, cutoff = _F05 * s[0], s[1], s[3], s[8]
        red, green, blue, z = s[4], s[5], s[6], s[7]
        _aim(s[9] - x0, s[10] - y0, k, _F05 * s[2], centres, lines)
        g_red, g_green, g_blue, g_z = zero, zero, zero, zero
        todo = np.uint64(masks[i])
        while todo != 0:
            v = lowest(todo)
            todo &= todo - _ONE
            p, u = v * _SPACE, places - lines[v]
            sigma = u * u * a + lines[v + _LINES]
            raw = select(sigma <= cutoff, _exp_minus(sigma, series) * opacity, _F0)
            alpha = smaller(raw, most)
            T = load(tile, p)
            T_next = T - T * alpha
            clear = T_next > least
            w = select(clear, T * alpha, _F0)
            v_red, v_green, v_blue = load(tile, p + _P2), load(tile, p + _P3), load(tile, p + _P4)
            v_z = load(tile, p + _P5)
            q = v_red * red + v_green * green + v_blue * blue + v_z * z
            behind = load(tile, p + _P1) - w * q
            # dL/dalpha = T q - (what lies behind) / (1 - alpha); none where alpha is clamped.
            g = select(clear & (raw <= most), raw * (behind / (one - alpha) - T * q), _F0)
            store(tile, p + _P1, behind)
            store(tile, p, select(clear, T_next, _F0 - size(T)))
            store(tile, p + _P6, g)
            g_red, g_green, g_blue, g_z = g_red + w * v_red, g_green + w * v_green, g_blue + w * v_blue, g_z + w * v_z
        m, m_u, m_y, m_uu, m_uy, m_yy, m_x_abs, m_y_abs = zero, zero, zero, zero, zero, zero, zero, zero
        todo = np.uint64(masks[i])
        while todo != 0:
            v = lowest(todo)
            todo &= todo - _ONE
            g, u, dy = load(tile, v * _SPACE + _P6), places - lines[v], lines[v + _LINES + _LINES]
            g_u, g_y = g * u, g * dy
            m, m_u, m_y = m + g, m_u + g_u, m_y + g_y
            m_uu, m_uy, m_yy = m_uu + g_u * u, m_uy + g_u * dy, m_yy + g_y * dy
            if absgrad:
                m_x_abs = m_x_abs + size(g_u)
                m_y_abs = m_y_abs + size(g_u * (s[0] * k) - g_y * s[2])
        # The first four columns of the second are overwritten by the last four of the first.
        store(slot, 4, sums(zero, zero, zero, zero, g_red, g_green, g_blue, g_z))
        store(slot, 0, sums(m, m_u, m_y, m_uu, m_uy, m_yy, m_x_abs, m_y_abs))


@njit(nogil=True, error_model="numpy")
def rasterize_backward(
    begin, end, rows, starts, ids, masks, slots, rgb, alpha, depth, g_rgb, g_alpha, g_depth, absgrad,
    grads, g_background,
):  # fmt: skip
    """For tiles begin to end: fill ``grads [M,GRAD]`` and ``g_background [C*tiles,3]`` (zero on entry)."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    tile, lines, centres = np.empty(_VECTORS * _STRIDE, np.float32), np.empty(3 * _VECTORS, np.float32), _centres()
    for task in range(begin, end):
        t = task * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile_height, tile_width = min(TILE, height - y0), min(TILE, width - x0)
        _start(tile_height, tile_width, tile)
        for y in range(tile_height):
            for x in range(tile_width):
                p, at = _place(y, x), (c, y0 + y, x0 + x)
                T = _F1 - alpha[at]
                # Expected depth is D / alpha: what is to come of D, and alpha's share, add up to depth g / alpha.
                tile[p + 5 * LANES] = g_depth[at] / max(alpha[at], _TINY)
                tile[p + LANES] = tile[p + 5 * LANES] * depth[at] - T * g_alpha[at]
                for j in range(3):
                    g = g_rgb[c, y0 + y, x0 + x, j]
                    tile[p + (2 + j) * LANES] = g
                    tile[p + LANES] += g * rgb[c, y0 + y, x0 + x, j]
                    g_background[t, j] += T * g
        listed = slice(starts[t], starts[t + 1])
        _differentiate(
            rows, ids[listed], masks[listed], slots[listed], np.float32(x0), np.float32(y0), centres, lines, tile,
            absgrad, grads,
        )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def sum_gradients(first, last, grads, first_slot, rows, g_means2d, g_abs, g_rows):
    """For rows first to last: sum the slots, which are contiguous, in their fixed order.

    Fills ``g_means2d [R,2]``, ``g_abs [R,2]`` and ``g_rows [R,ROW]``, of which only a splat's columns have a gradient.
    """
    total = np.empty(GRAD)
    for n in range(first, last):
        total[:] = 0.0
        for slot in range(first_slot[n], first_slot[n + 1]):
            for j in range(GRAD):
                total[j] += grads[slot, j]
        a, k, h, opacity = rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3]
        g, m, m_u, m_y = g_rows[n], total[0], total[1], total[2]
        # sigma = (a u^2 + h dy^2) / 2 with u = dx - k dy.
        g_means2d[n, 0], g_means2d[n, 1] = -a * m_u, a * k * m_u - h * m_y
        g_abs[n, 0], g_abs[n, 1] = a * total[6], total[7]
        g[:] = 0.0
        if m != 0.0:
            g[0], g[1], g[2], g[3] = 0.5 * total[3], -a * total[4], 0.5 * total[5], -m / opacity
        for j in range(4):
            g[4 + j] = total[8 + j]
