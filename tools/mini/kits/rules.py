"""Which meshes of the kits are taken, and what they show.

``captions_*.txt`` name the kits and their rules::

    [KIT] turn=90 gain=1.2                   options of all its meshes
    @category
    Car_*|Taxi = car|vehicle ^ turn=180      patterns of names = caption|synonyms, marks

Marks: ``^`` has a front, ``~`` has none (otherwise the category decides), ``!`` is of doubtful use, ``turn=`` quarter
turns about +Y. What no rule names is left out. ``fixes.txt`` has options of single meshes (``KIT/NAME turn=90``;
``KIT/*`` for all of a kit), which win: turn, pitch, gain, caption, front, q (quality) and drop.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mini.kits.phrases import MERGED

HERE = Path(__file__).parent
FACING = frozenset({
    "animal", "sea animal", "creature", "person", "furniture", "appliance", "road vehicle", "train", "watercraft",
    "aircraft", "building",
})  # fmt: skip
"""Categories whose things have a front, unless their rule says otherwise."""


@dataclass(frozen=True)
class Rule:
    """A line of the lists.

    Attributes:
        patterns: of names of meshes, as in a shell.
        captions: what they show, and synonyms.
        category: of the pack.
        options: as text: front, q and turn, where the line tells them.
    """

    patterns: list[str]
    captions: list[str]
    category: str
    options: Mapping[str, str]


@dataclass
class Kit:
    """The rules of one kit, in their order, and the options of all its meshes and of single ones by name."""

    options: Mapping[str, str] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    fixes: dict[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What becomes of a mesh: its captions, its place in the table, and quarter turns and gain of its colours."""

    captions: list[str]
    category: str
    front: bool
    quality: int
    turn: int
    pitch: int
    gain: float


def read_kits(lists: Iterable[str], fixes: str) -> dict[str, Kit]:
    """Kits by name, from the texts of the lists; a kit may stand in several of them."""
    kits: dict[str, Kit] = {}
    for text in lists:
        kit, category = Kit(), ""
        for line in _lines(text):
            if line.startswith("@"):
                category = MERGED.get(line[1:], line[1:])
            elif " = " in line:
                kit.rules.append(_rule(line, category))
            else:
                name, _, options = line[1:].partition("]")
                kit = kits.setdefault(name, Kit(_options(options.split())))
    for line in _lines(fixes):
        place, *words = line.split()
        name, _, mesh = place.partition("/")
        kits[name].fixes[mesh] = _options(words)
    return kits


def committed_kits() -> dict[str, Kit]:
    """Those of the lists beside this file."""
    lists = [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("captions_*.txt"))]
    return read_kits(lists, (HERE / "fixes.txt").read_text(encoding="utf-8"))


def choose(kit: Kit, name: str) -> Choice | None:
    """What a mesh is; None if it is left out. A rule that has the very name comes before all patterns."""
    named = [rule for rule in kit.rules if name in rule.patterns]
    matching = (rule for rule in kit.rules if any(fnmatch.fnmatchcase(name, pattern) for pattern in rule.patterns))
    rule = next(iter(named), None) or next(matching, None)
    fix = {**kit.fixes.get("*", {}), **kit.fixes.get(name, {})}
    if rule is None or "drop" in fix:
        return None
    options = {"turn": "0", "pitch": "0", "gain": "1", "q": "1", **kit.options, **rule.options, **fix}
    captions = options["caption"].replace("_", " ").split("|") if "caption" in options else rule.captions
    front = options["front"] == "1" if "front" in options else rule.category in FACING
    turn, pitch, quality = (int(options[key]) for key in ("turn", "pitch", "q"))
    return Choice(captions, rule.category, front, quality, turn, pitch, float(options["gain"]))


def _rule(line: str, category: str) -> Rule:
    patterns, _, said = line.partition(" = ")
    words = said.split()
    marks = {"^": "front=1", "~": "front=0", "!": "q=2"}
    options = [marks.get(word, word) for word in words if word in marks or word.startswith("turn=")]
    captions = " ".join(word for word in words if word not in marks and not word.startswith("turn="))
    return Rule(patterns.split("|"), list(dict.fromkeys(captions.split("|"))), category, _options(options))


def _options(words: Iterable[str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _lines(text: str) -> Iterable[str]:
    return (line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
