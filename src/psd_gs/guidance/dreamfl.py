"""DreamFL, DreamReward (2403.14613): the reward's own gradient on the pixels, beside the base score.

``L = L_base + lambda relu(ceiling - r(image))``. Not copied from the released code: lambda from the number of
digits of the two losses (here: from the ratio of the gradients' norms), and the last steps on the reward alone
times a million.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psd_gs.config.guidance import DreamFLConfig
from psd_gs.errors import ConfigError
from psd_gs.guidance.base_scores import rescale_guidance
from psd_gs.guidance.preference import Preference, Setup, Views, judge
from psd_gs.resize import clamped


def judged_images(
    renders: Float[Tensor, "G V 3 H W"], estimates: Float[Tensor, "G V 3 H W"] | None, clean: Bool[Tensor, " G"]
) -> Float[Tensor, "G V 3 H W"]:
    """What the reward sees: the decoded one-step estimates of the ``clean`` groups, with the renders' gradient."""
    if estimates is None:
        return renders
    through = estimates + renders - renders.detach()
    return torch.where(clean.to(renders.device)[:, None, None, None, None], through, renders)


def reward_loss(
    images: Float[Tensor, "G V 3 H W"],
    base_loss: Float[Tensor, ""],
    scores: Float[Tensor, "G U"],
    speaks: Bool[Tensor, " G"],
    config: DreamFLConfig,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """A loss whose gradient on ``images`` is the base score's plus the reward's.

    The reward's gradient is scaled to ``weight`` times the norm of the base score's, group by group.

    Args:
        images: renders, with gradient.
        base_loss: differentiable in ``images``.
        scores: of the images, differentiable in them.
        speaks: groups that are judged.
        config: options.
    """
    (base,) = torch.autograd.grad(base_loss, images)
    (push,) = torch.autograd.grad(torch.relu(config.ceiling - scores).sum(), images)
    push = torch.nan_to_num(push, nan=0.0, posinf=0.0, neginf=0.0)
    norm, base_norm = push.flatten(1).norm(dim=1), base.flatten(1).norm(dim=1)
    factor = config.weight * base_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny) * speaks.to(norm)
    total = base + factor[:, None, None, None, None] * push
    logs = {"reward": scores.detach().mean(), "reward_share": (factor * norm / base_norm.clamp_min(1e-30)).mean()}
    return (images * total).sum(), logs


class DreamFL(Preference):
    """The reward's gradient added to that of the base loss; logs ``reward`` and ``reward_share`` of the gradient."""

    options: DreamFLConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.black_box:
            raise ConfigError(
                f"preference dreamfl: expected a differentiable reward, for its gradient moves the pixels, received "
                f"the black box {self.black_box}. Choose psd, dreamdpo or rewardsds, which only rank."
            )

    def loss(self, views: Views) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        clean, estimates = views.denoiser.t <= self.options.estimate_t_max, None
        if clean.any():
            with torch.no_grad():
                guided = views.prediction.guided(self.config.guidance_scale)
                estimates = self.prior.decode(rescale_guidance(guided, views.prediction.cond, self.config.rescale)[0])
        seen = judged_images(clamped(views.renders), estimates, clean)
        scores = judge(self.rewards[0], seen, self.prompt, views.denoiser.cameras, self.options)
        return reward_loss(views.images, views.base, scores, views.judged, self.options)
