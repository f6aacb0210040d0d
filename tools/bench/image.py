"""One picture of a thing and its name against the name alone: is the picture held, and is the thing right all around?

    python tools/bench/image.py OUT --kits KITS

The things of ``image.json`` are meshes of the kits, drawn as the prior's training views are, from one of the
eight evaluation views, halfway between front and side. Judged are the other seven: the judge picks among the twelve
names. One line of ``OUT/rows.jsonl`` per thing and arm, and ``OUT/sheet.png``: the picture, four views with it, four of
the name alone; a thing that has its line is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.pack import Mesh, Pack
from mini.raster import Surface, crease_normals, draw
from mini.scenes import RADIUS

from bench.common import Row, add_set_argument, options_of
from bench.lists import Journal, add_list_arguments
from psd_gs.cameras import turntable
from psd_gs.export.formats import load, save
from psd_gs.export.pictures import contact_sheet
from psd_gs.gaussians import Gaussians
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.reference import Reference
from psd_gs.render import render
from psd_gs.rewards.base import Reward, group_score
from psd_gs.runs import slug
from psd_gs.scoring import evaluation_cameras

LIST = Path(__file__).with_suffix(".json")
SHOWN, AZIMUTH, ELEVATION = 4, 45.0, 30.0
"""Which of the evaluation views the picture is, degrees: from halfway between the front and the thing's left."""
LIGHT = np.array([0.35, 0.8, 0.5], np.float32)
SIZE = 256


def picture(mesh: Mesh, path: Path) -> Path:
    """A view of a mesh with transparency around it."""
    faces = len(mesh.triangles)
    normals = crease_normals(mesh.vertices, mesh.triangles, 0.8)
    plain = np.zeros(faces, int), np.ones(faces, np.float32)
    surface = Surface(mesh.vertices, mesh.triangles, normals, mesh.colours, *plain).normalized(RADIUS)
    camera = evaluation_cameras(SIZE)[SHOWN : SHOWN + 1]
    rgba = draw(surface, camera.viewmats.numpy(), camera.Ks.numpy(), SIZE, LIGHT)[0, :4].transpose(1, 2, 0)
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * rgba.clip(0, 1)).round().astype(np.uint8)).save(path)
    return path


@torch.no_grad()
def named(asset: Gaussians, judge: Reward, names: list[str]) -> Float[Tensor, " names"]:
    """The judge's score of each name, mean over the seven views that no picture shows."""
    cameras = evaluation_cameras(128)
    images = render(asset, cameras, torch.ones(3)).rgb.clamp(0, 1).permute(0, 3, 1, 2)
    total = torch.zeros(len(names))
    for rows in (torch.arange(SHOWN), torch.arange(SHOWN + 1, 8)):
        sets = images[rows].expand(len(names), -1, -1, -1, -1)
        scores = judge.score(sets, names, cameras[rows.repeat(len(names))])
        total += len(rows) / 7 * group_score(scores).float().cpu()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_list_arguments(parser)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    add_set_argument(parser)
    parser.add_argument("--arms", nargs="*", default=["picture", "name"], choices=("picture", "name"))
    arguments = parser.parse_args()
    entries = json.loads(LIST.read_text(encoding="utf-8"))
    names = [name for name, _ in entries]
    journal = Journal(arguments.out / "rows.jsonl")
    pack, pipeline = Pack(arguments.kits), TextTo3DPipeline.from_pretrained("mini", device="cpu")
    assert pipeline.judge is not None
    for i, (name, mesh) in enumerate(entries):
        file = picture(pack.mesh(mesh), arguments.out / "pictures" / f"{slug(name)}.png")
        for arm in arguments.arms:
            if not journal.wants(arguments.entries, entry=i, arm=arm):
                continue
            places = {"files": [str(file)], "azimuth": [AZIMUTH], "elevation": [ELEVATION]}
            given = {"image": places} if arm == "picture" else {}
            result = pipeline(name, preset=arguments.preset, overrides=options_of(arguments) | given)
            save(result.gaussians, arguments.out / f"{i:02d}-{arm}.ply")
            scores = named(result.gaussians, pipeline.judge, names)
            row: Row = {"entry": i, "arm": arm, "name": name, "mesh": mesh}
            row |= {"right": int(scores.argmax()) == i, "taken_for": names[int(scores.argmax())]}
            row |= {"score": round(float(scores[i]), 3), "match": round(float(scores.softmax(0)[i]), 3)}
            if arm == "picture":
                row["psnr"] = Reference(result.config.image).held(result.gaussians)[0]["psnr"]
            journal.add(row)
    report(journal.rows, arguments.out)


def report(rows: list[Row], out: Path) -> None:
    """The numbers that the bars ask for, and a picture of everything."""
    for arm in ("picture", "name"):
        own = [row for row in rows if row["arm"] == arm]
        if own:
            right = sum(row["right"] for row in own)
            print(f"{arm}: right {right} of {len(own)}, mean score {np.mean([row['score'] for row in own]):.3f}")
    psnr = [row["psnr"] for row in rows if "psnr" in row]
    if psnr:
        print(
            f"held view: mean {np.mean(psnr):.2f} dB, least {min(psnr):.2f}, {sum(p >= 25 for p in psnr)} at 25 or more"
        )
    pictures, captions = [], []
    cameras = turntable(4, elevation=ELEVATION, radius=0.69, size=160, start=AZIMUTH)
    for i in sorted({row["entry"] for row in rows}):
        by_arm = {row["arm"]: row for row in rows if row["entry"] == i}
        name = next(iter(by_arm.values()))["name"]
        shown = Image.open(out / "pictures" / f"{slug(name)}.png")
        flat = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB").resize((160, 160))
        pictures.append(torch.from_numpy(np.asarray(flat) / 255).float())
        captions.append(name)
        for arm in ("picture", "name"):
            there = arm in by_arm
            asset = load(out / f"{i:02d}-{arm}.ply") if there else None
            views = render(asset, cameras, torch.ones(3)).rgb if asset else torch.ones(4, 160, 160, 3)
            pictures += list(views)
            captions += [f"{arm}: {by_arm[arm]['taken_for']}" if there else "", "", "", ""]
    contact_sheet(pictures, out / "sheet.png", captions=captions, columns=9, size=128)


if __name__ == "__main__":
    main()
