"""Do people get what they typed? The judge picks captions for finished assets of the forty report prompts.

    python tools/bench/recognizable.py --preset default
    python tools/bench/recognizable.py --preset draft --prompts 8     # a first look

Three kinds of pictures are judged alike: the assets, the prior's own samples, and the generator's renders of the
same prompts (what the prior was trained on, of objects that it never saw). The judge sees four orthogonal views
together and scores the right caption and its ten distractors. All work is kept in ``--out``, where
``tools/bench/preference.py`` finds the same runs; start again to go on.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.dataset import sample_light, shade, trace_scene
from mini.scenes import Look, paint, scene_of

from bench.colours import MOST, OF_GENERATOR, SOME, fits, named, needed
from bench.common import (
    ROOT,
    Bench,
    Drawn,
    Progress,
    Row,
    add_common_arguments,
    digest,
    load_prompts,
    make_run_config,
    options_of,
    provenance,
    write_report,
)
from bench.verdicts import (
    GROUPS,
    accuracy,
    by_prompt,
    captions,
    logit_scale,
    match_probability,
    percent,
    right_score,
    table,
    yes,
)
from psd_gs.errors import PsdGsError
from psd_gs.evaluation.statistics import bootstrap
from psd_gs.export.pictures import contact_sheet
from psd_gs.scoring import evaluation_cameras

GENERATOR = [ROOT / "tools" / "mini" / f"{name}.py" for name in ("objects", "sdf", "scenes", "dataset")]
SIZE = 128
"""Pixels per side of the generator's renders, as in ``evaluation_images``."""

MIN_RIGHT, MIN_RATIO = 0.85, 0.9
"""The bars: share of right captions; score of the assets relative to the generator's renders."""

KINDS = {"asset": "assets", "prior": "the prior's samples", "generator": "the generator's renders"}
Rows = dict[str, list[list[Row]]]
"""By kind: prompts, and the draws of each."""


def generator_renders(prompt: Row, draw: int) -> Drawn:
    """A new object that fits the prompt, on white, from the cameras that assets are judged from."""
    rng = random.Random(f"{prompt['prompt']} {draw}")
    look = Look.from_json(prompt["look"])
    buffers = trace_scene(scene_of(look, rng), evaluation_cameras(SIZE))
    light = sample_light(1, torch.Generator().manual_seed(rng.getrandbits(31)))
    rgba = shade(buffers, [paint(look, rng)], light)[0]
    images = rgba[:, :3] + (1 - rgba[:, 3:])
    return Drawn(images.unflatten(0, (2, 4)), rgba, {"kind": "generator", "draw": draw})


def prior_samples(bench: Bench, prompt: Row, draw: int, steps: int, scale: float) -> Drawn:
    """Two independent sets of the prior's own views, one from each ring of the evaluation cameras."""
    prior = bench.pipeline.prior
    sampler = prior.pipeline
    sampler.set_progress_bar_config(disable=True)
    cameras = evaluation_cameras(prior.image_size)
    generator = torch.Generator().manual_seed(draw)
    sets = [
        sampler(
            prompt["prompt"],
            cameras[first : first + 4],
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generator,
            output_type="pt",
        ).images
        for first in (0, 4)
    ]
    return Drawn(torch.cat(sets), None, {"kind": "prior", "draw": draw})


def empty_pictures() -> Drawn:
    """Nothing on white: where the judge's scale begins."""
    return Drawn(torch.ones(1, 4, 3, SIZE, SIZE), None, {"kind": "empty"})


def collect(bench: Bench, prompts: list[Row], arguments: argparse.Namespace) -> Iterator[tuple[str, int, Row]]:
    """Everything that is judged, prompt by prompt: its kind, the number of the prompt, the line."""
    code = digest(GENERATOR)
    steps, scale = arguments.sampling_steps, arguments.guidance_scale
    sampling = {"kind": "prior", "steps": steps, "scale": scale, "weights": bench.weights["prior"]}
    for i, prompt in enumerate(prompts):
        shared = {"texts": captions(prompt)}
        for draw in range(arguments.draws):
            what = {"kind": "generator", "look": prompt["look"], "draw": draw, "code": code} | shared
            yield "generator", i, bench.row(prompt, what, partial(generator_renders, prompt, draw))
            what = sampling | shared | {"draw": draw}
            yield "prior", i, bench.row(prompt, what, partial(prior_samples, bench, prompt, draw, steps, scale))
        yield "empty", i, bench.row(prompt, {"kind": "empty"} | shared, empty_pictures)
        for seed in range(arguments.seeds):
            options = options_of(arguments)
            config = make_run_config(bench, arguments.preset, prompt["prompt"], seed, options, where="command line")
            yield "asset", i, bench.asset_row(prompt, config)


# --- tables ----------------------------------------------------------------------------------------------------------


def ratio_above(asset: np.ndarray, generator: np.ndarray, zero: np.ndarray) -> tuple[float, str]:
    """Mean score of the assets over that of the generator's renders, both counted from ``zero``; 95 % interval.

    Scores can be negative, so a ratio needs a zero. The interval resamples prompts.
    """
    rng = np.random.default_rng(0)
    picks = rng.integers(len(asset), size=(10_000, len(asset)))
    above, below = (asset - zero)[picks].mean(1), (generator - zero)[picks].mean(1)
    low, high = np.quantile(above / below, [0.025, 0.975])
    return float((asset - zero).mean() / (generator - zero).mean()), f"[{low:.2f}, {high:.2f}]"


def kinds_table(rows: Rows, held: np.ndarray, scale: float) -> str:
    """Accuracy by group of distractors, and over seen and held-out prompts, for each kind of picture."""
    lines = []
    for kind, title in KINDS.items():
        right = by_prompt(rows[kind], accuracy)
        low, high = bootstrap(right)
        lines.append(
            [
                title,
                *(percent(by_prompt(rows[kind], lambda r, g=g: accuracy(r, g))) for g in GROUPS),
                f"{percent(right)} [{100 * low:.0f}, {100 * high:.0f}]",
                percent(right[~held]),
                percent(right[held]),
                f"{by_prompt(rows[kind], lambda r: match_probability(r, scale)).mean():.3f}",
                f"{by_prompt(rows[kind], right_score).mean():+.3f}",
            ]
        )
    header = ["pictures", *GROUPS, "all ten [95 %]", "seen", "held out", "prompt match", "judge's score"]
    return table(header, lines)


def mean_shares(draws: list[Row]) -> dict[str, float]:
    """Mean share of each colour over draws."""
    names = {name for row in draws for name in row["colours"]}
    return {name: float(np.mean([row["colours"].get(name, 0.0) for row in draws])) for name in names}


def colours_table(prompts: list[Row], rows: Rows) -> tuple[str, tuple[int, int, int]]:
    """Shares of the named colours; counts of prompts that pass, that pass the bars as they stand, and of all."""
    lines, passed, literal = [], 0, 0
    for i, prompt in enumerate(prompts):
        look = Look.from_json(prompt["look"])
        if not named(look):
            continue
        have, reference = mean_shares(rows["asset"][i]), mean_shares(rows["generator"][i])
        need = needed(look, reference)
        ok, strict = fits(have, need), fits(have, needed(look))
        passed, literal = passed + ok, literal + strict

        def cell(shares: dict[str, float], colours=tuple(need)) -> str:
            return ", ".join(f"{c} {100 * shares.get(c, 0.0):.0f} %" for c in colours)

        lines.append([prompt["prompt"], cell(have), cell(reference), cell(need), "yes" if ok else "**no**"])
    text = table(["prompt", "asset", "generator's renders", "needed", "passes"], lines)
    return text, (passed, literal, len(lines))


def prompts_table(prompts: list[Row], rows: Rows) -> str:
    """What happened to every prompt, with the caption that beat the right one most often."""
    lines = []
    for i, prompt in enumerate(prompts):
        texts = captions(prompt)
        taken = [texts[int(np.argmax(scores))] for row in rows["asset"][i] for scores in row["judge"]]
        wrong = [text for text in taken if text != prompt["prompt"]]
        lines.append(
            [
                prompt["prompt"],
                "yes" if prompt["held_out"] else "",
                *(percent(np.array([accuracy(row) for row in rows[kind][i]])) for kind in KINDS),
                *(f"{np.mean([right_score(row) for row in rows[kind][i]]):+.2f}" for kind in KINDS),
                max(set(wrong), key=wrong.count) if wrong else "",
            ]
        )
    header = ["prompt", "held out", *(f"right: {k}" for k in KINDS), *(f"score: {k}" for k in KINDS), "taken for"]
    return table(header, lines)


def bars_table(prompts: list[Row], rows: Rows, colours: tuple[int, int, int]) -> str:
    """What the issue asks for, and what was measured."""
    score = {kind: by_prompt(rows[kind], right_score) for kind in (*KINDS, "empty")}
    wrong = by_prompt(rows["generator"], lambda r: float(np.mean([scores[1:] for scores in r["judge"]])))
    right = by_prompt(rows["asset"], accuracy).mean()
    ratio, interval = ratio_above(score["asset"], score["generator"], score["empty"])
    strict, strict_interval = ratio_above(score["asset"], score["generator"], wrong)
    passed, literal, total = colours
    good = ratio >= MIN_RATIO
    lines = [
        ["right caption picked", percent([right]), f"at least {100 * MIN_RIGHT:.0f} %", yes(right >= MIN_RIGHT)],
        ["score against the generator's renders", f"{ratio:.2f} {interval}", f"at least {MIN_RATIO}", yes(good)],
        ["the same, counted from wrong captions", f"{strict:.2f} {strict_interval}", "", ""],
        ["named colours", f"{passed} of {total}", "all", yes(passed == total)],
        ["the same, whatever the generator shows", f"{literal} of {total}", "", ""],
    ]
    return table(["bar", "measured", "asked for", "met"], lines)


PAGE = """# Are the assets recognizable? Preset {preset}

{prompts} prompts, {held_out} of them combinations that were held out of training; {seeds} seed(s); {draws} samples of
the prior ({steps} steps, guidance {scale:g}) and {draws} renders of the generator each.
[Contact sheet of the assets]({sheet}).

{provenance}

{bars}

For each set of four orthogonal views the judge scores the right caption and ten distractors; shares are of sets.
Scores have no zero, so the ratio counts from the score of an empty white picture under the same caption: 0 is nothing
at all, 1 is as good as the generator's own renders. This map is affine; a probability against the empty picture would
be monotone too, but close to 1 for almost everything. Counted from wrong captions (of the generator's renders) the
ratio is stricter. How often the judge is right about the generator's renders is the most that can be asked of it.

{kinds}

Colours: share of the object's pixels (alpha above a half) whose nearest colour name, at any shading, is the named one.
One colour named: at least {most:.0f} %; several: {some:.0f} % each; but no more than {part:g} of the share in the
generator's own renders is asked for, since a hat is small and a pink house has doors and windows.

{colours}

By prompt:

{table}
"""


def report(prompts: list[Row], rows: Rows, bench: Bench, arguments: argparse.Namespace) -> str:
    """The whole Markdown page."""
    held = np.array([prompt["held_out"] for prompt in prompts])
    colours, counts = colours_table(prompts, rows)
    return PAGE.format(
        preset=arguments.preset,
        prompts=len(prompts),
        held_out=held.sum(),
        seeds=arguments.seeds,
        draws=arguments.draws,
        steps=arguments.sampling_steps,
        scale=arguments.guidance_scale,
        sheet=arguments.report.with_suffix(".png").name,
        provenance=provenance(bench, [row for kind in rows.values() for draws in kind for row in draws]),
        bars=bars_table(prompts, rows, counts),
        kinds=kinds_table(rows, held, logit_scale(bench.rewards["judge"])),
        most=100 * MOST,
        some=100 * SOME,
        part=OF_GENERATOR,
        colours=colours,
        table=prompts_table(prompts, rows),
    )


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> str:
    """Make and judge what is missing, write the report and the contact sheet, and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--draws", type=int, default=4, help="renders and samples per prompt (default: 4)")
    parser.add_argument("--sampling-steps", type=int, default=30, help="of the prior's samples (default: 30)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the prior's samples (default: 3)")
    parser.add_argument(
        "--report", type=Path, default=ROOT / "outputs/bench/recognizable.md", help="where the tables go"
    )
    arguments = parser.parse_args(argv)
    bench = Bench.from_arguments(arguments)
    prompts = bench.mine(load_prompts(arguments.list, arguments.prompts))
    rows: Rows = {kind: [[] for _ in prompts] for kind in (*KINDS, "empty")}
    progress = Progress(len(prompts) * (2 * arguments.draws + 1 + arguments.seeds))
    try:
        for kind, i, row in collect(bench, prompts, arguments):
            rows[kind][i].append(row)
            progress.step(f"{kind}: {row['prompt']}: right {100 * accuracy(row):.0f} %, judge {right_score(row):+.2f}")
    except PsdGsError as error:
        parser.error(str(error))
    text = report(prompts, rows, bench, arguments)
    write_report(arguments.report, text, [row for kind in rows.values() for draws in kind for row in draws])
    texts = [prompt["prompt"] for prompt in prompts]
    for kind in KINDS:
        pictures = [bench.picture(draws[0]["key"]) for draws in rows[kind]]
        folder = arguments.report if kind == "asset" else bench.out / kind
        contact_sheet(pictures, folder.with_suffix(".png"), captions=texts, columns=8, size=192)
    print(text)
    return text


if __name__ == "__main__":
    main()
