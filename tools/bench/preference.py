"""Compare arms of the optimization on the same prompts and seeds: does the preference score help?

    python tools/bench/preference.py --preset draft                       # psd against its base
    python tools/bench/preference.py --list tools/bench/dev_prompts.json --report outputs/bench/dev.md \\
        --arm base:guidance.preference=none --arm one --arm two:guidance.psd.weight=2
    python tools/bench/preference.py --preset default --report outputs/bench/densify.md \\
        --arm densified --arm fixed:densify.enabled=false,init.count=final:densified --against fixed

An arm is ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``: options over the preset. Two values are worked out:

* ``steps=time:OTHER``: as many steps as fit into the time of arm OTHER. Both are run with the preset's steps
  on the first ``--calibrate`` prompts of this machine; the steps are scaled by the ratio of their times.
* ``init.count=final:OTHER``: as many Gaussians as arm OTHER ended with, prompt by prompt.

Without ``--arm`` there are three: psd (the preset as it is), base (no preference score, equal steps) and
base-time (no preference score, equal time). A judge that is never optimized scores the assets; the reward that
was optimized stands beside it. All work is kept in ``--out``; start again to go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ROOT,
    Bench,
    Progress,
    Row,
    add_common_arguments,
    load_prompts,
    make_run_config,
    options_of,
    provenance,
    write_report,
)
from bench.verdicts import (
    Measure,
    accuracy,
    by_prompt,
    logit_scale,
    match_probability,
    right_score,
    table,
    with_interval,
    worst_score,
    yes,
)
from psd_gs.config import Config, merged
from psd_gs.errors import PsdGsError
from psd_gs.evaluation.arms import parse_overrides
from psd_gs.evaluation.statistics import bootstrap

ARMS = ("psd", "base:guidance.preference=none", "base-time:guidance.preference=none,steps=time:psd")
MIN_WINS, MIN_MATCH = 0.75, -0.02
"""The bars: share of prompts in which the judge prefers the arm; lower bound of the change in prompt match."""


@dataclass(frozen=True)
class Arm:
    """A name, options over the preset, and what has to be worked out from another arm.

    Attributes:
        name: for the tables.
        options: nested.
        time_of: arm whose time this one may take.
        count_of: arm whose final number of Gaussians this one starts with.
    """

    name: str
    options: Row
    time_of: str | None = None
    count_of: str | None = None

    @staticmethod
    def parse(text: str) -> Arm:
        """``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``."""
        name, _, rest = text.partition(":")
        pairs = [pair for pair in rest.split(",") if pair]
        other = {}
        for key, mark in (("steps", "time:"), ("init.count", "final:")):
            found = [p for p in pairs if p.startswith(f"{key}={mark}")]
            pairs = [p for p in pairs if p not in found]
            other[key] = found[0].removeprefix(f"{key}={mark}") if found else None
        return Arm(name, parse_overrides(pairs), other["steps"], other["init.count"])


class Comparison:
    """Runs arms over prompts and seeds.

    Args:
        bench: makes and remembers.
        arms: by name, in the order of the tables; an arm stands after those that it is worked out from.
        preset: under all arms.
        options: over the preset, for all arms.
        calibration: prompts whose times decide ``steps=time:OTHER``.
    """

    def __init__(self, bench: Bench, arms: dict[str, Arm], preset: str, options: Row, calibration: list[Row]) -> None:
        self.bench, self.arms, self.preset, self.options, self.calibration = bench, arms, preset, options, calibration
        self.steps: dict[str, int] = {}
        for arm in arms.values():
            for other in filter(None, (arm.time_of, arm.count_of)):
                if other not in list(arms)[: list(arms).index(arm.name)]:
                    raise argparse.ArgumentTypeError(f"arm {arm.name!r} refers to {other!r}, which no arm before it is")
            if arm.time_of and bench.shard[1] > 1:
                raise argparse.ArgumentTypeError(
                    f"arm {arm.name!r}: expected a number of steps with --shard, because the processes would measure "
                    f"different ones; learn it from a run of a few prompts in one process"
                )

    def config(self, arm: Arm, prompt: Row, seed: int, *extra: Row) -> Config:
        """Options of one run, without what is worked out."""
        overrides = (self.options, arm.options, *extra)
        where = f"arm {arm.name}"
        return make_run_config(self.bench, self.preset, prompt["prompt"], seed, *overrides, where=where)

    def run(self, name: str, prompt: Row, seed: int) -> Row:
        """One finished and judged run, made now or found."""
        arm = self.arms[name]
        extra: Row = {}
        if arm.count_of:
            extra = merged(extra, {"init": {"count": self.run(arm.count_of, prompt, seed)["gaussians"]}})
        if arm.time_of:
            extra = merged(extra, {"steps": self.steps_in_time_of(arm)})
        return self.bench.asset_row(prompt, self.config(arm, prompt, seed, extra))

    def steps_in_time_of(self, arm: Arm) -> int:
        """Steps of ``arm`` that take as long as a run of the arm it refers to."""
        if arm.name not in self.steps:
            configs = [self.config(arm, prompt, 0) for prompt in self.calibration]
            mine = sum(self.bench.asset_row(p, c)["seconds"] for p, c in zip(self.calibration, configs, strict=True))
            theirs = sum(self.run(str(arm.time_of), prompt, 0)["seconds"] for prompt in self.calibration)
            self.steps[arm.name] = max(1, round(configs[0].steps * theirs / mine))
            print(
                f"{arm.name}: {self.steps[arm.name]} steps, since {arm.time_of} takes {theirs / mine:.2f} times as long"
            )
        return self.steps[arm.name]


# --- tables ----------------------------------------------------------------------------------------------------------

Runs = dict[str, list[list[Row]]]
"""By arm: prompts, and the seeds of each."""


def arms_table(runs: Runs, scale: float) -> str:
    """Each arm by itself."""

    def line(arm: str) -> list[str]:
        def mean(measure: Measure) -> float:
            return float(by_prompt(runs[arm], measure).mean())

        return [
            arm,
            f"{mean(lambda r: r['steps']):.0f}",
            f"{mean(lambda r: r['seconds']):.1f}",
            f"{mean(lambda r: r['cpu_seconds']):.1f}",
            f"{mean(right_score):+.3f}",
            f"{mean(worst_score):+.3f}",
            f"{mean(lambda r: match_probability(r, scale)):.3f}",
            f"{100 * mean(accuracy):.0f} %",
            f"{mean(lambda r: right_score(r, 'reward')):+.3f}",
        ]

    header = "arm, steps, seconds, CPU seconds, judge, worse set, prompt match, right caption, reward (optimized)"
    return table(header.split(", "), (line(arm) for arm in runs))


def comparison(runs: Runs, arm: str, reference: str, scale: float) -> Row:
    """Differences of two arms, prompt by prompt, with bootstrap intervals over prompts."""

    def difference(measure: Measure) -> np.ndarray:
        return by_prompt(runs[arm], measure) - by_prompt(runs[reference], measure)

    def seconds(name: str) -> float:
        return float(by_prompt(runs[name], lambda r: r["seconds"]).sum())

    judge = difference(right_score)
    out = {
        "judge": judge,
        "wins": float((judge > 0).mean()),
        "worse set": difference(worst_score),
        "match": difference(lambda r: match_probability(r, scale)),
        "reward": difference(lambda r: right_score(r, "reward")),
        "time": seconds(arm) / seconds(reference),
    }
    held = np.array([rows[0]["held_out"] for rows in runs[arm]])
    out["held"] = float((judge[held] > 0).mean()) if held.any() else float("nan")
    met = (out["wins"] >= MIN_WINS, bootstrap(judge)[0] > 0, bootstrap(out["match"])[0] > MIN_MATCH)
    return out | {"met": met}


def comparisons_table(runs: Runs, pairs: Sequence[tuple[str, str]], scale: float) -> str:
    """One line per pair of arms."""
    header = "comparison, time, judge wins, of held-out, judge, worse set, prompt match, reward (optimized), bars met"
    lines = []
    for arm, reference in pairs:
        c = comparison(runs, arm, reference, scale)
        bars = ", ".join(f"{name} {yes(met)}" for name, met in zip(("wins", "judge", "match"), c["met"], strict=True))
        lines.append(
            [
                f"{arm} against {reference}",
                f"{c['time']:.2f}x",
                f"{100 * c['wins']:.0f} %",
                f"{100 * c['held']:.0f} %",
                *(with_interval(c[name]) for name in ("judge", "worse set", "match", "reward")),
                bars,
            ]
        )
    return table(header.split(", "), lines)


def gaussians_table(runs: Runs) -> str:
    """What densification did in each arm: means over runs, and the worst count of small components."""
    header = "arm, start, grown, pruned, swept at the end, final, most components under 1 %, failed runs"
    numbers = ("start", "grown", "pruned", "swept", "gaussians")
    lines = []
    for arm, prompts in runs.items():
        rows = [row for seeds in prompts for row in seeds]
        counts = [f"{np.mean([row[name] for row in rows]):.0f}" for name in numbers]
        worst = max(row["small_components"] for row in rows)
        lines.append([arm, *counts, worst, sum(bool(row["error"]) for row in rows)])
    return table(header.split(", "), lines)


def prompts_table(runs: Runs) -> str:
    """The judge's score of every prompt in every arm."""
    arms = list(runs)
    scores = {arm: by_prompt(runs[arm], right_score) for arm in arms}
    lines = []
    for i, rows in enumerate(runs[arms[0]]):
        values = [scores[arm][i] for arm in arms]
        cells = [f"**{v:+.2f}**" if v == max(values) else f"{v:+.2f}" for v in values]
        lines.append([rows[0]["prompt"], "yes" if rows[0]["held_out"] else "", *cells])
    return table(["prompt", "held out", *arms], lines)


PAGE = """# {title}

{done} of {expected} prompts, {seeds} seed(s) each, preset {preset}.

{provenance}

Judge: score of the right caption by a model that is never optimized, mean over two sets of four views; worse set: the
lower of the two. Prompt match: probability that the judge gives to the right caption among its ten distractors (softmax
over its logits). Right caption: share of sets in which it beats all ten. Seconds: of the optimization, without
meshes and pictures.

{arms}

Differences per prompt (seeds averaged first): mean and bootstrap 95 % interval over prompts. Bars: the judge prefers
the arm in at least {wins:.0f} % of the prompts, its interval is above 0, and that of prompt match above {match}.

{comparisons}

{gaussians}

The judge's score by prompt:

{prompts}
"""


def report(runs: Runs, against: Sequence[str], bench: Bench, title: str, preset: str, expected: int) -> str:
    """The whole Markdown page."""
    scale = logit_scale(bench.rewards["judge"])
    pairs = [(arm, reference) for arm in runs if arm not in against for reference in against if reference in runs]
    first = next(iter(runs.values()))
    return PAGE.format(
        title=title,
        done=len(first),
        expected=expected,
        seeds=len(first[0]),
        preset=preset,
        provenance=provenance(bench, [row for prompts in runs.values() for seeds in prompts for row in seeds]),
        arms=arms_table(runs, scale),
        wins=100 * MIN_WINS,
        match=MIN_MATCH,
        comparisons=comparisons_table(runs, pairs, scale),
        gaussians=gaussians_table(runs),
        prompts=prompts_table(runs),
    )


# --- command line ----------------------------------------------------------------------------------------------------


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument(
        "--arm", action="append", metavar="NAME[:KEY=VALUE,...]", help=f"repeatable (default: {'; '.join(ARMS)})"
    )
    parser.add_argument(
        "--against", action="append", metavar="NAME", help="arm to compare the others with (default: those named base*)"
    )
    parser.add_argument("--calibrate", type=int, default=3, metavar="N", help="prompts for steps=time:ARM (default: 3)")
    parser.add_argument("--report", type=Path, default=ROOT / "outputs/bench/preference.md", help="where the tables go")
    parser.add_argument("--title", default="Arms of the optimization, judged", help="heading of the report")
    return parser


def main(argv: list[str] | None = None) -> str:
    """Run what is missing, write the report and return it."""
    parser = arguments_parser()
    arguments = parser.parse_args(argv)
    bench = Bench.from_arguments(arguments)
    prompts = load_prompts(arguments.list, arguments.prompts)
    mine = bench.mine(prompts)
    try:
        arms = {arm.name: arm for arm in map(Arm.parse, arguments.arm or ARMS)}
        compare = Comparison(bench, arms, arguments.preset, options_of(arguments), mine[: arguments.calibrate])
        for arm in arms.values():  # a misspelt option must not show after hours
            compare.config(arm, mine[0], 0)
        progress = Progress(len(mine) * arguments.seeds * len(arms))
        for prompt in mine:
            for seed in range(arguments.seeds):
                for name in arms:
                    row = compare.run(name, prompt, seed)
                    took = f"{row['seconds']:.0f} s, judge {right_score(row):+.2f}"
                    progress.step(f"{name}: {prompt['prompt']}, seed {seed}: {took}")
        runs = {name: [[compare.run(name, p, s) for s in range(arguments.seeds)] for p in mine] for name in arms}
    except (PsdGsError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    against = arguments.against or [name for name in arms if name.startswith("base")] or [next(iter(arms))]
    text = report(runs, against, bench, arguments.title, arguments.preset, len(prompts))
    write_report(arguments.report, text, [row | {"arm": a} for a, ps in runs.items() for rs in ps for row in rs])
    print(text)
    return text


if __name__ == "__main__":
    main()
