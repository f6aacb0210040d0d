"""From where a finished asset is looked at, and what a model says of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.gaussians import Gaussians
from psd_gs.render import render
from psd_gs.rewards.base import Reward, group_score

MIN_SIZE = 256
"""Least side, in pixels, of what a reward is shown that names no size itself; most want 224."""


def render_size(model: Reward, prior_size: int = 0) -> int:
    """Side in pixels of the renders that a model scores: its own ``render_size``, else that of the prior's images, at
    least :data:`MIN_SIZE`.

    Args:
        model: the reward or judge.
        prior_size: side of the images of the prior that made the asset; 0 where it is unknown.
    """
    return getattr(model, "render_size", None) or max(MIN_SIZE, prior_size)


def evaluation_cameras(size: int = 128) -> Cameras:
    """Eight views, as two sets of four orthogonal ones: from 15 degrees above, and 45 degrees on from 30 above."""
    low = turntable(4, elevation=15.0, radius=0.69, size=size)
    high = turntable(4, elevation=30.0, radius=0.69, size=size, start=45.0)
    return Cameras(torch.cat([low.viewmats, high.viewmats]), torch.cat([low.Ks, high.Ks]), size, size)


@torch.no_grad()
def evaluation_images(asset: Gaussians, size: int = 128) -> Float[Tensor, "2 4 3 H W"]:
    """The views of :func:`evaluation_cameras` on white, sRGB in [0, 1]."""
    cameras = evaluation_cameras(size).to(asset.device)
    return render(asset, cameras, torch.ones(3, device=asset.device)).pictures.unflatten(0, (2, 4))


@torch.no_grad()
def score_asset(asset: Gaussians, prompt: str, model: Reward, prior_size: int = 0) -> float:
    """Mean score over the evaluation views, rendered at :func:`render_size`."""
    return score_models(asset, prompt, {"": model}, prior_size)[""]


@torch.no_grad()
def score_models(asset: Gaussians, prompt: str, models: Mapping[str, Reward], prior_size: int = 0) -> dict[str, float]:
    """:func:`score_asset` of several models by name, which share views of one size."""
    views: dict[int, Tensor] = {}
    out = {}
    for name, model in models.items():
        size = render_size(model, prior_size)
        if size not in views:
            views[size] = evaluation_images(asset, size)
        images, cameras = views[size], evaluation_cameras(size).to(asset.device)
        out[name] = float(group_score(model.score(images, [prompt] * len(images), cameras)).mean())
    return out


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores as records hold them."""
    return {name: round(score, 4) for name, score in scores.items()}
