"""``psd-gs export``: splat files into other splat formats."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from psd_gs.export.convert import Conversion, Converted


@dataclass
class Export:
    """Convert splat files into other formats, by their extensions.

    Formats: .ply (3DGS), .compressed.ply, .splat, .spz, .sog, .glb (KHR_gaussian_splatting), .usdc, .usdz, and .html, a
    page that shows the asset. What is known of it (prompt, seed, models, scores) goes into the files where the format
    has room, and into FILE.json beside each.

    With --to, every name is one to read: files, folders (with what lies below them) and globs. A dash in place of a
    name is standard input or output.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """Splat file to read, run folder, or - for standard input."""
    targets: Annotated[Positional[tuple[Path, ...]], arg(metavar="OUT [OUT ...]", help_behavior_hint="")]
    """Files to write, or - for standard output. With --to: more to read."""
    to: Annotated[tuple[str, ...], arg(metavar="EXT [EXT ...]", help_behavior_hint="")] = ()
    """Write each file that is read in these formats, such as .spz .sog, beside it; or what - is (default .ply)."""
    output_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """With --to: write below this folder, keeping the folders that the files have below their common one."""
    suffix: Annotated[str, arg(metavar="EXT")] = ".ply"
    """With --to: which files of a folder are read."""
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
    large: bool = False
    """Read a compressed file even if it becomes a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.cli.console import say
        from psd_gs.errors import InputError
        from psd_gs.export.convert import Conversion, convert
        from psd_gs.export.edit import Edit
        from psd_gs.export.formats import format_of
        from psd_gs.files import STREAM

        how = Conversion(
            Edit(self.sh_degree, self.max_splats, self.prune, self.min_opacity, self.floaters),
            frame=None if self.frame == "auto" else self.frame,
            input_frame=None if self.input_frame == "auto" else self.input_frame,
            metadata=not self.no_metadata,
            spz_version=self.spz_version,
            large=self.large,
        )
        for extension in self.to:
            format_of(f"a{extension}", write=True)
        names = [str(path) for path in (self.source, *self.targets)]
        if STREAM in names[1:]:
            if len(names) > 2 or len(self.to) > 1:
                raise InputError(
                    f"expected one format for standard output and no other file, received {len(names) - 1}."
                )
            self._to_standard_output(how)
        elif self.to and names[0] != STREAM:
            self._many(names, how)
        else:
            done = convert(self.source, self.targets, how)
            say(_summary(done), *(f"{target}  {target.stat().st_size / 1024:.0f} KiB" for target in self.targets))

    def _to_standard_output(self, how: Conversion) -> None:
        import tempfile

        from psd_gs.cli.console import say
        from psd_gs.export.convert import convert

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"output{(self.to or ('.ply',))[0]}"
            done = convert(self.source, [target], how)
            sys.stdout.buffer.write(target.read_bytes())
            sys.stdout.buffer.flush()
        say(_summary(done), errors=True)

    def _many(self, names: Sequence[str], how: Conversion) -> None:
        """Each file that is found; one that cannot be converted is one line, and the others are converted all the
        same."""
        from psd_gs.cli.console import say
        from psd_gs.cli.found import find, places
        from psd_gs.errors import PsdGsError
        from psd_gs.export.convert import convert
        from psd_gs.files import writing

        sources = find(names, self.suffix)
        failed = 0
        for i, (source, place) in enumerate(zip(sources, places(sources, self.output_dir), strict=True)):
            try:
                with writing(place.parent):
                    place.parent.mkdir(parents=True, exist_ok=True)
                done = convert(source, [place.with_name(place.name + extension) for extension in self.to], how)
            except PsdGsError as error:
                failed += 1
                say(f"error: {error}", errors=True)
                continue
            say(f"[{i + 1}/{len(sources)}] {source}  {_summary(done)}")
        if failed:
            raise SystemExit(1)


def _summary(done: Converted) -> str:
    dropped = f" of {done.before}" if done.after < done.before else ""
    return f"{done.after}{dropped} Gaussians, SH degree {done.sh_degree}"
