"""A dynamic queue over workers that may die: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from psd_gs.batch.tasks import Outcome, Task
from psd_gs.errors import BackendError
from psd_gs.files import append

logger = logging.getLogger(__name__)

TRIES = 3
"""How many workers a task may cost before it counts as failed."""
BUSY = 5.0
"""Seconds between two looks at a task that another process works on."""


class Pool(Protocol):
    """Workers by number; one that died is replaced when its number is next used."""

    @property
    def size(self) -> int:
        """How many workers there are."""
        ...

    def start(self, slot: int, task: Task) -> None:
        """Hand a task to an idle worker."""
        ...

    def wait(self, seconds: float) -> list[tuple[int, Outcome | None]]:
        """What ended within so many seconds, by worker; None if the worker died over its task."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


class Journal:
    """``batch.jsonl``: what happened when; appended to by everyone who works on the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, task: Task, worker: int, message: str = "") -> None:
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            "run": task.folder.name,
            "worker": worker,
        }
        append(self.path, json.dumps(row | ({"message": message} if message else {})).encode() + b"\n")


def run_all(
    tasks: Sequence[Task],
    pool: Pool,
    journal: Callable[..., None],
    on_done: Callable[[Task, Outcome], None] = lambda task, outcome: None,
    on_wait: Callable[[Mapping[int, Task]], None] = lambda running: None,
) -> list[tuple[Task, Outcome]]:
    """Do all tasks; those that lose their worker are tried again, from their last checkpoint, and those that another
    process works on once it is done, or gone.

    Args:
        tasks: with different folders.
        pool: of workers.
        journal: is told of ``started``, ``lost``, ``finished`` and ``failed``.
        on_done: called for each that ended.
        on_wait: called about once a second with the tasks under way, by worker.

    Raises:
        BackendError: the models cannot be loaded.
    """
    waiting, free = deque(tasks), list(range(pool.size))
    running: dict[int, Task] = {}
    losses: Counter[Path] = Counter()
    again: dict[Path, float] = {}  # when to look at a task that another process works on
    done: dict[Path, tuple[Task, Outcome]] = {}
    while waiting or running:
        while free and (task := _due(waiting, again)):
            slot = free.pop(0)
            running[slot] = task
            if task.folder not in again:
                journal("started", task, slot)
            pool.start(slot, task)
        if not running:
            time.sleep(1.0)
        for slot, outcome in pool.wait(1.0) if running else ():
            task = running.pop(slot)
            free.append(slot)
            if outcome is None:
                losses[task.folder] += 1
                journal("lost", task, slot)
                if losses[task.folder] < TRIES:
                    waiting.appendleft(task)
                    continue
                outcome = Outcome(error=f"its worker died {TRIES} times; out of memory? Try fewer --workers.")
            if outcome.busy:
                if task.folder not in again:
                    logger.warning("%s: another process works on it: waiting", task.folder)
                again[task.folder] = time.monotonic() + BUSY
                waiting.append(task)
                continue
            if outcome.fatal:
                raise BackendError(f"no worker can begin: {outcome.error}")
            journal("failed" if outcome.error else "finished", task, slot, outcome.error or "")
            done[task.folder] = task, outcome
            on_done(task, outcome)
        on_wait(running)
    return [done[task.folder] for task in tasks]


def _due(waiting: deque[Task], again: Mapping[Path, float]) -> Task | None:
    """The next task, taken out; None if there is none to do now."""
    now = time.monotonic()
    for i, task in enumerate(waiting):
        if again.get(task.folder, now) <= now:
            del waiting[i]
            return task
    return None
