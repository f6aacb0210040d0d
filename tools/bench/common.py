"""What the benchmarks share: prompts, options, and assets with their verdicts that are kept on disk.

Everything that takes time is one line of ``runs*.jsonl`` under a key of all that decides it (options,
weights of the models, prompt, seed). A benchmark that is started again reads the lines it finds and
makes the rest, so it can be stopped at any time, or run in several processes at once (``--shard``). The code is
not part of the key: take another ``--out`` after a change that matters; a report names the commits of its lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.colours import shares
from bench.verdicts import verdict
from psd_gs.config import Config, make_config, to_dict
from psd_gs.densify import components
from psd_gs.errors import PsdGsError
from psd_gs.evaluation.arms import parse_overrides
from psd_gs.export.pictures import contact_sheet
from psd_gs.files import write_atomic
from psd_gs.gaussians import Gaussians
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.priors import family_of
from psd_gs.priors.mini import folder as embedded
from psd_gs.published import EMBEDDED
from psd_gs.render import render, renderer_device
from psd_gs.runs import slug
from psd_gs.scoring import evaluation_cameras, evaluation_images
from psd_gs.trainer import read_tensors, write_tensors

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "tools" / "bench" / "prompts.json"
SMALL = 0.01
"""A detached component below this share of the opacity mass is a floater."""


# --- prompts and options ---------------------------------------------------------------------------------------------


def load_prompts(path: Path = PROMPTS, count: int | None = None) -> list[Row]:
    """The rows of a prompt file, or ``count`` of them evenly spread over it."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    count = min(count or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def key_value(text: str) -> str:
    """``text`` as it is; for argparse.

    Raises:
        argparse.ArgumentTypeError: no equals sign.
    """
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected key=value, such as guidance.psd.weight=2, received {text!r}")
    return text


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark over prompts can be told."""
    parser.add_argument("--preset", default="draft", help="draft, default or quality (default: draft)")
    parser.add_argument("--prompts", type=int, metavar="N", help="only N of the prompts, evenly spread over the list")
    parser.add_argument("--list", type=Path, default=PROMPTS, help="prompt file (default: tools/bench/prompts.json)")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds 0 to K-1 of each prompt (default: 1)")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    add_set_argument(parser)
    parser.add_argument("--prior", default="auto", help="name or folder (default: the embedded one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th prompt from the I-th only")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "outputs" / "bench", help="keeps finished work (default: outputs/bench)"
    )


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    text = "option over the preset; repeatable"
    parser.add_argument("--set", action="append", default=[], type=key_value, metavar="KEY=VALUE", help=text)


def load_pipeline(device: str = "auto", prior: str = "auto") -> TextTo3DPipeline:
    """The models, without their libraries' advice."""
    from psd_gs.cli.terminal import silence_libraries

    silence_libraries()
    return TextTo3DPipeline.from_pretrained(prior, device=device)


def options_of(arguments: argparse.Namespace) -> Row:
    """Options over the preset from ``--set`` and ``--steps``."""
    return parse_overrides(arguments.set) | ({"steps": arguments.steps} if arguments.steps else {})


def make_run_config(bench: Bench, preset: str, prompt: str, seed: int, *overrides: Row, where: str) -> Config:
    """The configuration of one run, complete with the names of the models."""
    prior = bench.pipeline.prior
    names: Row = {"prompt": prompt, "seed": seed, "prior": prior.name, "device": str(prior.device)}
    names |= {name: model.name for name, model in bench.rewards.items()}
    return make_config(preset, family_of(prior), *overrides, names, where=where)


# --- what decides a result -------------------------------------------------------------------------------------------


def fingerprint(data: Any) -> str:
    """Twelve hex digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def digest(paths: Iterable[Path]) -> str:
    """Twelve hex digits of the SHA-256 of some files, names included."""
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def weights_of(name: str, folder: Path) -> str:
    """Digest of a model's weights; its name if there are none."""
    return digest(folder.rglob("*.safetensors")) if folder.is_dir() else name


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> Row:
    """Where and with what a number was measured."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": git.stdout.strip() or "unknown",
    }


# --- finished work ---------------------------------------------------------------------------------------------------


class Journal:
    """Rows by key in ``runs*.jsonl`` of a folder; a line that a crash cut short is ignored."""

    def __init__(self, folder: Path, name: str = "runs") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self.rows: dict[str, Row] = {}
        for path in sorted(folder.glob("runs*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.rows[row["key"]] = row
        torn = self.path.exists() and not self.path.read_text(encoding="utf-8").endswith("\n")
        if torn:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def append(self, row: Row) -> Row:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[row["key"]] = row
        return row


@dataclass
class Drawn:
    """Something to be judged.

    Attributes:
        images: sets of four views, sRGB in [0, 1].
        rgba: object pixels of any views, premultiplied; None where there is no alpha.
        record: whatever else is known of it.
    """

    images: Float[Tensor, "S V 3 H W"]
    rgba: Float[Tensor, "B 4 H W"] | None = None
    record: Row = field(default_factory=dict)


class Bench:
    """Makes, judges and remembers.

    Args:
        pipeline: prior, reward and judge.
        out: folder of ``runs*.jsonl``, ``assets/`` and ``pictures/``.
        shard: this process and how many there are.
        prior: folder of the prior's weights, if they are not the embedded ones.
    """

    def __init__(
        self, pipeline: TextTo3DPipeline, out: Path, shard: tuple[int, int] = (0, 1), prior: Path | None = None
    ) -> None:
        self.pipeline, self.out, self.shard = pipeline, out, shard
        self.journal = Journal(out, "runs" if shard[1] == 1 else f"runs-{shard[0]}")
        self.rewards = {n: m for n, m in (("reward", pipeline.reward), ("judge", pipeline.judge)) if m is not None}
        self.weights = {"prior": weights_of(pipeline.prior.name, prior or embedded("prior"))}
        for name, model in self.rewards.items():
            self.weights[name] = weights_of(model.name, embedded(EMBEDDED.get(model.name, "none")))
        self.machine = machine()
        self.warm = False
        (out / "pictures").mkdir(exist_ok=True)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Bench:
        """Load the models that :func:`add_common_arguments` names."""
        index, _, of = arguments.shard.partition("/")
        prior = None if arguments.prior in ("auto", "mini") else Path(arguments.prior)
        return cls(load_pipeline(arguments.device, arguments.prior), arguments.out, (int(index), int(of or 1)), prior)

    def mine(self, prompts: list[Row]) -> list[Row]:
        """The prompts of this process."""
        return prompts[self.shard[0] :: self.shard[1]]

    def key(self, what: Row) -> str:
        return fingerprint({**what, "judged by": {name: self.weights[name] for name in self.rewards}})

    def row(self, prompt: Row, what: Row, make: Callable[[], Drawn]) -> Row:
        """Judge ``make()``, or find the line of an earlier time.

        Args:
            prompt: row of the prompt file.
            what: all that decides the outcome besides the judges.
            make: draws it.
        """
        key = self.key(what)
        if key in self.journal.rows:
            return self.journal.rows[key]
        drawn = make()
        row = {"key": key, "prompt": prompt["prompt"], "held_out": prompt["held_out"]} | drawn.record
        row |= verdict(drawn.images, prompt, self.rewards)
        if drawn.rgba is not None:
            row["colours"] = shares(drawn.rgba)
        save_mosaic(drawn.images[0], self.picture(key), prompt["prompt"])
        row |= {"date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}Z", "weights": self.weights, "machine": self.machine}
        return self.journal.append(row)

    def picture(self, key: str) -> Path:
        """The first four views of what ``key`` stands for."""
        return self.out / "pictures" / f"{key}.png"

    # --- assets ---

    def asset_row(self, prompt: Row, config: Config) -> Row:
        """Optimize and judge one asset; either half is skipped where it was done before."""
        decides = self.decides(config)
        return self.row(prompt, decides, lambda: self._drawn(config, decides))

    def decides(self, config: Config) -> Row:
        """The options and weights that an asset depends on; those that cannot act are left out."""
        options = to_dict(config)
        for name in ("judge", "preset"):
            options.pop(name)
        weights = {"prior": self.weights["prior"], "reward": self.weights.get("reward")}
        if config.guidance.preference == "none":
            for name in ("psd", "negative"):
                options["guidance"].pop(name)
            options.pop("reward")
            weights.pop("reward")
        return {"kind": "asset", "config": options, "weights": weights}

    def _drawn(self, config: Config, decides: Row) -> Drawn:
        path = self.out / "assets" / f"{slug(config.prompt)}-{config.seed}-{fingerprint(decides)}.safetensors"
        record = path.with_suffix(".json")
        if not record.exists():
            if not self.warm:  # compiled kernels are loaded before anything is timed
                short = replace(config, steps=3)
                optimize(self.pipeline, short)
                self.warm = True
            asset, facts = optimize(self.pipeline, config)
            write_tensors(path, asset.params())
            write_atomic(record, json.dumps(facts | {"config": decides["config"]}) + "\n")
        asset = Gaussians(**read_tensors(path)).to(renderer_device(self.pipeline.prior.device))
        return Drawn(evaluation_images(asset), object_views(asset), json.loads(record.read_text()))


def optimize(pipeline: TextTo3DPipeline, config: Config) -> tuple[Gaussians, Row]:
    """Run the loop in memory; an asset that vanished is an empty one, not an error."""
    trainer = pipeline.trainer(config)
    counts = {"grown": 0, "pruned": 0}
    error = None
    start, busy = time.perf_counter(), time.process_time()
    try:
        for event in trainer.run():
            counts = {name: n + int(event.logs.get(name, 0)) for name, n in counts.items()}
    except PsdGsError as caught:
        error = str(caught)
    asset = trainer.finish()
    if pipeline.prior.device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - busy
    if error:
        asset = asset.select(torch.zeros(len(asset), dtype=torch.bool))
    facts = {
        "kind": "asset",
        "seed": config.seed,
        "steps": config.steps,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "start": config.init.count,
        **counts,
        "swept": len(trainer.gaussians) - len(asset),
        "gaussians": len(asset),
        "small_components": small_components(asset),
        "error": error,
    }
    return asset, facts


def small_components(asset: Gaussians) -> int:
    """Number of detached groups of Gaussians with less than :data:`SMALL` of the opacity mass."""
    if not len(asset):
        return 0
    mass = np.bincount(components(asset), weights=torch.sigmoid(asset.opacities).double().cpu().numpy())
    return int((mass < SMALL * mass.sum()).sum())


@torch.no_grad()
def object_views(asset: Gaussians, size: int = 64) -> Float[Tensor, "B 4 H W"]:
    """Premultiplied RGBA of the evaluation views."""
    out = render(asset, evaluation_cameras(size).to(asset.device))
    return torch.cat([out.rgb, out.alpha], -1).permute(0, 3, 1, 2).cpu()


# --- reports -------------------------------------------------------------------------------------------------------


def provenance(bench: Bench, rows: Iterable[Row] = ()) -> str:
    """Command, date, machine, versions and weights as a Markdown list; where the rows differ, all of them."""
    machines = [row["machine"] for row in rows] or [bench.machine]

    def distinct(name: str) -> str:
        return ", ".join(sorted({str(m[name]) for m in machines if m[name] is not None})) or "none"

    used = f"cores {distinct('cores')}; torch threads {distinct('threads')}; GPU {distinct('gpu')}"
    script = Path(sys.argv[0])
    command = script.relative_to(ROOT) if script.is_absolute() and script.is_relative_to(ROOT) else script
    return "\n".join(
        [
            f"- command: `{shlex.join(['python', command.as_posix(), *sys.argv[1:]])}`",
            f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"- machine: {distinct('cpu')}; {used}",
            f"- torch {distinct('torch')}; commit {distinct('commit')}",
            f"- weights (SHA-256): {', '.join(f'{name} {sha}' for name, sha in bench.weights.items())}",
        ]
    )


def write_report(path: Path, text: str, rows: Iterable[Row]) -> None:
    """The Markdown file and, beside it, the lines that it was computed from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.rstrip() + "\n")
    write_atomic(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))


def save_mosaic(views: Float[Tensor, "V 3 H W"], path: Path, text: str) -> None:
    """Four views in a square."""
    contact_sheet(list(views.cpu().permute(0, 2, 3, 1)), path, columns=2, size=128, metadata={"prompt": text})


class Progress:
    """Prints one line per finished item, with the time that is left."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self, text: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        print(f"[{self.done}/{self.total}] {text}  ({math.ceil(left / 60)} min left)", flush=True)
