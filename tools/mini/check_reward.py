"""Measure a reward on renders: the forty old report prompts, held-out compositions, and the lists of the new world.

cd tools
python -m mini.check_reward --model ../src/psd_gs/assets/mini/reward --cache ../runs --pack PACK
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini.check_names import asked_for, drawn, pictures
from mini.dataset import Buffers, compose, sample_background, sample_cameras, sample_light, shade, trace_scene
from mini.objects import BY_NAME, CATEGORIES
from mini.pack import Pack
from mini.preferences import at_resolution
from mini.scenes import COLOURS, HELD_COLOURS, HELD_RELATIONS, ItemLook, Look, article, caption, paint, scene_of
from mini.world import World
from psd_gs.rewards.mini import MiniReward

PROMPTS = json.loads((Path(__file__).parents[1] / "bench" / "prompts.json").read_text())
SETS_PER_PROMPT = 4
SIZE = 64


def trace_looks(looks: list[Look], cache: Path, seed: int) -> Buffers:
    """Geometry of each look, kept in ``cache``."""
    if not cache.exists():
        rng = random.Random(seed)
        sets = [trace_scene(scene_of(look, rng), sample_cameras(rng, SIZE)) for look in looks]
        save_file({n: torch.cat([getattr(s, n) for s in sets]) for n in ("slots", "normals", "viewmats", "Ks")}, cache)
    return Buffers(**load_file(cache))


def pictures_of(buffers: Buffers, looks: list[Look], seed: int) -> Tensor:
    """Clean renders ``[B, V, 3, 64, 64]`` on varied backgrounds."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rgba = shade(buffers, [paint(look, rng) for look in looks], sample_light(len(looks), generator))
    return compose(rgba, sample_background(len(looks), generator), SIZE)


def at_32(images: Tensor) -> Tensor:
    return at_resolution(images.flatten(0, 1), 32).unflatten(0, images.shape[:2])


def soften(images: Tensor) -> Tensor:
    """At 32 pixels, and blurred a little more."""
    blurred = F.avg_pool2d(images.flatten(0, 1), 3, 1, 1, count_include_pad=False)
    return at_32(blurred.unflatten(0, images.shape[:2]))


def heard(reward: MiniReward, views: Tensor, texts: list[str]) -> int:
    """Which of the captions a set ``[V, 3, H, W]`` is taken for."""
    seen = reward.network.encode_images(views[None])
    return int(reward.network(seen, reward.encode_prompts(texts), len(texts)).argmax())


@torch.no_grad()
def prompt_accuracy(reward: MiniReward, cache: Path) -> dict:
    """How often the right caption beats all ten distractors."""
    rows = [row for row in PROMPTS for _ in range(SETS_PER_PROMPT)]
    looks = [Look.from_json(row["look"]) for row in rows]
    images = pictures_of(trace_looks(looks, cache / "report_prompts.safetensors", 1), looks, 1)
    result = {}
    for name, sets in (("clean", images), ("32 px", at_32(images)), ("32 px, blurred", soften(images))):
        wins: dict[bool, list[bool]] = {True: [], False: []}
        lost: dict[str, str] = {}
        for row, views in zip(rows, sets, strict=True):
            texts = [row["prompt"], *(t for group in row["distractors"].values() for t in group)]
            chosen = heard(reward, views, texts)
            wins[row["held_out"]].append(chosen == 0)
            if chosen:
                lost[row["prompt"]] = texts[chosen]
        result[name] = {
            "seen": round(sum(wins[False]) / len(wins[False]), 4),
            "held_out": round(sum(wins[True]) / len(wins[True]), 4),
            "lost": lost,
        }
    return result


def held_out_looks() -> list[list[Look]]:
    """For each held-out pair: the look, and three that differ in colour, object or arrangement."""
    rng = random.Random(5)
    names = [c.name for c in CATEGORIES if c.core]
    episodes = []
    for category, colour in sorted(HELD_COLOURS):
        other = rng.choice([n for n in names if n != category and BY_NAME[n].group == BY_NAME[category].group])
        second = rng.choice([c for c in COLOURS if c != colour and (category, c) not in HELD_COLOURS])
        pairs = ((category, colour), (category, second), (other, colour), (other, second))
        episodes.append([Look((ItemLook(*pair),)) for pair in pairs])
    for first, relation, second in sorted(HELD_RELATIONS):
        a, b = rng.sample(["red", "blue", "green", "yellow", "purple"], 2)
        items = (ItemLook(first, a), ItemLook(second, b))
        swap = (ItemLook(first, b), ItemLook(second, a))
        other = "next to" if relation == "on" else "on"
        alone = Look((items[0],))
        episodes.append([Look(items, relation), Look(swap, relation), Look(items, other), alone])
    return episodes


@torch.no_grad()
def held_out_accuracy(reward: MiniReward, cache: Path) -> dict:
    """Pairwise accuracy of the held-out look's picture and caption against those of its three neighbours."""
    episodes = held_out_looks()
    looks = [look for episode in episodes for look in episode]
    images = at_32(pictures_of(trace_looks(looks, cache / "held_out.safetensors", 2), looks, 2))
    wins: dict[str, list[bool]] = {"colours": [], "relations": []}
    for e, episode in enumerate(episodes):
        views = images[4 * e : 4 * e + 4]
        texts = [caption(look) for look in episode]
        right = float(reward.score(views[:1], texts[:1]))
        captions = reward.score(views[:1].expand(3, -1, -1, -1, -1), texts[1:])
        pictures = reward.score(views[1:], texts[:1] * 3)
        kind = "relations" if episode[0].relation else "colours"
        wins[kind] += [right > s for s in (*captions.tolist(), *pictures.tolist())]
    return {kind: round(sum(w) / len(w), 4) for kind, w in wins.items()}


@torch.no_grad()
def lists_accuracy(reward: MiniReward, world: World, rows: int | None = None) -> dict:
    """How often the right one of 20 captions wins, for renders of the report names and of what the synonyms mean.

    Args:
        reward: the judge.
        world: what draws; things that its pack does not have are left out.
        rows: no more than so many of each list.
    """
    result: dict[str, float | int] = {}
    for kind in ("names", "synonyms"):
        wins = []
        for asked in asked_for(world, synonyms=kind == "synonyms")[:rows]:
            texts = [asked.said, *asked.others]
            if world.names[asked.name].article:
                texts = [article(text) for text in texts]
            wins.append(heard(reward, pictures(drawn(world, asked.name, 0)), texts) == 0)
        result |= {kind: round(sum(wins) / max(1, len(wins)), 4), f"{kind}_tested": len(wins)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the traced objects")
    parser.add_argument("--pack", type=Path, help="folder of the pack, for the lists")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reward = MiniReward.from_pretrained(args.model)
    found = {"report_prompts": prompt_accuracy(reward, args.cache), "held_out": held_out_accuracy(reward, args.cache)}
    if args.pack:
        found["lists"] = lists_accuracy(reward, World(Pack(args.pack), 128))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
