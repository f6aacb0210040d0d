"""Threads for the CPU kernels.

The kernels release the interpreter's lock, so plain Python threads run them. That leaves Numba's own
pools out: they may only be entered by one thread at a time, and spin beside torch's.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_PIECES_PER_THREAD = 4
"""The work is dealt out in this many pieces per thread, so that a slow piece does not hold up the rest."""


def parallel(kernel: Callable[..., None], tasks: int, *args: object) -> None:
    """Call ``kernel(first, last, *args)`` on ranges that cover ``range(tasks)``, on as many threads as torch uses.

    The kernel must write the results of a task where no other task writes.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(0, tasks, *args)
        return
    pieces = min(tasks, threads * _PIECES_PER_THREAD)
    counter = itertools.count()

    def work() -> None:
        while (piece := next(counter)) < pieces:
            kernel(tasks * piece // pieces, tasks * (piece + 1) // pieces, *args)

    helpers = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has no core yet would find nothing left to do
            helper.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool per process: threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="psd-gs-render")
