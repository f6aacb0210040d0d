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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Row
from bench.lists import Journal, add_list_arguments
from bench.refine import LISTS, kit_mesh, preferred, report
from psd_gs.asset import open_asset
from psd_gs.export.gltf_file import GltfFile
from psd_gs.mesh.glb import write_glb
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.surface import Mesh
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.refined import products


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
    assets = {"before": open_asset(before), "after": open_asset(after)}
    row: Row = {"mesh": name, "old": old, "new": new, **preferred(assets, (old, new), pipeline.judge)}
    return row | {"same_shape": same_shape(before, after)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_list_arguments(parser)
    arguments = parser.parse_args()
    entries = json.loads(LISTS.read_text(encoding="utf-8"))["retexture"]
    journal = Journal(arguments.out / "retexture.jsonl")
    pipeline = TextTo3DPipeline.from_pretrained("mini", device="cpu")
    for i, entry in enumerate(entries):
        if journal.wants(arguments.entries, entry=i):
            journal.add({"entry": i, **retextured(entry, pipeline, arguments)})
    report(journal, lambda row, kind: open_asset(arguments.out / kind / f"{row['mesh']}.glb"))


if __name__ == "__main__":
    main()
