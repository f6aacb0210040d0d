"""A head that was fitted to people's preferences, on the features of another reward.

``score = a * base + w . (features - mean) / std``, where ``a`` and ``w`` were fitted. The folder holds
``config.json`` (base, loss, data, accuracy) and ``head.safetensors``; its path is the reward's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import InputError, ModelError
from psd_gs.files import atomic_path, read_bounded, read_json, write_atomic, writing
from psd_gs.rewards.base import FeatureReward
from psd_gs.rewards.parked import move

KIND = "psd-gs fitted reward"
"""Marks the folder's config.json."""
HEAD_BYTES = 64 << 20
"""Largest head."""


class _Config(TypedDict):
    kind: str
    base: str


@dataclass(frozen=True)
class LinearHead:
    """Weights of a fitted reward.

    Attributes:
        mean: of each feature; the last one is the base's own score.
        weight: of each feature, after the mean is subtracted.
    """

    mean: Float[Tensor, " D+1"]
    weight: Float[Tensor, " D+1"]

    def __call__(self, features: Float[Tensor, "*batch D"], scores: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scores of features, one less than there are weights, and of what the base says.

        Raises:
            ModelError: another number of features.
        """
        seen = torch.cat([features.float(), scores.float()[..., None]], -1)
        if seen.shape[-1] != len(self.weight):
            raise ModelError(
                f"a fitted reward has {len(self.weight)} weights for {seen.shape[-1]} features. Fit it again."
            )
        return (seen - self.mean.to(seen.device)) @ self.weight.to(seen.device)


class FittedReward:
    """A :class:`~psd_gs.rewards.base.Reward`, per view or per group as its base is.

    Args:
        base: whose features are read.
        head: the fitted weights.
        name: for logs and messages.
    """

    def __init__(self, base: FeatureReward, head: LinearHead, name: str) -> None:
        self.base, self.head, self.name = base, head, name
        self.views = getattr(base, "views", 1)
        self.render_size = getattr(base, "render_size", None)

    @property
    def differentiable(self) -> bool:
        return self.base.differentiable

    def to(self, device: torch.device | str) -> None:
        move(self.base, device)

    def score(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """Scores in float32, about 0 with standard deviation 1 on the assets that were compared.

        Args:
            images: sRGB in [0, 1]; gradients reach them if they do so for the base.
            prompts: G prompts, one per group.
            cameras: if the base needs them.

        Raises:
            InputError: shapes do not agree.
        """
        return self.head(*features_and_scores(self.base, images, prompts, cameras))


def features_and_scores(
    base: FeatureReward, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None
) -> tuple[Tensor, Tensor]:
    """What the head reads: features and scores per view, or per group if the base judges views together."""
    features = base.features(images, prompts, cameras)
    scores = base.score_features(features)
    return (features.mean(1) if features.ndim > scores.ndim + 1 else features), scores


def read_base(folder: str | Path) -> str | None:
    """The name of the reward that a fitted one reads; None if the folder is no such thing."""
    try:
        data = read_json(Path(folder).expanduser() / "config.json", _Config)
    except (InputError, RuntimeError):  # RuntimeError: "~nobody"
        return None
    return data["base"] if data["kind"] == KIND else None


def load_head(folder: str | Path) -> LinearHead:
    """The weights of a folder.

    Raises:
        ModelError: they are missing or damaged.
    """
    from safetensors.torch import load

    path = Path(folder).expanduser() / "head.safetensors"
    try:
        tensors = load(read_bounded(path, HEAD_BYTES))
        mean, weight = tensors["mean"], tensors["weight"]
        if not (mean.ndim == 1 and mean.shape == weight.shape and mean.dtype == weight.dtype == torch.float32):
            raise ValueError(f"expected two vectors of one length, received {list(mean.shape)}, {list(weight.shape)}")
        if not (mean.isfinite().all() and weight.isfinite().all()):
            raise ValueError("it holds numbers that are not finite")
        return LinearHead(mean, weight)
    except Exception as error:  # safetensors raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the fitted reward {path}: {reason}. Fit it again.") from error


def save_fitted(folder: str | Path, head: LinearHead, config: dict[str, Any]) -> None:
    """Write head.safetensors, then config.json, which makes the folder a reward.

    Args:
        folder: created if it is missing.
        head: the weights.
        config: ``base``, its expression, and whatever is to be remembered.

    Raises:
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "head.safetensors") as path:
        save_file({"mean": head.mean.cpu().contiguous(), "weight": head.weight.cpu().contiguous()}, path)
    write_atomic(folder / "config.json", json.dumps({"kind": KIND, **config}, indent=2) + "\n")
