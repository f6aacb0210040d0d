"""``psd-gs export``: splat files into other splat formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass
class Export:
    """Convert a splat file into other formats, by their extensions.

    .ply (3DGS), .compressed.ply, .splat, .spz, .sog, .glb (KHR_gaussian_splatting), .usdc, .usdz, and
    .html, a page that shows the asset. What is known of it (prompt, seed, models, scores) goes into the files where
    the format has room, and into FILE.json beside each.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """Splat file to read."""
    targets: Annotated[Positional[tuple[Path, ...]], arg(metavar="OUT [OUT ...]", help_behavior_hint="")]
    """Files to write."""
    sh_degree: Annotated[int | None, arg(metavar="0-3", help_behavior_hint="")] = None
    """Drop the spherical harmonics above this degree."""
    max_splats: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Keep the N splats that cover most."""
    prune: bool = False
    """Drop splats that are not finite, nearly transparent, or float apart from the asset."""
    min_opacity: Annotated[float, arg(metavar="X")] = 0.02
    """With --prune: splats below this opacity go."""
    floaters: Annotated[float, arg(metavar="X")] = 0.005
    """With --prune: detached groups with less than this share of the visible area go."""
    frame: Annotated[Literal["auto", "gltf", "rdf"], arg(help_behavior_hint="")] = "auto"
    """Axes of the written files: gltf (y up) or rdf (y down, as 3DGS trains). Default: as usual for each format."""
    input_frame: Annotated[Literal["auto", "gltf", "rdf"], arg(help_behavior_hint="")] = "auto"
    """Axes of IN, if neither its metadata name them nor are they as usual for its format."""
    spz_version: Literal[3, 4] = 3
    """Version of .spz files; several viewers read only 3."""
    no_metadata: bool = False
    """Write the splats alone: no prompt, no seed, no FILE.json."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.export.convert import Conversion, convert
        from psd_gs.export.edit import Edit

        how = Conversion(
            Edit(self.sh_degree, self.max_splats, self.prune, self.min_opacity, self.floaters),
            frame=None if self.frame == "auto" else self.frame,
            input_frame=None if self.input_frame == "auto" else self.input_frame,
            metadata=not self.no_metadata,
            spz_version=self.spz_version,
        )
        done = convert(self.source, self.targets, how)
        console = Console(highlight=False, markup=False)
        dropped = f" of {done.before}" if done.after < done.before else ""
        console.print(f"{done.after}{dropped} Gaussians, SH degree {done.sh_degree}", soft_wrap=True)
        for target in self.targets:
            console.print(f"{target}  {target.stat().st_size / 1024:.0f} KiB", soft_wrap=True)
