"""``psd-gs report``: the page of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Report:
    """Write report.html of a run anew: pictures, curves, options and models in one file that needs no network.

    `generate` writes it at the end; of a run that is under way or was interrupted it shows what is there.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="")]
    """Folders of runs, such as outputs/a-corgi-0."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.errors import InputError
        from psd_gs.run_report import write_report

        if not self.runs:
            raise InputError("expected the folder of a run, received none. Name one, such as outputs/a-corgi-0.")
        console = Console(highlight=False, markup=False)
        for folder in self.runs:
            path = write_report(folder)
            console.print(f"{path}  {path.stat().st_size / 1024:.0f} KiB", soft_wrap=True)
