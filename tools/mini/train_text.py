"""The text encoder before the prior: what the last one said of its captions, and what a sentence encoder says of all.

    python -m mini.train_text --pack PACK --out ../runs/text --init ../src/psd_gs/assets/mini/prior

Word vectors are fixed (``words.py``). The layers above learn two things: on captions of the procedural grammar, the
features of the encoder that the U-Net of ``--init`` was trained with; on names, their synonyms and captions, to carry
the meaning of the whole phrase (all-MiniLM-L6-v2) in the state of its last token. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mini.names import spoken
from mini.networks import TEXT_WIDTH, make_text_encoder
from mini.objects import CATEGORIES
from mini.pack import Pack
from mini.scenes import COLOURS, article, caption, sample_look, sample_scene
from mini.words import known_words, make_tokenizer, sentence_vectors, word_vectors
from psd_gs.priors.multiview import encode_prompts
from psd_gs.priors.multiview_pipeline import MultiViewPipeline


def old_captions(rng: random.Random, n: int) -> list[str]:
    """Of the procedural grammar; without "3d", which the two tokenizers cut differently."""
    out: list[str] = []
    core = tuple(c for c in CATEGORIES if c.core)
    while len(out) < n:
        text = caption(sample_look(sample_scene(rng, core), rng), rng)
        if "3d" not in text:
            out.append(text)
    return out


def phrases(pack: Pack, rng: random.Random) -> Iterator[str]:
    """Names and synonyms as captions say them, plain, coloured and in pairs."""
    names = list(pack.names.values())
    while True:
        name, other = rng.choice(names), rng.choice(names)
        text = rng.choice(spoken(name))
        kind = rng.random()
        if kind < 0.25:
            text = f"{rng.choice(list(COLOURS))} {text}"
        text = article(text) if name.article else text
        if kind > 0.8:
            text = f"{text} {rng.choice(('on', 'next to'))} {article(other.caption)}"
        yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="gets tokenizer and text_encoder")
    parser.add_argument("--init", type=Path, required=True, help="published pipeline whose features are taken over")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64, help="captions of either kind")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    old = MultiViewPipeline.from_pretrained(args.init)
    old.text_encoder.float().eval()
    words = known_words()
    tokenizer = make_tokenizer(words, args.out / "tokenizer")
    encoder = make_text_encoder(tokenizer, word_vectors(words, TEXT_WIDTH))
    state = old.text_encoder.state_dict()
    own = encoder.state_dict()
    encoder.load_state_dict({k: own[k] if "token_embedding" in k else v for k, v in state.items()})
    meaning = nn.Linear(TEXT_WIDTH, sentence_vectors(["a"]).shape[1])
    parameters = [p for p in (*encoder.parameters(), *meaning.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    rng = random.Random(0)
    source = phrases(Pack(args.pack), rng)
    mean = {"features": 0.0, "meaning": 0.0}
    for step in range(1, args.steps + 1):
        known, free = old_captions(rng, args.batch), [next(source) for _ in range(args.batch)]
        with torch.no_grad():
            target = encode_prompts(old.tokenizer, old.text_encoder, known)
            sense = sentence_vectors(free)
        states = encode_prompts(tokenizer, encoder, known + free)
        ends = states[args.batch :][torch.arange(args.batch), _last(tokenizer, free)]
        said = nn.functional.cosine_similarity(meaning(ends), sense)
        losses = {"features": (states[: args.batch] - target).square().mean(), "meaning": (1 - said).mean()}
        loss = losses["features"] + 0.3 * losses["meaning"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            mean[name] = value.item() if step == 1 else 0.97 * mean[name] + 0.03 * value.item()
        if step % 50 == 0:
            print(json.dumps({"step": step} | {k: round(v, 4) for k, v in mean.items()}), flush=True)
    encoder.half().save_pretrained(args.out / "text_encoder")


def _last(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Index of the token that ends each text."""
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True).input_ids]
    return torch.tensor(lengths) - 1


if __name__ == "__main__":
    main()
