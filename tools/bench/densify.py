"""What does growing and pruning buy? The preset as it is, beside as many Gaussians that stay what they are.

    python tools/bench/densify.py --prompts 8              # a first look

The fixed arm starts with as many Gaussians as the densified one ended with, prompt by prompt. Everything lies in
``--output-dir`` as `psd-gs eval run` would leave it; start again to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Progress, Row, add_sweep_arguments, sweep_of
from psd_gs.config import Config, read_config
from psd_gs.densify import components
from psd_gs.errors import PsdGsError
from psd_gs.evaluation.arms import Arm
from psd_gs.evaluation.compare import results
from psd_gs.evaluation.report import markdown_table, write_report
from psd_gs.evaluation.sweep import COST, Sweep, collect
from psd_gs.export.formats import load
from psd_gs.gaussians import Gaussians
from psd_gs.runs import ASSET, OPTIONS, unique_run_name

GROWN, FIXED = "densified", "fixed"
SMALL = 0.01
"""A detached component below this share of the opacity mass is a crumb."""


class Counted(Sweep):
    """The fixed arm takes its number of Gaussians from the densified one."""

    def config(self, arm: Arm, prompt: str, seed: int, steps: int | None = None) -> Config:
        config = super().config(arm, prompt, seed, steps)
        cost = self.folder / GROWN / unique_run_name(prompt, seed) / COST
        if arm.name == FIXED and cost.exists():
            count = json.loads(cost.read_text(encoding="utf-8"))["gaussians"]
            config = replace(config, init=replace(config.init, count=max(1, count)))
        return config


def crumbs(asset: Gaussians) -> int:
    """Number of detached groups of Gaussians with less than :data:`SMALL` of the opacity mass."""
    if not len(asset):
        return 0
    mass = np.bincount(components(asset), weights=torch.sigmoid(asset.opacities).double().numpy())
    return int((mass < SMALL * mass.sum()).sum())


def counts(row: Row) -> Row:
    """What happened to the Gaussians of a finished task."""
    folder = Path(row["folder"])
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "start": read_config(folder / OPTIONS).init.count,
        **{name: sum(log.get(name, 0) for log in logs) for name in ("grown", "pruned")},
        "final": row["gaussians"],
        "crumbs": 0 if row["error"] else crumbs(load(folder / ASSET)),
    }


def counts_table(rows: Sequence[Row]) -> str:
    """Means over the tasks of each arm, and the most crumbs of one asset."""
    names = ("start", "grown", "pruned", "final")
    lines = [["arm", *names, f"most components under {100 * SMALL:g} %"]]
    for arm in (GROWN, FIXED):
        found = [counts(row) for row in rows if row["arm"] == arm]
        means = (f"{np.mean([some[name] for some in found]):.0f}" for name in names)
        lines.append([arm, *means, str(max(some["crumbs"] for some in found))])
    return markdown_table(lines)


def main(argv: list[str] | None = None) -> str:
    """Run what is missing, write the report, and return the table of counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sweep_arguments(parser, "densify")
    arguments = parser.parse_args(argv)
    try:
        arms = [f"{GROWN}:densify.enabled=true", f"{FIXED}:densify.enabled=false"]
        sweep = sweep_of(arguments, arms, Counted)
        tasks = list(sweep.plan.tasks())
        progress = Progress(len(tasks))
        for item, seed, arm in tasks:
            row = sweep.run(item, seed, arm)
            progress.step(f"{arm.name}: {item.prompt}, seed {seed}: {row['gaussians']} Gaussians")
    except PsdGsError as error:
        parser.error(str(error))
    rows = collect(arguments.output_dir)
    found = results(rows, [GROWN, FIXED], [item.prompt for item in sweep.plan.items])
    print(write_report(arguments.output_dir, found).with_suffix(".md").read_text(encoding="utf-8"))
    table = counts_table(rows)
    print(table)
    return table


if __name__ == "__main__":
    main()
