"""Compressed PLY of the PlayCanvas tools: 16 bytes per Gaussian and one per harmonic.

Gaussians are sorted along a Z-curve. Every 256 of them form a row of the element ``chunk``, the bounds
of position, log scale and colour; the element ``vertex`` packs each Gaussian in four integers within
those bounds: position and scale with 11, 10, 11 bits, colour and opacity with 8 each, the rotation as
its three smaller components (of wxyz) with 10 bits and the place of the largest with 2. The optional
element ``sh`` holds a byte per coefficient, channel-major, over [-4, 4].
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import numpy as np

from psd_gs.errors import FormatError
from psd_gs.export.blocks import (
    COLOURS,
    blocks,
    byte_logit,
    check_unpacked,
    extent,
    gather,
    held,
    morton_order,
    sigmoid,
    usable_rows,
)
from psd_gs.export.frames import Frame, turn_x180
from psd_gs.export.metadata import Metadata
from psd_gs.export.ply import make_ply_header, stored_mode
from psd_gs.export.ply_table import columns, read_ply_blocks, read_ply_header, say_rest
from psd_gs.export.quaternions import from_smallest_three, smallest_three
from psd_gs.files import atomic_path
from psd_gs.splats import SH_C0, Splats, ranges, sh0_to_rgb

CHUNK = 256
_COEFFICIENTS = (np.r_[0, np.arange(1, 255) + 0.5, 256] / 32 - 4).astype(np.float32)
"""Of the harmonics, by their bytes: the middle of a step, but the first and last are the ends."""
_XYZ, _RGB = ("x", "y", "z"), ("r", "g", "b")
_BOUNDS = [
    *(f"{side}_{axis}" for side in ("min", "max") for axis in _XYZ),
    *(f"{side}_scale_{axis}" for side in ("min", "max") for axis in _XYZ),
    *(f"{side}_{channel}" for side in ("min", "max") for channel in _RGB),
]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_REACH = 4.0  # half the asset's extent, that a stray may be away, or it would spoil the 255 others of its chunk


def write_compressed_ply(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "rdf", metadata: Metadata | None = None
) -> None:
    """Write a compressed PLY; the header has the metadata as one comment of less than 1 kB, long texts shortened.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`.
    """
    rows = usable_rows(splats, path)
    rows = rows[morton_order(splats.means[rows])]
    centre, _, reach = extent(splats, rows, _REACH, path)
    rest = 3 * splats.shN.shape[1]
    chunks, vertices, harmonics = [], [], []
    for world in blocks(splats, rows, "gltf"):
        g = held(world, centre, reach)
        g = turn_x180(g) if frame == "rdf" else g
        rgb = sh0_to_rgb(g.sh0[:, 0]).clip(*COLOURS)
        bounds, units = zip(*(_normalize(values) for values in (g.means, g.scales, rgb)), strict=True)
        chunks.append(np.concatenate([side for pair in bounds for side in pair], axis=1))
        place, three = smallest_three(g.quats)
        a, b, c = _quantize(three * np.sqrt(0.5) + 0.5, 10).T
        rotation = place << 30 | a << 20 | b << 10 | c
        (x, y, z), (sx, sy, sz) = (_quantize(unit, np.array([11, 10, 11])).T for unit in units[:2])
        red, green, blue = _quantize(units[2], 8).T
        color = red << 24 | green << 16 | blue << 8 | _quantize(sigmoid(g), 8)
        columns = (x << 21 | y << 11 | z, rotation, sx << 21 | sy << 11 | sz, color)
        vertices.append(np.stack(columns, axis=1).astype("<u4"))
        channel_major = g.shN.swapaxes(1, 2).reshape(len(g), rest)
        harmonics.append(np.clip(np.trunc((channel_major / 8 + 0.5) * 256), 0, 255).astype("u1"))
    elements = {
        "chunk": (-(-len(rows) // CHUNK), dict.fromkeys(_BOUNDS, "float")),
        "vertex": (len(rows), dict.fromkeys(_PACKED, "uint")),
    }
    if rest:
        elements["sh"] = (len(rows), {f"f_rest_{i}": "uchar" for i in range(rest)})
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(make_ply_header(elements, metadata, splats.mode))
        for part in (*(chunk.astype("<f4") for chunk in chunks), *vertices, *harmonics):
            file.write(part.tobytes())


def read_compressed_ply(
    path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read a compressed PLY, also the early kind whose colours have no bounds.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`.
    """
    header = read_ply_header(path)
    elements = header.elements
    count, packed = elements.get("vertex", (0, {}))
    chunk_count, bounds = elements.get("chunk", (0, {}))
    sh_count, rest = elements.get("sh", (count, {}))
    if (
        any(bounds.get(name) != "f4" for name in _BOUNDS[:12])
        or any(packed.get(name) != "u4" for name in _PACKED)
        or chunk_count < -(-count // CHUNK)
        or sh_count != count
        or list(rest.items()) != [(f"f_rest_{i}", "u1") for i in range(len(rest))]
        or len(rest) not in (0, 9, 24, 45)
    ):
        raise FormatError(
            f"{path} is not a compressed PLY: expected the elements chunk, vertex and sh of the PlayCanvas layout, "
            "received others. Export it again, or name a 3DGS PLY .ply."
        )
    check_unpacked(path, count, round((len(rest) / 3 + 1) ** 0.5) - 1, os.path.getsize(path), large)
    names = [name for name in _BOUNDS if bounds.get(name) == "f4"]
    if len(names) != len(_BOUNDS):
        names = _BOUNDS[:12]
    loaded = (columns(block, names) for block in read_ply_blocks(path, header, "chunk"))
    with np.errstate(invalid="ignore"):
        chunks = np.concatenate([np.zeros((0, len(names))), *loaded])

    def parts() -> Iterator[Splats]:
        vertices = read_ply_blocks(path, header, "vertex")
        harmonics = read_ply_blocks(path, header, "sh") if rest else itertools.repeat(None)
        for (begin, end), block, sh in zip(ranges(count), vertices, harmonics, strict=False):
            n, bound = end - begin, chunks[begin // CHUNK : -(-end // CHUNK)]
            low_high = bound.repeat(CHUNK, axis=0)[:n].reshape(n, -1, 2, 3)
            position, rotation, scale, color = (block[name].astype(np.uint32) for name in _PACKED)
            rgba = _unpack(color, 8, 8, 8, 8)
            rgb = _expand(rgba[:, :3], low_high[:, 2]) if len(names) > 12 else rgba[:, :3]
            three = (_unpack(rotation << 2, 10, 10, 10) - 0.5) * np.sqrt(2)
            steps = np.zeros((n, 0), np.uint8) if sh is None else columns(sh, rest)
            yield Splats(
                means=_expand(_unpack(position, 11, 10, 11), low_high[:, 0]),
                quats=from_smallest_three(rotation >> 30, three),
                scales=_expand(_unpack(scale, 11, 10, 11), low_high[:, 1]),
                opacities=byte_logit(color & 255),
                sh0=((rgb - 0.5) / SH_C0)[:, None],
                shN=_COEFFICIENTS[steps].reshape(n, 3, len(rest) // 3).swapaxes(1, 2),
            )

    found = gather(parts(), count, path, frame, lenient, stored_mode(header))
    say_rest(path, header)
    return found


def _normalize(values: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Bounds of each chunk, [C, 3] each, and the values within them, in [0, 1]."""
    starts = np.arange(0, len(values), CHUNK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    below, size = (side.repeat(CHUNK, axis=0)[: len(values)] for side in (low, high - low))
    return (low, high), (values - below) / np.where(size > 0, size, 1)


def _expand(unit: np.ndarray, low_high: np.ndarray) -> np.ndarray:
    low, high = low_high[:, 0], low_high[:, 1]
    with np.errstate(invalid="ignore", over="ignore"):
        return low + unit * (high - low)


def _quantize(unit: np.ndarray, bits: int | np.ndarray) -> np.ndarray:
    """[0, 1] to integers of so many bits."""
    top = 2**bits - 1
    return np.clip(np.floor(unit * top + 0.5), 0, top).astype(np.int64)


def _unpack(packed: np.ndarray, *bits: int) -> np.ndarray:
    """Fields of unsigned 32-bit integers from the top down, each over [0, 1]."""
    shifts = 32 - np.cumsum(bits)
    masks = np.array([2**b - 1 for b in bits], np.uint32)
    return (packed[:, None] >> shifts.astype(np.uint32) & masks) / masks.astype(np.float64)
