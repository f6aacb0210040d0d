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
from psd_gs.render._vectors import LANES, bits, fetch, held, load, lowest, root, select, size, smaller, spread, store, sums

GRAD = 12
"""Columns of a gradient slot, sums over pixels of g = dL/dsigma and w = T alpha: g, g u, g dy, g u^2, g u dy, g dy^2,
|dL/dx|, |dL/dy|, and w times dL/d(red, green, blue, z)."""

ALPHA_MAX, T_MIN = np.float32(_constants.ALPHA_MAX), np.float32(_constants.T_MIN)
_PLANE = TILE * TILE
_F0, _F05, _F1 = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TINY = np.float32(1e-10)
_SLACK = np.float32(1.0001)
"""Over the cutoff, for the rounding of a square root: which pixels change is decided by sigma itself."""
# exp(-s) = (sum of e_i s^i)^8 for s in [0, 5.65]: minimax, relative error below 3e-6 in float32. A
# Gaussian is never evaluated beyond s = ln(255), where alpha falls below 1/255.
_E0, _E1, _E2 = np.float32(0.99999991617), np.float32(-0.12499902591), np.float32(7.8106016866e-03)
_E3, _E4, _E5 = np.float32(-3.2413368453e-04), np.float32(9.7026135797e-06), np.float32(-1.7785827568e-07)
# Unsigned, which spares the handling of negative indices.
_P1, _P2, _P3, _P4, _P5, _P6 = (np.uint64(j * _PLANE) for j in range(1, 7))
_ONE, _LOW, _AHEAD = np.uint64(1), np.uint64(TILE - 1), 8
_EIGHT, _LINES = np.uint64(LANES), np.uint64(TILE)
_SHIFT = np.uint64(4)


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
    """Fill ``lines [3,TILE]``, flat, for the tile's rows of pixels: where u is 0, h dy^2 and dy."""
    for first in range(np.uint64(0), _LINES, _EIGHT):
        dy = load(centres, first) - y
        store(lines, first, dy * k + x)
        store(lines, first + _LINES, dy * dy * h)
        store(lines, first + _LINES + _LINES, dy)


@part(error_model="numpy", inline="always")
def _reached(a, cutoff, lines):
    """Bits of the vectors that the ellipse sigma = cutoff reaches."""
    found, level, inverse = np.uint64(0), cutoff * _SLACK, _F1 / a
    for first in range(np.uint64(0), _LINES, _EIGHT):
        centre = load(lines, first)
        # Not a number, hence below nothing, where a row is out of reach.
        reach = root((level - load(lines, first + _LINES)) * inverse)
        left = (np.float32(0.5) - centre <= reach) & (centre - np.float32(7.5) <= reach)
        right = (np.float32(8.5) - centre <= reach) & (centre - np.float32(15.5) <= reach)
        found |= (bits(left) | bits(right) << _LINES) << first
    return found


@part(error_model="numpy", inline="always")
def _composite(rows, ids, masks, x0, y0, centres, lines, live, want_median, tile):
    """Composite the Gaussians ``ids`` over a tile, and note in ``masks`` which vectors each was computed on.

    Planes of ``tile [6, TILE * TILE]``, flat: 0 T (negative once the pixel is done), 1-4 r, g, b, z, 5 median depth.
    """
    series, half, most, least = _series(), held(_F05), held(ALPHA_MAX), held(T_MIN)
    for i in range(len(ids)):
        if live == 0:
            masks[i:] = 0
            break
        fetch(rows[ids[min(i + _AHEAD, len(ids) - 1)]])
        s = rows[ids[i]]
        a, opacity, cutoff = _F05 * s[0], s[3], s[8]
        red, green, blue, z = s[4], s[5], s[6], s[7]
        _aim(s[9] - x0, s[10] - y0, s[1], _F05 * s[2], centres, lines)
        todo = live & _reached(a, cutoff, lines)
        masks[i] = todo
        while todo != 0:
            v = lowest(todo)
            todo &= todo - _ONE
            p, line = v * _EIGHT, v & _LOW
            u = load(centres, (v >> _SHIFT) * _EIGHT) - lines[line]
            sigma = u * u * a + lines[line + _LINES]
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
                store(tile, p + _P5, select((T > half) & (T_next <= half), z, load(tile, p + _P5)))
            store(tile, p, select(clear, T_next, _F0 - size(T)))
            if bits(clear) == 0:
                live &= ~(_ONE << v)


@part(error_model="numpy")
def _start(rows, columns, tile):
    """Zero the planes of a tile but T, which is 1 inside the image and -1 outside; bits of the vectors inside."""
    tile[:] = _F0
    live = np.uint64(0)
    for v in range(_PLANE // LANES):
        inside = min(max(columns - v // TILE * LANES, 0), LANES) if v % TILE < rows else 0
        if inside > 0:
            live |= _ONE << np.uint64(v)
        for lane in range(LANES):
            tile[v * LANES + lane] = _F1 if lane < inside else -_F1
    return live


@part(error_model="numpy")
def _place(y, x):
    """Of a pixel in a plane."""
    return (x // LANES * TILE + y) * LANES + x % LANES


@part(error_model="numpy")
def _centres():
    return np.arange(TILE).astype(np.float32) + _F05


@njit(nogil=True, error_model="numpy")
def rasterize_forward(begin, end, rows, starts, ids, background, want_median, masks, rgb, alpha, depth, median):
    """For tiles begin to end: fill the images and ``masks [M]``. ``rows`` has C and N flattened, ``starts`` delimits the lists."""
    C, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = C * tiles_x * tiles_y
    stride = _spread(tiles)
    tile, lines, centres = np.empty(6 * _PLANE, np.float32), np.empty(3 * TILE, np.float32), _centres()
    for task in range(begin, end):
        t = task * stride % tiles
        c, x0, y0 = t // (tiles_x * tiles_y), t % tiles_x * TILE, t // tiles_x % tiles_y * TILE
        tile_height, tile_width = min(TILE, height - y0), min(TILE, width - x0)
        live = _start(tile_height, tile_width, tile)
        listed = slice(starts[t], starts[t + 1])
        _composite(
            rows, ids[listed], masks[listed], np.float32(x0), np.float32(y0), centres, lines, live, want_median, tile
        )
        for y in range(tile_height):
            for x in range(tile_width):
                p = _place(y, x)
                T = abs(tile[p])
                for j in range(3):
                    rgb[c, y0 + y, x0 + x, j] = tile[(1 + j) * _PLANE + p] + T * background[c, j]
                alpha[c, y0 + y, x0 + x] = _F1 - T
                depth[c, y0 + y, x0 + x] = tile[4 * _PLANE + p] / max(_F1 - T, _TINY)
                median[c, y0 + y, x0 + x] = tile[5 * _PLANE + p]


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

    Planes of ``tile [7, TILE * TILE]``, flat: 0 T, 1 what is still to come of dL/d(output) . output, 2-5
    dL/d(r, g, b, z), 6 dL/dsigma of the Gaussian at hand.
    """
    series, one, most, least = _series(), held(_F1), held(ALPHA_MAX), held(T_MIN)
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
            p, line = v * _EIGHT, v & _LOW
            u = load(centres, (v >> _SHIFT) * _EIGHT) - lines[line]
            sigma = u * u * a + lines[line + _LINES]
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
            line = v & _LOW
            dy = lines[line + _LINES + _LINES]
            u = load(centres, (v >> _SHIFT) * _EIGHT) - lines[line]
            g = load(tile, v * _EIGHT + _P6)
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
    tile, lines, centres = np.empty(7 * _PLANE, np.float32), np.empty(3 * TILE, np.float32), _centres()
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
                tile[5 * _PLANE + p] = g_depth[at] / max(alpha[at], _TINY)
                tile[1 * _PLANE + p] = tile[5 * _PLANE + p] * depth[at] - T * g_alpha[at]
                for j in range(3):
                    g = g_rgb[c, y0 + y, x0 + x, j]
                    tile[(2 + j) * _PLANE + p] = g
                    tile[1 * _PLANE + p] += g * rgb[c, y0 + y, x0 + x, j]
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
