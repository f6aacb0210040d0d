"""Write ``held.json``: what no training caption says, and what reports ask for. Run once, before any training.

    cd tools && python -m mini.make_held PACK

Everything is drawn by one seeded generator from the pack's tables; nothing was picked by looking at results.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from mini.names import HERE, Name
from mini.pack import PAINTABLE, Pack
from mini.scenes import COLOURS, HELD_COLOURS, HELD_RELATIONS, article

SYNONYMS, REPORT_NAMES, REPORT_PROMPTS, DEV_PROMPTS = 200, 100, 60, 16
HELD_COLOUR_NAMES, HELD_PAIRS = 120, 60
VAGUE = {
    "wood", "branch", "block", "bar", "ramp", "container", "containers", "bundle", "mineral", "trees", "skip",
    "screw", "spring", "home", "jet", "wide", "flag", "jewel", "jewels", "blade", "lock", "gift", "stack", "hill",
    "arch", "ruin", "coach", "cabinet", "rogue", "carp", "booth", "tray", "coat", "ring",
}  # fmt: skip
"""Synonyms that mean other things as often, and so have no one right object."""
QUALITIES = {
    *COLOURS,
    "small", "large", "big", "tall", "long", "short", "old", "wide", "thin", "flat", "round", "square", "half",
    "open", "closed", "broken", "empty", "bare", "golden", "wooden", "stone", "metal", "gold", "silver",
}  # fmt: skip
"""Names that begin with these say how a thing looks rather than what it is."""
BASES = ("cube", "table", "wooden crate", "tree stump", "barrel", "desk", "cardboard box", "workbench", "stool")
"""What the second object of a report prompt may be if something stands on it."""


def contains(text: str, phrase: str) -> bool:
    return f" {phrase} " in f" {text} "


def unambiguous(names: dict[str, Name]) -> dict[str, list[str]]:
    """Synonyms that share no word with what they stand for and are part of no caption, with what they stand for."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name in names.values():
        for synonym in name.synonyms:
            owners[synonym].append(name.caption)
    out = {}
    for synonym, captions in owners.items():
        words = set(synonym.split())
        heads = {caption.split(" with ")[0].split()[-1] for caption in captions}
        if (
            len(words) <= 2
            and synonym not in VAGUE
            and (len(captions) <= 2 or len(heads) == 1)
            and any(names[c].solid for c in captions)
            and not any(words & set(c.split()) for c in captions)
            and not any(contains(c, synonym) for c in names)
        ):
            out[synonym] = sorted(captions)
    return out


def natural_colours(name: Name, pack: Pack) -> set[str]:
    """Colour names of any variant of a thing."""
    found = {c for i in name.meshes for c in pack.rows[i]["colours"].split(",")}
    if name.made:
        found |= {c for slot in name.made.main for c in name.made.slots[slot]}
    return found


def paintable(name: Name, pack: Pack) -> bool:
    shares = [pack.mesh(i).share for i in name.meshes]
    return bool(name.made) or (bool(shares) and min(shares) >= PAINTABLE)


def plain(name: Name) -> bool:
    """A noun of one or two words that says what the thing is."""
    words = name.caption.split()
    return name.solid and name.article and len(words) <= 2 and words[0] not in QUALITIES


def words_of(name: Name) -> set[str]:
    return {word for phrase in (name.caption, *name.synonyms) for word in phrase.split()}


def distractors(name: Name, names: dict[str, Name], rng: random.Random, same: int, other: int) -> list[str]:
    """Plain names that share no word with a thing's caption or synonyms, of its category first."""
    taken = words_of(name)
    free = [
        n for n in names.values() if plain(n) and not taken & {w for p in (n.caption, *n.synonyms) for w in p.split()}
    ]
    near = [n.caption for n in free if n.category == name.category]
    near = rng.sample(near, min(same, len(near)))
    far = rng.sample([n.caption for n in free if n.category != name.category], same + other - len(near))
    return near + far


def prompt_rows(
    names: dict[str, Name], held: dict, pack: Pack, rng: random.Random, n: int, avoid: set[str]
) -> list[dict]:
    """Prompts with ten wrong captions each: four objects, three colours, three arrangements."""
    coloured = {tuple(pair) for pair in held["colours"]}
    pool = [name for name in names.values() if plain(name) and name.caption not in avoid]
    paint = [name for name in pool if paintable(name, pack)]
    held_names = [name for name in paint if any((name.caption, c) in coloured for c in COLOURS)]
    kinds = ["plain"] * 6 + ["colour"] * 4 + ["held colour"] * 3 + ["on"] * 3 + ["held on"] * 2 + ["next to"] * 2
    rows = []
    for i in range(n):
        kind = kinds[i * len(kinds) // n]
        name = rng.choice({"plain": pool, "held colour": held_names}.get(kind, paint))
        free = [c for c in COLOURS if (name.caption, c) not in coloured]
        colour, relation, second = None, None, None
        if kind == "held colour":
            colour = rng.choice([c for c in COLOURS if (name.caption, c) in coloured])
        elif kind != "plain":
            colour = rng.choice(free)
        if kind in ("on", "next to"):
            second = rng.choice(
                [b for b in (BASES if kind == "on" else [p.caption for p in paint]) if b != name.caption]
            )
            relation = kind
        elif kind == "held on":
            first, relation, second = rng.choice([r for r in held["relations"] if r[0] not in avoid])
            name = names[first]
        other = rng.choice([c for c in COLOURS if c != colour and (second, c) not in coloured]) if second else None

        def text(what: str, tone=colour, rel=relation, base=second, base_tone=other) -> str:
            phrase = article(f"{tone} {what}" if tone else what)
            return f"{phrase} {rel} {article(f'{base_tone} {base}')}" if rel else phrase

        what = name.caption
        objects = [text(w) for w in distractors(name, names, rng, 2, 2)]
        tones = rng.sample([c for c in COLOURS if c not in (colour, other, *natural_colours(name, pack))], 3)
        colours = [text(what, tone=c) for c in tones]
        if relation:
            reverse = f"{article(f'{other} {second}')} {relation} {article(f'{colour} {what}')}"
            swapped = text(what, tone=other, base_tone=colour)
            moved = text(what, rel="next to" if relation == "on" else "on")
            alone = text(what, base=rng.choice([b for b in BASES if b not in (second, what)]))
            arranged = [swapped, moved, reverse if relation == "on" else alone]
        else:
            near = [article(f"{tone} {base}") for tone, base in zip(tones, ("cube", "table", "barrel"), strict=True)]
            arranged = [f"{text(what)} {rel} {base}" for rel, base in zip(("on", "on", "next to"), near, strict=True)]
        wrong = {"objects": objects, "colours": colours, "arrangements": arranged}
        rows.append({"prompt": text(what), "held_out": kind.startswith("held"), **wrong})
        avoid = avoid | {what}
        pool, paint, held_names = ([n for n in group if n.caption != what] for group in (pool, paint, held_names))
    return rows


def make(pack: Pack) -> dict:
    """All lists."""
    rng = random.Random(20261129)
    names = pack.names
    candidates = unambiguous(names)
    chosen = sorted(rng.sample(sorted(candidates), SYNONYMS))
    held: dict = {"synonyms": {s: candidates[s] for s in chosen}}
    pool = [name for name in names.values() if plain(name)]
    paint = sorted(name.caption for name in pool if paintable(name, pack))
    old = {name for name, _ in HELD_COLOURS}
    colours = sorted(map(list, HELD_COLOURS))
    for caption in sorted(rng.sample([c for c in paint if c not in old], HELD_COLOUR_NAMES)):
        free = [c for c in COLOURS if c not in natural_colours(names[caption], pack)]
        colours.append([caption, rng.choice(free)])
    held["colours"] = colours
    relations = sorted(map(list, HELD_RELATIONS))
    for first in rng.sample(paint, HELD_PAIRS):
        relations.append([first, "on", rng.choice([b for b in BASES if b != first])])
    held["relations"] = relations
    by_category: dict[str, list[str]] = defaultdict(list)
    for name in pool:
        by_category[name.category].append(name.caption)
    order = [rng.sample(group, len(group)) for _, group in sorted(by_category.items())]
    rows: list[str] = []
    while len(rows) < REPORT_NAMES:  # one of each category in turn, so that large ones do not fill the list
        for group in order:
            if group and len(rows) < REPORT_NAMES:
                rows.append(group.pop())
    report = [{"name": row, "others": distractors(names[row], names, rng, 9, 10)} for row in sorted(rows)]
    held["names"] = report
    tests = {s: distractors(names[candidates[s][0]], names, rng, 9, 10) for s in chosen}
    held["synonym_tests"] = [{"synonym": s, "names": candidates[s], "others": others} for s, others in tests.items()]
    held["prompts"] = prompt_rows(names, held, pack, rng, REPORT_PROMPTS, set(rows) | {"corgi"})
    used = {word for row in held["prompts"] for word in row["prompt"].split()}
    taken = set(rows) | {"corgi"} | {n for n in names if set(n.split()) & used}
    held["dev_prompts"] = prompt_rows(names, held, pack, rng, DEV_PROMPTS, taken)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="folder of the pack")
    args = parser.parse_args()
    held = make(Pack(args.pack))
    lines = []
    for key, value in held.items():  # one entry a line, so that a difference can be read
        items = value.items() if isinstance(value, dict) else value
        rows = [f"{json.dumps(i[0])}: {json.dumps(i[1])}" if isinstance(value, dict) else json.dumps(i) for i in items]
        brackets = "{}" if isinstance(value, dict) else "[]"
        lines.append(f"{json.dumps(key)}: {brackets[0]}\n" + ",\n".join(rows) + f"\n{brackets[1]}")
    (HERE / "held.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
