"""Write ``prompts.json``, 40 report prompts, half of them held out of training, each with its distractors, and
``dev_prompts.json``, eight others to tune options on.

    python tools/bench/make_prompts.py

Run once, before any training; the judged tables of the project read the committed files.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.objects import BY_NAME, CATEGORIES, WEARERS
from mini.scenes import COLOURS, HELD_COLOURS, HELD_RELATIONS, ItemLook, Look, caption, swapped

Item = ItemLook


def one(category: str, colour: str | None = None, **rest: str) -> Look:
    return Look((Item(category, colour, **rest),))


def two(first: tuple[str, str], relation: str, second: tuple[str, str]) -> Look:
    return Look((Item(*first), Item(*second)), relation)


SEEN = [
    one("corgi"),
    one("car", "red"),
    one("dinosaur", "green"),
    one("penguin"),
    one("duck", "yellow"),
    one("house", part="roof", part_colour="blue"),
    one("snowman", accessory="hat", accessory_colour="red"),
    one("cactus"),
    one("teapot", "blue"),
    one("burger"),
    one("mushroom", "red"),
    one("giraffe"),
    one("rocket", part="fins", part_colour="red"),
    one("tree"),
    one("chair", material="wooden"),
    one("bus", "yellow", part="wheels", part_colour="black"),
    one("pig", accessory="scarf", accessory_colour="blue"),
    two(("apple", "red"), "on", ("cube", "blue")),
    two(("sphere", "red"), "next to", ("cube", "green")),
    one("cat", "white"),
]
HELD_OUT = [
    one("corgi", "blue"),
    one("car", "purple"),
    one("elephant", "pink"),
    one("teddy bear", "green"),
    one("banana", "purple"),
    one("house", "pink"),
    one("chair", "cyan"),
    one("mug", "orange"),
    one("mushroom", "blue"),
    one("donut", "green"),
    one("robot", "lime"),
    one("tree", "pink"),
    one("penguin", "red"),
    one("rocket", "orange"),
    one("bus", "cyan", part="wheels", part_colour="yellow"),
    two(("cube", "blue"), "on", ("cylinder", "yellow")),
    two(("sphere", "red"), "on", ("cube", "green")),
    two(("apple", "red"), "on", ("table", "brown")),
    two(("pyramid", "purple"), "next to", ("cube", "orange")),
    two(("duck", "yellow"), "on", ("cube", "blue")),
]


DEV = [
    one("dog"),
    one("boat", "red"),
    one("castle"),
    one("teddy bear", accessory="scarf", accessory_colour="yellow"),
    one("pig", "blue"),
    one("cake", "cyan"),
    two(("cone", "yellow"), "on", ("cube", "red")),
    two(("cylinder", "green"), "on", ("sphere", "purple")),
]


def is_held_out(look: Look) -> bool:
    colours = any((item.category, item.colour) in HELD_COLOURS for item in look.items)
    names = [item.category for item in look.items]
    return colours or (len(names) == 2 and (names[0], look.relation, names[1]) in HELD_RELATIONS)


def other_objects(look: Look, rng: random.Random) -> list[Look]:
    taken = {item.category for item in look.items}
    first = look.items[0]
    same_group = [
        c.name for c in CATEGORIES if c.core and c.name not in taken and c.group == BY_NAME[first.category].group
    ]
    others = [c.name for c in CATEGORIES if c.core and c.name not in taken]
    names = rng.sample(same_group, 2)
    names += rng.sample([n for n in others if n not in names], 2)
    return [replace(look, items=(Item(n, first.colour, stretch=first.stretch), *look.items[1:])) for n in names]


def other_colours(look: Look, rng: random.Random) -> list[Look]:
    first = look.items[0]
    field = (
        "colour"
        if first.colour or not (first.part or first.accessory)
        else "part_colour"
        if first.part
        else "accessory_colour"
    )
    natural = BY_NAME[first.category].slots[BY_NAME[first.category].main[0]] if not getattr(first, field) else ()
    taken = {getattr(first, field), *natural, *(item.colour for item in look.items), "brown", "beige"}
    names = rng.sample([c for c in COLOURS if c not in taken], 3)
    return [replace(look, items=(replace(first, material=None, **{field: c}), *look.items[1:])) for c in names]


def other_arrangements(look: Look, rng: random.Random) -> list[Look]:
    if len(look.items) == 2:
        a, b = look.items
        if look.relation == "next to":  # symmetric: exchanging the objects would not be wrong
            return [swapped(look), replace(look, relation="on"), replace(look, items=(b, a), relation="on")]
        return [
            swapped(look),
            replace(look, items=(b, a)),
            replace(look, items=(b, replace(a, category="cone")), relation="next to"),
        ]
    (item,) = look.items
    out = [s for s in [swapped(look)] if s]
    if not item.accessory and item.category in WEARERS:
        out.append(Look((replace(item, accessory="hat", accessory_colour="red" if item.colour != "red" else "blue"),)))
    elif item.accessory:
        other = "hat" if item.accessory == "scarf" else "scarf"  # leaving it out would still be true
        out.append(Look((replace(item, accessory=other),)))
    parts = [p for p in BY_NAME[item.category].parts if p != item.part and p not in BY_NAME[item.category].main]
    if parts and len(out) < 2:
        out.append(Look((replace(item, part=parts[0], part_colour="pink" if item.colour != "pink" else "blue"),)))
    solids = [
        ("cube", "red" if item.colour != "red" else "blue"),
        ("cylinder", "green" if item.colour != "green" else "pink"),
        ("table", "white"),
    ]
    while len(out) < 3:
        name, colour = solids.pop(0)
        out.append(
            Look(
                (replace(item, part=None, part_colour=None, accessory=None, accessory_colour=None), Item(name, colour)),
                "on",
            )
        )
    return out[:3]


GROUPS = {"objects": other_objects, "colours": other_colours, "arrangements": other_arrangements}


def row_of(look: Look, seed: int) -> dict:
    """A prompt with its distractors, group by group."""
    rng = random.Random(seed)
    distractors = {name: [caption(other) for other in make(look, rng)] for name, make in GROUPS.items()}
    texts = [text for group in distractors.values() for text in group]
    if len({*texts, caption(look)}) != len(texts) + 1:
        raise SystemExit(f"{caption(look)!r} has equal distractors: {texts}")
    return {"prompt": caption(look), "held_out": is_held_out(look), "look": asdict(look), "distractors": distractors}


def main() -> None:
    for look in SEEN + HELD_OUT:
        if is_held_out(look) != (look in HELD_OUT):
            raise SystemExit(f"{caption(look)!r} stands in the wrong list; compare tools/mini/holdout.json")
        if look in DEV:
            raise SystemExit(f"{caption(look)!r} is both in the report and for tuning")
    for name, chosen, seed in (("prompts", SEEN + HELD_OUT, 0), ("dev_prompts", DEV, 1000)):
        lines = ",\n".join("  " + json.dumps(row_of(look, seed + i)) for i, look in enumerate(chosen))
        Path(__file__).with_name(f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
