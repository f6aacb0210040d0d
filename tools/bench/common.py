"""What the benchmarks share: options, models, evaluations, work that is kept, and where a number comes from."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from psd_gs.config import parse_overrides
from psd_gs.evaluation.arms import parse_arms
from psd_gs.evaluation.suites import load_suite
from psd_gs.evaluation.sweep import Plan, Sweep, digests_of, machine_of
from psd_gs.files import write_atomic
from psd_gs.job import Request
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.runs import write_json

Row = dict[str, Any]
AnySweep = TypeVar("AnySweep", bound=Sweep)

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "outputs" / "bench"
"""Where reports go unless told."""


# --- options ---------------------------------------------------------------------------------------------------------


def key_value(text: str) -> str:
    """``text`` as it is; for argparse.

    Raises:
        argparse.ArgumentTypeError: no equals sign.
    """
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected key=value, such as guidance.psd.weight=2, received {text!r}")
    return text


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    text = "option over the preset; repeatable"
    parser.add_argument("--set", action="append", default=[], type=key_value, metavar="KEY=VALUE", help=text)


def options_of(arguments: argparse.Namespace) -> Row:
    """Options over the preset from ``--set`` and ``--steps``."""
    return parse_overrides(arguments.set) | ({"steps": arguments.steps} if arguments.steps else {})


def load_pipeline(device: str = "auto", prior: str = "auto") -> TextTo3DPipeline:
    """The models, without their libraries' advice."""
    from psd_gs.cli.terminal import silence_libraries

    silence_libraries()
    return TextTo3DPipeline.from_pretrained(prior, device=device)


# --- evaluations -----------------------------------------------------------------------------------------------------


def add_sweep_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of a benchmark over the assets of a suite, kept as `psd-gs eval run` keeps them."""
    parser.add_argument("--suite", default="mini-40", help="as of `psd-gs eval run` (default: mini-40)")
    parser.add_argument("--prompts", type=int, metavar="N", help="only N of its prompts, evenly spread")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds 0 to K-1 of each prompt (default: 1)")
    parser.add_argument("--preset", default="draft", help="draft, default or quality (default: draft)")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    add_set_argument(parser)
    parser.add_argument("--prior", default="auto", help="name or folder (default: the embedded one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    folder = ROOT / "outputs" / out
    parser.add_argument("--output-dir", type=Path, default=folder, help=f"keeps finished work (default: outputs/{out})")


def sweep_of(arguments: argparse.Namespace, arms: Sequence[str], kind: type[AnySweep] = Sweep) -> AnySweep:
    """The evaluation that :func:`add_sweep_arguments` describes."""
    plan = Plan(
        suite=Path(arguments.suite).stem,
        items=load_suite(arguments.suite, arguments.prompts),
        arms=parse_arms(arms),
        seeds=arguments.seeds,
        request=Request("", arguments.preset, options=options_of(arguments)),
    )
    return kind(load_pipeline(arguments.device, arguments.prior), plan, arguments.output_dir)


class Progress:
    """Prints one line per finished item, with the time that is left."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self, text: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        print(f"[{self.done}/{self.total}] {text}  ({math.ceil(left / 60)} min left)", flush=True)


# --- finished work ---------------------------------------------------------------------------------------------------


def digest(paths: Iterable[Path]) -> str:
    """Twelve hex digits of the SHA-256 of some files, names included."""
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def kept(folder: Path, decides: Row, make: Callable[[Path], Row]) -> Row:
    """What ``make`` finds, now or at an earlier time, and the ``picture`` that it leaves at the path it is given.

    Args:
        folder: of such rows; created.
        decides: all that decides the outcome.
        make: is given the path of a picture.
    """
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    path, picture = folder / f"{name}.json", folder / f"{name}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, make(picture))
    return json.loads(path.read_text(encoding="utf-8")) | {"picture": str(picture)}


# --- reports ---------------------------------------------------------------------------------------------------------


def provenance(pipeline: TextTo3DPipeline) -> str:
    """Command, date, machine, versions and weights as a Markdown list."""
    weights = digests_of(pipeline, pipeline.models).items()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    script = Path(sys.argv[0])
    command = script.relative_to(ROOT) if script.is_absolute() and script.is_relative_to(ROOT) else script
    machine = machine_of(pipeline.prior.device)
    return "\n".join(
        [
            f"- command: `{shlex.join(['python', command.as_posix(), *sys.argv[1:]])}`",
            f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; commit {git.stdout.strip() or 'unknown'}",
            f"- machine: {'; '.join(f'{name} {value}' for name, value in machine.items())}",
            f"- weights (SHA-256): {', '.join(f'{name} {sha[:12]}' for name, sha in weights)}",
        ]
    )


def yes(met: bool) -> str:
    return "yes" if met else "no"


def write_report(path: Path, text: str, rows: Iterable[Row]) -> None:
    """The Markdown file and, beside it, the lines that it was computed from; the text is printed too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.rstrip() + "\n")
    write_atomic(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    print(text)
