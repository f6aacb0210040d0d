"""Preference scores: what a judge of the prior's clean estimates adds to the base score.

A preference is one class in one file and one line in :data:`psd_gs.entries.PREFERENCES`. It says when it speaks, under
which noises it wants to see the render, and what it adds: to the residual in x0 (:meth:`Preference.residual`), or to
the loss on the pixels (:meth:`Preference.loss`). Those that rank several estimates are :class:`PairPreference`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras, joined
from psd_gs.config.guidance import GuidanceConfig, JudgingConfig, PairConfig
from psd_gs.entries import PREFERENCES
from psd_gs.errors import ConfigError
from psd_gs.guidance.base_scores import base_score
from psd_gs.guidance.denoiser import Denoiser, Latents, Prediction
from psd_gs.guidance.negative import NegativeEmbedding
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.plugins import resolved
from psd_gs.priors.base import Prior, TextEmbedding
from psd_gs.rewards.base import Reward, group_score


@dataclass(frozen=True)
class Setup:
    """What a preference score is made for.

    Attributes:
        prior: the diffusion model.
        rewards: what judges.
        prompt: what the asset is.
        config: all options of the guidance.
        negative: embedding of the negative prompt, one row.
    """

    prior: Prior
    rewards: Sequence[Reward]
    prompt: str
    config: GuidanceConfig
    negative: TextEmbedding


@dataclass(frozen=True)
class Step:
    """What a preference score sees of an optimization step: the G groups that it judges, under N noises.

    Attributes:
        number: of the step.
        latents: of the renders, detached.
        noise: what :meth:`Preference.noises` gave.
        residuals: the base score's ``x0 - target`` under each noise (a single one for a method without noise).
        denoiser: the prior at the groups' times, with the position in the run.
        noised: the prior's view of the noised renders, where the base score has asked for it already.
    """

    number: int
    latents: Float[Tensor, "G V C h w"]
    noise: Latents
    residuals: Latents
    denoiser: Denoiser
    noised: Prediction | None = None

    @cached_property
    def prediction(self) -> Prediction:
        """The prior's view of the renders under every noise."""
        return self.noised or self.denoiser.noised(self.latents, self.noise)


@dataclass(frozen=True)
class Views:
    """What a preference score sees of an optimization step on the pixels: all G groups.

    Attributes:
        images: renders, with gradient.
        renders: the same at the prior's size.
        base: loss of the residual, differentiable in ``images``.
        prediction: what the base score saw.
        denoiser: the prior at this step.
        judged: what :meth:`Preference.acts` said.
    """

    images: Float[Tensor, "G V 3 H W"]
    renders: Float[Tensor, "G V 3 H W"]
    base: Float[Tensor, ""]
    prediction: Prediction
    denoiser: Denoiser
    judged: Bool[Tensor, " G"]


class Preference:
    """What a preference score does in a run; as it stands it adds nothing.

    Args:
        setup: of the run.

    Raises:
        ConfigError: no reward, or several for a preference that ranks by one.

    Attributes:
        options: of the preference.
        rewards: what judges.
        negative: the embedding of the negative prompt, which a preference may refine.
    """

    wants_reward: ClassVar[bool] = True
    several_rewards: ClassVar[bool] = False
    """Whether more than one can judge."""

    def __init__(self, setup: Setup) -> None:
        self.prior, self.prompt, self.config = setup.prior, setup.prompt, setup.config
        self.options: Any = setup.config.chosen
        self.rewards = list(setup.rewards)
        self.negative = NegativeEmbedding(setup.negative, replace(setup.config.negative, mode="off"))
        name = setup.config.preference
        if self.wants_reward and not self.rewards:
            raise ConfigError(
                f"Guidance: expected a reward for preference {name}, received none. "
                "Give a reward or set preference to none."
            )
        if self.wants_reward and len(self.rewards) > 1 and not self.several_rewards:
            raise ConfigError(
                f"Guidance: expected one reward for preference {name}, received {len(self.rewards)}: several judges "
                "vote in dreamdpo only. Combine them into one reward or choose dreamdpo."
            )

    @classmethod
    def check(cls, config: GuidanceConfig) -> None:
        """Refuse options that do not go together, before any model is loaded.

        Raises:
            ConfigError: with the reason.
        """

    @property
    def black_box(self) -> str | None:
        """The name of a reward without gradients, if there is one."""
        return next((reward.name for reward in self.rewards if not reward.differentiable), None)

    def acts(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        """Which groups are judged in this step; ``t`` on the CPU, so that nothing waits for a device.

        As the options say, if they are a :class:`~psd_gs.config.guidance.JudgingConfig`; else all of them, always.
        """
        options = self.options if isinstance(self.options, JudgingConfig) else JudgingConfig()
        return acts(options, progress, step, t)

    def noises(self, x0: Float[Tensor, "G V C h w"], cameras: Cameras, generator: torch.Generator) -> Latents:
        """The noises of a step in which some group is judged; the base score sees the same ones."""
        return sample_noise(x0, 1, False, generator)

    def residual(self, step: Step) -> tuple[Float[Tensor, "G V C h w"] | None, dict[str, Tensor]]:
        """What to add to the mean of the base score's residuals, if anything, and scalars for the log."""
        return None, {}

    def loss(self, views: Views) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss in place of ``views.base``, whose gradient on ``views.images`` counts, and scalars for the log."""
        return views.base, {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides ``negative``: flat, tensors only, copies."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken."""


class NoPreference(Preference):
    """The base score alone."""

    wants_reward = False

    def acts(self, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
        return torch.zeros(len(t), dtype=torch.bool)


def preference_class(name: str) -> type[Preference]:
    """The class of one of :data:`psd_gs.entries.PREFERENCES`.

    Raises:
        PluginError: the package that offers it is broken.
    """
    with PREFERENCES.explained(name):
        found = resolved(PREFERENCES[name].preference)
        if not (isinstance(found, type) and issubclass(found, Preference)):
            raise TypeError(f"expected a subclass of Preference, received {found!r:.80}")
        return found


def check_noises_tell(config: GuidanceConfig) -> None:
    """Refuse a method that has one residual for all noises, where residuals are weighed by their noise.

    Raises:
        ConfigError: names both.
    """
    if base_score(config.method).invert:
        raise ConfigError(
            f"preference {config.preference}: expected a method with a residual per noise, received {config.method}, "
            "whose noise is the inversion of the render itself. Choose another method, or preference psd."
        )


def judge(
    reward: Reward, images: Float[Tensor, "G V 3 H W"], prompt: str, cameras: Cameras, config: JudgingConfig
) -> Float[Tensor, "G U"]:
    """Scores per unit of comparison: U = 1 (pair group) or U = V (pair view).

    A reward that judges a group as a whole is asked about each view as a group of one where the pair is per view.
    """
    groups, views = images.shape[:2]

    def singly(prompts: list[str]) -> Float[Tensor, "G V"]:
        return reward.score(images.flatten(0, 1)[:, None], prompts, cameras).reshape(groups, views)

    if config.reward_prompt == "view":
        prompts = directed(prompt)
        scores = singly([prompts[i] for i in direction_index(cameras).tolist()])
    else:
        scores = reward.score(images, [prompt] * groups, cameras)
    if config.pair == "group":
        return group_score(scores, config.pooling, config.pooling_temperature)[:, None]
    return scores if scores.ndim == 2 else singly([prompt] * groups * views)


def acts(config: JudgingConfig, progress: float, step: int, t: Float[Tensor, " G"]) -> Bool[Tensor, " G"]:
    """Which groups are judged in this step; ``t`` on the CPU, so that nothing waits for a device."""
    on = config.start <= progress <= config.end and step % config.every == 0
    return (t <= config.t_max) & on


def sample_noise(
    like: Float[Tensor, "G V C h w"], n: int, antithetic: bool, generator: torch.Generator
) -> Float[Tensor, "N G V C h w"]:
    """``n`` standard normal draws in the shape of ``like``; antithetic: the second half negates the first."""
    drawn = (n + 1) // 2 if antithetic else n
    noise = torch.randn(drawn, *like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    noise = noise.to(like.device)
    return torch.cat([noise, -noise])[:n] if antithetic else noise


@dataclass(frozen=True)
class Candidates:
    """What a preference score decides on: G groups under N noises.

    Attributes:
        estimates: clean estimates, those that were decoded and scored.
        rewards: their scores, per group or per view; a unit with a non-finite score has no say and is counted.
        residuals: the base score's ``x0 - target`` under the same noises (a single one for a method without noise).
        unguided: residuals toward the text-only estimates.
        votes: scores of further judges.
    """

    estimates: Float[Tensor, "N G V C h w"]
    rewards: Float[Tensor, "N G U"]
    residuals: Float[Tensor, "N G V C h w"]
    unguided: Float[Tensor, "N G V C h w"] | None = None
    votes: list[Float[Tensor, "N G U"]] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What a preference says about G groups.

    Attributes:
        score: a residual in x0 to add to the base residual.
        best: index of the winning noise.
        worst: index of the losing noise.
        logs: scalars.
    """

    score: Float[Tensor, "G V C h w"]
    best: Int[Tensor, "G U"]
    worst: Int[Tensor, "G U"]
    logs: dict[str, Tensor]

    def __getitem__(self, groups: Tensor) -> Verdict:
        """The groups that integer indices pick."""
        return replace(self, score=self.score[groups], best=self.best[groups], worst=self.worst[groups])


def group_norm(x: Float[Tensor, "G V C h w"]) -> Float[Tensor, " G"]:
    """Euclidean norm of each group."""
    return x.flatten(1).norm(dim=1)


def take(x: Float[Tensor, "N G V C h w"], index: Int[Tensor, "G U"]) -> Float[Tensor, "G V C h w"]:
    """The noise that ``index`` names for each group (U = 1) or view (U = V)."""
    return x.gather(0, index[None, :, :, None, None, None].expand(1, *x.shape[1:])).squeeze(0)


class PairPreference(Preference, ABC):
    """A preference score from ranked estimates of one render under several noises.

    All of ours log ``reward_win``, ``reward_lose``, ``gap`` between them, and ``pair_norm``, of the contrast of the
    best and the worst clean estimate.
    """

    options: PairConfig

    def noises(self, x0: Float[Tensor, "G V C h w"], cameras: Cameras, generator: torch.Generator) -> Latents:
        return sample_noise(x0, self.options.n_noises, self.options.antithetic, generator)

    def residual(self, step: Step) -> tuple[Float[Tensor, "G V C h w"], dict[str, Tensor]]:
        """Decode and score a clean estimate of every noise, and decide."""
        prediction, denoiser = step.prediction, step.denoiser
        estimates = self.estimates(prediction, denoiser)
        images = self.prior.decode(estimates.flatten(0, 1))
        cameras = joined([denoiser.cameras] * len(estimates))
        scores = [judge(reward, images, self.prompt, cameras, self.options) for reward in self.rewards]
        # In half precision gaps would vanish when squared.
        rewards, *votes = (score.to(estimates).unflatten(0, estimates.shape[:2]) for score in scores)
        contrasted = self.contrasted(estimates, prediction, denoiser)
        verdict = self.decide(Candidates(contrasted, rewards, step.residuals, prediction.x0 - prediction.cond, votes))
        return verdict.score, verdict.logs | self.learn(verdict, step)

    def estimates(self, prediction: Prediction, denoiser: Denoiser) -> Latents:
        """The clean estimates that are decoded and ranked."""
        return prediction.guided(self.options.pair_scale)

    def contrasted(self, estimates: Latents, prediction: Prediction, denoiser: Denoiser) -> Latents:
        """What :meth:`decide` gets of the ranked ``estimates``: themselves."""
        return estimates

    @abstractmethod
    def decide(self, candidates: Candidates) -> Verdict:
        """Rank, and say what to add to the mean of the base residuals."""

    def learn(self, verdict: Verdict, step: Step) -> dict[str, Tensor]:
        """Draw a lesson for later steps; returns scalars for the log."""
        return {}
