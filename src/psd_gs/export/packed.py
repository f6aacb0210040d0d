"""Gzip and zip as strangers write them: several members, any method, and never more than was asked for. And gzip as
we do: by all cores.

zlib alone stops after the first member of a gzip stream, where pigz, bgzip and ``cat a.gz b.gz`` write several; and
zipfile unpacks whatever a bzip2 or LZMA member becomes before it looks at how much was asked for.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from psd_gs.errors import UnsupportedError

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 14
"""Bytes that are fed at a time: what is behind the end of a member is copied."""
_PACKED_PIECE = 1 << 20
_WINDOW = 1 << 15
_GZIP_START = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
"""Of a member without name and date."""
_ZEROS = re.compile(rb"\0*")
_MEMBER_PIECE = 1 << 12
"""Bytes that zipfile reads at a time; of bzip2 and LZMA it unpacks all of a piece, which is 80 MB at worst."""
_ENCRYPTED = 1  # flag of a member
_END = struct.Struct("<4sHHHHIIH")
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "xz", 97: "WavPack", 98: "PPMd", 99: "AES"}


class Gunzip:
    """A gzip stream of any number of members.

    Attributes:
        ended: whether all of it was read, and its checksums were right.
        surplus: bytes behind its end, but for the zeros that pad it; 0 until it has ended.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._member = zlib.decompressobj(wbits=31)
        self.ended, self.surplus = False, 0

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end.

        Raises:
            zlib.error: it is damaged or truncated.
        """
        parts = []
        while size and not self.ended:
            fed = self._data[self._at : self._at + _PIECE]
            part = self._member.decompress(fed, size)
            left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._at += len(fed) - len(left)
            if not (fed or part or self._member.eof):
                raise zlib.error("it ends too soon")
            parts.append(part)
            size -= len(part)
            if self._member.eof:
                self._next()
        return b"".join(parts)

    def _next(self) -> None:
        found = _ZEROS.match(self._data, self._at)
        self._at = found.end() if found else self._at
        self._member = zlib.decompressobj(wbits=31)
        self.ended = not self._data.startswith(_GZIP, self._at)
        self.surplus = len(self._data) - self._at if self.ended else 0


def gzipped(data: bytes, level: int) -> Iterator[bytes]:
    """``data`` as one gzip member, whose pieces are packed side by side (as pigz does): each knows the 32 KiB before
    it. The bytes are the same whatever the number of cores.

    Args:
        data: what is packed.
        level: 1, fast, to 9, small.
    """
    view = memoryview(data)

    def packed(begin: int) -> bytes:
        end = min(begin + _PACKED_PIECE, len(data))
        squeeze = zlib.compressobj(level, wbits=-15, zdict=view[max(0, begin - _WINDOW) : begin])
        squeezed = squeeze.compress(view[begin:end])
        return squeezed + squeeze.flush(zlib.Z_FINISH if end == len(data) else zlib.Z_SYNC_FLUSH)

    yield _GZIP_START
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(packed, range(0, len(data), _PACKED_PIECE))
    yield struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


class Zip:
    """A zip in memory.

    Args:
        data: of the file.
        path: of the file, for messages.

    Raises:
        UnsupportedError: one volume of several, or of a kind that zipfile does not know.
        zipfile.BadZipFile: damaged.
    """

    def __init__(self, data: bytes, path: str | os.PathLike[str]) -> None:
        self._path = path
        end = data.rfind(b"PK\5\6")
        volume = _END.unpack_from(data, end)[1] if 0 <= end <= len(data) - _END.size else 0
        if data.startswith(b"PK\7\x08") or 0 < volume < 0xFFFF:  # 0xFFFF: zip64 tells
            raise UnsupportedError(
                f"{path}: one volume of a split zip. Join them first, for instance with zip -s 0 IN.zip --out OUT.zip."
            )
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except NotImplementedError as error:
            raise self._unsupported(str(error)) from error

    def names(self) -> list[str]:
        return self._archive.namelist()

    def stored(self) -> bool:
        """Whether no member is packed or encrypted."""
        return all(
            info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED
            for info in self._archive.infolist()
        )

    def read(self, name: str, limit: int) -> bytes:
        """A member, unpacked.

        Raises:
            KeyError: there is none of this name.
            UnsupportedError: it is encrypted, or packed by a method that zipfile does not know.
            ValueError: it becomes more than ``limit`` bytes.
        """
        info = self._archive.getinfo(name)
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedError(
                f"{self._path}: an encrypted zip, which is not read. Unpack it with its password, and zip its files "
                "again without one."
            )
        parts, size = [], 0
        try:
            with self._archive.open(info) as file:
                while size <= limit and (part := file.read(_MEMBER_PIECE)):
                    parts.append(part)
                    size += len(part)
        except NotImplementedError as error:
            method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise self._unsupported(f"packed with {method}") from error
        if size > limit:
            raise ValueError(f"{name!r:.80} unpacks to an absurd size")
        return b"".join(parts)

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._path}: a zip that is not read ({what:.60}). Unpack it, and zip its files again, for instance with "
            "zip -0."
        )
