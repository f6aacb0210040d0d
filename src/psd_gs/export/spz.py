"""SPZ of Niantic (github.com/nianticlabs/spz): about 20 bytes per Gaussian with harmonics of degree 3.

One stream per attribute: positions (24-bit fixed point), opacities, colours, log scales, rotations
(smallest three of xyzw, 10 bits each) and harmonics (basis-major, a byte each over [-1, 1)). Version 3
is a gzip of a 16-byte header and the streams, which some leave unpacked, version 4 a plain 32-byte header, a table of
contents and one zstd frame per stream. Version 3 is what viewers read. Records of extensions follow the streams, or in
version 4 the header; one of them names the axes.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

import numpy as np

from psd_gs.errors import FormatError, UnsupportedError
from psd_gs.export.blocks import (
    blocks,
    byte_logit,
    check_unpacked,
    damaged,
    extent,
    gather,
    held,
    read_bytes,
    say_surplus,
    sigmoid,
    usable_rows,
)
from psd_gs.export.frames import Frame, median, nth, robust_box, transform, turn_x180
from psd_gs.export.metadata import Metadata
from psd_gs.export.packed import Gunzip, gzipped
from psd_gs.export.quaternions import from_smallest_three, smallest_three
from psd_gs.files import atomic_path
from psd_gs.splats import RenderMode, Splats, ranges, scaled

if TYPE_CHECKING:
    from jaxtyping import Float

logger = logging.getLogger(__name__)

_MAGIC, _GZIP = b"NGSP", b"\x1f\x8b"
_UNPACKED_VERSIONS = tuple(version.to_bytes(4, "little") for version in (1, 2, 3))
_HEADER, _HEADER_4 = struct.Struct("<4sIIBBBB"), struct.Struct("<4sIIBBBBI12x")
_ENTRY = struct.Struct("<QQ")
_RECORD = struct.Struct("<II")
_ANTIALIASED, _EXTENSIONS = 1, 2  # flags of the header
_COORDINATE_SYSTEM = 0xADBE0003
_SYSTEMS = (
    *("LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF"),
    *("LBD", "RBD", "LBU", "RBU", "LFD", "RFD", "LFU", "RFU"),
)
"""Directions of x, y and z by the number, from 1, that the record of the coordinate system holds."""
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "U": (0, 1, 0), "D": (0, -1, 0), "B": (0, 0, 1), "F": (0, 0, -1)}
_GZIP_LEVEL = 6  # 9 takes twelve times as long for 4 % less
_ZSTD_LEVEL = 12  # upstream's
_FRACTION, _MAX_FRACTION = 18, 23  # bits below the point: 18 are 2e-6 of a unit, with room for +-32 units
_LARGEST = 2**23 - 1
_LOG_SCALES = (-10.0, 5.9)
_LARGEST_SCALE = 255 / 16 - 10
"""Logarithm of the largest axis that a byte holds."""
_REACH = 32.0  # half the asset's extent, that a stray may be away
_MOST_TRAILING = 1 << 20  # bytes of records
_COLOR_SCALE = 0.15
_SH_BITS = (5, 4)  # of degree 1 and of the others; upstream's
_COEFFICIENTS = ((np.arange(256) - 128) / 128).astype(np.float32)
"""Of the harmonics, by their bytes."""


def write_spz(
    splats: Splats,
    path: str | os.PathLike[str],
    *,
    frame: Frame = "rdf",
    metadata: Metadata | None = None,
    version: Literal[3, 4] = 3,
) -> None:
    """Write an SPZ.

    Args:
        splats: what to write, in the world frame. Harmonics beyond +-1 are clipped. An asset that is too small or
            too large for the format is written in other units, see :func:`spz_unit`, which is logged.
        path: of the file; replaced in one step.
        frame: axes of the file. Upstream documents glTF's, but nearly all files hold the numbers of the PLY, and
            viewers turn them as they turn a PLY.
        metadata: ignored, the format has no place for it that all readers skip.
        version: of the format.

    Raises:
        InputError: no usable Gaussian is left.
        OutputError: the file cannot be written.
    """
    parts = spz_parts(splats, path, frame=frame, version=version)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


def spz_parts(
    splats: Splats, name: str | os.PathLike[str], *, frame: Frame = "rdf", version: Literal[3, 4] = 3
) -> Iterator[bytes]:
    """What :func:`write_spz` writes.

    Args:
        splats: what to write, in the world frame.
        name: of the asset, for messages.
        frame: axes of the numbers.
        version: of the format.

    Raises:
        InputError: no usable Gaussian is left.
    """
    rows = usable_rows(splats, name)
    centre, half, reach = extent(splats, rows, _REACH, name)
    unit = spz_unit(splats)
    if unit != 1:
        logger.warning(
            "%s: one unit of the file is %g of the asset, for SPZ holds no Gaussians below %.2g or above %.3g units",
            name, unit, *map(math.exp, _LOG_SCALES),
        )  # fmt: skip
    reach = min(reach, _LARGEST * unit - float(np.abs(centre).max()))
    means = splats.means[rows]
    fraction = _fraction_bits(means / unit, centre / unit, half / unit, reach / unit)
    widths = _widths(version, splats.sh_degree)
    body = np.empty(len(rows) * sum(widths), np.uint8)
    streams = _split(body, len(rows), widths)
    done = cut = 0
    for block in blocks(splats, rows, "gltf"):
        g = scaled(held(block, centre, reach), 1 / unit)
        cut += int((reduce(np.maximum, g.scales.T) > _LARGEST_SCALE + 1 / 32).sum())
        part = slice(done, done + len(g))
        for stream, values in zip(streams, _encode(turn_x180(g) if frame == "rdf" else g, fraction), strict=True):
            stream[part] = values.view(np.uint8).reshape(stream[part].shape)
        done += len(g)
    if cut:
        largest = unit * math.exp(_LARGEST_SCALE)
        logger.warning("%s: %d Gaussians are larger than SPZ holds, and end at %.3g", name, cut, largest)
    flags = _ANTIALIASED if splats.mode == "antialiased" else 0
    fields = (_MAGIC, version, len(rows), splats.sh_degree, fraction, flags)
    if version == 3:
        yield from gzipped(_HEADER.pack(*fields, 0) + body.tobytes(), _GZIP_LEVEL)
        return
    from zstandard import ZstdCompressor

    streams = [stream for stream in streams if stream.size]
    frames = [ZstdCompressor(_ZSTD_LEVEL).compress(stream.data) for stream in streams]
    yield _HEADER_4.pack(*fields, len(streams), _HEADER_4.size)
    for squeezed, stream in zip(frames, streams, strict=True):
        yield _ENTRY.pack(len(squeezed), stream.nbytes)
    yield from frames


def spz_unit(splats: Splats) -> float:
    """The unit of an SPZ of this asset, in units of the asset: a power of 16, and 1 wherever the format can hold the
    sizes and positions as they are.

    It does not if the second axis of the median Gaussian is near e^-10 units or the largest of every tenth beyond
    e^5.9, the limits of the format, or if the asset is wider than 8 million units.
    """
    good = splats.usable
    if not good.any():
        return 1.0
    axes = np.sort(splats.scales[good], axis=1)
    small = float(median(axes[:, 1])) - math.log(2) - _LOG_SCALES[0]
    big = float(nth(axes[:, 2], round(0.9 * (len(axes) - 1)))) - _LOG_SCALES[1]
    steps = math.floor(small / math.log(16)) if small < 0 else math.ceil(max(big, 0) / math.log(16))
    far = float(np.abs(robust_box(splats.means[good])).max())
    while far / 16.0**steps > _LARGEST:
        steps += 1
    return 16.0 ** max(steps, -8)


def _fraction_bits(means: Float[np.ndarray, "N 3"], centre: Float[np.ndarray, " 3"], half: float, reach: float) -> int:
    """As many bits below the point as hold the asset and its strays where :func:`held` leaves them; 18 for
    assets of usual size, more for small ones. Lengths are in units of the file."""
    inside = reduce(np.maximum, np.abs(means - centre).T) <= reach
    far = float(np.abs(means[inside]).max())
    if not inside.all():
        far = max(far, float(np.abs(centre).max()) + reach)
    wanted = _FRACTION + max(0, math.ceil(-math.log2(8 * half)))
    return max(0, min(wanted, _MAX_FRACTION, math.floor(math.log2(_LARGEST / max(far, 1e-9)))))


def _encode(g: Splats, fraction: int) -> tuple[np.ndarray, ...]:
    """The streams of a block as bytes, one row per Gaussian."""
    fixed = np.rint(g.means.astype(np.float64) * 2**fraction).clip(-_LARGEST, _LARGEST).astype("<i4")
    positions = fixed.view("u1").reshape(-1, 3, 4)[..., :3]
    place, three = smallest_three(g.quats[:, [1, 2, 3, 0]])
    size = np.minimum(np.floor(np.abs(three) * (511 * np.sqrt(2)) + 0.5), 511).astype(np.uint32)
    ten = (three < 0).astype(np.uint32) << 9 | size
    rotations = place.astype(np.uint32) << 30 | ten[:, 0] << 20 | ten[:, 1] << 10 | ten[:, 2]
    bucket = np.array([2 ** (8 - _SH_BITS[k >= 3]) for k in range(g.shN.shape[1])], np.int16)[:, None]
    steps = np.rint(np.clip(g.shN, -2, 2) * 128).astype(np.int16)  # one is the end
    harmonics = ((steps + 128 + bucket // 2) & -bucket).clip(0, 255).astype("u1")
    return (
        np.ascontiguousarray(positions),
        _byte(sigmoid(g) * 255),
        _byte(g.sh0 * (_COLOR_SCALE * 255) + 127.5),
        _byte((g.scales + 10) * 16),
        rotations.astype("<u4"),
        harmonics,
    )


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype("u1")


def read_spz(
    path: str | os.PathLike[str], *, frame: Frame | None = None, lenient: bool = False, large: bool = False
) -> Splats:
    """Read an SPZ of version 1 to 4; harmonics above degree 3 and unknown extensions are left out.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`; without a ``frame`` the file's
    record of its coordinate system counts, else ``rdf``.
    """
    unpacked = unpack_spz(read_bytes(path), path, large)
    if frame is None and unpacked.world is not None:
        moved = (transform(block, unpacked.world) for block in unpacked.blocks())
        return gather(moved, unpacked.count, path, "gltf", lenient, unpacked.mode)
    return gather(unpacked.blocks(), unpacked.count, path, frame or "rdf", lenient, unpacked.mode)


@dataclass(frozen=True)
class Unpacked:
    """An SPZ, decompressed.

    Attributes:
        version: of the format.
        count: Gaussians.
        degree: of the harmonics in the file.
        fraction: bits below the point.
        streams: one byte table [count, width] per attribute.
        mode: of rendering.
        world: from the axes of the file to those of the world, if it names its own.
    """

    version: int
    count: int
    degree: int
    fraction: int
    streams: list[np.ndarray]
    mode: RenderMode
    world: Float[np.ndarray, "4 4"] | None

    def blocks(self) -> Iterator[Splats]:
        """The Gaussians in the axes of the file, with harmonics of at most degree 3."""
        positions, alphas, colors, scales, rotations, harmonics = self.streams
        kept = (min(self.degree, 3) + 1) ** 2 - 1
        for begin, end in ranges(self.count):
            with np.errstate(over="ignore"):
                fixed = _decode_positions(positions[begin:end], self.version)
            yield Splats(
                means=fixed / 2.0 ** (self.fraction if self.version > 1 else 0),
                quats=_decode_rotations(rotations[begin:end], self.version),
                scales=scales[begin:end] / 16.0 - 10,
                opacities=byte_logit(alphas[begin:end, 0]),
                sh0=((colors[begin:end] / 255 - 0.5) / _COLOR_SCALE)[:, None],
                shN=_COEFFICIENTS[harmonics[begin:end].reshape(end - begin, -1, 3)[:, :kept]],
            )


def unpack_spz(data: bytes, path: str | os.PathLike[str], large: bool = False) -> Unpacked:
    """Decompress an SPZ; :meth:`Unpacked.blocks` decodes what is in it.

    Args:
        data: of the file.
        path: of the file, for messages.
        large: unpack it whatever it becomes in memory.

    Raises:
        FormatError: another kind of file, or a damaged or truncated one.
    """
    if data.startswith(_GZIP) or (data.startswith(_MAGIC) and data[4:8] in _UNPACKED_VERSIONS):
        head, count, degree, streams, records = _unpack_gzip(data, path, large)
    elif data.startswith(_MAGIC):
        head, count, degree, streams, records = _unpack_zstd(data, path, large)
    else:
        raise FormatError(
            f"{path} is not an SPZ: expected gzip or 'NGSP' at its beginning, received {data[:4]!r}. "
            "Check the extension of the file."
        )
    version, fraction, flags = head
    if degree > 3:
        logger.warning("%s: spherical harmonics of degree 4 are left out", path)
    mode: RenderMode = "antialiased" if flags & _ANTIALIASED else "default"
    world = None
    if flags & _EXTENSIONS:
        world, records = _world(path, records)
    say_surplus(path, len(records), f"{count} Gaussians")
    return Unpacked(version, count, degree, fraction, streams, mode, world)


def _world(path: str | os.PathLike[str], records: bytes) -> tuple[Float[np.ndarray, "4 4"] | None, bytes]:
    """What the records of extensions say of the axes, and what is behind them; others are skipped and logged.

    Raises:
        FormatError: a record goes beyond its place, or names no axes.
    """
    found, place = None, 0
    while place + _RECORD.size <= len(records):
        kind, length = _RECORD.unpack_from(records, place)
        payload = records[place + _RECORD.size : place + _RECORD.size + length]
        place += _RECORD.size + length
        if len(payload) < length or (kind == _COORDINATE_SYSTEM and length < 4):
            raise damaged(path, f"a record of an extension of {length} bytes where there are {len(payload)}")
        if kind != _COORDINATE_SYSTEM:
            logger.warning("%s: the extension 0x%08X (%d bytes) is not kept", path, kind, length)
            continue
        number = int.from_bytes(payload[:4], "little")
        if number > len(_SYSTEMS):
            raise damaged(path, f"expected a coordinate system from 0 to {len(_SYSTEMS)}, received {number}")
        axes = _SYSTEMS[number - 1] if number else "RUB"
        found = np.eye(4)
        found[:3, :3] = np.array([_DIRECTIONS[axis] for axis in axes]).T
    return found, records[place:]


def _widths(version: int, degree: int) -> list[int]:
    """Bytes per Gaussian of each stream."""
    return [6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * ((degree + 1) ** 2 - 1)]


_Parts = tuple[tuple[int, int, int], int, int, list[np.ndarray], bytes]
"""Version, fraction and flags; number; degree; streams; records of extensions."""


def _unpack_gzip(data: bytes, path: str | os.PathLike[str], large: bool) -> _Parts:
    """Of version 1 to 3, packed or not."""
    stream = Gunzip(data) if data.startswith(_GZIP) else io.BytesIO(data)
    try:
        head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise damaged(path, "no whole SPZ header")
        magic, version, count, degree, fraction, flags, _ = _HEADER.unpack(head)
        _check(path, magic, version, (1, 2, 3), degree, fraction)
        widths = _widths(version, degree)
        size = count * sum(widths)
        check_unpacked(path, count, degree, len(data), large)
        body = stream.read(size + _MOST_TRAILING)
        whole = not stream.read(1)
    except zlib.error as error:
        raise damaged(path, f"damaged gzip data ({error})") from error
    if len(body) < size or not whole:
        received = f"{len(body)}" if whole else f"more than {len(body)}"
        raise damaged(path, f"expected {size} bytes of {count} Gaussians, received {received}")
    if isinstance(stream, Gunzip):
        say_surplus(path, stream.surplus, "the gzip stream")
    return (version, fraction, flags), count, degree, _split(body, count, widths), body[size:]


def _unpack_zstd(data: bytes, path: str | os.PathLike[str], large: bool) -> _Parts:
    from zstandard import ZstdDecompressor, ZstdError

    if len(data) < _HEADER_4.size:
        raise damaged(path, "no whole SPZ header")
    magic, version, count, degree, fraction, flags, number, begin = _HEADER_4.unpack_from(data)
    _check(path, magic, version, (4,), degree, fraction)
    widths = _widths(version, degree)
    check_unpacked(path, count, degree, len(data), large)
    expected = [count * width for width in widths if width]
    place = begin + number * _ENTRY.size
    if number != len(expected) or not _HEADER_4.size <= begin <= place <= len(data):
        raise damaged(path, f"expected {len(expected)} streams, received {number}")
    entries = list(_ENTRY.iter_unpack(data[begin:place]))
    if [size for _, size in entries] != expected:
        raise damaged(path, f"streams that do not fit {count} Gaussians")
    streams = []
    for squeezed, size in entries:
        try:
            # A reader, because it stops at the promised size whatever the frame says of itself.
            frames = data[place : place + squeezed]
            with ZstdDecompressor(max_window_size=1 << 27).stream_reader(frames, read_across_frames=True) as reader:
                streams.append(reader.read(size + 1))
        except ZstdError as error:
            raise damaged(path, f"damaged zstd data ({error})") from error
        place += squeezed
    if [len(stream) for stream in streams] != expected:
        raise damaged(path, "a stream of another size than promised")
    say_surplus(path, max(0, len(data) - place), "the last stream")
    return (version, fraction, flags), count, degree, _split(b"".join(streams), count, widths), data[32:begin]


def _check(
    path: str | os.PathLike[str], magic: bytes, version: int, known: Sequence[int], degree: int, fraction: int
) -> None:
    if magic != _MAGIC or version not in known:
        raise UnsupportedError(
            f"{path}: expected an SPZ of version 1 to 4, received {magic!r} version {version}. "
            "Export it again as version 3."
        )
    if degree > 4 or fraction > 30:
        raise damaged(
            path, f"expected an SH degree up to 4 and up to 30 fractional bits, received {degree}, {fraction}"
        )


def _split(body: bytes | np.ndarray, count: int, widths: list[int]) -> list[np.ndarray]:
    """One byte table [count, width] per stream."""
    ends = np.cumsum([count * width for width in widths])
    flat = np.frombuffer(body, np.uint8)
    return [flat[end - count * width : end].reshape(count, width) for end, width in zip(ends, widths, strict=True)]


def _decode_positions(data: np.ndarray, version: int) -> np.ndarray:
    if version == 1:
        return np.ascontiguousarray(data).view("<f2").astype(np.float64)
    wide = np.zeros((len(data), 3, 4), np.uint8)
    wide[..., 1:] = data.reshape(-1, 3, 3)  # the sign comes from the top byte
    return (wide.view("<i4")[..., 0] >> 8).astype(np.float64)


def _decode_rotations(data: np.ndarray, version: int) -> np.ndarray:
    if version < 3:
        xyz = data / 127.5 - 1
        w = np.sqrt(np.maximum(1 - (xyz**2).sum(axis=1, keepdims=True), 0))
        return np.concatenate([w, xyz], axis=1)
    packed = np.ascontiguousarray(data).view("<u4")
    fields = packed >> np.array([20, 10, 0], np.uint32) & 1023
    three = (fields & 511) / (511 * np.sqrt(2)) * np.where(fields >> 9, -1, 1)
    return from_smallest_three(packed[:, 0] >> 30, three)[:, [3, 0, 1, 2]]
