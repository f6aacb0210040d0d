"""Synthetic preferences: which of two (picture, caption) pairs a judge should like better.

Everything comes in *episodes* of four scenes that contradict each other (``episodes.py``), their four pictures and
their four captions. A model scores all sixteen pairs; four kinds of episodes say what it should find:

* match: picture i with caption i beats picture i with caption j, and picture j with caption i. Each scene is
  right once and wrong as often as the others, so that no caption and no picture is good in itself.
* quality: the pictures are a clean set, a corruption at two severities, and another corruption.
* blend: the pictures fade from the first scene to the second.
* dream: a clean set and three that a diffusion prior made of it under noise; see ``dreamer.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mini.corruptions import corrupt, gaussian_blur
from mini.dataset import compose, over, sample_background
from mini.dreamer import Dreamer
from mini.objects import BY_NAME
from mini.scenes import COLOURS, WOOD_COLOURS, ItemLook, Look, Palette, slot_numbers
from mini.variants import NAMES
from psd_gs.cameras import joined
from psd_gs.resize import resized

if TYPE_CHECKING:
    from mini.episodes import Scenes

LOOKS = 4
"""Scenes, pictures and captions per episode."""

MILD = ("blurred", "noisy", "saturated", "washed", "holes", "floaters", "fogged", "grown")
"""Corruptions that leave the right caption right."""


def colour_names(palettes: list[Palette]) -> Int[Tensor, "B 32"]:
    """The nearest colour name of each slot."""
    rgb = torch.tensor([p.rgb for p in palettes])
    return torch.cdist(rgb, torch.tensor(list(COLOURS.values())).expand(len(rgb), -1, -1)).argmin(-1)


def shows(seen: Look, names: list[int], claim: Look) -> bool:
    """Whether a picture of ``seen``, painted in ``names`` (colour by slot), bears out every word of ``claim``.

    What the claim leaves open must look natural: "a corgi" is not borne out by a blue one, nor by one with a hat.
    """

    def item_fits(i: ItemLook, index: int, j: ItemLook) -> bool:
        if i.category != j.category or i.accessory != j.accessory or j.stretch not in (None, i.stretch):
            return False
        category = BY_NAME[i.category]
        painted = {slot: NAMES[names[number]] for slot, number in slot_numbers(category, index).items()}
        main = painted[category.main[0]]
        if j.material in ("shiny", "metal") and j.material != i.material:
            return False
        if j.material == "wooden" and main not in WOOD_COLOURS:
            return False
        if j.colour and main != j.colour:
            return False
        if not j.colour and i.colour and j.part not in category.main:
            natural = next((category.slots[s] for s in category.main if category.slots[s]), ())
            if main not in natural:
                return False
        for part, colour in ((j.part, j.part_colour), (i.part, None)):
            if part and colour and painted[part] != colour:
                return False
            if part and not colour and part != j.part and painted[part] not in (category.slots[part] or (main,)):
                return False
        return not j.accessory or painted["accessory"] == j.accessory_colour

    if seen.relation != claim.relation or len(seen.items) != len(claim.items):
        return False
    orders = [(0, 1), (1, 0)] if seen.relation == "next to" else [tuple(range(len(seen.items)))]
    return any(all(item_fits(seen.items[k], k, j) for k, j in zip(o, claim.items, strict=True)) for o in orders)


def at_resolution(pictures: Float[Tensor, "V 3 H W"], size: int) -> Float[Tensor, "V 3 H W"]:
    """What a picture of fewer pixels looks like after the model's own resizing."""
    return resized(resized(pictures, size, size), *pictures.shape[-2:])


def sample_resolution(size: int, generator: torch.Generator) -> int:
    """Pixels per side that a picture of ``size`` is reduced to, so that resolution itself earns nothing."""
    return (size // 4, size // 2, size * 3 // 4, size, size, size)[int(torch.randint(6, (), generator=generator))]


def hazy(
    rgba: Tensor, background: Tensor, amount: float, fade: float, grain: float, generator: torch.Generator
) -> Tensor:
    """Like a one-step estimate at high noise: blurred, faded into the background, a little noisy."""
    picture = over(rgba * (1 - fade), background)
    picture = gaussian_blur(picture, amount)
    return (picture + grain * torch.randn(picture.shape, generator=generator)).clamp(0, 1)


@dataclass
class Batch:
    """E episodes: what to score and what should come out.

    ``better`` and ``worse`` index the E * 4 * 4 scores (episode, picture, caption); ``kinds`` names each preference.
    ``right`` marks the pictures that show what their captions say.
    """

    images: Float[Tensor, "E 4 V 3 H W"]
    captions: list[str]
    better: Int[Tensor, " Q"]
    worse: Int[Tensor, " Q"]
    kinds: list[str]
    right: Bool[Tensor, " E*4"]


Preference = tuple[tuple[int, int], tuple[int, int], str]
"""Within an episode: the better picture and its caption, the worse, and what the preference is about."""


def numbered(found: list[list[Preference]]) -> tuple[Int[Tensor, " Q"], Int[Tensor, " Q"], list[str]]:
    """``better``, ``worse`` and ``kinds`` of a :class:`Batch` from the preferences of each episode."""
    rows = [
        ((e * LOOKS + i) * LOOKS + j, (e * LOOKS + k) * LOOKS + m, name)
        for e, preferences in enumerate(found)
        for (i, j), (k, m), name in preferences
    ]
    better, worse, kinds = zip(*rows, strict=True)
    return torch.tensor(better), torch.tensor(worse), list(kinds)


def ranked(pictures: Sequence[Tensor], ranks: list[tuple[int, int, str]], least: float) -> list[Preference]:
    """Of the first caption's pictures, better and worse, those that differ by at least so much."""
    return [((a, 0), (b, 0), name) for a, b, name in ranks if (pictures[a] - pictures[b]).abs().mean() > least]


def heard(readable: Iterable[int], false: list[bool], changes: list[str]) -> list[Preference]:
    """The right caption over the false ones, of pictures that still show what it says."""
    return [((i, 0), (i, j), f"caption/{changes[j]}") for i in readable for j in range(1, LOOKS) if false[j]]


class EpisodeMaker:
    """Asks for preferences among the scenes of episodes.

    Args:
        scenes: draws episodes.
        corruptions: kinds to train on.
    """

    def __init__(self, scenes: Scenes, corruptions: Sequence[str]) -> None:
        self.scenes, self.corruptions = scenes, corruptions

    def batch(self, episodes: int, views: int, rng: random.Random, generator: torch.Generator) -> Batch:
        """Draw ``episodes`` of ``views`` views each."""
        images, captions, right, found = [], [], [], []
        for _ in range(episodes):
            drawn = self.scenes.episode(rng, views)
            kind = rng.choices(("match", "quality", "blend"), (0.55, 0.33, 0.12))[0]
            make = {"match": self._match, "quality": self._quality, "blend": self._blend}[kind]
            pictures, preferences = make(drawn.rgba, drawn.false, drawn.changes, rng, generator)
            images.append(pictures)
            captions += drawn.captions
            right += [kind == "match"] * LOOKS
            found.append(preferences)
        return Batch(torch.stack(images), captions, *numbered(found), torch.tensor(right))

    def dreams(self, episodes: int, dreamer: Dreamer, rng: random.Random, generator: torch.Generator) -> Batch:
        """Draw ``episodes`` of a clean set and what the prior makes of it, all of the prior's resolution.

        The first dream is better than the second, which saw more noise, and than the third, which saw as much but had
        either far too much guidance or the caption of another look.
        """
        drawn = [self.scenes.episode(rng, dreamer.prior.views) for _ in range(episodes)]
        captions = [text for episode in drawn for text in episode.captions]
        size, right = dreamer.prior.image_size, slice(None, None, LOOKS)
        rgba = torch.stack([episode.rgba[0] for episode in drawn])
        clean = compose(rgba, sample_background(episodes, generator), size)
        draw = torch.rand(5, episodes, generator=generator)
        misled = draw[0] < 0.4
        low = torch.where(misled, 0.3 + 0.28 * draw[1], 0.08 + 0.5 * draw[1])  # little noise leaves no room for words
        high = low + 0.12 + (0.8 - low) * draw[2]
        scale = 1.5 + 3.5 * draw[3]
        excess = torch.where(misled, scale, 8 + 8 * draw[4])
        told = [captions[e * LOOKS + int(misled[e])] for e in range(episodes)]
        dreamt = dreamer(
            clean.repeat(3, 1, 1, 1, 1),
            2 * captions[right] + told,
            joined([episode.cameras.resized(size, size) for episode in drawn] * 3),
            torch.cat([low, high, low]),
            torch.cat([scale, scale, excess]),
            generator,
        )
        images = torch.cat([clean[:, None], dreamt.unflatten(0, (3, episodes)).transpose(0, 1)], 1)
        found = []
        for e in range(episodes):
            false = drawn[e].false[0]
            third = "dream/misled" if misled[e] else "dream/excess"
            ranks = [(0, 1, "dream/noise"), (0, 2, "dream/noise"), (1, 2, "dream/more noise")]
            if false[1] or not misled[e]:
                ranks += [(0, 3, third), (1, 3, third)]
            readable = range(3 if high[e] < 0.6 else 2)
            found.append(ranked(images[e], ranks, 4e-3) + heard(readable, false, drawn[e].changes))
        return Batch(images, captions, *numbered(found), torch.zeros(len(captions), dtype=torch.bool))

    def _match(self, rgba, false, changes, rng, generator):
        backgrounds = sample_background(LOOKS, generator)
        if rng.random() < 0.5:
            backgrounds = backgrounds[:1].expand(LOOKS, 3)
        style = rng.choices(("clean", "hazy", "mild"), (0.5, 0.3, 0.2))[0]
        haze = (rng.uniform(0.4, 3.5), rng.uniform(0, 0.5), rng.uniform(0, 0.08))
        pictures = []
        for k in range(LOOKS):
            if style == "hazy":
                picture = hazy(rgba[k], backgrounds[k], *haze, generator)
            elif style == "mild" and rng.random() < 0.7:
                picture = corrupt(rng.choice(MILD), rgba[k], backgrounds[k], rgba[k], rng.uniform(0, 0.3), generator)
            else:
                picture = over(rgba[k], backgrounds[k])
            pictures.append(at_resolution(picture, sample_resolution(rgba.shape[-1], generator)))
        preferences = []
        for i in range(LOOKS):
            for j in range(LOOKS):
                if i != j and false[i][j]:
                    change = changes[max(i, j)] if min(i, j) == 0 else "mixed"
                    preferences.append(((i, i), (i, j), f"caption/{change}"))
                    preferences.append(((j, j), (i, j), f"picture/{change}"))
        return torch.stack(pictures), preferences

    def _quality(self, rgba, false, changes, rng, generator):
        background = sample_background(1, generator)[0]
        size = sample_resolution(rgba.shape[-1], generator)
        kind, second = rng.sample(list(self.corruptions), 2)
        low = rng.uniform(0.0, 0.45)
        high = rng.uniform(low + 0.2, 1.0)
        if kind == "disagreeing":
            low, high = 0.3, 0.8
        base = rgba[0]
        if rng.random() < 0.3:
            base = gaussian_blur(base, rng.uniform(0.4, 1.5))
        seed = rng.getrandbits(31)

        def bad(name: str, severity: float, seed: int) -> Tensor:
            draws = torch.Generator().manual_seed(seed)
            return corrupt(name, base, background, rgba[1], severity, draws)

        corrupted = ((kind, low, seed), (kind, high, seed), (second, rng.uniform(0.1, 1), seed + 1))
        pictures = [at_resolution(p, size) for p in (over(base, background), *(bad(*how) for how in corrupted))]
        ranks = [(0, 1, f"quality/{kind}"), (0, 2, f"quality/{kind}")]
        ranks += [(1, 2, f"severity/{kind}")] if kind != "empty" else []
        preferences = ranked(pictures, [*ranks, (0, 3, f"quality/{second}")], 2e-3)
        readable = range(2 if low < 0.4 and kind in MILD else 1)
        return torch.stack(pictures), preferences + heard(readable, false[0], changes)

    def _blend(self, rgba, false, changes, rng, generator):
        background = sample_background(1, generator)[0]
        size = sample_resolution(rgba.shape[-1], generator)
        low = rng.uniform(0.1, 0.45)
        amounts = (0.0, low, rng.uniform(low + 0.2, 0.9), 1.0)
        blur = rng.uniform(0.4, 3.0) if rng.random() < 0.5 else 0.0
        mixed = [torch.lerp(rgba[0], rgba[1], a) for a in amounts]
        pictures = [over(gaussian_blur(m, blur) if blur else m, background) for m in mixed]
        preferences = []
        for a, b in ((0, 1), (1, 2), (2, 3), (0, 3)):
            if false[1][0]:
                preferences.append(((a, 0), (b, 0), "blend"))
            if false[0][1]:
                preferences.append(((b, 1), (a, 1), "blend"))
        return torch.stack([at_resolution(p, size) for p in pictures]), preferences
