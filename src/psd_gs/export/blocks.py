"""What all splat formats share: what becomes of damage, and splats in blocks on their way from and to files.

A block is small enough for the cache, so a few million splats with all their harmonics are converted
without a second copy of them in memory.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial, reduce
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from psd_gs.errors import FormatError, InputError
from psd_gs.export.foreign import refuse_foreign
from psd_gs.export.frames import Frame, median, near_the_others, robust_box, turn_in_place
from psd_gs.splats import RenderMode, Splats, ranges

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

logger = logging.getLogger(__name__)

MAX_LOGIT = 15.0
MAX_LOG_SCALE = 20.0
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


def usable_rows(splats: Splats, path: str | os.PathLike[str]) -> Int[np.ndarray, " M"]:
    """Indices of the rows that can be written; the number of the others is logged.

    Raises:
        InputError: there is none.
    """
    rows = splats.usable.nonzero()[0]
    if len(rows) == 0:
        raise InputError(
            f"cannot write {path}: expected finite Gaussians, received {len(splats)} of which none is usable. "
            "The optimization diverged; lower the learning rates or start from an earlier checkpoint."
        )
    if len(rows) < len(splats):
        logger.warning("%s: left out %d of %d Gaussians, which %s", path, len(splats) - len(rows), len(splats), _BROKEN)
    return rows


def _saturate(block: Splats) -> None:
    """Opacity logits become within +-15 and log scales within +-20, infinities too, and rotations whose squares float32
    cannot hold get a length near 1; in place."""
    np.clip(block.opacities, -MAX_LOGIT, MAX_LOGIT, out=block.opacities)
    np.clip(block.scales, -MAX_LOG_SCALE, MAX_LOG_SCALE, out=block.scales)
    longest = reduce(np.maximum, np.abs(block.quats).T)
    odd = (longest < 1e-6) | (longest > 1e6)
    if odd.any():
        block.quats[odd] /= longest[odd, None]


def blocks(splats: Splats, rows: Int[np.ndarray, " M"], frame: Frame) -> Iterator[Splats]:
    """Copies of the rows in the given order, as files want them: in ``frame``, quaternions of length 1, opacity logits
    within +-15 and log scales within +-20.

    Args:
        splats: in the world frame.
        rows: indices of usable ones.
        frame: axes of the blocks.
    """

    for begin, end in ranges(len(rows)):
        block = splats.map(partial(np.take, indices=rows[begin:end], axis=0))
        _saturate(block)
        length = np.sqrt(reduce(np.add, np.square(block.quats).T))
        uneven = np.abs(length - 1) >= 1e-6  # what has length 1 stays as it is, to the bit
        if uneven.any():
            block.quats[uneven] /= length[uneven, None]
        if frame == "rdf":
            turn_in_place(block)
        yield block


def gather(
    parts: Iterable[Splats],
    count: int,
    path: str | os.PathLike[str],
    frame: Frame,
    lenient: bool,
    mode: RenderMode = "default",
) -> Splats:
    """The splats of a file in the world frame, from blocks in the file's frame.

    Args:
        parts: blocks of numbers of any type, together ``count`` rows, all with as many harmonics.
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
    out: Splats | None = None
    filled = broken = 0
    for raw in parts:
        if out is None:
            out = raw.map(lambda values: np.empty((count, *values.shape[1:]), np.float32))
            if raw.means.itemsize == 8:
                out.means = np.empty((count, 3))
        block = out.select(slice(filled, filled + len(raw)))
        # A double beyond float32 becomes infinite here, which makes its row unusable.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, values in block.params().items():
                for channel in np.ndindex(values.shape[2:]):  # one by one, as most files have them
                    values[..., *channel] = getattr(raw, name)[..., *channel]
        good = block.usable
        if not good.all():
            kept = block.select(good)
            block = out.select(slice(filled, filled + len(kept)))
            for name, values in block.params().items():
                values[:] = getattr(kept, name)
            broken += len(raw) - len(kept)
        _saturate(block)
        if frame == "rdf":
            turn_in_place(block)
        filled += len(block)
    if (broken and not lenient) or out is None or filled == 0:
        raise FormatError(
            f"{path}: expected finite Gaussians, received {count} of which {broken} {_BROKEN}. "
            "Export it again, or drop these rows with psd-gs export --prune."
        )
    if broken:
        logger.warning("%s: left out %d of %d Gaussians, which %s", path, broken, count, _BROKEN)
    out = out if filled == count else out.select(slice(filled))
    found = localized(replace(out, mode=mode))
    found.usable = np.ones(filled, bool)
    return found


def localized(splats: Splats) -> Splats:
    """The asset near the origin if float32 is too coarse where it lies, as in UTM coordinates: its ``origin`` tells
    where it was. ``means`` become float32.

    Too coarse is a rounding of more than a hundredth of the median Gaussian, or of a 100 000th of the asset.
    """
    farthest = float(np.abs(median(splats.means.T)).max())
    rounding = farthest * 2.0**-24
    size = float(exp(median(reduce(np.maximum, splats.scales.T))))
    if rounding > 0.01 * size:
        means = splats.means.astype(np.float64)
        low, high = robust_box(means)
        extent = float((high - low).max())
        if rounding > 1e-5 * extent and farthest > 8 * extent:
            grid = 2.0 ** math.floor(math.log2(max(extent, size)))
            origin = np.rint((low + high) / (2 * grid)) * grid
            x, y, z = (origin + splats.origin).tolist()
            splats = replace(splats, means=means - origin, origin=(x, y, z))
    return replace(splats, means=splats.means.astype(np.float32, copy=False))


def held(splats: Splats, centre: Float[np.ndarray, " 3"], reach: float) -> Splats:
    """The asset with its strays moved in, along the line to ``centre`` and made smaller by as much, so that they look
    from there as they did; for formats whose precision is the smaller the farther the farthest Gaussian is."""
    offset = splats.means - centre
    with np.errstate(divide="ignore"):
        factor = np.minimum(reach / reduce(np.maximum, np.abs(offset).T)[:, None], 1)
    if (factor == 1).all():
        return splats
    return replace(
        splats,
        means=np.where(factor < 1, centre + offset * factor, splats.means),
        scales=np.maximum(splats.scales + np.log(factor.astype(np.float64)).astype(np.float32), -MAX_LOG_SCALE),
    )


def extent(
    splats: Splats, rows: Int[np.ndarray, " M"], times: float, path: str | os.PathLike[str]
) -> tuple[Float[np.ndarray, " 3"], float, float]:
    """Where the asset without its strays lies, and how far out strays may stay; how many are farther is logged.

    Args:
        splats: the asset.
        rows: that are written.
        times: half the asset's extent, that strays may be away.
        path: of what is written, for the message.

    Returns:
        Centre, half the extent along its longest axis, and the reach for :func:`held`, world units.
    """
    means = splats.means[rows]
    low, high = robust_box(means)
    centre = (low + high) / 2
    size = median(reduce(np.maximum, splats.scales[rows].T)).clip(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    half = max(float((high - low).max()) / 2, float(exp(size)))
    far = int((reduce(np.maximum, np.abs(means - centre).T) > times * half).sum())
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


def with_degree(splats: Splats, degree: int) -> Splats:
    """The asset with harmonics up to ``degree``: those beyond it left out, those that it lacks zero."""
    missing = (degree + 1) ** 2 - 1 - splats.shN.shape[1]
    if missing <= 0:
        return replace(splats, shN=splats.shN[:, : splats.shN.shape[1] + missing])
    return replace(splats, shN=np.pad(splats.shN, ((0, 0), (0, missing), (0, 0))))


def logit(probability: np.ndarray) -> np.ndarray:
    """Inverse of the sigmoid within +-:data:`MAX_LOGIT`, also of what rounding took out of [0, 1]; NaN stays NaN."""
    probability = np.clip(probability, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.log(probability) - np.log1p(-probability), -MAX_LOGIT, MAX_LOGIT)


def byte_logit(opacities: UInt8[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """:func:`logit` of bytes over [0, 1]."""
    return logit(np.arange(256) / 255).astype(np.float32)[opacities]


def log_scale(deviation: np.ndarray) -> np.ndarray:
    """Logarithm, at least -:data:`MAX_LOG_SCALE`; negative numbers become NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.log(deviation), -MAX_LOG_SCALE)


def exp(values: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B"]:
    """Exponential of float32, rounded once: NumPy's own is off by up to three units in the last place, and by others
    on other processors."""
    return np.exp(values.astype(np.float64)).astype(np.float32)


def sigmoid(splats: Splats) -> Float[np.ndarray, " N"]:
    """The opacities."""
    with np.errstate(over="ignore"):
        return 1 / (1 + exp(-splats.opacities))


def morton_order(points: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, " N"]:
    """Indices that sort points along a Z-curve, so that neighbours in the file are neighbours in space; strays last."""
    low, high = robust_box(points)
    unit = np.clip((points - low) / np.maximum(high - low, np.float32(1e-20)), 0, 1)
    cells = (unit * (2**21 - 1)).astype(np.int64)
    for shift, mask in (
        *((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F)),
        *((4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)),
    ):
        cells = (cells | (cells << shift)) & mask  # moves the bits apart until two zeros follow each
    keys = cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2
    keys[~near_the_others(points)] = np.iinfo(np.int64).max
    return keys.argsort(kind="stable")


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
