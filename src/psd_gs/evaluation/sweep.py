"""Prompts x arms x seeds, one run folder each; what is there is not made again, what was interrupted goes on.

``FOLDER/ARM/PROMPT-SEED/`` holds ``config.yaml``, ``splat.ply``, ``preview.png``, ``metrics.jsonl``, the turntable
``views.webp``, what the run cost (``cost.json``) and its scores (``eval.json``). An arm of several runs keeps each of
them in ``candidate-K/``. ``FOLDER/budget.json`` says what every arm may spend.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch

from psd_gs import __version__, runs, weights
from psd_gs.config import Config, merged
from psd_gs.errors import BackendError, ConfigError, InputError, OutputError, PsdGsError
from psd_gs.evaluation.arms import Arm
from psd_gs.evaluation.budget import Budget, Kind, equal_steps, equal_time
from psd_gs.evaluation.compare import Cost, Janus, Row, Scores, held_out
from psd_gs.evaluation.scores import FILM_SIZE, Models, Viewing, measure_asset, ring_images, turntable_webp
from psd_gs.evaluation.suites import Item
from psd_gs.export.formats import load
from psd_gs.export.pictures import preview_png
from psd_gs.files import read_json, write_atomic, writing
from psd_gs.job import Job, Request, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.priors.mini import folder as embedded
from psd_gs.published import EMBEDDED
from psd_gs.render import renderer_device
from psd_gs.result import Product, Result

logger = logging.getLogger(__name__)

Facts = dict[str, Any]
SCORES, COST, BUDGET = "eval.json", "cost.json", "budget.json"
SEED_STRIDE = 1000
"""Distance between the seeds of one arm's several runs."""


class _Scored(TypedDict, total=False):
    scores: dict[str, Scores]
    janus: Janus
    scored_by: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        suite: name, for the record.
        items: prompts.
        arms: to be compared.
        seeds: of each prompt: 0 to ``seeds - 1``.
        request: preset or recipe and options under all arms; its prompt does not count.
        budget: equal steps or equal time.
        time_of: arm whose time all may take, or ``slowest`` (equal time).
        calibration: prompts that the time is measured on.
        shard: this process and how many there are; it takes every n-th prompt.
        viewing: how assets are looked at.
    """

    suite: str
    items: Sequence[Item]
    arms: Sequence[Arm]
    seeds: int = 1
    request: Request = field(default_factory=lambda: Request("", "draft"))
    budget: Kind = "equal-steps"
    time_of: str = "slowest"
    calibration: int = 2
    shard: tuple[int, int] = (0, 1)
    viewing: Viewing = field(default_factory=Viewing)

    def __post_init__(self) -> None:
        index, of = self.shard
        if not 0 <= index < of:
            raise ConfigError(f"shard: expected I/N with I from 0 to N-1, received {index}/{of}.")
        if self.seeds < 1 or self.seeds > SEED_STRIDE:
            raise ConfigError(f"seeds: expected 1 to {SEED_STRIDE}, received {self.seeds}.")
        if self.calibration < 1:
            raise ConfigError(f"calibration: expected 1 prompt or more, received {self.calibration}.")

    def tasks(self) -> Iterator[tuple[Item, int, Arm]]:
        """Prompt by prompt, so that what is finished can be compared at any time."""
        for item in self.items[self.shard[0] :: self.shard[1]]:
            for seed in range(self.seeds):
                for arm in self.arms:
                    yield item, seed, arm


class Sweep:
    """Makes and scores the runs of a plan, and leaves finished ones alone.

    Args:
        pipeline: prior, reward and judge; the reward is what arms optimize and pick by.
        plan: what is to be run.
        folder: of everything; created.
        judges: further models that score, none of which is optimized.

    Raises:
        ConfigError: an arm with options that do not exist or do not go together.
        OutputError: the folder cannot be written.
    """

    def __init__(self, pipeline: TextTo3DPipeline, plan: Plan, folder: Path, judges: Models | None = None) -> None:
        self.pipeline, self.plan, self.folder = pipeline, plan, folder
        self.models = pipeline.models | dict(judges or {})
        for arm in plan.arms:  # a misspelt option must not show after hours
            self.config(arm, plan.items[0].prompt, 0)
        self._warm = False
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    # --- what decides a run ---

    def config(self, arm: Arm, prompt: str, seed: int, steps: int | None = None) -> Config:
        """The options of one run, complete with the models and the digests of their weights."""
        names: Facts = {"prompt": prompt, "seed": seed} | ({} if steps is None else {"steps": steps})
        options = merged(self.plan.request.options, arm.options, names)
        request = replace(self.plan.request, prompt=prompt, options=options, where=f"arm {arm.name}")
        return replace(resolve(request, self.pipeline), weights=self.decisive)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of all weights, the embedded ones included: a changed model makes another run."""
        return digests_of(self.pipeline, self.models)

    @cached_property
    def decisive(self) -> dict[str, str]:
        """The digests without those of models that only judge: another judge makes no other run."""
        reward = self.pipeline.reward.name if self.pipeline.reward else "none"
        judge_only = [name.partition("=")[0] for name in held_out(reward, self.models)]
        prefixes = tuple(f"mini/{EMBEDDED[name]}/" if name in EMBEDDED else f"{name}/" for name in judge_only)
        return {name: digest for name, digest in self.digests.items() if not name.startswith(prefixes)}

    @cached_property
    def budget(self) -> Budget:
        """Steps of every arm; times are measured once and kept in ``budget.json``.

        Raises:
            FormatError: the one that is there is damaged.
            OutputError: another budget is there, or a later shard comes before the first.
        """
        plan, path = self.plan, self.folder / BUDGET
        own = {arm.name: self.config(arm, plan.items[0].prompt, 0).steps for arm in plan.arms}
        kept = read_json(path, Budget) if path.exists() else None
        if kept and (kept.kind != plan.budget or plan.time_of not in ("slowest", kept.time_of)):
            raise OutputError(
                f"{path}: expected a budget of {plan.budget}, received one of {kept.kind} {kept.time_of}. "
                "Choose another --output-dir."
            )
        if plan.budget == "equal-steps":
            budget = equal_steps(plan.arms, own)
        else:
            costs = self._costs(dict(kept.seconds_per_step) if kept else {})
            time_of = (kept and kept.time_of) or plan.time_of
            where = (kept and kept.measured_on) or self._measured_on()
            budget = equal_time(plan.arms, own, costs, time_of, where, kept.seconds if kept else None)
        runs.write_json(path, merged(kept.to_dict() if kept else {}, budget.to_dict()))
        return budget

    def _costs(self, known: dict[str, float]) -> dict[str, float]:
        """Seconds per step of all arms; only those with options that no other arm has are measured."""
        alike: dict[str, list[str]] = {}
        for arm in self.plan.arms:
            alike.setdefault(json.dumps(arm.options, sort_keys=True), []).append(arm.name)
        firsts = {name: next((n for n in names if n in known), names[0]) for names in alike.values() for name in names}
        missing = [arm for arm in self.plan.arms if firsts[arm.name] == arm.name and arm.name not in known]
        if missing and self.plan.shard[0] > 0:
            raise OutputError(
                f"{self.folder / BUDGET}: expected the times of {', '.join(arm.name for arm in missing)}, which shard "
                "0 measures, received none. Start the other shards once they are there."
            )
        known |= self.measure(missing)
        return {name: known[first] for name, first in firsts.items()}

    def measure(self, arms: Sequence[Arm]) -> dict[str, float]:
        """Seconds per step of each arm: short runs of its whole schedule, the arms by turns, nothing written."""
        seconds, steps = dict.fromkeys((arm.name for arm in arms), 0.0), dict.fromkeys((a.name for a in arms), 0)
        for item in self.plan.items[: self.plan.calibration] if arms else ():
            for arm in arms:
                own = self.config(arm, item.prompt, 0).steps
                config = self.config(arm, item.prompt, 0, steps=max(min(own, 10), own // 4))
                self._warm_up(config)
                with tolerated():
                    for event in self.pipeline.trainer(config).run():
                        seconds[arm.name] += event.logs["seconds"]
                        steps[arm.name] += 1
        return {name: seconds[name] / max(1, steps[name]) for name in seconds}

    def _measured_on(self) -> Facts:
        return {"prompts": [i.prompt for i in self.plan.items[: self.plan.calibration]], **self.machine}

    @cached_property
    def machine(self) -> Facts:
        """Where and with what a time was measured."""
        return machine_of(self.pipeline.prior.device)

    # --- runs ---

    def place(self, item: Item, seed: int, arm: Arm) -> Path:
        """The folder of one task."""
        return self.folder / arm.folder / runs.unique_run_name(item.prompt, seed)

    def run(self, item: Item, seed: int, arm: Arm) -> Facts:
        """One finished and scored task, made now or found.

        Raises:
            OutputError: the folder holds a run of other options.
        """
        folder, steps = self.place(item, seed, arm), self.budget.steps[arm.name]
        if arm.runs == 1:
            row = self._candidate(item, self.config(arm, item.prompt, seed, steps), folder)
            return self._keep(folder, row | {"arm": arm.name, "seed": seed, "runs": 1})
        rows = [
            self._candidate(
                item, self.config(arm, item.prompt, seed + SEED_STRIDE * k, steps), folder / f"candidate-{k}"
            )
            for k in range(arm.runs)
        ]
        if self.pipeline.reward is None:
            raise ConfigError(f"arm {arm.name}: expected a reward to pick by, received none. Name one with --reward.")
        reward = [row["scores"][self.pipeline.reward.name]["mean"] for row in rows]
        best = max(range(arm.runs), key=lambda k: -float("inf") if reward[k] is None else reward[k])
        whole = {
            "arm": arm.name,
            "seed": seed,
            "runs": arm.runs,
            "picked": best,
            "candidates": reward,
            "steps": sum(row["steps"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
            "memory": max((row["memory"] for row in rows if row["memory"] is not None), default=None),
        }
        return self._keep(folder, rows[best] | whole | {"files": f"candidate-{best}"})

    def _keep(self, folder: Path, row: Facts) -> Facts:
        """Write what is new of a row; returns all that is known."""
        path = folder / SCORES
        found = read_json(path, dict[str, Any]) if path.exists() else {}
        if found | row != found:
            runs.write_json(path, found | row)
        return found | row

    def _candidate(self, item: Item, config: Config, folder: Path) -> Facts:
        """One run from wherever it stands to its scores."""
        with Job.open(folder, config, strict=("weights",)) as job:  # figures of two models must not be mixed
            if not (folder / COST).exists():
                self._optimize(job)
        cost = read_json(folder / COST, Cost)
        viewing, size = self.plan.viewing, self.pipeline.prior.image_size
        scored_by = {
            "models": {name: self._digest_of(name) for name in self.models},
            "views": viewing.views,
            "size": {name: viewing.size_for(model, size) for name, model in self.models.items()},
            "wrong": list(item.wrong),
        }
        path = folder / SCORES
        found: _Scored = read_json(path, _Scored) if path.exists() else {}
        kept: Any = {name: value for name, value in found.items() if name in ("scores", "janus", "scored_by")}
        if kept.get("scored_by") != scored_by:
            place = renderer_device(self.pipeline.prior.device)
            asset = None if cost["error"] else load(folder / runs.ASSET).to(place)
            kept = measure_asset(asset, item.prompt, item.wrong, self.models, viewing, size)
            kept["scored_by"] = scored_by
        facts = {
            "suite": self.plan.suite,
            "preset": config.preset,
            "budget": self.plan.budget,
            "prompt": item.prompt,
            "group": item.group,
            "prior": config.prior,
            "optimized": config.reward,
            "weights": {name: digest[:12] for name, digest in self.digests.items()},
            "version": __version__,
        }
        return self._keep(folder, facts | cost | kept)

    def _digest_of(self, name: str) -> str:
        part = f"mini/{EMBEDDED.get(name, '?')}/"
        published = f"{name.partition('=')[0]}/"
        own = [digest for key, digest in self.digests.items() if key.startswith((part, published))]
        return own[0][:12] if own else name

    def _optimize(self, job: Job) -> None:
        """The loop from its beginning or its last checkpoint, and the files; the cost last."""
        self._warm_up(job.config)
        trainer = job.begin(self.pipeline, weights=self.decisive, anew=True)
        trainer.observe = None  # pictures of the way there are for people who wait
        memory = Memory(self.pipeline.prior.device)
        result = None
        with tolerated() as errors:
            job.run(lambda event: memory.look())
            result = job.finish(products=self._products)
        runs.write_json(
            job.folder / COST,
            {
                "steps": job.config.steps,
                "seconds": round(spent(job.folder / "metrics.jsonl"), 3),
                "memory": memory.peak,
                "gaussians": len(result.gaussians) if result else 0,
                "error": errors[0] if errors else None,
                "machine": self.machine,
            },
        )

    @property
    def _products(self) -> Mapping[str, Product]:
        """What the report shows of an asset."""

        def film(result: Result, path: Path) -> None:
            viewing = self.plan.viewing
            write_atomic(path, turntable_webp(ring_images(result.gaussians, viewing.views, viewing.size or FILM_SIZE)))

        def preview(result: Result, path: Path) -> None:
            preview_png(result.gaussians, path, size=256, metadata=result.metadata)

        return {"views.webp": film, "preview.png": preview}

    def _warm_up(self, config: Config) -> None:
        """Load compiled kernels before anything is timed."""
        if not self._warm:
            with tolerated():
                for _ in self.pipeline.trainer(replace(config, steps=min(3, config.steps))).run():
                    pass
            self._warm = True


def digests_of(pipeline: TextTo3DPipeline, models: Models) -> dict[str, str]:
    """SHA-256 of the weights of a pipeline's prior and of ``models``, those that ship with the package included."""
    found = dict(pipeline.digests)
    parts = [("prior", pipeline.prior.name == "mini")]
    parts += [(folder, name in models) for name, folder in EMBEDDED.items()]
    for part, used in parts:
        if used:
            for file, digest in weights.checksums(embedded(part)).items():
                found[f"mini/{part}/{file}"] = digest
    return found


def machine_of(device: torch.device) -> Facts:
    """Where and with what a time is measured."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def tolerated() -> Iterator[list[str]]:
    """A run in which everything becomes transparent is a result, not a failure: the message goes into the list."""
    errors: list[str] = []
    try:
        yield errors
    except BackendError:
        raise
    except PsdGsError as error:
        errors.append(str(error))


def spent(metrics: Path) -> float:
    """Seconds of the optimization loop, also of one that was interrupted: the sum over its steps."""
    return sum(row.get("seconds") or 0.0 for row in runs.read_log(metrics))


def collect(folder: Path) -> list[Row]:
    """The rows of all finished tasks under ``folder``, in the order of their paths; damaged ones are left out.

    Raises:
        InputError: there are none.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob(f"*/*/{SCORES}")):
        try:
            if "arm" in read_json(path, dict[str, Any]):  # else it was killed before it was complete
                rows.append({**read_json(path, Row), "folder": str(path.parent)})
        except InputError as error:
            logger.warning("left out: %s", error)
    if not rows:
        raise InputError(f"{folder}: expected finished runs of `psd-gs eval run`, received none. Check the path.")
    return rows


class Memory:
    """Peak memory in GB: of the GPU's allocator, else of this process (models included) where the system tells."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: float | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def look(self) -> None:
        """Call after each step."""
        if self.device.type == "cuda":
            now: float | None = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            now = resident_memory()
        if now is not None:
            self.peak = round(max(now, self.peak or 0.0), 3)


def resident_memory() -> float | None:
    """Memory that this process holds, GB; None where the system does not tell (other than Linux)."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 / 1e9 for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration, ValueError):
        return None


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
