"""Published rewards in miniature: the architectures of ``tools/oracles``, in the published files' layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from oracles.shared import BERT, BLIP_SIZES, BLIP_WORDS, DATA, IMAGE, LENGTH, PATCH, VOCABULARY, parse, picture, weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig

from psd_gs.rewards import aesthetic
from psd_gs.rewards.blip import BlipSizes

AESTHETIC_LAYERS = {0: (1024, 24), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
BLIP_FILES = {"image": "ImageReward.pt", "scorer": "Reward3D_Scorer.pt", "fusion": "Reward3D_CrossViewFusion.pt"}


def answers(*names: str) -> dict[str, np.ndarray]:
    """What the references said: ``clip``, ``imagereward``, ``reward3d``."""
    out: dict[str, np.ndarray] = {}
    for name in names:
        with np.load(DATA / f"reward_{name}.npz") as file:
            out |= dict(file)
    return out


def random_state(listing: np.ndarray, **other_shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """The oracles' random weights under the reference's names, floating-point tensors only."""
    rows = {name: shape for name, shape in parse(listing).items() if "position_ids" not in name}
    made = {name: torch.as_tensor(value) for name, value in weights(rows | other_shapes).items()}
    return made | ({"logit_scale": torch.tensor(100.0).log()} if "logit_scale" in made else {})


def pictures(*seeds: int, size: tuple[int, int] = (224, 224)) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1]."""
    return torch.stack([torch.as_tensor(picture(*size, seed)).permute(2, 0, 1) for seed in seeds]) / 255


def clip_config(act: str = "gelu", vocabulary: int = VOCABULARY, length: int = LENGTH) -> CLIPConfig:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    text = {"hidden_size": 32, "intermediate_size": 128, "vocab_size": vocabulary, "max_position_embeddings": length}
    vision = {"hidden_size": 48, "intermediate_size": 192, "image_size": IMAGE, "patch_size": PATCH}
    return CLIPConfig(text_config=tower | text | special, vision_config=tower | vision, projection_dim=24)


def clip_folder(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """config.json and model.safetensors in transformers' layout."""
    embedding = {"text_model.embeddings.token_embedding.weight": (vocabulary, 32)}
    save_file(random_state(answers("clip")["pick_keys"], **embedding), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(clip_config(vocabulary=vocabulary).to_dict()), encoding="utf-8")
    return folder


def hps_checkpoints(folder: Path, vocabulary: int) -> Path:
    """HPS v1, v2 and v2.1 in open_clip's layout."""
    tensors = random_state(answers("clip")["tiny_keys"], **{"token_embedding.weight": (vocabulary, 32)})
    for name in ("hpc.pth", "HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        torch.save(tensors, folder / name)
    return folder


def aesthetic_heads(folder: Path) -> Path:
    """Both heads, to go beside a tiny CLIP; only the width of the published ones, 768, is changed."""
    mlp = {f"layers.{i}.weight": shape for i, shape in AESTHETIC_LAYERS.items()}
    mlp |= {f"layers.{i}.bias": shape[:1] for i, shape in AESTHETIC_LAYERS.items()}
    for name, rows in zip(aesthetic.FILES, (mlp, {"weight": (1, 24), "bias": (1,)}), strict=True):
        torch.save({key: torch.as_tensor(value) for key, value in weights(rows).items()}, folder / name)
    return folder


def blip_sizes() -> BlipSizes:
    width, heads = BLIP_SIZES["vision_width"], BLIP_SIZES["vision_heads"]
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2, "num_attention_heads": heads}
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    text = {key: BERT[key] for key in same}
    return BlipSizes(
        BlipVisionConfig(**tower, image_size=224, patch_size=16, layer_norm_eps=1e-6),
        BlipTextConfig(**text, encoder_hidden_size=width, is_decoder=True),
    )


def blip_folder(folder: Path, head: str) -> Path:
    """The authors' state dict, buffers and all, and a tokenizer of a few words."""
    tensors = random_state(answers("imagereward", "reward3d")[f"{head}_keys"])
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(tensors, folder / BLIP_FILES[head])
    (folder / "vocab.txt").write_text("\n".join(BLIP_WORDS), encoding="utf-8")
    return folder
