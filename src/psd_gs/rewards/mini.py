"""The embedded rewards: small image-text models over all views of a set.

Several architectures, so that what judges a result is not what the optimization climbed:

* ``conv`` (the ``mini`` reward): a convolutional tower per view; the words of the prompt read the
  image tokens of all views by cross-attention.
* ``patch`` (``mini-judge``, for evaluation only): a patch transformer whose image tokens read the
  words of the prompt.
* ``frozen`` (a judge too): the same over features that others have trained, see :mod:`psd_gs.rewards.frozen`.

All are trained on synthetic preferences with the Bradley-Terry loss, as ImageReward
(arXiv 2304.05977, eq. 1) and its kin are on human ones, and standardized like it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from psd_gs.cameras import Cameras
from psd_gs.errors import ModelError
from psd_gs.files import atomic_path, write_atomic
from psd_gs.resize import resized
from psd_gs.rewards.base import ScoredByFeatures, check_groups
from psd_gs.rewards.frozen import CELL, LiteTower, SentenceEncoder
from psd_gs.text_encoder import TextEncoder, Tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

HEAD_WIDTH = 32
"""Channels per attention head."""


@dataclass(frozen=True)
class RewardConfig:
    """What ``config.json`` holds.

    Attributes:
        architecture: ``conv``, ``patch`` or ``frozen``.
        vocab_size: entries of the tokenizer.
        text: how prompts become tokens: ``clip``, a byte-pair vocabulary of its own; ``words``, one token per word;
            ``sentence``, the word pieces of the frozen sentence encoder. Padding is token 0 in the last two.
        image_size: pixels per side that the tower sees; every input is resized to it.
        width: channels of the tokens.
        channels: of the tower: at stride 4 and at stride 8 (``conv``), of the patch stem (``patch``).
        depth: residual blocks at stride 8, or transformer blocks.
        fusion_depth: blocks that join text and image.
        text_layers: of the text encoder.
        text_width: channels of a frozen sentence encoder.
        text_length: tokens per prompt.
        score_mean: mean of the raw score on the validation set.
        score_std: its standard deviation.
    """

    architecture: str
    vocab_size: int
    text: str = "clip"
    image_size: int = 64
    width: int = 128
    channels: tuple[int, int] = (48, 96)
    depth: int = 3
    fusion_depth: int = 2
    text_layers: int = 2
    text_width: int = 384
    text_length: int = 24
    score_mean: float = 0.0
    score_std: float = 1.0

    @property
    def side(self) -> int:
        """Tokens along a side of a view."""
        return self.image_size // (CELL if self.architecture == "frozen" else 8)


class TextFeatures(NamedTuple):
    """Encoded prompts: token states and which of them belong to the prompt."""

    states: Float[Tensor, "P T D"]
    mask: Bool[Tensor, "P T"]


class ImageFeatures(NamedTuple):
    """Encoded sets: tokens of all views, and one vector of each set as a whole."""

    tokens: Float[Tensor, "S V*L D"]
    summary: Float[Tensor, "S D"]


def attend(
    query: Float[Tensor, "B N D"],
    key: Float[Tensor, "B M D"],
    value: Float[Tensor, "B M D"],
    mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N D"]:
    """Multi-head attention, written out: on CPUs its backward is several times faster than the fused kernel's."""
    split = lambda t: t.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)  # noqa: E731
    logits = split(query) @ split(key).transpose(2, 3) * HEAD_WIDTH**-0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -1e4)
    return (logits.softmax(-1).to(value.dtype) @ split(value)).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Pre-normalized self-attention with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N D"]:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(attend(query, key, value, mask))


class CrossAttention(nn.Module):
    """``x`` reads ``context``, and compares: besides what was read, its product with the query is passed on.

    Words and pictures share a space from the start: keys and values begin as the queries' projection.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.key.load_state_dict(self.query.state_dict())
        self.value.load_state_dict(self.query.state_dict())
        self.out = nn.Linear(2 * width, width)

    def forward(
        self,
        x: Float[Tensor, "B*K N D"],
        context: Float[Tensor, "B M D"],
        mask: Bool[Tensor, "B M"] | None = None,
        per_context: int = 1,
    ) -> Float[Tensor, "B*K N D"]:
        query = self.query(self.norm(x))
        context = self.norm_context(context)
        # the queries of the ``per_context`` rows that share a context side by side: its keys are computed once
        together = query.reshape(-1, per_context * x.shape[1], x.shape[2])
        found = attend(together, self.key(context), self.value(context), mask).reshape(x.shape)
        return x + self.out(torch.cat([found, found * query], -1))


class Mlp(nn.Module):
    """Pre-normalized two-layer perceptron with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvBlock(nn.Module):
    """3x3 convolution, then 1x1, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvTower(nn.Module):
    """Per view: stride 4, one block, stride 8, ``depth`` blocks; tokens of 8 x 8 cells."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        c1, c2 = config.channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, c1, 6, stride=4, padding=1),
            nn.GELU(),
            ConvBlock(c1),
            nn.GroupNorm(8, c1),
            nn.Conv2d(c1, c2, 3, stride=2, padding=1),
            *(ConvBlock(c2) for _ in range(config.depth)),
            nn.GroupNorm(8, c2),
            nn.Conv2d(c2, config.width, 1),
        )

    def forward(self, images: Float[Tensor, "B 3 H W"], views: int) -> Float[Tensor, "B L D"]:
        return self.layers(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)


class PatchTower(nn.Module):
    """Patches of 8 x 8 pixels; transformer blocks per view, the last over all views of a set."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        stem = config.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 4, stride=4), nn.GELU(), nn.Conv2d(stem, config.width, 3, stride=2, padding=1)
        )
        self.position = nn.Parameter(0.1 * torch.randn((config.image_size // 8) ** 2, config.width))
        self.blocks = nn.ModuleList(
            nn.Sequential(SelfAttention(config.width), Mlp(config.width)) for _ in range(config.depth)
        )

    def forward(self, images: Float[Tensor, "B 3 H W"], views: int) -> Float[Tensor, "B L D"]:
        x = self.stem(images).flatten(2).transpose(1, 2) + self.position
        length = x.shape[1]
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - 1:
                x = x.reshape(-1, views * length, x.shape[-1])
            x = block(x)
        return x.reshape(-1, length, x.shape[-1])


class ReadingFusion(nn.Module):
    """The words read the image: cross-attention from text tokens to the tokens of all views."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        width = config.width
        self.reads = nn.ModuleList(CrossAttention(width) for _ in range(config.fusion_depth))
        self.talks = nn.ModuleList(SelfAttention(width) for _ in range(config.fusion_depth))
        self.mlps = nn.ModuleList(Mlp(width) for _ in range(config.fusion_depth))

    def forward(self, image: ImageFeatures, text: TextFeatures, per_image: int) -> Float[Tensor, "P D"]:
        x, mask = text
        for read, talk, mlp in zip(self.reads, self.talks, self.mlps, strict=True):
            x = mlp(talk(read(x, image.tokens, per_context=per_image), mask))
        weight = mask.to(x.dtype)[..., None]
        return (x * weight).sum(1) / weight.sum(1)


class WritingFusion(nn.Module):
    """The image reads the words: image tokens, merged 2 x 2, attend to the text and to each other."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        width = config.width
        self.side = config.side
        self.merge = nn.Linear(4 * width, width)
        self.reads = nn.ModuleList(CrossAttention(width) for _ in range(config.fusion_depth))
        self.talks = nn.ModuleList(SelfAttention(width) for _ in range(config.fusion_depth))
        self.mlps = nn.ModuleList(Mlp(width) for _ in range(config.fusion_depth))

    def forward(self, image: ImageFeatures, text: TextFeatures, per_image: int) -> Float[Tensor, "P D"]:
        sets, length, width = image.tokens.shape
        half = self.side // 2
        cells = image.tokens.view(sets, -1, half, 2, half, 2, width).transpose(3, 4)
        x = self.merge(cells.reshape(sets, length // 4, 4 * width)).repeat_interleave(per_image, 0)
        for read, talk, mlp in zip(self.reads, self.talks, self.mlps, strict=True):
            x = mlp(talk(read(x, text.states, text.mask)))
        return x.mean(1)


def word_encoder(config: RewardConfig) -> TextEncoder:
    """CLIP's text transformer over a vocabulary of our own."""
    return TextEncoder(
        vocab_size=config.vocab_size,
        width=config.width,
        inner=2 * config.width,
        layers=config.text_layers,
        heads=config.width // HEAD_WIDTH,
        length=config.text_length,
        fused=False,
    )


class RewardNetwork(nn.Module):
    """Tower, text encoder, fusion and head; see the module's docstring for the architectures."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        towers = {
            "conv": (ConvTower, ReadingFusion),
            "patch": (PatchTower, WritingFusion),
            "frozen": (LiteTower, WritingFusion),
        }
        tower, fusion = towers[config.architecture]
        self.text = SentenceEncoder(config) if config.text == "sentence" else word_encoder(config)
        self.tower = tower(config)
        self.position = nn.Parameter(0.1 * torch.randn(config.side**2, width))
        self.across_views = nn.Sequential(SelfAttention(width), Mlp(width))
        self.summarize = nn.Linear(3 * width, width)
        self.fusion = fusion(config)
        self.head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def encode_images(self, images: Float[Tensor, "S V 3 H W"]) -> ImageFeatures:
        """Encode S sets of V views; any size, any V."""
        sets, views = images.shape[:2]
        size = self.config.image_size
        x = resized(images.flatten(0, 1), size, size)
        x = self.tower(2 * x - 1, views)
        # mean and spread over the cells of a view, then over the views: disagreement shows in the last
        views_as_one = self.across_views(x.mean(1).unflatten(0, (sets, views)))
        spread = (views_as_one - views_as_one.mean(1, keepdim=True)).square().mean(1)
        contrast = x.float().var(1, correction=0).unflatten(0, (sets, views)).mean(1)
        summary = self.summarize(torch.cat([views_as_one.mean(1), spread, contrast.to(spread.dtype)], -1))
        tokens = (x + self.position).unflatten(0, (sets, views)) + views_as_one[:, :, None]
        return ImageFeatures(tokens.flatten(1, 2), summary)

    def encode_text(self, ids: Int[Tensor, "P T"]) -> TextFeatures:
        """Encode tokens; what follows the first end token is masked out, or all padding."""
        if self.config.text != "clip":
            return TextFeatures(self.text(ids)[0], ids != 0)
        ended = (ids == self.config.vocab_size - 1).int()
        return TextFeatures(self.text(ids)[0], ended.cumsum(1) - ended == 0)

    def features(self, image: ImageFeatures, text: TextFeatures, per_image: int = 1) -> Float[Tensor, "P 2*D"]:
        """What the head reads of each set with each of its ``per_image`` prompts (set-major)."""
        joint = self.fusion(image, text, per_image)
        return torch.cat([joint, image.summary.repeat_interleave(per_image, 0)], -1)

    def score_features(self, features: Float[Tensor, "P 2*D"]) -> Float[Tensor, " P"]:
        """Standardized scores."""
        raw = self.head(features)[:, 0].float()
        return (raw - self.config.score_mean) / self.config.score_std

    def forward(self, image: ImageFeatures, text: TextFeatures, per_image: int = 1) -> Float[Tensor, " P"]:
        """Standardized scores of each set with each of its ``per_image`` prompts (set-major)."""
        return self.score_features(self.features(image, text, per_image))


class MiniReward(ScoredByFeatures):
    """A :class:`~psd_gs.rewards.base.Reward` over a small trained network.

    Judges the views of a group together, so ``score`` returns one number per group, of mean 0 and
    standard deviation 1 on the validation set. Any number of views and any image size will do; the
    size inside is the configuration's, and the network was trained on four orthogonal views.

    Args:
        network: is frozen.
        tokenizer: its tokenizer.
        name: for logs and messages.
    """

    differentiable = True
    render_size = 128

    def __init__(
        self,
        network: RewardNetwork,
        tokenizer: Tokenizer | CLIPTokenizer | PreTrainedTokenizerFast,
        name: str = "mini",
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self._texts: dict[str, TextFeatures] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        name: str = "mini",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MiniReward:
        """Load a folder that :meth:`save_pretrained` wrote.

        Raises:
            ModelError: a file is missing, truncated or of another architecture.
        """
        folder = Path(folder)
        try:
            data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            known = {field.name for field in fields(RewardConfig)}
            if unknown := set(data) - known:
                raise ValueError(f"config.json has unknown entries {', '.join(sorted(unknown))}")
            config = RewardConfig(**data | {"channels": tuple(data["channels"])})
            network = RewardNetwork(config)
            network.load_state_dict(load_file(folder / "model.safetensors"))
            tokenizer = Tokenizer.from_pretrained(folder)
            if len(tokenizer) != config.vocab_size:
                raise ValueError(f"the tokenizer has {len(tokenizer)} entries, expected {config.vocab_size}")
        except Exception as error:  # safetensors, json, torch and tokenizers each raise their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"cannot load the reward in {folder}: {reason}. Install psd-gs again, or name another folder."
            ) from error
        return cls(network.to(device=device, dtype=dtype), tokenizer, name)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors (fp16) and the tokenizer's files.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        write_atomic(folder / "config.json", json.dumps(asdict(self.network.config), indent=2) + "\n")
        tensors = {name: t.half().cpu().contiguous() for name, t in self.network.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as path:
            save_file(tensors, path, {"format": "pt"})

    @property
    def device(self) -> torch.device:
        return self.network.position.device

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)
        self._texts.clear()

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Features of the prompts, each computed once and kept."""
        for prompt in set(prompts) - self._texts.keys():
            tokens = self.tokenizer(
                prompt,
                padding="max_length",
                truncation=True,
                max_length=self.network.config.text_length,
                return_tensors="pt",
            )
            self._texts[prompt] = self.network.encode_text(tokens.input_ids.to(self.device))
        texts = [self._texts[prompt] for prompt in prompts]
        return TextFeatures(torch.cat([t.states for t in texts]), torch.cat([t.mask for t in texts]))

    def features(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G D"]:
        """What the last layers read; see :class:`~psd_gs.rewards.base.FeatureReward`."""
        check_groups(images, prompts, self.name)
        seen = self.network.encode_images(images.to(self.device, self.network.position.dtype))
        return self.network.features(seen, self.encode_prompts(prompts))

    def score_features(self, features: Float[Tensor, "G D"]) -> Float[Tensor, " G"]:
        return self.network.score_features(features)


def load_embedded(
    _: None, *, part: str, name: str, device: torch.device | str, dtype: torch.dtype | None = None
) -> MiniReward:
    """A reward that ships with the package: ``reward`` or ``judge``, in float32 unless told.

    Raises:
        ModelError: the package is damaged.
    """
    with as_file(files("psd_gs") / "assets" / "mini" / part) as folder:
        return MiniReward.from_pretrained(folder, name=name, device=device, dtype=dtype or torch.float32)
