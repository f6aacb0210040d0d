"""Synthetic preferences: which of two (picture, caption) pairs a judge should like better.

Everything comes in *episodes* of four looks that contradict each other, their four pictures and
their four captions. A model scores all sixteen pairs; four kinds of episodes say what it should find:

* match: picture i with caption i beats picture i with caption j, and picture j with caption i. Each look is
  right once and wrong as often as the others, so that no caption and no picture is good in itself.
* quality: the pictures are a clean set, a corruption at two severities, and another corruption.
* blend: the pictures fade from the first look to the second.
* dream: a clean set and three that a diffusion prior made of it under noise; see ``dreamer.py``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mini.corruptions import compose, corrupt, gaussian_blur
from mini.dataset import Buffers, Sets, sample_background, sample_light, shade
from mini.dataset import compose as compose_sets
from mini.dreamer import Dreamer
from mini.objects import ACCESSORIES, BY_NAME, CATEGORIES
from mini.scenes import COLOURS, SECOND_SLOT, WOOD_COLOURS, ItemLook, Look, Palette, caption, paint, sample_look
from mini.variants import CATEGORY_ID, NAMES, SceneIndex, Variant
from psd_gs.cameras import joined

LOOKS = 4
"""Looks, pictures and captions per episode."""

PAIRS = 0.25
"""How often an episode begins with two objects in a relation, beside those among the scenes drawn at random.

There are far more such pairs than single objects, and in each both objects are small.
"""

PART_ID = {
    noun: i + 1 for i, noun in enumerate(sorted({n for c in CATEGORIES for n in c.parts.values()} | set(ACCESSORIES)))
}
"""Nouns of parts and accessories; 0 is a part that no caption names."""

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

    def item_fits(i: ItemLook, first: int, j: ItemLook) -> bool:
        if i.category != j.category or i.accessory != j.accessory or j.stretch not in (None, i.stretch):
            return False
        category = BY_NAME[i.category]
        slots = list(category.slots)
        painted = {slot: NAMES[names[first + k]] for k, slot in enumerate((*slots, "accessory"))}
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
    firsts = (1, SECOND_SLOT)
    orders = [(0, 1), (1, 0)] if seen.relation == "next to" else [tuple(range(len(seen.items)))]
    return any(
        all(item_fits(seen.items[k], firsts[k], j) for k, j in zip(order, claim.items, strict=True)) for order in orders
    )


@dataclass
class Rendered:
    """Pictures before the background, with what each 8 x 8 cell shows (0: nothing)."""

    rgba: Float[Tensor, "B V 4 H W"]
    categories: Int[Tensor, "B V L"]
    parts: Int[Tensor, "B V L"]
    colours: Int[Tensor, "B V L"]


def slot_labels(look: Look) -> tuple[list[int], list[int]]:
    """Category and part noun of each slot."""
    categories, parts = [0] * 32, [0] * 32
    for item, first in zip(look.items, (1, SECOND_SLOT), strict=False):
        category = BY_NAME[item.category]
        nouns = [category.parts.get(slot) for slot in category.slots] + [item.accessory]
        for slot, noun in enumerate(nouns, first):
            categories[slot] = CATEGORY_ID[item.category]
            parts[slot] = PART_ID[noun] if noun else 0
    return categories, parts


def render(
    buffers: Buffers,
    looks: list[Look],
    palettes: list[Palette],
    generator: torch.Generator,
    per_group: int = 1,
    move: bool = True,
) -> Rendered:
    """Shade, then mirror, shift and scale; sets that belong together (``per_group``) alike.

    Without ``move`` the pictures stay as the cameras of ``buffers`` see them.
    """
    n, v, size = buffers.slots.shape[:3]
    rgba = shade(buffers, palettes, sample_light(n, generator))
    index = buffers.slots.long()
    batch = torch.arange(n)[:, None, None, None]
    labels = torch.tensor([slot_labels(look) for look in looks])
    painted = (colour_names(palettes) + 1)[:, None]
    shown = torch.cat([labels, painted], 1)[batch, :, index].movedim(-1, 2) * (index > 0)[:, :, None]
    groups = n // per_group
    draw = torch.rand(4, groups, generator=generator)
    scale = torch.where(draw[0] < 0.6, 0.8 + 0.3 * torch.rand(groups, generator=generator), 1.0)
    mirror = torch.where(draw[1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(groups, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / scale, 1 / scale
    theta[:, :, 2] = (draw[2:].T - 0.5) * 0.2
    if not move:
        theta = torch.eye(2, 3).repeat(groups, 1, 1)
    theta = theta.repeat_interleave(per_group * v, 0)
    grid = F.affine_grid(theta, [n * v, 4, size, size], align_corners=False)
    moved = F.grid_sample(rgba.flatten(0, 1), grid, align_corners=False)
    cells = F.affine_grid(theta, [n * v, 3, 8, 8], align_corners=False)
    seen = F.grid_sample(shown.float().flatten(0, 1), cells, mode="nearest", align_corners=False).long().flatten(2)
    return Rendered(moved.unflatten(0, (n, v)), *seen.unflatten(0, (n, v)).unbind(2))


def at_resolution(pictures: Float[Tensor, "V 3 H W"], size: int) -> Float[Tensor, "V 3 H W"]:
    """What a picture of fewer pixels looks like after the model's own resizing."""
    if size == pictures.shape[-1]:
        return pictures
    small = F.interpolate(pictures, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(small, pictures.shape[-2:], mode="bilinear", align_corners=False, antialias=True)


def sample_resolution(generator: torch.Generator) -> int:
    """32 pixels is what the embedded prior works at."""
    return (32, 32, 32, 48, 64, 64)[int(torch.randint(6, (), generator=generator))]


def hazy(
    rgba: Tensor, background: Tensor, amount: float, fade: float, grain: float, generator: torch.Generator
) -> Tensor:
    """Like a one-step estimate at high noise: blurred, faded into the background, a little noisy."""
    picture = compose(rgba * (1 - fade), background)
    picture = gaussian_blur(picture, amount)
    return (picture + grain * torch.randn(picture.shape, generator=generator)).clamp(0, 1)


@dataclass
class Batch:
    """E episodes: what to score and what should come out.

    ``better`` and ``worse`` index the E * 4 * 4 scores (episode, picture, caption); ``kinds`` names each preference.
    ``labelled`` marks the pictures whose cells show what ``rendered`` says.
    """

    images: Float[Tensor, "E 4 V 3 H W"]
    captions: list[str]
    better: Int[Tensor, " Q"]
    worse: Int[Tensor, " Q"]
    kinds: list[str]
    labelled: Bool[Tensor, " E*4"]
    rendered: Rendered


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


class EpisodeMaker:
    """Draws episodes from the geometry of a data set.

    Args:
        data: the sets.
        allowed: which of them.
        corruptions: kinds to train on.
    """

    def __init__(self, data: Sets, allowed: Sequence[int], corruptions: Sequence[str]) -> None:
        self.data, self.allowed, self.corruptions = data, allowed, corruptions
        self.pairs = [i for i in allowed if len(data.scenes[i].items) == 2]
        self.index = SceneIndex(data.scenes, allowed)

    def looks(self, rng: random.Random) -> list[Variant]:
        """A look and three variants of it, of different changes where there are as many."""
        while True:
            scene = rng.choice(self.pairs if rng.random() < PAIRS else self.allowed)
            look = sample_look(self.data.scenes[scene], rng)
            variants = self.index.variants(look, scene, rng)
            picked: list[Variant] = []
            for variant in sorted(variants, key=lambda v: sum(v.change == w.change for w in variants)):
                distinct = sum(variant.change == p.change for p in picked)
                if all(variant.look != p.look for p in picked) and (distinct == 0 or rng.random() < 0.25):
                    picked.append(variant)
            if len(picked) >= LOOKS - 1:
                return [Variant("right", look, scene), *rng.sample(picked, LOOKS - 1)]

    def _drawn(
        self, episodes: int, rng: random.Random
    ) -> tuple[list[Variant], list[Look], list[Palette], list[list[int]]]:
        """The looks of all episodes, painted, and the colour names of their slots."""
        variants = [v for _ in range(episodes) for v in self.looks(rng)]
        looks = [v.look for v in variants]
        palettes = [paint(look, rng) for look in looks]
        return variants, looks, palettes, colour_names(palettes).tolist()

    def batch(self, episodes: int, views: int, rng: random.Random, generator: torch.Generator) -> Batch:
        """Draw ``episodes`` of ``views`` views each."""
        variants, looks, palettes, names = self._drawn(episodes, rng)
        roll = torch.randint(4, (), generator=generator)
        rows, columns = torch.tensor([[v.scene] for v in variants]), (torch.arange(views) + roll) % 4
        buffers = self.data.buffers[rows, columns]
        rendered = render(buffers, looks, palettes, generator, LOOKS)
        images, labelled, found = [], [], []
        for e in range(episodes):
            four = range(e * LOOKS, (e + 1) * LOOKS)
            false = [[not shows(looks[i], names[i], looks[j]) for j in four] for i in four]
            rgba = rendered.rgba[four.start : four.stop]
            kind = rng.choices(("match", "quality", "blend"), (0.55, 0.33, 0.12))[0]
            make = {"match": self._match, "quality": self._quality, "blend": self._blend}[kind]
            changes = [variants[i].change for i in four]
            pictures, preferences = make(rgba, false, changes, rng, generator)
            images.append(pictures)
            labelled += [kind == "match"] * LOOKS
            found.append(preferences)
        captions = [caption(look, rng) for look in looks]
        return Batch(torch.stack(images), captions, *numbered(found), torch.tensor(labelled), rendered)

    def dreams(self, episodes: int, dreamer: Dreamer, rng: random.Random, generator: torch.Generator) -> Batch:
        """Draw ``episodes`` of a clean set and what the prior makes of it, all of the prior's resolution.

        The first dream is better than the second, which saw more noise, and than the third, which saw as much but had
        either far too much guidance or the caption of another look.
        """
        variants, looks, palettes, names = self._drawn(episodes, rng)
        captions = [caption(look, rng) for look in looks]
        buffers = self.data.buffers[torch.tensor([v.scene for v in variants])]
        rendered = render(buffers, looks, palettes, generator, LOOKS, move=False)
        size, right = dreamer.prior.image_size, slice(None, None, LOOKS)
        clean = compose_sets(rendered.rgba[right], sample_background(episodes, generator), size)
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
            joined([buffers[right].cameras().resized(size, size)] * 3),
            torch.cat([low, high, low]),
            torch.cat([scale, scale, excess]),
            generator,
        )
        images = torch.cat([clean[:, None], dreamt.unflatten(0, (3, episodes)).transpose(0, 1)], 1)
        found = []
        for e in range(episodes):
            first = e * LOOKS
            false = [not shows(looks[first], names[first], looks[first + j]) for j in range(LOOKS)]
            third = "dream/misled" if misled[e] else "dream/excess"
            ranks = [
                (0, 1, "dream/noise"),
                (0, 2, "dream/noise"),
                (1, 2, "dream/more noise"),
                (0, 3, third),
                (1, 3, third),
            ]
            if misled[e] and not false[1]:
                ranks = ranks[:3]
            preferences = [
                ((a, 0), (b, 0), name)
                for a, b, name in ranks
                if float((images[e, a] - images[e, b]).abs().mean()) > 4e-3
            ]
            readable = (0, 1, 2) if high[e] < 0.6 else (0, 1)
            preferences += [
                ((i, 0), (i, j), f"caption/{variants[first + j].change}")
                for i in readable
                for j in range(1, LOOKS)
                if false[j]
            ]
            found.append(preferences)
        unlabelled = torch.zeros(len(variants), dtype=torch.bool)
        return Batch(images, captions, *numbered(found), unlabelled, rendered)

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
                picture = compose(rgba[k], backgrounds[k])
            pictures.append(at_resolution(picture, sample_resolution(generator)))
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
        size = sample_resolution(generator)
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
        pictures = [at_resolution(p, size) for p in (compose(base, background), *(bad(*how) for how in corrupted))]
        ranks = [(0, 1, kind), (0, 2, kind), (1, 2, kind), (0, 3, second)]
        preferences = [
            ((a, 0), (b, 0), f"{'quality' if a == 0 else 'severity'}/{name}")
            for a, b, name in ranks
            if not (a == 1 and kind == "empty") and float((pictures[a] - pictures[b]).abs().mean()) > 2e-3
        ]
        readable = [0] + ([1] if low < 0.4 and kind in MILD else [])
        preferences += [
            ((i, 0), (i, j), f"caption/{changes[j]}") for i in readable for j in range(1, LOOKS) if false[0][j]
        ]
        return torch.stack(pictures), preferences

    def _blend(self, rgba, false, changes, rng, generator):
        background = sample_background(1, generator)[0]
        size = sample_resolution(generator)
        low = rng.uniform(0.1, 0.45)
        amounts = (0.0, low, rng.uniform(low + 0.2, 0.9), 1.0)
        blur = rng.uniform(0.4, 3.0) if rng.random() < 0.5 else 0.0
        mixed = [torch.lerp(rgba[0], rgba[1], a) for a in amounts]
        pictures = [compose(gaussian_blur(m, blur) if blur else m, background) for m in mixed]
        preferences = []
        for a, b in ((0, 1), (1, 2), (2, 3), (0, 3)):
            if false[1][0]:
                preferences.append(((a, 0), (b, 0), "blend"))
            if false[0][1]:
                preferences.append(((b, 1), (a, 1), "blend"))
        return torch.stack([at_resolution(p, size) for p in pictures]), preferences
