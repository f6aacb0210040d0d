"""How many cores other programs leave, and how threads wait for each other."""

from __future__ import annotations

import os
import re
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_SHORTEST = 0.2
"""Seconds; the system counts in hundredths, so less says nothing."""
_LOOKS = 3
"""What runs for a moment now and then is not there each time."""


@dataclass(frozen=True)
class Load:
    """What the cores of this process have done up to a moment; two of them make an average.

    Attributes:
        seconds: of the clock.
        own: of computing in this process and its finished children.
        all: of computing in all processes but those that gave way (``nice``); None where the system does not tell.
    """

    seconds: float
    own: float
    all: float | None

    @classmethod
    def now(cls) -> Load:
        times = os.times()
        return cls(time.monotonic(), sum(times[:4]), _computed())

    def others(self, before: Load) -> float:
        """Cores that other programs kept busy since ``before``; 0 where nothing is known."""
        seconds = self.seconds - before.seconds
        if self.all is None or before.all is None or seconds < _SHORTEST:
            return 0.0
        return max(0.0, (self.all - before.all - (self.own - before.own)) / seconds)


def choose_waiting(environment: MutableMapping[str, str]) -> None:
    """How OpenMP's threads wait for each other at the end of every operation, unless somebody has said it.

    Where another program has one of the cores, those that spin keep the one that they wait for from running, and a run
    takes many times as long. Where none has, those that sleep at once wake too late, and two threads can be no faster
    than one: there they spin for some hundredths of a millisecond first (``tools/bench/busy.py``).

    Args:
        environment: of this process, before torch is loaded.
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if alone():
        environment.setdefault("GOMP_SPINCOUNT", "2000")


def alone() -> bool:
    """Whether no other program wants a core at this moment; False where the system does not tell."""
    try:
        found = [re.search(r"^procs_running (\d+)$", _STAT.read_text(), re.MULTILINE) for _ in range(_LOOKS)]
    except OSError:
        return False
    return any(running and running[1] == "1" for running in found)


def _computed() -> float | None:
    """Seconds that the cores which this process may use have computed, without idling, waiting and nice programs."""
    try:
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        rows = [line.split() for line in _STAT.read_text().splitlines() if line.startswith("cpu")]
        tick = os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):  # not Linux, or a container that hides it
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(int(row[i]) for row in rows if row[0] in allowed for i in (1, 3, 6, 7, 8)) / tick
