"""The text tower before the prior: what the last one said of its captions, what a sentence encoder says of all, and
what things look like.

    python -m mini.train_text --pack PACK --init ../src/psd_gs/assets/mini/prior --out ../runs/text

Word vectors are fixed (``words.py``). The layers above, and the pooling beside the time in the U-Net, learn three
things: on captions of the procedural grammar, the features that the U-Net of ``--init`` knows; on names, their synonyms
and captions, to carry the meaning of the whole phrase (all-MiniLM-L6-v2) in the state of its last token; and on
captions of renders, that the pooled text tells on a straight line how the thing looks (``looks.py``). The last is what
CLIP brings to larger priors. Minutes on a CPU; what comes out is the pipeline of ``--init`` with another text tower,
for ``train_prior`` to start from.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mini.check_names import asked_for
from mini.looks import looks_of
from mini.names import spoken
from mini.networks import SHARD, TEXT_WIDTH, TIME_WIDTH, make_text_encoder
from mini.objects import CATEGORIES
from mini.pack import Pack
from mini.scenes import COLOURS, article, caption, sample_look, sample_scene
from mini.words import known_words, make_tokenizer, sentence_vectors, word_vectors
from mini.world import World
from psd_gs.priors.mini import computes_in_bfloat16
from psd_gs.priors.multiview import encode_prompts
from psd_gs.priors.multiview_pipeline import MultiViewPipeline

SIZE = 32
"""Pixels per side of the renders whose looks are learned."""
THINGS = 3
"""Captions of things for each of the other kinds."""
NOISE = 0.2
"""On the vectors of words in captions of things, of their deviation: words like the known ones shall look like them."""
WEIGHTS = {"looks": 1.0, "features": 1.2, "pooled": 3.0, "meaning": 0.3}


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


class Tower(nn.Module):
    """Text encoder and pooling, and what is read off them while they are trained.

    Args:
        pipeline: whose tower it begins as, but for another vocabulary.
        folder: gets the tokenizer.
        looks: numbers that tell how a thing looks.
        meaning: length of a sentence vector.
    """

    def __init__(self, pipeline: MultiViewPipeline, folder: Path, looks: int, meaning: int) -> None:
        super().__init__()
        words = known_words()
        self.tokenizer = make_tokenizer(words, folder)
        self.encoder = copy.deepcopy(pipeline.text_encoder)
        if pipeline.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            self.encoder = make_text_encoder(self.tokenizer, word_vectors(words, TEXT_WIDTH))
            own, state = self.encoder.state_dict(), pipeline.text_encoder.state_dict()
            self.encoder.load_state_dict({k: own[k] if "token_embedding" in k else v for k, v in state.items()})
        self.encoder.get_input_embeddings().requires_grad_(False)
        self.pool = copy.deepcopy(pipeline.unet.add_embedding)
        self.looks, self.meaning = nn.Linear(TIME_WIDTH, looks), nn.Linear(TEXT_WIDTH, meaning)
        self.noisy = 0
        """How many of the last captions get noise on their words."""
        self.noise = self.encoder.get_input_embeddings().register_forward_hook(self._with_noise)

    def _with_noise(self, module: nn.Module, inputs: object, vectors: Tensor) -> Tensor:
        clean = len(vectors) - self.noisy
        noise = NOISE * module.weight.std() * torch.randn_like(vectors[clean:])
        return torch.cat([vectors[:clean], vectors[clean:] + noise])

    def forward(self, captions: list[str], noisy: int = 0) -> tuple[Tensor, Tensor]:
        """States of all tokens, and the pooled text, of which the last ``noisy`` captions have noise."""
        self.noisy = noisy
        states = encode_prompts(self.tokenizer, self.encoder, captions)
        return states, self.pool(states)

    def ends(self, states: Tensor, captions: list[str]) -> Tensor:
        """The state of the token that ends each caption."""
        lengths = [len(ids) for ids in self.tokenizer(captions, truncation=True).input_ids]
        return states[torch.arange(len(captions)), torch.tensor(lengths) - 1]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="gets the pipeline with the new text tower")
    parser.add_argument("--init", type=Path, required=True, help="pipeline whose features are taken over")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48, help=f"captions of a kind; {THINGS} times as many of things")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    old = MultiViewPipeline.from_pretrained(args.init)
    old.text_encoder.float().eval()
    old.unet.float()
    world = World(Pack(args.pack), SIZE)
    looks = looks_of(world)
    spread = looks.numbers.var(0).sum()
    tower = Tower(old, args.out / "tokenizer", looks.numbers.shape[1], sentence_vectors(["a"]).shape[1])
    parameters = [p for p in tower.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05, cycle_momentum=False)
    quick = torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16())
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    source = phrases(world.pack, rng)
    mean: dict[str, float] = {}

    @torch.no_grad()
    def right(synonyms: bool) -> float:
        """How often the pooled text alone tells the right one of 20."""
        rows = asked_for(world, synonyms)
        with quick:
            pooled = tower([article(asked.said) for asked in rows])[1]
        return looks.right(tower.looks(pooled.float()), rows)

    for step in range(1, args.steps + 1):
        known, free = old_captions(rng, args.batch), [next(source) for _ in range(args.batch)]
        chosen = torch.randint(len(looks.captions), (THINGS * args.batch,), generator=generator)
        things = [looks.captions[i] for i in chosen]
        with torch.no_grad(), quick:
            features = encode_prompts(old.tokenizer, old.text_encoder, known)
            targets = features.float(), old.unet.add_embedding(features).float()
            sense = sentence_vectors(free).float()
        with quick, sdpa_kernel(SDPBackend.MATH):  # the fused attention's backward pass is slow on CPUs
            states, pooled = (x.float() for x in tower([*known, *free, *things], len(things)))
        middle = slice(len(known), len(known) + len(free))
        said = tower.looks(pooled[middle.stop :]), tower.meaning(tower.ends(states[middle], free))
        losses = {
            "looks": (said[0] - looks.numbers[chosen]).square().sum(1).mean() / spread,
            "features": (states[: len(known)] - targets[0]).square().mean(),
            "pooled": (pooled[: len(known)] - targets[1]).square().mean(),
            "meaning": 1 - nn.functional.cosine_similarity(said[1], sense).mean(),
        }
        loss = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        mean = {name: 0.97 * mean.get(name, value.item()) + 0.03 * value.item() for name, value in losses.items()}
        if step % 50 == 0:
            told = {"names": right(synonyms=False), "synonyms": right(synonyms=True)}
            print(json.dumps({"step": step} | {k: round(v, 4) for k, v in (mean | told).items()}), flush=True)
    tower.noise.remove()
    old.unet.add_embedding.load_state_dict(tower.pool.state_dict())
    old.register_modules(tokenizer=tower.tokenizer, text_encoder=tower.encoder.half())
    old.unet.half()
    old.save_pretrained(args.out, max_shard_size=SHARD)


if __name__ == "__main__":
    main()
