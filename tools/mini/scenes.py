"""What is in a scene, how it is coloured, and what a caption says about it.

A :class:`Scene` is the geometry (categories, seeds, sizes, accessories, a relation). A
:class:`Look` is one colouring of it together with what the caption names. The same geometry
serves many looks, so colours are drawn anew for every training batch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mini.creatures import Anchor
from mini.names import HELD
from mini.objects import ACCESSORIES, BY_NAME, CATEGORIES, WEARERS, Category
from mini.sdf import Draw, Primitive, Shape

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.96, 0.52, 0.10),
    "yellow": (0.97, 0.86, 0.16),
    "lime": (0.62, 0.88, 0.22),
    "green": (0.13, 0.56, 0.20),
    "cyan": (0.25, 0.80, 0.86),
    "blue": (0.13, 0.26, 0.86),
    "purple": (0.50, 0.17, 0.68),
    "pink": (0.97, 0.56, 0.72),
    "brown": (0.46, 0.27, 0.13),
    "beige": (0.90, 0.80, 0.62),
    "black": (0.09, 0.09, 0.10),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.53, 0.54, 0.56),
}
"""Fourteen colour names, sRGB."""

COLOUR_WORDS = {
    "red": ("scarlet", "crimson"),
    "cyan": ("turquoise", "light blue"),
    "lime": ("light green",),
    "purple": ("violet",),
    "beige": ("cream", "tan"),
    "gray": ("grey",),
}
STRETCHES = {"tall": (0.82, 1.3, 0.82), "fat": (1.3, 0.92, 1.15), "thin": (0.7, 1.05, 0.8)}
STRETCH_WORDS = {"tall": ("tall", "high"), "fat": ("fat", "chubby", "wide"), "thin": ("thin", "slim")}
MATERIALS = ("matte", "shiny", "metal", "wooden")
MATERIAL_WORDS = {"shiny": ("shiny", "glossy"), "metal": ("metal", "metallic"), "wooden": ("wooden", "wood")}
WOOD_COLOURS = ("brown", "beige")
RELATION_WORDS = {"on": ("on", "on top of"), "next to": ("next to", "beside")}
BASES = ("cube", "cylinder", "table", "sphere")
"""What something can stand on."""

SECOND_SLOT = 14
"""First slot of the second object; the first object's slots start at 1."""

RADIUS = 0.62
"""Every scene fits in a ball of this radius."""

HOLDOUT = json.loads((Path(__file__).parent / "holdout.json").read_text())
HELD_COLOURS = {tuple(pair) for pair in HOLDOUT["colours"]}
HELD_RELATIONS = {tuple(triple) for triple in HOLDOUT["relations"]}


@dataclass(frozen=True)
class Item:
    """One object's geometry."""

    category: str
    seed: int
    stretch: str | None = None
    accessory: str | None = None


@dataclass(frozen=True)
class Scene:
    """One object, or two in a relation (the first is on, or next to, the second)."""

    items: tuple[Item, ...]
    relation: str | None = None


@dataclass(frozen=True)
class ItemLook:
    """What the caption names of one object: None leaves it to nature."""

    category: str
    colour: str | None = None
    part: str | None = None
    part_colour: str | None = None
    stretch: str | None = None
    material: str | None = None
    accessory: str | None = None
    accessory_colour: str | None = None


@dataclass(frozen=True)
class Look:
    """What the caption names of a scene."""

    items: tuple[ItemLook, ...]
    relation: str | None = None

    @staticmethod
    def from_json(data: dict) -> Look:
        return Look(tuple(ItemLook(**item) for item in data["items"]), data.get("relation"))


@dataclass
class Palette:
    """Colours (sRGB) and materials by slot; slot 0 is empty space."""

    rgb: list[tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0)] * 32)
    material: list[int] = field(default_factory=lambda: [0] * 32)


# --- geometry --------------------------------------------------------------------------------------------------------


def build_item(item: Item, first_slot: int) -> Shape:
    """The primitives of one object, in its loose units."""
    category = BY_NAME[item.category]
    shape = Shape((*category.slots, "accessory"), category.smooth, first_slot=first_slot)
    anchor = category.build(shape, Draw(item.seed))
    if item.accessory:
        if not isinstance(anchor, Anchor):
            raise ValueError(f"{item.category} wears nothing; one of {', '.join(WEARERS)} does.")
        ACCESSORIES[item.accessory](shape, anchor)
    return shape.stretched(STRETCHES[item.stretch]) if item.stretch else shape


def build_scene(scene: Scene) -> tuple[list[Primitive], float]:
    """All primitives of a scene, inside a ball of ``RADIUS``, and the radius of the smooth union."""
    shapes = [build_item(item, 1 if i == 0 else SECOND_SLOT).normalized(RADIUS) for i, item in enumerate(scene.items)]
    if len(shapes) == 1:
        return shapes[0].primitives, shapes[0].smooth
    rng = random.Random(scene.items[0].seed ^ scene.items[1].seed)
    first, second = shapes
    if scene.relation == "on":
        first = first.transformed(rng.uniform(0.62, 0.9), torch.zeros(3))
        gap = second.bounds()[1][1] - first.bounds()[0][1]
        first = first.transformed(1.0, torch.tensor([0.0, float(gap) - 0.015, 0.0]))
    else:
        second = second.transformed(rng.uniform(0.75, 1.1), torch.zeros(3))
        side = rng.choice((-1.0, 1.0))
        (low, high), (other_low, other_high) = first.bounds(), second.bounds()
        a, b = (low[0], other_high[0]) if side > 0 else (high[0], other_low[0])
        floor = other_low[1] - low[1]
        first = first.transformed(1.0, torch.tensor([float(b - a) + side * rng.uniform(0.03, 0.1), float(floor), 0.0]))
    both = Shape((), min(first.smooth, second.smooth) * 0.5, first.primitives + second.primitives).normalized(RADIUS)
    return both.primitives, both.smooth


def seconds_of(relation: str | None, categories: Sequence[Category]) -> list[Category]:
    """What something may be on, or next to."""
    return [c for c in categories if c.stackable and (relation == "next to" or c.name in BASES)]


def sample_scene(rng: random.Random, categories: tuple[Category, ...]) -> Scene:
    """Draw a scene: three in four show one object, one in four a relation."""

    def item(category: Category, plain: bool) -> Item:
        stretch = rng.choice(list(STRETCHES)) if not plain and rng.random() < 0.08 else None
        wears = not plain and category.name in WEARERS and rng.random() < 0.25
        accessory = rng.choice(list(ACCESSORIES)) if wears else None
        return Item(category.name, rng.getrandbits(31), stretch, accessory)

    if rng.random() < 0.75:
        return Scene((item(rng.choice(categories), plain=False),))
    stackable = [c for c in categories if c.stackable]
    first = rng.choice(stackable if rng.random() < 0.7 else categories)
    relation = "on" if rng.random() < 0.6 else "next to"
    second = rng.choice(seconds_of(relation, categories))
    if (first.name, relation, second.name) in HELD_RELATIONS:
        return sample_scene(rng, categories)
    return Scene((item(first, plain=True), item(second, plain=True)), relation)


# --- looks -----------------------------------------------------------------------------------------------------------


def sample_item_look(item: Item, rng: random.Random, always_coloured: bool, named: float) -> ItemLook:
    category = BY_NAME[item.category]
    allowed = [c for c in COLOURS if (category.name, c) not in HELD_COLOURS]
    solid = category.group == "solids"
    colour = rng.choice(allowed) if always_coloured or solid or rng.random() < 0.4 else None
    if solid and not always_coloured and rng.random() < 0.1:
        colour = None
    part = part_colour = None
    if category.parts and rng.random() < (0.4 * named if always_coloured else named):
        part = rng.choice(list(category.parts))
        held = {c for name, c in HELD_COLOURS if name == category.name and part in category.main}
        part_colour = rng.choice([c for c in COLOURS if c != colour and c not in held])
        if colour and part == category.main[0]:
            part = part_colour = None
    material = rng.choice(category.materials) if category.materials and rng.random() < 0.15 else None
    if material == "wooden":
        colour = None
    worn = rng.choice(list(COLOURS)) if item.accessory else None
    return ItemLook(item.category, colour, part, part_colour, item.stretch, material, item.accessory, worn)


def sample_look(scene: Scene, rng: random.Random, named: float = 0.25) -> Look:
    """Draw which colours, parts (of a share ``named``) and materials the caption names; held-out pairs never appear."""
    pair = len(scene.items) == 2
    items = [sample_item_look(item, rng, pair and rng.random() < 0.85, named) for item in scene.items]
    if pair and items[0].colour and items[0].colour == items[1].colour:
        return sample_look(scene, rng, named)
    return Look(tuple(items), scene.relation)


def scene_of(look: Look, rng: random.Random) -> Scene:
    """A new geometry that fits a look."""
    items = [Item(i.category, rng.getrandbits(31), i.stretch, i.accessory) for i in look.items]
    return Scene(tuple(items), look.relation)


def slot_numbers(category: Category, index: int) -> dict[str, int]:
    """Numbers by name of the slots of a scene's first (index 0) or second object."""
    first = 1 if index == 0 else SECOND_SLOT
    return {slot: first + offset for offset, slot in enumerate((*category.slots, "accessory"))}


def paint(look: Look, rng: random.Random) -> Palette:
    """Colours and materials by slot for one look; slots that the look leaves open get a natural colour."""
    palette = Palette()
    for index, item in enumerate(look.items):
        category = BY_NAME[item.category]
        natural = next(category.slots[slot] for slot in category.main if category.slots[slot])
        allowed = [c for c in natural if (item.category, c) not in HELD_COLOURS] or list(natural)
        main = item.colour or rng.choice(WOOD_COLOURS if item.material == "wooden" else allowed)
        colours = {slot: rng.choice(choices) if choices else main for slot, choices in category.slots.items()}
        colours.update(dict.fromkeys(category.main, main))
        for slot, choices in category.slots.items():  # an unnamed part must not vanish in the main colour
            if choices and slot not in category.main and colours[slot] == main and slot in category.parts:
                others = [c for c in choices if c != main] or ["white" if main != "white" else "black"]
                colours[slot] = rng.choice(others)
        if item.part and item.part_colour:
            colours[item.part] = item.part_colour
        colours["accessory"] = item.accessory_colour or "red"
        for slot, number in slot_numbers(category, index).items():
            jitter = [rng.uniform(-0.035, 0.035) for _ in range(3)]
            rgb = tuple(min(max(c + j, 0.0), 1.0) for c, j in zip(COLOURS[colours[slot]], jitter, strict=True))
            palette.rgb[number] = rgb  # type: ignore[assignment]
            if item.material and slot in category.main:
                palette.material[number] = MATERIALS.index(item.material)
    return palette


def named_slots(look: Look) -> list[int]:
    """Slots of the parts and accessories whose colour the caption names."""
    found = []
    for index, item in enumerate(look.items):
        named = {item.part, "accessory" if item.accessory else None}
        found += [n for slot, n in slot_numbers(BY_NAME[item.category], index).items() if slot in named]
    return found


# --- captions --------------------------------------------------------------------------------------------------------

TEMPLATES = (
    "a photo of {}",
    "a 3d model of {}",
    "a 3d render of {}",
    "{}, 3d asset",
    "an image of {}",
    "a picture of {}",
)


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _word(canonical: str, synonyms: tuple[str, ...], rng: random.Random | None, chance: float) -> str:
    return rng.choice(synonyms) if rng and synonyms and rng.random() < chance else canonical


def spoken_names(category: Category) -> tuple[str, ...]:
    """The noun and its synonyms, but those that no caption may say."""
    return tuple(name for name in category.names if name not in HELD.get("synonyms", {}))


def item_caption(item: ItemLook, rng: random.Random | None = None) -> str:
    """A noun phrase; without ``rng`` the canonical words are taken."""
    category = BY_NAME[item.category]

    def colour(name: str) -> str:
        return _word(name, COLOUR_WORDS.get(name, ()), rng, 0.2)

    words = []
    if item.stretch:
        words.append(_word(item.stretch, STRETCH_WORDS[item.stretch], rng, 0.6))
    if item.material:
        words.append(_word(item.material, MATERIAL_WORDS[item.material], rng, 0.4))
    if item.colour:
        words.append(colour(item.colour))
    words.append(_word(category.name, spoken_names(category)[1:], rng, 0.3))
    phrase = article(" ".join(words))
    if item.part and item.part_colour:
        noun = f"{colour(item.part_colour)} {category.parts[item.part]}"
        phrase += f" with {noun if category.parts[item.part].endswith('s') else article(noun)}"
    if item.accessory and item.accessory_colour:
        worn = article(f"{colour(item.accessory_colour)} {item.accessory}")
        phrase += f"{' and' if item.part else ''} {_word('wearing', ('with',), rng, 0.2)} {worn}"
    return phrase


def phrased(text: str, rng: random.Random) -> str:
    """The caption in one of several phrasings, or without its first article."""
    if rng.random() < 0.3:
        return rng.choice(TEMPLATES).format(text)
    if rng.random() < 0.15 and text.startswith(("a ", "an ")):
        return text.split(" ", 1)[1]
    return text


def caption(look: Look, rng: random.Random | None = None) -> str:
    """A caption of the scene; with ``rng`` in varied words and phrasings, else the canonical one."""
    phrases = [item_caption(item, rng) for item in look.items]
    if look.relation == "on" and rng and rng.random() < 0.12:
        text = f"{phrases[1]} under {phrases[0]}"
    elif look.relation:
        words = RELATION_WORDS[look.relation]
        text = f"{phrases[0]} {_word(words[0], words, rng, 0.5)} {phrases[1]}"
    else:
        text = phrases[0]
    return phrased(text, rng) if rng else text


def swapped(look: Look) -> Look | None:
    """The colours of two things exchanged, or two objects exchanged in their relation; None if nothing differs."""
    if len(look.items) == 2:
        a, b = look.items
        if a.colour != b.colour:
            return replace(look, items=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
        ordered = look.relation == "on" and a.category != b.category
        return replace(look, items=(b, a)) if ordered else None
    (item,) = look.items
    if item.colour and item.part_colour:
        return replace(look, items=(replace(item, colour=item.part_colour, part_colour=item.colour),))
    if item.colour and item.accessory_colour and item.colour != item.accessory_colour:
        return replace(look, items=(replace(item, colour=item.accessory_colour, accessory_colour=item.colour),))
    return None


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    words: set[str] = set()

    def add(*phrases: str) -> None:
        for phrase in phrases:
            words.update(phrase.replace("{}", " ").replace(",", " ").split())

    for category in CATEGORIES:
        add(*spoken_names(category), *category.parts.values())
    add(*COLOURS, *(w for group in COLOUR_WORDS.values() for w in group))
    for table in (STRETCH_WORDS, MATERIAL_WORDS, RELATION_WORDS):
        add(*table, *(w for group in table.values() for w in group))
    add(*ACCESSORIES, *TEMPLATES, "a an the with wearing and under")
    return sorted(words)
