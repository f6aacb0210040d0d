"""The catalogue: how each category is built, what its parts are called and which colours they have by nature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mini import creatures, things
from mini.creatures import Anchor
from mini.sdf import Draw, Shape, rotation_matrix, turned


@dataclass(frozen=True)
class Category:
    """One kind of object; ``catalogue.yaml`` says more about its fields.

    Attributes:
        names: the noun first, then synonyms.
        slots: natural colours by slot; none where it takes the main colour.
        main: all slots that "a red NAME" paints.
    """

    names: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]
    build: Callable[[Shape, Draw], Anchor | None]
    main: tuple[str, ...]
    group: str
    parts: dict[str, str] = field(default_factory=dict)
    materials: tuple[str, ...] = ()
    smooth: float = 0.02
    core: bool = True
    stackable: bool = False
    wears: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


def read_catalogue(path: Path) -> tuple[Category, ...]:
    """All categories in the order of the file, which says what its fields mean."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    colours, _ = groups.pop("colours"), groups.pop("slots")
    return tuple(_category(name, group, row, colours) for group, rows in groups.items() for name, row in rows.items())


def _category(name: str, group: str, row: dict[str, Any], colours: Mapping[str, str]) -> Category:
    slots = {slot: _natural(words, colours) for slot, words in row.pop("slots").items()}
    main = row.pop("main", next(iter(slots)))
    builders = vars(creatures) | vars(things)
    return Category(
        names=(name, *row.pop("synonyms", ())),
        slots=slots,
        build=partial(builders[row.pop("build", name.replace(" ", "_"))], **row.pop("with", {})),
        main=(main, *(slot for slot, choices in slots.items() if not choices and slot != main)),
        group=group,
        materials=tuple(row.pop("materials", ())),
        **row,
    )


def _natural(words: str, colours: Mapping[str, str]) -> tuple[str, ...]:
    """Colours, and names of several; "main" is none of its own."""
    return tuple(" ".join(colours.get(word, word) for word in words.split()).split()) if words != "main" else ()


CATEGORIES = read_catalogue(Path(__file__).with_name("catalogue.yaml"))
BY_NAME = {category.name: category for category in CATEGORIES}
WEARERS = tuple(category.name for category in CATEGORIES if category.wears)


# --- accessories -----------------------------------------------------------------------------------------------------


def top_hat(s: Shape, a: Anchor) -> None:
    x, y, z = a.head
    r = a.head_radius
    s.cylinder("accessory", (x, y + 0.02, z), r * 1.25, 0.025, 0.01)
    s.cylinder("accessory", (x, y + 0.6 * r + 0.03, z), r * 0.78, 0.6 * r, 0.02)


def party_hat(s: Shape, a: Anchor) -> None:
    x, y, z = a.head
    s.cone("accessory", (x, y + a.head_radius * 0.85, z), a.head_radius * 0.72, 0.012, a.head_radius * 0.95, 0.008)


def crown(s: Shape, a: Anchor) -> None:
    x, y, z = a.head
    r = a.head_radius * 0.72
    s.cylinder("accessory", (x, y + 0.03, z), r, 0.05, 0.01)
    for k in range(6):
        dx, _, dz = turned(rotation_matrix(y=60 * k), (0, 0, r * 0.88))
        s.cone("accessory", (x + dx, y + 0.12, z + dz), r * 0.28, 0.005, 0.075, 0.004)


def scarf(s: Shape, a: Anchor) -> None:
    x, y, z = a.neck
    s.torus("accessory", (x, y, z), a.neck_radius, 0.06)
    s.box("accessory", (x + 0.08, y - 0.13, z + a.neck_radius + 0.03), (0.055, 0.13, 0.025), edge=0.02)


ACCESSORIES: dict[str, Callable[[Shape, Anchor], None]] = {
    "hat": top_hat,
    "party hat": party_hat,
    "crown": crown,
    "scarf": scarf,
}
