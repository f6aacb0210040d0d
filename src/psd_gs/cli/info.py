"""``psd-gs info``: what a splat or mesh file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg


@dataclass
class Info:
    """Show what a splat or mesh file holds: format, size, bounds and metadata."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Splat file of any format that export knows, a run folder, a mesh (.glb, .gltf, .obj, .ply or .stl), or - for a
    splat from standard input."""
    json: bool = False
    """Print one JSON object instead."""
    large: bool = False
    """Read a compressed file even if it becomes a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.cli.console import console
        from psd_gs.export.metadata import jsonable
        from psd_gs.export.open import holds_gaussians, open_splats
        from psd_gs.files import STREAM

        out = console()
        stream = str(self.file) == STREAM or (self.file.exists() and not self.file.is_file())
        splats = stream or holds_gaussians(self.file)
        facts = jsonable(open_splats(self.file, large=self.large).describe() if splats else _mesh_facts(self.file))
        if self.json:
            out.print(json.dumps(facts))
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
            "bounds": "  ".join(
                f"{axis} {a:{_form(a, b)}} to {b:{_form(a, b)}}" for axis, a, b in zip("xyz", low, high, strict=True)
            )
            + units,
            **{name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items() if name not in facts},
            **{f"{role} model": _words(some) for role, some in chain.items()},
        }
        width = max(map(len, lines))
        for name, value in lines.items():
            out.print(f"{name:{width}}  {value}")


def _mesh_facts(path: Path) -> Mapping[str, Any]:
    from psd_gs.mesh.describe import describe_mesh  # loads what a splat does not need

    return describe_mesh(path)


def _form(low: float, high: float) -> str:
    """A length to the millimetre, or to three digits below a centimetre."""
    return ".3f" if max(abs(low), abs(high)) >= 0.01 else ".3g"


def _splat_lines(facts: dict[str, Any]) -> dict[str, Any]:
    lines = {"frame": facts["frame"], "Gaussians": facts["n_splats"], "SH degree": facts["sh_degree"]}
    if "render_mode" in facts:
        lines["render mode"] = facts["render_mode"]
    if "offset" in facts:
        lines["offset"] = "  ".join(f"{axis} {value:.3f}" for axis, value in zip("xyz", facts["offset"], strict=True))
    return lines


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
