"""Episodes for the judges: four scenes that contradict each other, of the kits' things and the procedural grammar."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mini.dataset import sample_cameras, sample_light
from mini.names import Name, spoken
from mini.pack import PAINTABLE
from mini.preferences import LOOKS, colour_names, shows
from mini.raster import Surface, draw
from mini.scenes import (
    COLOURS,
    RADIUS,
    RELATION_WORDS,
    article,
    build_scene,
    caption,
    named_slots,
    paint,
    phrased,
    sample_look,
    sample_scene,
)
from mini.tessellate import painted
from mini.variants import Variant, variants
from mini.world import (
    HELD_COLOURS,
    HELD_RELATIONS,
    HELD_SYNONYMS,
    World,
    beside,
    flat_top,
    repainted,
    standing,
)
from mini.world import LOOKS as LOOK_WORDS
from psd_gs.cameras import Cameras

MADE = 0.3
"""Share of episodes of the procedural grammar: parts, accessories, materials."""
PAIRS = 0.25
"""How often such an episode begins with two objects in a relation, beside those that are drawn at random."""
KINDS = {"object": 0.45, "colour": 0.25, "pair": 0.3}
"""What the scenes of an episode of kit things differ in, and how often."""


@dataclass(frozen=True)
class Said:
    """What a scene of the kits shows, and a caption claims: things with their colours (None: their own), in a relation.

    The first may be on, or next to, the second.
    """

    things: tuple[tuple[Name, str | None], ...]
    relation: str | None = None


def heads(name: Name) -> set[str]:
    """The nouns that a thing may be called."""
    return {phrase.split()[-1] for phrase in (name.caption, *name.synonyms)}


def related(a: Name, b: Name) -> bool:
    """Whether one may be called what the other is: doubtful cases are."""
    return bool(heads(a) & heads(b))


def contradicts(seen: Said, claim: Said) -> bool:
    """Whether a picture of ``seen`` certainly does not bear out ``claim``."""
    if seen.relation != claim.relation or len(seen.things) != len(claim.things):
        return True
    orders = [seen.things, seen.things[::-1]] if seen.relation == "next to" else [seen.things]
    borne_out = (
        all(related(a[0], b[0]) and a[1] == b[1] for a, b in zip(things, claim.things, strict=True))
        for things in orders
    )
    return not any(borne_out)


@dataclass(frozen=True)
class Episode:
    """Four scenes as the same cameras see them.

    Attributes:
        rgba: premultiplied.
        captions: one for each.
        changes: in what each differs from the first.
        false: whether picture i contradicts caption j.
        cameras: of every scene.
    """

    rgba: Float[Tensor, "4 V 4 H W"]
    captions: list[str]
    changes: list[str]
    false: list[list[bool]]
    cameras: Cameras


class Scenes:
    """Draws episodes.

    Args:
        world: the things.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = [name for name in world.solids if name.meshes]
        self.weights = [len(name.meshes) ** 0.5 for name in self.names]
        self.paintable = [(n, i) for n in self.names for i in n.meshes if self._paintable(n, i)]

    def _paintable(self, name: Name, ident: str) -> bool:
        return not LOOK_WORDS & set(name.caption.split()) and self.world.pack.mesh(ident).share >= PAINTABLE

    def episode(self, rng: random.Random, views: int) -> Episode:
        """Four scenes of ``views`` orthogonal views."""
        if rng.random() < MADE:
            surfaces, captions, changes, false = self._made(rng)
        else:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            scenes = {"object": self._objects, "colour": self._colours, "pair": self._pair}[kind](rng)
            surfaces, captions, changes, said = zip(*scenes, strict=True)
            false = [[contradicts(seen, claim) for claim in said] for seen in said]
        cameras = sample_cameras(rng, self.world.size)
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        light, first = sample_light(1, generator)[0].numpy(), rng.randrange(4)
        chosen = [(first + k) % len(cameras) for k in range(views)]
        cameras = Cameras(cameras.viewmats[chosen], cameras.Ks[chosen], cameras.width, cameras.height)
        viewmats, Ks = cameras.viewmats.numpy(), cameras.Ks.numpy()
        pictures = [draw(surface, viewmats, Ks, self.world.size, light)[:, :4] for surface in surfaces]
        rgba = torch.from_numpy(np.stack(pictures)).float()
        return Episode(rgba, list(captions), list(changes), false, cameras)

    # --- things of the kits -------------------------------------------------------------------------------------------

    def _thing(
        self, name: Name, colour: str | None, rng: random.Random, ident: str | None = None
    ) -> tuple[Surface, str]:
        """A variant of a thing, normalized, and a phrase for it with its article."""
        mesh = self.world.pack.mesh(ident or rng.choice(name.meshes))
        colours = repainted(mesh, self.world.tone(colour, rng)) if colour else mesh.colours
        surface = self.world.surface(mesh, colours, 0, rng).normalized(RADIUS)
        phrase = name.caption if rng.random() < 0.6 else rng.choice(spoken(name))
        if HELD_SYNONYMS.search(phrase):
            phrase = name.caption
        phrase = f"{self.world.colour_word(colour, rng)} {phrase}" if colour else phrase
        return surface, article(phrase) if name.article else phrase

    def _others(self, known: list[Name], pool: list[Name], rng: random.Random) -> Name:
        """A name of the pool, or else any, that is related to none of those known."""
        free = [n for n in pool if not any(related(n, k) for k in known)]
        while not free:
            free = [n for n in rng.choices(self.names, k=8) if not any(related(n, k) for k in known)]
        return rng.choice(free)

    def _objects(self, rng: random.Random) -> list[tuple[Surface, str, str, Said]]:
        names = rng.choices(self.names, self.weights)
        alike = [n for n in self.names if n.category == names[0].category]
        for pool in (alike, alike, []):
            names.append(self._others(names, pool, rng))
        out = []
        for k, name in enumerate(names):
            surface, text = self._thing(name, None, rng)
            out.append((surface, phrased(text, rng), "object" if k else "right", Said(((name, None),))))
        return out

    def _free_colours(self, name: Name, rng: random.Random, besides: set[str]) -> list[str]:
        colours = [c for c in COLOURS if (name.caption, c) not in HELD_COLOURS and c not in besides]
        return rng.sample(colours, len(colours))

    def _colours(self, rng: random.Random) -> list[tuple[Surface, str, str, Said]]:
        name, ident = rng.choice(self.paintable)
        natural = set(self.world.pack.rows[ident]["colours"].split(","))
        colours = [None, *self._free_colours(name, rng, natural)[: LOOKS - 1]]
        rng.shuffle(colours)
        out = []
        for k, colour in enumerate(colours):
            surface, text = self._thing(name, colour, rng, ident)
            out.append((surface, phrased(text, rng), "colour" if k else "right", Said(((name, colour),))))
        return out

    def _pair(self, rng: random.Random) -> list[tuple[Surface, str, str, Said]]:
        """Two things in a relation; then one exchanged; colours swapped or the other relation; one alone."""
        on = rng.random() < 0.5
        idents: dict[str, str] = {}

        def pick(known: list[Name]) -> Name:
            while True:
                name, ident = rng.choice(self.paintable)
                if not any(related(name, k) for k in known):
                    idents[name.caption] = ident
                    return name

        while True:
            a = pick([])
            b = pick([a])
            c = pick([a, b])
            if any((n.caption, r, b.caption) in HELD_RELATIONS for n in (a, c) for r in ("on", "next to")):
                continue
            shared = [
                x for x in self._free_colours(a, rng, set())
                if not any((n.caption, x) in HELD_COLOURS for n in (b, c))
            ]  # fmt: skip
            if len(shared) < 2:
                continue
            red, blue = shared[:2]
            below = self._thing(b, blue, rng, idents[b.caption])
            top = flat_top(below[0])
            if not on or top is not None:
                break

        def together(first: Name, colours: tuple[str, str], relation: str, change: str):
            above = self._thing(first, colours[0], rng, idents[first.caption])
            under = self._thing(b, colours[1], rng, idents[b.caption])
            if relation == "on":
                assert top is not None
                placed = standing(above[0], top, rng.uniform(0.45, 0.8))
            else:
                placed = beside(above[0], under[0], rng.choice((-1, 1)) * rng.uniform(0.03, 0.1))
            text = f"{above[1]} {rng.choice(RELATION_WORDS[relation])} {under[1]}"
            said = Said(((first, colours[0]), (b, colours[1])), relation)
            return placed.joined(under[0]).normalized(RADIUS), text, change, said

        relation = "on" if on else "next to"
        third = (a, (red, blue), "next to", "relation") if on else (a, (blue, red), "next to", "swap")
        alone = a if rng.random() < 0.5 else b
        colour = red if alone is a else blue
        surface, text = self._thing(alone, colour, rng, idents[alone.caption])
        return [
            together(a, (red, blue), relation, "right"),
            together(c, (red, blue), relation, "object"),
            together(*third),
            (surface, text, "pair", Said(((alone, colour),))),
        ]

    # --- the procedural grammar ---------------------------------------------------------------------------------------

    def _variants(self, rng: random.Random) -> list[Variant]:
        """A look and three variants of it, of different changes where there are as many."""
        while True:
            scene, paired = sample_scene(rng, self.world.core), rng.random() < PAIRS
            while paired and len(scene.items) == 1:
                scene = sample_scene(rng, self.world.core)
            look = sample_look(scene, rng)
            found = variants(look, scene, rng, self.world.core)
            picked: list[Variant] = []
            for variant in sorted(found, key=lambda v: sum(v.change == w.change for w in found)):
                distinct = sum(variant.change == p.change for p in picked)
                if all(variant.look != p.look for p in picked) and (distinct == 0 or rng.random() < 0.25):
                    picked.append(variant)
            if len(picked) >= LOOKS - 1:
                return [Variant("right", look, scene), *rng.sample(picked, LOOKS - 1)]

    def _made(self, rng: random.Random) -> tuple[list[Surface], list[str], list[str], list[list[bool]]]:
        four = self._variants(rng)
        looks = [v.look for v in four]
        palettes = [paint(look, rng) for look in looks]
        names = colour_names(palettes).tolist()
        surfaces = [
            painted(*build_scene(v.scene), palette, named_slots(v.look))
            for v, palette in zip(four, palettes, strict=True)
        ]
        false = [[not shows(seen, shown, claim) for claim in looks] for seen, shown in zip(looks, names, strict=True)]
        return surfaces, [caption(look, rng) for look in looks], [v.change for v in four], false
