"""Do people get what they typed? The judge picks captions for finished assets of the forty report prompts.

    python tools/bench/recognizable.py --preset default
    python tools/bench/recognizable.py --prompts 8         # a first look

Three kinds of pictures are judged alike: the assets, the prior's own samples, and the generator's renders of the
same prompts (what the prior was trained on, of objects that it never saw). The judge sees four orthogonal views
together and scores the right caption and its ten distractors. The assets are those of `psd-gs eval run --arms psd` with
the same options and ``--output-dir``; start again to go on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.dataset import sample_light, shade, trace_scene
from mini.scenes import COLOURS, Look, paint, scene_of

from bench.common import (
    BENCH,
    ROOT,
    Progress,
    Row,
    add_sweep_arguments,
    digest,
    kept,
    provenance,
    sweep_of,
    write_report,
    yes,
)
from psd_gs.errors import PsdGsError
from psd_gs.evaluation.report import markdown_table, share
from psd_gs.evaluation.scores import caption_scores, match_probability, share_right
from psd_gs.evaluation.statistics import bootstrap
from psd_gs.evaluation.suites import Item
from psd_gs.evaluation.sweep import Sweep
from psd_gs.export.formats import load
from psd_gs.export.pictures import contact_sheet
from psd_gs.render import render
from psd_gs.runs import ASSET
from psd_gs.scoring import evaluation_cameras, evaluation_images

FILES = ("catalogue.yaml", "creatures.py", "dataset.py", "objects.py", "raster.py", "scenes.py", "sdf.py", "things.py")
GENERATOR = [ROOT / "tools" / "mini" / name for name in FILES]
SIZE = 128
"""Pixels per side of all pictures, as the embedded judge sees them in an evaluation."""

MIN_RIGHT, MIN_RATIO = 0.85, 0.9
"""The bars: share of right captions; score of the assets relative to the generator's renders."""

KINDS = {"asset": "assets", "prior": "the prior's samples", "generator": "the generator's renders"}
GROUPS = {"objects": slice(1, 5), "colours": slice(5, 8), "arrangements": slice(8, 11)}
"""Kinds of distractors, and where they stand among the captions of the suite."""

NAMES = tuple(COLOURS)
BRIGHTNESS = (0.45, 1.12)
"""Range of the factor that the generator's light puts on a surface's colour."""

LEVELS = 30
MOST, SOME = 0.5, 0.1
"""Least share of the object's pixels if one colour is named, and of each if several are."""

OF_GENERATOR = 0.8
"""Nothing is asked beyond this part of the share that a colour has in the generator's own pictures: a pink house
has doors and windows, and a blue scarf is small."""

Rows = dict[str, list[list[Row]]]
"""By kind: prompts, and the draws of each."""
Drawn = tuple[Float[Tensor, "S 4 3 H W"], Float[Tensor, "B 4 H W"]]
"""Sets of four views, sRGB in [0, 1], and the object's pixels in any views, premultiplied (none where unknown)."""


def looks() -> dict[str, Look]:
    """By prompt: what the generator builds for it."""
    files = [Path(__file__).with_name(name) for name in ("prompts.json", "dev_prompts.json")]
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    return {row["prompt"]: Look.from_json(row["look"]) for row in rows}


# --- pictures --------------------------------------------------------------------------------------------------------


def generator_renders(prompt: str, look: Look, draw: int) -> Drawn:
    """A new object that fits the prompt, on white, from the cameras that assets are judged from."""
    rng = random.Random(f"{prompt} {draw}")
    buffers = trace_scene(scene_of(look, rng), evaluation_cameras(SIZE))
    light = sample_light(1, torch.Generator().manual_seed(rng.getrandbits(31)))
    rgba = shade(buffers, [paint(look, rng)], light)[0]
    return (rgba[:, :3] + (1 - rgba[:, 3:])).unflatten(0, (2, 4)), rgba


def prior_samples(sweep: Sweep, prompt: str, draw: int, steps: int, scale: float) -> Drawn:
    """Two independent sets of the prior's own views, one from each ring of the evaluation cameras."""
    prior = sweep.pipeline.prior
    sampler = prior.pipeline
    sampler.set_progress_bar_config(disable=True)
    cameras = evaluation_cameras(prior.image_size)
    options = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt"}
    generator = torch.Generator().manual_seed(draw)
    sets = [sampler(prompt, cameras[i : i + 4], generator=generator, **options).images for i in (0, 4)]
    return torch.cat(sets), torch.zeros(0, 4, 1, 1)


@torch.no_grad()
def asset_views(path: Path | None) -> Drawn:
    """The evaluation views of an asset; None is one that vanished."""
    if path is None:
        return torch.ones(2, 4, 3, SIZE, SIZE), torch.zeros(0, 4, 1, 1)
    asset = load(path)
    out = render(asset, evaluation_cameras(64))
    return evaluation_images(asset, SIZE), torch.cat([out.rgb, out.alpha], -1).permute(0, 3, 1, 2)


# --- colours ---------------------------------------------------------------------------------------------------------


def lab(rgb: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """sRGB in [0, 1] to CIELAB."""
    from skimage.color import rgb2lab

    return torch.from_numpy(rgb2lab(rgb.double().numpy().reshape(-1, 1, 3)).reshape(-1, 3)).float()


def classify(rgb: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Index into :data:`NAMES` of the nearest colour (CIELAB) at any brightness in :data:`BRIGHTNESS`."""
    factor = torch.linspace(*BRIGHTNESS, LEVELS)[:, None, None]
    shaded = (factor * torch.tensor(list(COLOURS.values()))).clamp(0, 1)
    distance = torch.cdist(lab(rgb), lab(shaded.reshape(-1, 3)))
    return distance.view(len(rgb), LEVELS, len(NAMES)).amin(1).argmin(1)


def shares(rgba: Float[Tensor, "B 4 H W"]) -> dict[str, float]:
    """Share of each colour in the object's pixels (alpha above a half) of premultiplied pictures."""
    pixels = rgba.permute(0, 2, 3, 1).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 0.5]
    if not len(pixels):
        return {}
    names = classify((pixels[:, :3] / pixels[:, 3:]).clamp(0, 1))
    count = np.bincount(names.numpy(), minlength=len(NAMES)) / len(names)
    return {name: round(float(share), 4) for name, share in zip(NAMES, count, strict=True) if share > 0}


def named(look: Look) -> list[str]:
    """The colours that a look's caption names."""
    found = (colour for i in look.items for colour in (i.colour, i.part_colour, i.accessory_colour))
    return list(dict.fromkeys(colour for colour in found if colour))


def needed(look: Look, in_generator: dict[str, float] | None = None) -> dict[str, float]:
    """Least share of each named colour; with the generator's shares the lesser of the bar and what it shows."""
    colours = named(look)
    bar = MOST if len(colours) == 1 else SOME
    if in_generator is None:
        return dict.fromkeys(colours, bar)
    return {colour: min(bar, OF_GENERATOR * in_generator.get(colour, 0.0)) for colour in colours}


def fits(have: dict[str, float], need: dict[str, float]) -> bool:
    """Whether each needed colour has its share."""
    return all(have.get(colour, 0.0) >= least for colour, least in need.items())


# --- verdicts --------------------------------------------------------------------------------------------------------


def judged(sweep: Sweep, item: Item, decides: Row, draw: Callable[[], Drawn]) -> Row:
    """The judge's scores of a picture's sets (outer) under every caption (inner, the right one first)."""
    judge = sweep.pipeline.judge
    captions = [item.prompt, *item.wrong]

    def make(picture: Path) -> Row:
        images, rgba = draw()
        scores = caption_scores(judge, images.to(sweep.pipeline.prior.device), captions)
        four = list(images[0].cpu().permute(0, 2, 3, 1))
        contact_sheet(four, picture, columns=2, size=SIZE, metadata={"prompt": item.prompt})
        return {"scores": scores.tolist(), "match": match_probability(judge, scores), "colours": shares(rgba)}

    return kept(sweep.folder / "pictures", decides | {"captions": captions, "weights": sweep.digests}, make)


def collect(sweep: Sweep, arguments: argparse.Namespace) -> Iterator[tuple[str, int, Row]]:
    """Everything that is judged, prompt by prompt: its kind, the number of the prompt, the row."""
    known, code = looks(), digest(GENERATOR)
    steps, scale = arguments.sampling_steps, arguments.guidance_scale
    (arm,) = sweep.plan.arms
    for i, item in enumerate(sweep.plan.items):
        for draw in range(arguments.draws):
            decides: Row = {"kind": "generator", "draw": draw, "code": code}
            make = partial(generator_renders, item.prompt, known[item.prompt], draw)
            yield "generator", i, judged(sweep, item, decides, make)
            decides = {"kind": "prior", "draw": draw, "steps": steps, "scale": scale}
            make = partial(prior_samples, sweep, item.prompt, draw, steps, scale)
            yield "prior", i, judged(sweep, item, decides, make)
        yield "empty", i, judged(sweep, item, {"kind": "empty"}, partial(asset_views, None))
        for seed in range(sweep.plan.seeds):
            row = sweep.run(item, seed, arm)
            splat = None if row["error"] else sweep.place(item, seed, arm) / ASSET
            decides = {"kind": "asset", "seed": seed, "asset": splat and digest([splat])}
            yield "asset", i, judged(sweep, item, decides, partial(asset_views, splat))


def score(row: Row) -> float:
    """Of the right caption, mean over sets."""
    return float(np.mean([scores[0] for scores in row["scores"]]))


def accuracy(row: Row, group: str | None = None) -> float:
    """Share of the sets in which the right caption beats all distractors (of one group)."""
    scores = torch.tensor(row["scores"])
    return share_right(torch.cat([scores[:, :1], scores[:, GROUPS[group]]], 1) if group else scores)


def by_prompt(prompts: list[list[Row]], measure: Callable[[Row], float]) -> Float[np.ndarray, " P"]:
    """One value per prompt: the mean of ``measure`` over its draws."""
    return np.array([np.mean([measure(row) for row in rows]) for rows in prompts])


def ratio_above(asset: np.ndarray, generator: np.ndarray, zero: np.ndarray) -> str:
    """Mean score of the assets over that of the generator's renders, both counted from ``zero``; 95 % interval.

    Scores can be negative, so a ratio needs a zero. The interval resamples prompts.
    """
    picks = np.random.default_rng(0).integers(len(asset), size=(10_000, len(asset)))
    above, below = (asset - zero)[picks].mean(1), (generator - zero)[picks].mean(1)
    low, high = np.quantile(above / below, [0.025, 0.975])
    return f"{(asset - zero).mean() / (generator - zero).mean():.2f} [{low:.2f}, {high:.2f}]"


def mean_shares(draws: list[Row]) -> dict[str, float]:
    """Mean share of each colour over draws."""
    names = {name for row in draws for name in row["colours"]}
    return {name: float(np.mean([row["colours"].get(name, 0.0) for row in draws])) for name in names}


# --- tables ----------------------------------------------------------------------------------------------------------


def kinds_table(rows: Rows, held: np.ndarray) -> str:
    """Accuracy by group of distractors, and over seen and held-out prompts, for each kind of picture."""
    lines = [["pictures", *GROUPS, "all ten [95 %]", "seen", "held out", "prompt match", "judge's score"]]
    for kind, title in KINDS.items():
        found = by_prompt(rows[kind], accuracy)
        low, high = bootstrap(found)
        groups = (share(by_prompt(rows[kind], partial(accuracy, group=g)).mean()) for g in GROUPS)
        parts = (share(found[some].mean()) if some.any() else "" for some in (~held, held))
        means = by_prompt(rows[kind], lambda r: r["match"]).mean(), by_prompt(rows[kind], score).mean()
        whole = f"{share(found.mean())} [{100 * low:.0f}, {100 * high:.0f}]"
        lines.append([title, *groups, whole, *parts, f"{means[0]:.3f}", f"{means[1]:+.3f}"])
    return markdown_table(lines)


def prompts_table(items: list[Item], rows: Rows) -> tuple[str, tuple[int, int, int]]:
    """What happened to every prompt: the caption that beat the right one most often, and the named colours; and the
    numbers of prompts whose colours pass, pass the bars as they stand, and of all."""
    known, passed, literal, total = looks(), 0, 0, 0
    header = ["prompt", "held out", *(f"right: {k}" for k in KINDS), *(f"score: {k}" for k in KINDS), "taken for"]
    lines = [[*header, "colours (of the generator's renders, needed)"]]
    for i, item in enumerate(items):
        captions = [item.prompt, *item.wrong]
        wrong = [j for row in rows["asset"][i] for scores in row["scores"] if (j := int(np.argmax(scores)))]
        have, reference = (mean_shares(rows[kind][i]) for kind in ("asset", "generator"))
        look = known[item.prompt]
        need = needed(look, reference)
        if named(look):
            passed, literal, total = passed + fits(have, need), literal + fits(have, needed(look)), total + 1
        cells = (f"{c} {share(have.get(c, 0))} ({share(reference.get(c, 0))}, {share(x)})" for c, x in need.items())
        lines.append(
            [
                item.prompt,
                "yes" if item.group == "held out" else "",
                *(share(np.mean([accuracy(row) for row in rows[kind][i]])) for kind in KINDS),
                *(f"{np.mean([score(row) for row in rows[kind][i]]):+.2f}" for kind in KINDS),
                captions[max(set(wrong), key=wrong.count)] if wrong else "",
                ", ".join(cells) + ("" if fits(have, need) else " **too little**"),
            ]
        )
    return markdown_table(lines), (passed, literal, total)


def bars_table(rows: Rows, colours: tuple[int, int, int]) -> str:
    """What is asked for, and what was measured."""
    asset, generator, empty = (by_prompt(rows[kind], score) for kind in ("asset", "generator", "empty"))
    wrong = by_prompt(rows["generator"], lambda r: float(np.mean([scores[1:] for scores in r["scores"]])))
    found = by_prompt(rows["asset"], accuracy).mean()
    ratio = ratio_above(asset, generator, empty)
    passed, literal, total = colours
    lines = [
        ["bar", "measured", "asked for", "met"],
        ["right caption picked", share(found), f"at least {share(MIN_RIGHT)}", yes(found >= MIN_RIGHT)],
        ["score against the generator's renders", ratio, f"at least {MIN_RATIO}", yes(float(ratio[:4]) >= MIN_RATIO)],
        ["the same, counted from wrong captions", ratio_above(asset, generator, wrong), "", ""],
        ["named colours", f"{passed} of {total}", "all", yes(passed == total)],
        ["the same, whatever the generator shows", f"{literal} of {total}", "", ""],
    ]
    return markdown_table(lines)


def report(sweep: Sweep, rows: Rows, arguments: argparse.Namespace) -> str:
    """The whole Markdown page."""
    items = list(sweep.plan.items)
    held = np.array([item.group == "held out" for item in items])
    table, colours = prompts_table(items, rows)
    return f"""# Are the assets recognizable? Preset {arguments.preset}

{len(items)} prompts, {held.sum()} of them combinations that were held out of training; {arguments.seeds} seed(s);
{arguments.draws} samples of the prior ({arguments.sampling_steps} steps, guidance {arguments.guidance_scale:g}) and
{arguments.draws} renders of the generator each.

{provenance(sweep.pipeline)}

{bars_table(rows, colours)}

For each set of four orthogonal views the judge scores the right caption and ten distractors; shares are of sets.
Scores have no zero, so the ratio counts from the score of an empty white picture under the same caption: 0 is nothing
at all, 1 is as good as the generator's own renders. Counted from wrong captions (of the generator's renders) it is
stricter. How often the judge is right about the generator's renders is the most that can be asked of it.

{kinds_table(rows, held)}

Colours: share of the object's pixels (alpha above a half) whose nearest colour name, at any shading, is the named one.
One colour named: at least {share(MOST)}; several: {share(SOME)} each; but no more than {OF_GENERATOR:g} of the share in
the generator's own renders is asked for, since a hat is small and a pink house has doors and windows.

{table}
"""


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> str:
    """Make and judge what is missing, write the report and the contact sheets, and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sweep_arguments(parser, "recognizable")
    parser.add_argument("--draws", type=int, default=4, help="renders and samples per prompt (default: 4)")
    parser.add_argument("--sampling-steps", type=int, default=30, help="of the prior's samples (default: 30)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the prior's samples (default: 3)")
    parser.add_argument("--report", type=Path, default=BENCH / "recognizable.md", help="where the tables go")
    arguments = parser.parse_args(argv)
    try:
        sweep = sweep_of(arguments, ["psd"])
        items = list(sweep.plan.items)
        if missing := [item.prompt for item in items if item.prompt not in looks()]:
            parser.error(f"--suite: expected prompts that the generator can build, received {missing[0]!r}")
        rows: Rows = {kind: [[] for _ in items] for kind in (*KINDS, "empty")}
        progress = Progress(len(items) * (2 * arguments.draws + 1 + arguments.seeds))
        for kind, i, row in collect(sweep, arguments):
            rows[kind][i].append(row)
            progress.step(f"{kind}: {items[i].prompt}: right {share(accuracy(row))}, judge {score(row):+.2f}")
    except PsdGsError as error:
        parser.error(str(error))
    text = report(sweep, rows, arguments)
    write_report(arguments.report, text, [row for kind in rows.values() for draws in kind for row in draws])
    for kind in KINDS:
        pictures = [Path(draws[0]["picture"]) for draws in rows[kind]]
        target = arguments.report.with_name(f"{arguments.report.stem}_{kind}.png")
        contact_sheet(pictures, target, captions=[item.prompt for item in items], columns=8, size=192)
    return text


if __name__ == "__main__":
    main()
