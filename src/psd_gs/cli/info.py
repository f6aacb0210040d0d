"""``psd-gs info``: what a splat file holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Info:
    """Show format, number, SH degree, bounds and metadata of a splat file."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Splat file of any format that export knows."""
    json: bool = False
    """Print one JSON object instead."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.export.formats import describe
        from psd_gs.export.metadata import jsonable

        console = Console(highlight=False, markup=False)
        facts = jsonable(describe(self.file))
        if self.json:
            console.print(json.dumps(facts), soft_wrap=True)
            return
        low, high = facts["bounds"]
        models = facts["metadata"].pop("models", None)
        chain = models if isinstance(models, dict) else {}
        lines = {
            "format": facts["format"],
            "size": f"{facts['bytes'] / 1024:.0f} KiB",
            "frame": facts["frame"],
            "Gaussians": facts["n_splats"],
            "SH degree": facts["sh_degree"],
            "bounds": "  ".join(f"{axis} {a:.3f} to {b:.3f}" for axis, a, b in zip("xyz", low, high, strict=True)),
            **{name: json.dumps(value, ensure_ascii=False) for name, value in facts["metadata"].items()},
            **{f"{role} model": _words(some) for role, some in chain.items()},
        }
        width = max(map(len, lines))
        for name, value in lines.items():
            console.print(f"{name:{width}}  {value}", soft_wrap=True)


def _words(models: object) -> str:
    """Models with their repositories, revisions and licences; files may hold anything."""
    entries = models if isinstance(models, list) else [models]
    return "; ".join(
        " · ".join(map(str, entry.values())) if isinstance(entry, dict) else str(entry) for entry in entries
    )
