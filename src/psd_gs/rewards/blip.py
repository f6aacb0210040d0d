"""Rewards on BLIP: a vision transformer read by a BERT with cross-attention, and a small head.

| name | paper | head | score |
|---|---|---|---|
| imagereward | ImageReward (2304.05977) | five linear layers | per view, about -2.3 to 2 |
| reward3d | DreamReward (2403.14613), Scorer | 128 features of four views | per group, about -2 to 2 |
| reward3d-fusion | its CrossViewFusion | attention over four views | per group, about -0.5 to 0.5 |

The published files are the state dicts of the authors' own modules (the ``image-reward`` package
1.5, which no longer imports beside a current transformers); they are read here key by key into
transformers' BLIP. All scores are ``(raw - mean) / std`` with the authors' constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from psd_gs.cameras import SIDES, Cameras, side_index
from psd_gs.errors import InputError
from psd_gs.rewards.base import ScoredByFeatures, check_groups
from psd_gs.rewards.checkpoints import build, checked_tokenizer, find_file, read_tensors, renamed
from psd_gs.rewards.images import fit_crop, normalize

Head = Literal["image", "scorer", "fusion"]

VIEWS = 4
"""Views that Reward3D judges together."""
VOCABULARY = 30522
"""Entries of bert-base-uncased; two unused ones follow in the embedding."""


def vit_l_16() -> BlipVisionConfig:
    """BLIP-large's image encoder."""
    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        layer_norm_eps=1e-6,
    )


def bert_base() -> BlipTextConfig:
    """BLIP's text encoder; ``is_decoder`` gives it cross-attention, its own attention stays bidirectional."""
    return BlipTextConfig(
        vocab_size=VOCABULARY + 2,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        encoder_hidden_size=1024,
        max_position_embeddings=512,
        is_decoder=True,
    )


@dataclass(frozen=True)
class BlipSizes:
    """Architecture of both encoders; the default is what is published."""

    vision: BlipVisionConfig = field(default_factory=vit_l_16)
    text: BlipTextConfig = field(default_factory=bert_base)


class LinearHead(nn.Module):
    """Five linear layers without activations between them, as published (dropouts sat at 1, 3 and 5)."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(
            linear[0], nn.Identity(), linear[1], nn.Identity(), linear[2], nn.Identity(), linear[3], linear[4]
        )

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        return self.layers(features)[:, 0]


class ImageHead(nn.Module):
    """ImageReward: one score per view."""

    mean, std = 0.16717362830052426, 1.0333394966054072

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = LinearHead(width)

    def forward(self, features: Float[Tensor, "G V D"]) -> Float[Tensor, "G V"]:
        return (self.mlp(features.flatten(0, 1)).unflatten(0, features.shape[:2]) - self.mean) / self.std


class ScorerHead(nn.Module):
    """Reward3D_Scorer: the views' 128 features side by side, then three linear layers."""

    mean, std = ImageHead.mean, ImageHead.std

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = LinearHead(width)
        sizes = {"fc1": (VIEWS * 128, 256), "fc2": (256, 64), "fc3": (64, 1)}
        self.Scorer = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})

    def forward(self, features: Float[Tensor, "G V D"]) -> Float[Tensor, " G"]:
        x = self.mlp.layers[:3](features).flatten(1)
        for layer in self.Scorer.values():
            x = layer(x)
        return (x[:, 0] - self.mean) / self.std


class FusionHead(nn.Module):
    """Reward3D_CrossViewFusion: gated self-attention over the views, their mean, ImageReward's layers."""

    mean, std = ImageHead.mean, 5.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = LinearHead(width)
        self.cross_view_adapter = nn.ModuleDict(
            {
                "self_attn": nn.MultiheadAttention(width, 12, batch_first=True),
                "fusion_gate": nn.Sequential(nn.Linear(2 * width, width), nn.Sigmoid()),
            }
        )

    def forward(self, features: Float[Tensor, "G V D"]) -> Float[Tensor, " G"]:
        attended = self.cross_view_adapter["self_attn"](features, features, features, need_weights=False)[0]
        gate = self.cross_view_adapter["fusion_gate"](torch.cat([features, attended], -1))
        fused = gate * attended + (1 - gate) * features
        return (self.mlp(fused.mean(1)) - self.mean) / self.std


HEADS: dict[Head, type[nn.Module]] = {"image": ImageHead, "scorer": ScorerHead, "fusion": FusionHead}


class BlipNetwork(nn.Module):
    """Both encoders and a head; the head computes in float32."""

    def __init__(self, sizes: BlipSizes, head: Head) -> None:
        super().__init__()
        self.vision = BlipVisionModel(sizes.vision)
        self.text = BlipTextModel(sizes.text, add_pooling_layer=False)
        self.head = HEADS[head](sizes.text.hidden_size)

    def features(
        self, pixels: Float[Tensor, "G V 3 H W"], ids: Int[Tensor, "G*V T"], mask: Int[Tensor, "G*V T"]
    ) -> Float[Tensor, "G V D"]:
        """What the text says of normalized pixels, read at its first token."""
        dtype = self.vision.post_layernorm.weight.dtype
        seen = self.vision(pixel_values=pixels.flatten(0, 1).to(dtype)).last_hidden_state
        # given ready to be added, for transformers would wait for the device to look at it
        added = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None]
        states = self.text(input_ids=ids, attention_mask=added, encoder_hidden_states=seen).last_hidden_state
        return states[:, 0].float().unflatten(0, pixels.shape[:2])

    def forward(
        self, pixels: Float[Tensor, "G V 3 H W"], ids: Int[Tensor, "G*V T"], mask: Int[Tensor, "G*V T"]
    ) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        """Scores of normalized pixels and tokens."""
        return self.head(self.features(pixels, ids, mask))


class BlipReward(ScoredByFeatures):
    """A :class:`~psd_gs.rewards.base.Reward`: ImageReward scores each view, Reward3D four views together.

    Args:
        network: is frozen.
        tokenizer: bert-base-uncased's.
        name: for logs and messages.
        length: tokens of a prompt, 35 for ImageReward, 100 for Reward3D.
        view_prompts: name the direction of each view in its prompt (", front view"), which Reward3D was trained
            with; needs cameras.
    """

    differentiable = True

    def __init__(
        self,
        network: BlipNetwork,
        tokenizer: BertTokenizer,
        name: str = "imagereward",
        *,
        length: int = 35,
        view_prompts: bool = False,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.tokenizer, self.name, self.length, self.view_prompts = tokenizer, name, length, view_prompts
        self.views = VIEWS if view_prompts else 1
        self._tokens: dict[str, Int[Tensor, "2 T"]] = {}

    @property
    def device(self) -> torch.device:
        return self.network.vision.post_layernorm.weight.device

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)
        self._tokens.clear()

    def tokens(self, prompts: list[str]) -> tuple[Int[Tensor, "P T"], Int[Tensor, "P T"]]:
        """Padded tokens and their mask, each prompt split once and kept."""
        for prompt in set(prompts) - self._tokens.keys():
            found = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=self.length)
            self._tokens[prompt] = torch.tensor([found.input_ids, found.attention_mask]).to(self.device)
        ids, mask = torch.stack([self._tokens[prompt] for prompt in prompts], 1)
        return ids, mask

    def features(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V D"]:
        """What the head reads of each view.

        Args:
            images: sRGB in [0, 1], any size; gradients reach them. Reward3D: V = 4, around the object.
            prompts: G prompts, one per group.
            cameras: G*V cameras, the views of a group adjacent; only Reward3D needs them.

        Raises:
            InputError: shapes do not agree, or Reward3D was given other than four views with their cameras.
        """
        check_groups(images, prompts, self.name)
        groups, views = images.shape[:2]
        rows = [prompt for prompt in prompts for _ in range(views)]
        if self.view_prompts:
            if views != VIEWS or cameras is None or len(cameras) != len(rows):
                raise InputError(
                    f"reward {self.name}: expected groups of {VIEWS} views and a camera for each, received "
                    f"{groups} groups of {views} views and {len(cameras) if cameras is not None else 0} cameras. "
                    "Use it with a multi-view prior, the raw prompt and pair group."
                )
            rows = [f"{row}, {side} view" for row, side in zip(rows, sides(cameras), strict=True)]
        size = self.network.vision.config.image_size
        pixels = normalize(fit_crop(images.flatten(0, 1).to(self.device), size)).unflatten(0, (groups, views))
        return self.network.features(pixels, *self.tokens(rows))

    def score_features(self, features: Float[Tensor, "G V D"]) -> Float[Tensor, "G V"] | Float[Tensor, " G"]:
        return self.network.head(features)


def sides(cameras: Cameras) -> list[str]:
    """What DreamReward calls each view: front and back within 30 degrees of the axis, overhead above 60."""
    return [SIDES[i] for i in side_index(cameras, 30.0).tolist()]


# --- weights ---------------------------------------------------------------------------------------------------------

_PACKAGE = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^(mlp|Scorer|cross_view_adapter)\.", r"head.\1."),
)
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..*|blip\.text_encoder\.embeddings\.position_ids")


def from_package(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the ``image-reward`` package, or of DreamReward, under the names of :class:`BlipNetwork`."""
    return {renamed(key, _PACKAGE): value for key, value in tensors.items() if not _UNUSED.fullmatch(key)}


def read_bert_tokenizer(path: str | Path, what: str, vocabulary: int = VOCABULARY) -> BertTokenizer:
    """The tokenizer of bert-base-uncased.

    Raises:
        ModelError: its files are missing, damaged or another tokenizer's.
    """
    file = find_file(path, ("vocab.txt",), f"{what}: tokenizer")
    return checked_tokenizer(
        lambda: BertTokenizer(vocab=str(file), do_lower_case=True), vocabulary, what, file, "bert-base-uncased"
    )


def load_blip_reward(
    weights: str | Path,
    *,
    tokenizer: str | Path | None = None,
    name: str = "imagereward",
    head: Head = "image",
    sizes: BlipSizes | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BlipReward:
    """A :class:`BlipReward` from local files.

    Args:
        weights: ``ImageReward.pt``, ``Reward3D_Scorer.pt`` or ``Reward3D_CrossViewFusion.pt``, or its folder.
        tokenizer: folder with bert-base-uncased's vocab.txt; None means the folder of the weights.
        name: for logs and messages.
        head: ``image``, ``scorer`` or ``fusion``, as the file has it.
        sizes: of the encoders; None means what is published.
        device: where it runs.
        dtype: of the encoders; the head computes in float32.

    Raises:
        ModelError: files that are missing, damaged or of another architecture.
    """
    weights, sizes = Path(weights).expanduser(), sizes or BlipSizes()
    files = {"image": "ImageReward.pt", "scorer": "Reward3D_Scorer.pt", "fusion": "Reward3D_CrossViewFusion.pt"}
    tensors = from_package(read_tensors(find_file(weights, (files[head],), name), name))
    together = head != "image"
    # image-reward and DreamReward load their own files without checking for tensors too many, so there may be some;
    # a head that is another one still shows
    network = build(lambda: BlipNetwork(sizes, head), tensors, name, known="head.")
    network.vision.to(device, dtype)
    network.text.to(device, dtype)
    network.head.to(device)
    words = read_bert_tokenizer(
        tokenizer or (weights if weights.is_dir() else weights.parent), name, sizes.text.vocab_size - 2
    )
    return BlipReward(network, words, name, length=100 if together else 35, view_prompts=together)
