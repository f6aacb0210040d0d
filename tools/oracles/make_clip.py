"""Answers of open_clip, HPS v2's fork of it, and transformers' CLIPModel (PickScore's recipe) on tiny models."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from shared import DATA, IMAGE, LENGTH, PATCH, SIZES, VOCABULARY, bare, filled, listing, picture

OPS = torch.library.Library("torchvision", "DEF")  # torchvision's binary is not needed, only that these names exist
OPS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
OPS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

LOGIT_SCALE = {"logit_scale": np.float32(np.log(100.0))}
WIDTHS = {"embed_dim": 24, "text": 32, "vision": 48}
PROMPTS = [
    "A  corgi, wearing a red hat",
    "\u201ccurly\u201d \u2018quotes\u2019 and a \ufb01sh",
    "Caf\u0065\u0301 &amp; cr\u00e8me &amp;lt;br&gt;",
    "\uff26\uff35\uff2c\uff2c width!?",
    "3D render (4k) -- isn't it 1984's\tbest?",
    "",
    "日本 emoji 🎩",
    " ".join(["very"] * 90) + " long",
]


def tokens() -> np.ndarray:
    """Two prompts: start, words, end, zeros."""
    ids = np.zeros((2, LENGTH), np.int64)
    ids[0, :6] = [VOCABULARY - 2, 3, 14, 15, 9, VOCABULARY - 1]
    ids[1, :4] = [VOCABULARY - 2, 26, 5, VOCABULARY - 1]
    return ids


def tiny(clip, quick: bool) -> torch.nn.Module:
    """Two layers each, heads of width 16 and 24."""
    vision = {"layers": 2, "width": WIDTHS["vision"], "head_width": 24, "patch_size": PATCH, "image_size": IMAGE}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTHS["text"], "heads": 2, "layers": 2}
    return filled(clip.CLIP(WIDTHS["embed_dim"], vision, text, quick_gelu=quick), **LOGIT_SCALE)


def main() -> None:
    package = next(path for root in sys.path if (path := Path(root) / "hpsv2").is_dir())
    bare("hpsv2", package)
    fork = package / "src" / "open_clip"
    words = Path(find_spec("open_clip").submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    if not (fork / words.name).exists():
        shutil.copy(words, fork)  # the wheel of hpsv2 forgets it
    import open_clip
    from hpsv2.src import open_clip as hps
    from PIL import Image
    from torchvision.transforms.functional import to_tensor
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    out: dict[str, np.ndarray] = {"ids": tokens()}
    ids = torch.as_tensor(out["ids"])
    pictures = [Image.fromarray(picture(h, w, seed)) for seed, (h, w) in enumerate(SIZES)]
    with torch.no_grad():
        for name, quick in (("gelu", False), ("quick", True)):
            model = tiny(open_clip, quick)
            images = torch.stack([to_tensor(p) for p in pictures[:1]]) * 2 - 1
            out[f"{name}_image"] = model.encode_image(images).numpy()
            out[f"{name}_text"] = model.encode_text(ids).numpy()
        out["tiny_keys"] = listing(model.state_dict())

        model = tiny(hps, False)
        transform = hps.image_transform(IMAGE, is_train=False, resize_longest_max=True)
        images = torch.stack([transform(p) for p in pictures])
        out["hps_pixels"] = images[3:, :, ::3, ::3].numpy()
        images, texts, *_ = model(images, ids[:1])
        out["hps_score"] = (images @ texts.T)[:, 0].numpy()

        transform = open_clip.image_transform(IMAGE, is_train=False)  # OpenAI's recipe, HPS v1's
        model = tiny(open_clip, True)
        images, texts, _ = model(torch.stack([transform(p) for p in pictures]), ids[:1])
        out["hps_v1_score"] = (images @ texts.T)[:, 0].numpy()

        text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "hidden_act": "gelu"}
        text |= {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
        vision = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": IMAGE, "patch_size": PATCH, "hidden_act": "gelu"}
        model = filled(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), **LOGIT_SCALE)
        process = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
        pixels = process(pictures, return_tensors="pt")["pixel_values"]
        images, texts = model.get_image_features(pixels), model.get_text_features(ids[:1])
        images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
        out["pick_score"] = (model.logit_scale.exp() * texts @ images.T)[0].numpy()
        out["pick_keys"] = listing(model.state_dict())

    with torch.device("meta"):
        for name, config in (("vit_h_14", "ViT-H-14"), ("vit_l_14", "ViT-L-14-quickgelu")):
            config = open_clip.get_model_config(config)
            model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
            out[name] = listing(model.state_dict())
    tokenizer = open_clip.SimpleTokenizer()
    out["prompts"] = np.array(PROMPTS)
    out["cleaned"] = np.array([tokenizer.clean_fn(p) for p in PROMPTS])
    found = tokenizer(PROMPTS).numpy()
    out["prompt_ids"] = found
    used = sorted({i for i in found.flatten().tolist()})
    entries, merges = closure(tokenizer, used)
    out["vocabulary"] = np.array([f"{tokenizer.encoder[e]} {e}" for e in entries])
    out["merges"] = np.array(merges)
    np.savez_compressed(DATA / "reward_clip.npz", **out)


def closure(tokenizer, used: list[int]) -> tuple[list[str], list[str]]:
    """The entries of the vocabulary from which the used ones are merged, and those merges, in order."""
    parts = {a + b: (a, b) for (a, b) in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get, reverse=True)}
    todo, seen = [tokenizer.decoder[i] for i in used], set()
    while todo:
        entry = todo.pop()
        if entry not in seen:
            seen.add(entry)
            todo += parts.get(entry, ())
    chosen = [pair for pair in tokenizer.bpe_ranks if {*pair, "".join(pair)} <= seen]
    return sorted(seen, key=tokenizer.encoder.get), [" ".join(pair) for pair in chosen]


if __name__ == "__main__":
    main()
