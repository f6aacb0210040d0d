"""SOG, version 2, of the PlayCanvas tools: a zip of lossless WebP pictures with one texel per Gaussian.

Gaussians are sorted along a Z-curve and fill the pictures row by row. Positions take 16 bits per axis
of ``sign(v) log(1 + |v|)``, in two pictures; rotations the three smaller components of wxyz; scales and
colours indices into codebooks of 256 values; harmonics an index into a palette of at most 65536
vectors, whose elements again are indices into a codebook. ``meta.json`` holds bounds and codebooks.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from psd_gs import __version__
from psd_gs.errors import FormatError
from psd_gs.export.blocks import (
    MAX_RATIO,
    blocks,
    damaged,
    gather,
    logit,
    morton_order,
    ranges,
    read_bytes,
    sigmoid,
    tensors,
    usable_rows,
)
from psd_gs.export.codebooks import codebook, nearest_code, palette
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.export.quaternions import from_smallest_three, smallest_three
from psd_gs.files import atomic_path
from psd_gs.gaussians import Gaussians

_PALETTE = 1 << 16  # labels have 16 bits
_ACROSS = 64  # palette entries in a row of the picture of centroids
_META_LIMIT = 1 << 24
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, ValueError, SyntaxError, OverflowError, IndexError, AttributeError),
)
"""What zipfile, Pillow and a wrong ``meta.json`` raise."""


def write_sog(
    gaussians: Gaussians, path: str | os.PathLike[str], *, frame: Frame = "rdf", metadata: Metadata | None = None
) -> None:
    """Write a SOG.

    Args:
        gaussians: what to write, in the world frame. Up to 65536 of them keep their own harmonics; of more, similar
            ones share.
        path: of the file; replaced in one step.
        frame: axes of the file.
        metadata: goes into ``asset.psd_gs`` of ``meta.json``.

    Raises:
        InputError: no usable Gaussian is left.
        OutputError: the file cannot be written.
    """
    rows = usable_rows(gaussians, path)
    rows = rows[morton_order(gaussians.means.detach()[rows])]
    columns = zip(*(_columns(g) for g in blocks(gaussians, rows, frame)), strict=True)
    means, quats, scales, opacities, sh0, shN = (np.concatenate(column) for column in columns)
    low, high = means.min(axis=0), means.max(axis=0)
    fixed = np.rint((means - low) / np.maximum(high - low, 1e-12) * 65535).astype(np.uint16)
    pictures = {"means_l": fixed & 255, "means_u": fixed >> 8, "quats": quats}
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"psd-gs {__version__}"},
        "count": len(rows),
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
    }
    if metadata is not None:
        meta["asset"]["psd_gs"] = jsonable(metadata)
    for name, values in (("scales", scales), ("sh0", sh0)):
        codes = codebook(values)
        pictures[name] = nearest_code(codes, values).astype(np.uint8)
        meta[name] = {"codebook": codes.tolist(), "files": [f"{name}.webp"]}
    pictures["sh0"] = np.concatenate([pictures["sh0"], opacities], axis=1)
    across = 4 * math.ceil(math.sqrt(len(rows)) / 4)
    down = 4 * math.ceil(len(rows) / across / 4)
    files = {name: _webp(texels, across, down) for name, texels in pictures.items()}
    if shN.shape[1]:
        centroids, labels = palette(shN.reshape(len(shN), -1), _PALETTE)
        codes = codebook(centroids)
        texels = nearest_code(codes, centroids).astype(np.uint8).reshape(-1, 3)
        files["shN_centroids"] = _webp(texels, _ACROSS * shN.shape[1], math.ceil(len(centroids) / _ACROSS))
        files["shN_labels"] = _webp(np.stack([labels & 255, labels >> 8, 0 * labels], axis=1), across, down)
        meta["shN"] = {
            "count": len(centroids),
            "bands": gaussians.sh_degree,
            "codebook": codes.tolist(),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # A fixed date, so that the same asset gives the same bytes.
        archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta, separators=(",", ":"), allow_nan=False))
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), data)


def _columns(g: Gaussians) -> tuple[np.ndarray, ...]:
    """Logarithmic positions, rotations as bytes, log scales, opacities as bytes, colours and harmonics."""
    means = g.means.numpy().astype(np.float64)
    place, three = smallest_three(g.quats.numpy())
    quats = np.concatenate([np.rint(255 * (three * np.sqrt(0.5) + 0.5)), 252 + place[:, None]], axis=1)
    opacities = np.rint(sigmoid(g)[:, None] * 255).astype(np.uint8)
    return (
        np.sign(means) * np.log1p(np.abs(means)),
        quats.clip(0, 255).astype(np.uint8),
        g.scales.numpy(),
        opacities,
        g.sh0[:, 0].numpy(),
        g.shN.numpy(),
    )


def _webp(texels: np.ndarray, width: int, height: int) -> bytes:
    """Rows of three or four bytes as a lossless picture, padded with zeros."""
    from PIL import Image

    picture = np.zeros((width * height, 4), np.uint8)
    picture[:, 3] = 255
    picture[: len(texels), : texels.shape[1]] = texels
    out = io.BytesIO()
    # Without exact, colours under zero alpha are rewritten.
    Image.fromarray(picture.reshape(height, width, 4)).save(out, "WEBP", lossless=True, exact=True, quality=50)
    return out.getvalue()


def read_sog(path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False) -> Gaussians:
    """Read a SOG of version 2.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

    Raises:
        FormatError: another kind of file, a damaged or truncated one, or one with non-finite values.
        InputError: the file cannot be opened.
    """
    from PIL import Image

    data = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            meta = _read_meta(archive)
            if meta.get("version") != 2:
                raise FormatError(
                    f"{path}: expected a SOG of version 2, received version {meta.get('version')!r}. "
                    "Convert it with the tool that wrote it."
                )
            count = meta["count"]
            if type(count) is not int or count < 1 or 20 * count > MAX_RATIO * len(data):
                raise damaged(path, f"it promises {count!r} Gaussians in {len(data)} bytes")
            decoded = _decode(archive, meta, count, 20 * len(data))
    except FormatError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise damaged(path, f"no sound SOG archive ({reason[:100]})") from error
    return gather(decoded, count, path, frame, lenient)


def _read_meta(archive: zipfile.ZipFile) -> dict[str, Any]:
    with archive.open("meta.json") as file:
        meta = json.loads(file.read(_META_LIMIT))
    if not isinstance(meta, dict):
        raise ValueError("meta.json is no object")
    return meta


def _decode(archive: zipfile.ZipFile, meta: dict[str, Any], count: int, limit: int) -> Iterator[Gaussians]:
    """Reads and checks everything; the blocks that it returns are made as they are taken."""

    def picture(section: str, i: int, rows: int = count, width: int | None = None) -> np.ndarray:
        return _texels(archive, meta[section]["files"][i], rows, width, limit)

    def codes(section: str) -> np.ndarray:
        values = np.asarray(meta[section]["codebook"], np.float64)
        if values.ndim != 1 or len(values) > 256:
            raise ValueError(f"a codebook of shape {values.shape}")
        return np.concatenate([values, np.full(256 - len(values), np.nan)])  # what is missing makes rows unusable

    low, high = (np.asarray(meta["means"][name], np.float64).reshape(3) for name in ("mins", "maxs"))
    means_l, means_u, quats = picture("means", 0), picture("means", 1), picture("quats", 0)
    scales, sh0 = picture("scales", 0), picture("sh0", 0)
    scale_codes, color_codes = codes("scales"), codes("sh0")
    harmonics, labels = np.zeros((1, 0, 3)), np.zeros(count, np.int64)
    if "shN" in meta:
        size, bands = int(meta["shN"]["count"]), int(meta["shN"]["bands"])
        if not (1 <= size <= _PALETTE and 1 <= bands <= 3):
            raise ValueError(f"a palette of {size} entries of degree {bands}")
        k = (bands + 1) ** 2 - 1
        rows = math.ceil(size / _ACROSS) * _ACROSS * k
        texels = picture("shN", 0, rows, _ACROSS * k)
        harmonics = codes("shN")[texels[: size * k, :3]].reshape(size, k, 3)
        rg = picture("shN", 1).astype(np.int64)
        labels = rg[:, 0] | rg[:, 1] << 8
        if labels.max() >= size:
            raise ValueError("a label beyond the palette")

    def parts() -> Iterator[Gaussians]:
        for begin, end in ranges(count):
            block = slice(begin, end)
            fixed = means_l[block, :3] + means_u[block, :3].astype(np.float64) * 256
            with np.errstate(over="ignore", invalid="ignore"):
                log_means = low + fixed / 65535 * (high - low)
                means = np.sign(log_means) * np.expm1(np.abs(log_means))
            place = quats[block, 3].astype(np.int64) - 252
            three = (quats[block, :3] / 255 - 0.5) * np.sqrt(2)
            three[place < 0] = np.nan
            yield tensors(
                means=means,
                quats=from_smallest_three(np.maximum(place, 0), three),
                scales=scale_codes[scales[block, :3]],
                opacities=logit(sh0[block, 3] / 255),
                sh0=color_codes[sh0[block, :3]],
                shN=harmonics[labels[block]],
            )

    return parts()


def _texels(archive: zipfile.ZipFile, name: str, rows: int, width: int | None, limit: int) -> np.ndarray:
    """The first ``rows`` texels of a picture as bytes [rows, 4]."""
    from PIL import Image

    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} unpacks to an absurd size")
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        across, down = image.size
        if not rows <= across * down <= 2 * rows + 4096 or width not in (None, across):
            raise ValueError(f"{name} has {across}x{down} texels for {rows}")
        return np.asarray(image.convert("RGBA")).reshape(-1, 4)[:rows]


def read_sog_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_sog` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            found = _read_meta(archive)["asset"]["psd_gs"]
    except _UNREADABLE:
        return None
    return found if isinstance(found, dict) else None
