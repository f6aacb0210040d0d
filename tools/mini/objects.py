"""The catalogue: how each category is built, what its parts are called and which colours they have by nature.

Builders write in loose units (+Y up, the front faces +Z); the scene normalizes the size afterwards.
Every number is drawn from a range, so that no two objects of a category are alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mini.sdf import PATCHES, SPOTS, STRIPES, Shape, rotation_matrix

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Anchor:
    """Where accessories go: the top of the head, its radius, and the neck."""

    head: Point
    head_radius: float
    neck: Point
    neck_radius: float


Builder = Callable[[Shape, random.Random], Anchor | None]


@dataclass(frozen=True)
class Category:
    """One kind of object.

    Attributes:
        names: the noun first, then synonyms.
        slots: slot name to its natural colours (one is drawn).
        build: adds the primitives to a shape.
        main: slots that "a red NAME" paints.
        parts: slots that a caption may name ("with black wheels"), with the noun used.
        group: the heading in the model card.
        core: part of the small recipe that two CPU cores can train.
        stackable: small and simple enough to stand on, or carry, something else.
        smooth: radius of the smooth union.
        materials: materials that a caption may name.
    """

    names: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]
    build: Builder
    main: tuple[str, ...]
    group: str
    parts: dict[str, str] = field(default_factory=dict)
    core: bool = True
    stackable: bool = False
    smooth: float = 0.02
    materials: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0]


# --- animals ---------------------------------------------------------------------------------------------------------


def quadruped(
    body: tuple[float, float, float] = (0.2, 0.2, 0.4),
    legs: tuple[float, float] = (0.25, 0.07),
    neck: tuple[float, float] = (0.1, 0.15),
    head: tuple[float, float, float] = (0.17, 0.17, 0.18),
    snout: tuple[float, float] = (0.09, 0.14),
    ears: str = "pointed",
    ear_size: float = 0.12,
    tail: str = "thin",
    tail_length: float = 0.3,
    pattern: int = 0,
    mane: str = "none",
    trunk: bool = False,
    horns: bool = False,
    patches: bool = False,
    legs_slot: str = "legs",
    belly: bool = False,
    bib: bool = False,
) -> Builder:
    """Four legs, a body, a neck, a head: dogs, cats and most of the farm."""

    def build(s: Shape, rng: random.Random) -> Anchor:
        u = rng.uniform
        bx, by, bz = (b * u(0.88, 1.12) for b in body)
        leg_length, leg_radius = legs[0] * u(0.85, 1.15), legs[1] * u(0.9, 1.1)
        y = leg_length + by * 0.8
        kwargs = {"pattern": pattern, "second": "marks"} if pattern else {}
        s.ball("body", (0, y, 0), (bx, by, bz), **kwargs)
        if belly:
            s.ball("belly", (0, y - 0.25 * by, 0.1 * bz), (bx * 0.85, by * 0.82, bz * 0.85))
        stride = u(-0.06, 0.06)
        for side in (-1, 1):
            for end, swing in ((1, side * stride), (-1, -side * stride)):
                foot = (side * bx * 0.62, leg_radius * 0.6, end * bz * 0.68 + swing)
                s.limb(legs_slot, (side * bx * 0.6, y - 0.2 * by, end * bz * 0.62), foot, leg_radius * 1.15, leg_radius)
        rise, forward = neck[0] * u(0.9, 1.15), neck[1] * u(0.9, 1.1)
        base = (0.0, y + 0.35 * by, bz * 0.72)
        hx, hy, hz = (h * u(0.92, 1.1) for h in head)
        top = (0.0, base[1] + rise + 0.4 * hy, base[2] + forward)
        s.limb("body", base, (0, top[1] - 0.2 * hy, top[2] - 0.3 * hz), bx * 0.62, min(bx, hx) * 0.62, **kwargs)
        if mane == "lion":
            s.ball("mane", (0, top[1], top[2] - 0.5 * hz), (hx * 1.75, hy * 1.75, hz * 0.9))
        elif mane == "horse":
            s.limb("mane", (0, base[1] + 0.9 * bx, base[2] - 0.3 * hz), (0, top[1] + hy, top[2] - 0.4 * hz), 0.055, 0.05)
        s.ball("head", top, (hx, hy, hz))
        if bib:
            s.ball("belly", (0, base[1] - 0.35 * by, base[2] + 0.12 * bz), (bx * 0.62, by * 0.72, bz * 0.28))
        width, reach = snout[0] * u(0.9, 1.1), snout[1] * u(0.9, 1.15)
        muzzle_y = top[1] - 0.3 * hy
        if trunk:
            tip = (0.0, top[1] - u(0.42, 0.55), top[2] + hz + u(0.08, 0.2))
            s.limb("head", (0, muzzle_y, top[2] + 0.7 * hz), (0, top[1] - 0.3, top[2] + hz + 0.05), 0.075, 0.06)
            s.limb("head", (0, top[1] - 0.3, top[2] + hz + 0.05), tip, 0.06, 0.045)
            for side in (-1, 1):
                s.limb("tusks", (side * 0.08, muzzle_y - 0.05, top[2] + 0.8 * hz), (side * 0.1, muzzle_y - 0.14, top[2] + hz + 0.16), 0.025, 0.012)
        elif reach:
            s.ball("snout", (0, muzzle_y, top[2] + hz * 0.7 + reach * 0.35), (width, width * 0.8, reach * 0.75))
            nose_z = top[2] + hz * 0.7 + reach * 1.05
            s.ball("nose", (0, muzzle_y + width * 0.3, nose_z), (width * 0.38, width * 0.32, width * 0.3))
        for side in (-1, 1):
            s.ball("nose", (side * hx * 0.48, top[1] + 0.2 * hy, top[2] + hz * 0.84), (0.032, 0.036, 0.025))
            if patches:
                s.ball("nose", (side * hx * 0.46, top[1] + 0.15 * hy, top[2] + hz * 0.76), (0.062, 0.075, 0.04))
            size = ear_size * u(0.85, 1.15)
            if ears == "pointed":
                s.cone("ears", (side * hx * 0.62, top[1] + hy * 0.75 + size * 0.5, top[2] - 0.1 * hz), size * 0.62, 0.012, size, 0.01, rotation=rotation_matrix(z=-side * u(8, 20)))
            elif ears == "floppy":
                s.ball("ears", (side * (hx + 0.02), top[1] + 0.05 * hy - 0.3 * size, top[2] - 0.1 * hz), (0.035, size, size * 0.6), rotation_matrix(z=side * u(8, 20)))
            elif ears == "round":
                s.ball("ears", (side * hx * 0.75, top[1] + hy * 0.8, top[2] - 0.1 * hz), (size * 0.6, size * 0.6, size * 0.35))
            elif ears == "long":
                s.limb("ears", (side * hx * 0.45, top[1] + hy * 0.7, top[2] - 0.1 * hz), (side * hx * u(0.5, 0.9), top[1] + hy + 2.2 * size, top[2] - 0.2 * hz), size * 0.34, size * 0.26)
            elif ears == "huge":
                s.ball("ears", (side * (hx + 0.75 * size), top[1] + 0.05, top[2] - 0.25 * hz), (size, size * 1.25, 0.035), rotation_matrix(y=side * u(15, 35)))
            if horns:
                s.limb("horns", (side * hx * 0.5, top[1] + hy * 0.8, top[2]), (side * hx * 0.95, top[1] + hy + 0.13, top[2] + 0.03), 0.03, 0.014)
        rump = (0.0, y + 0.4 * by, -bz * 0.88)
        length = tail_length * u(0.85, 1.2)
        if tail == "thin":
            s.limb("tail", rump, (0, rump[1] - 0.4 * length, rump[2] - 0.8 * length), 0.035, 0.025)
        elif tail == "up":
            s.limb("tail", rump, (u(-0.05, 0.05), rump[1] + length, rump[2] - 0.35 * length), 0.04, 0.03)
        elif tail == "bushy":
            s.ball("tail", (0, rump[1] + 0.25 * length, rump[2] - 0.45 * length), (0.095, 0.1, length * 0.62), rotation_matrix(x=u(15, 40)))
            s.ball("belly", (0, rump[1] + 0.62 * length, rump[2] - 0.92 * length), (0.06, 0.065, 0.1), rotation_matrix(x=30))
        elif tail == "stub":
            s.ball("tail", rump, (0.065, 0.065, 0.075))
        elif tail == "hair":
            s.limb("mane", rump, (0, rump[1] - length, rump[2] - 0.2), 0.06, 0.035)
        return Anchor((0, top[1] + hy * 0.86, top[2] - 0.05 * hz), hx, (0, (base[1] + top[1]) / 2 - 0.02, (base[2] + top[2]) / 2 + 0.02), max(bx * 0.68, hx * 0.72))

    return build


def bird(
    body: tuple[float, float, float],
    head: float,
    neck: float,
    beak: tuple[float, float],
    legs: float,
    comb: bool = False,
    tail: float = 0.15,
    upright: bool = False,
    big_eyes: bool = False,
) -> Builder:
    """Two legs, wings and a beak."""

    def build(s: Shape, rng: random.Random) -> Anchor:
        u = rng.uniform
        bx, by, bz = (b * u(0.9, 1.1) for b in body)
        y = legs + by * 0.92
        s.ball("body", (0, y, 0), (bx, by, bz))
        s.ball("belly", (0, y - 0.1 * by, 0.22 * bz), (bx * 0.8, by * 0.85, bz * 0.85))
        r = head * u(0.92, 1.08)
        top = (0.0, y + by * (0.95 if upright else 0.75) + neck, bz * (0.15 if upright else 0.72))
        s.limb("head", (0, y + 0.3 * by, top[2] * 0.7), top, r * 0.9, r * 0.75)
        s.ball("head", top, (r, r, r))
        s.cone("beak", (0, top[1] - 0.1 * r, top[2] + r + beak[1] * 0.35), beak[0], 0.012, beak[1] * 0.6, 0.01, axis="z")
        for side in (-1, 1):
            size = r * (0.42 if big_eyes else 0.18)
            if big_eyes:
                s.ball("belly", (side * r * 0.42, top[1] + 0.12 * r, top[2] + r * 0.66), (size, size, size * 0.5))
            s.ball("eyes", (side * r * 0.44, top[1] + 0.14 * r, top[2] + r * (0.86 if big_eyes else 0.82)), size * (0.6 if big_eyes else 1))
            s.ball("wings", (side * bx * 0.98, y + 0.05, -0.05 * bz), (0.05, by * 0.72, bz * 0.78), rotation_matrix(z=side * u(3, 14), x=u(-15, 5)))
            if legs > 0.06:
                s.limb("beak", (side * bx * 0.4, y - 0.8 * by, 0), (side * bx * 0.4, 0.02, 0.0), 0.026)
            s.ball("beak", (side * bx * 0.45, 0.02, 0.06 + 0.25 * bz), (0.08, 0.025, 0.11))
        s.ball("wings", (0, y + (0.1 if not upright else -0.75 * by), -bz - tail * 0.3), (bx * 0.45, 0.05, tail), rotation_matrix(x=25 if not upright else -20))
        if comb:
            for k in range(3):
                s.ball("comb", (0, top[1] + r + 0.01, top[2] - 0.07 + 0.07 * k), (0.025, 0.055, 0.045))
            s.ball("comb", (0, top[1] - r * 0.75, top[2] + r * 0.95), (0.025, 0.06, 0.03))
        return Anchor((0, top[1] + r * 0.88, top[2]), r, (0, top[1] - r * 0.95, top[2] * 0.9), r * 0.85)

    return build


def fish(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    length, height = u(0.4, 0.5), u(0.2, 0.3)
    s.ball("body", (0, 0, 0), (0.13 * u(0.9, 1.2), height, length), pattern=STRIPES if rng.random() < 0.3 else 0, second="fins")
    for side in (-1, 1):
        s.ball("fins", (side * 0.16, -0.05, 0.08), (0.03, 0.08, 0.14), rotation_matrix(y=side * 35))
        s.ball("eyes", (side * 0.085, 0.06, length * 0.74), 0.045)
    s.box("fins", (0, 0.0, -length - 0.1), (0.02, u(0.18, 0.26), 0.14), taper=(0, 0))
    s.ball("fins", (0, height, -0.05), (0.02, 0.12, 0.22))


def whale(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0, 0.05), (u(0.24, 0.3), u(0.24, 0.28), 0.5))
    s.ball("belly", (0, -0.06, 0.1), (0.22, 0.22, 0.44))
    s.limb("body", (0, 0, -0.35), (0, u(0.08, 0.2), -0.72), 0.14, 0.05)
    for side in (-1, 1):
        s.ball("body", (side * 0.16, 0.17, -0.76), (0.17, 0.03, 0.09), rotation_matrix(y=side * 25))
        s.ball("body", (side * 0.32, -0.12, 0.12), (0.18, 0.03, 0.1), rotation_matrix(z=-side * 25))
        s.ball("eyes", (side * 0.225, 0.03, 0.34), 0.04)
    s.limb("spout", (0, 0.25, 0.1), (0, 0.42, 0.1), 0.03)
    for side in (-1, 1):
        s.limb("spout", (0, 0.4, 0.1), (side * 0.12, 0.46, 0.1), 0.03)


def turtle(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    r = u(0.36, 0.42)
    s.ball("shell", (0, 0.2, 0), (r, u(0.22, 0.28), r * 1.1), pattern=SPOTS, second="marks")
    s.ball("body", (0, 0.13, 0), (r * 1.06, 0.09, r * 1.14))
    for side in (-1, 1):
        for end in (-1, 1):
            s.limb("body", (side * 0.26, 0.12, end * 0.26), (side * 0.38, 0.03, end * 0.38), 0.08, 0.07)
    z = r * 1.1 + 0.2
    s.limb("body", (0, 0.15, r), (0, 0.25, z), 0.09, 0.1)
    s.ball("body", (0, 0.28, z + 0.02), (0.13, 0.12, 0.14))
    for side in (-1, 1):
        s.ball("eyes", (side * 0.08, 0.32, z + 0.11), 0.032)
    s.limb("body", (0, 0.1, -r), (0, 0.07, -r - 0.18), 0.05, 0.02)
    return Anchor((0, 0.39, z), 0.13, (0, 0.19, r + 0.06), 0.11)


def frog(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    s.ball("body", (0, 0.24, -0.06), (u(0.26, 0.32), 0.2, 0.34), rotation_matrix(x=-20))
    s.ball("body", (0, 0.36, 0.18), (0.25, 0.15, 0.19))
    s.ball("belly", (0, 0.24, 0.12), (0.22, 0.17, 0.22))
    for side in (-1, 1):
        s.ball("belly", (side * 0.14, 0.5, 0.22), 0.075)
        s.ball("eyes", (side * 0.15, 0.51, 0.275), 0.042)
        s.limb("body", (side * 0.26, 0.18, -0.14), (side * 0.42, 0.22, 0.08), 0.1, 0.07)
        s.limb("body", (side * 0.42, 0.2, 0.08), (side * 0.4, 0.03, -0.12), 0.06, 0.05)
        s.ball("body", (side * 0.42, 0.025, 0.02), (0.08, 0.025, 0.16))
        s.limb("body", (side * 0.2, 0.22, 0.16), (side * 0.26, 0.03, 0.28), 0.055)
    return Anchor((0, 0.5, 0.16), 0.18, (0, 0.24, 0.2), 0.24)


def snail(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.limb("body", (0, 0.07, -0.42), (0, 0.08, 0.34), 0.08, 0.09)
    s.limb("body", (0, 0.08, 0.34), (0, 0.3, 0.46), 0.085, 0.075)
    r = u(0.25, 0.3)
    s.ball("shell", (0, 0.12 + r, -0.1), (0.15, r, r))
    s.torus("marks", (0, 0.12 + r, -0.1), r * 0.55, 0.06, axis="x")
    s.ball("shell", (0, 0.12 + r, -0.1), (0.2, 0.09, 0.09))
    for side in (-1, 1):
        s.limb("body", (side * 0.04, 0.34, 0.48), (side * 0.1, 0.5, 0.54), 0.02)
        s.ball("eyes", (side * 0.1, 0.51, 0.54), 0.035)


def bee(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0, -0.05), (u(0.2, 0.24), 0.22, 0.38), pattern=STRIPES, second="marks")
    s.ball("marks", (0, 0.03, 0.38), 0.16)
    for side in (-1, 1):
        s.ball("wings", (side * 0.3, 0.26, -0.06), (0.26, 0.02, 0.15), rotation_matrix(z=side * u(20, 40)))
        s.ball("wings", (side * 0.07, 0.08, 0.5), 0.04)
        s.limb("marks", (side * 0.06, 0.15, 0.46), (side * 0.12, 0.3, 0.56), 0.018)
    s.cone("marks", (0, 0, -0.46), 0.05, 0.005, 0.07, 0.005, axis="z", rotation=rotation_matrix(y=180))


def dinosaur(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    s.ball("body", (0, 0.48, 0), (0.2, 0.24, 0.3), rotation_matrix(x=-35))
    s.ball("belly", (0, 0.46, 0.06), (0.17, 0.2, 0.27), rotation_matrix(x=-35))
    s.limb("body", (0, 0.42, -0.2), (0, 0.14, -0.75), 0.16, 0.035)
    s.limb("body", (0, 0.62, 0.16), (0, 0.85, 0.24), 0.13, 0.11)
    s.ball("body", (0, 0.92, 0.34), (0.14, 0.13, u(0.22, 0.26)))
    for side in (-1, 1):
        s.limb("body", (side * 0.16, 0.4, -0.04), (side * 0.18, 0.05, 0.0), 0.11, 0.075)
        s.ball("body", (side * 0.18, 0.04, 0.08), (0.08, 0.04, 0.13))
        s.limb("body", (side * 0.15, 0.6, 0.2), (side * 0.16, 0.5, 0.36), 0.04, 0.03)
        s.ball("eyes", (side * 0.11, 0.98, 0.4), 0.035)
    for k in range(6):
        a = k / 5
        s.cone("spikes", (0, 0.98 - 0.5 * a - 0.18 * a * a, 0.12 - 0.2 * a - 0.42 * a * a), 0.055, 0.005, 0.075, 0.004, rotation=rotation_matrix(x=-40 - 30 * a))
    return Anchor((0, 1.03, 0.3), 0.13, (0, 0.72, 0.2), 0.13)


# --- people and robots -----------------------------------------------------------------------------------------------


def person(kind: str) -> Builder:
    """A toy figure: head, hair, shirt, trousers; the kind adds what tells a king from a robot."""

    def build(s: Shape, rng: random.Random) -> Anchor:
        u = rng.uniform
        hip, chest, r = u(0.38, 0.44), u(0.72, 0.8), u(0.13, 0.155)
        wide = u(0.15, 0.18)
        for side in (-1, 1):
            s.limb("trousers", (side * 0.085, hip, 0), (side * 0.1, 0.07, 0), 0.085, 0.07)
            s.ball("shoes", (side * 0.1, 0.045, 0.035), (0.075, 0.05, 0.12))
            hand = (side * (wide + u(0.14, 0.2)), hip + u(0.02, 0.12), u(0, 0.1))
            s.limb("shirt", (side * (wide + 0.02), chest - 0.03, 0), hand, 0.062, 0.05)
            s.ball("skin", hand, 0.062)
        s.box("shirt", (0, (hip + chest) / 2, 0), (wide, (chest - hip) / 2 + 0.05, 0.11), edge=0.08)
        y = chest + 0.06 + r
        s.ball("skin", (0, y, 0), (r, r * 1.08, r))
        for side in (-1, 1):
            s.ball("eyes", (side * r * 0.4, y + 0.02, r * 0.9), 0.022)
        if kind == "astronaut":
            s.ball("shirt", (0, y, -0.02), r * 1.3)
            s.ball("visor", (0, y, 0.06), (r * 1.0, r * 0.85, r * 1.12))
            s.box("visor", (0, chest - 0.14, -0.16), (0.14, 0.17, 0.07), edge=0.03)
        else:
            s.ball("hair", (0, y + r * 0.28, -r * 0.18), (r * 1.08, r * 0.95, r * 1.05))
        if kind == "woman":
            s.limb("hair", (0, y, -r * 0.7), (0, y - 0.25, -r * 0.75), 0.11, 0.1)
            s.cone("shirt", (0, hip - 0.05, 0), 0.25, 0.13, 0.2, 0.02)
        if kind == "wizard":
            s.cone("shirt", (0, hip - 0.12, 0), 0.26, 0.15, 0.26, 0.02)
            s.cone("hair", (0, y - 0.24, r * 0.7), 0.02, 0.09, 0.17, 0.01)
            s.cone("hat", (0, y + r + 0.16, -0.02), r * 1.1, 0.01, 0.24, 0.005)
            s.cylinder("hat", (0, y + r * 0.7, -0.02), r * 1.75, 0.02)
        return Anchor((0, y + r * 0.95, -0.01), r * 1.05, (0, chest + 0.03, 0), 0.1)

    return build


def robot(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    w, h = u(0.2, 0.26), u(0.2, 0.26)
    s.box("body", (0, 0.32 + h, 0), (w, h, 0.16), edge=0.03)
    y = 0.32 + 2 * h + 0.2
    s.box("head", (0, y, 0), (u(0.15, 0.19), 0.14, 0.14), edge=0.03)
    s.cylinder("joints", (0, y - 0.16, 0), 0.06, 0.06)
    for side in (-1, 1):
        s.ball("eyes", (side * 0.075, y + 0.03, 0.135), 0.042)
        s.cylinder("joints", (side * 0.11, 0.2, 0), 0.06, 0.14)
        s.box("body", (side * 0.11, 0.05, 0.03), (0.085, 0.05, 0.13), edge=0.02)
        s.ball("joints", (side * (w + 0.04), 0.3 + 1.75 * h, 0), 0.08)
        s.cylinder("joints", (side * (w + 0.08), 0.3 + h, 0.0), 0.05, h * 0.75)
        s.box("body", (side * (w + 0.08), 0.28 + 0.2 * h, 0), (0.06, 0.08, 0.06), edge=0.02)
    s.box("joints", (0, 0.36 + h, 0.16), (w * 0.55, h * 0.4, 0.015), edge=0.01)
    s.limb("joints", (0, y + 0.13, 0), (0, y + 0.26, 0), 0.016)
    s.ball("eyes", (0, y + 0.28, 0), 0.04)
    return Anchor((0, y + 0.14, 0), 0.17, (0, y - 0.15, 0), 0.1)


def snowman(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    a, b, c = u(0.28, 0.32), u(0.2, 0.23), u(0.145, 0.165)
    s.ball("body", (0, a * 0.95, 0), a)
    s.ball("body", (0, a * 1.85 + b * 0.7, 0), b)
    y = a * 1.85 + b * 1.4 + c * 0.85
    s.ball("body", (0, y, 0), c)
    s.cone("nose", (0, y, c + 0.08), 0.036, 0.005, 0.1, 0.004, axis="z")
    for side in (-1, 1):
        s.ball("buttons", (side * 0.06, y + 0.05, c * 0.9), 0.026)
        s.limb("arms", (side * b * 0.9, a * 1.9 + b * 0.7, 0), (side * (b + 0.26), a * 1.9 + b + u(0.05, 0.2), 0), 0.022)
    for k in range(3):
        s.ball("buttons", (0, a * 1.75 + b * (0.45 + 0.38 * k), b * (0.98 - 0.1 * abs(k - 1))), 0.03)
    return Anchor((0, y + c * 0.9, 0), c, (0, y - c * 0.85, 0), c * 0.85)


def teddy(s: Shape, rng: random.Random) -> Anchor:
    u = rng.uniform
    s.ball("body", (0, 0.32, 0), (u(0.24, 0.28), 0.27, 0.2))
    s.ball("belly", (0, 0.32, 0.07), (0.17, 0.19, 0.16))
    y = 0.72
    s.ball("body", (0, y, 0), (0.21, 0.19, 0.18))
    s.ball("belly", (0, y - 0.05, 0.15), (0.09, 0.07, 0.07))
    s.ball("eyes", (0, y - 0.02, 0.22), (0.03, 0.025, 0.02))
    for side in (-1, 1):
        s.ball("body", (side * 0.17, y + 0.16, 0), (0.085, 0.085, 0.05))
        s.ball("belly", (side * 0.17, y + 0.16, 0.035), (0.05, 0.05, 0.03))
        s.ball("eyes", (side * 0.075, y + 0.04, 0.165), 0.024)
        s.limb("body", (side * 0.2, 0.46, 0.02), (side * 0.36, 0.3, 0.12), 0.08, 0.075)
        s.limb("body", (side * 0.13, 0.12, 0.06), (side * 0.2, 0.08, 0.32), 0.1, 0.095)
        s.ball("belly", (side * 0.2, 0.085, 0.4), (0.065, 0.065, 0.025))
    return Anchor((0, y + 0.17, 0), 0.19, (0, y - 0.18, 0), 0.17)


# --- vehicles --------------------------------------------------------------------------------------------------------


def wheels(s: Shape, positions: list[tuple[float, float]], x: float, radius: float, width: float = 0.05) -> None:
    for z, y in positions:
        for side in (-1, 1):
            s.cylinder("wheels", (side * x, y, z), radius, width, 0.015, axis="x")
            s.cylinder("hubs", (side * (x + width * 0.75), y, z), radius * 0.45, width * 0.4, 0.005, axis="x")


def car(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    length, r = u(0.52, 0.62), u(0.115, 0.14)
    s.box("body", (0, 0.23, 0), (0.25, 0.11, length), edge=0.06)
    s.box("windows", (0, 0.4, u(-0.12, -0.02)), (0.215, 0.11, length * 0.52), edge=0.03, taper=(0.2, 0.35))
    s.box("body", (0, 0.5, u(-0.12, -0.04)), (0.18, 0.02, length * 0.34), edge=0.02)
    wheels(s, [(length * 0.62, r), (-length * 0.62, r)], 0.23, r)
    for side in (-1, 1):
        s.ball("lights", (side * 0.17, 0.26, length), (0.05, 0.045, 0.03))


def truck(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.11, 0.13)
    cargo = u(0.36, 0.46)
    s.box("cargo", (0, 0.5, -0.2), (0.25, u(0.27, 0.32), cargo), edge=0.02)
    front = -0.2 + cargo + 0.22
    s.box("body", (0, 0.38, front), (0.24, 0.23, 0.18), edge=0.05)
    s.box("windows", (0, 0.47, front + 0.1), (0.2, 0.09, 0.1), edge=0.02)
    s.box("hubs", (0, 0.16, -0.02), (0.2, 0.04, cargo + 0.2), edge=0.02)
    wheels(s, [(front, r), (-0.2 - cargo * 0.55, r), (-0.2 - cargo * 0.55 + 2.2 * r, r)], 0.22, r)


def bus(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    length, h = u(0.68, 0.78), u(0.22, 0.27)
    s.box("body", (0, 0.14 + h, 0), (0.22, h, length), edge=0.05)
    s.box("windows", (0, 0.14 + h * 1.35, 0.01), (0.227, h * 0.33, length * 0.9), edge=0.01)
    s.box("windows", (0, 0.14 + h * 1.3, length * 0.93), (0.18, h * 0.36, 0.06), edge=0.01)
    for k in range(4):
        s.box("body", (0, 0.14 + h * 1.35, length * (-0.66 + 0.44 * k)), (0.231, h * 0.36, 0.022), edge=0.004)
    wheels(s, [(length * 0.6, 0.13), (-length * 0.6, 0.13)], 0.2, 0.13)


def train(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cylinder("body", (0, 0.42, 0.18), u(0.17, 0.2), 0.38, 0.03, axis="z")
    s.box("cabin", (0, 0.5, -0.34), (0.22, 0.27, 0.2), edge=0.02)
    s.box("windows", (0, 0.6, -0.34), (0.228, 0.09, 0.12), edge=0.01)
    s.box("roof", (0, 0.79, -0.34), (0.27, 0.03, 0.25), edge=0.02)
    s.box("roof", (0, 0.22, 0), (0.19, 0.06, 0.58), edge=0.02)
    s.cone("roof", (0, 0.7, 0.4), 0.06, u(0.08, 0.11), 0.13)
    s.ball("roof", (0, 0.62, 0.1), (0.08, 0.08, 0.08))
    wheels(s, [(0.42, 0.13), (0.12, 0.13), (-0.34, 0.15)], 0.2, 0.135)


def airplane(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    length = u(0.6, 0.7)
    s.ball("body", (0, 0, 0), (0.125, 0.125, length))
    s.ball("windows", (0, 0.08, length * 0.62), (0.075, 0.06, 0.13))
    sweep = u(5, 25)
    for side in (-1, 1):
        s.box("wings", (side * 0.36, -0.02, -0.02 - 0.1 * sweep / 25), (0.34, 0.02, 0.13), rotation=rotation_matrix(y=side * sweep))
        s.box("wings", (side * 0.16, 0.04, -length * 0.86), (0.16, 0.015, 0.075), rotation=rotation_matrix(y=side * sweep))
        s.cylinder("engines", (side * 0.3, -0.09, 0.08), 0.06, 0.12, 0.02, axis="z")
    s.box("wings", (0, 0.17, -length * 0.88), (0.018, 0.16, 0.09), taper=(0, 0.4))


def helicopter(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0.32, 0.1), (0.2, 0.2, 0.3))
    s.ball("windows", (0, 0.36, 0.25), (0.17, 0.15, 0.18))
    s.limb("body", (0, 0.38, -0.1), (0, 0.46, -0.72), 0.09, 0.035)
    s.box("body", (0, 0.54, -0.74), (0.015, 0.12, 0.06))
    s.cylinder("rotor", (0, 0.55, 0.06), 0.03, 0.07)
    turn = u(0, 90)
    for k in (0, 90):
        s.box("rotor", (0, 0.62, 0.06), (0.62, 0.012, 0.04), edge=0.008, rotation=rotation_matrix(y=turn + k))
    for side in (-1, 1):
        s.limb("rotor", (side * 0.17, 0.04, 0.36), (side * 0.17, 0.04, -0.2), 0.026)
        s.limb("rotor", (side * 0.12, 0.18, 0.1), (side * 0.17, 0.04, 0.1), 0.02)


def boat(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.box("body", (0, 0.1, 0), (0.22, 0.13, 0.5), edge=0.05, taper=(-0.25, -0.2))
    s.ball("body", (0, 0.14, 0.5), (0.19, 0.12, 0.24))
    s.box("deck", (0, 0.22, 0), (0.2, 0.02, 0.46))
    s.cylinder("deck", (0, 0.7, 0.02), 0.024, 0.5)
    h = u(0.36, 0.44)
    s.box("sail", (0, 0.34 + h, -0.2), (0.018, h, 0.22), edge=0.01, taper=(0, 0.9))
    s.box("sail", (0, 0.3 + h * 0.8, 0.22), (0.018, h * 0.8, 0.16), edge=0.01, taper=(0, 0.9))


def rocket(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r, h = u(0.14, 0.18), u(0.36, 0.46)
    s.cylinder("body", (0, h, 0), r, h, 0.03)
    s.cone("nose", (0, 2 * h + 0.16, 0), r * 1.02, 0.015, u(0.16, 0.22), 0.01)
    s.ball("windows", (0, h * 1.35, r * 0.8), (0.075, 0.075, 0.06))
    s.cone("nozzle", (0, -0.04, 0), r * 0.95, r * 0.6, 0.07)
    for k in range(4):
        turn = rotation_matrix(y=90 * k + 45)
        offset = (turn @ turn.new_tensor([0.0, 0.0, r + 0.08])).tolist()
        s.box("fins", (offset[0], 0.13, offset[2]), (0.02, 0.2, 0.13), taper=(0, 0.6), rotation=turn)


def tank(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.box("body", (0, 0.28, 0), (0.26, 0.11, 0.5), edge=0.05)
    for side in (-1, 1):
        s.box("wheels", (side * 0.29, 0.17, 0), (0.08, 0.16, 0.55), edge=0.15)
        for k in range(4):
            s.cylinder("hubs", (side * 0.37, 0.15, -0.36 + 0.24 * k), 0.08, 0.015, axis="x")
    s.ball("turret", (0, 0.44, -0.06), (0.22, 0.14, 0.26))
    s.limb("turret", (0, 0.47, 0.1), (0, 0.47 + u(0, 0.12), 0.78), 0.045)


def submarine(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0, 0), (0.22, u(0.21, 0.25), 0.58))
    s.box("body", (0, 0.27, 0.02), (0.09, 0.11, 0.15), edge=0.04)
    s.limb("fins", (0, 0.36, 0.02), (0, 0.52, 0.02), 0.024)
    s.limb("fins", (0, 0.52, 0.02), (0, 0.52, 0.12), 0.026)
    for k in range(3):
        for side in (-1, 1):
            s.ball("windows", (side * 0.2, 0.04, -0.2 + 0.2 * k), 0.06)
    s.box("fins", (0, 0, -0.58), (0.22, 0.015, 0.07))
    s.box("fins", (0, 0, -0.58), (0.015, 0.22, 0.07))


# --- buildings -------------------------------------------------------------------------------------------------------


def house(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, d, h = u(0.32, 0.4), u(0.28, 0.36), u(0.2, 0.26)
    s.box("walls", (0, h, 0), (w, h, d), edge=0.01)
    roof = u(0.15, 0.22)
    s.box("roof", (0, 2 * h + roof - 0.01, 0), (w * 1.15, roof, d * 1.12), edge=0.01, taper=(0.96, 0))
    s.box("door", (u(-0.1, 0.1), 0.13, d), (0.07, 0.13, 0.015))
    for side in (-1, 1):
        s.box("windows", (side * w * 0.62, h * 1.15, d), (0.065, 0.065, 0.012))
        s.box("windows", (side * w, h * 1.1, 0), (0.012, 0.07, 0.08))
    if rng.random() < 0.6:
        s.box("door", (w * 0.5, 2 * h + roof * 1.2, -d * 0.3), (0.06, 0.17, 0.06))


def castle(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, h = u(0.32, 0.38), u(0.2, 0.26)
    s.box("walls", (0, h, 0), (w, h, w), edge=0.01)
    tall, r = u(0.34, 0.42), u(0.1, 0.13)
    for x in (-1, 1):
        for z in (-1, 1):
            s.cylinder("walls", (x * w, tall, z * w), r, tall)
            s.cone("roof", (x * w, 2 * tall + 0.13, z * w), r * 1.25, 0.01, 0.15, 0.006)
    for k in (-1, 0, 1):
        for side in (-1, 1):
            s.box("walls", (k * w * 0.5, 2 * h + 0.04, side * w * 0.93), (0.05, 0.05, 0.03))
    s.box("door", (0, 0.12, w), (0.1, 0.14, 0.02), edge=0.015)


def tower(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r, h = u(0.15, 0.19), u(0.5, 0.6)
    s.cone("walls", (0, h, 0), r, r * 0.9, h, 0.01)
    s.cylinder("walls", (0, 2 * h + 0.05, 0), r * 1.3, 0.07)
    s.cone("roof", (0, 2 * h + 0.3, 0), r * 1.45, 0.01, 0.2, 0.006)
    s.box("door", (0, 0.12, r * 0.95), (0.065, 0.12, 0.03))
    for k in range(2):
        s.box("door", (0, 0.5 + 0.32 * k, r * 0.9), (0.04, 0.07, 0.04))


def lighthouse(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    h = u(0.5, 0.58)
    for k in range(5):
        a, b = 0.22 - 0.024 * k, 0.22 - 0.024 * (k + 1)
        s.cone("walls" if k % 2 == 0 else "stripes", (0, h * (0.2 + 0.4 * k) * 1.0, 0), a, b, h * 0.205, 0.004)
    s.cylinder("roof", (0, 2 * h + 0.02, 0), 0.16, 0.025)
    s.cylinder("lamp", (0, 2 * h + 0.11, 0), 0.085, 0.09)
    s.cone("roof", (0, 2 * h + 0.26, 0), 0.13, 0.01, 0.08, 0.006)


def windmill(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cone("walls", (0, 0.4, 0), 0.26, 0.17, 0.4, 0.01)
    s.cone("roof", (0, 0.92, 0), 0.22, 0.01, 0.14, 0.006)
    s.box("door", (0, 0.12, 0.25), (0.07, 0.12, 0.02))
    turn = u(0, 90)
    for k in range(4):
        angle = rotation_matrix(z=turn + 90 * k)
        centre = (angle @ angle.new_tensor([0.0, 0.3, 0.0])).tolist()
        s.box("sails", (centre[0], 0.78 + centre[1], 0.26), (0.065, 0.26, 0.014), edge=0.008, rotation=angle)
    s.limb("door", (0, 0.78, 0.12), (0, 0.78, 0.28), 0.04)


def tent(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, h, d = u(0.4, 0.46), u(0.26, 0.32), u(0.4, 0.5)
    s.box("body", (0, h, 0), (w, h, d), edge=0.01, taper=(0.97, 0))
    s.box("door", (0, h * 0.66, d * 0.98), (w * 0.36, h * 0.66, 0.03), edge=0.005, taper=(0.95, 0))


def church(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, h, d = u(0.2, 0.24), u(0.2, 0.24), 0.36
    s.box("walls", (0, h, -0.1), (w, h, d), edge=0.01)
    s.box("roof", (0, 2 * h + 0.13, -0.1), (w * 1.12, 0.14, d * 1.06), edge=0.01, taper=(0.96, 0))
    s.box("walls", (0, 0.4, 0.3), (0.13, 0.4, 0.13), edge=0.01)
    s.box("roof", (0, 0.8 + 0.2, 0.3), (0.15, 0.22, 0.15), edge=0.005, taper=(0.97, 0.97))
    s.limb("door", (0, 1.2, 0.3), (0, 1.38, 0.3), 0.02)
    s.limb("door", (-0.06, 1.3, 0.3), (0.06, 1.3, 0.3), 0.02)
    s.box("door", (0, 0.13, 0.43), (0.06, 0.13, 0.015))


# --- furniture and household -----------------------------------------------------------------------------------------


def chair(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, seat, back = u(0.24, 0.3), u(0.36, 0.44), u(0.28, 0.38)
    s.box("seat", (0, seat, 0), (w, 0.045, w), edge=0.02)
    for x in (-1, 1):
        for z in (-1, 1):
            s.box("legs", (x * (w - 0.045), seat / 2, z * (w - 0.045)), (0.038, seat / 2, 0.038), edge=0.01)
    s.box("back", (0, seat + back, -w + 0.04), (w, back, 0.04), edge=0.02)


def table(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, d, h = u(0.4, 0.5), u(0.3, 0.42), u(0.36, 0.46)
    if rng.random() < 0.3:
        s.cylinder("top", (0, h, 0), w, 0.045, 0.015)
    else:
        s.box("top", (0, h, 0), (w, 0.045, d), edge=0.015)
    for x in (-1, 1):
        for z in (-1, 1):
            s.box("legs", (x * w * 0.66, h / 2, z * d * 0.66), (0.042, h / 2, 0.042), edge=0.01)


def sofa(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w = u(0.46, 0.58)
    s.box("body", (0, 0.17, 0), (w, 0.12, 0.25), edge=0.05)
    s.box("body", (0, 0.36, -0.2), (w, 0.23, 0.09), edge=0.06)
    for side in (-1, 1):
        s.box("body", (side * w, 0.25, 0.02), (0.085, 0.18, 0.26), edge=0.06)
        s.box("cushions", (side * w * 0.44, 0.31, 0.06), (w * 0.41, 0.06, 0.19), edge=0.05)
        for end in (-1, 1):
            s.cylinder("legs", (side * w * 0.85, 0.03, end * 0.18), 0.035, 0.05)


def bed(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    w, length = u(0.3, 0.4), u(0.5, 0.58)
    s.box("frame", (0, 0.13, 0), (w + 0.03, 0.06, length + 0.03), edge=0.015)
    s.box("frame", (0, 0.3, -length - 0.02), (w + 0.03, 0.27, 0.035), edge=0.02)
    s.box("frame", (0, 0.2, length + 0.02), (w + 0.03, 0.14, 0.03), edge=0.02)
    s.box("pillow", (0, 0.22, 0), (w * 0.96, 0.06, length * 0.97), edge=0.04)
    s.box("blanket", (0, 0.245, 0.16), (w, 0.06, length * 0.68), edge=0.04)
    for side in (-1, 1):
        s.box("pillow", (side * w * 0.45, 0.31, -length * 0.74), (w * 0.38, 0.05, 0.1), edge=0.045)


def lamp(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    h = u(0.5, 0.7)
    s.cylinder("stand", (0, 0.03, 0), u(0.15, 0.19), 0.03)
    s.cylinder("stand", (0, h / 2, 0), 0.035, h / 2)
    s.cone("shade", (0, h + 0.05, 0), u(0.25, 0.3), u(0.12, 0.17), u(0.14, 0.19), 0.01)


def mug(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r, h = u(0.24, 0.28), u(0.25, 0.32)
    s.cylinder("body", (0, h, 0), r, h, 0.02)
    s.cylinder("drink", (0, 2 * h - 0.005, 0), r * 0.85, 0.012, 0.004)
    s.torus("body", (r + 0.07, h, 0), 0.13, 0.04, axis="z")


def teapot(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.3, 0.34)
    s.ball("body", (0, 0.3, 0), (r, u(0.26, 0.3), r))
    s.ball("lid", (0, 0.55, 0), (0.17, 0.06, 0.17))
    s.ball("lid", (0, 0.63, 0), 0.05)
    s.limb("body", (r * 0.8, 0.24, 0), (r + 0.26, 0.5, 0), 0.08, 0.045)
    s.torus("handle", (-r - 0.08, 0.33, 0), 0.15, 0.035, axis="z")


def bottle(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r, h = u(0.15, 0.19), u(0.28, 0.36)
    s.cylinder("body", (0, h, 0), r, h, 0.04)
    s.cone("body", (0, 2 * h + 0.07, 0), r * 0.96, 0.06, 0.1)
    s.cylinder("body", (0, 2 * h + 0.22, 0), 0.06, 0.1)
    s.cylinder("cap", (0, 2 * h + 0.35, 0), 0.07, 0.04)
    s.cylinder("label", (0, h * 0.95, 0), r * 1.03, h * 0.42, 0.01)


def hammer(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cylinder("handle", (0, 0.4, 0), u(0.045, 0.06), 0.46, 0.02)
    s.box("head", (0, 0.86, 0), (u(0.2, 0.26), 0.09, 0.09), edge=0.02)


def axe(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cylinder("handle", (0, 0.45, 0), 0.042, 0.5, 0.02)
    s.box("blade", (0.15, 0.8, 0), (0.16, u(0.16, 0.22), 0.028), edge=0.01)
    s.box("blade", (-0.05, 0.8, 0), (0.07, 0.08, 0.05), edge=0.01)


def sword(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.box("blade", (0, 0.68, 0), (u(0.06, 0.075), 0.42, 0.022), edge=0.012)
    s.cone("blade", (0, 1.16, 0), 0.06, 0.004, 0.09, 0.003)
    s.box("guard", (0, 0.25, 0), (u(0.18, 0.24), 0.034, 0.05), edge=0.02)
    s.cylinder("handle", (0, 0.1, 0), 0.042, 0.13)
    s.ball("guard", (0, -0.06, 0), 0.062)


def pencil(s: Shape, rng: random.Random) -> None:
    h = rng.uniform(0.4, 0.5)
    s.cylinder("body", (0, 0, 0), 0.09, h, 0.01)
    s.cone("wood", (0, h + 0.09, 0), 0.09, 0.03, 0.1, 0.004)
    s.cone("tip", (0, h + 0.2, 0), 0.034, 0.004, 0.035, 0.002)
    s.cylinder("eraser", (0, -h - 0.05, 0), 0.088, 0.065, 0.02)


def umbrella(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.42, 0.5)
    s.ball("canopy", (0, 0.72, 0), (r, u(0.2, 0.26), r), pattern=STRIPES if rng.random() < 0.25 else 0, second="handle")
    s.cylinder("handle", (0, 0.35, 0), 0.026, 0.4)
    s.torus("handle", (0.07, -0.05, 0), 0.07, 0.026, axis="z")
    s.cone("handle", (0, 1.0, 0), 0.02, 0.004, 0.06, 0.003)


def guitar(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0.22, 0), (u(0.25, 0.29), 0.23, 0.07))
    s.ball("body", (0, 0.5, 0), (0.19, 0.17, 0.07))
    s.cylinder("neck", (0, 0.42, 0.062), 0.075, 0.02, 0.005, axis="z")
    s.box("neck", (0, 0.88, 0.04), (0.04, 0.36, 0.025), edge=0.01)
    s.box("neck", (0, 1.28, 0.03), (0.06, 0.08, 0.025), edge=0.01)


def key(s: Shape, rng: random.Random) -> None:
    s.torus("body", (0, 0.7, 0), rng.uniform(0.15, 0.19), 0.05, axis="z")
    s.cylinder("body", (0, 0.22, 0), 0.042, 0.34)
    s.box("body", (0.09, -0.06, 0), (0.09, 0.035, 0.03))
    s.box("body", (0.07, 0.08, 0), (0.07, 0.03, 0.03))


# --- food and plants -------------------------------------------------------------------------------------------------


def apple(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.36, 0.42)
    s.ball("body", (0, r * 0.9, 0), (r, r * u(0.86, 0.96), r))
    s.ball("body", (0, r * 1.25, 0), (r * 0.86, r * 0.5, r * 0.86))
    s.limb("stem", (0, r * 1.6, 0), (u(0.0, 0.06), r * 2.1, 0), 0.03, 0.022)
    s.ball("leaf", (0.12, r * 2.02, 0), (0.13, 0.025, 0.06), rotation_matrix(z=20))


def banana(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    bend = u(0.2, 0.3)
    points = [(-0.46 + 0.23 * k, bend * (k - 2) ** 2 / 2, 0.0) for k in range(5)]
    radii = [0.055, 0.105, 0.12, 0.105, 0.06]
    for k in range(4):
        s.limb("body", points[k], points[k + 1], radii[k], radii[k + 1])
    s.limb("stem", points[4], (0.52, points[4][1] + 0.14, 0), 0.04, 0.035)
    s.ball("stem", points[0], 0.05)


def carrot(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cone("body", (0, 0.4, 0), 0.02, u(0.14, 0.18), 0.42, 0.018)
    for _ in range(5):
        x, z = u(-0.16, 0.16), u(-0.16, 0.16)
        s.limb("leaf", (0, 0.8, 0), (x, 0.8 + u(0.22, 0.34), z), 0.035, 0.045)


def burger(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.4, 0.46)
    s.cylinder("bun", (0, 0.07, 0), r, 0.075, 0.06)
    s.cylinder("meat", (0, 0.2, 0), r * 1.02, 0.06, 0.04)
    s.box("cheese", (0, 0.275, 0), (r * 0.8, 0.014, r * 0.8), edge=0.008, rotation=rotation_matrix(y=u(0, 90)))
    s.cylinder("lettuce", (0, 0.32, 0), r * 1.08, 0.025, 0.02)
    s.ball("bun", (0, 0.37, 0), (r * 1.0, u(0.22, 0.28), r * 1.0))


def ice_cream(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r = u(0.21, 0.25)
    s.cone("cone", (0, 0.32, 0), 0.02, r * 0.9, 0.34, 0.012)
    s.ball("scoop", (0, 0.74, 0), r * 1.08)
    if rng.random() < 0.4:
        s.ball("scoop", (0, 0.74 + r * 1.35, 0), r * 0.85)
        s.ball("cherry", (0, 0.76 + r * 2.25, 0), 0.06)
    else:
        s.ball("cherry", (0, 0.76 + r * 1.08, 0), 0.065)


def cake(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    r, h = u(0.36, 0.42), u(0.14, 0.18)
    s.cylinder("plate", (0, 0.0, 0), r * 1.2, 0.02)
    s.cylinder("body", (0, h + 0.02, 0), r, h, 0.03)
    s.cylinder("icing", (0, 2 * h + 0.03, 0), r * 1.03, 0.045, 0.03)
    for k in range(rng.choice((1, 3, 5))):
        turn = rotation_matrix(y=72 * k)
        x, _, z = (turn @ turn.new_tensor([0.0, 0.0, 0.2 if k else 0.0])).tolist()
        s.cylinder("candles", (x, 2 * h + 0.15, z), 0.028, 0.1)
        s.ball("cherry", (x, 2 * h + 0.28, z), (0.03, 0.045, 0.03))


def donut(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    ring, tube = u(0.28, 0.33), u(0.14, 0.17)
    s.torus("body", (0, tube, 0), ring, tube)
    s.torus("icing", (0, tube * 1.2, 0), ring, tube * 0.96, pattern=SPOTS, second="sprinkles")


def watermelon(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0, 0), (u(0.33, 0.4), 0.34, 0.46), pattern=STRIPES, second="marks")


def pear(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.ball("body", (0, 0.3, 0), (u(0.29, 0.34), 0.3, 0.31))
    s.limb("body", (0, 0.4, 0), (0, 0.68, 0), 0.22, u(0.13, 0.16))
    s.limb("stem", (0, 0.8, 0), (0.03, 0.96, 0), 0.026)
    s.ball("leaf", (0.12, 0.93, 0), (0.12, 0.024, 0.055), rotation_matrix(z=20))


def tree(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    h = u(0.36, 0.5)
    s.cone("trunk", (0, h / 2, 0), 0.085, 0.06, h / 2 + 0.06)
    r = u(0.27, 0.33)
    s.ball("leaves", (0, h + r * 0.75, 0), r)
    for k in range(4):
        a = rotation_matrix(y=90 * k + u(0, 45))
        x, _, z = (a @ a.new_tensor([0.0, 0.0, r * 0.62])).tolist()
        s.ball("leaves", (x, h + r * u(0.4, 0.7), z), r * u(0.55, 0.7))


def pine(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cylinder("trunk", (0, 0.1, 0), 0.07, 0.14)
    w = u(0.32, 0.4)
    for k in range(3):
        s.cone("leaves", (0, 0.36 + 0.26 * k, 0), w * (1 - 0.25 * k), 0.02, 0.2, 0.01)


def cactus(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.limb("body", (0, 0.2, 0), (0, u(0.8, 0.95), 0), 0.13, 0.11)
    for side in (-1, 1):
        y, x = u(0.4, 0.58), u(0.26, 0.32)
        s.limb("body", (0, y, 0), (side * x, y, 0), 0.065)
        s.limb("body", (side * x, y, 0), (side * x, y + u(0.16, 0.28), 0), 0.07)
    s.cone("pot", (0, 0.12, 0), 0.17, 0.22, 0.13)


def flower(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    h = u(0.5, 0.65)
    s.limb("stem", (0, 0, 0), (0, h, 0), 0.034)
    for side in (-1, 1):
        s.ball("stem", (side * 0.14, h * 0.4, 0), (0.14, 0.026, 0.06), rotation_matrix(z=side * 30))
    n, r = rng.choice((5, 6, 7)), u(0.16, 0.2)
    centre = (0.0, h + 0.06, 0.06)
    for k in range(n):
        a = rotation_matrix(z=360 / n * k)
        x, y, _ = (a @ a.new_tensor([0.0, r, 0.0])).tolist()
        s.ball("petals", (x, centre[1] + y, centre[2]), (0.085, 0.125, 0.035), a)
    s.ball("middle", centre, (0.1, 0.1, 0.065))


def mushroom(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    h, r = u(0.24, 0.34), u(0.32, 0.4)
    s.cone("stem", (0, h / 2 + 0.05, 0), 0.13, 0.1, h / 2 + 0.08, 0.03)
    s.ball("cap", (0, h + 0.14, 0), (r, u(0.2, 0.26), r))
    for k in range(6):
        a = rotation_matrix(y=60 * k + u(-10, 10))
        x, _, z = (a @ a.new_tensor([0.0, 0.0, r * 0.68])).tolist()
        s.ball("spots", (x, h + 0.285, z), (0.065, 0.04, 0.065))
    s.ball("spots", (0, h + 0.36, 0), (0.08, 0.04, 0.08))


def potted_plant(s: Shape, rng: random.Random) -> None:
    u = rng.uniform
    s.cone("pot", (0, 0.16, 0), 0.15, 0.23, 0.18)
    for k in range(7):
        a = rotation_matrix(y=51 * k)
        x, _, z = (a @ a.new_tensor([0.0, 0.0, u(0.16, 0.26)])).tolist()
        s.limb("leaves", (0, 0.34, 0), (x, u(0.6, 0.85), z), 0.035, 0.075)


# --- solids ----------------------------------------------------------------------------------------------------------


def cube(s: Shape, rng: random.Random) -> None:
    s.box("body", (0, 0, 0), (0.36, 0.36, 0.36), edge=rng.uniform(0.005, 0.05))


def sphere(s: Shape, rng: random.Random) -> None:
    s.ball("body", (0, 0, 0), 0.4)


def cylinder(s: Shape, rng: random.Random) -> None:
    s.cylinder("body", (0, 0, 0), rng.uniform(0.26, 0.32), rng.uniform(0.34, 0.45), rng.uniform(0.005, 0.04))


def cone(s: Shape, rng: random.Random) -> None:
    s.cone("body", (0, 0, 0), rng.uniform(0.32, 0.38), 0.012, rng.uniform(0.36, 0.46), 0.008)


def torus(s: Shape, rng: random.Random) -> None:
    s.torus("body", (0, 0, 0), rng.uniform(0.32, 0.36), rng.uniform(0.09, 0.13))


def pyramid(s: Shape, rng: random.Random) -> None:
    s.box("body", (0, 0, 0), (0.38, rng.uniform(0.3, 0.36), 0.38), edge=0.006, taper=(0.97, 0.97))


FUR = ("brown", "white", "black", "gray", "beige")
ANIMAL = {"ears": "ears", "legs": "legs", "tail": "tail"}
BIRD = {"wings": "wings", "belly": "belly", "beak": "beak"}
SHINE = ("shiny", "metal")
ANY = ("shiny", "metal", "wooden")
BRIGHT = ("red", "blue", "green", "yellow", "orange", "white", "purple", "pink", "cyan", "lime")
WOOD = ("brown", "beige")


def animal(names, slots, build, core=True, parts=None) -> Category:
    """An animal whose "red" paints the fur, and the ears, legs and tail unless they are named apart."""
    base = {"body": FUR, "head": (), "ears": (), "legs": (), "tail": (), "snout": (), "nose": ("black",)}
    base.update(slots)
    main = ("body", *(k for k in ("head", "ears", "legs", "tail", "snout") if not slots.get(k)))
    return Category(names, base, build, main, "animals", ANIMAL if parts is None else parts, core, smooth=0.03)


def thing(names, slots, build, main, group, **kwargs) -> Category:
    return Category(names, slots, build, (main,) if isinstance(main, str) else main, group, **kwargs)


BIRD_SLOTS = {"eyes": ("black",), "head": (), "comb": ("red",)}
PERSON = {"shirt": BRIGHT, "trousers": ("blue", "black", "gray", "brown"), "shoes": ("black", "brown"), "skin": ("beige",), "hair": ("brown", "black", "yellow"), "eyes": ("black",)}
PERSON_PARTS = {"shirt": "shirt", "trousers": "trousers", "hair": "hair"}
VEHICLE = {"wheels": ("black",), "hubs": ("gray",), "windows": ("cyan", "gray", "black")}

CATEGORIES: tuple[Category, ...] = (
    animal(("corgi", "corgi dog"), {"body": ("orange",), "belly": ("white",), "legs": ("white",), "snout": ("white",)}, quadruped(body=(0.2, 0.19, 0.4), legs=(0.13, 0.07), head=(0.17, 0.16, 0.17), neck=(0.14, 0.14), ears="pointed", ear_size=0.15, tail="stub", bib=True), parts={"ears": "ears", "legs": "legs"}),
    animal(("dog", "puppy"), {"body": FUR}, quadruped(ears="floppy", ear_size=0.13, tail="up", tail_length=0.24, legs=(0.3, 0.065), snout=(0.1, 0.18))),
    animal(("cat", "kitten"), {"body": ("gray", "orange", "black", "white")}, quadruped(body=(0.16, 0.17, 0.36), legs=(0.26, 0.05), head=(0.17, 0.15, 0.15), snout=(0.06, 0.05), ears="pointed", ear_size=0.1, tail="up", tail_length=0.42)),
    animal(("fox",), {"body": ("orange",), "belly": ("white",), "legs": ("black",), "snout": ("white",)}, quadruped(body=(0.15, 0.16, 0.36), legs=(0.24, 0.045), snout=(0.065, 0.2), ears="pointed", ear_size=0.12, tail="bushy", tail_length=0.4), parts={"legs": "legs", "ears": "ears"}, core=False),
    animal(("bear",), {"body": ("brown", "black", "white")}, quadruped(body=(0.28, 0.28, 0.42), legs=(0.24, 0.11), head=(0.2, 0.19, 0.19), snout=(0.11, 0.13), ears="round", ear_size=0.11, tail="stub"), core=False),
    animal(("panda",), {"body": ("white",), "ears": ("black",), "legs": ("black",), "head": ("white",)}, quadruped(body=(0.28, 0.28, 0.38), legs=(0.2, 0.11), head=(0.22, 0.2, 0.19), snout=(0.09, 0.09), ears="round", ear_size=0.13, tail="stub", patches=True), parts={}, core=False),
    animal(("pig", "piglet"), {"body": ("pink",)}, quadruped(body=(0.25, 0.24, 0.38), legs=(0.17, 0.065), head=(0.19, 0.18, 0.17), snout=(0.1, 0.14), ears="floppy", ear_size=0.09, tail="thin", tail_length=0.12)),
    animal(("cow",), {"body": ("white",), "marks": ("black", "brown"), "horns": ("beige",), "snout": ("pink",)}, quadruped(body=(0.24, 0.25, 0.44), legs=(0.3, 0.065), head=(0.15, 0.17, 0.19), snout=(0.12, 0.14), ears="floppy", ear_size=0.08, horns=True, pattern=PATCHES, tail="thin", tail_length=0.34), parts={"marks": "patches"}, core=False),
    animal(("horse", "pony"), {"body": ("brown", "white", "black", "gray"), "mane": ("black", "brown", "beige")}, quadruped(body=(0.19, 0.21, 0.42), legs=(0.46, 0.055), neck=(0.34, 0.16), head=(0.11, 0.13, 0.17), snout=(0.085, 0.24), ears="pointed", ear_size=0.07, mane="horse", tail="hair", tail_length=0.42), parts={"mane": "mane", "legs": "legs"}, core=False),
    animal(("sheep", "lamb"), {"body": ("white",), "head": ("black", "beige"), "legs": ("black", "beige"), "snout": ("black", "beige"), "ears": ("black", "beige")}, quadruped(body=(0.29, 0.28, 0.38), legs=(0.2, 0.045), head=(0.12, 0.15, 0.14), snout=(0.08, 0.12), ears="floppy", ear_size=0.08, tail="stub"), parts={"legs": "legs"}, core=False),
    animal(("elephant",), {"body": ("gray",), "tusks": ("white",)}, quadruped(body=(0.3, 0.3, 0.42), legs=(0.3, 0.1), head=(0.19, 0.2, 0.18), snout=(0, 0), ears="huge", ear_size=0.2, trunk=True, tail="thin", tail_length=0.25), parts={"ears": "ears", "tusks": "tusks"}),
    animal(("giraffe",), {"body": ("yellow", "orange"), "marks": ("brown",), "horns": ("brown",)}, quadruped(body=(0.17, 0.19, 0.32), legs=(0.5, 0.05), neck=(0.72, 0.12), head=(0.1, 0.1, 0.14), snout=(0.07, 0.16), ears="pointed", ear_size=0.06, horns=True, pattern=SPOTS, tail="thin", tail_length=0.28), parts={"marks": "spots"}),
    animal(("lion",), {"body": ("yellow", "beige"), "mane": ("brown", "orange")}, quadruped(body=(0.2, 0.2, 0.42), legs=(0.27, 0.07), head=(0.16, 0.16, 0.16), snout=(0.09, 0.13), ears="round", ear_size=0.09, mane="lion", tail="thin", tail_length=0.4), parts={"mane": "mane"}, core=False),
    animal(("zebra",), {"body": ("white",), "marks": ("black",), "mane": ("black",)}, quadruped(body=(0.19, 0.21, 0.42), legs=(0.42, 0.055), neck=(0.3, 0.16), head=(0.11, 0.13, 0.17), snout=(0.085, 0.22), ears="pointed", ear_size=0.07, mane="horse", pattern=STRIPES, tail="hair", tail_length=0.36), parts={"marks": "stripes"}, core=False),
    animal(("tiger",), {"body": ("orange",), "marks": ("black",), "snout": ("white",)}, quadruped(body=(0.2, 0.2, 0.44), legs=(0.26, 0.075), head=(0.17, 0.16, 0.16), snout=(0.09, 0.11), ears="round", ear_size=0.09, pattern=STRIPES, tail="up", tail_length=0.4), parts={"marks": "stripes"}, core=False),
    animal(("rabbit", "bunny"), {"body": ("white", "gray", "brown", "beige")}, quadruped(body=(0.2, 0.21, 0.28), legs=(0.1, 0.07), head=(0.16, 0.16, 0.15), neck=(0.14, 0.06), snout=(0.07, 0.06), ears="long", ear_size=0.15, tail="stub"), parts={"ears": "ears", "tail": "tail"}),
    animal(("mouse", "rat"), {"body": ("gray", "white", "brown"), "ears": ("pink",), "tail": ("pink",)}, quadruped(body=(0.18, 0.18, 0.28), legs=(0.07, 0.05), head=(0.13, 0.13, 0.15), neck=(0.02, 0.1), snout=(0.06, 0.13), ears="round", ear_size=0.2, tail="thin", tail_length=0.5), parts={"ears": "ears", "tail": "tail"}, core=False),
    thing(("chicken", "hen"), {"body": ("white", "brown", "orange"), "belly": (), "wings": (), "beak": ("yellow", "orange"), **BIRD_SLOTS}, bird((0.23, 0.23, 0.3), 0.12, 0.16, (0.04, 0.1), 0.2, comb=True, tail=0.2), ("body", "belly", "wings", "head"), "animals", parts={"wings": "wings"}, smooth=0.03, core=False),
    thing(("duck", "rubber duck"), {"body": ("yellow",), "belly": (), "wings": (), "beak": ("orange",), **BIRD_SLOTS}, bird((0.25, 0.2, 0.35), 0.16, 0.14, (0.08, 0.14), 0.02, tail=0.2), ("body", "belly", "wings", "head"), "animals", parts={"wings": "wings", "beak": "beak"}, smooth=0.03, stackable=True),
    thing(("penguin",), {"body": ("black",), "belly": ("white",), "wings": (), "beak": ("orange",), **BIRD_SLOTS}, bird((0.24, 0.36, 0.21), 0.18, 0.05, (0.04, 0.11), 0.02, tail=0.06, upright=True), ("body", "wings", "head"), "animals", parts={"belly": "belly", "beak": "beak"}, smooth=0.03),
    thing(("owl",), {"body": ("brown", "gray", "white"), "belly": ("beige",), "wings": (), "beak": ("yellow",), **BIRD_SLOTS}, bird((0.25, 0.3, 0.22), 0.22, -0.02, (0.04, 0.08), 0.02, tail=0.08, upright=True, big_eyes=True), ("body", "wings", "head"), "animals", parts=BIRD, core=False, smooth=0.03),
    thing(("fish", "goldfish"), {"body": ("orange", "blue", "red", "yellow"), "fins": ("orange", "yellow", "white"), "eyes": ("black",)}, fish, "body", "animals", parts={"fins": "fins"}),
    thing(("whale",), {"body": ("blue", "gray"), "belly": ("white",), "eyes": ("black",), "spout": ("cyan",)}, whale, "body", "animals", parts={"belly": "belly"}, core=False, smooth=0.03),
    thing(("turtle", "tortoise"), {"body": ("green", "lime"), "shell": ("brown", "green"), "marks": ("beige", "yellow"), "eyes": ("black",)}, turtle, ("body",), "animals", parts={"shell": "shell"}, smooth=0.02),
    thing(("frog", "toad"), {"body": ("green", "lime"), "belly": ("white", "yellow"), "eyes": ("black",)}, frog, "body", "animals", parts={"belly": "belly"}, core=False, smooth=0.03),
    thing(("snail",), {"body": ("beige", "yellow"), "shell": ("brown", "orange"), "marks": ("beige", "brown"), "eyes": ("black",)}, snail, "body", "animals", parts={"shell": "shell"}, core=False),
    thing(("bee", "bumblebee"), {"body": ("yellow",), "marks": ("black",), "wings": ("white", "cyan")}, bee, "body", "animals", parts={"wings": "wings", "marks": "stripes"}, core=False),
    thing(("dinosaur", "dino"), {"body": ("green", "lime", "brown"), "belly": ("beige", "yellow"), "spikes": ("orange", "brown", "red"), "eyes": ("black",)}, dinosaur, "body", "animals", parts={"spikes": "spikes", "belly": "belly"}, smooth=0.03),
    thing(("man", "person", "boy"), PERSON, person("man"), "shirt", "people and robots", parts=PERSON_PARTS),
    thing(("woman", "girl"), PERSON, person("woman"), "shirt", "people and robots", parts={"hair": "hair", "shirt": "dress"}, core=False),
    thing(("wizard",), {**PERSON, "shirt": ("blue", "purple"), "hat": ("blue", "purple"), "hair": ("white", "gray")}, person("wizard"), "shirt", "people and robots", parts={"hat": "hat", "hair": "beard", "shirt": "robe"}, core=False),
    thing(("astronaut", "spaceman"), {**PERSON, "shirt": ("white", "orange"), "trousers": (), "visor": ("black", "gray"), "skin": (), "shoes": ("gray",)}, person("astronaut"), ("shirt", "trousers", "skin"), "people and robots", parts={"visor": "visor"}, core=False),
    thing(("robot", "android"), {"body": ("gray", "blue", "red", "yellow"), "head": (), "joints": ("gray", "black"), "eyes": ("yellow", "cyan", "red")}, robot, ("body", "head"), "people and robots", parts={"eyes": "eyes", "head": "head"}, materials=SHINE),
    thing(("snowman",), {"body": ("white",), "nose": ("orange",), "buttons": ("black",), "arms": ("brown",)}, snowman, "body", "people and robots", parts={"nose": "nose", "buttons": "buttons"}),
    thing(("teddy bear", "teddy"), {"body": ("brown", "beige", "pink", "white"), "belly": ("beige", "white"), "eyes": ("black",)}, teddy, "body", "people and robots", parts={"belly": "belly"}, smooth=0.03),
    thing(("car", "automobile", "sedan"), {"body": BRIGHT, **VEHICLE, "lights": ("yellow", "white")}, car, "body", "vehicles", parts={"wheels": "wheels", "windows": "windows"}, materials=SHINE),
    thing(("truck", "lorry"), {"body": BRIGHT, "cargo": ("white", "gray", "beige", "blue"), **VEHICLE}, truck, "body", "vehicles", parts={"cargo": "cargo box", "wheels": "wheels"}, core=False),
    thing(("bus", "coach"), {"body": ("yellow", "red", "blue", "white"), **VEHICLE}, bus, "body", "vehicles", parts={"wheels": "wheels", "windows": "windows"}),
    thing(("train", "locomotive"), {"body": BRIGHT, "cabin": ("red", "black", "green", "blue"), "roof": ("black", "gray"), **VEHICLE, "wheels": ("black", "red")}, train, "body", "vehicles", parts={"cabin": "cabin", "wheels": "wheels", "roof": "roof"}),
    thing(("airplane", "plane", "jet"), {"body": ("white", "gray", "red"), "wings": ("white", "gray", "blue", "red"), "windows": ("cyan", "black"), "engines": ("gray", "black")}, airplane, "body", "vehicles", parts={"wings": "wings"}),
    thing(("helicopter", "chopper"), {"body": BRIGHT, "windows": ("cyan", "black"), "rotor": ("gray", "black")}, helicopter, "body", "vehicles", parts={"rotor": "rotor"}, core=False),
    thing(("boat", "sailboat", "ship"), {"body": ("brown", "red", "blue", "white"), "deck": WOOD, "sail": ("white", "beige", "red")}, boat, "body", "vehicles", parts={"sail": "sail"}),
    thing(("rocket", "spaceship"), {"body": ("white", "gray"), "nose": ("red", "blue", "orange"), "fins": ("red", "blue", "orange"), "windows": ("cyan", "blue"), "nozzle": ("gray", "black")}, rocket, "body", "vehicles", parts={"fins": "fins", "nose": "nose"}, materials=SHINE),
    thing(("tank",), {"body": ("green", "beige", "gray"), "turret": (), "wheels": ("black", "gray"), "hubs": ("gray",)}, tank, ("body", "turret"), "vehicles", parts={"turret": "turret"}, core=False),
    thing(("submarine",), {"body": ("yellow", "gray", "blue"), "fins": ("gray", "red", "black"), "windows": ("cyan", "white")}, submarine, "body", "vehicles", parts={"windows": "windows", "fins": "fins"}, core=False),
    thing(("house", "cottage", "home"), {"walls": ("white", "beige", "yellow", "cyan"), "roof": ("red", "brown", "gray", "blue"), "door": ("brown", "red", "blue"), "windows": ("cyan", "yellow")}, house, "walls", "buildings", parts={"roof": "roof", "door": "door"}),
    thing(("castle", "fortress"), {"walls": ("gray", "beige", "white"), "roof": ("red", "blue", "purple"), "door": ("brown", "black")}, castle, "walls", "buildings", parts={"roof": "roofs", "door": "gate"}),
    thing(("tower",), {"walls": ("gray", "beige", "white"), "roof": ("red", "blue", "brown"), "door": ("brown", "black")}, tower, "walls", "buildings", parts={"roof": "roof"}, core=False),
    thing(("lighthouse",), {"walls": ("white",), "stripes": ("red", "blue", "black"), "roof": ("red", "black"), "lamp": ("yellow",)}, lighthouse, "walls", "buildings", parts={"stripes": "stripes", "roof": "roof"}),
    thing(("windmill", "mill"), {"walls": ("white", "beige", "gray"), "roof": ("red", "brown", "blue"), "door": ("brown",), "sails": ("white", "brown", "beige")}, windmill, "walls", "buildings", parts={"roof": "roof", "sails": "sails"}, core=False),
    thing(("tent",), {"body": ("orange", "green", "blue", "red", "yellow"), "door": ("black", "brown", "gray")}, tent, "body", "buildings", parts={"door": "door"}, core=False),
    thing(("church", "chapel"), {"walls": ("white", "gray", "beige"), "roof": ("red", "brown", "black"), "door": ("brown", "black")}, church, "walls", "buildings", parts={"roof": "roof"}, core=False),
    thing(("chair", "seat"), {"seat": (*WOOD, "red", "blue", "green"), "back": (), "legs": (*WOOD, "black")}, chair, ("seat", "back"), "furniture", parts={"legs": "legs", "back": "back"}, materials=("wooden", "metal")),
    thing(("table", "desk"), {"top": (*WOOD, "white", "gray"), "legs": (*WOOD, "black", "white")}, table, ("top",), "furniture", parts={"legs": "legs"}, stackable=True, materials=("wooden", "metal")),
    thing(("sofa", "couch"), {"body": ("red", "blue", "gray", "green", "beige"), "cushions": ("white", "beige", "gray", "yellow"), "legs": ("black", "brown")}, sofa, "body", "furniture", parts={"cushions": "cushions"}),
    thing(("bed",), {"frame": WOOD, "pillow": ("white",), "blanket": ("blue", "red", "green", "pink", "yellow")}, bed, "blanket", "furniture", parts={"blanket": "blanket", "frame": "frame"}, core=False),
    thing(("lamp",), {"stand": ("black", "gray", "brown"), "shade": ("yellow", "white", "orange", "red")}, lamp, "shade", "furniture", parts={"stand": "stand", "shade": "shade"}),
    thing(("mug", "cup"), {"body": BRIGHT, "drink": ("brown", "black")}, mug, "body", "tools", parts={"drink": "drink"}, stackable=True, materials=SHINE),
    thing(("teapot", "kettle"), {"body": ("white", "blue", "red", "green", "yellow"), "lid": (), "handle": ()}, teapot, ("body", "lid", "handle"), "tools", parts={"lid": "lid", "handle": "handle"}, materials=SHINE),
    thing(("bottle",), {"body": ("green", "blue", "brown", "cyan"), "cap": ("red", "white", "black"), "label": ("white", "yellow", "red")}, bottle, "body", "tools", parts={"cap": "cap", "label": "label"}, core=False, materials=("shiny",)),
    thing(("hammer", "mallet"), {"handle": (*WOOD, "red"), "head": ("gray", "black")}, hammer, "head", "tools", parts={"handle": "handle", "head": "head"}, materials=("metal",), core=False),
    thing(("axe", "hatchet"), {"handle": WOOD, "blade": ("gray", "red")}, axe, "blade", "tools", parts={"handle": "handle", "blade": "blade"}, core=False),
    thing(("sword", "blade"), {"blade": ("gray", "white"), "guard": ("yellow", "brown", "black"), "handle": ("brown", "black", "red")}, sword, "blade", "tools", parts={"handle": "handle", "guard": "guard"}, materials=("metal",)),
    thing(("pencil", "crayon"), {"body": ("yellow", "red", "blue", "green"), "wood": ("beige",), "tip": ("black",), "eraser": ("pink",)}, pencil, "body", "tools", parts={"eraser": "eraser"}, core=False),
    thing(("umbrella", "parasol"), {"canopy": BRIGHT, "handle": ("brown", "black", "gray")}, umbrella, "canopy", "tools", parts={"handle": "handle"}),
    thing(("guitar",), {"body": ("brown", "orange", "red", "black"), "neck": ("black", "brown")}, guitar, "body", "tools", parts={"neck": "neck"}, core=False),
    thing(("key",), {"body": ("yellow", "gray")}, key, "body", "tools", core=False, materials=("metal",)),
    thing(("apple",), {"body": ("red", "green", "yellow"), "stem": ("brown",), "leaf": ("green",)}, apple, "body", "food", parts={"leaf": "leaf"}, stackable=True),
    thing(("banana",), {"body": ("yellow",), "stem": ("brown", "green")}, banana, "body", "food"),
    thing(("carrot",), {"body": ("orange",), "leaf": ("green",)}, carrot, "body", "food", parts={"leaf": "leaves"}),
    thing(("burger", "hamburger", "cheeseburger"), {"bun": ("orange", "beige"), "meat": ("brown",), "cheese": ("yellow",), "lettuce": ("lime", "green")}, burger, "bun", "food", parts={"lettuce": "lettuce"}),
    thing(("ice cream", "ice cream cone"), {"cone": ("beige", "orange"), "scoop": ("pink", "white", "brown", "lime", "yellow"), "cherry": ("red",)}, ice_cream, "scoop", "food", parts={"cherry": "cherry"}),
    thing(("cake", "birthday cake"), {"plate": ("white", "gray"), "body": ("brown", "beige", "pink", "yellow"), "icing": ("white", "pink", "brown"), "candles": ("red", "blue", "yellow"), "cherry": ("orange", "red")}, cake, "body", "food", parts={"icing": "icing", "candles": "candles"}),
    thing(("donut", "doughnut"), {"body": ("orange", "beige"), "icing": ("pink", "brown", "white", "cyan"), "sprinkles": ("white", "yellow")}, donut, "icing", "food", parts={"icing": "icing"}),
    thing(("watermelon", "melon"), {"body": ("green",), "marks": ("lime",)}, watermelon, "body", "food", parts={"marks": "stripes"}, core=False),
    thing(("pear",), {"body": ("lime", "yellow", "green"), "stem": ("brown",), "leaf": ("green",)}, pear, "body", "food", parts={"leaf": "leaf"}, core=False),
    thing(("tree", "oak tree"), {"trunk": ("brown",), "leaves": ("green", "lime", "orange")}, tree, "leaves", "plants", parts={"trunk": "trunk", "leaves": "leaves"}),
    thing(("pine tree", "christmas tree", "fir tree"), {"trunk": ("brown",), "leaves": ("green",)}, pine, "leaves", "plants", parts={"trunk": "trunk"}),
    thing(("cactus",), {"body": ("green",), "pot": ("orange", "brown", "white")}, cactus, "body", "plants", parts={"pot": "pot"}),
    thing(("flower", "daisy"), {"stem": ("green",), "petals": ("red", "yellow", "pink", "white", "purple", "blue"), "middle": ("yellow", "orange", "brown")}, flower, "petals", "plants", parts={"petals": "petals", "middle": "center"}),
    thing(("mushroom", "toadstool"), {"stem": ("white", "beige"), "cap": ("red", "brown"), "spots": ("white",)}, mushroom, "cap", "plants", parts={"cap": "cap", "spots": "spots", "stem": "stem"}),
    thing(("potted plant", "house plant"), {"pot": ("orange", "white", "blue", "brown"), "leaves": ("green", "lime")}, potted_plant, "leaves", "plants", parts={"pot": "pot"}, core=False),
    thing(("cube", "box", "block"), {"body": BRIGHT}, cube, "body", "solids", stackable=True, materials=ANY),
    thing(("sphere", "ball"), {"body": BRIGHT}, sphere, "body", "solids", stackable=True, materials=ANY),
    thing(("cylinder",), {"body": BRIGHT}, cylinder, "body", "solids", stackable=True, materials=ANY),
    thing(("cone",), {"body": BRIGHT}, cone, "body", "solids", stackable=True, materials=ANY),
    thing(("torus", "ring"), {"body": BRIGHT}, torus, "body", "solids", stackable=True, materials=ANY),
    thing(("pyramid",), {"body": BRIGHT}, pyramid, "body", "solids", stackable=True, materials=ANY),
)

BY_NAME = {category.name: category for category in CATEGORIES}


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
        turn = rotation_matrix(y=60 * k)
        dx, _, dz = (turn @ turn.new_tensor([0.0, 0.0, r * 0.88])).tolist()
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
WEARERS = tuple(
    name
    for name in ("corgi", "dog", "cat", "bear", "pig", "cow", "sheep", "lion", "rabbit", "panda", "fox", "tiger", "duck", "penguin", "chicken", "owl", "turtle", "frog", "dinosaur", "man", "woman", "robot", "snowman", "teddy bear")
)
