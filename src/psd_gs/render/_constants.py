"""What all backends of our own share: gsplat's constants, and the layout of a projected Gaussian.

A projected Gaussian ("splat") is one row of ``SPLAT`` floats. Its inverse covariance [[a, b], [b, c]] is kept in a
factored form that stays accurate for needles, where a dx^2 + 2 b dx dy + c dy^2 cancels:

    sigma = (a u^2 + h dy^2) / 2,   u = dx - k dy,   k = cov_xy / cov_yy,   h = 1 / cov_yy
"""

SPLAT = 9
"""Columns of a splat: a, k, h, opacity, red, green, blue, depth z, and the sigma at which alpha falls
below 1/255 (negative for a Gaussian that is not visible)."""

TILE = 16
"""Pixels along the side of a tile."""

NEAR, FAR = 0.01, 1e10
EPS2D = 0.3
"""Blur of every projected Gaussian, pixels^2."""

ALPHA_MIN, ALPHA_MAX = 1.0 / 255.0, 0.999
T_MIN = 1e-4
"""A pixel stops before the first Gaussian that would bring its transmittance to this."""
