"""``psd-gs batch``: a file of prompts in, a folder of runs and a page over them out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from psd_gs.cli.run_options import RunOptions, Text, parse_shard
from psd_gs.cli.terminal import silence_libraries, stop_after_step, threads_each

if TYPE_CHECKING:
    from threading import Event

    from rich.console import Console

    from psd_gs.batch.queue import Pool
    from psd_gs.batch.tasks import Outcome, Task
    from psd_gs.config import Config


@dataclass(kw_only=True)
class Batch(RunOptions):
    """Make an asset of every line of a file.

    One run folder per prompt, and index.html over all. On GPUs one worker each; on a CPU --workers, which share
    its threads. The same command goes on where it stopped: finished runs are left alone, others go on from
    their checkpoints. A prompt that fails is reported at the end and does not stop the others.
    """

    prompts: Annotated[Positional[Path], arg(metavar="PROMPTS.txt")]
    """One prompt per line, lines that begin with # left out; or - for standard input."""
    workers: Annotated[int, arg(metavar="N")] = 0
    """Worker processes. Default: one per GPU, or one on a CPU."""
    shard: Text = None
    """i/n: every n-th prompt only, starting with the i-th (0 to n-1); for job arrays that share --output-dir."""
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Take the workers from a Ray cluster (auto, HOST:6379, ray://HOST:10001), or from a new one here (local)."""
    output_dir: Annotated[Path, arg(metavar="DIR")] = Path("outputs/batch")
    """Folder of all runs."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.batch.index import THUMBNAILS
        from psd_gs.batch.tasks import EMBEDDINGS, make_tasks, read_prompts
        from psd_gs.cli.console import work_console
        from psd_gs.errors import ConfigError
        from psd_gs.files import sharing, writing
        from psd_gs.models import fetch

        if self.workers < 0:
            raise ConfigError(f"--workers: expected 1 or more, received {self.workers}.")
        console = work_console()
        prompts = read_prompts(self.prompts)
        config = self._config(prompts[0])
        self.check_code(config)
        everything = make_tasks(config, prompts, self.output_dir, allow_code=True)
        part, parts = parse_shard(self.shard) if self.shard else (0, 1)
        root = self.output_dir.resolve()
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
        silence_libraries()
        if not self.ray:
            fetch(config, lambda entry: console.print(f"fetching {entry.name}", soft_wrap=True))  # not once per worker
        with sharing((root, root / EMBEDDINGS, root / THUMBNAILS), root / "batch.jsonl"):
            failed = self._work(console, root, config, everything, everything[part::parts])
        if failed:
            raise SystemExit(1)

    def _work(self, console: Console, root: Path, config: Config, everything: list[Task], mine: list[Task]) -> bool:
        """Do what is to do of ``mine`` and write the page over everything; whether something failed."""
        from psd_gs.batch.index import Index
        from psd_gs.batch.queue import Journal, run_all
        from psd_gs.batch.tasks import unfinished

        tasks = unfinished(mine)
        failed: dict[Path, str] = {}
        index = Index(root, everything)
        if tasks:
            pool = self._pool(config, len(tasks))
            what = f"{len(tasks)} of {len(mine)} prompts to do · {pool.size} workers · prior {config.prior}"
            console.print(f"{what} · {config.steps} steps", soft_wrap=True)
            with stop_after_step() as asked:  # at any moment, a process would be left half begun
                watch = _Watch(console, mine, failed, lambda: index.refresh(failed), asked)
                try:
                    run_all(tasks, pool, Journal(root / "batch.jsonl"), watch.done, watch.wait)
                except KeyboardInterrupt:
                    console.print("stopped; the same command goes on")
                    raise
                finally:
                    watch.close()
                    pool.close()
        console.print(str(index.write(failed)), soft_wrap=True)
        for task in tasks:
            if task.folder in failed:
                console.print(f"failed: {task.config.prompt}: {failed[task.folder]}", soft_wrap=True)
        return bool(failed)

    def _config(self, prompt: str) -> Config:
        """Of the run of one of them; with Ray this machine may lack what its workers have."""
        return replace(self, device="cpu").resolve(prompt) if self.ray else self.resolve(prompt)

    def _pool(self, config: Config, tasks: int) -> Pool:
        from psd_gs.batch.cluster import RayPool
        from psd_gs.batch.local import LocalPool
        from psd_gs.models import count, resolve_device

        wanted = min(self.workers, tasks)
        threads = threads_each(max(1, wanted))
        if self.ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
            return RayPool(self.ray, wanted, self.device or "auto", threads, silence_libraries)
        device = resolve_device(config.device, config.prior)
        if device.type == "cpu":
            return LocalPool(["cpu"] * max(1, wanted), threads, silence_libraries)
        if device.index is not None or device.type == "mps":
            return LocalPool([str(device)], prepare=silence_libraries)
        there = count(device.type)
        return LocalPool(
            [f"{device.type}:{i}" for i in range(min(there, wanted or there, tasks))], prepare=silence_libraries
        )


class _Watch:
    """Progress over all tasks: a bar on a terminal, else a line per finished prompt.

    Args:
        console: where it is shown.
        tasks: all of them.
        failed: gets what was wrong, by folder.
        refresh: called about once a second.
        asked: to stop.
    """

    def __init__(
        self,
        console: Console,
        tasks: Sequence[Task],
        failed: dict[Path, str],
        refresh: Callable[[], object],
        asked: Event,
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from psd_gs.runs import is_finished

        self.console, self.tasks, self.failed, self.refresh, self.asked = console, tasks, failed, refresh, asked
        self.steps = {task.folder: task.config.steps for task in tasks}
        self.ended = {task.folder for task in tasks if is_finished(task.folder)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        if self.bar:
            self.bar.start()
            self.row = self.bar.add_task("steps", total=sum(self.steps.values()))

    def done(self, task: Task, outcome: Outcome) -> None:
        self.ended.add(task.folder)
        if outcome.error:
            self.failed[task.folder] = outcome.error
        scores = ", ".join(f"{name} {score:.3f}" for name, score in (outcome.scores or {}).items())
        text = f"failed: {outcome.error}" if outcome.error else scores
        self.console.print(f"{len(self.ended)}/{len(self.tasks)}  {task.config.prompt}  ({text})", soft_wrap=True)

    def wait(self, running: Mapping[int, Task]) -> None:
        from psd_gs.batch.tasks import steps_done

        if self.asked.is_set():
            raise KeyboardInterrupt
        if self.bar:
            under_way = sum(steps_done(task.folder) for task in running.values() if task.folder not in self.ended)
            total = sum(self.steps[folder] for folder in self.ended) + under_way
            self.bar.update(self.row, completed=total, description=f"{len(self.ended)}/{len(self.tasks)} prompts")
        self.refresh()

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
