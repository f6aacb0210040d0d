"""CPU kernels: EWA projection of the Gaussians and their spherical-harmonics colours, with gradients.

All scalar arithmetic is float64 (it costs the same as float32 in scalar code), storage is float32.
The gradients are accumulated by the thread that owns the Gaussian, camera after camera, so they do
not depend on the number of threads. A splat is described in ``_constants``.
"""

import math

import numpy as np

from psd_gs.gaussians import SH_C0
from psd_gs.kernels import njit, part
from psd_gs.render._constants import ALPHA_MIN, EPS2D, FAR, NEAR, SPLAT

ROW = SPLAT + 3
"""Columns of a row, which is what the CPU kernels keep together of a projected Gaussian: those of a splat, x, y, and
how many pixels the ellipse sigma = cutoff reaches above and below y."""


@part(error_model="numpy")
def _sh_basis(degree, x, y, z, out):
    """Real spherical harmonics of a unit direction (Sloan 2013, the order and signs of 3DGS)."""
    out[0] = SH_C0
    if degree < 1:
        return
    out[1] = -0.48860251190292 * y
    out[2] = 0.48860251190292 * z
    out[3] = -0.48860251190292 * x
    if degree < 2:
        return
    z2, c1, s1 = z * z, x * x - y * y, 2.0 * x * y
    out[4] = 0.5462742152960395 * s1
    out[5] = -1.092548430592079 * z * y
    out[6] = 0.9461746957575601 * z2 - 0.3153915652525201
    out[7] = -1.092548430592079 * z * x
    out[8] = 0.5462742152960395 * c1
    if degree < 3:
        return
    t = -2.285228997322329 * z2 + 0.4570457994644658
    out[9] = -0.5900435899266435 * (x * s1 + y * c1)
    out[10] = 1.445305721320277 * z * s1
    out[11] = t * y
    out[12] = z * (1.865881662950577 * z2 - 1.119528997770346)
    out[13] = t * x
    out[14] = 1.445305721320277 * z * c1
    out[15] = -0.5900435899266435 * (x * c1 - y * s1)


@part(error_model="numpy")
def _sh_basis_gradient(degree, x, y, z, out):
    """Derivatives of the polynomials of ``_sh_basis`` with respect to x, y and z."""
    out[:] = 0.0
    if degree < 1:
        return
    out[1, 1] = -0.48860251190292
    out[2, 2] = 0.48860251190292
    out[3, 0] = -0.48860251190292
    if degree < 2:
        return
    z2, c1, s1 = z * z, x * x - y * y, 2.0 * x * y
    out[4, 0], out[4, 1] = 1.092548430592079 * y, 1.092548430592079 * x
    out[5, 1], out[5, 2] = -1.092548430592079 * z, -1.092548430592079 * y
    out[6, 2] = 1.8923493915151202 * z
    out[7, 0], out[7, 2] = -1.092548430592079 * z, -1.092548430592079 * x
    out[8, 0], out[8, 1] = 1.092548430592079 * x, -1.092548430592079 * y
    if degree < 3:
        return
    t, tz = -2.285228997322329 * z2 + 0.4570457994644658, -4.570457994644658 * z
    b = 1.445305721320277
    out[9, 0], out[9, 1] = -1.7701307697799304 * s1, -1.7701307697799304 * c1
    out[10, 0], out[10, 1], out[10, 2] = 2.0 * b * z * y, 2.0 * b * z * x, b * s1
    out[11, 1], out[11, 2] = t, tz * y
    out[12, 2] = 5.597644988851731 * z2 - 1.119528997770346
    out[13, 0], out[13, 2] = t, tz * x
    out[14, 0], out[14, 1], out[14, 2] = 2.0 * b * z * x, -2.0 * b * z * y, b * c1
    out[15, 0], out[15, 1] = -1.7701307697799304 * c1, 1.7701307697799304 * s1


@part(error_model="numpy")
def _rotation(quat):
    """Rows of the rotation matrix of a quaternion, and the inverse of its norm; not finite if it is zero."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    inverse = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
        inverse,
    )


@part(error_model="numpy")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@part(error_model="numpy")
def _times(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@part(error_model="numpy")
def _combine(x, a, y, b):
    """x a + y b"""
    return x * a[0] + y * b[0], x * a[1] + y * b[1], x * a[2] + y * b[2]


@part(error_model="numpy")
def _sum_rows(R, v):
    """R^T v"""
    return (
        R[0][0] * v[0] + R[1][0] * v[1] + R[2][0] * v[2],
        R[0][1] * v[0] + R[1][1] * v[1] + R[2][1] * v[2],
        R[0][2] * v[0] + R[1][2] * v[1] + R[2][2] * v[2],
    )


@part(error_model="numpy")
def _vector(array):
    return np.float64(array[0]), np.float64(array[1]), np.float64(array[2])


@part(error_model="numpy")
def _footprint(V, K, width, height, mean, R, s):
    """Projection of one Gaussian (rotation ``R``, deviations ``s``): what both passes need.

    The rows t0, t1 of J W (EWA splatting, Zwicker et al. 2002, equations 28 and 31; the tangents in J
    are clamped to 1.3 times the field of view as in 3DGS) give the 2D covariance without forming the
    3D one: with y_i = S R^T t_i it is [[y0.y0, y0.y1], [y0.y1, y1.y1]].
    """
    row0, row1, row2 = _vector(V[0]), _vector(V[1]), _vector(V[2])
    x, y, z = _dot(row0, mean) + V[0, 3], _dot(row1, mean) + V[1, 3], _dot(row2, mean) + V[2, 3]
    fx, fy, cx, cy = np.float64(K[0, 0]), np.float64(K[1, 1]), np.float64(K[0, 2]), np.float64(K[1, 2])
    rz = 1.0 / z
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    px = min(max(x * rz, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    py = min(max(y * rz, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    t0 = _combine(fx * rz, row0, -fx * rz * px, row2)
    t1 = _combine(fy * rz, row1, -fy * rz * py, row2)
    y0, y1 = _times(s, _sum_rows(R, t0)), _times(s, _sum_rows(R, t1))
    p, q, r = _dot(y0, y0), _dot(y0, y1), _dot(y1, y1)
    # Lagrange's identity: the determinant |y0 x y1|^2 without the cancellation of p r - q^2.
    det = (y0[1] * y1[2] - y0[2] * y1[1]) ** 2 + (y0[2] * y1[0] - y0[0] * y1[2]) ** 2
    det += (y0[0] * y1[1] - y0[1] * y1[0]) ** 2
    det_blurred = det + EPS2D * (p + r) + EPS2D * EPS2D
    return (x, y, z), (px, py), t0, t1, y0, y1, p + EPS2D, q, r + EPS2D, det, det_blurred


@part(error_model="numpy")
def _sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@part(error_model="numpy")
def _direction(mean, position):
    """From the camera to the Gaussian, as a unit vector, and the inverse of the distance."""
    x, y, z = mean[0] - position[0], mean[1] - position[1], mean[2] - position[2]
    inverse = 1.0 / math.sqrt(x * x + y * y + z * z)
    return (x * inverse, y * inverse, z * inverse), inverse


@njit(nogil=True, error_model="numpy")
def project_forward(
    first, last, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, width, height, degree, antialiased,
    means2d, rows, radii,
):  # fmt: skip
    """For Gaussians first to last: fill ``means2d [C,N,2]``, ``rows [C,N,ROW]`` and ``radii [C,N,2]``.

    All three are zero on entry.
    """
    bands = (degree + 1) ** 2
    basis = np.empty(16)
    for n in range(first, last):
        mean, R = _vector(means[n]), _rotation(quats[n])
        s = math.exp(np.float64(scales[n, 0])), math.exp(np.float64(scales[n, 1])), math.exp(np.float64(scales[n, 2]))
        opacity = _sigmoid(np.float64(opacities[n]))
        cutoff = math.log(opacity / ALPHA_MIN)
        for c in range(len(means2d)):
            row, K = rows[c, n], Ks[c]
            row[8] = -1.0
            camera, _, _, _, _, _, p, q, r, det, det_blurred = _footprint(viewmats[c], K, width, height, mean, R, s)
            seen = opacity
            if antialiased:
                seen *= math.sqrt(det / det_blurred)
                cutoff = math.log(seen / ALPHA_MIN)
            # The comparisons are such that a NaN makes the Gaussian invisible.
            if not (NEAR <= camera[2] <= FAR and det_blurred > 0.0 and seen >= ALPHA_MIN):
                continue
            # Opacity-aware bounding box (Radl et al. 2024, section B.2).
            reach = math.sqrt(2.0 * cutoff * r)
            radius_x, radius_y = math.ceil(math.sqrt(2.0 * cutoff * p)), math.ceil(reach)
            x = K[0, 0] * camera[0] / camera[2] + K[0, 2]
            y = K[1, 1] * camera[1] / camera[2] + K[1, 2]
            inside = x + radius_x > 0 and x - radius_x < width and y + radius_y > 0 and y - radius_y < height
            if not (inside and 0 < radius_x < 1e9 and 0 < radius_y < 1e9):
                continue
            radii[c, n, 0], radii[c, n, 1] = np.int32(radius_x), np.int32(radius_y)
            means2d[c, n, 0], means2d[c, n, 1] = x, y
            row[0], row[1], row[2] = r / det_blurred, q / r, 1.0 / r
            row[3], row[7], row[8] = seen, camera[2], cutoff
            row[9], row[10], row[11] = x, y, reach + 1e-3
            if degree > 0:
                (dx, dy, dz), _ = _direction(mean, positions[c])
                _sh_basis(degree, dx, dy, dz, basis)
            for j in range(3):
                value = 0.5 + SH_C0 * sh0[n, 0, j]
                for k in range(1, bands):
                    value += basis[k] * shN[n, k - 1, j]
                row[4 + j] = max(value, 0.0)


@part(error_model="numpy")
def _quaternion_gradient(quat, inverse, m0, m1, m2):
    """Gradient with respect to an unnormalized quaternion, from the rows of the one with respect to R."""
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
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


@part(error_model="numpy")
def _idle(g_row, g_mean2d):
    """Whether nothing depends on a Gaussian in a view: others hide it, or it is between pixels."""
    for g in g_row:
        if g != 0.0:
            return False
    return g_mean2d[0] == 0.0 and g_mean2d[1] == 0.0


@njit(nogil=True, error_model="numpy")
def project_backward(
    first, last, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, width, height, degree, antialiased,
    rows, g_means2d, g_rows, g_means, g_quats, g_scales, g_opacities, g_sh0, g_shN,
):  # fmt: skip
    """For Gaussians first to last: fill the gradients of the six parameters, all zero on entry."""
    bands = (degree + 1) ** 2
    basis, d_basis = np.empty(16), np.empty((16, 3))
    for n in range(first, last):
        mean, R = _vector(means[n]), _rotation(quats[n])
        s = math.exp(np.float64(scales[n, 0])), math.exp(np.float64(scales[n, 1])), math.exp(np.float64(scales[n, 2]))
        opacity = _sigmoid(np.float64(opacities[n]))
        g_mean, g_scale, g_opacity = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0
        m0, m1, m2 = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        visible = False
        for c in range(len(g_means2d)):
            row, g, V, K = rows[c, n], g_rows[c, n], viewmats[c], Ks[c]
            if row[8] < 0.0 or _idle(g, g_means2d[c, n]):
                continue
            visible = True
            (x, y, z), clamped, t0, t1, y0, y1, p, q, r, det, det_blurred = _footprint(V, K, width, height, mean, R, s)
            # a = 1 / (p - q^2 / r), k = q / r, h = 1 / r.
            a, k, h = r / det_blurred, q / r, 1.0 / r
            ga, gk, gh, g_alpha = np.float64(g[0]), np.float64(g[1]), np.float64(g[2]), np.float64(g[3])
            gp = -a * a * ga
            gq = 2.0 * a * a * k * ga + h * gk
            gr = -a * a * k * k * ga - k * h * gk - h * h * gh
            if antialiased:
                ratio = det / det_blurred
                compensation = math.sqrt(ratio)
                half = 0.5 * g_alpha * opacity / (compensation + 1e-6) / det_blurred
                gp += half * ((1.0 - ratio) * (r - EPS2D) - ratio * EPS2D)
                gr += half * ((1.0 - ratio) * (p - EPS2D) - ratio * EPS2D)
                gq -= half * (1.0 - ratio) * 2.0 * q
                g_alpha *= compensation
            g_opacity += g_alpha
            gy0, gy1 = _combine(2.0 * gp, y0, gq, y1), _combine(gq, y0, 2.0 * gr, y1)
            g_scale = _combine(1.0, g_scale, 1.0, _combine(1.0, _times(gy0, y0), 1.0, _times(gy1, y1)))
            g0, g1 = _times(gy0, s), _times(gy1, s)
            # y_i = S R^T t_i, so dL/dR = t0 g0^T + t1 g1^T and dL/dt_i = R g_i.
            m0 = _combine(1.0, m0, 1.0, _combine(t0[0], g0, t1[0], g1))
            m1 = _combine(1.0, m1, 1.0, _combine(t0[1], g0, t1[1], g1))
            m2 = _combine(1.0, m2, 1.0, _combine(t0[2], g0, t1[2], g1))
            u0 = _dot(R[0], g0), _dot(R[1], g0), _dot(R[2], g0)
            u1 = _dot(R[0], g1), _dot(R[1], g1), _dot(R[2], g1)
            # t0 = (fx / z) (V0 - px V2), t1 = (fy / z) (V1 - py V2), mean2d = (fx x, fy y) / z + (cx, cy).
            row0, row1, row2 = _vector(V[0]), _vector(V[1]), _vector(V[2])
            rz = 1.0 / z
            v0, v1 = K[0, 0] * np.float64(g_means2d[c, n, 0]), K[1, 1] * np.float64(g_means2d[c, n, 1])
            if clamped[0] == x * rz:
                v0 -= K[0, 0] * rz * _dot(u0, row2)
            if clamped[1] == y * rz:
                v1 -= K[1, 1] * rz * _dot(u1, row2)
            vz = g[7] - rz * (_dot(u0, t0) + _dot(u1, t1) + rz * (v0 * x + v1 * y))
            g_mean = _combine(1.0, g_mean, rz, _combine(v0, row0, v1, row1))
            g_mean = _combine(1.0, g_mean, vz, row2)
            direction, inverse = _direction(mean, positions[c])
            if degree > 0:
                _sh_basis(degree, direction[0], direction[1], direction[2], basis)
                _sh_basis_gradient(degree, direction[0], direction[1], direction[2], d_basis)
            e = (0.0, 0.0, 0.0)
            for j in range(3):
                gc = np.float64(g[4 + j])
                if row[4 + j] > 0.0:
                    g_sh0[n, 0, j] += SH_C0 * gc
                    for b in range(1, bands):
                        g_shN[n, b - 1, j] += basis[b] * gc
                        e = _combine(1.0, e, shN[n, b - 1, j] * gc, _vector(d_basis[b]))
            e = _combine(inverse, e, -inverse * _dot(e, direction), direction)
            g_mean = _combine(1.0, g_mean, 1.0, e)
        if not visible:  # nor is it necessarily finite
            continue
        gw, gx, gy, gz = _quaternion_gradient(quats[n], R[3], m0, m1, m2)
        g_quats[n, 0], g_quats[n, 1], g_quats[n, 2], g_quats[n, 3] = gw, gx, gy, gz
        g_opacities[n] = g_opacity * opacity * (1.0 - opacity)
        for j in range(3):
            g_means[n, j], g_scales[n, j] = g_mean[j], g_scale[j]
