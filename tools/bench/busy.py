"""What other work on the machine costs a run.

    python tools/bench/busy.py                             # "a corgi", draft preset, three rounds

Whole runs of ``psd-gs generate``, in turns: alone; beside a program that keeps one core busy; two at once. Prints the
medians and their ratios to the run alone. Bars on two cores: 2.2 beside the program, 2.4 for the slower of two.
``--policy`` compares ways of waiting for other threads: ``own`` (what the program sets: spin a little, then sleep, and
sleep at once if it does not start alone), ``passive`` (sleep at once), ``active`` (torch's own: spin).
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from psd_gs.evaluation.sweep import processor

BARS = {"beside a busy core": 2.2, "two at once": 2.4}
POLICIES = {
    "own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "infinite"},
}


def start(folder: Path, arguments: argparse.Namespace, policy: str) -> subprocess.Popen:
    """A run of the program in a folder of its own."""
    command = [sys.executable, "-m", "psd_gs", "generate", arguments.prompt, "--prior", "mini", "--quiet"]
    command += ["--preset", arguments.preset, "--output-dir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment | POLICIES[policy])


@contextmanager
def load(cores: int) -> Iterator[None]:
    """Programs that keep so many cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(arguments: argparse.Namespace, policy: str, cores: int = 0, together: int = 1) -> float:
    """Until the last of so many runs at once has ended, beside so many busy cores."""
    with tempfile.TemporaryDirectory() as folder, load(cores):
        begin = time.perf_counter()
        runs = [start(Path(folder) / str(i), arguments, policy) for i in range(together)]
        if any(run.wait() for run in runs):
            raise SystemExit("a run failed")
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a corgi")
    parser.add_argument("--preset", default="draft", choices=("draft", "default", "quality"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policy", nargs="+", default=["own"], choices=tuple(POLICIES))
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}")
    seconds(arguments, arguments.policy[0])  # compiles kernels
    kinds = {"alone": (0, 1), "beside a busy core": (1, 1), "two at once": (0, 2)}
    found: dict[tuple[str, str], list[float]] = {(policy, kind): [] for policy in arguments.policy for kind in kinds}
    for _ in range(arguments.rounds):
        for policy, kind in found:
            found[policy, kind].append(seconds(arguments, policy, *kinds[kind]))
    for (policy, kind), values in found.items():
        ratio = statistics.median(values) / statistics.median(found[policy, "alone"])
        bar = f" (bar {BARS[kind]})" if kind in BARS else ""
        print(f"{policy:8} {kind:20} {statistics.median(values):6.1f} s   x{ratio:.2f}{bar}")


if __name__ == "__main__":
    main()
