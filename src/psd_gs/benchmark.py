"""How fast this machine renders, and how long a step with a prior takes: what ``psd-gs bench`` prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.config import make_config
from psd_gs.gaussians import Gaussians, random_ball
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.priors import prior_family
from psd_gs.render import render
from psd_gs.render.choose import Renderer, trouble_with_gsplat, trouble_with_triton

WARM = 2
"""Calls before the first that counts: they compile and tune."""


@dataclass(frozen=True)
class Timing:
    """One line.

    Attributes:
        what: what was timed.
        shape: views and their side in pixels.
        gaussians: how many were drawn.
        milliseconds: median; None if it could not be timed.
        note: why it could not, or what it is.
    """

    what: str
    shape: str
    gaussians: int
    milliseconds: float | None
    note: str = ""


def render_times(device: torch.device, counts: tuple[int, ...], size: int, repeats: int) -> Iterator[Timing]:
    """Four views forward and backward, with every renderer of the machine.

    Args:
        device: of the networks; the CPU renderer runs beside it.
        counts: numbers of Gaussians, each in a ball whose Gaussians just touch.
        size: of the views, pixels.
        repeats: timed calls.
    """
    troubles: dict[Renderer, str] = {"cpu": ""}
    if device.type != "cpu":
        troubles = {"gsplat": trouble_with_gsplat(device), "triton": trouble_with_triton(device), **troubles}
    for renderer, trouble in troubles.items():
        for count in counts:
            name, shape = f"render, {renderer}", f"4 x {size}"
            if trouble:
                yield Timing(name, shape, count, None, trouble)
                continue
            where = torch.device("cpu") if renderer == "cpu" else device
            scale = 0.28 * count ** (-1 / 3)  # half the nearest-neighbour distance
            generator = torch.Generator().manual_seed(0)
            ball = random_ball(count, 0.5, scale=scale, opacity=0.3, generator=generator).to(where)
            step = partial(_forward_and_backward, ball.map(Tensor.requires_grad_), turntable(4, size=size).to(where))
            took = milliseconds(partial(step, renderer), where, repeats)
            yield Timing(name, shape, count, took, "forward and backward")


def _forward_and_backward(gaussians: Gaussians, cameras: Cameras, renderer: Renderer) -> None:
    render(gaussians, cameras, absgrad=True, backend=renderer).rgb.sum().backward()


def step_times(pipeline: TextTo3DPipeline, count: int, repeats: int) -> Iterator[Timing]:
    """Whole steps of the default preset: without a pair, and with one."""
    prior = pipeline.prior
    for what, preference in (("step", "none"), ("step with a pair", "psd")):
        if preference == "psd" and pipeline.reward is None:
            continue
        overrides = {
            "prompt": "a corgi",
            "steps": 10**6,  # the schedules stand still
            "guidance": {
                "preference": preference,
                "psd": {"start": 0.0, "t_max": 1.0, "every": 1},
                "negative": {"mode": "off"},
            },
            "init": {"source": "ball", "count": count, "scale": 0.28 * count ** (-1 / 3)},
            "cameras": {"size_at": 0.0},
            "densify": {"enabled": False},
        }
        trainer = pipeline.trainer(make_config("default", prior_family(prior.name), overrides))
        steps = trainer.run()
        shape = f"{prior.views} x {prior.image_size}"
        took = milliseconds(partial(next, steps), prior.device, repeats)
        parts = {name: value for name, value in next(steps).logs.items() if name.startswith("seconds_")}
        note = ", ".join(f"{name.removeprefix('seconds_')} {1e3 * value:.0f}" for name, value in parts.items())
        yield Timing(f"{prior.name}: {what}", shape, count, took, note)


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, until the device has finished."""
    times = []
    wait = getattr(torch, device.type).synchronize
    for i in range(WARM + repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        if i >= WARM:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def table(timings: list[Timing]) -> str:
    """Markdown."""
    rows = [("what", "views x pixels", "Gaussians", "ms", "note")]
    rows += [
        (t.what, t.shape, f"{t.gaussians:,}", "-" if t.milliseconds is None else f"{t.milliseconds:.1f}", t.note)
        for t in timings
    ]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---|---|---:|---:|---|", *lines[1:]])
