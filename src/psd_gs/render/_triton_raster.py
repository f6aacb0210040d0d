"""Triton kernels: front-to-back compositing of the tile lists, and its gradient.

A program owns a tile. It takes the tile's Gaussians in batches and holds a matrix Gaussians x pixels in registers, the
transmittance running down each column, until no pixel lets anything through. The backward pass replays the same walk
and writes the sums over the tile's pixels of each Gaussian into a slot of its own; a last kernel adds up the slots of a
Gaussian. There are no atomics, so results are equal from run to run.
"""

import math

import triton
import triton.language as tl

import psd_gs.render._constants as _constants

SPLAT: tl.constexpr = tl.constexpr(_constants.SPLAT)
TILE: tl.constexpr = tl.constexpr(_constants.TILE)
PIXELS: tl.constexpr = tl.constexpr(_constants.TILE**2)
ALPHA_MAX: tl.constexpr = tl.constexpr(_constants.ALPHA_MAX)
T_MIN: tl.constexpr = tl.constexpr(_constants.T_MIN)
LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
GRAD: tl.constexpr = tl.constexpr(16)
"""Columns of a gradient slot: x, y, |x|, |y|, then those of a splat but the last; the rest is padding."""


@triton.jit
def _pixels(t, width, height, tiles_x, tiles_y):
    """Camera of a tile, the index of each of its pixels in the image, which are inside, and their centres."""
    pixel = tl.arange(0, PIXELS)
    x = t % tiles_x * TILE + pixel % TILE
    y = t // tiles_x % tiles_y * TILE + pixel // TILE
    c = t // (tiles_x * tiles_y)
    return c, (c.to(tl.int64) * height + y) * width + x, (x < width) & (y < height), x + 0.5, y + 0.5


@triton.jit
def _exp2(x, PTX: tl.constexpr):
    """2^x; on NVIDIA in one instruction, for Triton's own takes care of denormal numbers, which alpha never is."""
    if PTX:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.exp2(x)


@triton.jit
def _reciprocal(x, PTX: tl.constexpr):
    """1 / x, likewise."""
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return 1.0 / x


@triton.jit
def _evaluate(means2d, splats, rows, at, some, x, y, PTX: tl.constexpr):
    """A batch of Gaussians at all pixels of a tile.

    Returns dx - k dy, dy and opacity exp(-sigma), each [BATCH, PIXELS], and a, k, h, opacity, colour and z [BATCH].
    """
    row = tl.load(rows + at, some, 0)
    mx, my = tl.load(means2d + 2 * row, some, 0.0), tl.load(means2d + 2 * row + 1, some, 0.0)
    splat = splats + row * SPLAT
    a, k, h = tl.load(splat, some, 0.0), tl.load(splat + 1, some, 0.0), tl.load(splat + 2, some, 0.0)
    opacity, cutoff = tl.load(splat + 3, some, 1.0), tl.load(splat + 8, some, -1.0)
    colour = tl.load(splat + 4, some, 0.0), tl.load(splat + 5, some, 0.0), tl.load(splat + 6, some, 0.0)
    z = tl.load(splat + 7, some, 0.0)
    dy = y[None, :] - my[:, None]
    u = x[None, :] - mx[:, None] - k[:, None] * dy
    sigma = (a * (0.5 * LOG2E))[:, None] * u * u + (h * (0.5 * LOG2E))[:, None] * dy * dy
    raw = tl.where(sigma <= (cutoff * LOG2E)[:, None], opacity[:, None] * _exp2(-sigma, PTX), 0.0)
    return u, dy, raw, a, k, h, opacity, colour, z


@triton.jit
def _last(T_after):
    """Transmittance behind a batch: 0 once a pixel is done."""
    T = tl.min(T_after, 0)
    return tl.where(T > T_MIN, T, 0.0)


@triton.jit(do_not_specialize=["width", "height", "tiles_x", "tiles_y"])
def rasterize_forward(
    means2d, splats, rows, starts, background, rgb, alpha, depth, median, width, height, tiles_x, tiles_y,
    MEDIAN: tl.constexpr, BATCH: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Program per tile: fill the images. ``splats`` has C and N flattened, ``starts`` delimits the lists ``rows``."""
    t = tl.program_id(0)
    c, at, inside, x, y = _pixels(t, width, height, tiles_x, tiles_y)
    T = tl.where(inside, 1.0, 0.0)
    red, green, blue, depths, half, through = 0.0 * T, 0.0 * T, 0.0 * T, 0.0 * T, 0.0 * T, 0.0 * T + 1.0
    i, end = tl.load(starts + t), tl.load(starts + t + 1)
    order = tl.arange(0, BATCH)
    alive = i < end
    while alive:
        _, _, raw, _, _, _, _, colour, z = _evaluate(means2d, splats, rows, i + order, i + order < end, x, y, PTX)
        a = tl.minimum(raw, ALPHA_MAX)
        T_after = T[None, :] * tl.cumprod(1.0 - a, 0)
        live = T_after > T_MIN
        w = tl.where(live, T_after * _reciprocal(1.0 - a, PTX) * a, 0.0)
        red += tl.sum(w * colour[0][:, None], 0)
        green += tl.sum(w * colour[1][:, None], 0)
        blue += tl.sum(w * colour[2][:, None], 0)
        depths += tl.sum(w * z[:, None], 0)
        through = tl.minimum(through, tl.min(tl.where(live, T_after, 1.0), 0))
        if MEDIAN:
            before = tl.sum((T_after > 0.5).to(tl.int32), 0)
            crosses = (order[:, None] == before[None, :]) & (T > 0.5)[None, :]
            half += tl.sum(tl.where(crosses, z[:, None], 0.0), 0)
        T = _last(T_after)
        i += BATCH
        alive = (i < end) & (tl.max(T, 0) > 0.0)
    opaque = 1.0 - through
    tl.store(alpha + at, opaque, inside)
    tl.store(depth + at, depths / tl.maximum(opaque, 1e-10), inside)
    if MEDIAN:
        tl.store(median + at, half, inside)
    tl.store(rgb + 3 * at, red + through * tl.load(background + 3 * c), inside)
    tl.store(rgb + 3 * at + 1, green + through * tl.load(background + 3 * c + 1), inside)
    tl.store(rgb + 3 * at + 2, blue + through * tl.load(background + 3 * c + 2), inside)


@triton.jit(do_not_specialize=["width", "height", "tiles_x", "tiles_y"])
def rasterize_backward(
    means2d, splats, rows, starts, slots, rgb, alpha, depth, g_rgb, g_alpha, g_depth, grads, g_background,
    width, height, tiles_x, tiles_y, ABSGRAD: tl.constexpr, BATCH: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Program per tile: fill ``grads [M,GRAD]`` (zero on entry) and ``g_background [C*tiles,3]``."""
    t = tl.program_id(0)
    _, at, inside, x, y = _pixels(t, width, height, tiles_x, tiles_y)
    opaque = tl.load(alpha + at, inside, 0.0)
    g_red, g_green = tl.load(g_rgb + 3 * at, inside, 0.0), tl.load(g_rgb + 3 * at + 1, inside, 0.0)
    g_blue = tl.load(g_rgb + 3 * at + 2, inside, 0.0)
    through = 1.0 - opaque
    tl.store(g_background + 3 * t, tl.sum(through * g_red, 0))
    tl.store(g_background + 3 * t + 1, tl.sum(through * g_green, 0))
    tl.store(g_background + 3 * t + 2, tl.sum(through * g_blue, 0))
    # Expected depth is D / alpha: what is to come of D, and alpha's share, add up to depth g / alpha.
    g_z = tl.load(g_depth + at, inside, 0.0) / tl.maximum(opaque, 1e-10)
    ahead = g_z * tl.load(depth + at, inside, 0.0) - through * tl.load(g_alpha + at, inside, 0.0)
    ahead += g_red * tl.load(rgb + 3 * at, inside, 0.0) + g_green * tl.load(rgb + 3 * at + 1, inside, 0.0)
    ahead += g_blue * tl.load(rgb + 3 * at + 2, inside, 0.0)
    T = tl.where(inside, 1.0, 0.0)
    i, end = tl.load(starts + t), tl.load(starts + t + 1)
    order = tl.arange(0, BATCH)
    alive = i < end
    while alive:
        some = i + order < end
        u, dy, raw, a, k, h, opacity, colour, z = _evaluate(means2d, splats, rows, i + order, some, x, y, PTX)
        al = tl.minimum(raw, ALPHA_MAX)
        inverse = _reciprocal(1.0 - al, PTX)
        T_after = T[None, :] * tl.cumprod(1.0 - al, 0)
        live = T_after > T_MIN
        w = tl.where(live, T_after * inverse * al, 0.0)
        q = colour[0][:, None] * g_red[None, :] + colour[1][:, None] * g_green[None, :]
        q += colour[2][:, None] * g_blue[None, :] + z[:, None] * g_z[None, :]
        behind = ahead[None, :] - tl.cumsum(w * q, 0)
        # dL/dalpha = T q - (what lies behind) / (1 - alpha); none where alpha is clamped.
        g = tl.where(live & (raw <= ALPHA_MAX), raw * inverse * (behind - T_after * q), 0.0)
        # sigma = (a u^2 + h dy^2) / 2 with u = x - mx - k dy and dy = y - my.
        gu, gy = g * u, g * dy
        m_u, m_y = tl.sum(gu, 1), tl.sum(gy, 1)
        slot = grads + tl.load(slots + i + order, some, 0) * GRAD
        tl.store(slot, -a * m_u, some)
        tl.store(slot + 1, a * k * m_u - h * m_y, some)
        if ABSGRAD:
            tl.store(slot + 2, a * tl.sum(tl.abs(gu), 1), some)
            tl.store(slot + 3, tl.sum(tl.abs((a * k)[:, None] * gu - h[:, None] * gy), 1), some)
        tl.store(slot + 4, 0.5 * tl.sum(gu * u, 1), some)
        tl.store(slot + 5, -a * tl.sum(gu * dy, 1), some)
        tl.store(slot + 6, 0.5 * tl.sum(gy * dy, 1), some)
        tl.store(slot + 7, -tl.sum(g, 1) / opacity, some)
        tl.store(slot + 8, tl.sum(w * g_red[None, :], 1), some)
        tl.store(slot + 9, tl.sum(w * g_green[None, :], 1), some)
        tl.store(slot + 10, tl.sum(w * g_blue[None, :], 1), some)
        tl.store(slot + 11, tl.sum(w * g_z[None, :], 1), some)
        ahead -= tl.sum(w * q, 0)
        T = _last(T_after)
        i += BATCH
        alive = (i < end) & (tl.max(T, 0) > 0.0)


@triton.jit(do_not_specialize=["total"])
def sum_gradients(
    grads, counts, ends, order, g_means2d, g_abs, g_splats, total,
    ABSGRAD: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Program per block of the depth order: sum the slots of its Gaussians, which are contiguous."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    count = tl.load(counts + i, mask, 0)
    first = tl.load(ends + i, mask, 0) - count
    column, step = tl.arange(0, GRAD), tl.arange(0, STEP)
    slot = grads + first[:, None, None] * GRAD + column[None, None, :]
    sums = tl.zeros([BLOCK, GRAD], tl.float32)
    for j in range(0, tl.max(count, 0), STEP):
        some = (j + step)[None, :, None] < count[:, None, None]
        sums += tl.sum(tl.load(slot + (j + step)[None, :, None] * GRAD, some, 0.0), 1)
    row, column = tl.load(order + i, mask, 0)[:, None], column[None, :]
    mask = mask[:, None]
    tl.store(g_means2d + 2 * row + column, sums, mask & (column < 2))
    if ABSGRAD:
        tl.store(g_abs + 2 * row + column - 2, sums, mask & (column >= 2) & (column < 4))
    sums = tl.where(column < 12, sums, 0.0)  # the last column of a splat, the cutoff, has no gradient
    tl.store(g_splats + row * SPLAT + column - 4, sums, mask & (column >= 4) & (column < 4 + SPLAT))
