"""The CPU backend: threaded, compiled, deterministic.

``_project``, ``_lists`` and ``_raster`` hold the kernels, in the order in which they run, ``_vectors`` what the last
calculates with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from psd_gs.cameras import Cameras
from psd_gs.gaussians import Gaussians
from psd_gs.render._constants import TILE
from psd_gs.render._lists import count_tiles, fill_tiles, offsets_of, sort_by_depth
from psd_gs.render._project import ROW, project_backward, project_forward
from psd_gs.render._raster import GRAD, rasterize_backward, rasterize_forward, sum_gradients
from psd_gs.render.backend import Drawn, Settings
from psd_gs.render.threads import parallel


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Contiguous arrays, as far as possible on the same memory (a copy by torch would wake its own threads)."""
    return tuple(np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors)


def _gradient(tensor: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an output, which is None where the loss does not depend on it."""
    return np.zeros(shape, np.float32) if tensor is None else _numpy(tensor)[0]


class _Project(torch.autograd.Function):
    """Gaussians and cameras to screen positions, rows and radii."""

    @staticmethod
    def forward(ctx: Any, means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions, options):
        C, N = len(viewmats), len(means)
        inputs = means, quats, scales, opacities, sh0, shN, viewmats, Ks, positions
        outputs = np.zeros((C, N, 2), np.float32), np.zeros((C, N, ROW), np.float32), np.zeros((C, N, 2), np.int32)
        parallel(project_forward, N, *_numpy(*inputs), *options, *outputs)
        means2d, rows, radii = map(torch.from_numpy, outputs)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, rows)
        ctx.mark_non_differentiable(radii)
        return means2d, rows, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients):
        *inputs, rows = _numpy(*ctx.saved_tensors)
        grads = [np.zeros_like(array) for array in inputs[:6]]
        g_means2d, g_rows = _gradient(gradients[0], (*rows.shape[:2], 2)), _gradient(gradients[1], rows.shape)
        parallel(project_backward, len(grads[0]), *inputs, *ctx.options, rows, g_means2d, g_rows, *grads)
        return *map(torch.from_numpy, grads), None, None, None, None


class _Rasterize(torch.autograd.Function):
    """Screen positions and rows to composited images; the positions serve for their gradient alone."""

    @staticmethod
    def forward(ctx: Any, means2d, rows, background, width, height, want_median, absgrad):
        (rows,) = _numpy(rows)
        lists = _tile_lists(rows, width, height)
        rgb = np.empty((len(means2d), height, width, 3), np.float32)
        alpha, depth, median = np.empty((3, len(means2d), height, width), np.float32)
        parallel(
            rasterize_forward, len(lists.starts) - 1, lists.rows, lists.starts, lists.ids,
            *_numpy(background), want_median, lists.masks, rgb, alpha, depth, median,
        )  # fmt: skip
        outputs = tuple(torch.from_numpy(image) for image in (rgb, *(i[..., None] for i in (alpha, depth, median))))
        ctx.lists, ctx.absgrad = lists, absgrad
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(means2d, *outputs[:3])
        ctx.mark_non_differentiable(outputs[3])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients):
        means2d, *images = ctx.saved_tensors
        lists = ctx.lists
        rgb, alpha, depth = _numpy(*images)
        grads = np.empty((len(lists.ids), GRAD), np.float32)
        g_tiles = np.zeros((len(lists.starts) - 1, 3), np.float32)
        g_rgb, g_alpha, g_depth = (_gradient(g, i.shape) for g, i in zip(gradients[:3], images, strict=True))
        parallel(
            rasterize_backward, len(lists.starts) - 1, lists.rows, lists.starts, lists.ids, lists.masks,
            lists.slots, rgb, alpha[..., 0], depth[..., 0], g_rgb, g_alpha[..., 0], g_depth[..., 0], ctx.absgrad,
            grads, g_tiles,
        )  # fmt: skip
        shape = means2d.shape[:2]
        g_means2d, g_abs, g_rows = (np.empty((*shape, columns), np.float32) for columns in (2, 2, ROW))
        flat = g_means2d.reshape(-1, 2), g_abs.reshape(-1, 2), g_rows.reshape(-1, ROW)
        parallel(sum_gradients, len(lists.rows), grads, lists.first_slot, lists.rows, *flat)
        if ctx.absgrad:
            means2d.absgrad = torch.from_numpy(g_abs)
        g_background = g_tiles.reshape(len(rgb), -1, 3).sum(1)
        return *map(torch.from_numpy, (g_means2d, g_rows, g_background)), None, None, None, None


@dataclass
class _TileLists:
    """What one forward pass leaves for its backward pass; see ``_lists``."""

    rows: np.ndarray
    """[C*N,ROW] the projected Gaussians."""
    starts: np.ndarray
    """[C*tiles+1] where each tile's list starts."""
    ids: np.ndarray
    """[M] the lists: indices into ``rows``."""
    masks: np.ndarray
    """[M] which vectors of its tile each entry was computed on; filled by the forward pass."""
    slots: np.ndarray
    """[M] the gradient slot of each entry."""
    first_slot: np.ndarray
    """[C*N+1] the slots of each row."""


def _tile_lists(rows: np.ndarray, width: int, height: int) -> _TileLists:
    C, N = rows.shape[:2]
    order, count = np.empty((C, N), np.int32), np.empty(C, np.int64)
    parallel(sort_by_depth, C, rows, rows.view(np.uint32), order, count)
    # The depth order is cut into chunks that threads can count and fill side by side, with one result for any cut.
    chunks = max(1, 16 // C)
    tiles = -(-width // TILE) * -(-height // TILE)
    boxes = np.empty((C, N, 4), np.int32)
    per_tile, per_row = np.zeros((C, chunks, tiles), np.int32), np.zeros(C * N + 1, np.int32)
    depths = rows, order, count, width
    parallel(count_tiles, C * chunks, *depths, height, boxes, per_tile, per_row[1:].reshape(C, N))
    starts, parts = offsets_of(per_tile)
    first_slot = np.cumsum(per_row, dtype=np.int32)
    ids, slots = np.empty((2, starts[-1]), np.int32)
    parallel(fill_tiles, C * chunks, *depths, boxes, parts, first_slot, ids, slots)
    return _TileLists(rows.reshape(C * N, ROW), starts, ids, np.empty_like(ids, np.uint32), slots, first_slot)


def rasterize(gaussians: Gaussians, cameras: Cameras, background: Tensor, settings: Settings) -> Drawn:
    """The backend's part of :func:`psd_gs.render.render`, on the CPU."""
    width, height = cameras.width, cameras.height
    options = (width, height, settings.degree, settings.antialiased)
    means2d, rows, radii = _Project.apply(
        *gaussians.params().values(), cameras.viewmats, cameras.Ks, cameras.positions, options
    )
    options = (width, height, settings.median_depth, settings.absgrad)
    rgb, alpha, depth, median = _Rasterize.apply(means2d, rows, background, *options)
    return Drawn(rgb, alpha, depth, median, means2d, radii, rows[..., 7])
