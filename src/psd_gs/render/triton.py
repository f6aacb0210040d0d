"""The Triton backend: one source for NVIDIA GPUs without a CUDA toolkit, AMD and Intel GPUs.

``_triton_project``, ``_triton_lists`` and ``_triton_raster`` hold the kernels, in the order in which they run.
Constants, conventions and gradients are those of the CPU backend.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from psd_gs.cameras import Cameras, turntable
from psd_gs.errors import BackendError
from psd_gs.gaussians import Gaussians, from_points
from psd_gs.render._constants import SPLAT, TILE
from psd_gs.render._triton_lists import count_tiles, fill_tiles
from psd_gs.render._triton_project import bands_backward, project_backward, project_forward
from psd_gs.render._triton_raster import GRAD, rasterize_backward, rasterize_forward, sum_gradients
from psd_gs.render.backend import Drawn, Settings

BLOCK = 128
"""Gaussians of one program of the kernels that work Gaussian by Gaussian."""

FORWARD = {"BATCH": 4, "num_warps": 2}
BACKWARD = {"BATCH": 2, "num_warps": 1}
"""Gaussians that a tile takes at a time, and the warps that share its pixels: by instructions per Gaussian and tile of
the sm_90 build without spilled registers (``tools/bench/rasterize.py --aot``). One warp needs no barriers for its sums.
"""

SUM = {"BLOCK": 8, "STEP": 16, "num_warps": 4}
"""Gaussians of one program, and the slots of each that it reads at a time."""


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument."""
    device = arguments[0].device
    options = {"enable_fp_fusion": True, **options}
    with nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device):
        kernel[grid](*arguments, **options)


def _ptx(device: torch.device) -> bool:
    """Whether kernels may hold NVIDIA's instructions; AMD's torch answers to ``cuda``, too."""
    return device.type == "cuda" and torch.version.hip is None


def _blocks(n: int, block: int = BLOCK) -> int:
    return max(1, -(-n // block))


class _Project(torch.autograd.Function):
    """Gaussians and cameras to screen positions, splats and radii."""

    @staticmethod
    def forward(ctx: Any, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, width, height, options):
        inputs = tuple(t.contiguous() for t in (means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions))
        C, N = len(viewmats), len(means)
        means2d, splats = means.new_empty(C, N, 2), means.new_empty(C, N, SPLAT)
        radii = torch.empty(C, N, 2, dtype=torch.int32, device=means.device)
        _launch(project_forward, (_blocks(N), C), *inputs, means2d, splats, radii, N, width, height, **options)
        ctx.options, ctx.size = options, (width, height)
        ctx.save_for_backward(*inputs, splats)
        ctx.mark_non_differentiable(radii)
        return means2d, splats, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_means2d: Tensor, g_splats: Tensor, g_radii: Any):
        *parameters, viewmats, Ks, positions, splats = ctx.saved_tensors
        means, quats, scales, opacities, _, shN = parameters
        grads = [torch.empty_like(parameter) for parameter in parameters[:5]]
        counts, g_splats = (len(means), len(viewmats)), g_splats.contiguous()
        _launch(
            project_backward, (_blocks(len(means)),), means, quats, scales, opacities, shN, viewmats, Ks, positions,
            splats, g_means2d.contiguous(), g_splats, *grads, *counts, *ctx.size, **ctx.options,
        )  # fmt: skip
        g_shN = torch.zeros_like(shN)
        if (bands := ctx.options["BANDS"]) > 1:
            options = {name: value for name, value in ctx.options.items() if name != "ANTIALIASED"}
            grid = _blocks(len(means)), bands - 1
            _launch(bands_backward, grid, means, positions, splats, g_splats, g_shN, *counts, **options)
        return *grads, g_shN, None, None, None, None, None, None


class _Rasterize(torch.autograd.Function):
    """Screen positions and splats to composited images."""

    @staticmethod
    def forward(ctx: Any, means2d, splats, background, width, height, median_depth, absgrad):
        C = len(means2d)
        lists = _tile_lists(means2d, splats, width, height)
        rgb = means2d.new_empty(C, height, width, 3)
        alpha, depth, median = (means2d.new_empty(C, height, width, 1) for _ in range(3))
        _launch(
            rasterize_forward, (len(lists.starts) - 1,), means2d, splats, lists.rows, lists.starts,
            background.contiguous(), rgb, alpha, depth, median, *lists.image, MEDIAN=median_depth,
            PTX=_ptx(rgb.device), **FORWARD,
        )  # fmt: skip
        ctx.lists, ctx.absgrad = lists, absgrad
        ctx.save_for_backward(means2d, splats, rgb, alpha, depth)
        ctx.mark_non_differentiable(median)
        return rgb, alpha, depth, median

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_rgb: Tensor, g_alpha: Tensor, g_depth: Tensor, g_median: Any):
        means2d, splats, *images = ctx.saved_tensors
        lists, C = ctx.lists, len(means2d)
        grads = means2d.new_zeros(len(lists.rows), GRAD.value)
        g_tiles = means2d.new_empty(len(lists.starts) - 1, 3)
        _launch(
            rasterize_backward, (len(g_tiles),), means2d, splats, lists.rows, lists.starts, lists.slots, *images,
            *(g.contiguous() for g in (g_rgb, g_alpha, g_depth)), grads, g_tiles, *lists.image,
            ABSGRAD=ctx.absgrad, PTX=_ptx(grads.device), **BACKWARD,
        )  # fmt: skip
        g_means2d, g_abs, g_splats = torch.empty_like(means2d), torch.empty_like(means2d), torch.empty_like(splats)
        _launch(
            sum_gradients, (_blocks(len(lists.order), SUM["BLOCK"]),), grads, lists.counts, lists.ends, lists.order,
            g_means2d, g_abs, g_splats, len(lists.order), ABSGRAD=ctx.absgrad, **SUM,
        )  # fmt: skip
        if ctx.absgrad:
            means2d.absgrad = g_abs
        return g_means2d, g_splats, g_tiles.view(C, -1, 3).sum(1), None, None, None, None


@dataclass
class _TileLists:
    """What one forward pass leaves for its backward pass."""

    order: Tensor
    """[C*N] rows of ``splats`` by depth, over all cameras, ties by index; the invisible ones come last."""
    counts: Tensor
    """[C*N] how many tiles each of them touches."""
    ends: Tensor
    """[C*N] where the slots of each of them end."""
    starts: Tensor
    """[C*tiles+1] where each tile's list starts."""
    rows: Tensor
    """[M] the lists: rows of ``splats``."""
    slots: Tensor
    """[M] the gradient slot of each entry."""
    image: tuple[int, int, int, int]
    """Width and height in pixels and in tiles."""


def _tile_lists(means2d: Tensor, splats: Tensor, width: int, height: int) -> _TileLists:
    """One sort by depth and a stable one by tile; the host waits once, for the number of entries."""
    C, N = means2d.shape[:2]
    total, image = C * N, (width, height, -(-width // TILE), -(-height // TILE))
    tiles = C * image[2] * image[3]
    depth = torch.where(splats[..., 8] >= 0, splats[..., 7], torch.inf)
    order = depth.flatten().sort(stable=True).indices
    counts = torch.empty(total, dtype=torch.int32, device=order.device)
    # Both kernels must come to the same tiles: no multiplication may be fused with an addition in one of them alone.
    options = {"BLOCK": BLOCK, "enable_fp_fusion": False}
    grid = (_blocks(total),)
    _launch(count_tiles, grid, order, means2d, splats, counts, total, width, height, **options)
    ends = counts.cumsum(0, dtype=torch.int64)
    M = int(ends[-1]) if total else 0
    # A radix sort takes half as many passes over keys of half the size.
    keys = torch.empty(M, dtype=torch.int16 if tiles < 2**15 else torch.int32, device=order.device)
    rows = torch.empty(M, dtype=torch.int32, device=order.device)
    _launch(fill_tiles, grid, order, means2d, splats, counts, ends, keys, rows, total, max(1, N), *image, **options)
    keys, slots = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(tiles + 1, dtype=keys.dtype, device=keys.device))
    return _TileLists(order, counts, ends, starts, rows[slots], slots, image)


def rasterize(gaussians: Gaussians, cameras: Cameras, background: Tensor, settings: Settings) -> Drawn:
    """The backend's part of :func:`psd_gs.render.render`, by Triton's kernels."""
    width, height = cameras.width, cameras.height
    bands = {"BANDS": (settings.degree + 1) ** 2, "STORED": gaussians.shN.shape[1] + 1}
    options = {**bands, "ANTIALIASED": settings.antialiased, "BLOCK": BLOCK}
    means2d, splats, radii = _Project.apply(
        *gaussians.params().values(), cameras.viewmats, cameras.Ks, cameras.positions, width, height, options
    )
    rgb, alpha, depth, median = _Rasterize.apply(
        means2d, splats, background, width, height, settings.median_depth, settings.absgrad
    )
    return Drawn(rgb, alpha, depth, median, means2d, radii, splats[..., 7])


@torch.inference_mode(False)
@torch.enable_grad()
def self_test(device: torch.device) -> str:
    """Render one Gaussian and its gradient, wherever it is called; what is wrong with them, or nothing.

    Raises:
        Exception: of Triton's compilers or drivers, which have many.
    """
    if device.type == "cpu" and isinstance(project_forward, triton.JITFunction):  # not interpreted
        raise BackendError("it compiles for GPUs only")
    gaussians = from_points(torch.zeros(1, 3), torch.full((1, 3), 0.5), scale=0.1, opacity=0.5).to(device)
    gaussians = gaussians.map(lambda parameter: parameter.requires_grad_())
    settings = Settings(0, antialiased=False, median_depth=False, absgrad=True)
    camera, black = turntable(1, size=3).to(device), torch.zeros(1, 3, device=device)
    rgb, alpha, *_ = rasterize(gaussians, camera, black, settings)
    rgb[0, 1, 1].sum().backward()
    # In the middle alpha is the opacity o = 1/2, and each of three colours of 1/2 has d(o/2)/d(logit) = o (1 - o) / 2.
    assert gaussians.opacities.grad is not None
    seen, moved = alpha[0, 1, 1, 0].item(), gaussians.opacities.grad.item()
    return "" if abs(seen - 0.5) < 1e-3 and abs(moved - 0.375) < 1e-3 else f"alpha {seen:.3f}, gradient {moved:.3f}"
