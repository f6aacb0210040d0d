"""Looks that contradict a look in one respect, and which scenes of the data show them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mini.objects import ACCESSORIES, BY_NAME, CATEGORIES, WEARERS
from mini.scenes import COLOURS, HELD_COLOURS, HELD_RELATIONS, RELATION_WORDS, ItemLook, Look, Scene, swapped

NAMES = tuple(COLOURS)
CATEGORY_ID = {category.name: i + 1 for i, category in enumerate(CATEGORIES)}


@dataclass(frozen=True)
class Variant:
    """Another look: what was changed, and which geometry of the data set shows it."""

    change: str
    look: Look
    scene: int


def is_held_out(look: Look) -> bool:
    names = [item.category for item in look.items]
    colours = any((item.category, item.colour) in HELD_COLOURS for item in look.items)
    return colours or (len(names) == 2 and (names[0], look.relation, names[1]) in HELD_RELATIONS)


class SceneIndex:
    """Finds scenes by what they show."""

    def __init__(self, scenes: list[Scene], allowed: Sequence[int]) -> None:
        self.scenes = scenes
        self.single: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        self.pair: dict[tuple[str | None, str | None, str | None], list[int]] = defaultdict(list)
        for i in allowed:
            scene = scenes[i]
            first = scene.items[0]
            if len(scene.items) == 1:
                if not first.stretch:
                    self.single[first.category, first.accessory].append(i)
                continue
            second = scene.items[1].category
            for a, b in ((first.category, second), (first.category, None), (None, second)):
                self.pair[a, scene.relation, b].append(i)

    def variants(self, look: Look, scene: int, rng: random.Random) -> list[Variant]:
        """Looks that differ from ``look`` in one respect each, in random order of the changes."""
        make = self._variants_of_pair if len(look.items) == 2 else self._variants_of_single
        found = [v for v in make(look, scene, rng) if not is_held_out(v.look)]
        rng.shuffle(found)
        return found

    def _variants_of_single(self, look: Look, scene: int, rng: random.Random) -> list[Variant]:
        (item,) = look.items
        category = BY_NAME[item.category]
        out = []
        same_group = [c.name for c in CATEGORIES if c.group == category.group and c.name != item.category]
        for pool in (same_group, list(CATEGORY_ID)):
            name = rng.choice(pool)
            if name != item.category and (found := self.single.get((name, None))):
                out.append(Variant("object", Look((ItemLook(name, item.colour),)), rng.choice(found)))
        for _ in range(2):
            colour = rng.choice(NAMES)
            if colour not in (item.colour, item.part_colour):
                out.append(Variant("colour", Look((replace(item, colour=colour, material=None),)), scene))
        if category.parts:
            part = rng.choice(list(category.parts))
            if part != category.main[0] or not item.colour:
                colour = rng.choice([c for c in NAMES if c not in (item.colour, item.part_colour)])
                out.append(Variant("part", Look((replace(item, part=part, part_colour=colour),)), scene))
        if item.part:
            out.append(Variant("part", Look((replace(item, part=None, part_colour=None),)), scene))
        if other := swapped(look):
            out.append(Variant("swap", other, scene))
        if item.category in WEARERS and not item.stretch:
            out += self._accessory_variants(item, scene, rng)
        first = self.pair.get((item.category, rng.choice(list(RELATION_WORDS)), None))
        if first and not item.stretch and not item.accessory:
            found = rng.choice(first)
            second = ItemLook(self.scenes[found].items[1].category, rng.choice([c for c in NAMES if c != item.colour]))
            out.append(Variant("pair", Look((item, second), self.scenes[found].relation), found))
        if category.materials:
            material = rng.choice(category.materials)
            if material not in ("wooden", item.material):
                out.append(Variant("material", Look((replace(item, material=material),)), scene))
        return out

    def _accessory_variants(self, item: ItemLook, scene: int, rng: random.Random) -> list[Variant]:
        out = []
        names = [name for name in ACCESSORIES if name != item.accessory and self.single.get((item.category, name))]
        if names:
            name = rng.choice(names)
            change = replace(item, accessory=name, accessory_colour=item.accessory_colour or rng.choice(NAMES))
            out.append(Variant("accessory", Look((change,)), rng.choice(self.single[item.category, name])))
        if item.accessory:
            colour = rng.choice([c for c in NAMES if c != item.accessory_colour])
            out.append(Variant("accessory colour", Look((replace(item, accessory_colour=colour),)), scene))
            if found := self.single.get((item.category, None)):
                bare = replace(item, accessory=None, accessory_colour=None)
                out.append(Variant("accessory", Look((bare,)), rng.choice(found)))
        return out

    def _variants_of_pair(self, look: Look, scene: int, rng: random.Random) -> list[Variant]:
        a, b = look.items
        out = []
        if other := swapped(look):
            if a.colour == b.colour:  # the objects were exchanged
                found = self.pair.get((b.category, look.relation, a.category))
                out += [Variant("relation", other, rng.choice(found))] if found else []
            elif a.colour and b.colour:
                out.append(Variant("swap", other, scene))
        for first in (True, False):
            colour = rng.choice([c for c in NAMES if c not in (a.colour, b.colour)])
            change = replace(a if first else b, colour=colour, material=None)
            items = (change, b) if first else (a, change)
            out.append(Variant("colour", replace(look, items=items), scene))
        relation = "on" if look.relation == "next to" else "next to"
        for items, new in (((a, b), relation), ((b, a), relation), ((b, a), look.relation)):
            found = self.pair.get((items[0].category, new, items[1].category))
            if found and (new == "on" or new != look.relation):  # what is next to the other is symmetric
                out.append(Variant("relation", Look(items, new), rng.choice(found)))
        for key in ((None, look.relation, b.category), (a.category, look.relation, None)):
            if found := self.pair.get(key):
                i = rng.choice(found)
                first, second = (item.category for item in self.scenes[i].items)
                items = (ItemLook(first, a.colour), ItemLook(second, b.colour))
                out.append(Variant("object", Look(items, look.relation), i))
        if found := self.single.get((a.category, None)):
            out.append(Variant("pair", Look((a,)), rng.choice(found)))
        return out
