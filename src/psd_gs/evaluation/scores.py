"""What is measured of one asset: scores of every model over views, prompt match, and a proxy for two faces (Janus).

``docs/guide/evaluation.md`` defines each number and names its source.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.errors import ConfigError
from psd_gs.gaussians import Gaussians
from psd_gs.guidance.prompts import directed
from psd_gs.render import render
from psd_gs.rewards.base import Reward, group_score
from psd_gs.scoring import evaluation_cameras, evaluation_images, render_size

Models = Mapping[str, Reward]
"""By name."""

FILM_SIZE = 128
"""Side of the pictures that reports show, pixels."""


@dataclass(frozen=True)
class Viewing:
    """Where an asset is looked at from.

    Attributes:
        views: of the ring at 15 degrees above the horizon, evenly around from the front; even.
        size: of every image, pixels; None: for each model what it wants, see :func:`psd_gs.scoring.render_size`.
    """

    views: int = 12
    size: int | None = None

    def __post_init__(self) -> None:
        if self.views < 4 or self.views % 2:
            raise ConfigError(f"views: expected an even number from 4 on, received {self.views}.")
        if self.size is not None and self.size < 16:
            raise ConfigError(f"size: expected 16 pixels or more, received {self.size}.")

    def size_for(self, model: Reward, prior_size: int = 0) -> int:
        """Side of what a model is shown of an asset whose prior makes images of ``prior_size``, pixels."""
        return self.size or render_size(model, prior_size)


def ring_cameras(views: int, size: int) -> Cameras:
    """A turntable at 15 degrees above the horizon; the first view is the front."""
    return turntable(views, elevation=15.0, radius=0.69, size=size)


@torch.no_grad()
def ring_images(asset: Gaussians, views: int, size: int = FILM_SIZE) -> Float[Tensor, "R 3 H W"]:
    """The views of :func:`ring_cameras` on white, sRGB in [0, 1]."""
    cameras = ring_cameras(views, size).to(asset.device)
    white = torch.ones(3, device=asset.device)
    return torch.cat([render(asset, cameras[first : first + 4], white).pictures for first in range(0, views, 4)])


def measure_asset(
    asset: Gaussians | None, prompt: str, wrong: Sequence[str], models: Models, viewing: Viewing, prior_size: int = 0
) -> dict[str, Any]:
    """Everything that is measured of an asset; None is one that vanished: white pictures.

    Args:
        asset: as its run left it.
        prompt: what it should be.
        wrong: captions that do not fit it.
        models: that judge it.
        viewing: how it is looked at.
        prior_size: side of the images of the prior that made it, pixels; 0 where it is unknown.

    Returns:
        ``scores`` by model (see :func:`model_scores`), and ``janus`` (see :func:`janus`).
    """

    def look(size: int) -> tuple[Tensor, Tensor]:
        if asset is None or not len(asset):
            return torch.ones(viewing.views, 3, size, size), torch.ones(2, 4, 3, size, size)
        return ring_images(asset, viewing.views, size), evaluation_images(asset, size)

    sizes = {name: viewing.size_for(model, prior_size) for name, model in models.items()}
    seen = {size: look(size) for size in sorted({*sizes.values()} or {viewing.size or FILM_SIZE})}
    witness = describer(models)
    ring = seen[sizes[witness] if witness else min(seen)][0]
    return {
        "scores": {name: model_scores(model, *seen[sizes[name]], prompt, wrong) for name, model in models.items()},
        "janus": janus(ring, prompt, models),
    }


@torch.no_grad()
def caption_scores(
    model: Reward, sets: Float[Tensor, "S 4 3 H W"], captions: Sequence[str]
) -> Float[Tensor, "S captions"]:
    """Scores of the sets of four orthogonal views (at most both of the evaluation views) under each caption."""
    cameras, rows = evaluation_cameras(sets.shape[-1]).to(sets.device), []
    for i, views in enumerate(sets):
        around = cameras[torch.arange(4 * i, 4 * i + 4).repeat(len(captions))]
        scores = model.score(views.expand(len(captions), *views.shape), list(captions), around)
        rows.append(group_score(scores).float().cpu())
    return torch.stack(rows)


@torch.no_grad()
def model_scores(
    model: Reward, ring: Float[Tensor, "R 3 H W"], sets: Float[Tensor, "S 4 3 H W"], prompt: str, wrong: Sequence[str]
) -> dict[str, Any]:
    """One model's scores of one asset.

    Returns:
        ``mean`` over the sets of four orthogonal views, the same number as in a run's ``psd_gs.json``, and
        ``worst_set``, the lower one; ``views``, one per view of the ring, each judged by itself; their ``min``;
        ``front`` and ``back``, the means over the two half circles; ``match``, the probability of the prompt among the
        ``wrong`` captions (softmax over logits, mean over sets), and ``right``, the share of sets where it comes
        first; both None without wrong captions.
    """
    logits = caption_scores(model, sets, [prompt, *wrong])
    views = view_scores(model, ring, prompt)
    front = torch.tensor([abs(a) < 90 - 1e-6 for a in azimuths(len(ring))])
    back = torch.tensor([abs(a) > 90 + 1e-6 for a in azimuths(len(ring))])
    return {
        "mean": _rounded(logits[:, 0].mean()),
        "worst_set": _rounded(logits[:, 0].min()),
        "min": _rounded(views.min()),
        "front": _rounded(views[front].mean()),
        "back": _rounded(views[back].mean()),
        "match": _rounded(match_probability(model, logits)) if wrong else None,
        "right": _rounded(share_right(logits)) if wrong else None,
        "views": [_rounded(score) for score in views],
    }


def match_probability(model: Reward, scores: Float[Tensor, "S captions"]) -> float:
    """Probability of the first caption among all of them, mean over sets: a softmax over the model's logits."""
    return float((logit_scale(model) * scores).softmax(1)[:, 0].mean())


def share_right(scores: Float[Tensor, "S captions"]) -> float:
    """Share of the sets in which the first caption beats all others; a tie does not."""
    return float((scores[:, 0] > scores[:, 1:].amax(1)).float().mean())


@torch.no_grad()
def view_scores(model: Reward, ring: Float[Tensor, "R 3 H W"], prompt: str) -> Float[Tensor, " R"]:
    """One score per view. A model that judges sets gets sets of one view; one that needs four, four times that view."""
    views = getattr(model, "views", 1)
    cameras = ring_cameras(len(ring), ring.shape[-1]).to(ring.device)
    around = cameras[torch.arange(len(ring)).repeat_interleave(views)]
    images = ring[:, None].expand(-1, views, *ring.shape[1:])
    return group_score(model.score(images, [prompt] * len(ring), around)).float().cpu()


def azimuths(views: int) -> list[float]:
    """Of a ring's views, degrees in (-180, 180]; 0 is the front."""
    return [a if a <= 180 else a - 360 for a in (360 * i / views for i in range(views))]


def logit_scale(model: Reward) -> float:
    """Factor from a model's score to the logit it was trained with.

    1 / deviation of the embedded models' standardization is undone; a CLIP's cosine is multiplied by its
    temperature's inverse (100 for all published ones).
    """
    config = getattr(getattr(model, "network", None), "config", None)
    if config is not None:
        return float(getattr(config, "score_std", 1.0))
    clip = getattr(model, "model", None)
    if clip is not None and getattr(model, "scale", "") == "cosine" and hasattr(clip, "logit_scale"):
        return float(clip.logit_scale.float().exp())
    return 1.0


# --- two faces -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def janus(ring: Float[Tensor, "R 3 H W"], prompt: str, models: Models) -> dict[str, Any]:
    """Does the back look like a second front?

    Returns:
        ``features``: what the views are compared by (see :func:`view_features`);
        ``opposite``: autocorrelation of the views' features at 180 degrees, from -1 to 1 (0 where all views are alike);
        ``front``: per view, how likely a front it is, in [0, 1]: the probability of "PROMPT, front view" against side
        and back view where a CLIP is among the models, else the likeness to the asset's own front (the projection of
        a view's centred features on those of the front);
        ``back_share``: the share of ``front`` that lies behind, between 0 (one face) and a half (two alike), to 1.
    """
    name, features = view_features(ring, models)
    centred = features - features.mean(0)
    energy = float(centred.square().sum())
    still = energy <= 1e-9 * float(features.square().sum() + 1e-12)
    half = len(ring) // 2
    opposite = 0.0 if still else float((centred * centred.roll(half, 0)).sum()) / energy
    clip = next((model for model in models.values() if _is_clip(model)), None)
    if clip is not None:
        kind, front = "view prompts", front_probability(clip, ring, prompt)
    else:
        own = centred[0].square().sum().clamp_min(1e-12)
        likeness = torch.zeros(len(ring)) if still else ((centred @ centred[0]) / own).clamp(0, 1).cpu()
        kind, front = "likeness to the front", likeness
    # A view at exactly 90 degrees belongs to neither half.
    signs = [abs(a) - 90 for a in azimuths(len(ring))]
    behind = sum(float(p) for p, s in zip(front, signs, strict=True) if s > 1e-6)
    before = sum(float(p) for p, s in zip(front, signs, strict=True) if s < -1e-6)
    total = behind + before
    return {
        "features": name,
        "front_by": kind,
        "opposite": _rounded(opposite),
        "back_share": _rounded(behind / total if total > 0 else 0.5),
        "front": [_rounded(value) for value in front],
    }


def describer(models: Models) -> str | None:
    """Name of the model that tells best what a view looks like: a CLIP, else the last embedded one."""
    from psd_gs.rewards.mini import MiniReward

    clips = [name for name, model in models.items() if _is_clip(model)]
    embedded = [name for name, model in models.items() if isinstance(model, MiniReward)]
    return next(iter([*clips, *reversed(embedded)]), None)


def view_features(ring: Float[Tensor, "R 3 H W"], models: Models) -> tuple[str, Float[Tensor, "R D"]]:
    """What a view looks like, by the :func:`describer`: a CLIP's embedding, or the summary that an embedded judge makes
    of a set of one view; without either, the pixels of a 32 by 32 thumbnail."""
    from psd_gs.rewards.clip import image_features

    name = describer(models)
    if name is None:
        return "pixels", F.interpolate(ring, (32, 32), mode="area").flatten(1).cpu()
    model: Any = models[name]
    if _is_clip(model):
        return name, image_features(model.model, ring.to(model.device), model.fit).cpu()
    images = ring[:, None].to(model.device, model.network.position.dtype)
    return name, model.network.encode_images(images).summary.float().cpu()


def front_probability(model: Reward, ring: Float[Tensor, "R 3 H W"], prompt: str) -> Float[Tensor, " R"]:
    """Per view, the softmax of a CLIP's logits over the prompt as a front, side and back view (DreamFusion's words)."""
    texts = directed(prompt)[:3]
    logits = torch.stack([view_scores(model, ring, text) for text in texts], 1)
    return (logit_scale(model) * logits).softmax(1)[:, 0]


def _is_clip(model: Reward) -> bool:
    from psd_gs.rewards.clip import CLIPReward

    return isinstance(model, CLIPReward)


# --- pictures --------------------------------------------------------------------------------------------------------


def turntable_webp(ring: Float[Tensor, "R 3 H W"]) -> bytes:
    """The views as a film that loops, small enough to embed by the hundred."""
    from PIL import Image

    pixels = (ring * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    first, *others = (Image.fromarray(np.ascontiguousarray(view)) for view in pixels)
    out = io.BytesIO()
    first.save(out, "WEBP", save_all=True, append_images=others, duration=150, loop=0, quality=70)
    return out.getvalue()


def _rounded(value: Tensor | float) -> float | None:
    number = float(value)
    return round(number, 5) if math.isfinite(number) else None
