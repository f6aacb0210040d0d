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
    absgrad: list[Tensor]
    """Per camera and pixel, the screen positions [P,N,2] as separate leaves; empty unless asked for."""
    margin: Tensor
    """[C,H,W]: how close (relative) a pixel comes to one of the two hard thresholds."""


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
    width, height = cameras.width, cameras.height
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    background = torch.zeros(3, dtype=dtype) if background is None else background
    scales, opacities = gaussians.scales.exp(), gaussians.opacities.sigmoid()
    half = rotation_matrix(gaussians.quats) * scales[:, None, :]
    covariance = half @ half.transpose(1, 2)
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 1, 2).to(dtype) + 0.5
    images, leaves, screen = [], [], []
    for c in range(len(cameras)):
        V, K = cameras.viewmats[c].to(dtype), cameras.Ks[c].to(dtype)
        R, t = V[:3, :3], V[:3, 3]
        x, y, z = (gaussians.means @ R.T + t).unbind(-1)
        in_depth = (z >= 0.01) & (z <= 1e10)
        z = torch.where(in_depth, z, torch.ones_like(z))
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        tx = (x / z).clamp(-(cx / fx + 0.15 * width / fx), (width - cx) / fx + 0.15 * width / fx)
        ty = (y / z).clamp(-(cy / fy + 0.15 * height / fy), (height - cy) / fy + 0.15 * height / fy)
        zero = torch.zeros_like(z)
        J = torch.stack(
            [torch.stack([fx / z, zero, -fx * tx / z], -1), torch.stack([zero, fy / z, -fy * ty / z], -1)], -2
        )
        cov2d = J @ R @ covariance @ R.T @ J.transpose(1, 2)
        blurred = cov2d + 0.3 * torch.eye(2, dtype=dtype)
        alpha_scale = opacities
        if antialiased:
            alpha_scale = opacities * (torch.linalg.det(cov2d) / torch.linalg.det(blurred)).clamp_min(1e-30).sqrt()
        means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
        screen.append(means2d)
        usable = in_depth & torch.isfinite(blurred).all(-1).all(-1)
        conic = torch.linalg.inv(torch.where(usable[:, None, None], blurred, torch.eye(2, dtype=dtype)))
        position = -R.T @ t
        color = (sh_color(gaussians.sh, gaussians.means - position, degree) + 0.5).clamp_min(0)
        order = torch.argsort(z, stable=True)
        order = order[usable[order]]
        at = means2d[order][None]
        if absgrad:
            at = at.detach().expand(len(pixels), -1, -1).clone().requires_grad_()
            leaves.append(at)
        d = at - pixels
        sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, conic[order], d)
        raw = alpha_scale[order] * torch.exp(-sigma)
        alpha = torch.where(raw < 1 / 255, torch.zeros_like(raw), raw.clamp_max(0.999))
        T_after = torch.cumprod(1 - alpha, 1)
        # A pixel stops before the first Gaussian that would bring its transmittance to 1e-4.
        kept = T_after > 1e-4
        alpha = alpha * kept
        T_before = torch.cat([torch.ones_like(alpha[:, :1]), torch.cumprod(1 - alpha, 1)[:, :-1]], 1)
        weights = alpha * T_before
        out_alpha = weights.sum(1, keepdim=True)
        depth = (weights * z[order]).sum(1, keepdim=True) / out_alpha.clamp_min(1e-10)
        bg = background if background.dim() == 1 else background[c]
        rgb = weights @ color[order] + (1 - out_alpha) * bg
        crosses = (T_before > 0.5) & (T_before * (1 - alpha) <= 0.5)
        median = (crosses * z[order]).sum(1, keepdim=True)
        margin = torch.minimum((raw * 255 - 1).abs(), (T_after * 1e4 - 1).abs())
        margin = margin.min(1).values if len(order) else torch.ones(len(pixels), dtype=dtype)
        images.append([i.reshape(height, width, -1) for i in (rgb, out_alpha, depth, median, margin[:, None])])
    rgb, alpha, depth, median, margin = (torch.stack(image) for image in zip(*images, strict=True))
    return Reference(rgb, alpha, depth, median, torch.stack(screen), leaves, margin[..., 0])
