"""A dynamic queue over workers that may die: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from psd_gs.batch.tasks import Outcome, Task
from psd_gs.errors import BackendError
from psd_gs.files import append

TRIES = 3
"""How many workers a task may cost before it counts as failed."""


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
    """Do all tasks; those that lose their worker are tried again, from their last checkpoint.

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
    done: dict[Path, tuple[Task, Outcome]] = {}
    while waiting or running:
        while waiting and free:
            slot = free.pop(0)
            running[slot] = waiting.popleft()
            journal("started", running[slot], slot)
            pool.start(slot, running[slot])
        for slot, outcome in pool.wait(1.0):
            task = running.pop(slot)
            free.append(slot)
            if outcome is None:
                losses[task.folder] += 1
                journal("lost", task, slot)
                if losses[task.folder] < TRIES:
                    waiting.appendleft(task)
                    continue
                outcome = Outcome(error=f"its worker died {TRIES} times; out of memory? Try fewer --workers.")
            if outcome.fatal:
                raise BackendError(f"no worker can begin: {outcome.error}")
            journal("failed" if outcome.error else "finished", task, slot, outcome.error or "")
            done[task.folder] = task, outcome
            on_done(task, outcome)
        on_wait(running)
    return [done[task.folder] for task in tasks]
