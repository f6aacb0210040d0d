"""``psd-gs turntable``: a film of one turn around a splat file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass
class Turntable:
    """Film one turn around an asset, as a seamless loop.

    .mp4 (H.264), .webp or .gif, by the extension of OUT; the latter two are transparent unless --background is given.
    """

    source: Annotated[Positional[Path], arg(metavar="SPLAT")]
    """Splat file of any format that export knows, a run folder, or - for standard input."""
    target: Annotated[Positional[Path], arg(metavar="OUT")]
    """Film to write."""
    kind: Literal["rgb", "depth", "normal"] = "rgb"
    """rgb; depth (white: nearest); or normal (red: right, green: up, blue: to the viewer)."""
    frames: Annotated[int, arg(metavar="N")] = 72
    """Frames of the whole turn."""
    size: Annotated[int, arg(metavar="PIXELS")] = 512
    """Width and height."""
    fps: Annotated[int, arg(metavar="N")] = 24
    """Frames per second."""
    elevation: Annotated[float, arg(metavar="DEGREES")] = 15.0
    """Angle of the camera above the horizon."""
    background: Annotated[str, arg(metavar="COLOUR")] = "auto"
    """A colour such as white, black or "#204060", or transparent. Default: white for mp4, else transparent."""
    large: bool = False
    """Read a compressed file even if it becomes a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.cli.console import console
        from psd_gs.export.open import open_splats
        from psd_gs.export.pictures import turntable_film

        colour = self._colour()
        asset = open_splats(self.source, large=self.large)
        turntable_film(
            asset.gaussians,
            self.target,
            frames=self.frames,
            size=self.size,
            fps=self.fps,
            elevation=self.elevation,
            background=colour,
            kind=self.kind,
            metadata=asset.metadata or None,
        )
        console().print(f"{self.target}  {self.target.stat().st_size / 1024:.0f} KiB")

    def _colour(self) -> tuple[float, ...] | None:
        """sRGB in [0, 1], or None for transparent, or for what is usual for the format."""
        from PIL import ImageColor

        from psd_gs.errors import ConfigError, InputError

        if self.background == "transparent" and self.target.suffix.lower() == ".mp4":
            raise InputError(
                f"{self.target}: mp4 has no transparency. Write a .webp or .gif, or choose a --background."
            )
        if self.background in ("auto", "transparent"):
            return None
        try:
            return tuple(channel / 255 for channel in ImageColor.getrgb(self.background)[:3])
        except ValueError:
            raise ConfigError(
                f'--background: expected a colour such as white or "#204060", or transparent, '
                f"received {self.background!r}."
            ) from None
