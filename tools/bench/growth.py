"""How cost grows with Gaussians, pixels, views, steps and prompts: a power law is fitted to each and printed.

    python tools/bench/growth.py
    python tools/bench/growth.py --only gaussians prompts

Each is doubled while all else stays. The exponent is the slope of the logarithms: 1 means that twice as much takes
twice as long, less that a part is paid once. The bar: no exponent above 1.1. Gaussians shrink as they become more, as
in a denser asset, so their number alone decides. Times are of the processor, best of the rounds, on one thread.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from psd_gs.batch.index import write_index
from psd_gs.batch.tasks import make_tasks
from psd_gs.cameras import turntable
from psd_gs.config import make_config
from psd_gs.gaussians import random_ball
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.render import render

MOST = 1.1
"""The bar."""

Work = Callable[[], object]


def rendering(gaussians: int = 10_000, side: int = 128, views: int = 4) -> Work:
    """Forward and backward; the ball covers the same share of the picture whatever it is made of."""
    scale = 0.28 * gaussians ** (-1 / 3)  # half the distance to the nearest neighbour
    ball = random_ball(gaussians, 0.5, scale=scale, opacity=0.3, generator=torch.Generator().manual_seed(0))
    ball, cameras = ball.map(Tensor.requires_grad_), turntable(views, size=side)
    return lambda: render(ball, cameras, absgrad=True).rgb.sum().backward()


@cache
def pipeline() -> TextTo3DPipeline:
    return TextTo3DPipeline.from_pretrained("mini", device="cpu")


def optimizing(steps: int) -> Work:
    """Steps of the draft preset without growing and pruning, which would change what a step costs."""
    overrides = {"prompt": "a corgi", "steps": steps, "densify": {"enabled": False}}
    config = make_config("draft", "mini", overrides)
    return lambda: list(pipeline().trainer(config).run())


def queueing(prompts: int) -> Work:
    """What a batch costs beside its runs: the folders' names and the page over all of them."""
    config = make_config("draft", "mini", {"prompt": "a corgi"})

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            tasks = make_tasks(config, [f"a corgi with {i} hats" for i in range(prompts)], Path(folder))
            write_index(Path(folder), tasks, {})

    return work


KINDS: dict[str, tuple[Callable[[int], Work], tuple[int, ...]]] = {
    "gaussians": (lambda n: rendering(gaussians=n), (5_000, 10_000, 20_000, 40_000, 80_000)),
    "pixels": (lambda n: rendering(side=math.isqrt(n)), tuple(side**2 for side in (64, 128, 256, 512))),
    "views": (lambda n: rendering(views=n), (1, 2, 4, 8, 16)),
    "steps": (optimizing, (4, 8, 16, 32)),
    "prompts": (queueing, (125, 250, 500, 1000)),
}
"""What grows: its work at a size, and the sizes."""


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of the power law that fits best, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(works: Sequence[Work], rounds: int) -> list[float]:
    """Best processor seconds of each, in turns, after one call to warm up."""
    best = [math.inf] * len(works)
    for turn in range(rounds + 1):
        for i, work in enumerate(works):
            start = time.process_time()
            work()
            if turn or rounds == 0:
                best[i] = min(best[i], time.process_time() - start)
    return best


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = Table("what grows", "from, to", "seconds", "exponent", "within the bar")
    for name in options.only:
        kind, sizes = KINDS[name]
        seconds = measure([kind(size) for size in sizes], options.rounds)
        found = exponent(sizes, seconds)
        spans = f"{sizes[0]:,}, {sizes[-1]:,}", f"{seconds[0]:.3f}, {seconds[-1]:.3f}"
        table.add_row(name, *spans, f"{found:.2f}", "yes" if found <= MOST else "no")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
