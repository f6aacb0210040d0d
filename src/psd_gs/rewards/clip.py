"""Rewards that are a CLIP: similarity of an image's and a prompt's embedding.

| name | network | trained on | image | score (range on renders) |
|---|---|---|---|---|
| clip | ViT-L/14 | web pairs (2103.00020) | shorter side, crop | cosine (0.2 to 0.3) |
| hpsv1 | ViT-L/14 | Discord choices (2303.14420) | shorter side, crop | cosine (0.18 to 0.22) |
| hpsv2 | ViT-H/14 | HPD v2 (2306.09341) | longer side, pad | cosine (0.23 to 0.28) |
| hpsv2.1 | ViT-H/14 | HPD v2, cleaned | longer side, pad | cosine (0.14 to 0.31) |
| pickscore | ViT-H/14 | Pick-a-Pic (2305.01569) | shorter side, crop | cosine times exp(logit scale) (18 to 23) |

Scores of two models are not comparable, nor of one model at two prompts.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize as unit
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from psd_gs.cameras import Cameras
from psd_gs.errors import ModelError
from psd_gs.files import loads
from psd_gs.rewards.base import ScoredByFeatures, check_groups
from psd_gs.rewards.checkpoints import build, checked_tokenizer, find_file, read_tensors, renamed
from psd_gs.rewards.images import fit_crop, fit_pad, normalize

Fit = Literal["crop", "pad"]
Scale = Literal["cosine", "logit"]

FITS = {"crop": fit_crop, "pad": fit_pad}
FILES = ("model.safetensors", "pytorch_model.bin")
VOCABULARY = 49408


def _clip_config(act: str, projection: int, text: tuple[int, int, int], vision: tuple[int, int, int]) -> CLIPConfig:
    """A CLIP of two transformers, each (width, layers, heads) with a fourfold MLP, patches of 14 pixels, 224 pixels."""
    shared = {"hidden_act": act, "projection_dim": projection}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    towers = [
        dict(zip(names, sizes, strict=True)) | {"intermediate_size": 4 * sizes[0]} | shared for sizes in (text, vision)
    ]
    special = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
    return CLIPConfig(
        text_config=towers[0] | special | {"vocab_size": VOCABULARY},
        vision_config=towers[1] | {"patch_size": 14, "image_size": 224},
        projection_dim=projection,
    )


def vit_l_14() -> CLIPConfig:
    """OpenAI's CLIP ViT-L/14 (HPS v1): 427,616,513 parameters."""
    return _clip_config("quick_gelu", 768, (768, 12, 12), (1024, 24, 16))


def vit_h_14() -> CLIPConfig:
    """open_clip's ViT-H-14 (HPS v2 and v2.1, PickScore): 986,109,441 parameters."""
    return _clip_config("gelu", 1024, (1024, 24, 16), (1280, 32, 16))


class CLIPReward(ScoredByFeatures):
    """A :class:`~psd_gs.rewards.base.Reward` that scores each view: the cosine of its embedding and the prompt's.

    Args:
        model: is frozen.
        tokenizer: OpenAI's byte-pair encoding, lower case, 77 tokens.
        name: for logs and messages.
        fit: how an image becomes square: ``crop`` (shorter side, centre) or ``pad`` (longer side, black bars).
        scale: ``cosine``, in [-1, 1], or ``logit``: times ``exp(logit_scale)``, about 100.
    """

    differentiable = True

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str = "clip",
        *,
        fit: Fit = "crop",
        scale: Scale = "cosine",
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer, self.name, self.fit, self.scale = tokenizer, name, fit, scale
        self._texts: dict[str, Float[Tensor, " D"]] = {}

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)
        self._texts.clear()

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Float[Tensor, "P D"]:
        """Unit vectors in float32, each prompt computed once and kept."""
        if new := sorted(set(prompts) - self._texts.keys()):
            config = self.model.config.text_config
            ids = tokenize(self.tokenizer, new, config.max_position_embeddings).to(self.device)
            pooled = self.model.text_model(input_ids=ids).pooler_output
            features = unit(self.model.text_projection(pooled).float(), dim=-1)
            self._texts |= dict(zip(new, features, strict=True))
        return torch.stack([self._texts[prompt] for prompt in prompts])

    def features(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None = None
    ) -> Float[Tensor, "G V 2*D"]:
        """The image's unit vector, and its product with the prompt's, which sums to the cosine."""
        check_groups(images, prompts, self.name)
        seen = image_features(self.model, images.flatten(0, 1).to(self.device), self.fit).unflatten(0, images.shape[:2])
        return torch.cat([seen, seen * self.encode_prompts(prompts)[:, None]], -1)

    def score_features(self, features: Float[Tensor, "G V 2*D"]) -> Float[Tensor, "G V"]:
        cosine = features.chunk(2, -1)[1].sum(-1)
        return cosine * self.model.logit_scale.float().exp() if self.scale == "logit" else cosine


def image_features(model: CLIPModel, images: Float[Tensor, "B 3 H W"], fit: Fit = "crop") -> Float[Tensor, "B D"]:
    """Unit vectors in float32 of sRGB images in [0, 1], computed in the precision of the model."""
    pixels = normalize(FITS[fit](images, model.vision_model.config.image_size))
    pooled = model.vision_model(pixel_values=pixels.to(model.visual_projection.weight.dtype)).pooler_output
    return unit(model.visual_projection(pooled).float(), dim=-1)


# --- text ------------------------------------------------------------------------------------------------------------

_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'}  # noqa: RUF001
    | {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
)


def clean_text(text: str) -> str:
    """What OpenAI's tokenizer sees: plain quotes, no ligatures or HTML entities, single spaces, lower case.

    Agrees with ftfy as CLIP uses it, except that text which was decoded in a wrong encoding is not mended.
    """
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(_TYPOGRAPHY))
    return re.sub(r"\s+", " ", text).strip().lower()


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str], length: int) -> Int[Tensor, "P length"]:
    """Start, words, end, then zeros; what is too long keeps its end token."""
    rows = tokenizer([clean_text(p) for p in prompts], truncation=True, max_length=length).input_ids
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def read_tokenizer(path: str | Path, what: str, vocabulary: int = VOCABULARY) -> CLIPTokenizer:
    """CLIP's tokenizer of a folder.

    Raises:
        ModelError: its files are missing, damaged or another tokenizer's.
    """
    folder = find_file(path, ("tokenizer.json", "vocab.json"), f"{what}: tokenizer").parent
    return checked_tokenizer(
        lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True),
        vocabulary,
        what,
        folder,
        "openai/clip-vit-large-patch14",
    )


# --- weights ---------------------------------------------------------------------------------------------------------

_OPEN_CLIP = (
    (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_BUFFERS = re.compile(r"(.*\.)?(attn_mask|position_ids)|input_resolution|context_length|vocab_size")
"""What old checkpoints hold besides weights."""


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of OpenAI's or open_clip's CLIP under the names of transformers' CLIPModel."""
    out = {}
    for key, value in tensors.items():
        name = renamed(key, _OPEN_CLIP)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                out[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece
        elif key in ("visual.proj", "text_projection"):
            out[name] = value.T.contiguous()
        else:
            out[name] = value
    return out


def load_clip(
    path: str | Path,
    what: str = "clip",
    *,
    files: tuple[str, ...] = FILES,
    config: CLIPConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CLIPModel:
    """A CLIPModel from its folder, or from a checkpoint in open_clip's layout.

    Args:
        path: a folder with config.json and model.safetensors (or pytorch_model.bin), or one file.
        what: for errors.
        files: names of the weights in a folder, the preferred first.
        config: of the architecture; None reads config.json beside the weights.
        device: where it runs.
        dtype: of its weights.

    Raises:
        ModelError: files that are missing, damaged or of another architecture.
    """
    file = find_file(path, files, what)
    if config is None:
        try:
            config = CLIPConfig.from_dict(loads((file.parent / "config.json").read_bytes(), dict[str, Any]))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{what}: expected config.json of a CLIP beside {file}, received {error}. Download the whole folder."
            ) from error
    tensors = {key: value for key, value in read_tensors(file, what).items() if not _BUFFERS.fullmatch(key)}
    if "visual.conv1.weight" in tensors:
        tensors = from_open_clip(tensors)
    return build(lambda: CLIPModel(config), tensors, what, device, dtype)


def load_clip_reward(
    weights: str | Path,
    *,
    tokenizer: str | Path | None = None,
    name: str = "clip",
    files: tuple[str, ...] = FILES,
    config: CLIPConfig | None = None,
    fit: Fit = "crop",
    scale: Scale = "cosine",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CLIPReward:
    """A :class:`CLIPReward` from local files.

    Args:
        weights: as ``path`` of :func:`load_clip`.
        tokenizer: folder with OpenAI's vocab.json and merges.txt; None means the folder of the weights.
        name: for logs and messages.
        files: see :func:`load_clip`.
        config: see :func:`load_clip`.
        fit: see :class:`CLIPReward`.
        scale: see :class:`CLIPReward`.
        device: where it runs.
        dtype: of its weights; the score is computed in float32.

    Raises:
        ModelError: files that are missing, damaged or of another architecture.
    """
    weights = Path(weights).expanduser()
    words = tokenizer or (weights if weights.is_dir() else weights.parent)
    model = load_clip(weights, name, files=files, config=config, device=device, dtype=dtype)
    vocabulary = model.config.text_config.vocab_size
    return CLIPReward(model, read_tokenizer(words, name, vocabulary), name, fit=fit, scale=scale)


def load_hps_v1(weights: str | Path, **options) -> CLIPReward:
    """HPS v1: ``hpc.pth``; options of :func:`load_clip_reward`."""
    return load_clip_reward(weights, **{"name": "hpsv1", "files": ("hpc.pth",), "config": vit_l_14(), **options})


def load_hps_v2(weights: str | Path, **options) -> CLIPReward:
    """HPS v2 or v2.1: ``HPS_v2_compressed.pt`` or ``HPS_v2.1_compressed.pt``; options of :func:`load_clip_reward`."""
    files = ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt")
    defaults = {"name": "hpsv2.1", "files": files, "config": vit_h_14(), "fit": "pad"}
    return load_clip_reward(weights, **{**defaults, **options})


def load_pickscore(weights: str | Path, **options) -> CLIPReward:
    """PickScore: its folder; options of :func:`load_clip_reward`."""
    return load_clip_reward(weights, **{"name": "pickscore", "scale": "logit", **options})
