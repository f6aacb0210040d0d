"""What people pass in place of an asset: packed files, and what a failed download left under the asset's name."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable
from io import BufferedReader

from psd_gs.errors import UnsupportedError
from psd_gs.export.packed import Gunzip

_GZIP, _ZIP = rb"\x1f\x8b\x08", rb"PK(\x03\x04|\x07\x08|\x05\x06)"
_PACKED = {
    _GZIP: ("gzip", "gunzip"),
    _ZIP: ("zip", "unzip"),
    rb"BZh[1-9]1AY&SY": ("bzip2", "bunzip2"),
    rb"\xfd7zXZ\0": ("xz", "unxz"),
    rb"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    rb"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    rb"Rar!\x1a\x07": ("RAR", "unrar x"),
    rb"(?s).{257}ustar": ("tar", "tar -xf"),
    rb"\x04\x22\x4d\x18": ("LZ4", "lz4 -d"),
    rb"LZIP": ("lzip", "lzip -d"),
    rb"MSCF": ("a cabinet", "cabextract"),
}
_START = 1 << 10
_LEFT = {
    rb"version https://git-lfs": ("a pointer of Git LFS in place of the file", "Fetch the file with git lfs pull"),
    rb"\s*<(?i:!doctype|html|\?xml)": ("a page of a server in place of the file", "Download the file itself"),
}


def refuse_foreign(path: str | os.PathLike[str], file: BufferedReader) -> None:
    """Name what a file is, if that is known and none of ours; only look at it.

    Raises:
        UnsupportedError: it is known.
    """
    start = file.peek(_START)
    for pattern, (name, unpack) in _PACKED.items():
        if re.match(pattern, start) and not (pattern in _OURS and _OURS[pattern](file)):
            raise UnsupportedError(f"{path}: packed with {name}. Unpack it first, for instance with {unpack}.")
    for pattern, (what, way_out) in _LEFT.items():
        if re.match(pattern, start):
            raise UnsupportedError(f"{path}: {what}. {way_out}.")


def _may_be_spz(file: BufferedReader) -> bool:
    try:
        return Gunzip(file.peek(_START)).read(4) == b"NGSP"
    except zlib.error:  # damaged, or the names before the data are long, which its reader tells
        return True


def _may_be_sog_or_usdz(file: BufferedReader) -> bool:
    try:
        names = zipfile.ZipFile(file).namelist()
    except Exception:  # whatever zipfile stumbles over is damaged, which its reader tells
        return True
    finally:
        file.seek(0)
    return any(name.lower().endswith(("meta.json", ".usdc", ".usda", ".usd")) for name in names)


_OURS: dict[bytes, Callable[[BufferedReader], bool]] = {_GZIP: _may_be_spz, _ZIP: _may_be_sog_or_usdz}
