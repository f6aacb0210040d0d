"""What ``generate --live`` costs while somebody looks; the bar is 3 % of a step.

    python tools/bench/live.py
    python tools/bench/live.py --preset quality --steps 200 --block 20

Two runs of one prompt and seed take blocks of steps by turns, one plain and one with a page and a client that takes
what it is sent; a block ends when the page has all of it. Ratios are of seconds and of CPU seconds, in which the
threads of the page count. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import add_set_argument, load_pipeline, options_of
from psd_gs.live import LiveView
from psd_gs.pipeline import TextTo3DPipeline

BAR = 0.03
CLIENT = """
import json, sys, time
from urllib.request import urlopen
version = 0
while True:
    with urlopen(sys.argv[1] + "state") as reply:
        state = json.load(reply)
    if state["version"] != version:
        version = state["version"]
        urlopen(sys.argv[1] + "splats").read()
    print("here", flush=True)
    time.sleep(0.5)
"""


@contextmanager
def client(view: LiveView) -> Iterator[None]:
    """Somebody who looks, in a process of its own as a browser is."""
    command = [sys.executable, "-c", CLIENT, view.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n", "the client did not reach the page"
        yield
        process.kill()


def measure(
    pipeline: TextTo3DPipeline, preset: str, options: dict, block: int
) -> tuple[dict[str, tuple[float, float]], int]:
    """Seconds and CPU seconds of the whole run, ``plain`` and ``live``, and the number of updates of the page."""
    config = pipeline.config(preset, options)
    for _ in itertools.islice(pipeline.trainer(config).run(), 3):  # kernels are compiled at their first use
        pass
    view = LiveView()
    with client(view):
        plain, live = pipeline.trainer(config), pipeline.trainer(config)
        runs = {"plain": plain.run(), "live": view.follow(live, threading.Event())}
        spent = {name: [0.0, 0.0] for name in runs}
        left = time.monotonic()
        for turn in range(-(-config.steps // block)):
            for name in sorted(runs, reverse=turn % 2 == 0):  # each is first in every second turn
                if name == "live":
                    view._due += time.monotonic() - left  # the pause after an update is of its own time
                start, cpu = time.perf_counter(), time.process_time()
                for _ in itertools.islice(runs[name], block):
                    pass
                if name == "live":
                    view._idle.wait()
                    left = time.monotonic()
                spent[name][0] += time.perf_counter() - start
                spent[name][1] += time.process_time() - cpu
        updates = view.updates
        view.close()
    return {name: (seconds, cpu) for name, (seconds, cpu) in spent.items()}, updates


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="auto")
    parser.add_argument("--prompt", default="a corgi")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--steps", type=int, default=0, help="of each run; default: the preset's")
    parser.add_argument("--block", type=int, default=10, help="steps of a turn")
    add_set_argument(parser)
    given = parser.parse_args(arguments)
    options = options_of(given) | {"prompt": given.prompt}
    spent, updates = measure(load_pipeline(prior=given.prior), given.preset, options, given.block)
    table = Table("", "plain", "live", "more", "within the bar")
    for i, name in enumerate(("seconds", "CPU seconds")):
        plain, live = spent["plain"][i], spent["live"][i]
        more = live / plain - 1
        table.add_row(name, f"{plain:.2f}", f"{live:.2f}", f"{more:+.1%}", "yes" if more < BAR else "NO")
    console = Console()
    console.print(table)
    console.print(f"{updates} updates of the page")


if __name__ == "__main__":
    main()
