"""Dense reference renderer: every Gaussian against every pixel, in plain torch, gradients by autograd.

Written from the formulas, independently of the kernels: full 3D covariances, conics, a global sort, no
tiles. In float64 it is the yardstick of the tests; in float32 the benchmark's baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.gaussians import Gaussians


@dataclass
class Reference:
    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    median_depth: Tensor
    means2d: Tensor
    leaves: list[tuple[Tensor, Tensor]]
    """With ``absgrad``, per camera: indices of the Gaussians, and their screen positions at each pixel [P,n,2]."""
    margin: Tensor
    """[C,H,W,1]: how close (relatively) a pixel comes to one of the two hard thresholds."""

    def absgrad(self) -> Tensor:
        """Sums over pixels of the absolute gradients of the screen positions [C,N,2], after ``backward``."""
        total = torch.zeros_like(self.means2d)
        for c, (order, leaf) in enumerate(self.leaves):
            total[c, order] = leaf.grad.abs().sum(0)
        return total


def rotation_matrix(quats: Tensor) -> Tensor:
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def sh_color(sh: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Colour before the shift by 0.5: Cartesian real spherical harmonics up to degree 3."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    c = torch.tensor(torch.pi, dtype=x.dtype) ** -0.5
    basis = [0.5 * c * torch.ones_like(x)]
    if degree >= 1:
        basis += [-(3**0.5) / 2 * c * y, 3**0.5 / 2 * c * z, -(3**0.5) / 2 * c * x]
    if degree >= 2:
        k = 15**0.5 / 2 * c
        basis += [k * x * y, -k * y * z, 5**0.5 / 4 * c * (3 * z * z - 1), -k * x * z, k / 2 * (x * x - y * y)]
    if degree >= 3:
        a, b, d = (35 / 2) ** 0.5 / 4 * c, 105**0.5 / 2 * c, (21 / 2) ** 0.5 / 4 * c
        basis += [
            -a * y * (3 * x * x - y * y),
            b * x * y * z,
            -d * y * (5 * z * z - 1),
            7**0.5 / 4 * c * z * (5 * z * z - 3),
            -d * x * (5 * z * z - 1),
            b / 2 * z * (x * x - y * y),
            -a * x * (x * x - 3 * y * y),
        ]
    return (torch.stack(basis, -1)[..., None] * sh[:, : len(basis)]).sum(-2)


def render_dense(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None = None,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    absgrad: bool = False,
) -> Reference:
    """The contract of ``psd_gs.render.render`` in the dtype of the Gaussians."""
    dtype = gaussians.means.dtype
    W, H = cameras.width, cameras.height
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    background = torch.zeros(3, dtype=dtype) if background is None else background
    background = background.expand(len(cameras), 3)
    half = rotation_matrix(gaussians.quats) * gaussians.scales.exp()[:, None, :]
    covariance = half @ half.transpose(1, 2)
    V, K = cameras.viewmats.to(dtype), cameras.Ks.to(dtype)
    R, t = V[:, :3, :3], V[:, :3, 3]
    x, y, z = (gaussians.means @ R.transpose(1, 2) + t[:, None]).unbind(-1)
    visible = (z >= 0.01) & (z <= 1e10)
    z = torch.where(visible, z, torch.ones_like(z))
    fx, fy, cx, cy = (K[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    tx = torch.minimum(torch.maximum(x / z, -cx / fx - 0.15 * W / fx), (W - cx) / fx + 0.15 * W / fx)
    ty = torch.minimum(torch.maximum(y / z, -cy / fy - 0.15 * H / fy), (H - cy) / fy + 0.15 * H / fy)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * tx / z, zero, fy / z, -fy * ty / z], -1).unflatten(-1, (2, 3))
    JR = J @ R[:, None]
    cov2d = JR @ covariance @ JR.transpose(-1, -2)
    blurred = cov2d + 0.3 * torch.eye(2, dtype=dtype)
    conics = torch.linalg.inv(blurred)
    opacities = gaussians.opacities.sigmoid().expand(len(cameras), -1)
    if antialiased:
        opacities = opacities * (torch.linalg.det(cov2d) / torch.linalg.det(blurred)).clamp_min(1e-30).sqrt()
    pixels = torch.cartesian_prod(torch.arange(H), torch.arange(W)).flip(-1)[:, None].to(dtype) + 0.5
    images, leaves = [], []
    for c in range(len(cameras)):
        directions = gaussians.means + R[c].T @ t[c]
        color = (sh_color(gaussians.sh, directions, degree) + 0.5).clamp_min(0)
        order = torch.argsort(z[c], stable=True)
        order = order[visible[c, order]]
        at = means2d[c, order].expand(H * W, -1, -1)
        if absgrad:
            at = at.detach().clone().requires_grad_()
            leaves.append((order, at))
        dx, dy = (at - pixels).unbind(-1)
        (aa, ab), (_, bb) = conics[c, order].permute(1, 2, 0)
        raw = opacities[c, order] * torch.exp(-0.5 * (aa * dx * dx + bb * dy * dy) - ab * dx * dy)
        alpha = torch.where(raw < 1 / 255, torch.zeros_like(raw), raw.clamp_max(0.999))
        # A pixel stops before the first Gaussian that would bring its transmittance to 1e-4.
        T_all = torch.cumprod(1 - alpha, 1)
        alpha = alpha * (T_all > 1e-4)
        T_after = torch.cumprod(1 - alpha, 1)
        T_before = torch.cat([torch.ones(H * W, 1, dtype=dtype), T_after], 1)[:, : len(order)]
        weights = alpha * T_before
        out_alpha = weights.sum(1, keepdim=True)
        rgb = weights @ color[order] + (1 - out_alpha) * background[c]
        depth = weights @ z[c, order, None] / out_alpha.clamp_min(1e-10)
        median = ((T_before > 0.5) & (T_after <= 0.5)).to(dtype) @ z[c, order, None]
        images.append([image.unflatten(0, (H, W)) for image in (rgb, out_alpha, depth, median)])
        with torch.no_grad():
            gap = torch.cat([(raw * 255 - 1).abs(), (T_all * 1e4 - 1).abs(), torch.ones(H * W, 1, dtype=dtype)], 1)
            images[-1].append(gap.min(1, keepdim=True).values.unflatten(0, (H, W)))
    rgb, alpha, depth, median, margin = (torch.stack(image) for image in zip(*images, strict=True))
    return Reference(rgb, alpha, depth, median, means2d, leaves, margin)
