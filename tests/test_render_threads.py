"""Dealing out the tasks of a kernel to threads."""

import threading

import numpy as np
import pytest
import torch

from psd_gs.render.threads import parallel


@pytest.fixture(params=[1, 2, 5], autouse=True)
def _threads(request):
    torch.set_num_threads(request.param)


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100])
def test_every_task_runs_once(tasks):
    calls = np.zeros(tasks, int)
    lock = threading.Lock()

    def kernel(first, last):
        with lock:
            calls[first:last] += 1

    parallel(kernel, tasks)
    assert (calls == 1).all()


def test_an_exception_reaches_the_caller():
    def kernel(first, last):
        if first <= 9 < last:
            raise ValueError("task 9")

    with pytest.raises(ValueError, match="task 9"):
        parallel(kernel, 10)
