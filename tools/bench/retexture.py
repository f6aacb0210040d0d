"""What retexturing does to the meshes of ``refine.json``: does the judge see the new colours, did the rest stay.

    python tools/bench/retexture.py OUT --kits KITS

Each mesh of the kits is written as a GLB with vertex colours, retextured, read back and judged. One line of
``OUT/retexture.jsonl`` per entry, and ``OUT/retexture.png`` with all of them before and after; an entry that has its
line is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.refine import LISTS, kit_mesh
from psd_gs.asset import open_asset
from psd_gs.cameras import turntable
from psd_gs.export.gltf_file import GltfFile
from psd_gs.export.pictures import contact_sheet
from psd_gs.mesh.glb import write_glb
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.surface import Mesh
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.refined import products
from psd_gs.render import render
from psd_gs.scoring import score_asset

Row = dict[str, Any]


def write_kit(folder: Path, name: str, path: Path) -> None:
    """A mesh of the kits as a GLB: flat shaded, a colour for each face."""
    vertices, triangles, colours = kit_mesh(folder, name)
    corners = vertices[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 0, normals / np.maximum(length, 1e-300), (0.0, 1.0, 0.0))
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    per_corner = [np.repeat(values, 3, axis=0).astype(np.float32) for values in (colours, normals)]
    write_glb(Mesh(corners.reshape(-1, 3), faces, *per_corner), path)


def same_shape(before: Path, after: Path) -> bool:
    """Whether all bytes of the buffer are there still, and the surface is the same."""
    old, new = (bytes(GltfFile(path).blob) for path in (before, after))
    shapes = [[part.positions[part.faces] for part in read_scene(path).meshes] for path in (before, after)]
    return new.startswith(old) and all(map(np.array_equal, *shapes))


def retextured(entry: list[str], pipeline: TextTo3DPipeline, arguments: argparse.Namespace) -> Row:
    """Does the judge prefer the new prompt, before and after, of the files as they are read again."""
    assert pipeline.judge is not None
    name, old, new = entry
    before, after = (arguments.out / kind / f"{name}.glb" for kind in ("before", "after"))
    for path in (before, after):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_kit(arguments.kits, name, before)
    result = pipeline.retexture(before, new, preset=arguments.preset)
    products(result.config.refine)[before.name](result, after)
    scores = {
        kind: [round(score_asset(open_asset(path), prompt, pipeline.judge), 4) for prompt in (old, new)]
        for kind, path in (("before", before), ("after", after))
    }
    prefers = {f"prefers_new_{kind}": pair[1] > pair[0] for kind, pair in scores.items()}
    return {"mesh": name, "old": old, "new": new, "judge": scores, **prefers, "same_shape": same_shape(before, after)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the lines, pictures and meshes")
    parser.add_argument("--kits", type=Path, required=True, help="folder of the meshes of the kits")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--entries", type=int, nargs="*", help="only these, counted from 0")
    arguments = parser.parse_args()
    entries = json.loads(LISTS.read_text(encoding="utf-8"))["retexture"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "retexture.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    pipeline = TextTo3DPipeline.from_pretrained("mini", device="cpu")
    for i, entry in enumerate(entries):
        if any(row["entry"] == i for row in rows) or (arguments.entries is not None and i not in arguments.entries):
            continue
        rows.append({"entry": i, **retextured(entry, pipeline, arguments)})
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    report(rows, arguments.out)


def report(rows: list[Row], out: Path) -> None:
    """The shares that the bars ask for, and a picture."""
    for name in ("prefers_new_before", "prefers_new_after", "same_shape"):
        print(f"{name}: {sum(row[name] for row in rows)} of {len(rows)}")
    pictures, captions = [], []
    camera = turntable(2, elevation=20.0, radius=0.69, size=192, start=35.0)
    for row in sorted(rows, key=lambda row: row["entry"]):
        for kind, prompt in (("before", row["old"]), ("after", row["new"])):
            pictures += list(render(open_asset(out / kind / f"{row['mesh']}.glb"), camera, torch.ones(3)).rgb)
            captions += [prompt, ""]
    contact_sheet(pictures, out / "retexture.png", captions=captions, columns=8, size=160)


if __name__ == "__main__":
    main()
