"""What the prior is shown: scenes of named things, drawn and captioned anew for every batch.

A *set* is four orthogonal views of one scene: a mesh of the kits, two things in a relation, or a procedural scene.
Loose views are four of four scenes: of the same cost, but four things are learned from instead of one.
Emoji are single views, four different ones to a set, as MVDream (arXiv 2308.16512) mixes 2D pictures in.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mini.dataset import sample_background, sample_cameras, sample_light
from mini.names import HELD, Name, spoken
from mini.objects import CATEGORIES
from mini.pack import PAINTABLE, PICTURE, Mesh, Pack
from mini.raster import Surface, crease_normals, draw, z_buffer
from mini.scenes import (
    COLOUR_WORDS,
    COLOURS,
    MATERIAL_WORDS,
    MATERIALS,
    RADIUS,
    RELATION_WORDS,
    STRETCH_WORDS,
    STRETCHES,
    WOOD_COLOURS,
    Item,
    ItemLook,
    Look,
    article,
    build_item,
    build_scene,
    caption,
    named_slots,
    paint,
    phrased,
    sample_look,
    sample_scene,
)  # fmt: skip
from mini.tessellate import CREASE, painted
from psd_gs.cameras import Cameras, mvdream_cameras

VIEWS = 4
SINGLE = 0.6
"""Share of scenes that show one thing."""
MADE = 0.6
"""Of the others, the share of the grammar of the procedural objects; the rest are two things in a relation."""
LEAST_SHARE = 0.04
"""Named parts smaller than this share of the object count no more per pixel than one of this share."""
FLAT_TOP = 0.03
"""A thing can be stood on if the middle of its top is even to this (its radius is ``RADIUS``)."""
SIZE_WORDS = ("large", "big", "small", "little")
BEARERS = ("furniture", "container", "shape", "appliance", "nature", "structure", "machine")
"""Categories of things that others stand on."""
LOOKS = frozenset(
    (*COLOURS, "golden", "gold", "silver", "bronze", "wooden", "metal", "snowy", "autumn", "mossy", "burnt", "mint",
     "colorful", "chocolate", "fire", "ripe", "dead", "police", "zebra", "lava", "ice", "striped", "two-colored")
)  # fmt: skip
"""Words of a name that already say what it looks like: no other colour is named."""
REPLACED = frozenset({"corgi"})
"""Procedural categories of which there are better meshes: only what wears something or has named parts is made."""
HELD_COLOURS = {tuple(pair) for pair in HELD["colours"]}
HELD_RELATIONS = {tuple(triple) for triple in HELD["relations"]}
HELD_SYNONYMS = re.compile(r"\b(" + "|".join(map(re.escape, HELD["synonyms"])) + r")\b")


@dataclass(frozen=True)
class Thing:
    """One object as it is drawn and called."""

    name: str
    phrase: str
    surface: Surface


@dataclass(frozen=True)
class Group:
    """Four pictures and what is said about them.

    Attributes:
        images: over their background, sRGB.
        alpha: coverage by the object, 0 to 255.
        emphasis: how much pixels count, times 32.
        cameras: MVDream's 16 numbers per view; zeros for single pictures.
        captions: one per picture.
        apart: whether they are pictures of different things, which see each other as little as their cameras.
    """

    images: UInt8[Tensor, "V 3 H W"]
    alpha: UInt8[Tensor, "V 1 H W"]
    emphasis: UInt8[Tensor, "V 1 H W"]
    cameras: Float[Tensor, "V 16"]
    captions: list[str]
    apart: bool


def joined(groups: list[Group], apart: bool) -> Group:
    """Several groups as one."""
    fields = [torch.cat([getattr(g, name) for g in groups]) for name in ("images", "alpha", "emphasis", "cameras")]
    return Group(*fields, [text for group in groups for text in group.captions], apart)


def repainted(mesh: Mesh, tone: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "F 3"]:
    """Face colours with the largest cluster in another tone, its lights and shades kept."""
    colours = mesh.colours.copy()
    chosen = mesh.cluster == 0
    brightness = colours[chosen].mean(1, keepdims=True)
    shade = np.clip(brightness / max(float(brightness.mean()), 0.05), 0.7, 1.3)
    colours[chosen] = np.clip(tone * shade, 0, 1)
    return colours


def emphasis_of(named: Float[np.ndarray, "V H W"], alpha: Float[np.ndarray, "V H W"]) -> Float[np.ndarray, "V H W"]:
    """What each pixel counts: more on what the caption names, by the inverse root of its share of the object.

    A scarf or the wheels of a bus are a tenth of the object's pixels, but half of what the caption says.
    """
    share = named.sum() / max(alpha.sum(), 1.0)
    return 1 + named * (max(float(share), LEAST_SHARE) ** -0.5 - 1) if share else np.ones_like(named)


def heights(surface: Surface, reach: float, samples: int = 24) -> Float[np.ndarray, "S S"]:
    """How high the surface is, seen from far above, over a square around the axis; NaN where there is nothing."""
    away = 100.0
    viewmat = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, away], [0, 0, 0, 1]], np.float32)
    focal = samples * away / (2 * reach)
    K = np.array([[focal, 0, samples / 2], [0, focal, samples / 2], [0, 0, 1]], np.float32)
    faces, weights = z_buffer(surface.vertices, surface.triangles, viewmat, K, samples)
    corner = surface.vertices[surface.triangles[faces], 1]
    w = np.concatenate([1 - weights.sum(-1, keepdims=True), weights], -1)
    return np.where(faces < 0, np.nan, (corner * w).sum(-1))


def flat_top(surface: Surface) -> float | None:
    """How high the top is that a thing can stand on; None if there is none."""
    top = heights(surface, 0.12)
    return None if np.isnan(top).any() or np.ptp(top) >= FLAT_TOP else float(top.max())


def standing(surface: Surface, top: float, size: float) -> Surface:
    """A surface in another size, standing at height ``top``."""
    return surface.moved(size, (0, top - size * surface.vertices[:, 1].min() - 0.005, 0))


def beside(surface: Surface, other: Surface, gap: float) -> Surface:
    """A surface on the ground of the other, right of it (positive gap) or left."""
    a, b = surface.vertices, other.vertices
    shift = (b[:, 0].max() - a[:, 0].min() if gap > 0 else b[:, 0].min() - a[:, 0].max()) + gap
    return surface.moved(1, (shift, b[:, 1].min() - a[:, 1].min(), 0))


class World:
    """Draws groups of four pictures.

    Args:
        pack: the meshes and emoji.
        size: pixels per side.
        single: share of scenes that show one thing.
    """

    def __init__(self, pack: Pack, size: int, single: float = SINGLE) -> None:
        self.pack, self.size, self.single = pack, size, single
        self.names = pack.names
        self.solids = [name for name in self.names.values() if name.solid]
        self.weights = [math.sqrt(len(name.meshes) + 2 * bool(name.made)) for name in self.solids]
        self.bearers = [name for name in self.solids if name.category in BEARERS]
        self.flats = [name for name in self.names.values() if name.pictures]
        self.core = tuple(c for c in CATEGORIES if c.core)

    # --- things -------------------------------------------------------------------------------------------------------

    def thing(self, name: Name, rng: random.Random, coloured: float) -> Thing:
        """A variant of a named thing, normalized; its phrase has no article and is no held-out synonym.

        Args:
            coloured: how often a colour is named.
        """
        thing = self._thing(name, rng, coloured)
        return self.thing(name, rng, coloured) if HELD_SYNONYMS.search(thing.phrase) else thing

    def _thing(self, name: Name, rng: random.Random, coloured: float) -> Thing:
        made_too = name.made and name.caption not in REPLACED
        if name.made and (not name.meshes or (made_too and rng.random() < 0.5)):
            return self._made_thing(name, rng, coloured)
        ident = rng.choice(name.meshes)
        mesh = self.pack.mesh(ident)
        says_looks = bool(LOOKS & set(name.caption.split()))
        phrase = name.caption if rng.random() < 0.6 else rng.choice(spoken(name))
        colours, words = mesh.colours, []
        material = 0
        paintable = mesh.share >= PAINTABLE and not says_looks and not LOOKS & set(phrase.split())
        allowed = [c for c in COLOURS if (name.caption, c) not in HELD_COLOURS]
        if paintable and rng.random() < 0.06:
            kind = rng.choice(("shiny", "metal", "wooden"))
            material = MATERIALS.index(kind)
            words.append(rng.choice((kind, *MATERIAL_WORDS[kind])))
            if kind == "wooden" and (wood := [c for c in WOOD_COLOURS if c in allowed]):
                colours = repainted(mesh, self.tone(rng.choice(wood), rng))
        elif paintable and rng.random() < coloured:
            colour = rng.choice(allowed)
            words.append(self.colour_word(colour, rng))
            colours = repainted(mesh, self.tone(colour, rng))
        elif paintable and rng.random() < 0.25:
            natural = self.pack.rows[ident]["colours"].split(",")[0]
            if natural in allowed:
                words.append(self.colour_word(natural, rng))
        surface = self.surface(mesh, colours, material, rng)
        if rng.random() < 0.06:
            stretch = rng.choice(list(STRETCHES))
            surface = surface.stretched(STRETCHES[stretch])
            words.insert(0, rng.choice(STRETCH_WORDS[stretch]))
        return Thing(name.caption, " ".join((*words, phrase)), surface.normalized(RADIUS))

    def surface(self, mesh: Mesh, colours: Float[np.ndarray, "F 3"], material: int, rng: random.Random) -> Surface:
        """A mesh, smooth or flat and mirrored or not; ``material`` is that of its largest colour."""
        cosine = CREASE if rng.random() < 0.5 else np.float32(2)
        surface = Surface(
            mesh.vertices, mesh.triangles, crease_normals(mesh.vertices, mesh.triangles, cosine), colours,
            np.where(mesh.cluster == 0, material, 0).astype(np.int8), np.zeros(len(colours), np.float32),
        )  # fmt: skip
        return surface.stretched((-1, 1, 1)) if rng.random() < 0.5 else surface

    def _made_thing(self, name: Name, rng: random.Random, coloured: float) -> Thing:
        assert name.made
        allowed = [c for c in COLOURS if (name.caption, c) not in HELD_COLOURS]
        colour = rng.choice(allowed) if rng.random() < coloured or name.category == "shape" else None
        item, look = Item(name.caption, rng.getrandbits(31)), Look((ItemLook(name.caption, colour),))
        shape = build_item(item, 1).normalized(RADIUS)
        surface = painted(shape.primitives, shape.smooth, paint(look, rng), [])
        word = [self.colour_word(colour, rng)] if colour else []
        phrase = name.caption if rng.random() < 0.7 else rng.choice(spoken(name))
        return Thing(name.caption, " ".join((*word, phrase)), surface.normalized(RADIUS))

    def tone(self, colour: str, rng: random.Random) -> Float[np.ndarray, " 3"]:
        return np.clip([c + rng.uniform(-0.035, 0.035) for c in COLOURS[colour]], 0, 1).astype(np.float32)

    def colour_word(self, colour: str, rng: random.Random) -> str:
        return rng.choice((colour, *COLOUR_WORDS.get(colour, ()))) if rng.random() < 0.2 else colour

    def phrase(self, thing: Thing) -> str:
        return article(thing.phrase) if self.names[thing.name].article else thing.phrase

    # --- scenes -------------------------------------------------------------------------------------------------------

    def scene(self, rng: random.Random) -> tuple[Surface, str]:
        """A surface inside a ball of ``RADIUS``, and its caption."""
        single, made = rng.random() < self.single, rng.random() < MADE
        if not single and made:
            categories = self.core if rng.random() < 0.6 else CATEGORIES
            made = sample_scene(rng, categories)
            look = sample_look(made, rng, named=0.35)
            if any(i.category in REPLACED and not i.part and not i.accessory for i in look.items):
                return self.scene(rng)
            primitives, smooth = build_scene(made)
            return painted(primitives, smooth, paint(look, rng), named_slots(look)), caption(look, rng)
        if not single:
            surface, text = self.pair(rng)
        else:
            thing = self.thing(rng.choices(self.solids, self.weights)[0], rng, coloured=0.3)
            surface, text = thing.surface, self.phrase(thing)
        return surface, phrased(text, rng)

    def pair(self, rng: random.Random) -> tuple[Surface, str]:
        """Two things in a relation."""
        relation = "on" if rng.random() < 0.55 else "next to"
        first = self.thing(rng.choices(self.solids, self.weights)[0], rng, coloured=0.6)
        first = replace(first, surface=replace(first.surface, named=np.ones_like(first.surface.named)))
        if relation == "on":
            for _ in range(12):
                second = self.thing(rng.choice(self.bearers), rng, coloured=0.6)
                top = flat_top(second.surface)
                if top is not None and (first.name, relation, second.name) not in HELD_RELATIONS:
                    break
            else:
                return self.pair(rng)
            assert top is not None
            placed = standing(first.surface, top, rng.uniform(0.45, 0.8))
            phrases = self.phrase(first), self.phrase(second)
            if rng.random() < 0.12:
                text = f"{phrases[1]} under {phrases[0]}"
            else:
                text = f"{phrases[0]} {rng.choice(RELATION_WORDS['on'])} {phrases[1]}"
            return placed.joined(second.surface).normalized(RADIUS), text
        second = self.thing(rng.choices(self.solids, self.weights)[0], rng, coloured=0.6)
        if first.name == second.name or (first.name, relation, second.name) in HELD_RELATIONS:
            return self.pair(rng)
        size, sized = rng.uniform(0.75, 1.1), rng.random() < 0.2
        if sized:
            size = rng.choice((0.5, 1.6))
            big, small = SIZE_WORDS[:2], SIZE_WORDS[2:]
            words = (rng.choice(small), rng.choice(big)) if size > 1 else (rng.choice(big), rng.choice(small))
            first = replace(first, phrase=f"{words[0]} {first.phrase}")
            second = replace(second, phrase=f"{words[1]} {second.phrase}")
        other, side, gap = second.surface.moved(size), rng.choice((-1.0, 1.0)), rng.uniform(0.03, 0.1)
        placed = beside(first.surface, other, side * gap)
        text = f"{self.phrase(first)} {rng.choice(RELATION_WORDS['next to'])} {self.phrase(second)}"
        return placed.joined(other).normalized(RADIUS), text

    # --- pictures -----------------------------------------------------------------------------------------------------

    def solid(self, rng: random.Random, views: slice = slice(None)) -> Group:
        """Four orthogonal views of one scene, or some of them."""
        surface, text = self.scene(rng)
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        cameras = sample_cameras(rng, self.size)[views]
        return self.views(surface, text, cameras, sample_light(1, generator)[0], sample_background(1, generator)[0])

    def loose(self, rng: random.Random) -> Group:
        """One view each of four scenes."""
        return joined([self.solid(rng, slice(1)) for _ in range(VIEWS)], apart=True)

    def views(self, surface: Surface, text: str, cameras: Cameras, light: Tensor, background: Tensor) -> Group:
        """A scene as given cameras see it."""
        out = draw(surface, cameras.viewmats.numpy(), cameras.Ks.numpy(), self.size, light.numpy())
        rgb, alpha, named = out[:, :3], out[:, 3:4], out[:, 4:5]
        images = rgb + (1 - alpha) * background.numpy()[:, None, None]
        emphasis = emphasis_of(named, alpha)
        captions = [text] * len(out)
        return Group(
            _bytes(images), _bytes(alpha), _bytes(emphasis, 32), mvdream_cameras(cameras), captions, apart=False
        )

    def flat(self, rng: random.Random) -> Group:
        """Four pictures of different things, mirrored, turned, scaled and moved a little."""
        images, alphas, captions = [], [], []
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        for name in rng.sample(self.flats, VIEWS):
            ident = rng.choice(name.pictures)
            picture = Image.fromarray(self.pack.emoji[ident])
            if rng.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            side = PICTURE / rng.uniform(0.75, 1.0)
            corner = [PICTURE / 2 - side * rng.uniform(0.45, 0.55) for _ in range(2)]
            box = (*corner, *(c + side for c in corner))
            premultiplied = picture.convert("RGBa").rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
            moved = premultiplied.transform(
                (self.size, self.size), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
            )
            rgba = np.asarray(moved, np.float32).transpose(2, 0, 1) / 255
            background = sample_background(1, generator)[0].numpy()
            images.append(rgba[:3] + (1 - rgba[3:]) * background[:, None, None])
            alphas.append(rgba[3:])
            phrase = rng.choice(spoken(name)) if rng.random() < 0.4 else name.caption
            natural = self.pack.pictures[ident]["colours"].split(",")[0]
            says_looks = LOOKS & {*phrase.split(), *name.caption.split()}
            free = (name.caption, natural) not in HELD_COLOURS and not HELD_SYNONYMS.search(f"{natural} {phrase}")
            if natural and not says_looks and free and rng.random() < 0.15:
                phrase = f"{natural} {phrase}"
            captions.append(phrased(article(phrase) if name.article else phrase, rng))
        alpha = np.stack(alphas)
        return Group(
            _bytes(np.stack(images)), _bytes(alpha), _bytes(np.ones_like(alpha), 32), torch.zeros(VIEWS, 16), captions,
            apart=True,
        )  # fmt: skip


def _bytes(array: np.ndarray, scale: float = 255) -> UInt8[Tensor, ...]:
    return torch.from_numpy(np.clip(array * scale + 0.5, 0, 255).astype(np.uint8))


class Groups(Dataset):
    """Groups by number: the same number always gives the same group, whoever draws it.

    Args:
        pack: folder of the pack; every worker reads it once.
        size: pixels per side.
        batch: so many groups in a row are of one kind: sets, loose views or emoji.
        flat: share of batches of emoji.
        seed: of everything.
        single: share of the scenes that show one thing.
        loose: share of batches of loose views.
    """

    def __init__(
        self,
        pack: Path | str,
        size: int,
        batch: int,
        flat: float,
        seed: int,
        single: float = SINGLE,
        loose: float = 0.0,
    ) -> None:
        self.pack, self.size, self.batch, self.flat, self.seed = pack, size, batch, flat, seed
        self.single, self.loose = single, loose
        self.world: World | None = None

    def __getitem__(self, index: int) -> Group:
        if self.world is None:
            self.world = World(Pack(self.pack), self.size, self.single)
        rng = random.Random(f"{self.seed}:{index}")
        kind = random.Random(f"{self.seed}/{index // self.batch}").random()
        if kind < self.flat:
            return self.world.flat(rng)
        return self.world.loose(rng) if kind < self.flat + self.loose else self.world.solid(rng)
