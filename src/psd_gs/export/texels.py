"""Pictures whose texels are numbers, as SOG keeps them: read as the bytes that they are, or not at all.

Only lossless WebP and PNG hold what was written; colour profiles, gamma and orientation are for people's eyes and are
passed over. The SOG specification (developer.playcanvas.com) forbids lossy pictures: in them a position, a rotation or
a label is another one, while an index into a sorted list of colours becomes a near one.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from psd_gs.errors import FormatError, UnsupportedError
from psd_gs.files import other_picture, read_picture, short

if TYPE_CHECKING:
    from jaxtyping import UInt8

logger = logging.getLogger(__name__)

_CHUNK = struct.Struct("<4sI")
_FRAME = 16  # bytes before the chunks of a frame of a film
_REMEDY = "expected lossless WebP or PNG. Export the asset again, for instance with splat-transform."
_LOSSY = {b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF"}
"""Kinds that are read elsewhere, and hold no numbers, by how they begin."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of an asset.

    Attributes:
        path: of the asset, for messages.
        read: gives the picture of a name, up to a number of bytes.
    """

    path: str | os.PathLike[str]
    read: Callable[[str, int], bytes]

    def texels(
        self, name: str, rows: int, width: int | None = None, *, colours: bool = False, varied: bool = False
    ) -> UInt8[np.ndarray, "rows 4"]:
        """The first texels of a picture; nothing is decoded before its size is checked.

        Args:
            name: of the picture.
            rows: how many.
            width: of the picture, if only one will do.
            colours: they are indices of colours, which may be near ones: a lossy picture is logged, not refused.
            varied: hardly any two are alike, so that a palette has most likely changed them, which is logged.

        Raises:
            UnsupportedError: a lossy picture, or one of another kind.
            ValueError: unsound, or of another size.
        """
        data = self.read(name, (1 << 16) + 8 * rows)
        (across, down), mode = self._about(name, data)
        if not rows <= across * down <= 2 * rows + 4096 or width not in (None, across):
            raise ValueError(f"{short(name)} has {across}x{down} texels for {rows}")
        if _is_lossy(data):
            if not colours:
                raise UnsupportedError(f"{self.path}: {short(name)} is lossy, so its numbers are others; {_REMEDY}")
            logger.warning("%s: %s is lossy: its colours are not quite those of the asset", self.path, short(name))
        if varied and mode == "P":
            logger.warning(
                "%s: %s has a palette: if its colours were reduced to that, Gaussians are misplaced",
                self.path, short(name),
            )  # fmt: skip
        try:
            return np.asarray(read_picture(data, "RGBA")).reshape(-1, 4)[:rows]
        except FormatError as error:
            raise ValueError(f"{short(name)}: {error}") from error

    def size(self, name: str, limit: int) -> tuple[int, int]:
        """Width and height of a picture of at most ``limit`` bytes, which is not decoded for it.

        Raises:
            UnsupportedError: one of another kind.
            ValueError: unsound.
        """
        return self._about(name, self.read(name, limit))[0]

    def _about(self, name: str, data: bytes) -> tuple[tuple[int, int], str]:
        """Size and Pillow's mode."""
        from PIL import Image

        kind = next((kind for start, kind in _LOSSY.items() if data.startswith(start)), None) or other_picture(data)
        if kind:
            raise UnsupportedError(f"{self.path}: {short(name)} is a {kind} picture, which is not read; {_REMEDY}")
        try:
            with Image.open(io.BytesIO(data), formats=("WEBP", "PNG")) as image:
                return image.size, image.mode
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error


def _is_lossy(data: bytes) -> bool:
    """Whether this is WebP whose first frame is lossy (WebP container specification)."""
    at = 12
    while data.startswith(b"RIFF") and at + _CHUNK.size <= len(data):
        kind, size = _CHUNK.unpack_from(data, at)
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        at += _CHUNK.size + (_FRAME if kind == b"ANMF" else size + size % 2)
    return False
