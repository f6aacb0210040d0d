"""LAION's aesthetic predictors: how pleasing an image is, whatever the prompt, on top of CLIP ViT-L/14.

| name | file | head | score |
|---|---|---|---|
| aesthetic-linear | ``sa_0_4_vit_l_14_linear.pth`` (predictor V1) | one linear layer | 1 to 10, about 5 |
| aesthetic | ``sac+logos+ava1-l14-linearMSE.pth`` (V2) | five linear layers | 1 to 10, about 5.5 |

The head reads the unit vector of the image's embedding (shorter side to 224 pixels, centre crop).
Neither head has activations, so the score is affine in that vector.
Sources: LAION-AI/aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from psd_gs.cameras import Cameras
from psd_gs.rewards.base import ScoredByFeatures, check_groups
from psd_gs.rewards.blip import LinearHead
from psd_gs.rewards.checkpoints import build, find_file, read_tensors
from psd_gs.rewards.clip import image_features, load_clip

FILES = ("sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")


class AestheticReward(ScoredByFeatures):
    """A :class:`~psd_gs.rewards.base.Reward`: one score per view, on the raters' scale of 1 to 10, whatever the prompt.

    Args:
        clip: its image side is used, and frozen.
        head: from unit vectors to scores, float32.
        name: for logs and messages.
    """

    differentiable = True

    def __init__(self, clip: CLIPModel, head: nn.Module, name: str = "aesthetic") -> None:
        self.clip = clip.requires_grad_(False).eval()
        self.head = head.requires_grad_(False).eval()
        self.name = name

    def to(self, device: torch.device | str) -> None:
        self.clip.to(device)
        self.head.to(device)

    def features(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V D"]:
        """Unit vectors of the images; prompts and cameras are not read."""
        check_groups(images, prompts, self.name)
        seen = image_features(self.clip, images.flatten(0, 1).to(self.clip.logit_scale.device))
        return seen.unflatten(0, images.shape[:2])

    def score_features(self, features: Float[Tensor, "G V D"]) -> Float[Tensor, "G V"]:
        return self.head(features.flatten(0, 1)).view(features.shape[:2])


def load_aesthetic(
    weights: str | Path,
    *,
    clip: str | Path | None = None,
    name: str = "aesthetic",
    files: tuple[str, ...] = FILES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AestheticReward:
    """An :class:`AestheticReward` from local files; which head it is, the file tells.

    Args:
        weights: one of :data:`FILES`, or its folder.
        clip: folder of openai/clip-vit-large-patch14; None means the folder of the weights.
        name: for logs and messages.
        files: names of the head in a folder, the preferred first.
        device: where it runs.
        dtype: of CLIP; the head computes in float32.

    Raises:
        ModelError: files that are missing, damaged or of another architecture.
    """
    file = find_file(weights, files, name)
    tensors = read_tensors(file, name)
    model = load_clip(clip or file.parent, f"{name}: CLIP", device=device, dtype=dtype)
    width = model.config.projection_dim
    head = build(lambda: nn.Linear(width, 1) if "weight" in tensors else LinearHead(width), tensors, name, device)
    del model.text_model, model.text_projection
    return AestheticReward(model, head, name)
