"""Presets at real size without real weights: what the loop makes of a prior that knows the object.

    python tools/bench/oracle.py run default recipe:mvdream --kits FOLDER
    python tools/bench/oracle.py run default --kits FOLDER --objects 2 --size 64 --steps 300 --set init.count=2000
    python tools/bench/oracle.py report --write docs/results/presets.md

An arm is a preset or ``recipe:NAME``, with the options of ``--set`` over it. Every finished run is a file under the
digest of all that decides it; an unfinished one goes on from its checkpoint when the command is given again. PSNR (on
white, whole pictures) and IoU (alpha above a half) are means over twelve views that no step has seen. ``--size``
shrinks prior and renders alike: for development, not for the report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.dataset import over

from bench.common import ROOT, Progress, Row, add_set_argument, kept, options_of
from bench.oracle_prior import Flaws, OraclePrior, OracleReward, Target, read_target
from psd_gs.cameras import Cameras, joined, turntable
from psd_gs.config import Config, make_config, merged, to_dict
from psd_gs.densify import contribution
from psd_gs.export.pictures import contact_sheet
from psd_gs.files import write_atomic
from psd_gs.gaussians import Gaussians
from psd_gs.job import Job
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.render import render
from psd_gs.trainer import StepEvent, stream_seeds

OBJECTS = (  # one of each category of the kits, drawn at random among those of good quality whose front is known
    "quaternius-ultimate-space-pack-spaceship-finnthefrog",
    "fbx-farm-animals-animated-jun-2018-pig",
    "kaykit-restaurant-bits-1-0-fridge-b",
    "kenney-citykitindustrial-building-f",
    "kenney-holidaykit-sockgreen",
    "quaternius-rpg-items-pack-chest-closed",
    "fbx-holiday-pack-nov-2016-snowman",
    "kaykit-dungeon-remastered-1-0-banner-shield-yellow",
    "quaternius-house-interior-pack-bathroom-shower1",
    "kenney-miniarcade-ticketmachine",
    "kenney-minicharacters-sk-characterfemale-d",
    "kenney-prototypekit-vehicleconvertible",
    "quaternius-cute-fish-pack-cowfish",
    "quaternius-platformer-game-pack-numbers-6",
    "kenney-graveyardkit-bench",
    "kenney-retrourbankit-windowsmalltype-b",
    "kenney-spacekit-monorailtrainfront",
    "quaternius-platformer-game-pack-heart-outline",
    "kenney-watercraftpack-shipsmallghost",
    "kaykit-character-pack-adventures-1-0-shield-round-barbarian",
)
SETS = {"tuning": OBJECTS[::2], "report": OBJECTS[1::2]}
FULL = {"mvdream": 256, "sd": 512}
"""Side of a prior's pictures, pixels."""
FLAWS = {
    "exact": Flaws(),
    "blurred": Flaws(blur=1.0),
    "hard": Flaws(blur=1.0, janus=0.1, tint=0.05),
}
HIDDEN = 0.02
"""A Gaussian of which a smaller share of its weight is seen is hidden."""


def unseen(size: int) -> Cameras:
    """Twelve views between those of any run, at a distance and a field of view of their own."""
    return joined(
        [turntable(6, elevation=8.0, size=size, start=7.0), turntable(6, elevation=24.0, size=size, start=37.0)]
    )


@torch.no_grad()
def quality(asset: Gaussians, target: Target, size: int) -> Row:
    """PSNR in dB and intersection over union, means over the unseen views."""
    cameras = unseen(size)
    true, white = target.views(cameras), torch.ones(3)
    out = render(asset, cameras, white)
    error = (out.rgb.clamp(0, 1).permute(0, 3, 1, 2) - over(true, white)).square().mean((1, 2, 3))
    found, there = out.alpha[..., 0] > 0.5, true[:, 3] > 0.5
    iou = (found & there).sum((1, 2)) / (found | there).sum((1, 2)).clamp_min(1)
    return {"psnr": float((-10 * error.clamp_min(1e-10).log10()).mean()), "iou": float(iou.mean())}


def hidden(asset: Gaussians, size: int = 128) -> float:
    """Share of the Gaussians of which less than :data:`HIDDEN` of their weight is seen from twelve sides."""
    cameras = joined([turntable(6, elevation=e, radius=0.69, size=size, start=e) for e in (-20.0, 40.0)])
    seen = contribution(asset, cameras)
    focal = float(cameras.Ks[0, 0, 0]) / float(cameras.positions[0].norm())
    area = 2 * torch.pi * (asset.scales.exp().mean(-1) * focal) ** 2
    free = len(cameras) * torch.sigmoid(asset.opacities) * area
    return float((seen < HIDDEN * free).float().mean())


# --- runs ------------------------------------------------------------------------------------------------------------


def configured(arm: str, family: str, size: int, overrides: Row, names: Row) -> Config:
    """The options of an arm at ``size`` pixels of the prior, its renders in proportion.

    A preference speaks only where ``names`` has a reward; a start from another model is a ball here.
    """
    models: Row = {"prior": "oracle", "device": "cpu", "judge": "none"}
    usual: Row = {"init": {"source": "ball"}}
    if names["reward"] == "none":
        usual["guidance"] = {"preference": "none"}
    config = make_config(arm.removeprefix("recipe:"), family, usual, overrides, models | names)
    factor = size / FULL[family]
    first, last = (max(16, round(side * factor)) for side in config.cameras.size)
    return replace(config, cameras=replace(config.cameras, size=(first, last)))


def oracle(config: Config, target: Target, family: str, size: int, latent: bool, flaws: Flaws) -> OraclePrior:
    """The prior of a run."""
    return OraclePrior(
        target,
        views=4 if family == "mvdream" else 1,
        image_size=size,
        latent=latent,
        flaws=flaws,
        backgrounds=config.backgrounds,
        seed=stream_seeds(config.seed)["background"],
    )


def optimized(config: Config, prior: OraclePrior, picture: Path) -> Row:
    """One asset to its end, from its checkpoint if there is one, and what is measured of it."""
    folder = picture.with_suffix("")  # for the time of the run
    reward = OracleReward(prior) if config.reward != "none" else None
    pipeline = TextTo3DPipeline(prior, reward)
    first = hidden(pipeline.trainer(config).gaussians.detach())

    def show(event: StepEvent) -> None:
        if event.step % max(1, event.steps // 10) == 0:
            now = quality(trainer.gaussians.detach(), prior.target, prior.image_size)
            so_far = f"{int(event.logs['gaussians'])} Gaussians, {now['psnr']:.2f} dB, IoU {now['iou']:.3f}"
            print(f"    {event.step}/{event.steps}: {so_far}", flush=True)

    with Job.open(folder, config) as job:
        trainer = job.begin(pipeline, anew=True)
        trainer.observe = None
        prior.skip(trainer.step)
        job.run(show)
    counts = [json.loads(line)["gaussians"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    asset = trainer.finish()
    found = quality(asset, prior.target, prior.image_size)
    views = unseen(prior.image_size)[::3]
    with torch.no_grad():
        made = render(asset, views, torch.ones(3)).rgb.clamp(0, 1)
    true = over(prior.target.views(views), torch.ones(3)).permute(0, 2, 3, 1)
    contact_sheet([*true, *made], picture, columns=4, size=128)
    shutil.rmtree(folder)
    return {
        **{name: round(value, 4) for name, value in found.items()},
        "hidden": round(first, 4),
        "start": config.init.count,
        "most": int(max(counts)),
        "gaussians": len(asset),
        "cap": config.densify.cap if config.densify.enabled else None,
    }


def run(arguments: argparse.Namespace) -> list[Row]:
    """Every arm on every object; those that are finished are not made again."""
    objects = SETS[arguments.objects_of][: arguments.objects]
    targets = arguments.meshes or [f"{arguments.kits}:{name}" for name in objects]
    size, flaws = arguments.size or FULL[arguments.family], FLAWS[arguments.flaws]
    overrides = options_of(arguments)
    if arguments.preference:
        overrides = merged(overrides, {"guidance": {"preference": arguments.preference}})
    progress = Progress(len(targets) * len(arguments.arms))
    rows = []
    for where in targets:
        target = read_target(where)
        for arm in arguments.arms:
            names: Row = {"prompt": target.name, "seed": arguments.seed}
            names["reward"] = "oracle-reward" if arguments.preference else "none"
            config = configured(arm, arguments.family, size, overrides, names)
            decides: Row = {
                "config": to_dict(config),
                "object": Path(where).name.rpartition(":")[2],
                "family": arguments.family,
                "size": size,
                "latent": arguments.latent,
                "flaws": asdict(flaws),
            }
            said: Row = {name: decides[name] for name in ("object", "family", "size", "latent")}
            said |= {"arm": arm, "set": arguments.set, "preference": config.guidance.preference}
            said |= {"oracle": arguments.flaws, "group": arguments.objects_of, "steps": config.steps}

            def make(picture: Path, config: Config = config, said: Row = said, target: Target = target) -> Row:
                prior = oracle(config, target, arguments.family, size, arguments.latent, flaws)
                return said | optimized(config, prior, picture)

            row = kept(arguments.out, decides, make)
            rows.append(row)
            progress.step(f"{arm} {target.name}: {row['psnr']:.2f} dB, IoU {row['iou']:.3f}, {row['gaussians']}")
    return rows


# --- report ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Means over objects; one line per arm, options, steps, oracle and preference."""
    columns = ("arm", "set", "family", "size", "latent", "oracle", "preference", "steps")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row[name] for name in columns]), []).append(row)
    lines = [
        "| setting | prior | oracle | preference | steps | objects | PSNR, dB | IoU | Gaussians | most | cap | hidden "
        "at first |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, some in groups.items():
        arm, options, family, size, latent, answers, preference, steps = json.loads(name)

        def mean(key: str, some: list[Row] = some) -> float:
            return sum(row[key] for row in some) / len(some)

        prior = f"{4 if family == 'mvdream' else 1} x {size}{', latent' if latent else ''}"
        setting = " ".join([arm, *(f"`{option}`" for option in options)])
        numbers = [f"{mean('psnr'):.2f}", f"{mean('iou'):.3f}", *(f"{mean(k):.0f}" for k in ("gaussians", "most"))]
        cells = [setting, prior, answers, preference, steps, len(some), *numbers, some[0]["cap"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {mean('hidden'):.1%} |")
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> None:
    """The table of all finished runs, printed or between the marks of a Markdown file."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.out.glob("*.json"))]
    rows = [row for row in rows if arguments.group in ("all", row["group"])]
    rows.sort(key=lambda row: (row["family"], row["size"], row["oracle"], row["preference"], row["steps"], row["arm"]))
    text = table(rows)
    if arguments.write is None:
        print(text)
        return
    begin, end = "<!-- oracle -->\n", "<!-- /oracle -->"
    page = arguments.write.read_text(encoding="utf-8")
    head, _, rest = page.partition(begin)
    write_atomic(arguments.write, f"{head}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "oracle", help="keeps finished work")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="make and measure")
    one.set_defaults(act=run)
    one.add_argument("arms", nargs="+", help="draft, default, quality, or recipe:NAME")
    one.add_argument("--kits", type=Path, help="folder of the kits pack: meshes-*.npz and assets.tsv")
    one.add_argument("--meshes", nargs="+", help="mesh files instead")
    one.add_argument("--objects-of", choices=list(SETS), default="tuning", help="which ten of the kits")
    one.add_argument("--objects", type=int, default=10, metavar="N", help="only the first N of them")
    one.add_argument("--family", choices=list(FULL), default="mvdream", help="4 views of 256 pixels, or one of 512")
    one.add_argument("--size", type=int, help="of the prior's pictures instead")
    one.add_argument("--latent", action="store_true", help="through a fixed 8x down- and upsampling")
    one.add_argument("--flaws", choices=list(FLAWS), default="exact", help="what the prior does not know")
    one.add_argument("--preference", help="with a reward that knows the object")
    one.add_argument("--steps", type=int, help="instead of the arm's")
    one.add_argument("--seed", type=int, default=0)
    add_set_argument(one)
    two = commands.add_parser("report", help="table of everything that is finished")
    two.set_defaults(act=report)
    two.add_argument("--group", choices=["all", *SETS], default="all")
    two.add_argument("--write", type=Path, help="Markdown file, between its marks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    parsed.act(parsed)


if __name__ == "__main__":
    main()
