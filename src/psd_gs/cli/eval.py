"""``psd-gs eval``: compare methods over many prompts and seeds, and score any asset."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, UseAppendAction, arg, subcommand

from psd_gs.cli.run_options import Number, SharedOptions, Text, parse_shard
from psd_gs.config import Preset

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.evaluation.sweep import Facts
    from psd_gs.job import Request
    from psd_gs.rewards.base import Reward

Names = Annotated[str, arg(metavar="NAME,NAME", help_behavior_hint="")]


@dataclass(kw_only=True)
class Run(SharedOptions):
    """Run prompts x arms x seeds, each in a folder of its own, score everything, and write a report.

    Start the same command again to go on; what is finished is not made again. An arm is a preference score (psd,
    dreamdpo, rewardsds, dreamfl, none), best-of-N or NAME*N (N seeds that share the budget, the reward picks one),
    NAME=FILE.yaml or, with --arm, NAME:KEY=VALUE,KEY=VALUE (options over the preset).
    """

    suite: Annotated[Positional[str], arg(metavar="SUITE")]
    """mini-40, mini-dev-8, smoke-5, dreamfusion-style, t3bench-style, or a text file with one prompt per line."""
    arms: Annotated[str, arg(metavar="ARM,ARM")] = "psd,none"
    """Arms, apart by commas; the first one is compared with all others, all with none."""
    arm: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="ARM", help_behavior_hint="")] = ()
    """One more arm, such as heavy:guidance.psd.weight=3; repeatable."""
    seeds: Annotated[int, arg(metavar="K")] = 1
    """Seeds 0 to K-1 of each prompt."""
    prompts: Number = None
    """Take only this many of the suite's prompts, evenly spread."""
    budget: Literal["equal-steps", "equal-time"] = "equal-steps"
    """equal-steps: the preset's, shared out among the runs of best-of-N. equal-time: as many steps as fit into the
    time of --time-of, which is measured first, on this machine."""
    time_of: Annotated[str, arg(metavar="ARM")] = "slowest"
    """With equal-time: the arm whose time all may take, or slowest."""
    calibrate: Annotated[int, arg(metavar="N")] = 2
    """With equal-time: number of prompts on which the time is measured."""
    preset: Annotated[Preset | None, arg(help_behavior_hint="")] = None
    """Tier of quality against time (configs/*.yaml), under all arms. Default: draft."""
    judges: Names = ""
    """Further held-out models."""
    views: Annotated[int, arg(metavar="N")] = 12
    """Views of the ring around each asset that scores by view are taken from; an even number."""
    size: Annotated[int | None, arg(metavar="PX", help_behavior_hint="")] = None
    """Side of the views. Default: 128 for the embedded models, else the prior's, at least 256."""
    shard: Annotated[str, arg(metavar="I/N")] = "0/1"
    """Every N-th prompt only, starting with the I-th (0 to N-1); all shards share the folder."""
    against: Names = ""
    """Arms that all others are compared with in the report. Default: see --arms."""
    output_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Default: outputs/eval-SUITE-BUDGET."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        import torch

        from psd_gs.cli.console import work_console
        from psd_gs.cli.terminal import silence_libraries, threads_each
        from psd_gs.evaluation.arms import parse_arms
        from psd_gs.evaluation.scores import Viewing
        from psd_gs.evaluation.suites import load_suite
        from psd_gs.evaluation.sweep import Plan, Sweep
        from psd_gs.job import resolve
        from psd_gs.pipeline import TextTo3DPipeline
        from psd_gs.rewards import check_judge

        console = work_console()
        silence_libraries()
        items = load_suite(self.suite, self.prompts)
        plan = Plan(
            suite=Path(self.suite).stem,
            items=items,
            arms=parse_arms([*(text for text in self.arms.split(",") if text.strip()), *self.arm]),
            seeds=self.seeds,
            request=self.request(items[0].prompt),
            budget=self.budget,
            time_of=self.time_of,
            calibration=self.calibrate,
            shard=parse_shard(self.shard),
            viewing=Viewing(self.views, self.size),
        )
        config = resolve(plan.request)
        for name in names(self.judges):
            check_judge(config.reward, name)
        self.check_code(config)
        torch.set_num_threads(threads_each(plan.shard[1]))
        pipeline = TextTo3DPipeline.of(config, allow_code=True)
        folder = self.output_dir or Path("outputs") / f"eval-{plan.suite}-{plan.budget}"
        sweep = Sweep(pipeline, plan, folder, load_models(names(self.judges), pipeline.prior.device))
        self._all(console, sweep)
        arms, prompts = [arm.name for arm in plan.arms], [item.prompt for item in plan.items]
        report(console, folder, arms, prompts, names(self.against), plan.shard[1] == 1)

    def request(self, prompt: str) -> Request:
        """What is asked for with this prompt; the preset is draft unless told."""
        asked = super().request(prompt)
        own = None if asked.recipe or "preset" in asked.file else "draft"
        return replace(asked, preset=asked.preset or own)

    def _all(self, console: Console, sweep: Any) -> None:
        from psd_gs.evaluation.report import budget_lines

        if sweep.plan.budget == "equal-time":
            console.print(f"measuring {', '.join(arm.name for arm in sweep.plan.arms)}")
        for line in budget_lines(sweep.budget.to_dict()):
            console.print(line, soft_wrap=True)
        tasks, start = list(sweep.plan.tasks()), time.monotonic()
        for done, (item, seed, arm) in enumerate(tasks, 1):
            row = sweep.run(item, seed, arm)
            left = (time.monotonic() - start) / done * (len(tasks) - done)
            what = f"{arm.name}: {item.prompt}, seed {seed}: {describe(row)}"
            console.print(f"[{done}/{len(tasks)}] {what}  ({left / 60:.0f} min left)", soft_wrap=True)


@dataclass
class Report:
    """Write the report of an evaluation again, from whatever is finished, for instance by several shards."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """--output-dir of psd-gs eval run."""
    arms: Names = ""
    """Only these arms, in this order. Default: all."""
    against: Names = ""
    """Arms that all others are compared with. Default: all with none, and the first one with all others."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.evaluation.budget import Budget
        from psd_gs.evaluation.suites import SUITES, load_suite
        from psd_gs.evaluation.sweep import BUDGET, collect
        from psd_gs.files import read_json

        path = self.folder / BUDGET
        arms, suite = names(self.arms), collect(self.folder)[0]["suite"]
        if not arms and path.exists():
            arms = list(read_json(path, Budget).steps)
        prompts = [item.prompt for item in load_suite(suite)] if suite in SUITES else []
        report(Console(highlight=False, markup=False), self.folder, arms, prompts, names(self.against))


@dataclass
class Score:
    """Score splats, meshes or run folders of any origin against a prompt."""

    assets: Annotated[Positional[tuple[Path, ...]], arg(metavar="ASSET [ASSET ...]", help_behavior_hint="")]
    """Splat files of any format that export knows, meshes or point clouds (.ply, .glb, .gltf, .obj, .stl), or run
    folders."""
    prompt: Text = None
    """What the assets should be. Default: what their metadata say."""
    models: Names = ""
    """Rewards and judges. Default: those that belong to the prior that auto would be."""
    captions: Annotated[str, arg(metavar="SUITE", help_behavior_hint="")] = "mini-40"
    """Suite (or file) whose other prompts are the wrong captions of the prompt match."""
    as_is: bool = False
    """Leave splats where they are and as large as they are, as in a run's own scores. Default: all are fitted into
    one ball."""
    views: Annotated[int, arg(metavar="N")] = 12
    """Views of the ring around each asset; an even number."""
    size: Annotated[int | None, arg(metavar="PX", help_behavior_hint="")] = None
    """Side of the views. Default: 128 for the embedded models, else 256."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print one JSON object per asset instead of a table."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.asset import open_asset, prompt_of
        from psd_gs.cli.terminal import silence_libraries
        from psd_gs.config import check_prompt_text
        from psd_gs.evaluation.scores import Viewing, measure_asset
        from psd_gs.evaluation.suites import load_suite, wrong_captions
        from psd_gs.models import resolve, resolve_device
        from psd_gs.render import renderer_device

        silence_libraries()
        console = Console(highlight=False, markup=False)
        device, viewing = resolve_device(self.device), Viewing(self.views, self.size)
        prompts = [self.prompt or prompt_of(path) for path in self.assets]
        suite = load_suite(self.captions)
        models = load_models(names(self.models) or list(resolve("auto", "auto", "auto", device)[1:]), device)
        rows = []
        for path, prompt in zip(self.assets, prompts, strict=True):
            check_prompt_text(prompt)
            asset = open_asset(path, fit=not self.as_is).to(renderer_device(device))
            same = next((item.wrong for item in suite if item.prompt == prompt), None)
            wrong = same or wrong_captions(prompt, [item.prompt for item in suite])
            found = measure_asset(asset, prompt, wrong, models, viewing)
            rows.append({"asset": str(path), "prompt": prompt, "gaussians": len(asset), **found})
        if self.json:
            for row in rows:
                console.print(json.dumps(row), soft_wrap=True)
        else:
            self._table(console, rows)

    def _table(self, console: Console, rows: list[dict[str, Any]]) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        head = ("asset", "model", "mean", "min", "front", "back", "match", "2nd front", "opposite")
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i > 0, overflow="fold")
        for row in rows:
            asset = f"{Path(row['asset']).name}: {row['prompt']}"
            faces = [row["janus"]["back_share"], row["janus"]["opposite"]]
            for name, scores in row["scores"].items():
                values = [scores[part] for part in ("mean", "min", "front", "back", "match")]
                table.add_row(asset, name, *("" if v is None else f"{v:.3f}" for v in values + faces))
                asset, faces = "", [None, None]
        console.print(table)


@dataclass
class Eval:
    """Compare methods over many prompts and seeds, or score any asset; docs/guide/evaluation.md defines the numbers."""

    action: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Run, subcommand("run")]
            | Annotated[Score, subcommand("score")]
            | Annotated[Report, subcommand("report")]
        ]
    ]

    def run(self) -> None:
        self.action.run()


def names(text: str) -> list[str]:
    """Items apart by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def load_models(wanted: list[str], device: Any) -> dict[str, Reward]:
    """Rewards by name, as they were typed."""
    from psd_gs.rewards import load_reward

    return {name: load_reward(name, device, allow_code=True) for name in wanted}


def describe(row: Facts) -> str:
    """Seconds, Gaussians and scores of a row, in one line."""
    scores = ", ".join(f"{n} {s['mean']:+.2f}" for n, s in row["scores"].items() if s["mean"] is not None)
    return f"{row['seconds']:.0f} s, {row['gaussians']} Gaussians, {scores}" + (
        f", {row['error']}" if row["error"] else ""
    )


def report(
    console: Console, folder: Path, arms: list[str], prompts: list[str], against: list[str], whole: bool = True
) -> None:
    """Write the report of what is finished; print it if that is the ``whole``."""
    from psd_gs.evaluation.compare import results
    from psd_gs.evaluation.report import write_report
    from psd_gs.evaluation.sweep import collect

    command = shlex.join(["psd-gs", *sys.argv[1:]])
    found = results(collect(folder), arms, prompts)
    path = write_report(folder, found, against, command)
    if whole:
        console.print(path.with_suffix(".md").read_text(encoding="utf-8"), soft_wrap=True)
    console.print(str(path), soft_wrap=True)
