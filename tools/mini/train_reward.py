"""Train the embedded reward, or the judge, on synthetic preferences.

    cd tools
    python -m mini.train_reward --model reward --pack PACK --out ../runs/reward --prior ../runs/prior/pipeline
    python -m mini.train_reward --model judge --pack PACK --out ../runs/judge --prior ../runs/prior/pipeline

Stop it whenever you like: the same command goes on from the last checkpoint. ``--init FOLDER`` starts from published
fp16 weights instead, with the optimizers warmed up and the helper begun again. The model is written to OUT/model with
``metrics.json``: accuracies on episodes that were not trained on, of known things.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from mini.check_reward import lists_accuracy
from mini.checkpoint import Checkpoint
from mini.corruptions import JUDGE, REWARD
from mini.dreamer import Dreamer
from mini.episodes import Scenes
from mini.muon import Muon
from mini.pack import Pack
from mini.preferences import LOOKS, Batch, EpisodeMaker
from mini.published import lite0_state, minilm_state, minilm_tokenizer
from mini.words import known_words, make_tokenizer, sentence_vectors, word_vectors
from mini.world import World
from psd_gs.files import write_atomic
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.rewards.mini import MiniReward, RewardConfig, RewardNetwork, TextFeatures

SIZE = 128
"""Pixels per side of the pictures that are drawn."""
MEANING = 384
"""Width of the sentence encoder that the helper of training speaks to."""
MODELS = {
    "reward": ({"architecture": "conv", "text": "words", "image_size": 96, "text_layers": 1}, REWARD),
    "judge": ({"architecture": "frozen", "text": "sentence", "image_size": SIZE, "text_layers": 6}, JUDGE),
}
VALIDATION = 10**9
"""Seed of the episodes that are not trained on."""
VALIDATION_EPISODES = 480
DREAMS = 0.25
"""Share of the steps that are about dreams of the prior, if there is one."""

DREAM_STEPS = {"reward": 1, "judge": 3}
"""One is what preference distillation ranks; finished samples, which the judge learns from, have other faults."""

VIEW_MIX = ((4, 0.35), (2, 0.2), (1, 0.45))
"""Views per set and how often; batches of fewer views have more episodes."""


def start_network(model: str, out: Path) -> tuple[RewardNetwork, PreTrainedTokenizerFast]:
    """With what others have trained: the judge's features and sentence encoder, vectors of the reward's words."""
    overrides, _ = MODELS[model]
    config = RewardConfig(vocab_size=0, **overrides)
    by_word = config.text == "words"
    tokenizer = make_tokenizer(known_words(), out / "tokenizer") if by_word else minilm_tokenizer(config.text_length)
    network = RewardNetwork(replace(config, vocab_size=len(tokenizer)))
    if by_word:
        network.text.get_input_embeddings().weight = nn.Parameter(word_vectors(known_words(), config.width))
    else:
        network.text.encoder.load_state_dict(minilm_state(config.text_length))
    if config.architecture == "frozen":
        network.tower.features.load_state_dict(lite0_state())
    return network, tokenizer


class Student(nn.Module):
    """The network with the helper of training: a set tells what its caption means to the sentence encoder."""

    def __init__(self, network: RewardNetwork) -> None:
        super().__init__()
        self.network = network
        self.meaning = nn.Linear(network.config.width, MEANING)

    def forward(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all pairs, ``[E * 4 * 4]``, and the loss of the helper."""
        episodes = batch.images.shape[0]
        image = self.network.encode_images(batch.images.flatten(0, 1))
        text = self.network.encode_text(ids)
        repeat = lambda t: t.unflatten(0, (episodes, LOOKS)).repeat_interleave(LOOKS, 0).flatten(0, 1)  # noqa: E731
        scores = self.network(image, TextFeatures(repeat(text.states), repeat(text.mask)), LOOKS)
        if not batch.right.any():
            return scores, scores.new_zeros(())
        wanted = sentence_vectors([text for text, right in zip(batch.captions, batch.right, strict=True) if right])
        said = self.meaning(image.summary[batch.right]).float()
        return scores, (1 - F.cosine_similarity(said, wanted.to(said.device))).mean()

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def make_optimizers(student: Student, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    matrices, rest = [], []
    for name, p in student.trained().items():
        (matrices if p.ndim == 2 and "position" not in name else rest).append(p)
    return [
        Muon(matrices, lr, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True),
    ]


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding=True, truncation=True, return_tensors="pt").input_ids


WEIGHTS = {"quality": 3.0, "severity": 3.0, "blend": 2.0, "dream": 3.0} | {
    f"{right}/{detail}": 3.0 for right in ("caption", "picture") for detail in ("part", "accessory", "material")
}
"""Of the preferences that are few in an episode or about details; 1 for the others."""


def preference_loss(scores: Tensor, batch: Batch) -> Tensor:
    """Bradley-Terry: minus the log-probability that the better of two wins."""
    weights = torch.tensor([WEIGHTS.get(kind, WEIGHTS.get(kind.split("/")[0], 1.0)) for kind in batch.kinds])
    return (weights * F.softplus(scores[batch.worse] - scores[batch.better])).sum() / weights.sum()


@torch.no_grad()
def validate(
    student: Student, tokenizer: PreTrainedTokenizerFast, maker: EpisodeMaker, episodes: int, dreamer: Dreamer | None
) -> dict:
    """Accuracy by kind of preference, and mean and standard deviation of the scores (dreams apart)."""
    rng, generator = random.Random(VALIDATION), torch.Generator().manual_seed(VALIDATION)
    right: dict[str, list[bool]] = defaultdict(list)

    def judge(batch: Batch, about: str = "") -> Tensor:
        scores, _ = student(batch, token_ids(tokenizer, batch.captions))
        for won, kind in zip((scores[batch.better] > scores[batch.worse]).tolist(), batch.kinds, strict=True):
            if kind.startswith(about):
                right[kind].append(won)
                right[kind.split("/")[0]].append(won)
        return scores

    seen = torch.cat([judge(maker.batch(4, 4, rng, generator)) for _ in range(-(-episodes // 4))])
    preferences = sum(len(won) for kind, won in right.items() if "/" not in kind)
    for _ in range(-(-episodes // 8) if dreamer else 0):
        judge(maker.dreams(2, dreamer, rng, generator), "dream")
    return {
        "accuracy": {k: round(sum(v) / len(v), 4) for k, v in sorted(right.items())},
        "preferences": preferences,
        "mean": float(seen.mean()),
        "std": float(seen.std()),
    }


class Batches(Dataset):
    """The batch of every step; None where the step is about dreams, which need the prior."""

    def __init__(self, pack: Path, model: str, episodes: int, dreams: float) -> None:
        self.pack, self.model, self.episodes, self.dreams = pack, model, episodes, dreams
        self.maker: EpisodeMaker | None = None

    def __getitem__(self, step: int) -> Batch | None:
        rng, generator = seeds(self.model, step)
        if rng.random() < self.dreams:
            return None
        if self.maker is None:
            self.maker = make_episodes(self.pack, self.model)
        views = rng.choices(*zip(*VIEW_MIX, strict=True))[0]
        return self.maker.batch(round(self.episodes * (4 / views) ** 0.6), views, rng, generator)


def seeds(model: str, step: int) -> tuple[random.Random, torch.Generator]:
    seed = (list(MODELS).index(model) + 1) * 1_000_003 + step
    return random.Random(seed), torch.Generator().manual_seed(seed)


def make_episodes(pack: Path, model: str) -> EpisodeMaker:
    return EpisodeMaker(Scenes(World(Pack(pack), SIZE)), MODELS[model][1])


def batches(args: argparse.Namespace, dreamer: Dreamer | None, step: int) -> Iterator[Batch]:
    """From ``step`` on; drawn by ``--workers`` processes, dreams apart."""
    data = Batches(args.pack, args.model, args.episodes, DREAMS if dreamer else 0.0)
    loader = DataLoader(
        data, sampler=range(step, args.steps), batch_size=None, num_workers=args.workers,
        prefetch_factor=2 if args.workers else None,
    )  # fmt: skip
    maker = make_episodes(args.pack, args.model) if dreamer else None
    for number, batch in enumerate(loader, step):
        if batch is None:
            assert maker is not None
            assert dreamer is not None
            batch = maker.dreams(max(1, args.episodes // 2), dreamer, *seeds(args.model, number))
        yield batch


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, curve and the model")
    parser.add_argument("--init", type=Path, help="start from this saved model (fp16 will do)")
    parser.add_argument("--prior", type=Path, help="learn from dreams of this saved prior too")
    parser.add_argument("--steps", type=int, default=8000, help="stop there")
    parser.add_argument("--episodes", type=int, default=12, help="per step, of four sets of four views")
    parser.add_argument("--validation", type=int, default=VALIDATION_EPISODES, help="episodes that measure the result")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument(
        "--decay", type=float, default=0.35, help="fraction of the steps, at the end, over which lr goes to 0"
    )
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--fp32", action="store_true", help="train in fp32 (CPUs without bf16 instructions)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(list(MODELS).index(args.model) + 1)
    if args.init:
        published = MiniReward.from_pretrained(args.init)
        network, tokenizer = RewardNetwork(published.network.config), published.tokenizer
        network.load_state_dict(published.network.state_dict())
    else:
        network, tokenizer = start_network(args.model, args.out)
    if network.config.text == "words":  # like words keep like vectors
        network.text.get_input_embeddings().requires_grad_(False)
    student = Student(network)
    parameters = student.trained()
    optimizers = make_optimizers(student, args.lr)
    average = copy.deepcopy(student).requires_grad_(False)
    means = dict(average.named_parameters())
    kept = {f"model.{n}": p for n, p in parameters.items()} | {f"ema.{n}": means[n] for n in parameters}
    checkpoint = Checkpoint(args.out / "checkpoint.safetensors", kept, optimizers)
    (step,) = checkpoint.load(step=0)
    dreamer = None
    if args.prior:
        dreamer = Dreamer(MultiViewPrior.from_pretrained(args.prior, name="mini"), DREAM_STEPS[args.model])

    def finish() -> None:
        """Standardize, write the model and measure it."""
        average.eval()
        maker = make_episodes(args.pack, args.model)
        numbers = validate(average, tokenizer, maker, args.validation, dreamer)
        standard = replace(network.config, score_mean=numbers["mean"], score_std=numbers["std"])
        final = RewardNetwork(standard)
        final.load_state_dict({k: v.half().float() for k, v in average.network.state_dict().items()})
        reward = MiniReward(final, tokenizer, args.model)
        reward.save_pretrained(args.out / "model")
        metrics = {
            "steps": step,
            "parameters": sum(p.numel() for p in final.parameters()),
            "preferences": numbers["preferences"],
            "accuracy": numbers["accuracy"],
            "lists": lists_accuracy(reward, maker.scenes.world, rows=args.validation),
        }
        write_atomic(args.out / "model" / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        print(json.dumps(metrics, indent=2), flush=True)

    curve = (args.out / "curve.jsonl").open("a")
    running: list[float] | None = None
    start, first = time.time(), step
    for batch in batches(args, dreamer, step):
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.fp32):
            scores, helper = student(batch, token_ids(tokenizer, batch.captions))
        loss = preference_loss(scores, batch)
        (loss + 0.3 * helper).backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        left = (args.steps - step) / max(1, args.decay * args.steps)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = args.lr * min(1.0, left, (step - first + 1) / 100)
            optimizer.step()
            optimizer.zero_grad()
        weight = 1 - min(args.ema, step / (step + 10))
        torch._foreach_lerp_([means[n] for n in parameters], [p.detach() for p in parameters.values()], weight)
        step += 1
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {step}; lower --lr and go on from the last checkpoint")
        right = float((scores[batch.better] > scores[batch.worse]).float().mean())
        now = [loss.item(), helper.item(), right]
        running = now if running is None else [0.98 * a + 0.02 * b for a, b in zip(running, now, strict=True)]
        if step % 25 == 0:
            rate = (step - first) / (time.time() - start)
            row = dict(zip(("loss", "helper", "accuracy"), (round(x, 4) for x in running), strict=True))
            row = {"step": step, **row, "steps_per_s": round(rate, 3)}
            curve.write(json.dumps(row) + "\n")
            curve.flush()
            print(row, flush=True)
        if step % args.save_every == 0 or step == args.steps:
            checkpoint.save(step=step)
    finish()


if __name__ == "__main__":
    main()
