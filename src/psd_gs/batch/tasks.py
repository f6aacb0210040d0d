"""What a worker does: one prompt, from its first step or its checkpoint to the files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psd_gs import runs
from psd_gs.config import Config
from psd_gs.errors import BusyError, InputError, OutputError, PsdGsError
from psd_gs.files import called, read_given
from psd_gs.job import LOCK, Job

if TYPE_CHECKING:
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.priors import TextEmbedding
    from psd_gs.priors.base import Prior

logger = logging.getLogger(__name__)

PROMPT_BYTES = 64 << 20
"""Largest file of prompts."""
EMBEDDINGS = ".embeddings"
"""Folder in the results with the prompts' embeddings, each computed by one worker for all."""


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes:
        config: everything that decides it.
        folder: of the run, absolute.
        allow_code: whether reward and judge may be functions, see :func:`psd_gs.rewards.refuse_code`.
    """

    config: Config
    folder: Path
    allow_code: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        scores: by model.
        error: what was wrong with this task; None if it is finished.
        fatal: no other task can do better, for the models cannot be loaded.
        busy: another process works on it.
    """

    scores: dict[str, float] | None = None
    error: str | None = None
    fatal: bool = False
    busy: bool = False


def read_prompts(path: str | Path) -> list[str]:
    """One prompt per line; empty lines, lines that begin with # and repetitions are left out.

    Args:
        path: of the file; a pipe or ``-`` serves too.

    Raises:
        InputError: the file cannot be read, or has no prompts.
    """
    name = called(path)
    try:
        text = read_given(path, PROMPT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {name}: {error}. Give a text file in UTF-8, one prompt per line.") from error
    lines = [" ".join(line.split()) for line in text.splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise InputError(f"{name}: expected one prompt per line, received no prompts.")
    return prompts


def make_tasks(config: Config, prompts: Sequence[str], output_dir: Path, *, allow_code: bool = False) -> list[Task]:
    """A task per prompt, all with the same options."""
    root, seed = output_dir.resolve(), config.seed
    return [Task(replace(config, prompt=p), root / runs.unique_run_name(p, seed), allow_code) for p in prompts]


def unfinished(tasks: Sequence[Task]) -> list[Task]:
    """Those that are still to do; what a process that was killed at its end left in the folder of another is cleared
    away."""
    done = {task.folder: runs.is_finished(task.folder) for task in tasks}
    for task in tasks:
        if done[task.folder] and (task.folder / LOCK).exists():
            with suppress(OutputError):  # somebody works there
                Job(task.folder, task.config).close()
    return [task for task in tasks if not done[task.folder]]


def steps_done(folder: Path) -> int:
    """Finished steps of a run that may be under way."""
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


class Worker:
    """Loads the models at the first task and keeps them.

    Args:
        device: ``cpu`` or ``cuda:N``.
        threads: of torch and the CPU rasterizer; 0 leaves what there is.
        prepare: called before the models are loaded.
    """

    def __init__(self, device: str, threads: int = 0, prepare: Callable[[], None] | None = None) -> None:
        self.device, self.threads, self.prepare = device, threads, prepare
        self.pipeline: TextTo3DPipeline | None = None

    def run(self, task: Task) -> Outcome:
        """Do a task; whatever goes wrong is told in the outcome."""
        try:
            self.pipeline = self.pipeline or self._load(task)
        except Exception as error:
            return Outcome(error=_text(error), fatal=True)
        try:
            return Outcome(run_task(self.pipeline, replace(task, config=replace(task.config, device=self.device))))
        except BusyError:
            return Outcome(busy=True)
        except Exception as error:  # a bug in one run must not stop the others
            if not isinstance(error, PsdGsError):
                logger.exception("%s failed", task.folder)
            return Outcome(error=_text(error))

    def _load(self, task: Task) -> TextTo3DPipeline:
        import torch

        from psd_gs.pipeline import TextTo3DPipeline

        if self.prepare:
            self.prepare()
        if self.threads:
            torch.set_num_threads(self.threads)
        c = task.config
        pipeline = TextTo3DPipeline.of(c, self.device, allow_code=task.allow_code)
        share_embeddings(pipeline.prior, f"{c.prior} {c.dtype} {pipeline.digests}", task.folder.parent / EMBEDDINGS)
        return pipeline


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, PsdGsError | OSError) else f"{type(error).__name__}: {error}"


def run_task(pipeline: TextTo3DPipeline, task: Task) -> dict[str, float]:
    """Begin a run, go on with it, or leave it if it is finished; returns its scores.

    Raises:
        BusyError: another process works in the folder.
        OutputError: it holds a run of another prompt or with other options.
    """
    with Job.open(task.folder, task.config) as job:
        if job.is_finished:
            return job.complete(pipeline).scores
        job.begin(pipeline, anew=True)
        job.run()
        return job.finish().scores


def share_embeddings(prior: Prior, models: str, folder: Path) -> None:
    """Let ``prior.embed`` look in ``folder`` first, prompt by prompt, and leave there what it computes.

    Args:
        prior: is changed.
        models: tells its weights from others.
        folder: created when needed.
    """
    import torch

    from psd_gs.priors import TextEmbedding
    from psd_gs.trainer import read_tensors, write_tensors

    compute = prior.embed
    names = ("sequence", "pooled", "mask")

    def one(prompt: str) -> TextEmbedding:
        digest = hashlib.sha256(f"{models} {prompt}".encode()).hexdigest()
        path = folder / f"{digest}.safetensors"
        if path.exists():
            return TextEmbedding(**{name: tensor.to(prior.device) for name, tensor in read_tensors(path).items()})
        embedding = compute([prompt])
        parts = {name: getattr(embedding, name) for name in names}
        write_tensors(path, {name: tensor.cpu() for name, tensor in parts.items() if tensor is not None})
        return embedding

    def embed(prompts: list[str]) -> TextEmbedding:
        rows = [one(prompt) for prompt in prompts]
        parts = {name: [getattr(row, name) for row in rows] for name in names}
        return TextEmbedding(**{name: torch.cat(some) for name, some in parts.items() if some[0] is not None})

    prior.embed = embed  # type: ignore[method-assign]
