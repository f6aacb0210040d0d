"""Options of the guidance. Every position in the schedule is a fraction of the run, never a step number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from psd_gs.entries import METHODS, PREFERENCES
from psd_gs.errors import ConfigError

if TYPE_CHECKING:
    Method = str
    Preference = str
else:  # so that the command line lists and checks them
    Method = Literal[tuple(METHODS)]
    Preference = Literal[tuple(PREFERENCES)]
Pooling = Literal["mean", "min", "softmin"]
Weighting = Literal["auto", "sds", "uniform", "recon", "fantasia3d"]
Space = Literal["latent", "image"]
Schedule = Literal["mvdream", "uniform", "linear", "sqrt", "step", "dreamtime"]
Scale = Literal["gap", "sign", "ramp", "bt"]


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Refuse fields (numbers or pairs of numbers) outside the closed interval.

    Raises:
        ConfigError: names the field, the interval and the value.
    """
    for name in names:
        value = getattr(config, name)
        if not all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,))):
            reach = f"a value from {low} " + ("upwards" if high == math.inf else f"to {high}")
            reach = "a number" if (low, high) == (-math.inf, math.inf) else reach
            raise ConfigError(f"{type(config).__name__}.{name}: expected {reach}, received {value}.")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass by field, worked out once: there may be a configuration for each of many prompts."""
    return get_type_hints(cls)


def check_choices(config: object) -> None:
    """Refuse values outside a field's Literal, which the command line checks but the Python API does not."""
    for name, hint in hints_of(type(config)).items():  # type: ignore[arg-type]  # types are hashable
        choices, value = get_args(hint) if get_origin(hint) is Literal else (), getattr(config, name)
        if choices and value not in choices:
            raise ConfigError(
                f"{type(config).__name__}.{name}: expected one of {', '.join(map(str, choices))}, received {value!r}."
            )


@dataclass(frozen=True)
class TimestepConfig:
    """Which diffusion times are drawn over the run (fractions: 0 clean, 1 pure noise)."""

    schedule: Schedule = "mvdream"
    """mvdream: uniform between two annealed bounds; uniform: between t_min_end and t_max_start throughout; step:
    uniform, the upper bound drops at anneal_end; linear, sqrt, dreamtime: one time falling from t_max_start to
    t_min_end, evenly, fast at first, or slowest where dreamtime's weight is high."""
    t_max_start: float = 0.98
    """Upper bound at the start."""
    t_max_end: float = 0.5
    """Upper bound when annealed (mvdream, step)."""
    t_min_start: float = 0.98
    """Lower bound at the start (mvdream)."""
    t_min_end: float = 0.02
    """Lower bound when annealed."""
    anneal_end: float = 0.8
    """Fraction of the run after which the bounds stay."""
    dreamtime: tuple[float, float, float, float] = (0.8, 0.5, 0.3, 0.1)
    """Weight of dreamtime: 1 between the second and the first time, falling off as a Gaussian above (third number)
    and below (fourth)."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 1e-3, 1 - 1e-3, "t_max_start", "t_max_end", "t_min_start", "t_min_end")
        check_range(self, 1e-3, 1, "anneal_end", "dreamtime")
        if self.dreamtime[1] > self.dreamtime[0]:
            raise ConfigError(
                f"TimestepConfig.dreamtime: expected the first time above the second, received {self.dreamtime}. "
                "Swap them."
            )
        if self.t_min_start > self.t_max_start or self.t_min_end > self.t_max_end:
            raise ConfigError(
                "TimestepConfig: expected t_min_start <= t_max_start and t_min_end <= t_max_end, received "
                f"{self.t_min_start} > {self.t_max_start} or {self.t_min_end} > {self.t_max_end}. Swap the bounds."
            )


@dataclass(frozen=True)
class ISMConfig:
    """Interval score matching (method ism): how a render is inverted."""

    delta: tuple[float, float] = (0.1, 0.08)
    """Interval between the two compared times, at the start and once the timesteps are annealed."""
    stride: float = 0.2
    """Stride of the DDIM inversion below the interval, in diffusion time."""

    def __post_init__(self) -> None:
        check_range(self, 1e-3, 1, "delta", "stride")


@dataclass(frozen=True)
class VSDConfig:
    """Variational score distillation (method vsd): the LoRA copy of the prior that learns the renders' score."""

    rank: int = 4
    """Rank of the LoRA matrices on the attention layers."""
    lr: float = 1e-4
    """Learning rate of AdamW."""

    def __post_init__(self) -> None:
        check_range(self, 1, 1024, "rank")
        check_range(self, 0, 1, "lr")


@dataclass(frozen=True)
class JudgingConfig:
    """When a reward is asked, and what it sees."""

    pair: Literal["group", "view"] = "group"
    """Judge whole groups of views, or each view by itself."""
    pooling: Pooling = "mean"
    """How the scores of a group's views become one (pair group)."""
    pooling_temperature: float = 0.01
    """Temperature of softmin, in units of the reward."""
    reward_prompt: Literal["raw", "view"] = "raw"
    """What the reward reads: the prompt, or the prompt with the view's direction, one view at a time."""
    start: float = 0.0
    """Fraction of the run from which the preference speaks."""
    end: float = 1.0
    """Fraction of the run after which it is silent again."""
    every: int = 1
    """Judge only in every k-th step."""
    t_max: float = 1.0
    """Judge nothing at diffusion times above this: the estimates say too little there."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, 1, "start", "end", "t_max")
        check_range(self, 1, float("inf"), "every")
        check_range(self, 1e-12, float("inf"), "pooling_temperature")


@dataclass(frozen=True)
class PairConfig(JudgingConfig):
    """Which estimates are compared."""

    n_noises: int = 2
    """Noises per render."""
    antithetic: bool = False
    """Draw noises in opposite pairs."""
    pair_scale: float = 7.5
    """Classifier-free guidance scale of the estimates that are decoded and ranked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "pair_scale")
        check_range(self, 2, 64, "n_noises")


@dataclass(frozen=True)
class PSDConfig(PairConfig):
    """Preference score distillation: which pair is judged, how much it says and when.

    Above two noises their z-scored rewards weigh them. Opposite noises give a second-order accurate difference with
    twice the signal. The ranked estimates are also those that are contrasted.
    """

    weight: float = 1.0
    """Weight omega of the preference score. Above 2 without a guard the render leaves the prior's typical set."""
    scale: Scale = "gap"
    """Confidence kappa from the reward gap: gap (over its running mean, at most 3), sign (1), ramp (over
    threshold, at most 1), bt (Bradley-Terry, with the running mean as temperature)."""
    threshold: float = 0.01
    """Gap at which ramp reaches 1, in units of the reward."""
    antithetic: bool = True
    """Draw noises in opposite pairs."""
    turn: float = 0.0
    """Turn one drawn noise by this angle in degrees toward the reward's gradient at the render, and away from it, for
    a pair that differs in what the reward sees; 0, or with a black-box reward: draw both. An addition of ours."""
    keep_noise: bool = True
    """Contrast residuals, from which their noise is subtracted. False is an ablation: bare predictions carry the
    noises into the render, which leaves what the prior can paint."""
    guard: float = 1.0
    """Largest norm of the weighted preference score, per group and relative to the guard reference; inf: no limit."""
    guard_reference: Literal["noise", "base", "contrast"] = "noise"
    """noise: root mean square over noises of the base residual, what a step without a pair would move; base: the
    mean residual, which vanishes as the base converges and silences the pair with it; contrast: the unweighted
    preference score, which caps only omega kappa."""
    start: float = 0.1
    """Fraction of the run from which the pair speaks."""
    t_max: float = 0.9
    """Judge no pair at diffusion times above this: the estimates say too little there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "weight", "guard")
        check_range(self, 0, 90, "turn")
        check_range(self, 1e-12, float("inf"), "threshold")
        if self.turn and self.n_noises % 2:
            raise ConfigError(
                f"PSDConfig.n_noises: expected an even number with turn, which makes two noises of each draw, received "
                f"{self.n_noises}. Take one more or set turn to 0."
            )


@dataclass(frozen=True)
class DreamDPOConfig(PairConfig):
    """DreamDPO: the winner's residual, minus the loser's where the rewards differ enough. Replaces the base score."""

    form: Literal["paper", "code"] = "paper"
    """What is subtracted: the loser's own residual, or, as in the released code, the one without guidance."""
    threshold: float = 0.01
    """Gap tau from which the loser is pushed away, in units of the reward."""
    smooth: bool = False
    """Let the loser in gradually, in proportion to the gap up to tau, instead of at tau."""
    vote: bool = False
    """Let the parts of a combined reward vote, the first of them deciding draws and the gap, instead of their sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "threshold")


@dataclass(frozen=True)
class RewardSDSConfig(PairConfig):
    """RewardSDS: residuals of several noises, weighed by the rewards of what they denoise to. With method vsd it is
    RewardVSD."""

    n_noises: int = 4
    """Noises per render; the paper's runs use 7 to 10, and 3 already help."""
    weights: Literal["min-max", "best", "softmax"] = "min-max"
    """min-max: 0.9 on the mean of the best two, -0.1 on that of the worst two; best: the best alone; softmax of the
    rewards."""
    preview_steps: int = 1
    """DDIM steps of a whole denoising; from time t a preview takes its share of them. 1: the one-step estimate; the
    paper's runs use 15."""
    end: float = 0.7
    """Fraction of the run after which it is silent again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, 1000, "preview_steps")


@dataclass(frozen=True)
class DreamFLConfig(JudgingConfig):
    """DreamFL (DreamReward): the reward's own gradient on the pixels, beside the base score."""

    weight: float = 0.3
    """Norm of the reward's gradient on the image relative to that of the base score."""
    ceiling: float = 4.0
    """Score above which nothing is asked any more."""
    estimate_t_max: float = 0.3
    """Up to this time the reward judges the one-step estimate in place of the render, which still gets the gradient."""
    start: float = 0.1
    """Fraction of the run from which the reward speaks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "weight")
        check_range(self, float("-inf"), float("inf"), "ceiling")
        check_range(self, 0, 1, "estimate_t_max")


@dataclass(frozen=True)
class NegativeConfig:
    """Online refinement of the negative prompt's embedding; acts with preference psd only."""

    mode: Literal["auto", "pull", "reward", "off"] = "pull"
    """pull: the loser's clean estimate toward the winner's (any reward); reward: up the reward of the winner's
    estimate (a differentiable reward); auto: reward where the reward is differentiable, else pull; off: the embedding
    stays as the text encoder gave it."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    every: int = 10
    """Fewest steps between two updates."""
    start: float = 0.3
    """Fraction of the run from which the embedding is refined; a shape should exist by then."""
    t_max: float = 0.5
    """Refine at diffusion times up to this only, where the clean estimate is sharp enough."""
    radius: float = 0.1
    """Trust region: largest change relative to the norm of the initial embedding."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, float("inf"), "lr", "radius")
        check_range(self, 1, float("inf"), "every")
        check_range(self, 0, 1, "start", "t_max")


def _options_of(preference: str) -> type | None:
    """The options of a preference from another package; None if it has none, or there is no such package.

    Raises:
        PluginError: the package is broken.
    """
    return PREFERENCES[preference].options if preference in PREFERENCES.plugins else None


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
    csd_negative: tuple[float, float] = (1.0, 1.0)
    """Share of the negative prompt, at the start and at the end, in what method csd subtracts; the rest is the empty
    prompt."""
    asd_shift: float = 0.1
    """Largest shift of the later time, relative to the time above t_min_end (method asd)."""
    space: Space = "latent"
    """Where the render is pulled: latent, through the gradient of the image encoder; or image, toward the decoded clean
    estimate (HiFA, 2305.18766), which needs no graph of the encoder."""
    weighting: Weighting = "auto"
    """Weight over diffusion times; auto: the method's own."""
    negative_prompt: str = ""
    """What the render should not look like; the initial negative embedding."""
    view_prompts: bool = True
    """Add ", front view" and the like for single-view priors; multi-view priors get the cameras instead."""
    perp_neg: bool = False
    """Remove from each view's prompt what the other sides look like (single-view priors; twice the predictions)."""
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    ism: ISMConfig = field(default_factory=ISMConfig)
    vsd: VSDConfig = field(default_factory=VSDConfig)
    psd: PSDConfig = field(default_factory=PSDConfig)
    dreamdpo: DreamDPOConfig = field(default_factory=DreamDPOConfig)
    rewardsds: RewardSDSConfig = field(default_factory=RewardSDSConfig)
    dreamfl: DreamFLConfig = field(default_factory=DreamFLConfig)
    negative: NegativeConfig = field(default_factory=NegativeConfig)
    others: dict[str, Any] = field(default_factory=dict, metadata={"sections": _options_of})
    """Options of preferences from other packages; in files they stand beside ours, under the preference's name."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, float("inf"), "guidance_scale")
        check_range(self, 0, 1, "rescale", "csd_negative", "asd_shift")
        options = _options_of(self.preference)
        if options and self.preference not in self.others:
            object.__setattr__(self, "others", {**self.others, self.preference: options()})

    @property
    def chosen(self) -> Any:
        """Options of the chosen preference; None if it has none."""
        return self.others.get(self.preference, getattr(self, self.preference, None))
