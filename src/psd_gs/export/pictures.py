"""Pictures and films of Gaussians: turntable, preview strip, contact sheet, and how an asset came to be."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.errors import InputError
from psd_gs.export.fitting import bounding_ball
from psd_gs.export.frames import usual_size
from psd_gs.export.metadata import Metadata, to_json
from psd_gs.files import atomic_path, read_picture
from psd_gs.gaussians import Gaussians
from psd_gs.splats import scaled

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["rgb", "depth", "normal"]
"""What a picture shows: colours; how near the surface is (white: nearest, dark: farthest); or which way it faces in
the camera's frame (red: right, green: up, blue: to the viewer)."""

FILMS = (".mp4", ".webp", ".gif")
WHITE = (1.0, 1.0, 1.0)
_METADATA_KEY = "psd-gs"
_EXIF_DESCRIPTION = 0x010E
_CLEAR = 255  # palette index of what is transparent
_MARGIN = 1.1  # air around the asset
_VIEWS_AT_ONCE = 4  # bounds the memory of a film; more does not render faster


def turntable_film(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    frames: int = 72,
    size: int = 320,
    fps: int = 24,
    elevation: float = 15.0,
    background: Sequence[float] | None = None,
    kind: Kind = "rgb",
    metadata: Metadata | None = None,
) -> None:
    """One turn around the asset as a film that loops seamlessly, by its extension: ``.mp4``, ``.webp`` or ``.gif``.

    Args:
        gaussians: the asset, world frame.
        path: of the film; replaced in one step.
        frames: of the whole turn; the last one is a step short of the first.
        size: width and height, pixels; even for ``.mp4``.
        fps: frames per second; a gif counts in hundredths of a second.
        elevation: degrees above the horizon.
        background: sRGB in [0, 1]; None is transparent (in a gif wholly or not at all) or, for ``.mp4``, white.
        kind: what it shows.
        metadata: goes into mp4's and gif's comment (8 kB at most in mp4) and webp's EXIF description as JSON.

    Raises:
        InputError: another extension, an odd size of an mp4, or numbers that make no film.
        OutputError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FILMS:
        raise InputError(f"{path}: expected a film ending in {', '.join(FILMS)}, received {suffix or 'no extension'}.")
    if frames < 1 or size < 16 or not 1 <= fps <= 50:
        raise InputError(
            "expected at least 1 frame of at least 16 pixels at 1 to 50 per second, "
            f"received {frames} of {size} at {fps}."
        )
    if suffix == ".mp4" and background is None:
        background = WHITE
    turn = _turn(gaussians, frames, size, elevation, background, kind)
    if suffix == ".mp4":
        _write_mp4(turn, path, size, fps, metadata)
        return
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in turn]
    text = None if metadata is None else to_json(metadata)
    more: dict[str, Any] = {"save_all": True, "duration": round(1000 / fps), "loop": 0}
    if suffix == ".webp":
        exif = Image.Exif()
        if text is not None:
            exif[_EXIF_DESCRIPTION] = text
        more |= {"quality": 85, "method": 4, "exif": exif.tobytes()}
    else:
        pictures = [_to_palette(picture) for picture in pictures]
        more |= {"disposal": 2, "optimize": False, "comment": (text or "").encode()}
        more |= {"transparency": _CLEAR} if background is None else {}
    with atomic_path(path) as temporary:
        pictures[0].save(temporary, append_images=pictures[1:], **more)


def _write_mp4(
    pictures: Iterator[np.ndarray], path: str | os.PathLike[str], size: int, fps: int, metadata: Metadata | None
) -> None:
    """An H.264 film (yuv420p, BT.709, faststart).

    Raises:
        InputError: an odd size, which yuv420p cannot hold.
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
            for picture in pictures:
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


def three_quarter_view(gaussians: Gaussians, size: int) -> Float[Tensor, "H W 3"]:
    """The place where assets grow, seen from between front and side and 20 degrees above, on white; sRGB in [0, 1].

    The camera does not follow the asset, so that pictures of several steps can be compared.
    """
    camera = turntable(1, elevation=20.0, radius=0.69, size=size, start=40.0).to(gaussians.device)
    return _shown(gaussians, camera, 0.69, WHITE, "rgb")[0]


def picture_png(gaussians: Gaussians, path: str | os.PathLike[str], *, size: int = 192) -> None:
    """:func:`three_quarter_view` as a file.

    Raises:
        OutputError: the file cannot be written.
    """
    from PIL import Image

    _save_png(Image.fromarray(_to_bytes(three_quarter_view(gaussians, size))), path, None)


def progress_strip(frames: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> None:
    """How an asset came to be, from left to right: pictures named by their step (``000120.png``), side by side.

    Raises:
        InputError: no picture, or one that cannot be read.
        OutputError: the file cannot be written.
    """
    captions = [f"step {int(Path(frame).stem)}" for frame in frames]
    contact_sheet(frames, path, captions=captions, columns=len(frames), size=192)


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
    gaussians: Gaussians,
    views: int,
    size: int,
    elevation: float,
    background: Sequence[float] | None,
    kind: Kind = "rgb",
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """Pictures from evenly around the asset, which is centred and fills most of the frame; RGBA without background."""

    centre, radius = bounding_ball(gaussians)
    unit = usual_size(radius)
    centred = scaled(replace(gaussians, means=gaussians.means - centre), 1 / unit)
    radius /= unit
    cameras = turntable(views, elevation=elevation, radius=_MARGIN * radius, size=size).to(gaussians.device)
    for first in range(0, views, _VIEWS_AT_ONCE):
        with torch.no_grad():
            pictures = _shown(centred, cameras[first : first + _VIEWS_AT_ONCE], radius, background, kind)
        yield from _to_bytes(pictures)


def _shown(
    gaussians: Gaussians, cameras: Cameras, radius: float, background: Sequence[float] | None, kind: Kind
) -> Float[Tensor, "V H W C"]:
    """Pictures of an asset within ``radius`` of the origin, over the background or with their alpha."""
    from psd_gs.render import render

    colour = gaussians.means.new_tensor(background if background is not None else (0.0, 0.0, 0.0))
    out = render(gaussians, cameras, colour if kind == "rgb" else None)
    if kind == "rgb":
        if background is not None:
            return out.rgb
        straight = out.rgb / out.alpha.clamp_min(1e-6)  # over black, colours are multiplied by alpha
        return torch.cat([straight, out.alpha], -1)
    if kind == "depth":
        middle = cameras.positions.norm(dim=1)[:, None, None, None]
        near = 1 - 0.85 * (out.depth - middle + radius) / (2 * radius)
        picture = near.clamp(0.15, 1).expand(-1, -1, -1, 3)
    else:
        axes = out.depth.new_tensor([0.5, -0.5, -0.5])  # x right, y down, z away -> red right, green up, blue near
        picture = 0.5 + axes * _normals(out.depth, cameras)
    if background is None:
        return torch.cat([picture, out.alpha], -1)
    return picture * out.alpha + colour * (1 - out.alpha)


def _normals(depth: Float[Tensor, "V H W 1"], cameras: Cameras) -> Float[Tensor, "V H W 3"]:
    """Unit normals in the camera's frame, from the differences of neighbouring points (2DGS, Huang et al. 2024).

    Of the two differences along each axis the smaller one counts, so that edges of the depth do not smear.
    """
    height, width = depth.shape[1:3]
    x = torch.arange(width, device=depth.device) + 0.5
    y = torch.arange(height, device=depth.device) + 0.5
    fx, fy, cx, cy = (cameras.Ks[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    rays = torch.stack(torch.broadcast_tensors((x - cx) / fx, (y[:, None] - cy) / fy, depth.new_ones(1)), -1)
    points = rays * depth

    def slope(dim: int) -> Tensor:
        step = points.diff(dim=dim)
        zero = torch.full_like(step.narrow(dim, 0, 1), 1e6)
        before, after = torch.cat([zero, step], dim), torch.cat([step, zero], dim)
        return torch.where(before[..., 2:].abs() < after[..., 2:].abs(), before, after)

    return torch.nn.functional.normalize(torch.linalg.cross(slope(1), slope(2)), dim=-1)


def _to_palette(picture: Image.Image) -> Image.Image:
    """At most 255 colours, and index :data:`_CLEAR` where the picture is mostly transparent."""
    from PIL import Image

    coloured = picture.convert("RGB").quantize(_CLEAR, dither=Image.Dither.NONE)
    if picture.mode == "RGBA":
        coloured.paste(_CLEAR, mask=picture.getchannel("A").point(lambda alpha: 255 * (alpha < 128)))
    return coloured


def _to_bytes(rgb: Float[Tensor, "*B 3"]) -> UInt8[np.ndarray, "*B 3"]:
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _open_picture(image: Tensor | str | os.PathLike[str]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(_to_bytes(image)) if isinstance(image, Tensor) else read_picture(image)


def _save_png(picture: Image.Image, path: str | os.PathLike[str], metadata: Metadata | None) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if metadata is not None:
        info.add_itxt(_METADATA_KEY, to_json(metadata))
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info)
