"""Triton kernels: EWA projection of the Gaussians and their spherical-harmonics colours, with gradients.

The formulas and the rows of ``SPLAT`` floats are those of ``_project``, in float32: a lane owns a Gaussian, and the
backward kernel adds up its cameras one after the other, so that results are equal from run to run.
"""

import triton
import triton.language as tl

import psd_gs.render._constants as _constants
from psd_gs import gaussians

SPLAT: tl.constexpr = tl.constexpr(_constants.SPLAT)
NEAR: tl.constexpr = tl.constexpr(_constants.NEAR)
FAR: tl.constexpr = tl.constexpr(_constants.FAR)
EPS2D: tl.constexpr = tl.constexpr(_constants.EPS2D)
ALPHA_MIN: tl.constexpr = tl.constexpr(_constants.ALPHA_MIN)
SH_C0: tl.constexpr = tl.constexpr(gaussians.SH_C0)


@triton.jit
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def _times(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@triton.jit
def _combine(x, a, y, b):
    """x a + y b"""
    return x * a[0] + y * b[0], x * a[1] + y * b[1], x * a[2] + y * b[2]


@triton.jit
def _sum_rows(R, v):
    """R^T v"""
    return (
        R[0][0] * v[0] + R[1][0] * v[1] + R[2][0] * v[2],
        R[0][1] * v[0] + R[1][1] * v[1] + R[2][1] * v[2],
        R[0][2] * v[0] + R[1][2] * v[1] + R[2][2] * v[2],
    )


@triton.jit
def _add_where(condition, total, a):
    """total + a where the condition holds; a may be anything elsewhere."""
    return (
        total[0] + tl.where(condition, a[0], 0.0),
        total[1] + tl.where(condition, a[1], 0.0),
        total[2] + tl.where(condition, a[2], 0.0),
    )


@triton.jit
def _load3(pointer, mask):
    return tl.load(pointer, mask, 0.0), tl.load(pointer + 1, mask, 0.0), tl.load(pointer + 2, mask, 0.0)


@triton.jit
def _store3(pointer, v, mask):
    tl.store(pointer, v[0], mask)
    tl.store(pointer + 1, v[1], mask)
    tl.store(pointer + 2, v[2], mask)


@triton.jit
def _camera(viewmats, Ks, c):
    """Rows of a world-to-camera matrix, and fx, fy, cx, cy."""
    V, K = viewmats + 16 * c, Ks + 9 * c
    return (
        (tl.load(V), tl.load(V + 1), tl.load(V + 2), tl.load(V + 3)),
        (tl.load(V + 4), tl.load(V + 5), tl.load(V + 6), tl.load(V + 7)),
        (tl.load(V + 8), tl.load(V + 9), tl.load(V + 10), tl.load(V + 11)),
        (tl.load(K), tl.load(K + 4), tl.load(K + 2), tl.load(K + 5)),
    )


@triton.jit
def _rotation(q):
    """Rows of the rotation matrix of a quaternion, and the inverse of its norm; not finite if it is zero."""
    inverse = 1.0 / tl.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    w, x, y, z = q[0] * inverse, q[1] * inverse, q[2] * inverse, q[3] * inverse
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
        inverse,
    )


@triton.jit
def _gaussian(means, quats, scales, opacities, n, mask):
    """Mean, quaternion, standard deviations, opacity, and what is missing to an opacity of 1."""
    log_s = _load3(scales + 3 * n, mask)
    q = quats + 4 * n
    quat = tl.load(q, mask, 1.0), tl.load(q + 1, mask, 0.0), tl.load(q + 2, mask, 0.0), tl.load(q + 3, mask, 0.0)
    s = tl.exp(log_s[0]), tl.exp(log_s[1]), tl.exp(log_s[2])
    logit = tl.load(opacities + n, mask, 0.0)
    return _load3(means + 3 * n, mask), quat, s, 1.0 / (1.0 + tl.exp(-logit)), 1.0 / (1.0 + tl.exp(logit))


@triton.jit
def _footprint(V, K, width, height, mean, R, s):
    """Projection of one Gaussian (rotation ``R``, deviations ``s``): what both passes need; see ``_project``.

    ``m = y0 x y1`` comes from the cofactors of S, because y0 and y1 of a needle are nearly parallel.
    """
    x, y, z = _dot(V[0], mean) + V[0][3], _dot(V[1], mean) + V[1][3], _dot(V[2], mean) + V[2][3]
    fx, fy, cx, cy = K[0], K[1], K[2], K[3]
    rz = 1.0 / z
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    px = tl.minimum(tl.maximum(x * rz, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    py = tl.minimum(tl.maximum(y * rz, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    t0 = _combine(fx * rz, V[0], -fx * rz * px, V[2])
    t1 = _combine(fy * rz, V[1], -fy * rz * py, V[2])
    y0, y1 = _times(s, _sum_rows(R, t0)), _times(s, _sum_rows(R, t1))
    m = _times((s[1] * s[2], s[2] * s[0], s[0] * s[1]), _sum_rows(R, _cross(t0, t1)))
    p, q, r = _dot(y0, y0), _dot(y0, y1), _dot(y1, y1)
    det = _dot(m, m)
    det_blurred = det + (p + r) * EPS2D + EPS2D * EPS2D
    return (x, y, z), (px, py), t0, t1, y0, y1, m, p + EPS2D, q, r + EPS2D, det, det_blurred


@triton.jit
def _direction(mean, positions, c):
    """From the camera to the Gaussian, as a unit vector, and the inverse of the distance."""
    x = mean[0] - tl.load(positions + 3 * c)
    y = mean[1] - tl.load(positions + 3 * c + 1)
    z = mean[2] - tl.load(positions + 3 * c + 2)
    inverse = 1.0 / tl.sqrt(x * x + y * y + z * z)
    return (x * inverse, y * inverse, z * inverse), inverse


@triton.jit
def _basis(B: tl.constexpr, d):
    """Polynomial B (1 to 15) of the real spherical harmonics (Sloan 2013, the order and signs of 3DGS)."""
    x, y, z = d[0], d[1], d[2]
    z2, c1, s1 = z * z, x * x - y * y, 2.0 * x * y
    t = -2.285228997322329 * z2 + 0.4570457994644658
    value = x
    if B == 1:
        value = -0.48860251190292 * y
    elif B == 2:
        value = 0.48860251190292 * z
    elif B == 3:
        value = -0.48860251190292 * x
    elif B == 4:
        value = 0.5462742152960395 * s1
    elif B == 5:
        value = -1.092548430592079 * z * y
    elif B == 6:
        value = 0.9461746957575601 * z2 - 0.3153915652525201
    elif B == 7:
        value = -1.092548430592079 * z * x
    elif B == 8:
        value = 0.5462742152960395 * c1
    elif B == 9:
        value = -0.5900435899266435 * (x * s1 + y * c1)
    elif B == 10:
        value = 1.445305721320277 * z * s1
    elif B == 11:
        value = t * y
    elif B == 12:
        value = z * (1.865881662950577 * z2 - 1.119528997770346)
    elif B == 13:
        value = t * x
    elif B == 14:
        value = 1.445305721320277 * z * c1
    elif B == 15:
        value = -0.5900435899266435 * (x * c1 - y * s1)
    return value


@triton.jit
def _basis_gradient(B: tl.constexpr, d):
    """Derivatives of ``_basis`` with respect to x, y and z."""
    x, y, z = d[0], d[1], d[2]
    z2, c1, s1, none = z * z, x * x - y * y, 2.0 * x * y, 0.0 * x
    t, tz = -2.285228997322329 * z2 + 0.4570457994644658, -4.570457994644658 * z
    gx, gy, gz = none, none, none
    if B == 1:
        gy = none - 0.48860251190292
    elif B == 2:
        gz = none + 0.48860251190292
    elif B == 3:
        gx = none - 0.48860251190292
    elif B == 4:
        gx, gy = 1.092548430592079 * y, 1.092548430592079 * x
    elif B == 5:
        gy, gz = -1.092548430592079 * z, -1.092548430592079 * y
    elif B == 6:
        gz = 1.8923493915151202 * z
    elif B == 7:
        gx, gz = -1.092548430592079 * z, -1.092548430592079 * x
    elif B == 8:
        gx, gy = 1.092548430592079 * x, -1.092548430592079 * y
    elif B == 9:
        gx, gy = -1.7701307697799304 * s1, -1.7701307697799304 * c1
    elif B == 10:
        gx, gy, gz = 2.890611442640554 * z * y, 2.890611442640554 * z * x, 1.445305721320277 * s1
    elif B == 11:
        gy, gz = t, tz * y
    elif B == 12:
        gz = 5.597644988851731 * z2 - 1.119528997770346
    elif B == 13:
        gx, gz = t, tz * x
    elif B == 14:
        gx, gy, gz = 2.890611442640554 * z * x, -2.890611442640554 * z * y, 1.445305721320277 * c1
    elif B == 15:
        gx, gy = -1.7701307697799304 * c1, 1.7701307697799304 * s1
    return gx, gy, gz


@triton.jit(do_not_specialize=["N", "width", "height"])
def project_forward(
    means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, means2d, splats, radii, N, width, height,
    BANDS: tl.constexpr, STORED: tl.constexpr, ANTIALIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (block of Gaussians, camera): fill ``means2d [C,N,2]``, ``splats [C,N,SPLAT]`` and ``radii [C,N,2]``.

    ``BANDS`` coefficients of the colour are in use, ``STORED`` are there.
    """
    n, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    mask = n < N
    mean, quat, s, opacity, _ = _gaussian(means, quats, scales, opacities, n, mask)
    V0, V1, V2, K = _camera(viewmats, Ks, c)
    R0, R1, R2, _ = _rotation(quat)
    camera, _, _, _, _, _, _, p, q, r, det, det_blurred = _footprint(
        (V0, V1, V2), K, width, height, mean, (R0, R1, R2), s
    )
    if ANTIALIASED:
        opacity *= tl.sqrt(det / det_blurred)
    z = camera[2]
    # Opacity-aware bounding box (Radl et al. 2024, section B.2).
    cutoff = tl.log(opacity / ALPHA_MIN)
    radius_x, radius_y = tl.ceil(tl.sqrt(2.0 * cutoff * p)), tl.ceil(tl.sqrt(2.0 * cutoff * r))
    x, y = K[0] * camera[0] / z + K[2], K[1] * camera[1] / z + K[3]
    # The comparisons are such that a NaN makes the Gaussian invisible.
    visible = (z >= NEAR) & (z <= FAR) & (det_blurred > 0.0) & (opacity >= ALPHA_MIN)
    visible &= (x + radius_x > 0.0) & (x - radius_x < width) & (y + radius_y > 0.0) & (y - radius_y < height)
    visible &= (radius_x > 0.0) & (radius_x < 1e9) & (radius_y > 0.0) & (radius_y < 1e9)
    row = c.to(tl.int64) * N + n
    tl.store(radii + 2 * row, tl.where(visible, radius_x, 0.0).to(tl.int32), mask)
    tl.store(radii + 2 * row + 1, tl.where(visible, radius_y, 0.0).to(tl.int32), mask)
    tl.store(means2d + 2 * row, tl.where(visible, x, 0.0), mask)
    tl.store(means2d + 2 * row + 1, tl.where(visible, y, 0.0), mask)
    colour = _load3(sh0 + 3 * n, mask)
    colour = colour[0] * SH_C0 + 0.5, colour[1] * SH_C0 + 0.5, colour[2] * SH_C0 + 0.5
    if BANDS > 1:
        direction, _ = _direction(mean, positions, c)
        for b in tl.static_range(1, BANDS):
            colour = _combine(1.0, colour, _basis(b, direction), _load3(shN + 3 * ((STORED - 1) * n + b - 1), mask))
    splat = splats + row * SPLAT
    _store3(splat, (tl.where(visible, r / det_blurred, 0.0), tl.where(visible, q / r, 0.0), 1.0 / r), mask)
    tl.store(splat + 3, tl.where(visible, opacity, 0.0), mask)
    _store3(splat + 4, (tl.maximum(colour[0], 0.0), tl.maximum(colour[1], 0.0), tl.maximum(colour[2], 0.0)), mask)
    tl.store(splat + 7, tl.where(visible, z, 0.0), mask)
    tl.store(splat + 8, tl.where(visible, cutoff, -1.0), mask)


@triton.jit
def _quaternion_gradient(q, inverse, m0, m1, m2):
    """Gradient with respect to an unnormalized quaternion, from the rows of the one with respect to R."""
    w, x, y, z = q[0] * inverse, q[1] * inverse, q[2] * inverse, q[3] * inverse
    gw = 2.0 * (x * (m2[1] - m1[2]) + y * (m0[2] - m2[0]) + z * (m1[0] - m0[1]))
    gx = 2.0 * (-2.0 * x * (m1[1] + m2[2]) + y * (m0[1] + m1[0]) + z * (m0[2] + m2[0]) + w * (m2[1] - m1[2]))
    gy = 2.0 * (x * (m0[1] + m1[0]) - 2.0 * y * (m0[0] + m2[2]) + z * (m1[2] + m2[1]) + w * (m0[2] - m2[0]))
    gz = 2.0 * (x * (m0[2] + m2[0]) + y * (m1[2] + m2[1]) - 2.0 * z * (m0[0] + m1[1]) + w * (m1[0] - m0[1]))
    radial = gw * w + gx * x + gy * y + gz * z
    return (
        (gw - radial * w) * inverse,
        (gx - radial * x) * inverse,
        (gy - radial * y) * inverse,
        (gz - radial * z) * inverse,
    )


@triton.jit
def _colour_gradient(splats, g_splats, row, seen):
    """Gradient of the colour, none where it is clamped at black."""
    g, colour = _load3(g_splats + row * SPLAT + 4, seen), _load3(splats + row * SPLAT + 4, seen)
    return (
        tl.where(colour[0] > 0.0, g[0], 0.0),
        tl.where(colour[1] > 0.0, g[1], 0.0),
        tl.where(colour[2] > 0.0, g[2], 0.0),
    )


@triton.jit(do_not_specialize=["N", "C", "width", "height"])
def project_backward(
    means, quats, scales, opacities, shN, viewmats, Ks, positions, splats, g_means2d, g_splats,
    g_means, g_quats, g_scales, g_opacities, g_sh0, N, C, width, height,
    BANDS: tl.constexpr, STORED: tl.constexpr, ANTIALIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program per block of Gaussians: fill the gradients of the parameters but ``shN``."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    mean, quat, s, opacity, rest = _gaussian(means, quats, scales, opacities, n, mask)
    R0, R1, R2, inverse_norm = _rotation(quat)
    R = R0, R1, R2
    zero = tl.zeros([BLOCK], tl.float32)
    g_mean, g_scale, g_sh, g_opacity = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero), zero
    g_R0, g_R1, g_R2 = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
    ever = zero > 0.0
    for c in range(C):
        row = tl.cast(c, tl.int64) * N + n
        seen = tl.load(splats + row * SPLAT + 8, mask, -1.0) >= 0.0
        ever |= seen
        V0, V1, V2, K = _camera(viewmats, Ks, c)
        V = V0, V1, V2
        camera, clamped, t0, t1, y0, y1, m, _, q, r, det, det_blurred = _footprint(V, K, width, height, mean, R, s)
        x, y, rz = camera[0], camera[1], 1.0 / camera[2]
        # a = 1 / (p - q^2 / r), k = q / r, h = 1 / r. With d = y0 - k y1, which a needle makes small, nothing cancels:
        # |y1|^2 y0 - q y1 = y1 x m.
        a, k, h = r / det_blurred, q / r, 1.0 / r
        r1 = tl.maximum(_dot(y1, y1), 1e-30)
        d = _combine(1.0 / r1, _cross(y1, m), k / r1 * EPS2D, y1)
        g = g_splats + row * SPLAT
        ga, gk, gh = _load3(g, seen)
        g_alpha = tl.load(g + 3, seen, 0.0)
        gd, gk, gh = -2.0 * a * a * ga, h * gk, -2.0 * h * h * gh
        gy0 = _combine(gd, d, gk, y1)
        gy1 = _combine(gk - k * gd, d, gh - k * gk, y1)
        gs = _combine(gd, _times(d, d), gh, _times(y1, y1))
        gs = _combine(1.0, gs, 2.0 * gk, _times(d, y1))
        if ANTIALIASED:
            ratio = det / det_blurred
            compensation = tl.sqrt(ratio)
            half = g_alpha * opacity / (compensation + 1e-6) / det_blurred
            gained, lost = half * (1.0 - ratio), -half * ratio * EPS2D
            gy0 = _combine(1.0, gy0, 1.0, _combine(gained, _cross(y1, m), lost, y0))
            gy1 = _combine(1.0, gy1, 1.0, _combine(gained, _cross(m, y0), lost, y1))
            gs = _combine(1.0, gs, lost, _combine(1.0, _times(y0, y0), 1.0, _times(y1, y1)))
            m2 = _times(m, m)
            gs = _combine(1.0, gs, gained, (m2[1] + m2[2], m2[2] + m2[0], m2[0] + m2[1]))
            g_alpha *= compensation
        g_opacity += tl.where(seen, g_alpha, 0.0)
        g_scale = _add_where(seen, g_scale, gs)
        g0, g1 = _times(gy0, s), _times(gy1, s)
        # y_i = S R^T t_i, so dL/dR = t0 g0^T + t1 g1^T and dL/dt_i = R g_i.
        g_R0 = _add_where(seen, g_R0, _combine(t0[0], g0, t1[0], g1))
        g_R1 = _add_where(seen, g_R1, _combine(t0[1], g0, t1[1], g1))
        g_R2 = _add_where(seen, g_R2, _combine(t0[2], g0, t1[2], g1))
        u0 = _dot(R[0], g0), _dot(R[1], g0), _dot(R[2], g0)
        u1 = _dot(R[0], g1), _dot(R[1], g1), _dot(R[2], g1)
        # t0 = (fx / z) (V0 - px V2), t1 = (fy / z) (V1 - py V2), mean2d = (fx x, fy y) / z + (cx, cy).
        v0 = K[0] * tl.load(g_means2d + 2 * row, seen, 0.0)
        v1 = K[1] * tl.load(g_means2d + 2 * row + 1, seen, 0.0)
        v0 -= tl.where(clamped[0] == x * rz, K[0] * rz * _dot(u0, V[2]), 0.0)
        v1 -= tl.where(clamped[1] == y * rz, K[1] * rz * _dot(u1, V[2]), 0.0)
        vz = tl.load(g + 7, seen, 0.0) - rz * (_dot(u0, t0) + _dot(u1, t1) + rz * (v0 * x + v1 * y))
        g_mean = _add_where(seen, g_mean, _combine(rz * v0, V[0], rz * v1, V[1]))
        g_mean = _add_where(seen, g_mean, (vz * V[2][0], vz * V[2][1], vz * V[2][2]))
        gc = _colour_gradient(splats, g_splats, row, seen)
        g_sh = g_sh[0] + gc[0] * SH_C0, g_sh[1] + gc[1] * SH_C0, g_sh[2] + gc[2] * SH_C0
        if BANDS > 1:
            direction, inverse = _direction(mean, positions, c)
            e = (zero, zero, zero)
            for b in tl.static_range(1, BANDS):
                coefficient = _load3(shN + 3 * ((STORED - 1) * n + b - 1), mask)
                e = _combine(1.0, e, _dot(coefficient, gc), _basis_gradient(b, direction))
            e = _combine(inverse, e, -inverse * _dot(e, direction), direction)
            g_mean = _add_where(seen, g_mean, e)
    _store3(g_means + 3 * n, g_mean, mask)
    _store3(g_scales + 3 * n, g_scale, mask)
    _store3(g_sh0 + 3 * n, g_sh, mask)
    tl.store(g_opacities + n, tl.where(ever, g_opacity * opacity * rest, 0.0), mask)
    g_quat = _quaternion_gradient(quat, inverse_norm, g_R0, g_R1, g_R2)
    for j in tl.static_range(4):
        tl.store(g_quats + 4 * n + j, tl.where(ever, g_quat[j], 0.0), mask)


@triton.jit(do_not_specialize=["N", "C"])
def bands_backward(
    means, positions, splats, g_splats, g_shN, N, C,
    BANDS: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (block of Gaussians, band above degree 0): fill that band of the gradient of ``shN``."""
    n, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), 1 + tl.program_id(1)
    mask = n < N
    mean = _load3(means + 3 * n, mask)
    zero = tl.zeros([BLOCK], tl.float32)
    total = (zero, zero, zero)
    for c in range(C):
        row = tl.cast(c, tl.int64) * N + n
        seen = tl.load(splats + row * SPLAT + 8, mask, -1.0) >= 0.0
        direction, _ = _direction(mean, positions, c)
        basis = zero
        for k in tl.static_range(1, BANDS):
            basis = tl.where(b == k, _basis(k, direction), basis)
        gc = _colour_gradient(splats, g_splats, row, seen)
        total = _add_where(seen, total, (basis * gc[0], basis * gc[1], basis * gc[2]))
    _store3(g_shN + 3 * ((STORED - 1) * n + b - 1), total, mask)
