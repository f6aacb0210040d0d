"""Pictures of the thing that is made: read, cut out, framed; their views are held while the prior makes the rest.

The loss of a reference view, in colour and mask, is that of Magic123 (Qian et al., arXiv 2306.17843, section 3.1) and
its kin.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, joined, turntable
from psd_gs.config import Config, ImageConfig, check_prompt_text
from psd_gs.errors import ConfigError, InputError
from psd_gs.export.formats import sha256_of
from psd_gs.files import read_picture
from psd_gs.gaussians import Gaussians
from psd_gs.render import render
from psd_gs.resize import resized

if TYPE_CHECKING:
    from PIL import Image

REMOVER = "u2net"
"""Apache-2.0, 176 MB. rembg is MIT; the model that it takes by itself is not free for all uses."""

RADIUS = 0.69
"""Of the ball that a view shows whole, world units, as in an evaluation."""

SIZE = 512
"""Side of a framed picture, pixels."""

FINE = 128
"""Side of the views to which a finished asset is fitted once more, pixels."""

LEAST = 16
"""Shorter side of what a picture shows, pixels."""


# --- pictures --------------------------------------------------------------------------------------------------------


def pinned(config: Config) -> Config:
    """The same with whole paths and the digests of the pictures, each of which was looked at.

    Raises:
        FormatError: a damaged picture, or one of another format.
        InputError: a picture that cannot be used, or is another one than when the run began.
    """
    image = config.image
    for file in image.files:
        open_picture(file)
    digests = tuple(sha256_of(file) for file in image.files)
    for file, now, then in zip(image.files, digests, image.sha256, strict=False):
        if now != then:
            raise InputError(
                f"{file} is another picture than when the run began. Bring that one back, or leave image.sha256 out."
            )
    files = tuple(str(Path(file).resolve()) for file in image.files)
    return replace(config, image=replace(image, files=files, sha256=digests))


def relocated(saved: Config, config: Config) -> Config:
    """``saved`` with its pictures where ``config`` has them, if they are the same."""
    same = saved.image.sha256 == config.image.sha256
    return replace(saved, image=replace(saved.image, files=config.image.files)) if same else saved


def settled(config: Config, saved: Config) -> Config:
    """``config`` with what it leaves to the run as the run that is ``saved`` has decided it."""
    if config.refine.room is not None:
        return config
    return replace(config, refine=replace(config.refine, room=saved.refine.room))


def title(config: Config) -> str:
    """What a run is called: its prompt, or else its first picture."""
    return config.prompt or (Path(config.image.files[0]).stem if config.image.files else "")


def open_picture(path: str) -> Image.Image:
    """A picture of a thing, RGBA, upright; opaque where the background has to be removed and can be.

    Raises:
        FormatError: a damaged picture, or one of another format.
        InputError: it cannot be opened, shows nothing, or has a background that cannot be removed here.
    """
    picture = read_picture(path, "RGBA", upright=True)
    if _is_opaque(picture):
        if importlib.util.find_spec("rembg") is None:
            raise InputError(
                f"{path}: expected a picture with transparency around the thing, received one without. Cut the thing "
                'out, or pip install "psd-gs[background]", which does.'
            )
    else:
        _box(picture, path)
    return picture


def cut_out(path: str) -> Image.Image:
    """The same with transparency around the thing.

    Raises:
        As :func:`open_picture`.
    """
    picture = open_picture(path)
    if _is_opaque(picture):
        picture.putalpha(_mask(picture.convert("RGB"), path))
        _box(picture, path)
    return picture


def _is_opaque(picture: Image.Image) -> bool:
    return picture.getchannel("A").getextrema()[0] == 255


def _mask(picture: Image.Image, path: str) -> Image.Image:
    """Where the thing is, by the remover; it fetches its weights where they are missing."""
    try:
        from rembg import new_session, remove

        return remove(picture, session=new_session(REMOVER), only_mask=True).convert("L")
    except (Exception, SystemExit) as error:  # it exits where it has no runtime
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(
            f"{path}: expected a picture whose background can be removed, but rembg says: {reason}. Cut the thing out "
            'yourself, or install it again with pip install "psd-gs[background]".'
        ) from error


def _box(picture: Image.Image, path: str) -> tuple[int, int, int, int]:
    """Left, upper, right and lower side of what is more than half opaque.

    Raises:
        InputError: it is too small to be anything.
    """
    box = picture.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    width, height = (box[2] - box[0], box[3] - box[1]) if box else (0, 0)
    if box is None or min(width, height) < LEAST:
        raise InputError(
            f"{path}: expected a thing of at least {LEAST} x {LEAST} pixels that are more than half opaque, received "
            f"{width} x {height}. Take a larger picture."
        )
    return box


def framed(picture: Image.Image, fill: float, path: str = "the picture") -> Float[Tensor, "4 S S"]:
    """A cut-out in the middle of a square of :data:`SIZE` pixels, whose share ``fill`` its longer side takes.

    Returns:
        Premultiplied sRGB and alpha, in [0, 1].
    """
    from PIL import Image

    left, upper, right, lower = _box(picture, path)
    factor = fill * SIZE / max(right - left, lower - upper)
    width, height = (max(2, 2 * round(factor * side / 2)) for side in (right - left, lower - upper))
    box = (left, upper, right, lower)
    small = picture.convert("RGBa").resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    out = torch.zeros(4, SIZE, SIZE)
    top, start = (SIZE - height) // 2, (SIZE - width) // 2
    pixels = np.frombuffer(small.tobytes(), np.uint8).reshape(height, width, 4)
    out[:, top : top + height, start : start + width] = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)
    return out


def check_given(config: Config, pictured: bool) -> None:
    """Refuse a run without a prompt, or without the picture that its prior looks at.

    Args:
        config: of the run.
        pictured: whether the prior looks at one.

    Raises:
        ConfigError: no picture.
        InputError: no prompt, or none that can be one.
    """
    if pictured and not config.image.files:
        raise ConfigError(f"prior {config.prior}: expected a picture, received none. Give one with --image.")
    if config.prompt or not pictured:
        check_prompt_text(config.prompt)


# --- holding them ----------------------------------------------------------------------------------------------------


class Reference:
    """Views that are known.

    Args:
        config: pictures, and where they were taken from.
        device: of the Gaussians.

    Raises:
        As :func:`open_picture`.
    """

    def __init__(self, config: ImageConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.pictures = torch.stack([framed(cut_out(file), config.fill, file) for file in config.files])
        self.pictures = self.pictures.to(device or torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.pictures)

    def cameras(self, size: int) -> Cameras:
        """One per picture, framed as in an evaluation."""
        views = [
            turntable(1, elevation=elevation, radius=RADIUS, size=size, start=azimuth)
            for azimuth, elevation in self.config.places
        ]
        return joined(views).to(self.pictures.device)

    def wanted(self, size: int) -> Float[Tensor, "R S S 4"]:
        """The pictures as a renderer would give them: premultiplied sRGB and alpha."""
        return resized(self.pictures, size, size).permute(0, 2, 3, 1)

    def loss(
        self,
        rgb: Float[Tensor, "R S S 3"],
        alpha: Float[Tensor, "R S S 1"],
        background: Float[Tensor, " 3"],
        progress: float,
        elements: int,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """How far the known views are from their pictures, in colour and mask, weighted for this time of the run, and
        their PSNR in dB.

        In the units of :func:`psd_gs.guidance.base_scores.score_loss`, for a clean latent of 2 image - 1.

        Args:
            rgb: the renders over ``background``.
            alpha: their opacity.
            background: behind them, sRGB.
            progress: position in the run, 0 to 1.
            elements: numbers in the latent of one view of the prior.
        """
        wanted = self.wanted(rgb.shape[1])
        colour = (rgb - wanted[..., :3] - (1 - wanted[..., 3:]) * background).square().mean()
        mask = (alpha - wanted[..., 3:]).square().mean()
        first, last = self.config.weight
        loss = 2 * elements * first * (last / first) ** progress * (colour + mask)
        return loss, -10 * colour.detach().clamp_min(1e-10).log10()

    def error(self, asset: Gaussians) -> Float[Tensor, ""]:
        """Mean squared error of premultiplied colour and alpha of the known views."""
        out = render(asset, self.cameras(FINE))
        return (torch.cat([out.rgb, out.alpha], -1) - self.wanted(FINE)).square().mean()

    def first(self) -> Float[Tensor, "3 S S"]:
        """The first picture, over white."""
        return over_white(self.wanted(SIZE)[0]).permute(2, 0, 1)

    @torch.no_grad()
    def seen(self, asset: Gaussians, size: int = 256) -> Float[Tensor, "R S S 3"]:
        """The known views of an asset, on white."""
        cameras = self.cameras(size).to(asset.device)
        return render(asset, cameras, torch.ones(3, device=asset.device)).rgb.clamp(0, 1)

    def held(self, asset: Gaussians, size: int = 256) -> list[dict[str, Any]]:
        """Of each picture: the file's name, where it was taken from, and the PSNR of that view on white, dB."""
        wanted = over_white(self.wanted(size)).to(asset.device)
        wrong = (self.seen(asset, size) - wanted).square().mean((1, 2, 3)).clamp_min(1e-10)
        return [
            {
                "file": Path(file).name,
                "azimuth": azimuth,
                "elevation": elevation,
                "psnr": round(float(-10 * error.log10()), 2),
            }
            for file, (azimuth, elevation), error in zip(self.config.files, self.config.places, wrong, strict=True)
        ]


def over_white(rgba: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3"]:
    """Premultiplied colours over white."""
    return rgba[..., :3] + 1 - rgba[..., 3:]
