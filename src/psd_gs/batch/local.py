"""Workers as processes of this machine: one per GPU, or several on the CPU with its threads divided."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from psd_gs.batch.tasks import Outcome, Task, Worker


class LocalPool:
    """A :class:`~psd_gs.batch.queue.Pool` of processes, each behind a pipe of its own.

    A queue that all share would stay locked if a worker were killed while it held it.

    Args:
        devices: one worker each.
        threads: of each worker; 0 leaves what there is.
        prepare: called first by every worker; a function of a module.
    """

    def __init__(self, devices: Sequence[str], threads: int = 0, prepare: Callable[[], None] | None = None) -> None:
        self.devices, self.threads, self.prepare = tuple(devices), threads, prepare
        self.workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._busy: set[int] = set()

    @property
    def size(self) -> int:
        return len(self.devices)

    def start(self, slot: int, task: Task) -> None:
        if slot in self.workers and not self.workers[slot][0].is_alive():
            self._drop(slot)
        if slot not in self.workers:
            context = multiprocessing.get_context("spawn")  # CUDA and threads survive no fork
            mine, its = context.Pipe()
            arguments = (its, self.devices[slot], self.threads, self.prepare)
            process = context.Process(target=_work, args=arguments, daemon=True)
            with _deaf():
                process.start()
            its.close()  # so that the pipe ends with the process
            self.workers[slot] = process, mine
        self._busy.add(slot)
        try:
            self.workers[slot][1].send(task)
        except OSError:
            return  # it died just now; wait() tells

    def wait(self, seconds: float) -> list[tuple[int, Outcome | None]]:
        pipes = {self.workers[slot][1]: slot for slot in self._busy}
        out: list[tuple[int, Outcome | None]] = []
        for pipe in wait(list(pipes), seconds):
            assert isinstance(pipe, Connection)
            slot = pipes[pipe]
            self._busy.discard(slot)
            try:
                out.append((slot, pipe.recv()))
            except (EOFError, OSError):
                self._drop(slot)
                out.append((slot, None))
        return out

    def close(self) -> None:
        for slot in list(self.workers):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        process, pipe = self.workers.pop(slot)
        process.kill()
        process.join()
        pipe.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits; a process that is started meanwhile never gets it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Nobody waits for this process once its parent is gone, and another batch may want the folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(pipe: Connection, device: str, threads: int, prepare: Callable[[], None] | None) -> None:
    """A worker's life: tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    threading.Thread(target=_end_with_parent, name="psd-gs parent", daemon=True).start()
    worker = Worker(device, threads, prepare)
    with suppress(EOFError, OSError):  # nobody is at the other end any more
        while True:
            pipe.send(worker.run(pipe.recv()))
