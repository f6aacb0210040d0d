"""What refining does to the lists of ``refine.json``: does the judge see the edit, and what became of the rest.

    python tools/bench/refine.py edits OUT --kits KITS
    python tools/bench/refine.py repairs OUT
    python tools/bench/refine.py large OUT --kits KITS     # how long it takes with 100 000 Gaussians

One line of ``OUT/PART.jsonl`` per entry, and ``OUT/PART.png`` with all of them before and after; an entry that has its
line is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.pack import read_mesh

from bench.common import Row
from bench.lists import Journal, add_list_arguments
from psd_gs.asset import surface_gaussians
from psd_gs.cameras import turntable
from psd_gs.config import STRENGTH
from psd_gs.export.formats import load, save
from psd_gs.export.pictures import contact_sheet
from psd_gs.gaussians import Gaussians, from_points
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.refine import Original
from psd_gs.render import render
from psd_gs.result import Result
from psd_gs.rewards.base import Reward
from psd_gs.runs import slug
from psd_gs.scoring import score_asset

LISTS = Path(__file__).with_name("refine.json")
POINTS = 12_000
"""Of a mesh that becomes a splat, unless an entry says how many."""


def kit_mesh(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, triangles and colours of the faces (sRGB, 0 to 1) of a mesh of the kits."""
    vertices, triangles, colours = read_mesh(folder, name)
    return vertices.astype(np.float32) / 32767, triangles.astype(int), colours / 255


def kit_splat(folder: Path, name: str, count: int) -> Gaussians:
    """A mesh of the kits as Gaussians on its surface."""
    import trimesh

    vertices, triangles, colours = kit_mesh(folder, name)
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    points, faces = trimesh.sample.sample_surface(mesh, count, seed=0)
    return surface_gaussians(torch.from_numpy(points).float(), torch.from_numpy(colours[faces]).float())


def source(name: str, pipeline: TextTo3DPipeline, arguments: argparse.Namespace, count: int = POINTS) -> Path:
    """The file of an asset of the lists, made if it is not there."""
    path = arguments.out / "assets" / f"{slug(name)}{'' if count == POINTS else f'-{count}'}.ply"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("kit:"):
            asset = kit_splat(arguments.kits, name.removeprefix("kit:"), count)
        else:
            asset = pipeline(name, seed=0, preset="draft").gaussians
        save(asset, path)
    return path


def upper(asset: Gaussians) -> list[float]:
    """A box around the upper two fifths and as much air above, in the axes of a PLY (y down)."""
    low, high = asset.means.amin(0), asset.means.amax(0)
    size = high - low
    x0, _, z0 = (low - size).tolist()
    x1, _, z1 = (high + size).tolist()
    bottom, top = float(high[1] - 0.4 * size[1]), float(high[1] + 0.6 * size[1])
    return [x0, -top, -z1, x1, -bottom, -z0]


def refined(pipeline: TextTo3DPipeline, path: Path, prompt: str, how: Row, preset: str) -> Result:
    """What ``psd-gs refine`` makes of it, in memory."""
    given = {name: value for name, value in how.items() if name not in ("strength", "box")}
    if how.get("box") == "upper":
        given["box"] = upper(load(path))
    strength = how.get("strength", STRENGTH)
    return pipeline.refine(path, prompt, strength=strength, preset=preset, overrides={"refine": given})


def preferred(assets: dict[str, Gaussians], prompts: tuple[str, str], judge: Reward) -> Row:
    """What the judge says of the assets under the old prompt and the new one, and which of the two it prefers."""
    scores = {
        name: [round(score_asset(asset, prompt, judge), 4) for prompt in prompts] for name, asset in assets.items()
    }
    return {"judge": scores, **{f"prefers_new_{name}": pair[1] > pair[0] for name, pair in scores.items()}}


def edit(entry: Row, pipeline: TextTo3DPipeline, arguments: argparse.Namespace) -> tuple[Row, list[Gaussians]]:
    """Does the judge prefer the new prompt, before and after."""
    assert pipeline.judge is not None
    path = source(entry["asset"], pipeline, arguments, entry.get("points", POINTS))
    old, how = entry.get("old", entry["asset"]), entry.get("options", {})
    start = time.perf_counter()
    result = refined(pipeline, path, entry["new"], how, arguments.preset)
    seconds = round(time.perf_counter() - start, 1)
    original = Original.of(result.config.refine)
    before, after = original.fitted(original.gaussians), original.fitted(result.gaussians)
    judged = preferred({"before": before, "after": after}, (old, entry["new"]), pipeline.judge)
    return {**result.refined, **entry, "old": old, **judged, "seconds": seconds}, [before, after]


def spoiled(asset: Gaussians, fault: str) -> Gaussians:
    """An asset with a typical fault of a feed-forward model; the asset lies in the world."""
    g = torch.Generator().manual_seed(0)
    n = len(asset)
    rgb = torch.rand(n, 3, generator=g)
    if fault == "fog":
        places = 0.3 * torch.randn(200, 3, generator=g)
        return joined(asset, from_points(places, torch.full((200, 3), 0.7), scale=0.08, opacity=0.12))
    if fault == "floaters":
        ways = torch.nn.functional.normalize(torch.randn(40, 3, generator=g), dim=1)
        return joined(asset, from_points(0.55 * ways, rgb[:1].expand(40, 3), scale=0.025, opacity=0.9))
    out = replace(asset, **{name: tensor.clone() for name, tensor in asset.params().items()})  # type: ignore[arg-type]
    if fault == "mottled back":
        back = asset.means[:, 2] < asset.means[:, 2].median()
        out.sh0[back] += 1.2 * torch.randn(int(back.sum()), 1, 3, generator=g)
    elif fault == "noise":
        out.means += 0.02 * torch.randn(n, 3, generator=g)
        out.sh0 += 0.6 * torch.randn(n, 1, 3, generator=g)
    else:
        out.scales += math.log(1.8)
    return out


def joined(one: Gaussians, other: Gaussians) -> Gaussians:
    shN = other.sh0.new_zeros(len(other), one.shN.shape[1], 3)
    pairs = {name: (tensor, getattr(replace(other, shN=shN), name)) for name, tensor in one.params().items()}
    return Gaussians(**{name: torch.cat(pair) for name, pair in pairs.items()})


def psnr(one: Gaussians, other: Gaussians) -> float:
    cameras = turntable(8, elevation=15.0, radius=0.69, size=128)
    a, b = (render(asset, cameras, torch.ones(3)).rgb for asset in (one, other))
    return round(float(-10 * (a - b).square().mean().log10()), 2)


def repair(entry: list[str], pipeline: TextTo3DPipeline, arguments: argparse.Namespace) -> tuple[Row, list[Gaussians]]:
    """Does the judge like it better, and is it nearer to what it was before it was spoiled."""
    assert pipeline.judge is not None
    prompt, fault = entry
    clean = load(source(prompt, pipeline, arguments))
    path = arguments.out / "assets" / f"{slug(prompt)}-{slug(fault)}.ply"
    save(spoiled(clean, fault), path)
    strength = json.loads(LISTS.read_text(encoding="utf-8"))["repairs"]["strength"]
    result = refined(pipeline, path, prompt, {"strength": strength}, arguments.preset)
    original = Original.of(result.config.refine)
    three = [original.fitted(asset) for asset in (clean, original.gaussians, result.gaussians)]
    judge = dict(
        zip(("clean", "before", "after"), (score_asset(a, prompt, pipeline.judge) for a in three), strict=True)
    )
    row = {"asset": prompt, "fault": fault, "judge": {name: round(score, 4) for name, score in judge.items()}}
    row |= {"psnr_before": psnr(three[0], three[1]), "psnr_after": psnr(three[0], three[2])}
    row["better"] = judge["after"] > judge["before"]
    row["nearer"] = row["psnr_after"] > row["psnr_before"]
    return row, three[1:]


PARTS = {"edits": edit, "repairs": repair, "large": edit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    add_list_arguments(parser, kits=False)
    arguments = parser.parse_args()
    lists = json.loads(LISTS.read_text(encoding="utf-8"))
    entries = lists["repairs"]["assets"] if arguments.part == "repairs" else lists[arguments.part]
    journal = Journal(arguments.out / f"{arguments.part}.jsonl")
    pipeline = TextTo3DPipeline.from_pretrained("mini", device="cpu")

    def place(i: int, name: str) -> Path:
        return arguments.out / f"{arguments.part}-{i:02d}-{name}.ply"

    for i, entry in enumerate(entries):
        if not journal.wants(arguments.entries, entry=i) or (not arguments.kits and "kit:" in json.dumps(entry)):
            continue
        row, assets = PARTS[arguments.part](entry, pipeline, arguments)
        for asset, name in zip(assets, ("before", "after"), strict=True):
            save(asset, place(i, name))
        journal.add({"entry": i, **row})
    report(journal, lambda row, name: load(place(row["entry"], name)))


def report(journal: Journal, asset: Callable[[Row, str], Gaussians]) -> None:
    """The shares that the bars ask for, and a picture of every asset before and after."""
    names = ("prefers_new_before", "prefers_new_after", "better", "nearer", "same_shape")
    for name in (name for name in names if name in journal.rows[0]):
        print(f"{name}: {sum(row[name] for row in journal.rows)} of {len(journal.rows)}")
    pictures, captions = [], []
    camera = turntable(2, elevation=20.0, radius=0.69, size=192, start=35.0)
    for row in sorted(journal.rows, key=lambda row: row["entry"]):
        for name, prompt in (("before", "old"), ("after", "new")):
            pictures += list(render(asset(row, name), camera, torch.ones(3)).rgb)
            captions += [str(row.get(prompt) or row["asset"]), ""]
    contact_sheet(pictures, journal.path.with_suffix(".png"), captions=captions, columns=8, size=160)


if __name__ == "__main__":
    main()
