"""Looks that contradict a look in one respect, each with a scene that shows it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mini.objects import ACCESSORIES, BY_NAME, WEARERS, Category
from mini.scenes import (
    COLOURS,
    HELD_COLOURS,
    HELD_RELATIONS,
    RELATION_WORDS,
    ItemLook,
    Look,
    Scene,
    scene_of,
    seconds_of,
    swapped,
)

NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Variant:
    """Another look: what was changed, and a geometry that shows it."""

    change: str
    look: Look
    scene: Scene


def is_held_out(look: Look) -> bool:
    names = [item.category for item in look.items]
    colours = any((item.category, item.colour) in HELD_COLOURS for item in look.items)
    return colours or (len(names) == 2 and (names[0], look.relation, names[1]) in HELD_RELATIONS)


def variants(look: Look, scene: Scene, rng: random.Random, categories: Sequence[Category]) -> list[Variant]:
    """Looks that differ from ``look`` in one respect each, in random order of the changes.

    Args:
        look: what is varied.
        scene: that shows it, and all that differ in colours alone.
        rng: source of randomness.
        categories: of other objects.
    """
    painted, built = (_of_pair if len(look.items) == 2 else _of_single)(look, rng, categories)
    found = [Variant(change, other, scene) for change, other in painted if not is_held_out(other)]
    found += [Variant(change, other, scene_of(other, rng)) for change, other in built if not is_held_out(other)]
    rng.shuffle(found)
    return found


Changes = list[tuple[str, Look]]
"""What was changed, and the look after that."""


def _other_colour(rng: random.Random, *known: str | None) -> str:
    return rng.choice([name for name in NAMES if name not in known])


def _of_single(look: Look, rng: random.Random, categories: Sequence[Category]) -> tuple[Changes, Changes]:
    """Those of the same geometry, and those of another one."""
    (item,) = look.items
    category = BY_NAME[item.category]
    painted: Changes = []
    built: Changes = []
    others = [c for c in categories if c.name != item.category]
    for pool in ([c for c in others if c.group == category.group], others):
        if pool:
            built.append(("object", Look((ItemLook(rng.choice(pool).name, item.colour),))))
    for colour in rng.sample([c for c in NAMES if c not in (item.colour, item.part_colour)], 2):
        painted.append(("colour", Look((replace(item, colour=colour, material=None),))))
    if category.parts:
        part = rng.choice(list(category.parts))
        if part != category.main[0] or not item.colour:
            colour = _other_colour(rng, item.colour, item.part_colour)
            painted.append(("part", Look((replace(item, part=part, part_colour=colour),))))
    if item.part:
        painted.append(("part", Look((replace(item, part=None, part_colour=None),))))
    if other := swapped(look):
        painted.append(("swap", other))
    if item.category in WEARERS and not item.stretch:
        name = rng.choice([name for name in ACCESSORIES if name != item.accessory])
        change = replace(item, accessory=name, accessory_colour=item.accessory_colour or rng.choice(NAMES))
        built.append(("accessory", Look((change,))))
    if item.accessory:
        colour = _other_colour(rng, item.accessory_colour)
        painted.append(("accessory colour", Look((replace(item, accessory_colour=colour),))))
        built.append(("accessory", Look((replace(item, accessory=None, accessory_colour=None),))))
    elif not item.stretch:
        relation = rng.choice(list(RELATION_WORDS))
        second = ItemLook(rng.choice(seconds_of(relation, categories)).name, _other_colour(rng, item.colour))
        built.append(("pair", Look((item, second), relation)))
    if category.materials:
        material = rng.choice(category.materials)
        if material not in ("wooden", item.material):
            painted.append(("material", Look((replace(item, material=material),))))
    return painted, built


def _of_pair(look: Look, rng: random.Random, categories: Sequence[Category]) -> tuple[Changes, Changes]:
    """Those of the same geometry, and those of another one."""
    a, b = look.items
    painted: Changes = []
    one, two = (replace(i, colour=_other_colour(rng, a.colour, b.colour), material=None) for i in (a, b))
    painted += [("colour", replace(look, items=items)) for items in ((one, b), (a, two))]
    if a.colour and b.colour and a.colour != b.colour and (other := swapped(look)):
        painted.append(("swap", other))
    relation = "on" if look.relation == "next to" else "next to"
    arranged = [Look((a, b), relation), Look((b, a), relation)]
    arranged += [Look((b, a), "on")] if look.relation == "on" else []  # what is next to the other is symmetric
    bases = {name: {c.name for c in seconds_of(name, categories)} for name in RELATION_WORDS}
    built = [("relation", other) for other in arranged if other.items[1].category in bases[other.relation]]
    first = rng.choice([c.name for c in categories if c.name != a.category])
    second = rng.choice([c.name for c in seconds_of(look.relation, categories) if c.name != b.category])
    for names in ((first, b.category), (a.category, second)):
        items = ItemLook(names[0], a.colour), ItemLook(names[1], b.colour)
        built.append(("object", Look(items, look.relation)))
    return painted, [*built, ("pair", Look((a,)))]
