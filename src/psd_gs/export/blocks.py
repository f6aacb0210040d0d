"""What all splat formats share: what is a value and what damage, and Gaussians in blocks on their way to files.

Infinite opacities (opaque or invisible) and log scales of minus infinity (flat) are values. NaN anywhere, an infinite
position, size or colour, and a rotation of zero are damage. Readers and writers share this rule.

A block is small enough for the cache, so a few million splats with all their harmonics are converted
without a second copy of them in memory.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.errors import FormatError, InputError
from psd_gs.export.foreign import refuse_foreign
from psd_gs.export.frames import Frame, near_the_others, robust_box, turn_x180
from psd_gs.gaussians import Gaussians, RenderMode, usable

logger = logging.getLogger(__name__)

MAX_LOGIT = 15.0
MAX_LOG_SCALE = 20.0
BLOCK = 1 << 16
"""Rows of a block; a multiple of 256, the chunk of the compressed PLY."""
SMALL = 32 << 20
RATIO = 100
LARGEST = 8 << 30
"""A compressed file may fill :data:`SMALL` bytes of memory, or :data:`RATIO` times its size (assets reach 50) and not
more than :data:`LARGEST`, unless the caller knows that it is sound."""
COLOURS = (-2.0, 3.0)
"""Of colours where those of many Gaussians share a range: what is beyond would spoil the others."""
HARMONICS = 4.0
"""Likewise, of the other coefficients."""
_BROKEN = "hold NaN, an infinite position, size or colour, or a zero rotation"


def saturated(gaussians: Gaussians) -> Gaussians:
    """Opacity logits within +-15 and log scales within +-20, infinities too; log scales of +infinity become NaN, and
    rotations whose squares float32 cannot hold have a length near 1."""
    scales = gaussians.scales.where(gaussians.scales < math.inf, math.nan)
    longest = gaussians.quats.abs().amax(1, keepdim=True)
    odd = (longest > 0) & (longest < math.inf) & ((longest < 1e-6) | (longest > 1e6))
    return replace(
        gaussians,
        quats=torch.where(odd, gaussians.quats / longest, gaussians.quats),
        opacities=gaussians.opacities.clamp(-MAX_LOGIT, MAX_LOGIT),
        scales=scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE),
    )


def usable_rows(gaussians: Gaussians, path: str | os.PathLike[str]) -> Int[Tensor, " M"]:
    """Indices of the rows that can be written; the number of the others is logged.

    Raises:
        InputError: there is none.
    """
    rows = usable_mask(gaussians).nonzero()[:, 0]
    if len(rows) == 0:
        raise InputError(
            f"cannot write {path}: expected finite Gaussians, received {len(gaussians)} of which none is usable. "
            "The optimization diverged; lower the learning rates or start from an earlier checkpoint."
        )
    if len(rows) < len(gaussians):
        logger.warning(
            "%s: left out %d of %d Gaussians, which %s", path, len(gaussians) - len(rows), len(gaussians), _BROKEN
        )
    return rows


def usable_mask(gaussians: Gaussians) -> Bool[Tensor, " N"]:
    """Which rows are values in the sense of this module, block by block, because the temporaries are large."""
    parts = [gaussians.map(lambda t, a=a, b=b: t[a:b]) for a, b in ranges(len(gaussians))] or [gaussians]
    return torch.cat([usable(saturated(part).map(torch.Tensor.float)) for part in parts])


def blocks(gaussians: Gaussians, rows: Int[Tensor, " M"], frame: Frame) -> Iterator[Gaussians]:
    """The rows in the given order, as files want them: in ``frame``, on the CPU, quaternions of length 1,
    opacity logits within +-15 and log scales within +-20.
    """
    gaussians = gaussians.detach()
    for part in rows.split(BLOCK):
        block = saturated(gaussians.select(part).to("cpu").map(torch.Tensor.float))
        length = block.quats.norm(dim=1, keepdim=True)  # what has length 1 stays as it is, to the bit
        block.quats = torch.where((length - 1).abs() < 1e-6, block.quats, block.quats / length)
        yield turn_x180(block) if frame == "rdf" else block


def gather(
    parts: Iterable[Gaussians],
    count: int,
    path: str | os.PathLike[str],
    frame: Frame,
    lenient: bool,
    mode: RenderMode = "default",
) -> Gaussians:
    """The Gaussians of a file in the world frame, from blocks in the file's frame.

    Args:
        parts: blocks, together ``count`` rows, all with as many harmonics; means may be double.
        count: rows of the file; the caller has checked that the file is large enough for them.
        path: of the file, for messages.
        frame: of the blocks.
        lenient: leave out broken rows, and log how many, instead of refusing the file.
        mode: what the file says of how it is to be rendered.

    Raises:
        FormatError: such rows, or no others.
    """
    if count == 0:
        raise FormatError(f"{path} holds no Gaussians. Export the asset again.")
    out: Gaussians | None = None
    filled = broken = 0
    for raw in parts:
        block = saturated(raw)
        good = usable(replace(block, means=block.means.float()))
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
            f"{path}: expected finite Gaussians, received {count} of which {broken} {_BROKEN}. "
            "Export it again, or drop these rows with psd-gs export --prune."
        )
    if broken:
        logger.warning("%s: left out %d of %d Gaussians, which %s", path, broken, count, _BROKEN)
    out = out if filled == count else out.map(lambda tensor: tensor[:filled])
    return localized(replace(out, mode=mode))


def localized(gaussians: Gaussians) -> Gaussians:
    """The asset near the origin if float32 is too coarse where it lies, as in UTM coordinates: its ``origin`` tells
    where it was. ``means`` become float32.

    Too coarse is a rounding of more than a hundredth of the median Gaussian, or of a 100 000th of the asset.
    """
    place = gaussians.means.double().median(dim=0).values
    rounding = float(place.abs().max()) * 2.0**-24
    size = float(gaussians.scales.amax(1).exp().median())
    if rounding > 0.01 * size:
        low, high = robust_box(gaussians.means.double())
        extent = float((high - low).max())
        if rounding > 1e-5 * extent and float(place.abs().max()) > 8 * extent:
            grid = 2.0 ** math.floor(math.log2(max(extent, size)))
            origin = ((low + high) / (2 * grid)).round() * grid
            x, y, z = (origin + torch.tensor(gaussians.origin, dtype=torch.float64)).tolist()
            gaussians = replace(gaussians, means=gaussians.means.double() - origin, origin=(x, y, z))
    return replace(gaussians, means=gaussians.means.float())


def held(gaussians: Gaussians, centre: Float[Tensor, " 3"], reach: float) -> Gaussians:
    """The asset with its strays moved in, along the line to ``centre`` and made smaller by as much, so that they look
    from there as they did; for formats whose precision is the smaller the farther the farthest Gaussian is."""
    offset = gaussians.means - centre
    factor = (reach / offset.abs().amax(1)).clamp(max=1)
    if (factor == 1).all():
        return gaussians
    return replace(
        gaussians,
        means=torch.where(factor[:, None] < 1, centre + offset * factor[:, None], gaussians.means),
        scales=(gaussians.scales + factor.log()[:, None]).clamp_min(-MAX_LOG_SCALE),
    )


def extent(
    gaussians: Gaussians, rows: Int[Tensor, " M"], times: float, path: str | os.PathLike[str]
) -> tuple[Float[Tensor, " 3"], float, float]:
    """Where the asset without its strays lies, and how far out strays may stay; how many are farther is logged.

    Args:
        gaussians: the asset.
        rows: that are written.
        times: half the asset's extent, that strays may be away.
        path: of what is written, for the message.

    Returns:
        Centre, half the extent along its longest axis, and the reach for :func:`held`, world units.
    """
    means = gaussians.means.detach()[rows].float().cpu()
    low, high = robust_box(means)
    centre = (low + high) / 2
    size = gaussians.scales.detach()[rows].amax(1).float().median().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    half = max(float((high - low).max()) / 2, float(size))
    far = int(((means - centre).abs().amax(1) > times * half).sum())
    if far:
        logger.warning(
            "%s: moved %d stray of %d Gaussians in to %.3g units, because the format holds the others the worse the "
            "farther one is away; --prune drops them",
            path, far, len(rows), times * half,
        )  # fmt: skip
    return centre, half, times * half


def check_unpacked(path: str | os.PathLike[str], count: int, degree: int, packed: int, large: bool) -> None:
    """Refuse a file that would become far larger in memory than any asset does.

    Args:
        path: of the file.
        count: Gaussians that it promises.
        degree: of their harmonics.
        packed: bytes of the file.
        large: the caller knows that the file is sound.

    Raises:
        FormatError: it would.
    """
    size = count * 4 * (11 + 3 * (min(degree, 3) + 1) ** 2)
    if not large and size > min(max(SMALL, RATIO * packed), LARGEST):
        raise FormatError(
            f"{path}: expected a file that fills at most {RATIO} times its size and {LARGEST >> 30} GiB of memory, "
            f"received {count} Gaussians in {packed} bytes. It is damaged or made to fill the memory; if you trust it, "
            "pass --large."
        )


def ranges(count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of ``count`` rows."""
    return ((begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


def tensors(
    means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray, sh0: np.ndarray, shN: np.ndarray
) -> Gaussians:
    """Gaussians of NumPy arrays of any float type: [N, 3], [N, 4], [N, 3], [N], [N, 3] and [N, K - 1, 3]; means stay
    double if they are."""
    arrays = (quats, scales, opacities, sh0[:, None], shN)
    place = np.array(means, np.float64 if means.dtype.itemsize == 8 else np.float32, order="C")
    # A double beyond float32 becomes infinite here, which is refused later.
    with np.errstate(over="ignore", invalid="ignore"):
        q, s, o, dc, rest = (torch.from_numpy(np.array(array, np.float32, order="C")) for array in arrays)
    return Gaussians(torch.from_numpy(place), q, s, o, dc, rest)


def with_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """The asset with harmonics up to ``degree``: those beyond it left out, those that it lacks zero."""
    missing = (degree + 1) ** 2 - 1 - gaussians.shN.shape[1]
    if missing <= 0:
        return replace(gaussians, shN=gaussians.shN[:, : gaussians.shN.shape[1] + missing])
    zeros = gaussians.shN.new_zeros(len(gaussians), missing, 3)
    return replace(gaussians, shN=torch.cat([gaussians.shN, zeros], dim=1))


def logit(probability: np.ndarray) -> np.ndarray:
    """Inverse of the sigmoid within +-:data:`MAX_LOGIT`, also of what rounding took out of [0, 1]; NaN stays NaN."""
    probability = np.clip(probability, 0, 1)
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
    """Indices that sort points along a Z-curve, so that neighbours in the file are neighbours in space; strays last."""
    low, high = robust_box(points)
    unit = ((points - low) / (high - low).clamp_min(1e-20)).clamp(0, 1)
    cells = (unit * (2**21 - 1)).long()
    for shift, mask in (
        *((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F)),
        *((4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)),
    ):
        cells = (cells | (cells << shift)) & mask  # moves the bits apart until two zeros follow each
    keys = cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2
    keys[~near_the_others(points)] = torch.iinfo(torch.int64).max
    return keys.argsort(stable=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole file.

    Raises:
        InputError: it cannot be opened.
    """
    with open_file(path) as file:
        return file.read()


def open_any(path: str | os.PathLike[str]) -> BufferedReader:
    """The file, opened for reading.

    Raises:
        InputError: it cannot be, or is a device or pipe, which may never end.
    """
    try:
        if not Path(path).is_file() and Path(path).exists() and not Path(path).is_dir():
            raise InputError(f"cannot read {path}: expected a file, received a device or pipe. Copy the file first.")
        return Path(path).open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}. Check the path.") from error


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """An asset's file, opened for reading.

    Raises:
        InputError: see :func:`open_any`.
        UnsupportedError: it is packed, or a message in place of the file.
    """
    file = open_any(path)
    try:
        refuse_foreign(path, file)
    except BaseException:
        file.close()
        raise
    return file


def damaged(path: str | os.PathLike[str], what: str) -> FormatError:
    """The error for a file that is broken or truncated."""
    return FormatError(f"{path}: {what}. The file is damaged or truncated; copy or export it again.")


def say_surplus(path: str | os.PathLike[str], count: int, after: str) -> None:
    """Log that a file goes on for ``count`` bytes behind what it says that it holds, if it does."""
    if count:
        logger.warning("%s: %d bytes behind %s are not kept", path, count, after)
