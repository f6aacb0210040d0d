"""``psd-gs info``: what a splat or mesh file holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg


@dataclass
class Info:
    """Show what a splat or mesh file holds: format, size, bounds and metadata."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Splat file of any format that export knows, or a mesh: .glb, .gltf, .obj, .ply or .stl."""
    json: bool = False
    """Print one JSON object instead."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.evaluation.load import holds_gaussians
        from psd_gs.export.formats import describe
        from psd_gs.export.metadata import jsonable
        from psd_gs.mesh.describe import describe_mesh

        console = Console(highlight=False, markup=False)
        splats = holds_gaussians(self.file)
        facts = jsonable(describe(self.file) if splats else describe_mesh(self.file))
        if self.json:
            console.print(json.dumps(facts), soft_wrap=True)
            return
        low, high = facts["bounds"]
        metadata = facts["metadata"]
        models = metadata.pop("models", None)
        chain = models if isinstance(models, dict) else {}
        units = " m" if metadata.get("units") == "metres" else ""
        lines = {
            "format": facts["format"],
            "size": f"{facts['bytes'] / 1024:.0f} KiB",
            **(_splat_lines(facts) if splats else _mesh_lines(facts)),
            "bounds": "  ".join(f"{axis} {a:.3f} to {b:.3f}" for axis, a, b in zip("xyz", low, high, strict=True))
            + units,
            **{name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items() if name not in facts},
            **{f"{role} model": _words(some) for role, some in chain.items()},
        }
        width = max(map(len, lines))
        for name, value in lines.items():
            console.print(f"{name:{width}}  {value}", soft_wrap=True)


def _splat_lines(facts: dict[str, Any]) -> dict[str, Any]:
    return {"frame": facts["frame"], "Gaussians": facts["n_splats"], "SH degree": facts["sh_degree"]}


def _mesh_lines(facts: dict[str, Any]) -> dict[str, Any]:
    materials = [
        " ".join([str(one["name"]), *(f"{name} {w} x {h}" for name, (w, h) in one["textures"].items())])
        for one in facts.get("materials", [])
    ]
    notes = {"notes": "; ".join(facts["notes"])} if facts["notes"] else {}
    if not facts["faces"]:
        return {"points": facts["vertices"], **notes}
    return {
        "vertices": facts["vertices"],
        "faces": facts["faces"],
        "bodies": facts["bodies"],
        "watertight": "yes" if facts["watertight"] else f"no, {facts['boundary_edges']} open edges",
        "materials": ", ".join(materials) or "none",
        "collision shapes": facts["collision_shapes"],
        "coarser levels": ", ".join(facts["lods"]) or "none",
        **notes,
    }


def _words(models: object) -> str:
    """Models with their repositories, revisions and licences; files may hold anything."""
    entries = models if isinstance(models, list) else [models]
    return "; ".join(
        " · ".join(map(str, entry.values())) if isinstance(entry, dict) else str(entry) for entry in entries
    )
