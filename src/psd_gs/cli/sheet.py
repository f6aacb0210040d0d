"""``psd-gs sheet``: many assets on one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Sheet:
    """Show many assets on one picture, each from between front and side, with its prompt below."""

    assets: Annotated[Positional[tuple[Path, ...]], arg(metavar="ASSET ...")]
    """Run folders, splat files of any format, meshes or point clouds."""
    output: Annotated[Path, arg(metavar="FILE.png", aliases=["-o"])] = Path("sheet.png")
    """Picture to write."""
    captions: Annotated[tuple[str, ...], arg(metavar="TEXT ...")] = ()
    """One per asset. Default: its prompt, or else its name."""
    columns: Annotated[int, arg(metavar="N", help_behavior_hint="(default: as many as rows)")] = 0
    """Assets side by side."""
    size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Width and height of each."""
    large: bool = False
    """Read compressed files even if they become a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.asset import open_asset
        from psd_gs.cli.console import console
        from psd_gs.errors import InputError
        from psd_gs.export.pictures import contact_sheet, three_quarter_view

        if not self.assets:
            raise InputError("expected one asset or more, received none. Name run folders, splat files or meshes.")
        if self.output.suffix.lower() != ".png":
            raise InputError(f"--output: expected a .png, received {self.output}.")
        if not (16 <= self.size <= 2048 and self.columns >= 0):
            raise InputError(
                f"expected a --size of 16 to 2048 and --columns of 0 or more, received {self.size} and {self.columns}."
            )
        if self.captions and len(self.captions) != len(self.assets):
            raise InputError(f"--captions: expected {len(self.assets)}, received {len(self.captions)}.")
        captions = self.captions or [_caption(path) for path in self.assets]
        pictures = [three_quarter_view(open_asset(path, large=self.large), self.size) for path in self.assets]
        contact_sheet(pictures, self.output, captions=captions, columns=self.columns or None, size=self.size)
        console().print(f"{self.output}  {self.output.stat().st_size / 1024:.0f} KiB")


def _caption(path: Path) -> str:
    from psd_gs.asset import prompt_of
    from psd_gs.errors import InputError

    try:
        return prompt_of(path)
    except InputError:  # made elsewhere, or missing, which loading will say
        return path.resolve().name
