"""What preference distillation needs from a judge of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.config.guidance import Pooling
from psd_gs.errors import InputError


class Reward(Protocol):
    """Scores images against prompts; higher is better, only differences at one prompt mean anything.

    Two attributes may be left out: ``render_size``, the side in pixels of the renders that it scores best (default:
    the prior's, at least 256), and ``views``, how many a group must have (default 1: any number will do).
    """

    @property
    def name(self) -> str:
        """Short name for logs and messages."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether gradients of ``score`` reach the pixels."""
        ...

    def score(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """Scores per view, or per group where the views are judged together.

        Args:
            images: sRGB in [0, 1].
            prompts: G prompts, one per group.
            cameras: G*V cameras, the views of a group adjacent; None where unknown.
        """
        ...


@runtime_checkable
class FeatureReward(Reward, Protocol):
    """A reward that tells what its last layers read: ``score(x) == score_features(features(x))``."""

    def features(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V D"] | Float[Tensor, "G D"]:
        """Per view, or per group where the views are judged together.

        Args:
            images: sRGB in [0, 1], any size; gradients reach them.
            prompts: G prompts, one per group.
            cameras: G*V cameras, the views of a group adjacent; None where unknown.

        Raises:
            InputError: shapes do not agree.
        """
        ...

    def score_features(
        self, features: Float[Tensor, "G V D"] | Float[Tensor, "G D"]
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """What ``score`` makes of them."""
        ...


class ScoredByFeatures:
    """The ``score`` of a :class:`FeatureReward`."""

    def score(
        self: FeatureReward, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """Scores in float32, higher is better; arguments and errors of ``features``."""
        return self.score_features(self.features(images, prompts, cameras))


def check_groups(images: Tensor, prompts: list[str], name: str) -> None:
    """Refuse what is not G groups of V images with one prompt each.

    Raises:
        InputError: shapes do not agree.
    """
    if images.ndim != 5 or images.shape[2] != 3 or len(prompts) != len(images):
        raise InputError(
            f"reward {name}: expected images [G, V, 3, H, W] and G prompts, received images "
            f"{list(images.shape)} and {len(prompts)} prompts. Give one prompt per group of views."
        )


def group_score(
    scores: Float[Tensor, "G V"] | Float[Tensor, " G"], pooling: Pooling = "mean", temperature: float = 0.01
) -> Float[Tensor, " G"]:
    """One score per group of views.

    Args:
        scores: per view, or already per group (returned as they are).
        pooling: ``mean``; ``min``, the worst view; ``softmin``, ``-T log mean exp(-score / T)``, between the
            two, so that one good view cannot outweigh a neglected rear.
        temperature: T of ``softmin``, in units of the score.
    """
    if scores.ndim == 1:
        return scores
    if pooling == "mean":
        return scores.mean(1)
    if pooling == "min":
        return scores.amin(1)
    return -temperature * (torch.logsumexp(-scores / temperature, dim=1) - math.log(scores.shape[1]))


class CallableReward:
    """A black box as a reward: a vision-language model behind an API, an external process, any function.

    Args:
        function: takes images ``[B, 3, H, W]`` (sRGB in [0, 1], detached) and B prompts, returns B numbers
            (a tensor, an array or a sequence); NaN means "no verdict".
        name: for logs and messages.
    """

    differentiable = False

    def __init__(
        self,
        function: Callable[[Float[Tensor, "B 3 H W"], list[str]], Tensor | Sequence[float]],
        name: str = "callable",
    ) -> None:
        self.function = function
        self.name = name

    @torch.no_grad()
    def score(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V"]:
        """Scores per view.

        Raises:
            InputError: the function did not return one number per image.
        """
        groups, views = images.shape[:2]
        repeated = [prompt for prompt in prompts for _ in range(views)]
        scores = torch.as_tensor(self.function(images.detach().flatten(0, 1), repeated), dtype=torch.float32)
        if scores.shape != (groups * views,):
            raise InputError(
                f"reward {self.name}: expected {groups * views} numbers, one per image, "
                f"received shape {tuple(scores.shape)}. Return a flat sequence in the order of the images."
            )
        return scores.to(images.device).view(groups, views)
