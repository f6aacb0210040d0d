"""Time and memory of the main command, and where they go.

    python tools/bench/generate.py                         # "a corgi", default preset
    python tools/bench/generate.py --preset draft --skip-command

1. The command: ``psd-gs generate PROMPT`` as a user runs it, in a process of its own: the first time with an empty
   cache of compiled kernels, then again; wall time and peak memory (children included).
2. The parts: the same run in this process with clocks around the U-Net, the reward, rendering and its backward pass.
   The same calls are then repeated alone: the step should take at most 1.12 times their sum.
3. The preference: whole runs with it and without, in turns.

Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import BENCH, Row, add_set_argument, load_pipeline, options_of, provenance, write_report, yes
from psd_gs import trainer
from psd_gs.config import Config, merged
from psd_gs.evaluation.report import markdown_table
from psd_gs.evaluation.sweep import spent
from psd_gs.guidance.negative import NegativeEmbedding
from psd_gs.job import Request, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.runs import slug, write_yaml

MAX_SECONDS = {("draft", 32): 45, ("draft", 64): 75, ("default", 32): 120, ("default", 64): 180}
"""Bars by preset and image size of the prior."""

MAX_GIGABYTES, MAX_FIRST, MAX_BEYOND, MAX_STEP, MAX_PREFERENCE = 2.0, 4.0, 8.0, 1.12, 1.8
SAMPLES = 8
"""Calls of each kind that are repeated alone."""

REFINEMENT = "U-Net, backward (refinement of the negative embedding)"


# --- the command -----------------------------------------------------------------------------------------------------


def run_command(arguments: list[str], cache: Path) -> tuple[float, float]:
    """Wall seconds and peak memory (GB) of ``psd-gs`` with its compiled kernels cached in ``cache``.

    Raises:
        SystemExit: the command fails.
    """
    script = shutil.which("psd-gs", path=str(Path(sys.executable).parent)) or shutil.which("psd-gs")
    command = [script] if script else [sys.executable, "-c", "from psd_gs.cli import main; main()"]
    return run_program([*command, *arguments], {"NUMBA_CACHE_DIR": str(cache)})


def run_program(command: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall seconds and peak memory (GB) of a program and its children.

    Args:
        command: program and arguments.
        environment: beside that of this process.

    Raises:
        SystemExit: it fails.
    """
    import psutil

    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, **environment})
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.Error:  # one of them has just ended
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return time.perf_counter() - start, peak / 1e9


def time_command(prompt: str, preset: str, seed: int, overrides: Row) -> list[Row]:
    """The command on an empty cache and on a filled one."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        options = Path(folder) / "options.yaml"
        write_yaml(options, overrides)
        for name in ("first", "second"):
            out = Path(folder) / name
            given = ["generate", prompt, "--preset", preset, "--seed", str(seed), "--output-dir", str(out)]
            given += ["--config", str(options)] if overrides else []
            seconds, gigabytes = run_command(given, Path(folder) / "numba")
            run = out / f"{slug(prompt)}-{seed}"
            loop = spent(run / "metrics.jsonl")
            rows.append({"kind": "command", "run": name, "seconds": seconds, "loop": loop, "gigabytes": gigabytes})
            print(f"{name} run: {seconds:.1f} s, of which {loop:.1f} s in the loop; {gigabytes:.2f} GB", flush=True)
    return rows


# --- the parts -------------------------------------------------------------------------------------------------------


class Clocks:
    """Time in the parts of the loop, and calls that are kept to be repeated alone.

    Args:
        every: keep each ``every``-th call of a kind.
        synchronize: waits for the device before a clock is read.
    """

    def __init__(self, every: int, synchronize: Callable[[], None]) -> None:
        self.every, self.synchronize = every, synchronize
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.calls: dict[str, list[Callable[[], Any]]] = defaultdict(list)

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        self.synchronize()
        start = time.perf_counter()
        result = function()
        self.synchronize()
        return time.perf_counter() - start, result

    def around(
        self,
        function: Callable,
        name: Callable[..., str],
        keep: Callable[..., Callable[[], Any]] | None = None,
    ) -> Callable:
        """``function`` with a clock; ``keep(*arguments)`` returns the call to repeat alone."""

        def clocked(*args, **kwargs):
            kind = name(*args, **kwargs)
            if keep and len(self.seconds[kind]) % self.every == 0:
                self.calls[kind].append(keep(*args, **kwargs))
            seconds, result = self.timed(lambda: function(*args, **kwargs))
            self.seconds[kind].append(seconds)
            return result

        return clocked

    def bare(self, kind: str, repetitions: int = 3) -> float:
        """Seconds of all calls of a kind, if each took as long as those that are repeated alone."""
        alone = [np.median([self.timed(call)[0] for _ in range(repetitions)]) for call in self.calls[kind]]
        return float(np.mean(alone) * len(self.seconds[kind]))


def clock_parts(pipeline: TextTo3DPipeline, config: Config) -> tuple[Clocks, float]:
    """One run with clocks around its parts, and its seconds."""
    prior, reward = pipeline.prior, pipeline.reward
    synchronize = torch.cuda.synchronize if prior.device.type == "cuda" else lambda: None
    clocks = Clocks(max(1, config.steps // SAMPLES), synchronize)
    unet, score, render = prior.unet.forward, reward.score, trainer.render
    backward, descend = torch.Tensor.backward, NegativeEmbedding.descend

    def unet_alone(*args, **kwargs):
        return torch.set_grad_enabled(torch.is_grad_enabled())(lambda: unet(*args, **kwargs))

    def score_alone(images, *args, **kwargs):
        return torch.no_grad()(lambda: score(images, *args, **kwargs))

    def render_alone(gaussians, *args, **kwargs):
        copy = gaussians.detach().map(torch.clone)

        def both_ways():
            rgb = render(copy.map(lambda p: p.detach().requires_grad_()), *args, **kwargs).rgb
            backward(rgb, torch.ones_like(rgb))

        return both_ways

    def unet_name(sample, *args, **kwargs):
        return f"U-Net, {len(sample)} rows{', with gradient' if torch.is_grad_enabled() else ''}"

    clocked = {
        (prior.unet, "forward"): clocks.around(unet, unet_name, unet_alone),
        (reward, "score"): clocks.around(score, lambda images, *_: f"reward, {len(images)} groups", score_alone),
        (trainer, "render"): clocks.around(render, lambda *_, **__: "render", render_alone),
        (torch.Tensor, "backward"): clocks.around(backward, lambda *_: "render, backward"),
        (NegativeEmbedding, "descend"): clocks.around(descend, lambda *_: REFINEMENT),
    }
    run = pipeline.trainer(config)
    with ExitStack() as stack:
        for (owner, name), function in clocked.items():
            stack.enter_context(patch.object(owner, name, function))
        seconds, _ = clocks.timed(lambda: list(run.run()))
    return clocks, seconds


def time_parts(pipeline: TextTo3DPipeline, config: Config) -> list[Row]:
    """Seconds of every part inside the loop and alone.

    Rendering is repeated both ways at once; the backward pass of the refinement is taken as it was.
    """
    clocks, total = clock_parts(pipeline, config)
    inside = {kind: sum(seconds) for kind, seconds in clocks.seconds.items()}
    alone = {kind: clocks.bare(kind) for kind in clocks.calls} | {k: s for k, s in inside.items() if k == REFINEMENT}
    rows = [
        {"kind": "part", "part": k, "calls": len(clocks.seconds[k]), "seconds": s, "bare": alone.get(k)}
        for k, s in sorted(inside.items())
    ]
    left = total - sum(inside.values())
    rest = {"kind": "part", "part": "rest", "calls": config.steps, "seconds": left, "bare": None}
    return [*rows, rest, {"kind": "loop", "seconds": total, "bare": sum(alone.values()), "steps": config.steps}]


# --- the preference --------------------------------------------------------------------------------------------------


def time_preference(pipeline: TextTo3DPipeline, config: Config, base: Config, repetitions: int) -> list[Row]:
    """Whole runs with the preference score and without it, in turns."""
    rows = []
    for i in range(repetitions):
        for name, options in (("psd", config), ("base", base)):
            seconds, cpu = optimize(pipeline, options)
            rows.append({"kind": "preference", "arm": name, "seconds": seconds, "cpu": cpu})
            print(f"{name} {i + 1}/{repetitions}: {seconds:.1f} s", flush=True)
    return rows


def optimize(pipeline: TextTo3DPipeline, config: Config) -> tuple[float, float]:
    """Seconds and CPU seconds of a whole run in memory."""
    trainer = pipeline.trainer(config)
    start, busy = time.perf_counter(), time.process_time()
    for _ in trainer.run():
        pass
    trainer.finish()
    if pipeline.prior.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


# --- report ----------------------------------------------------------------------------------------------------------

PAGE = """# Time and memory of `psd-gs generate "{prompt}"`

Preset {preset}, seed {seed}, prior of {size}x{size} pixels.

{provenance}

{bars}

The step is the whole loop against its U-Net, reward and rendering calls repeated alone (medians of {samples} calls of
each kind, spread over the run).

{parts}

{runs}
"""


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def bars_table(rows: list[Row], preset: str, size: int) -> str:
    """The bars for which something was measured."""
    lines = [["bar", "measured", "asked for", "met"]]

    def line(name: str, value: float, digits: int, unit: str, bar: float | None) -> None:
        limit = [f"at most {bar:g} {unit}", yes(value <= bar)] if bar else ["", ""]
        lines.append([name, f"{value:.{digits}f} {unit}", *limit])

    if command := of_kind(rows, "command"):
        first, second = command
        line("wall time", second["seconds"], 1, "s", MAX_SECONDS.get((preset, size)))
        line("first run on an empty kernel cache, more", first["seconds"] - second["seconds"], 1, "s", MAX_FIRST)
        line("peak memory", max(first["gigabytes"], second["gigabytes"]), 2, "GB", MAX_GIGABYTES)
        line("loading, export and scores", second["seconds"] - second["loop"], 1, "s", MAX_BEYOND)
    for loop in of_kind(rows, "loop"):
        line("step against its bare calls", loop["seconds"] / loop["bare"], 2, "x", MAX_STEP)
    if runs := of_kind(rows, "preference"):
        mean = {arm: np.mean([row["seconds"] for row in runs if row["arm"] == arm]) for arm in ("psd", "base")}
        line("run with preference against one without", mean["psd"] / mean["base"], 2, "x", MAX_PREFERENCE)
    return markdown_table(lines)


def parts_table(rows: list[Row]) -> str:
    """Where the loop's time goes."""
    total = sum(row["seconds"] for row in of_kind(rows, "loop"))
    lines = [["part", "calls", "seconds in the loop", "share", "seconds alone (rendering: both ways)"]]
    whole = [{**row, "part": "loop", "calls": row["steps"]} for row in of_kind(rows, "loop")]
    for row in [*of_kind(rows, "part"), *whole]:
        numbers = [f"{row['seconds']:.2f}", f"{100 * row['seconds'] / total:.0f} %"]
        lines.append([row["part"], str(row["calls"]), *numbers, "" if row["bare"] is None else f"{row['bare']:.2f}"])
    return markdown_table(lines)


def runs_table(rows: list[Row]) -> str:
    """Every whole run."""
    lines = [["run", "seconds", "CPU seconds", "peak GB"]]
    for r in of_kind(rows, "preference"):
        lines.append([f"{r['arm']}, in memory", f"{r['seconds']:.1f}", f"{r['cpu']:.1f}", ""])
    for r in of_kind(rows, "command"):
        lines.append([f"command, {r['run']} run", f"{r['seconds']:.1f}", "", f"{r['gigabytes']:.2f}"])
    return markdown_table(lines)


def main(argv: list[str] | None = None) -> str:
    """Measure, write the report and return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a corgi", help='default: "a corgi"')
    parser.add_argument("--preset", default="default", help="draft, default or quality")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the preset's (for a quick look)")
    add_set_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--repeat", type=int, default=2, help="runs with and without preference (default: 2; 0: none)")
    parser.add_argument("--skip-command", action="store_true", help="measure in this process only")
    parser.add_argument("--report", type=Path, default=BENCH / "generate.md", help="where the tables go")
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    rows: list[Row] = []
    if not arguments.skip_command:
        rows += time_command(arguments.prompt, arguments.preset, arguments.seed, options)
    pipeline = load_pipeline(arguments.device)
    request = Request(arguments.prompt, arguments.preset, options=merged(options, {"seed": arguments.seed}))
    config = resolve(request, pipeline)
    base = replace(config, guidance=replace(config.guidance, preference="none"))
    optimize(pipeline, replace(config, steps=3))  # compiled kernels are loaded before anything is timed
    rows += time_parts(pipeline, config)
    rows += time_preference(pipeline, config, base, arguments.repeat)
    size = pipeline.prior.image_size
    tables = {"bars": bars_table(rows, arguments.preset, size), "parts": parts_table(rows), "runs": runs_table(rows)}
    text = PAGE.format(**vars(arguments), **tables, size=size, samples=SAMPLES, provenance=provenance(pipeline))
    write_report(arguments.report, text, rows)
    return text


if __name__ == "__main__":
    main()
