"""The CPU backend: threaded, compiled, deterministic. ``_project`` and ``_tiles`` hold the kernels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.gaussians import Gaussians
from psd_gs.render import _project, _tiles

_LOCK = threading.RLock()
_MAX_THREADS = numba.get_num_threads()


@contextmanager
def kernel_threads() -> Iterator[None]:
    """As many kernel threads as torch uses; one caller at a time, because Numba's fallback pool is not reentrant."""
    with _LOCK:
        before = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), _MAX_THREADS))
        try:
            yield
        finally:
            numba.set_num_threads(before)


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


class _Project(torch.autograd.Function):
    """Gaussians and cameras to screen positions, splats and radii."""

    @staticmethod
    def forward(ctx: Any, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, options):
        C, N = len(viewmats), len(means)
        means2d, splats = means.new_zeros(C, N, 2), means.new_zeros(C, N, _project.SPLAT)
        radii = torch.zeros(C, N, 2, dtype=torch.int32)
        inputs = _numpy(means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions)
        with kernel_threads():
            _project.project_forward(*inputs, *options, *_numpy(means2d, splats, radii))
        ctx.inputs, ctx.options = inputs, options
        ctx.save_for_backward(splats)
        ctx.mark_non_differentiable(radii)
        return means2d, splats, radii

    @staticmethod
    def backward(ctx: Any, *gradients):
        g_means2d, g_splats, _ = gradients
        grads = [np.zeros_like(array) for array in ctx.inputs[:6]]
        with kernel_threads():
            _project.project_backward(
                *ctx.inputs, *ctx.options, *_numpy(ctx.saved_tensors[0], g_means2d, g_splats), *grads
            )
        return *map(torch.from_numpy, grads), None, None, None, None


class _Rasterize(torch.autograd.Function):
    """Screen positions and splats to composited images."""

    @staticmethod
    def forward(ctx: Any, means2d, splats, background, width, height, absgrad):
        C, N = means2d.shape[:2]
        xy, s, bg = _numpy(means2d, splats, background)
        rgb = means2d.new_empty(C, height, width, 3)
        alpha, depth, median = (means2d.new_empty(C, height, width, 1) for _ in range(3))
        with kernel_threads():
            order, count = _tiles.sort_by_depth(s)
            # More cameras than threads parallelize over cameras; the chunks never change the result.
            chunks = max(1, 16 // C)
            per_tile, per_splat = _tiles.count_tiles(xy, s, order, count, chunks, width, height)
            starts, parts = _tiles.offsets_of(per_tile)
            first_row = np.concatenate([[0], np.cumsum(per_splat)])
            ids, rows = _tiles.fill_tiles(xy, s, order, count, parts, first_row, starts[-1], width, height)
            xy, s = xy.reshape(C * N, 2), s.reshape(C * N, -1)
            images = [rgb.numpy(), *(image.numpy()[..., 0] for image in (alpha, depth, median))]
            _tiles.rasterize_forward(xy, s, starts, ids, bg, *images)
        ctx.save_for_backward(means2d, rgb, alpha, depth)
        ctx.lists = xy, s, starts, ids, rows, first_row
        ctx.absgrad = absgrad
        ctx.mark_non_differentiable(median)
        return rgb, alpha, depth, median

    @staticmethod
    def backward(ctx: Any, *gradients):
        means2d, rgb, alpha, depth = ctx.saved_tensors
        xy, s, starts, ids, rows, first_row = ctx.lists
        grads = np.zeros((len(ids), _tiles.GRAD), np.float32)
        g_background = np.zeros((len(starts) - 1, 3), np.float32)
        C, N = means2d.shape[:2]
        g_means2d, g_abs, g_splats = torch.zeros_like(means2d), torch.zeros_like(means2d), torch.zeros(C, N, s.shape[1])
        with kernel_threads():
            g_rgb, g_alpha, g_depth = _numpy(*gradients[:3])
            _tiles.rasterize_backward(
                xy, s, starts, ids, rows, *_numpy(rgb, alpha[..., 0], depth[..., 0]),
                g_rgb, g_alpha[..., 0], g_depth[..., 0], ctx.absgrad, grads, g_background,
            )  # fmt: skip
            targets = (tensor.view(C * N, -1).numpy() for tensor in (g_means2d, g_abs, g_splats))
            _tiles.sum_gradients(grads, first_row, *targets)
        if ctx.absgrad:
            means2d.absgrad = g_abs
        return g_means2d, g_splats, torch.from_numpy(g_background.reshape(C, -1, 3).sum(1)), None, None, None


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor,
    degree: int,
    antialiased: bool,
    median_depth: bool,
    absgrad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """rgb, alpha, expected depth, median depth and meta; see ``psd_gs.render.render``."""
    options = (cameras.width, cameras.height, degree, antialiased)
    means2d, splats, radii = _Project.apply(
        *gaussians.params().values(), cameras.viewmats, cameras.Ks, cameras.positions, options
    )
    rgb, alpha, depth, median = _Rasterize.apply(means2d, splats, background, cameras.width, cameras.height, absgrad)
    meta = {"means2d": means2d, "radii": radii, "depths": splats[..., 7]}
    return rgb, alpha, depth, median if median_depth else None, meta
