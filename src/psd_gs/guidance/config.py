"""Options of the guidance. Every position in the schedule is a fraction of the run, never a step number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from psd_gs.errors import ConfigError
from psd_gs.rewards.base import Pooling

Method = Literal["sds", "recon"]
Preference = Literal["none", "psd"]
Weighting = Literal["auto", "sds", "uniform", "recon", "fantasia3d"]
Schedule = Literal["mvdream", "uniform", "linear"]
Scale = Literal["gap", "sign", "ramp", "bt"]


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Refuse fields (numbers or pairs of numbers) outside the closed interval.

    Raises:
        ConfigError: names the field, the interval and the value.
    """
    for name in names:
        value = getattr(config, name)
        if not all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(
                f"{type(config).__name__}.{name}: expected a value from {low} to {high}, received {value}."
            )


def _check_choices(config: object) -> None:
    """Refuse values outside a field's Literal, which the command line checks but the Python API does not."""
    for name, hint in get_type_hints(type(config)).items():
        choices, value = get_args(hint), getattr(config, name)
        if choices and isinstance(value, str) and value not in choices:
            raise ConfigError(
                f"{type(config).__name__}.{name}: expected one of {', '.join(choices)}, received {value!r}."
            )


@dataclass(frozen=True)
class TimestepConfig:
    """Which diffusion times are drawn over the run (fractions: 0 clean, 1 pure noise)."""

    schedule: Schedule = "mvdream"
    """mvdream: uniform between two annealed bounds; linear: one time falling from t-max-start to t-min-end;
    uniform: between t-min-end and t-max-start throughout."""
    t_max_start: float = 0.98
    """Upper bound at the start."""
    t_max_end: float = 0.5
    """Upper bound when annealed (mvdream)."""
    t_min_start: float = 0.98
    """Lower bound at the start (mvdream)."""
    t_min_end: float = 0.02
    """Lower bound when annealed."""
    anneal_end: float = 0.8
    """Fraction of the run after which the bounds stay (mvdream, linear)."""

    def __post_init__(self) -> None:
        _check_choices(self)
        check_range(self, 1e-3, 1 - 1e-3, "t_max_start", "t_max_end", "t_min_start", "t_min_end")
        check_range(self, 1e-3, 1, "anneal_end")
        if self.t_min_start > self.t_max_start or self.t_min_end > self.t_max_end:
            raise ConfigError(
                "TimestepConfig: expected t_min_start <= t_max_start and t_min_end <= t_max_end, received "
                f"{self.t_min_start} > {self.t_max_start} or {self.t_min_end} > {self.t_max_end}. Swap the bounds."
            )


@dataclass(frozen=True)
class PSDConfig:
    """Preference score distillation: which pair is judged, how much it says and when."""

    weight: float = 1.0
    """Weight omega of the preference score. Above 2 the render leaves the prior's typical set."""
    scale: Scale = "gap"
    """Confidence kappa from the reward gap: gap (over its running mean, at most 3), sign (1), ramp (over
    threshold, at most 1), bt (Bradley-Terry, with the running mean as temperature)."""
    threshold: float = 0.01
    """Gap at which ramp reaches 1, in units of the reward."""
    pair: Literal["group", "view"] = "group"
    """Rank whole groups of views, or each view by itself (needs a reward per view)."""
    n_noises: int = 2
    """Noises per render; above 2 their z-scored rewards weigh them."""
    antithetic: bool = True
    """Draw noises in opposite pairs: a second-order accurate difference with twice the signal."""
    guard: float = 1.0
    """Largest norm of the weighted preference score, per group and relative to the guard reference; inf: no limit."""
    guard_reference: Literal["noise", "base", "contrast"] = "noise"
    """noise: root mean square over noises of the base residual, what a step without a pair would move; base: the
    mean residual, which vanishes as the base converges and silences the pair with it; contrast: the unweighted
    preference score, which caps only omega kappa."""
    pair_scale: float = 7.5
    """Classifier-free guidance scale of the estimates that are decoded, ranked and contrasted."""
    pooling: Pooling = "mean"
    """How the scores of a group's views become one (pair group)."""
    pooling_temperature: float = 0.01
    """Temperature of softmin, in units of the reward."""
    reward_prompt: Literal["raw", "view"] = "raw"
    """What the reward reads: the prompt, or the prompt with the view's direction, one view at a time."""
    start: float = 0.1
    """Fraction of the run from which the pair speaks."""
    end: float = 1.0
    """Fraction of the run after which it is silent again."""
    every: int = 1
    """Judge a pair only in every k-th step."""
    t_max: float = 0.9
    """Judge no pair at diffusion times above this: the estimates say too little there."""

    def __post_init__(self) -> None:
        _check_choices(self)
        check_range(self, 0, float("inf"), "weight", "guard", "pair_scale")
        check_range(self, 0, 1, "start", "end", "t_max")
        check_range(self, 2, 64, "n_noises")
        check_range(self, 1, float("inf"), "every")
        check_range(self, 1e-12, float("inf"), "threshold", "pooling_temperature")


@dataclass(frozen=True)
class NegativeConfig:
    """Online refinement of the negative prompt's embedding; acts with preference psd only."""

    mode: Literal["pull", "reward", "off"] = "pull"
    """pull: the loser's clean estimate toward the winner's (any reward); reward: up the reward of the winner's
    estimate (a differentiable reward); off: the embedding stays as the text encoder gave it."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    every: int = 10
    """At least this many steps lie between two updates."""
    start: float = 0.3
    """Fraction of the run from which the embedding is refined, when a shape exists."""
    t_max: float = 0.5
    """Refine at diffusion times up to this only, where the clean estimate is sharp enough."""
    radius: float = 0.1
    """Trust region: largest change relative to the norm of the initial embedding."""

    def __post_init__(self) -> None:
        _check_choices(self)
        check_range(self, 0, float("inf"), "lr", "radius")
        check_range(self, 1, float("inf"), "every")
        check_range(self, 0, 1, "start", "t_max")


@dataclass(frozen=True)
class GuidanceConfig:
    """How the prior and the reward become a gradient on the render."""

    method: Method = "sds"
    """Base score."""
    preference: Preference = "psd"
    """Preference score that is added to it."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale of the base score (diffusers' convention: 1 is none)."""
    rescale: float = 0.5
    """Share phi of the guidance rescale against oversaturation (method recon)."""
    weighting: Weighting = "auto"
    """Weight over diffusion times; auto: the method's own."""
    negative_prompt: str = ""
    """What the render should not look like; the initial negative embedding."""
    view_prompts: bool = True
    """Add ", front view" and the like for single-view priors; multi-view priors get the cameras instead."""
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    psd: PSDConfig = field(default_factory=PSDConfig)
    negative: NegativeConfig = field(default_factory=NegativeConfig)

    def __post_init__(self) -> None:
        _check_choices(self)
        check_range(self, 0, float("inf"), "guidance_scale")
        check_range(self, 0, 1, "rescale")
        if self.preference == "psd" and self.negative.mode != "off" and self.psd.pair_scale == 1:
            raise ConfigError(
                "PSDConfig.pair_scale: expected a value other than 1 to refine the negative embedding, received 1: "
                "the negative branch enters with the factor 1 - scale, so no gradient reaches it. "
                "Raise pair_scale or set the negative mode to off."
            )
