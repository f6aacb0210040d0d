"""Schedules: which diffusion times are drawn as the run progresses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.config.guidance import Schedule, TimestepConfig

Sampler = Callable[[float, Float[Tensor, " G"], TimestepConfig], Float[Tensor, " G"]]
"""Progress in [0, 1], uniform random numbers in [0, 1), options -> diffusion times as fractions."""


def _lerp(start: float, end: float, weight: float) -> float:
    return start + (end - start) * weight


def mvdream(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """Uniform between two bounds that fall linearly, then stay. Source: MVDream's mvdream-sd21.yaml."""
    annealed = min(progress / config.anneal_end, 1.0)
    low = _lerp(config.t_min_start, config.t_min_end, annealed)
    high = _lerp(config.t_max_start, config.t_max_end, annealed)
    return low + (high - low) * u


def uniform(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """Uniform between fixed bounds. Source: DreamFusion (2209.14988), section 3."""
    return config.t_min_end + (config.t_max_start - config.t_min_end) * u


def linear(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """One time for all, falling linearly. Source: DreamGaussian (2309.16653), section 3.1."""
    annealed = min(progress / config.anneal_end, 1.0)
    return u * 0 + _lerp(config.t_max_start, config.t_min_end, annealed)


def sqrt(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """One time for all, falling with the root of progress. Source: HiFA (2305.18766)."""
    annealed = min(progress / config.anneal_end, 1.0)
    return u * 0 + _lerp(config.t_max_start, config.t_min_end, math.sqrt(annealed))


def step(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """Uniform, with an upper bound that drops once. Source: ProlificDreamer (2305.16213)."""
    high = config.t_max_start if progress < config.anneal_end else config.t_max_end
    return config.t_min_end + (high - config.t_min_end) * u


def dreamtime(progress: float, u: Float[Tensor, " G"], config: TimestepConfig) -> Float[Tensor, " G"]:
    """One time for all that never rises and lingers where coarse content forms.

    The share of the run spent at a time is proportional to ``W_p(t)``, DreamTime (2306.12422). The
    paper's second factor ``sqrt((1 - a) / a)`` is left out, as in RichDreamer's code: it depends on the noise
    schedule and diverges for those that end in pure noise.
    """
    m1, m2, s1, s2 = config.dreamtime
    t = torch.linspace(config.t_max_start, config.t_min_end, 1000, dtype=torch.float64)
    # The distance to [m2, m1], over the width of its side; W_p is 1 inside.
    away = torch.where(t > m1, (t - m1) / s1, torch.where(t < m2, (m2 - t) / s2, 0))
    spent = torch.exp(-0.5 * away**2).cumsum(0)
    reached = torch.searchsorted(spent / spent[-1], min(progress / config.anneal_end, 1.0))
    return u * 0 + float(t[min(int(reached), len(t) - 1)])


SCHEDULES: dict[Schedule, Sampler] = {
    "mvdream": mvdream,
    "uniform": uniform,
    "linear": linear,
    "sqrt": sqrt,
    "step": step,
    "dreamtime": dreamtime,
}
