"""A preference score of your own, as a package: ``pip install examples/own_preference``, then ``--preference away``.

It steps away from what the worst noise of each render wants, and towards nothing in particular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psd_gs.config import GuidanceConfig, check_range
from psd_gs.config.guidance import PairConfig
from psd_gs.entries import PreferenceEntry
from psd_gs.guidance.preference import Candidates, PairPreference, Verdict, check_noises_tell, take


@dataclass(frozen=True)
class AwayConfig(PairConfig):
    """The section ``guidance.away`` of a --config file; on the command line ``--set guidance.away.weight=2``."""

    weight: float = 1.0
    """Of the step away, relative to the distance of the worst residual from the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 100, "weight")


class Away(PairPreference):
    options: AwayConfig

    @classmethod
    def check(cls, config: GuidanceConfig) -> None:
        """Refuse base scores whose residual is the same for all noises."""
        check_noises_tell(config)

    def decide(self, candidates: Candidates) -> Verdict:
        """What is added to the base score: minus the worst noise's residual, relative to the mean of all."""
        heard = candidates.rewards.isfinite().all(0)  # NaN is no verdict
        rewards = torch.where(heard, candidates.rewards, 0)
        best, worst = rewards.argmax(0), rewards.argmin(0)
        step = candidates.residuals.mean(0) - take(candidates.residuals, worst)
        score = torch.where(heard[..., None, None, None], self.options.weight * step, 0)
        logs = {"reward_win": rewards.amax(0).mean(), "reward_lose": rewards.amin(0).mean()}
        return Verdict(score, best, worst, logs)


ENTRY = PreferenceEntry(Away, AwayConfig)
