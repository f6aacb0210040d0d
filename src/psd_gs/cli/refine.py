"""``psd-gs refine``: a splat and a sentence in, the splat as the sentence wants it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg

from psd_gs.cli.making import Making
from psd_gs.cli.run_options import File
from psd_gs.config import STRENGTH, Axis

if TYPE_CHECKING:
    from psd_gs.job import Request


@dataclass(kw_only=True)
class Starting(Making):
    """What commands share that start from an asset which is there already."""

    keep: Annotated[float | None, arg(metavar="WEIGHT", help_behavior_hint="")] = None
    """Hold on to the original's views and parameters; at 1 small differences count as much as what the model wants.
    Default: of a splat 0.15 at strength 0.7, less the farther from it, 0 up to 0.6 and from 0.8; of a mesh 0."""
    up: Annotated[Axis | None, arg(help_behavior_hint="")] = None
    """Axis of the file that is up. Default: as usual for its format."""
    front: Annotated[Axis | None, arg(help_behavior_hint="")] = None
    """Axis of the file that the asset's front looks along. Default: as usual for its format."""
    init: Suppress[None] = None
    image: Suppress[tuple[Path, ...]] = ()
    image_azimuth: Suppress[tuple[float, ...]] = ()
    image_elevation: Suppress[tuple[float, ...]] = ()
    for_mesh: Suppress[Literal[False]] = False

    def started(self, request: Request, asset: Path, strength: float, **chosen: Any) -> Request:
        """The request with the asset as what it starts from; what is wrong with the asset is said first."""
        from psd_gs.config import RefineConfig, from_dict
        from psd_gs.refine import Original, task

        options = task(asset, strength, keep=self.keep, up=self.up, front=self.front, **chosen)
        Original.of(from_dict(RefineConfig, options["refine"], "command line"))
        return replace(request, task=options)


@dataclass(kw_only=True)
class Refine(Starting):
    """Change an asset as a sentence says.

    Starts from a splat of any origin, instead of from nothing, and writes it into outputs/PROMPT-SEED/ under its own
    name: in its own format, axes, place and size. Beside it are before-after.html, which shows both under one camera,
    moved.png, which shows what moved and what is new, and report.html with the scores before and after. What is
    outside of --box, --sphere or --mask stays as it is, to the bit.
    """

    asset: Annotated[Positional[Path], arg(metavar="ASSET")]
    """Splat file of any format that is read (see `psd-gs export --help`), or a run folder."""
    prompt: Positional[str]
    """The whole asset as it is to be, for instance "a corgi wearing a red hat"."""
    strength: Annotated[float, arg(metavar="0-1")] = STRENGTH
    """Highest noise level: 0.2 repairs, 0.5 changes materials and colours, 0.8 changes what the thing is."""
    only: Literal["all", "shape", "colour"] = "all"
    """What may change: shape is places, sizes, rotations and opacities; colour is colours and harmonics."""
    box: Annotated[str | None, arg(metavar="X0,Y0,Z0,X1,Y1,Z1", help_behavior_hint="")] = None
    """Only Gaussians in this box change, and new ones grow only there; in the file's own coordinates."""
    sphere: Annotated[str | None, arg(metavar="X,Y,Z,RADIUS", help_behavior_hint="")] = None
    """Likewise, in a ball."""
    mask: File = None
    """Likewise, those of this splat file: a selection that was saved from the asset (SuperSplat does)."""
    max_splats: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Most Gaussians of the result. Default: some thousands more than there are, by the preset."""

    def run(self) -> None:
        self.make(self.prompt)

    def request(self, prompt: str) -> Request:
        return self.started(
            super().request(prompt),
            self.asset,
            self.strength,
            only=self.only,
            max_splats=self.max_splats,
            mask=str(self.mask.resolve()) if self.mask else None,
            box=_numbers("box", self.box, 6),
            sphere=_numbers("sphere", self.sphere, 4),
        )


def _numbers(name: str, text: str | None, count: int) -> list[float] | None:
    """``text`` as so many numbers between commas."""
    from psd_gs.errors import ConfigError

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(abs(number) < float("inf") for number in numbers):
        raise ConfigError(f"--{name}: expected {count} numbers with commas between them, received {text!r}.")
    return numbers
