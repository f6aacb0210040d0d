"""SPZ of Niantic (github.com/nianticlabs/spz): about 20 bytes per Gaussian with harmonics of degree 3.

One stream per attribute: positions (24-bit fixed point), opacities, colours, log scales, rotations
(smallest three of xyzw, 10 bits each) and harmonics (basis-major, a byte each over [-1, 1)). Version 3
is a gzip of a 16-byte header and the streams, version 4 a plain 32-byte header, a table of contents
and one zstd frame per stream. Version 3 is what viewers read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from psd_gs.errors import FormatError, InputError
from psd_gs.export.blocks import (
    MAX_RATIO,
    blocks,
    damaged,
    gather,
    logit,
    ranges,
    read_bytes,
    sigmoid,
    tensors,
    usable_rows,
)
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata
from psd_gs.export.quaternions import from_smallest_three, smallest_three
from psd_gs.files import atomic_path
from psd_gs.gaussians import Gaussians

_MAGIC = b"NGSP"
_HEADER, _HEADER_4 = struct.Struct("<4sIIBBBB"), struct.Struct("<4sIIBBBBI12x")
_ENTRY = struct.Struct("<QQ")
_GZIP_LEVEL = 6  # 9 takes twelve times as long for 4 % less
_ZSTD_LEVEL = 12  # upstream's
_MAX_FRACTION = 18  # bits below the point: 2e-6 of a unit, room for +-32 units
_COLOR_SCALE = 0.15
_SH_BITS = (5, 4)  # of degree 1 and of the others; upstream's


def write_spz(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    frame: Frame = "rdf",
    metadata: Metadata | None = None,
    version: Literal[3, 4] = 3,
) -> None:
    """Write an SPZ.

    Args:
        gaussians: what to write, in the world frame. Harmonics beyond +-1 are clipped.
        path: of the file; replaced in one step.
        frame: axes of the file. Upstream documents glTF's, but nearly all files hold the numbers of the PLY, and
            viewers turn them as they turn a PLY.
        metadata: ignored, the format has no place for it that all readers skip.
        version: of the format.

    Raises:
        InputError: no usable Gaussian is left, or one is more than 8 million units away.
        OutputError: the file cannot be written.
    """
    rows = usable_rows(gaussians, path)
    reach = float(gaussians.means.detach()[rows].abs().max())
    if reach >= 2**23 - 1:
        raise InputError(f"cannot write {path}: expected positions within 8e6 units, received {reach:.3g}. Scale it.")
    fraction = min(_MAX_FRACTION, int(np.floor(np.log2((2**23 - 1) / max(reach, 1e-9)))))
    encoded = [_encode(g, fraction) for g in blocks(gaussians, rows, frame)]
    streams: list[list[np.ndarray]] = [list(stream) for stream in zip(*encoded, strict=True)]
    if gaussians.shN.shape[1] == 0:
        streams.pop()
    fields = (_MAGIC, version, len(rows), gaussians.sh_degree, fraction, 0)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if version == 3:
            squeeze = zlib.compressobj(_GZIP_LEVEL, wbits=31)
            file.write(squeeze.compress(_HEADER.pack(*fields, 0)))
            for part in (part for stream in streams for part in stream):
                file.write(squeeze.compress(part.data))
            file.write(squeeze.flush())
        else:
            from zstandard import ZstdCompressor

            frames = [
                ZstdCompressor(_ZSTD_LEVEL).compress(b"".join(part.tobytes() for part in stream)) for stream in streams
            ]
            file.write(_HEADER_4.pack(*fields, len(streams), _HEADER_4.size))
            for squeezed, stream in zip(frames, streams, strict=True):
                file.write(_ENTRY.pack(len(squeezed), sum(part.nbytes for part in stream)))
            file.writelines(frames)


def _encode(g: Gaussians, fraction: int) -> tuple[np.ndarray, ...]:
    """The streams of a block as bytes, one row per Gaussian."""
    fixed = np.rint(g.means.numpy().astype(np.float64) * 2**fraction).astype("<i4")
    positions = fixed.view("u1").reshape(-1, 3, 4)[..., :3]
    place, three = smallest_three(g.quats.numpy()[:, [1, 2, 3, 0]])
    size = np.minimum(np.floor(np.abs(three) * (511 * np.sqrt(2)) + 0.5), 511).astype(np.uint32)
    ten = (three < 0).astype(np.uint32) << 9 | size
    rotations = place.astype(np.uint32) << 30 | ten[:, 0] << 20 | ten[:, 1] << 10 | ten[:, 2]
    bucket = np.array([2 ** (8 - _SH_BITS[k >= 3]) for k in range(g.shN.shape[1])])[:, None]
    harmonics = (np.rint(g.shN.numpy() * 128) + 128 + bucket // 2) // bucket * bucket
    return (
        np.ascontiguousarray(positions),
        _byte(sigmoid(g) * 255),
        _byte(g.sh0.numpy() * (_COLOR_SCALE * 255) + 127.5),
        _byte((g.scales.numpy() + 10) * 16),
        rotations.astype("<u4"),
        _byte(harmonics),
    )


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype("u1")


def read_spz(path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False) -> Gaussians:
    """Read an SPZ of version 1 to 4; harmonics above degree 3 are left out, unknown extensions skipped.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

    Raises:
        FormatError: another kind of file, a damaged or truncated one, or one with non-finite values.
        InputError: the file cannot be opened.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        version, count, degree, fraction, streams = _unpack_gzip(data, path)
    elif data[:4] == _MAGIC:
        version, count, degree, fraction, streams = _unpack_zstd(data, path)
    else:
        raise FormatError(
            f"{path} is not an SPZ: expected gzip or 'NGSP' at its beginning, received {data[:4]!r}. "
            "Check the extension of the file."
        )
    positions, alphas, colors, scales, rotations, harmonics = streams
    kept = (min(degree, 3) + 1) ** 2 - 1

    def parts() -> Iterator[Gaussians]:
        for begin, end in ranges(count):
            with np.errstate(over="ignore"):
                means = _decode_positions(positions[begin:end], version) / 2.0 ** (fraction if version > 1 else 0)
            yield tensors(
                means=means,
                quats=_decode_rotations(rotations[begin:end], version),
                scales=scales[begin:end] / 16.0 - 10,
                opacities=logit(alphas[begin:end, 0] / 255),
                sh0=(colors[begin:end] / 255 - 0.5) / _COLOR_SCALE,
                shN=(harmonics[begin:end].reshape(end - begin, -1, 3)[:, :kept] - 128.0) / 128,
            )

    return gather(parts(), count, path, frame, lenient)


def _widths(version: int, degree: int) -> list[int]:
    """Bytes per Gaussian of each stream."""
    return [6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * ((degree + 1) ** 2 - 1)]


_Unpacked = tuple[int, int, int, int, list[np.ndarray]]


def _unpack_gzip(data: bytes, path: str | os.PathLike[str]) -> _Unpacked:
    inflate = zlib.decompressobj(wbits=31)
    try:
        head = inflate.decompress(data, _HEADER.size)
        if len(head) < _HEADER.size:
            raise damaged(path, "no whole SPZ header")
        magic, version, count, degree, fraction, _, _ = _HEADER.unpack(head)
        _check(path, magic, version, (1, 2, 3), degree, fraction)
        widths = _widths(version, degree)
        size = count * sum(widths)
        _check_size(path, count, size, len(data))
        body = inflate.decompress(inflate.unconsumed_tail, size + 1)
        if not inflate.eof:
            body += inflate.flush(1)
    except zlib.error as error:
        raise damaged(path, f"damaged gzip data ({error})") from error
    if len(body) != size or not inflate.eof:
        raise damaged(path, f"expected {size} bytes of {count} Gaussians, received {len(body)}")
    return version, count, degree, fraction, _split(body, count, widths)


def _unpack_zstd(data: bytes, path: str | os.PathLike[str]) -> _Unpacked:
    from zstandard import ZstdDecompressor, ZstdError

    if len(data) < _HEADER_4.size:
        raise damaged(path, "no whole SPZ header")
    magic, version, count, degree, fraction, _, number, begin = _HEADER_4.unpack_from(data)
    _check(path, magic, version, (4,), degree, fraction)
    widths = _widths(version, degree)
    _check_size(path, count, count * sum(widths), len(data))
    expected = [count * width for width in widths if width]
    place = begin + number * _ENTRY.size
    if number != len(expected) or place > len(data):
        raise damaged(path, f"expected {len(expected)} streams, received {number}")
    entries = list(_ENTRY.iter_unpack(data[begin:place]))
    if [size for _, size in entries] != expected:
        raise damaged(path, f"streams that do not fit {count} Gaussians")
    streams = []
    for squeezed, size in entries:
        try:
            # A reader, because it stops at the promised size whatever the frame says of itself.
            with ZstdDecompressor().stream_reader(data[place : place + squeezed]) as reader:
                streams.append(reader.read(size + 1))
        except ZstdError as error:
            raise damaged(path, f"damaged zstd data ({error})") from error
        place += squeezed
    if [len(stream) for stream in streams] != expected:
        raise damaged(path, "a stream of another size than promised")
    return version, count, degree, fraction, _split(b"".join(streams), count, widths)


def _check(
    path: str | os.PathLike[str], magic: bytes, version: int, known: Sequence[int], degree: int, fraction: int
) -> None:
    if magic != _MAGIC or version not in known:
        raise FormatError(
            f"{path}: expected an SPZ of version 1 to 4, received {magic!r} version {version}. "
            "Export it again as version 3."
        )
    if degree > 4 or fraction > 23:
        raise damaged(
            path, f"expected an SH degree up to 4 and up to 23 fractional bits, received {degree}, {fraction}"
        )


def _check_size(path: str | os.PathLike[str], count: int, size: int, length: int) -> None:
    if size > MAX_RATIO * length:
        raise damaged(path, f"it promises {count} Gaussians in {length} bytes")


def _split(body: bytes, count: int, widths: list[int]) -> list[np.ndarray]:
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
