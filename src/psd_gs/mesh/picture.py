"""Pictures of materials: bounded before they are decoded, and sampled as a graphics card does."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from psd_gs.errors import FormatError, UnsupportedError
from psd_gs.files import picture_fault

MAX_PIXELS = 1 << 26
"""Most pixels of one picture: 8192 x 8192."""
MAX_SIDE = 4096
"""Larger pictures are halved until they fit: no sample is finer than that."""

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "DDS", "BMP", "GIF", "TGA", "TIFF", "PPM")
_KTX2 = b"\xabKTX 20\xbb\r\n\x1a\n"

Wrap = Literal["repeat", "mirror", "clamp"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file in memory; nothing is decoded before :attr:`pixels` are asked for.

    Attributes:
        name: for messages.
        data: the file.
    """

    name: str
    data: bytes = field(repr=False)

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height, from the head of the file; None if it is of no known kind.

        Raises:
            FormatError: more than :data:`MAX_PIXELS`.
        """
        if self.data.startswith(_KTX2) and len(self.data) >= 28:
            return struct.unpack_from("<II", self.data, 20)
        try:
            return self._open().size
        except (OSError, ValueError, SyntaxError, struct.error, OverflowError):
            return None

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "H W 4"]:
        """sRGB and alpha; 16 bits a channel become 8, palettes and greys become colours.

        Raises:
            FormatError: it cannot be decoded, or has more than :data:`MAX_PIXELS`.
        """
        if self.data.startswith(_KTX2):
            raise UnsupportedError(
                f"{self.name}: a KTX2 texture (KHR_texture_basisu), which is not supported. Convert it to PNG or "
                'JPEG, for example with "ktx extract", or import the file into Blender and export it again.'
            )
        try:
            image = self._open()
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG is decoded smaller at once
            if image.mode.startswith(("I", "F")):
                return _deep(image)
            while max(image.size) > MAX_SIDE:
                image = (image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA")).reduce(2)
            return np.asarray(image.convert("RGBA"))
        except (OSError, ValueError, SyntaxError, struct.error, OverflowError, IndexError, TypeError) as error:
            raise FormatError(
                f"{self.name}: expected a picture, but it cannot be decoded ({picture_fault(error)}). "
                "Save it again as PNG or JPEG."
            ) from error

    def forget(self) -> None:
        """Let go of the pixels; they are decoded anew when they are asked for."""
        self.__dict__.pop("pixels", None)

    def _open(self) -> Any:
        from PIL import Image

        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                image = Image.open(io.BytesIO(self.data), formats=_FORMATS)
            except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
                raise self._too_large("far more") from error
        if image.size[0] * image.size[1] > MAX_PIXELS:
            raise self._too_large(f"{image.size[0]} x {image.size[1]}")
        return image

    def _too_large(self, size: str) -> FormatError:
        return FormatError(
            f"{self.name}: expected a picture of at most {MAX_PIXELS} pixels, received {size}. Make it smaller."
        )


@dataclass(frozen=True)
class Texture:
    """A picture and how it lies on a surface.

    Attributes:
        picture: sRGB.
        channel: number of the texture coordinates that it takes.
        matrix: ``[a b c; d e f]``, which turns coordinates (u, v, 1) into those of the picture.
        wrap: beyond its edges, along u and v.
        nearest: the nearest texel as it is, instead of a mix of four.
    """

    picture: Picture
    channel: int = 0
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1, 0, 0), (0, 1, 0))
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    nearest: bool = False

    def sample(self, uv: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 4"]:
        """sRGB and alpha in [0, 1]; (0, 0) is the upper left corner of the picture, (1, 1) the lower right one.

        Raises:
            FormatError: the picture cannot be decoded.
        """
        pixels = self.picture.pixels
        size = np.array([pixels.shape[1], pixels.shape[0]])
        matrix = np.array(self.matrix, np.float64)
        at = (uv @ matrix[:, :2].T + matrix[:, 2]) * size
        # an integer has no room for what overflows; such a coordinate means nothing anyway
        at = np.where(np.abs(at) < 1e15, at, 0)
        if self.nearest:
            columns, rows = (self._texel(np.floor(at[:, axis]), axis, size[axis]) for axis in (0, 1))
            return pixels[rows, columns] / 255
        low = np.floor(at - 0.5)
        share = at - 0.5 - low
        total = np.zeros((len(uv), 4))
        for right in (0, 1):
            columns = self._texel(low[:, 0] + right, 0, size[0])
            for down in (0, 1):
                rows = self._texel(low[:, 1] + down, 1, size[1])
                weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
                total += weight[:, None] * pixels[rows, columns]
        return total / 255

    def _texel(self, at: Float[np.ndarray, " N"], axis: int, count: int) -> np.ndarray:
        """Indices within the picture, wrapped."""
        i = at.astype(np.int64)
        if self.wrap[axis] == "clamp":
            return i.clip(0, count - 1)
        if self.wrap[axis] == "repeat":
            return i % count
        i = i % (2 * count)
        return np.minimum(i, 2 * count - 1 - i)


def _deep(image: Any) -> UInt8[np.ndarray, "H W 4"]:
    """A grey picture of more than 8 bits: integers of 16 bits, or floats in [0, 1]."""
    values = np.asarray(image, np.float32) / np.float32(1 if image.mode.startswith("F") else 65535)
    grey = np.nan_to_num(values.clip(0, 1) * 255).round().astype(np.uint8)
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
