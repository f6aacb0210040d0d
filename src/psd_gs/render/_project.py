"""CPU kernels: EWA projection of the Gaussians and their spherical-harmonics colours, with gradients.

All scalar arithmetic is float64 (it costs the same as float32 in scalar code), storage is float32.
The gradients are accumulated by the thread that owns the Gaussian, camera after camera, so they do
not depend on the number of threads.

A projected Gaussian ("splat") is one row of ``SPLAT`` floats. Its inverse covariance [[a, b], [b, c]]
is kept in a factored form that stays accurate for needles, where a dx^2 + 2 b dx dy + c dy^2 cancels:

    sigma = (a u^2 + h dy^2) / 2,   u = dx - k dy,   k = cov_xy / cov_yy,   h = 1 / cov_yy
"""

import math

import numpy as np
from numba import njit

SPLAT = 9
"""Columns of a splat: a, k, h, opacity, red, green, blue, depth z, and the sigma at which alpha falls
below 1/255 (negative for a Gaussian that is not visible)."""

NEAR, FAR = 0.01, 1e10
EPS2D = 0.3
ALPHA_MIN = 1.0 / 255.0


@njit(error_model="numpy", cache=True)
def _sh_basis(degree, x, y, z, out):
    """Real spherical harmonics of a unit direction (Sloan 2013, the order and signs of 3DGS)."""
    out[0] = 0.28209479177387814
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


@njit(error_model="numpy", cache=True)
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


@njit(error_model="numpy", cache=True)
def _rotation(qw, qx, qy, qz):
    """Rows of the rotation matrix of a unit quaternion."""
    return (
        1.0 - 2.0 * (qy * qy + qz * qz), 2.0 * (qx * qy - qw * qz), 2.0 * (qx * qz + qw * qy),
        2.0 * (qx * qy + qw * qz), 1.0 - 2.0 * (qx * qx + qz * qz), 2.0 * (qy * qz - qw * qx),
        2.0 * (qx * qz - qw * qy), 2.0 * (qy * qz + qw * qx), 1.0 - 2.0 * (qx * qx + qy * qy),
    )  # fmt: skip


@njit(error_model="numpy", cache=True)
def _footprint(V, K, width, height, mean, quat, log_scale):
    """Projection of one Gaussian: everything that the forward and the backward pass share.

    The rows t0, t1 of J R (EWA splatting, Zwicker et al. 2002, equations 28 and 31; J's tangents are
    clamped to 1.3 times the field of view as in 3DGS) give the 2D covariance without ever forming
    the 3D one: with y_i = S Rq^T t_i it is [[y0.y0, y0.y1], [y0.y1, y1.y1]].
    """
    x = V[0, 0] * mean[0] + V[0, 1] * mean[1] + V[0, 2] * mean[2] + V[0, 3]
    y = V[1, 0] * mean[0] + V[1, 1] * mean[1] + V[1, 2] * mean[2] + V[1, 3]
    z = V[2, 0] * mean[0] + V[2, 1] * mean[1] + V[2, 2] * mean[2] + V[2, 3]
    fx, fy, cx, cy = np.float64(K[0, 0]), np.float64(K[1, 1]), np.float64(K[0, 2]), np.float64(K[1, 2])
    rz = 1.0 / z
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    px = min(max(x * rz, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    py = min(max(y * rz, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    fx, fy = fx * rz, fy * rz
    t00, t01, t02 = fx * (V[0, 0] - px * V[2, 0]), fx * (V[0, 1] - px * V[2, 1]), fx * (V[0, 2] - px * V[2, 2])
    t10, t11, t12 = fy * (V[1, 0] - py * V[2, 0]), fy * (V[1, 1] - py * V[2, 1]), fy * (V[1, 2] - py * V[2, 2])
    q0, q1, q2, q3 = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    norm = math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
    q_inv = 1.0 / norm if norm > 0.0 else np.nan
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(q0 * q_inv, q1 * q_inv, q2 * q_inv, q3 * q_inv)
    s0, s1, s2 = math.exp(log_scale[0]), math.exp(log_scale[1]), math.exp(log_scale[2])
    y00, y01, y02 = (
        s0 * (r00 * t00 + r10 * t01 + r20 * t02),
        s1 * (r01 * t00 + r11 * t01 + r21 * t02),
        s2 * (r02 * t00 + r12 * t01 + r22 * t02),
    )
    y10, y11, y12 = (
        s0 * (r00 * t10 + r10 * t11 + r20 * t12),
        s1 * (r01 * t10 + r11 * t11 + r21 * t12),
        s2 * (r02 * t10 + r12 * t11 + r22 * t12),
    )
    p = y00 * y00 + y01 * y01 + y02 * y02
    q = y00 * y10 + y01 * y11 + y02 * y12
    r = y10 * y10 + y11 * y11 + y12 * y12
    # Lagrange's identity: the determinant without the cancellation of p r - q^2.
    det = (y01 * y12 - y02 * y11) ** 2 + (y02 * y10 - y00 * y12) ** 2 + (y00 * y11 - y01 * y10) ** 2
    det_blurred = det + EPS2D * (p + r) + EPS2D * EPS2D
    return (
        (x, y, z), (px, py), (t00, t01, t02), (t10, t11, t12), (y00, y01, y02), (y10, y11, y12),
        (s0, s1, s2), q_inv, p + EPS2D, q, r + EPS2D, det, det_blurred,
    )  # fmt: skip


@njit(error_model="numpy", cache=True)
def _sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@njit(nogil=True, error_model="numpy", cache=True)
def project_forward(
    first, last, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, width, height, degree, antialiased,
    means2d, splats, radii,
):  # fmt: skip
    """Fill ``means2d [C,N,2]``, ``splats [C,N,SPLAT]`` and ``radii [C,N,2]`` for Gaussians first to last.

    All three are zero on entry.
    """
    bands = (degree + 1) ** 2
    basis = np.empty(16)
    for c in range(len(means2d)):
        for n in range(first, last):
            splats[c, n, 8] = -1.0
            camera, _, _, _, _, _, _, _, p, q, r, det, det_blurred = _footprint(
                viewmats[c], Ks[c], width, height, means[n], quats[n], scales[n]
            )
            if not (NEAR <= camera[2] <= FAR) or not det_blurred > 0.0:
                continue
            opacity = _sigmoid(np.float64(opacities[n]))
            if antialiased:
                opacity *= math.sqrt(det / det_blurred)
            if not opacity >= ALPHA_MIN:
                continue
            # Opacity-aware bounding box (Radl et al. 2024, section B.2).
            cutoff = math.log(opacity / ALPHA_MIN)
            radius_x = math.ceil(math.sqrt(2.0 * cutoff * p))
            radius_y = math.ceil(math.sqrt(2.0 * cutoff * r))
            x = Ks[c, 0, 0] * camera[0] / camera[2] + Ks[c, 0, 2]
            y = Ks[c, 1, 1] * camera[1] / camera[2] + Ks[c, 1, 2]
            if not (x + radius_x > 0 and x - radius_x < width and y + radius_y > 0 and y - radius_y < height):
                continue
            if not (0 < radius_x < 1e9 and 0 < radius_y < 1e9):
                continue
            radii[c, n, 0], radii[c, n, 1] = np.int32(radius_x), np.int32(radius_y)
            means2d[c, n, 0], means2d[c, n, 1] = x, y
            splat = splats[c, n]
            splat[0], splat[1], splat[2] = r / det_blurred, q / r, 1.0 / r
            splat[3], splat[7], splat[8] = opacity, camera[2], cutoff
            dx, dy, dz = means[n, 0] - positions[c, 0], means[n, 1] - positions[c, 1], means[n, 2] - positions[c, 2]
            inverse = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
            _sh_basis(degree, dx * inverse, dy * inverse, dz * inverse, basis)
            for j in range(3):
                value = 0.5 + basis[0] * sh0[n, 0, j]
                for k in range(1, bands):
                    value += basis[k] * shN[n, k - 1, j]
                splat[4 + j] = max(value, 0.0)


@njit(error_model="numpy", cache=True)
def _quaternion_gradient(quat, q_inv, t0, t1, g0, g1):
    """Gradient of a loss with respect to an unnormalized quaternion, from dL/dR = t0 g0^T + t1 g1^T."""
    w, x, y, z = quat[0] * q_inv, quat[1] * q_inv, quat[2] * q_inv, quat[3] * q_inv
    m00, m01, m02 = t0[0] * g0[0] + t1[0] * g1[0], t0[0] * g0[1] + t1[0] * g1[1], t0[0] * g0[2] + t1[0] * g1[2]
    m10, m11, m12 = t0[1] * g0[0] + t1[1] * g1[0], t0[1] * g0[1] + t1[1] * g1[1], t0[1] * g0[2] + t1[1] * g1[2]
    m20, m21, m22 = t0[2] * g0[0] + t1[2] * g1[0], t0[2] * g0[1] + t1[2] * g1[1], t0[2] * g0[2] + t1[2] * g1[2]
    gw = 2.0 * (x * (m21 - m12) + y * (m02 - m20) + z * (m10 - m01))
    gx = 2.0 * (-2.0 * x * (m11 + m22) + y * (m01 + m10) + z * (m02 + m20) + w * (m21 - m12))
    gy = 2.0 * (x * (m01 + m10) - 2.0 * y * (m00 + m22) + z * (m12 + m21) + w * (m02 - m20))
    gz = 2.0 * (x * (m02 + m20) + y * (m12 + m21) - 2.0 * z * (m00 + m11) + w * (m10 - m01))
    radial = gw * w + gx * x + gy * y + gz * z
    return (gw - radial * w) * q_inv, (gx - radial * x) * q_inv, (gy - radial * y) * q_inv, (gz - radial * z) * q_inv


@njit(nogil=True, error_model="numpy", cache=True)
def project_backward(
    first, last, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, width, height, degree, antialiased,
    splats, g_means2d, g_splats, g_means, g_quats, g_scales, g_opacities, g_sh0, g_shN,
):  # fmt: skip
    """Fill the gradients of the six parameters, zero on entry, for Gaussians first to last."""
    bands = (degree + 1) ** 2
    basis, d_basis = np.empty(16), np.empty((16, 3))
    for c in range(len(g_means2d)):
        for n in range(first, last):
            if True:
                splat = splats[c, n]
                if splat[8] < 0.0:
                    continue
                g, V, K = g_splats[c, n], viewmats[c], Ks[c]
                camera, clamped, t0, t1, y0, y1, s, q_inv, p, q, r, det, det_blurred = _footprint(
                    V, K, width, height, means[n], quats[n], scales[n]
                )
                # a = 1 / (p - q^2 / r), k = q / r, h = 1 / r.
                a, k, h = r / det_blurred, q / r, 1.0 / r
                ga, gk, gh = np.float64(g[0]), np.float64(g[1]), np.float64(g[2])
                gp = -a * a * ga
                gq = 2.0 * a * a * k * ga + h * gk
                gr = -a * a * k * k * ga - k * h * gk - h * h * gh
                opacity = _sigmoid(np.float64(opacities[n]))
                compensation = 1.0
                if antialiased:
                    compensation = math.sqrt(det / det_blurred)
                    half = 0.5 * g[3] * opacity / (compensation + 1e-6) / det_blurred
                    ratio = det / det_blurred
                    gp += half * ((1.0 - ratio) * (r - EPS2D) - ratio * EPS2D)
                    gr += half * ((1.0 - ratio) * (p - EPS2D) - ratio * EPS2D)
                    gq -= half * (1.0 - ratio) * 2.0 * q
                g_opacities[n] += g[3] * compensation * opacity * (1.0 - opacity)
                gy0 = (2.0 * gp * y0[0] + gq * y1[0], 2.0 * gp * y0[1] + gq * y1[1], 2.0 * gp * y0[2] + gq * y1[2])
                gy1 = (gq * y0[0] + 2.0 * gr * y1[0], gq * y0[1] + 2.0 * gr * y1[1], gq * y0[2] + 2.0 * gr * y1[2])
                g_scales[n, 0] += gy0[0] * y0[0] + gy1[0] * y1[0]
                g_scales[n, 1] += gy0[1] * y0[1] + gy1[1] * y1[1]
                g_scales[n, 2] += gy0[2] * y0[2] + gy1[2] * y1[2]
                g0 = (gy0[0] * s[0], gy0[1] * s[1], gy0[2] * s[2])
                g1 = (gy1[0] * s[0], gy1[1] * s[1], gy1[2] * s[2])
                gw, gx, gy, gz = _quaternion_gradient(quats[n], q_inv, t0, t1, g0, g1)
                g_quats[n, 0] += gw
                g_quats[n, 1] += gx
                g_quats[n, 2] += gy
                g_quats[n, 3] += gz
                r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(
                    quats[n, 0] * q_inv, quats[n, 1] * q_inv, quats[n, 2] * q_inv, quats[n, 3] * q_inv
                )
                u0 = (
                    r00 * g0[0] + r01 * g0[1] + r02 * g0[2],
                    r10 * g0[0] + r11 * g0[1] + r12 * g0[2],
                    r20 * g0[0] + r21 * g0[1] + r22 * g0[2],
                )
                u1 = (
                    r00 * g1[0] + r01 * g1[1] + r02 * g1[2],
                    r10 * g1[0] + r11 * g1[1] + r12 * g1[2],
                    r20 * g1[0] + r21 * g1[1] + r22 * g1[2],
                )
                # t0 = (fx / z) (R0 - px R2), t1 = (fy / z) (R1 - py R2), mean2d = f (x, y) / z + c.
                x, y, z = camera
                rz = 1.0 / z
                fx, fy = K[0, 0] * rz, K[1, 1] * rz
                g_px = -fx * (u0[0] * V[2, 0] + u0[1] * V[2, 1] + u0[2] * V[2, 2])
                g_py = -fy * (u1[0] * V[2, 0] + u1[1] * V[2, 1] + u1[2] * V[2, 2])
                g_tx = K[0, 0] * g_means2d[c, n, 0] + (g_px if clamped[0] == x * rz else 0.0)
                g_ty = K[1, 1] * g_means2d[c, n, 1] + (g_py if clamped[1] == y * rz else 0.0)
                vx, vy = g_tx * rz, g_ty * rz
                vz = g[7] - rz * (
                    u0[0] * t0[0] + u0[1] * t0[1] + u0[2] * t0[2] + u1[0] * t1[0] + u1[1] * t1[1] + u1[2] * t1[2]
                )  # fmt: skip
                vz -= rz * rz * (g_tx * x + g_ty * y)
                m0 = V[0, 0] * vx + V[1, 0] * vy + V[2, 0] * vz
                m1 = V[0, 1] * vx + V[1, 1] * vy + V[2, 1] * vz
                m2 = V[0, 2] * vx + V[1, 2] * vy + V[2, 2] * vz
                dx, dy, dz = means[n, 0] - positions[c, 0], means[n, 1] - positions[c, 1], means[n, 2] - positions[c, 2]
                inverse = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                dx, dy, dz = dx * inverse, dy * inverse, dz * inverse
                _sh_basis(degree, dx, dy, dz, basis)
                _sh_basis_gradient(degree, dx, dy, dz, d_basis)
                ex, ey, ez = 0.0, 0.0, 0.0
                for j in range(3):
                    gc = np.float64(g[4 + j])
                    if splat[4 + j] <= 0.0 or gc == 0.0:
                        continue
                    g_sh0[n, 0, j] += basis[0] * gc
                    for b in range(1, bands):
                        g_shN[n, b - 1, j] += basis[b] * gc
                        ex += d_basis[b, 0] * shN[n, b - 1, j] * gc
                        ey += d_basis[b, 1] * shN[n, b - 1, j] * gc
                        ez += d_basis[b, 2] * shN[n, b - 1, j] * gc
                radial = ex * dx + ey * dy + ez * dz
                g_means[n, 0] += m0 + (ex - radial * dx) * inverse
                g_means[n, 1] += m1 + (ey - radial * dy) * inverse
                g_means[n, 2] += m2 + (ez - radial * dz) * inverse
