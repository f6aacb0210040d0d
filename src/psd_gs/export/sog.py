"""SOG of the PlayCanvas tools: lossless WebP pictures with one texel per Gaussian, in a zip or beside ``meta.json``.

Gaussians are sorted along a Z-curve and fill the pictures row by row. Positions take 16 bits per axis
of ``sign(v) log(1 + |v|)``, in two pictures; rotations the three smaller components of wxyz; scales and
colours indices into codebooks of 256 values; harmonics an index into a palette of at most 65536
vectors, whose elements again are indices into a codebook. ``meta.json`` holds bounds and codebooks. Version 1, which is
only read, has bounds in place of codebooks.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from psd_gs import __version__
from psd_gs.errors import FormatError, UnsupportedError
from psd_gs.export.blocks import (
    COLOURS,
    HARMONICS,
    blocks,
    byte_logit,
    check_unpacked,
    damaged,
    extent,
    gather,
    held,
    morton_order,
    open_file,
    read_bytes,
    sigmoid,
    usable_rows,
)
from psd_gs.export.codebooks import codebook, nearest_code, palette
from psd_gs.export.frames import Frame, turn_x180
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.export.packed import Zip
from psd_gs.export.quaternions import from_smallest_three, smallest_three
from psd_gs.export.texels import Pictures
from psd_gs.files import atomic_path, loads, read_bounded, short
from psd_gs.splats import RenderMode, Splats, ranges, rgb_to_sh0, sh0_to_rgb

META, STREAMED = "meta.json", "lod-meta.json"
_PALETTE = 1 << 16  # labels have 16 bits
_ACROSS = 64  # palette entries in a row of the picture of centroids
_META_LIMIT = 1 << 20
_REACH = 32.0  # half the asset's extent, that a stray may be away
_MODES: tuple[RenderMode, ...] = ("antialiased", "2dgs")
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, ValueError, SyntaxError, OverflowError, IndexError, AttributeError),
)
"""What zipfile, Pillow and a wrong ``meta.json`` raise."""


def write_sog(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "rdf", metadata: Metadata | None = None
) -> None:
    """Write a SOG; metadata goes into ``asset.psd_gs`` of ``meta.json``.

    Up to 65536 Gaussians keep their own harmonics; of more, similar ones share.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`.
    """
    rows = usable_rows(splats, path)
    rows = rows[morton_order(splats.means[rows])]
    centre, _, reach = extent(splats, rows, _REACH, path)
    near = (held(block, centre, reach) for block in blocks(splats, rows, "gltf"))
    columns = zip(*(_columns(turn_x180(g) if frame == "rdf" else g) for g in near), strict=True)
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
    if splats.mode != "default":
        meta["model"] = splats.mode
        meta["antialias"] = splats.mode == "antialiased"  # the word of the specification
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
            "bands": splats.sh_degree,
            "codebook": codes.tolist(),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # A fixed date, so that the same asset gives the same bytes.
        archive.writestr(zipfile.ZipInfo(META), json.dumps(meta, separators=(",", ":"), allow_nan=False))
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), data)


def _columns(g: Splats) -> tuple[np.ndarray, ...]:
    """Logarithmic positions, rotations as bytes, log scales, opacities as bytes, colours and harmonics."""
    means = g.means.astype(np.float64)
    place, three = smallest_three(g.quats)
    quats = np.concatenate([np.rint(255 * (three * np.sqrt(0.5) + 0.5)), 252 + place[:, None]], axis=1)
    opacities = np.rint(sigmoid(g)[:, None] * 255).astype(np.uint8)
    return (
        np.sign(means) * np.log1p(np.abs(means)),
        quats.clip(0, 255).astype(np.uint8),
        g.scales,
        opacities,
        rgb_to_sh0(sh0_to_rgb(g.sh0[:, 0]).clip(*COLOURS)),
        g.shN.clip(-HARMONICS, HARMONICS),
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


def read_sog(
    path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read a SOG of version 1 or 2: a zip, whose members may lie in a folder, or a ``meta.json`` beside its pictures.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`.
    """
    try:
        meta, member, size = _opened(path)
        if "lodLevels" in meta or "tree" in meta:
            raise _streamed(path)
        version = meta.get("version", 1)
        if version not in (1, 2):
            raise UnsupportedError(
                f"{path}: expected a SOG of version 1 or 2, received version {short(version)}. "
                "Convert it with the tool that wrote it."
            )
        count = meta["count"] if version == 2 else meta["means"]["shape"][0]
        if type(count) is not int or count < 1:
            raise damaged(path, f"it promises {short(count)} Gaussians")
        degree = _degree(meta)
        check_unpacked(path, count, degree, size, large)
        decoded = _decode(meta, Pictures(path, member), count, degree, version)
    except FormatError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise damaged(path, f"no sound SOG ({reason[:100]})") from error
    mode: RenderMode = next((mode for mode in _MODES if mode == meta.get("model")), "default")
    if meta.get("antialias") is True:
        mode = "antialiased"
    return gather(decoded, count, path, frame, lenient, mode)


def _streamed(path: str | os.PathLike[str]) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: a streamed SOG of several levels of detail, which is not read. Convert it into one .ply or .sog with "
        "splat-transform."
    )


Member = Callable[[str, int], bytes]
"""Reads what ``meta.json`` names, up to a number of bytes."""


def _opened(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Member, int]:
    """``meta.json``, what reads the pictures that it names, and the size of all."""
    if Path(path).name.lower().endswith(".json"):
        folder = Path(path).parent

        def beside(name: str, limit: int) -> bytes:
            """Only from the folder of ``meta.json`` itself."""
            if not isinstance(name, str) or name in ("", ".", "..") or PurePosixPath(name).name != name or "\\" in name:
                raise ValueError(f"expected the name of a picture in the same folder, received {short(name)}")
            if (folder / name).resolve().parent != folder.resolve():
                raise ValueError(f"{short(name)} leads out of its folder")
            return read_bounded(folder / name, limit)

        open_file(path).close()
        meta = loads(read_bounded(path, _META_LIMIT), dict[str, Any])
        pictures = {name for section in meta.values() if isinstance(section, dict) for name in section.get("files", ())}
        return meta, beside, sum((folder / str(name)).stat().st_size for name in sorted(map(str, pictures)))
    data = read_bytes(path)
    archive = Zip(data, path)
    named = {name: PureWindowsPath(name).name for name in archive.names() if "__MACOSX" not in name}
    if STREAMED in named.values():
        raise _streamed(path)
    inner = [name for name, last in named.items() if last == META]  # some zips of Windows have backslashes
    if not inner:
        raise ValueError(f"no {META} in it")
    prefix = min(inner, key=len).removesuffix(META)

    def member(name: str, limit: int) -> bytes:
        return archive.read(prefix + name, limit)

    return loads(member(META, _META_LIMIT), dict[str, Any]), member, len(data)


def _degree(meta: dict[str, Any]) -> int:
    """Of the harmonics; 3 where only the pictures of version 1 tell."""
    if "shN" not in meta:
        return 0
    bands = meta["shN"].get("bands", 3)
    if type(bands) is not int or not 1 <= bands <= 3:
        raise ValueError(f"a palette of degree {short(bands)}")
    return bands


def _decode(meta: dict[str, Any], pictures: Pictures, count: int, degree: int, version: int) -> Iterator[Splats]:
    """Reads and checks everything; the blocks that it returns are made as they are taken."""

    def picture(section: str, i: int = 0, **about: bool) -> np.ndarray:
        return pictures.texels(meta[section]["files"][i], count, **about)

    def bounds(section: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = (np.asarray(meta[section][name], np.float64) for name in ("mins", "maxs"))
        return low.reshape(size), high.reshape(size)

    def lookup(section: str, channels: int) -> Callable[[np.ndarray], np.ndarray]:
        """Values of bytes [N, channels]: from a codebook, or in version 1 between bounds."""
        if version == 1:
            low, high = bounds(section, channels if section != "shN" else 1)
            return lambda texels: low + (high - low) * (texels / 255.0)
        values = np.asarray(meta[section]["codebook"], np.float64)
        if values.ndim != 1 or not 1 <= len(values) <= 256:
            raise ValueError(f"a codebook of shape {values.shape}")
        padded = np.concatenate([values, np.full(256 - len(values), np.nan)])  # what is missing makes rows unusable
        return lambda texels: padded[texels]

    low, high = bounds("means", 3)
    means_l, means_u, quats = picture("means", varied=True), picture("means", 1), picture("quats", varied=True)
    scales, sh0 = picture("scales"), picture("sh0", colours=True)
    scale_of, color_of = lookup("scales", 3), lookup("sh0", 4 if version == 1 else 3)
    harmonics, labels = np.zeros((1, 0, 3)), np.zeros(count, np.int64)
    if degree:
        harmonics = _palette_of(meta["shN"], pictures, degree, lookup("shN", 3))
        rg = picture("shN", 1).astype(np.int64)
        labels = rg[:, 0] | rg[:, 1] << 8
        if labels.max() >= len(harmonics):
            raise ValueError("a label beyond the palette")

    def parts() -> Iterator[Splats]:
        for begin, end in ranges(count):
            block = slice(begin, end)
            fixed = means_l[block, :3] + means_u[block, :3].astype(np.float64) * 256
            with np.errstate(over="ignore", invalid="ignore"):
                log_means = low + fixed / 65535 * (high - low)
                means = np.sign(log_means) * np.expm1(np.abs(log_means))
            place = quats[block, 3].astype(np.int64) - 252
            three = (quats[block, :3] / 255 - 0.5) * np.sqrt(2)
            three[place < 0] = np.nan
            colors = color_of(sh0[block] if version == 1 else sh0[block, :3])
            yield Splats(
                means=means,
                quats=from_smallest_three(np.maximum(place, 0), three),
                scales=scale_of(scales[block, :3]),
                opacities=colors[:, 3] if version == 1 else byte_logit(sh0[block, 3]),
                sh0=colors[:, None, :3],
                shN=harmonics[labels[block]],
            )

    return parts()


def _palette_of(
    section: dict[str, Any], pictures: Pictures, degree: int, values: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The vectors of the palette, [size, K - 1, 3]; those of version 1 tell their number by the size of the picture."""
    if "bands" in section:
        size, k = section["count"], (degree + 1) ** 2 - 1
        if type(size) is not int or not 1 <= size <= _PALETTE:
            raise ValueError(f"a palette of {short(size)} entries")
        rows = math.ceil(size / _ACROSS) * _ACROSS * k
        texels = pictures.texels(section["files"][0], rows, _ACROSS * k, colours=True)
        return values(texels[: size * k, :3]).reshape(size, k, 3)
    across, down = pictures.size(section["files"][0], _PALETTE * 15 * 4)
    k = across // _ACROSS
    if (across % _ACROSS, k in (3, 8, 15), down <= _PALETTE // _ACROSS) != (0, True, True):
        raise ValueError(f"a palette of {across}x{down} texels")
    texels = pictures.texels(section["files"][0], across * down, across, colours=True)
    return values(texels[:, :3]).reshape(down * _ACROSS, k, 3)


def read_sog_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_sog` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
    """
    open_file(path).close()
    try:
        found = _opened(path)[0]["asset"]["psd_gs"]
    except (*_UNREADABLE, FormatError):
        return None
    return found if isinstance(found, dict) else None
