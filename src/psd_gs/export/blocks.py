"""What all splat formats share: Gaussians go to files and come from them in blocks.

A block is small enough for the cache, so a few million splats with all their harmonics are converted
without a second copy of them in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.errors import FormatError, InputError
from psd_gs.export.frames import Frame, turn_x180
from psd_gs.gaussians import Gaussians, usable

MAX_LOGIT = 15.0
MAX_LOG_SCALE = 20.0
BLOCK = 1 << 16
"""Rows of a block; a multiple of 256, the chunk of the compressed PLY."""
MAX_RATIO = 1000
"""A compressed file that would unpack to more than so many times its size is refused: no asset compresses like that."""


def usable_rows(gaussians: Gaussians, path: str | os.PathLike[str]) -> Int[Tensor, " M"]:
    """Indices of the rows that can be written.

    Raises:
        InputError: there is none.
    """
    rows = usable_mask(gaussians).nonzero()[:, 0]
    if len(rows) == 0:
        raise InputError(
            f"cannot write {path}: expected finite Gaussians, received {len(gaussians)} of which none is usable. "
            "The optimization diverged; lower the learning rates or start from an earlier checkpoint."
        )
    return rows


def usable_mask(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """:func:`psd_gs.gaussians.usable` block by block, because its temporaries are as large as its input."""
    if len(gaussians) == 0:
        return usable(gaussians)
    return torch.cat([usable(gaussians.map(lambda t, a=a, b=b: t[a:b])) for a, b in ranges(len(gaussians))])


def blocks(gaussians: Gaussians, rows: Int[Tensor, " M"], frame: Frame) -> Iterator[Gaussians]:
    """The rows in the given order, as files want them: in ``frame``, on the CPU, quaternions of length 1,
    opacity logits within +-15 and log scales within +-20.
    """
    gaussians = gaussians.detach()
    for part in rows.split(BLOCK):
        block = gaussians.select(part).to("cpu").map(torch.Tensor.float)
        block.opacities = block.opacities.clamp(-MAX_LOGIT, MAX_LOGIT)
        block.scales = block.scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
        block.quats = torch.nn.functional.normalize(block.quats, dim=1)
        yield turn_x180(block) if frame == "rdf" else block


def gather(
    parts: Iterable[Gaussians], count: int, path: str | os.PathLike[str], frame: Frame, lenient: bool
) -> Gaussians:
    """The Gaussians of a file in the world frame, from blocks in the file's frame.

    Args:
        parts: blocks, together ``count`` rows.
        count: rows of the file; the caller has checked that the file is large enough for them.
        path: of the file, for messages.
        frame: of the blocks.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

    Raises:
        FormatError: such rows, or no others.
    """
    if count == 0:
        raise FormatError(f"{path} holds no Gaussians. Export the asset again.")
    out: Gaussians | None = None
    filled = broken = 0
    for block in parts:
        good = usable(block)
        if not good.all():
            broken += int((~good).sum())
            block = block.select(good)
        block = turn_x180(block) if frame == "rdf" else block
        if out is None:
            out = block.map(lambda tensor: tensor.new_empty(count, *tensor.shape[1:]))
        for name, tensor in out.params().items():
            tensor[filled : filled + len(block)] = getattr(block, name)
        filled += len(block)
    if (broken and not lenient) or out is None or filled == 0:
        raise FormatError(
            f"{path}: expected finite Gaussians, received {count} of which {broken} hold NaN, infinity or a zero "
            "rotation. Export it again, or drop these rows with psd-gs export --prune."
        )
    out.opacities.clamp_(-MAX_LOGIT, MAX_LOGIT)
    out.scales.clamp_(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    return out if filled == count else out.map(lambda tensor: tensor[:filled])


def ranges(count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of ``count`` rows."""
    return ((begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


def tensors(
    means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray, sh0: np.ndarray, shN: np.ndarray
) -> Gaussians:
    """Gaussians of NumPy arrays of any float type: [N, 3], [N, 4], [N, 3], [N], [N, 3] and [N, K - 1, 3]."""
    arrays = (means, quats, scales, opacities, sh0[:, None], shN)
    # A double beyond float32 becomes infinite here, which is refused later.
    with np.errstate(over="ignore", invalid="ignore"):
        return Gaussians(*(torch.from_numpy(np.array(array, np.float32, order="C")) for array in arrays))


def logit(probability: np.ndarray) -> np.ndarray:
    """Inverse of the sigmoid within +-:data:`MAX_LOGIT`; NaN stays NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.log(probability) - np.log1p(-probability), -MAX_LOGIT, MAX_LOGIT)


def log_scale(deviation: np.ndarray) -> np.ndarray:
    """Logarithm, at least -:data:`MAX_LOG_SCALE`; negative numbers become NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.log(deviation), -MAX_LOG_SCALE)


def sigmoid(block: Gaussians) -> Float[np.ndarray, " N"]:
    """The opacities of a block."""
    return block.opacities.sigmoid().numpy()


def morton_order(points: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Indices that sort points along a Z-curve, so that neighbours in the file are neighbours in space."""
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / (high - low).clamp_min(1e-20) * (2**21 - 1)).long().clamp(0, 2**21 - 1)
    for shift, mask in (
        *((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F)),
        *((4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)),
    ):
        cells = (cells | (cells << shift)) & mask  # moves the bits apart until two zeros follow each
    return (cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2).argsort(stable=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole file.

    Raises:
        InputError: it cannot be opened.
    """
    with open_file(path) as file:
        return file.read()


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, opened for reading.

    Raises:
        InputError: it cannot be.
    """
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error


def damaged(path: str | os.PathLike[str], what: str) -> FormatError:
    """The error for a file that is broken or truncated."""
    return FormatError(f"{path}: {what}. The file is damaged or truncated; copy or export it again.")
