"""Train the embedded reward, or the judge, on synthetic preferences.

    cd tools
    python -m mini.dataset --out ../runs/data --sets 12288
    python -m mini.train_reward --model reward --data ../runs/data --out ../runs/reward --steps 4000
    python -m mini.train_reward --model judge --data ../runs/data --out ../runs/judge --steps 4000

Stop it whenever you like: the same command goes on from the last checkpoint. ``--init FOLDER`` starts from published
fp16 weights instead, with the optimizers warmed up and the helpers begun again. The model is written to
OUT/model with ``metrics.json``: accuracies on geometry that was not trained on.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from mini.check_reward import held_out_accuracy, prompt_accuracy
from mini.corruptions import JUDGE, REWARD
from mini.dataset import Sets
from mini.dreamer import Dreamer
from mini.objects import CATEGORIES
from mini.preferences import LOOKS, PART_ID, Batch, EpisodeMaker
from mini.scenes import COLOUR_WORDS, vocabulary
from mini.tokenizer import train_tokenizer
from mini.variants import CATEGORY_ID, NAMES
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.rewards.mini import MiniReward, RewardConfig, RewardNetwork, TextFeatures

MODELS = {
    "reward": ({"architecture": "conv", "channels": (48, 96), "depth": 3, "fusion_depth": 2, "text_layers": 1}, REWARD),
    "judge": ({"architecture": "patch", "width": 96, "channels": (64, 0), "depth": 3, "fusion_depth": 2}, JUDGE),
}
HELD_BACK = 512
"""The last sets of the data are for validation."""

VALIDATION_EPISODES = 480
DREAMS = 0.25
"""Share of the steps that are about dreams of the prior, if there is one."""

DREAM_STEPS = {"reward": 1, "judge": 3}
"""One is what preference distillation ranks; finished samples, which the judge learns from, have other faults."""

VIEW_MIX = ((4, 0.35), (2, 0.2), (1, 0.45))
"""Views per set and how often; batches of fewer views have more episodes."""


def word_labels(tokenizer: CLIPTokenizer, names: dict[str, int]) -> Tensor:
    """What each token stands for: the value of the name that it is, or else ends; 0 for none, or several."""
    vocabulary = tokenizer.get_vocab()
    meanings: dict[str, set[int]] = defaultdict(set)
    for name, value in names.items():
        meanings[name.split()[-1]].add(value)
    labels = torch.zeros(len(tokenizer), dtype=torch.long)
    for word, values in meanings.items():
        if word in names or len(values) == 1:
            labels[vocabulary[word + "</w>"]] = names.get(word) or min(values)
    return labels


class Student(nn.Module):
    """The network with the helpers of training.

    Each cell of each view tells the category, the part and the colour that it shows, each noun its meaning and its
    colour, and both through the same layers, so that words and pictures come to share a space.
    """

    def __init__(self, config: RewardConfig, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.network = RewardNetwork(config)
        self.categories = nn.Linear(config.width, len(CATEGORIES) + 1)
        self.colours = nn.Linear(config.width, len(NAMES) + 1)
        self.parts = nn.Linear(config.width, len(PART_ID) + 1)
        categories = {name: CATEGORY_ID[c.name] for c in CATEGORIES for name in c.names}
        colours = {word: i + 1 for i, name in enumerate(NAMES) for word in (name, *COLOUR_WORDS.get(name, ()))}
        self.words = [word_labels(tokenizer, names) for names in (categories, PART_ID, colours)]

    def forward(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all pairs, ``[E * 4 * 4]``, and the loss of the helpers."""
        episodes = batch.images.shape[0]
        image = self.network.encode_images(batch.images.flatten(0, 1))
        text = self.network.encode_text(ids)
        repeat = lambda t: t.unflatten(0, (episodes, LOOKS)).repeat_interleave(LOOKS, 0).flatten(0, 1)  # noqa: E731
        scores = self.network(image, TextFeatures(repeat(text.states), repeat(text.mask)), LOOKS)
        shown = batch.rendered
        nouns, parts, colours = (labels[ids] for labels in self.words)
        adjectives = torch.where(nouns + parts > 0, colours.roll(1, 1), 0)  # "a red car": the word before the noun
        heads = (self.categories, self.parts, self.colours)
        helper = scores.new_zeros(())
        for head, cells, words in zip(
            heads, (shown.categories, shown.parts, shown.colours), (nouns, parts, adjectives), strict=True
        ):
            weight = torch.ones(head.out_features)
            weight[0] = 0.15
            target = cells[batch.labelled].flatten()
            if len(target):
                guess = head(image.tokens[batch.labelled]).float().flatten(0, 1)
                helper = helper + F.cross_entropy(guess, target, weight)
            if (words > 0).any():
                helper = helper + 0.3 * F.cross_entropy(head(text.states[words > 0]).float(), words[words > 0])
        return scores, helper


def make_optimizers(student: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, with AdamW's step size) for the matrices, AdamW for the rest."""
    by_kind: dict[bool, list[tuple[int, nn.Parameter]]] = {True: [], False: []}
    for i, (name, p) in enumerate(student.named_parameters()):
        by_kind[p.ndim == 2 and "position" not in name and "embedding" not in name].append((i, p))
    matrices, rest = ({"params": [p for _, p in ps], "index": [i for i, _ in ps]} for ps in by_kind.values())
    return [
        torch.optim.Muon([matrices], lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([rest], lr=lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True),
    ]


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
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
    network: RewardNetwork,
    tokenizer: CLIPTokenizer,
    maker: EpisodeMaker,
    episodes: int,
    dreamer: Dreamer | None = None,
    views: int = 4,
) -> dict:
    """Accuracy by kind of preference, and mean and standard deviation of the scores (dreams apart)."""
    rng, generator = random.Random(9), torch.Generator().manual_seed(9)
    student = Student(network.config, tokenizer)
    student.network = network
    of_pictures: dict[str, list[bool]] = defaultdict(list)
    of_dreams: dict[str, list[bool]] = defaultdict(list)

    def judge(batch: Batch, right: dict[str, list[bool]]) -> Tensor:
        scores, _ = student(batch, token_ids(tokenizer, batch.captions))
        for won, kind in zip((scores[batch.better] > scores[batch.worse]).tolist(), batch.kinds, strict=True):
            right[kind].append(won)
            right[kind.split("/")[0]].append(won)
        return scores

    seen = torch.cat([judge(maker.batch(12, views, rng, generator), of_pictures) for _ in range(episodes // 12)])
    if dreamer:
        for _ in range(episodes // 24):
            judge(maker.dreams(6, dreamer, rng, generator), of_dreams)
    right = of_pictures | {kind: won for kind, won in of_dreams.items() if kind.startswith("dream")}
    return {
        "accuracy": {k: round(sum(v) / len(v), 4) for k, v in sorted(right.items())},
        "preferences": sum(len(v) for k, v in of_pictures.items() if "/" not in k),
        "mean": float(seen.mean()),
        "std": float(seen.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that mini.dataset wrote, at 64 pixels")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, curve and the model")
    parser.add_argument("--init", type=Path, help="start from this saved model (fp16 will do)")
    parser.add_argument("--prior", type=Path, help="learn from dreams of this saved prior too")
    parser.add_argument("--steps", type=int, default=4000, help="stop there")
    parser.add_argument("--episodes", type=int, default=12, help="per step, of four sets of four views")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument(
        "--decay", type=float, default=0.35, help="fraction of the steps, at the end, over which lr goes to 0"
    )
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--fp32", action="store_true", help="train in fp32 (CPUs without bf16 instructions)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    seed = list(MODELS).index(args.model) + 1
    overrides, corruptions = MODELS[args.model]
    published = MiniReward.from_pretrained(args.init) if args.init else None
    tokens = args.init or args.out / "tokenizer"  # its training breaks ties at random: once only
    tokenizer = CLIPTokenizer.from_pretrained(tokens) if tokens.exists() else train_tokenizer(vocabulary(), tokens)
    torch.manual_seed(seed)
    config = RewardConfig(vocab_size=len(tokenizer), text_length=tokenizer.model_max_length, **overrides)
    student = Student(config, tokenizer)
    if published:
        student.network.load_state_dict(published.network.state_dict())
    parameters = list(student.parameters())
    optimizers = make_optimizers(student, args.lr)
    average = copy.deepcopy(student).requires_grad_(False)
    step = 0
    checkpoint = args.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state = load_file(checkpoint)
        step = int(state["step"])
        student.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        average.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("ema.")})
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for i, p in zip(group["index"], group["params"], strict=True):
                    prefix = f"optimizer.{i}."
                    optimizer.state[p] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    data = Sets(args.data)
    dreamer = None
    if args.prior:
        dreamer = Dreamer(MultiViewPrior.from_pretrained(args.prior, name="mini"), DREAM_STEPS[args.model])
    train = EpisodeMaker(data, range(len(data) - HELD_BACK), corruptions)
    held_back = EpisodeMaker(data, range(len(data) - HELD_BACK, len(data)), corruptions)

    def save() -> None:
        state: dict[str, Tensor] = {f"model.{k}": v for k, v in student.state_dict().items()} | {
            "step": torch.tensor(step)
        }
        state |= {f"ema.{k}": v for k, v in average.state_dict().items()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for i, p in zip(group["index"], group["params"], strict=True):
                    state |= {f"optimizer.{i}.{k}": v for k, v in optimizer.state[p].items()}
        save_file({k: v.contiguous() for k, v in state.items()}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    def finish() -> None:
        """Standardize, write the model and measure it."""
        numbers = validate(average.network, tokenizer, held_back, VALIDATION_EPISODES, dreamer)
        standard = RewardConfig(**{**config.__dict__, "score_mean": numbers["mean"], "score_std": numbers["std"]})
        network = RewardNetwork(standard)
        network.load_state_dict({k: v.half().float() for k, v in average.network.state_dict().items()})
        reward = MiniReward(network, tokenizer, args.model)
        reward.save_pretrained(args.out / "model")
        metrics = {
            "steps": step,
            "parameters": sum(p.numel() for p in network.parameters()),
            "preferences": numbers["preferences"],
            "accuracy": numbers["accuracy"],
            "report_prompts": prompt_accuracy(reward, args.out.parent),
            "held_out": held_out_accuracy(reward, args.out.parent),
        }
        (args.out / "model" / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        print(json.dumps(metrics, indent=2), flush=True)

    curve = (args.out / "curve.jsonl").open("a")
    running: list[float] | None = None
    start, first = time.time(), step
    while step < args.steps:
        rng = random.Random(seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        views = rng.choices(*zip(*VIEW_MIX, strict=True))[0]
        if dreamer and rng.random() < DREAMS:
            batch = train.dreams(max(1, args.episodes // 2), dreamer, rng, generator)
        else:
            batch = train.batch(round(args.episodes * (4 / views) ** 0.6), views, rng, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.fp32):
            scores, helper = student(batch, token_ids(tokenizer, batch.captions))
        loss = preference_loss(scores, batch)
        (loss + 0.3 * helper).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        left = (args.steps - step) / max(1, args.decay * args.steps)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = args.lr * min(1.0, left, (step - first + 1) / 100)
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_lerp_(
            list(average.parameters()), [p.detach() for p in parameters], 1 - min(args.ema, step / (step + 10))
        )
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
            save()
    finish()


if __name__ == "__main__":
    main()
