"""DreamDPO (2502.04370): the winner's residual minus the loser's, in place of the base score.

Two noises at one time; where the reward gap reaches tau ``G = w (res_w - res_l)``, below it ``G = w res_w``
(its Eq. 8). Without a base term nothing holds the render to the prior once the pair speaks, which PSD adds back.
Not copied from the released code: below tau it forgets to subtract the noise, and of two judges either may
overrule the other in favour of the first candidate only.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.config.guidance import DreamDPOConfig, GuidanceConfig
from psd_gs.errors import ConfigError
from psd_gs.guidance.base_scores import base_score
from psd_gs.guidance.preference import (
    Candidates,
    PairPreference,
    Setup,
    Verdict,
    check_noises_tell,
    group_norm,
    take,
)


def rank(
    panel: list[Float[Tensor, "N G U"]],
) -> tuple[Int[Tensor, "G U"], Int[Tensor, "G U"], Float[Tensor, "G U"], Bool[Tensor, "G U"]]:
    """Best and worst noise by the majority of the judges, the reward gap, and whether anyone had a verdict.

    Each judge votes for its best and against its worst noise; between equal rewards the earlier noise wins. A judge
    with a non-finite score abstains, and the first judge decides a draw. The gap is the first judge's own; it is
    infinite where that one abstains, so that the others' verdict counts in full.
    """
    ballots, valid = [], []
    for rewards in panel:
        order = torch.where(rewards.isfinite(), rewards, 0).argsort(dim=0, descending=True, stable=True)
        finite = rewards.isfinite().all(0)
        ballot = torch.zeros_like(rewards).scatter_(0, order[:1], 1.0)
        ballot = ballot.scatter_add(0, order[-1:], -torch.ones_like(rewards[:1]))
        ballots.append(torch.where(finite, ballot, 0))
        valid.append(finite)
    total = torch.stack(ballots).sum(0) + 0.5 * ballots[0]
    order = total.argsort(dim=0, descending=True, stable=True)
    first = panel[0]
    gap = torch.where(valid[0], first.amax(0) - first.amin(0), torch.inf)
    return order[0], order[-1], gap, torch.stack(valid).any(0)


class DreamDPO(PairPreference):
    """The pure contrast above tau, the winner alone below; logs ``kappa``, the share of the loser."""

    options: DreamDPOConfig
    several_rewards = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.options.vote:
            parts = [part.reward for reward in self.rewards for part in getattr(reward, "parts", ())]
            self.rewards = parts or self.rewards

    @classmethod
    def check(cls, config: GuidanceConfig) -> None:
        check_noises_tell(config)
        if config.dreamdpo.form == "code" and not base_score(config.method).unguided:
            raise ConfigError(
                f"DreamDPOConfig.form: expected paper with method {config.method}, received code: the loser's residual "
                "without guidance is defined for sds and recon. Set the form to paper."
            )

    def decide(self, candidates: Candidates) -> Verdict:
        best, worst, gap, valid = rank([candidates.rewards, *candidates.votes])
        tau = self.options.threshold
        push = (gap / max(tau, 1e-12)).clamp(0, 1) if self.options.smooth else (gap >= tau).to(gap)
        loser = candidates.residuals
        if self.options.form == "code":
            assert candidates.unguided is not None
            loser = candidates.unguided
        base = candidates.residuals.mean(0)
        winner = take(candidates.residuals, best)
        wanted = winner - push[..., None, None, None] * take(loser, worst)
        score = torch.where(valid[..., None, None, None], wanted - base, 0)
        scores = candidates.rewards
        logs = {
            "reward_win": scores.gather(0, best[None]).mean(),
            "reward_lose": scores.gather(0, worst[None]).mean(),
            "gap": (scores.amax(0) - scores.amin(0)).mean(),
            "kappa": torch.where(valid, push, 0).mean(),
            "pair_norm": group_norm(take(candidates.estimates, best) - take(candidates.estimates, worst)).mean(),
        }
        return Verdict(score, best, worst, logs)
