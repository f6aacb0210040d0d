"""Answers of the image-reward package 1.5 and of DreamReward's Reward3D on tiny encoders with random weights."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from shared import BERT, BLIP_PROMPTS, BLIP_SIZES, BLIP_WORDS, DATA, bare, filled, listing, picture
from torch import nn

OPS = torch.library.Library("torchvision", "DEF")  # torchvision's binary is not needed, only that these names exist
OPS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
OPS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def shrink(models: str, folder: Path) -> None:
    """Tiny encoders and a tokenizer of a few words, in place of the large ones that the code names."""
    blip, pretrain = import_module(f"{models}.BLIP.blip"), import_module(f"{models}.BLIP.blip_pretrain")
    vit = import_module(f"{models}.BLIP.vit").VisionTransformer
    (folder / "vocab.txt").write_text("\n".join(BLIP_WORDS), encoding="utf-8")
    tokenizer = blip.BertTokenizer(str(folder / "vocab.txt"))
    width = BLIP_SIZES["vision_width"]
    pretrain.init_tokenizer = lambda: tokenizer
    pretrain.create_vit = lambda *args: (
        vit(img_size=224, patch_size=16, embed_dim=width, depth=2, num_heads=BLIP_SIZES["vision_heads"]),
        width,
    )


def read(model: nn.Module, length: int, images: torch.Tensor, prompts: list[str], call: str) -> tuple:
    """Scores of normalized images, and their gradient."""
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens = model.blip.tokenizer(prompts, **options)
    images, words = images.clone().requires_grad_(), (tokens.input_ids, tokens.attention_mask)
    scores = model(images, *words) if call == "forward" else getattr(model, call)(*words, images)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    return scores[:, 0].detach().numpy(), gradient[..., ::16, ::16].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reward3d", type=Path, help="a checkout of liuff19/DreamReward")
    checkout = parser.parse_args().reward3d
    linspace = torch.linspace
    torch.linspace = lambda *args: linspace(*args, device="cpu")  # drop path rates are read under the meta device
    from PIL import Image

    root = checkout / "Reward3D" if checkout else next(
        path for entry in sys.path if (path := Path(entry) / "ImageReward").is_dir()
    )  # fmt: skip
    package = root.name
    bare(package, root)
    bare(f"{package}.models", root / "models")
    prompts = [BLIP_PROMPTS[0]] * 3 + BLIP_PROMPTS[1:]
    pictures = [Image.fromarray(picture(224, 224, seed)) for seed in range(len(prompts))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full = {**BERT, "vocab_size": 30524, "num_hidden_layers": 12, "intermediate_size": 3072}
        (folder / "tiny.json").write_text(json.dumps(BERT))
        (folder / "full.json").write_text(json.dumps(full))
        module = import_module(f"{package}.{package}")
        create = import_module(f"{package}.models.BLIP.blip").create_vit
        shrink(f"{package}.models", folder)
        tiny = import_module(f"{package}.models.BLIP.blip_pretrain").create_vit
        out: dict[str, np.ndarray] = {}
        classes = {"scorer": "Reward3D_", "fusion": "Reward3D"} if checkout else {"image": "ImageReward"}
        for head, cls in classes.items():
            pretrain = import_module(f"{package}.models.BLIP.blip_pretrain")
            pretrain.create_vit = create
            with torch.device("meta"):
                out[f"{head}_full"] = listing(getattr(module, cls)(str(folder / "full.json")).state_dict())
            pretrain.create_vit = tiny
            model = filled(getattr(module, cls)(str(folder / "tiny.json")))
            out[f"{head}_keys"] = listing(model.state_dict())
            images = torch.stack([model.preprocess(p) for p in pictures[:4]])
            call, length = ("forward", 100) if checkout else ("score_gard", 35)
            scores, gradient = read(model, length, images, prompts[:4], call)
            out[f"{head}_score"], out[f"{head}_gradient"] = scores, gradient
            if not checkout:
                small = Image.fromarray(picture(300, 257, 9))
                out["image_resized"] = np.array([model.score(prompts[0], small)])
                out["image_prompts"] = np.array([model.score(text, pictures[0]) for text in BLIP_PROMPTS])
    np.savez_compressed(DATA / ("reward_reward3d.npz" if checkout else "reward_imagereward.npz"), **out)


if __name__ == "__main__":
    main()
