"""Options of pictures that an asset is made from."""

from __future__ import annotations

from dataclasses import dataclass

from psd_gs.config.guidance import check_range
from psd_gs.errors import ConfigError


@dataclass(frozen=True)
class ImageConfig:
    """Pictures of the thing (``--image``): their views are held, and the prior makes the rest."""

    files: tuple[str, ...] = ()
    """Each shows the thing alone, with transparency around it; else the background is removed, if the extra
    ``background`` is installed."""
    azimuth: tuple[float, ...] = (0.0,)
    """Where each was taken from, degrees: 0 in front, 90 from the thing's left; one for each."""
    elevation: tuple[float, ...] = (0.0,)
    """Degrees above the horizon; one for each, or one for all."""
    sha256: tuple[str, ...] = ()
    """Of the files, recorded by the run."""
    fill: float = 0.75
    """Share of an evaluation view that the longer side of what the picture shows takes: less for something long that is
    seen end on, so that the whole of it fits into the ball that priors expect."""
    weight: tuple[float, float] = (5.0, 2.0)
    """At the start and at the end; at 1, views that are wrong are pulled back as hard as a clean estimate that differs
    as much would pull them."""

    def __post_init__(self) -> None:
        check_range(self, -360, 360, "azimuth")
        check_range(self, -90, 90, "elevation")
        check_range(self, 0.1, 1, "fill")
        check_range(self, 1e-6, 1e6, "weight")
        count = len(self.files)
        if count and len(self.azimuth) != count:
            raise ConfigError(
                f"--image-azimuth: expected one for each of the {count} pictures, received {len(self.azimuth)}."
            )
        if count and len(self.elevation) not in (1, count):
            raise ConfigError(
                f"--image-elevation: expected one, or one for each of the {count} pictures, received "
                f"{len(self.elevation)}."
            )
        if self.sha256 and len(self.sha256) != count:
            raise ConfigError(f"image.sha256: expected none, or one for each of the {count} pictures.")

    @property
    def places(self) -> list[tuple[float, float]]:
        """Azimuth and elevation of each picture, degrees."""
        count = len(self.files)
        return list(zip(self.azimuth[:count], (self.elevation * count)[:count], strict=True))
