"""Pictures and films of finished Gaussians: turntable, preview strip, contact sheet."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd_gs.cameras import turntable
from psd_gs.errors import InputError
from psd_gs.export.frames import bounding_ball
from psd_gs.export.metadata import Metadata, to_json
from psd_gs.files import atomic_path
from psd_gs.gaussians import Gaussians

if TYPE_CHECKING:
    from PIL import Image

WHITE = (1.0, 1.0, 1.0)
_METADATA_KEY = "psd-gs"
_MARGIN = 1.1  # air around the asset
_VIEWS_AT_ONCE = 4  # bounds the memory of a film; more does not render faster


def turntable_video(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    frames: int = 72,
    size: int = 320,
    fps: int = 24,
    elevation: float = 15.0,
    background: Sequence[float] = WHITE,
    metadata: Metadata | None = None,
) -> None:
    """One turn around the asset as an H.264 film (yuv420p, BT.709, faststart) that loops seamlessly.

    Args:
        gaussians: the asset, world frame.
        path: of the ``.mp4``; replaced in one step.
        frames: of the whole turn; the last one is a step short of the first.
        size: width and height, even, pixels.
        fps: frames per second.
        elevation: degrees above the horizon.
        background: sRGB in [0, 1].
        metadata: goes into the ``comment`` tag as JSON.

    Raises:
        InputError: an odd size, which yuv420p cannot hold.
        OutputError: the file cannot be written.
    """
    from imageio_ffmpeg import write_frames

    if size % 2:
        raise InputError(f"expected an even film size, received {size}; use {size + 1}.")
    # Colours are converted and tagged explicitly: players guess the matrix of untagged films from their size.
    options = ["-crf", "18", "-movflags", "+faststart", "-vf", "scale=out_color_matrix=bt709:out_range=tv"]
    options += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    if metadata is not None:
        options += ["-metadata", f"comment={to_json(metadata, limit=8000)}"]
    with atomic_path(path) as temporary:
        writer = write_frames(
            str(temporary),
            (size, size),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            output_params=options,
        )
        with closing(writer):
            writer.send(None)  # starts the encoder
            for picture in _turn(gaussians, frames, size, elevation, background):
                writer.send(picture.tobytes())


def preview_png(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    views: int = 4,
    size: int = 384,
    elevation: float = 15.0,
    background: Sequence[float] = WHITE,
    metadata: Metadata | None = None,
) -> None:
    """Views around the asset side by side, the first one from the front.

    Args:
        gaussians: the asset, world frame.
        path: of the ``.png``; replaced in one step.
        views: how many, evenly around; 4 shows azimuth 0, 90, 180 and 270 degrees.
        size: width and height of each view, pixels.
        elevation: degrees above the horizon.
        background: sRGB in [0, 1].
        metadata: goes into an ``iTXt`` chunk named ``psd-gs`` as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    from PIL import Image

    strip = np.concatenate(list(_turn(gaussians, views, size, elevation, background)), axis=1)
    _save_png(Image.fromarray(strip), path, metadata)


def contact_sheet(
    images: Sequence[Float[Tensor, "H W 3"] | str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    size: int = 256,
    metadata: Metadata | None = None,
) -> None:
    """Many pictures in a grid on white, each with an optional caption of up to two lines below.

    Args:
        images: sRGB tensors in [0, 1] or picture files; each is fitted into its cell, not distorted.
        path: of the ``.png``; replaced in one step.
        captions: one per image.
        columns: of the grid; a roughly square one by default.
        size: width and height of a cell, pixels.
        metadata: goes into an ``iTXt`` chunk named ``psd-gs`` as JSON.

    Raises:
        InputError: no image, a caption too many or too few, or an image that cannot be read.
        OutputError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not images or (captions is not None and len(captions) != len(images)):
        received = f"{len(images)} images" + (f" and {len(captions)} captions" if captions is not None else "")
        raise InputError(f"expected one image or more and as many captions, received {received}.")
    columns = min(columns or int(np.ceil(len(images) ** 0.5)), len(images))
    rows = -(-len(images) // columns)
    gap, font_size = 8, max(11, size // 18)
    font = ImageFont.load_default(font_size)
    line = round(1.3 * font_size)
    cell_height = size + (2 * line if captions is not None else 0) + gap
    sheet = Image.new("RGB", (columns * (size + gap) + gap, rows * cell_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = gap + i % columns * (size + gap), gap + i // columns * cell_height
        picture = _open_picture(image)
        picture = picture.resize([max(1, round(side * size / max(picture.size))) for side in picture.size])
        sheet.paste(picture, (x + (size - picture.width) // 2, y + (size - picture.height) // 2))
        if captions is not None:
            width = int(size / max(font.getlength("n"), 1))
            text = "\n".join(textwrap.wrap(captions[i], width, max_lines=2, placeholder=" ..."))
            draw.multiline_text((x + 2, y + size + 2), text, fill="black", font=font, spacing=line - font_size)
    _save_png(sheet, path, metadata)


def _turn(
    gaussians: Gaussians, views: int, size: int, elevation: float, background: Sequence[float]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures from evenly around the asset, which is centred and fills most of the frame."""
    from psd_gs.render import render

    centre, radius = bounding_ball(gaussians)
    centred = replace(gaussians, means=gaussians.means - centre)
    cameras = turntable(views, elevation=elevation, radius=_MARGIN * radius, size=size).to(gaussians.device)
    colour = gaussians.means.new_tensor(background)
    for first in range(0, views, _VIEWS_AT_ONCE):
        with torch.no_grad():
            rgb = render(centred, cameras[first : first + _VIEWS_AT_ONCE], colour).rgb
        yield from _to_bytes(rgb)


def _to_bytes(rgb: Float[Tensor, "*B 3"]) -> UInt8[np.ndarray, "*B 3"]:
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _open_picture(image: Tensor | str | os.PathLike[str]) -> Image.Image:
    from PIL import Image

    if isinstance(image, Tensor):
        return Image.fromarray(_to_bytes(image))
    try:
        with Image.open(Path(image)) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise InputError(f"cannot read the picture {image}: {error}. Check the path.") from error


def _save_png(picture: Image.Image, path: str | os.PathLike[str], metadata: Metadata | None) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if metadata is not None:
        info.add_itxt(_METADATA_KEY, to_json(metadata))
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info)
