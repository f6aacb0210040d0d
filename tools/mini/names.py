"""What the objects of the new world are called: names, synonyms and categories from all three sources.

The sources are the meshes of the kits, the pictures of emoji, and the procedural categories of ``objects.py``.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mini.objects import CATEGORIES, Category

HERE = Path(__file__).parent
HELD = json.loads(path.read_text()) if (path := HERE / "held.json").exists() else {}
"""What no caption of a training step contains; written by ``make_held.py`` before any training."""

GROUPS = {
    "animals": "animal",
    "people and robots": "person",
    "vehicles": "road vehicle",
    "buildings": "building",
    "furniture": "furniture",
    "tools": "tool",
    "food": "food",
    "plants": "plant",
    "solids": "shape",
}
"""Groups of the procedural categories as categories of the kits, for those that the kits do not have."""


@dataclass
class Name:
    """One thing that a prompt can ask for.

    Attributes:
        caption: noun phrase without article.
        category: one of the pack's categories.
        article: whether it takes one (plurals and masses do not).
        synonyms: others for the same thing, the most general ones last.
        meshes: ids of the kit meshes that show it.
        pictures: ids of the emoji that show it.
        made: the procedural category that makes it.
    """

    caption: str
    category: str
    article: bool = True
    synonyms: list[str] = field(default_factory=list)
    meshes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    made: Category | None = None

    @property
    def solid(self) -> bool:
        """Whether it can be seen from all sides."""
        return bool(self.meshes or self.made)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table of the pack."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_meshes(pack: Path) -> list[dict[str, str]]:
    """Rows of the kits' meshes, and of our own where ``mini.corgi`` has added them."""
    ours = pack / "ours.tsv"
    return read_table(pack / "assets.tsv") + (read_table(ours) if ours.exists() else [])


@cache
def names(pack: Path) -> dict[str, Name]:
    """All names by caption; meshes of doubtful quality are left out.

    Args:
        pack: the folder of the pack.
    """
    found: dict[str, Name] = {}

    def add(caption: str, category: str, article: bool, synonyms: list[str]) -> Name:
        name = found.setdefault(caption, Name(caption, category, article))
        name.synonyms += [s for s in synonyms if s and s not in (caption, *name.synonyms)]
        return name

    for row in read_meshes(pack):
        if row["quality"] == "1":
            name = add(row["caption"], row["category"], bool(row["article"]), row["synonyms"].split("|"))
            name.meshes.append(row["id"])
    for row in read_table(pack / "emoji.tsv"):
        if row["quality"] == "1":
            name = add(row["caption"], row["category"], bool(row["article"]), row["synonyms"].split("|"))
            name.pictures.append(row["id"])
    for category in CATEGORIES:
        name = add(category.name, GROUPS[category.group], True, list(category.names[1:]))
        name.made = category
    return found


def spoken(name: Name) -> list[str]:
    """What training captions may call a thing: its caption, and its synonyms but those held out."""
    held = HELD.get("synonyms", {})
    return [name.caption, *(s for s in name.synonyms if s not in held)]
