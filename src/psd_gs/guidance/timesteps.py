"""Which diffusion times are drawn as the run progresses."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from psd_gs.guidance.config import Schedule, TimestepConfig

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


SCHEDULES: dict[Schedule, Sampler] = {"mvdream": mvdream, "uniform": uniform, "linear": linear}
