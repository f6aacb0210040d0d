"""How animals, people and robots are built: the functions that ``catalogue.yaml`` names, in loose units.

+Y is up and the front faces +Z; the scene normalizes the size afterwards. Every number is drawn from a range, so that
no two of a kind are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from mini.sdf import CORNERS, PATCHES, PLAIN, SPOTS, STRIPES, Draw, Point, Shape, rotation_matrix

PATTERNS = {"stripes": STRIPES, "spots": SPOTS, "patches": PATCHES}


@dataclass(frozen=True)
class Anchor:
    """Where accessories go: the top of the head, its radius, and the neck."""

    head: Point
    head_radius: float
    neck: Point
    neck_radius: float


# --- animals ---------------------------------------------------------------------------------------------------------


def quadruped(
    s: Shape,
    u: Draw,
    body: tuple[float, float, float] = (0.2, 0.2, 0.4),
    legs: tuple[float, float] = (0.25, 0.07),
    neck: tuple[float, float] = (0.1, 0.15),
    head: tuple[float, float, float] = (0.17, 0.17, 0.18),
    snout: tuple[float, float] = (0.09, 0.14),
    ears: str = "pointed",
    ear_size: float = 0.12,
    tail: str = "thin",
    tail_length: float = 0.3,
    pattern: str = "",
    mane: str = "none",
    trunk: bool = False,
    horns: bool = False,
    patches: bool = False,
    bib: bool = False,
) -> Anchor:
    """Four legs, a body, a neck, a head: dogs, cats and most of the farm."""
    bx, by, bz = (b * u(0.88, 1.12) for b in body)
    leg_length, leg_radius = legs[0] * u(0.85, 1.15), legs[1] * u(0.9, 1.1)
    y = leg_length + by * 0.8
    kwargs = {"pattern": PATTERNS[pattern], "second": "marks"} if pattern else {}
    s.ball("body", (0, y, 0), (bx, by, bz), **kwargs)
    stride = u(-0.06, 0.06)
    for side in (-1, 1):
        for end, swing in ((1, side * stride), (-1, -side * stride)):
            foot = (side * bx * 0.62, leg_radius * 0.6, end * bz * 0.68 + swing)
            s.limb("legs", (side * bx * 0.6, y - 0.2 * by, end * bz * 0.62), foot, leg_radius * 1.15, leg_radius)
    rise, forward = neck[0] * u(0.9, 1.15), neck[1] * u(0.9, 1.1)
    base = (0.0, y + 0.35 * by, bz * 0.72)
    hx, hy, hz = (h * u(0.92, 1.1) for h in head)
    _, ty, tz = top = (0.0, base[1] + rise + 0.4 * hy, base[2] + forward)
    s.limb("body", base, (0, ty - 0.2 * hy, tz - 0.3 * hz), bx * 0.62, min(bx, hx) * 0.62, **kwargs)
    if mane == "lion":
        s.ball("mane", (0, ty, tz - 0.5 * hz), (hx * 1.75, hy * 1.75, hz * 0.9))
    elif mane == "horse":
        s.limb("mane", (0, base[1] + 0.9 * bx, base[2] - 0.3 * hz), (0, ty + hy, tz - 0.4 * hz), 0.055, 0.05)
    s.ball("head", top, (hx, hy, hz))
    if bib:
        s.ball("belly", (0, base[1] - 0.35 * by, base[2] + 0.12 * bz), (bx * 0.62, by * 0.72, bz * 0.28))
    width, reach = snout[0] * u(0.9, 1.1), snout[1] * u(0.9, 1.15)
    muzzle_y = ty - 0.3 * hy
    if trunk:
        tip = (0.0, ty - u(0.42, 0.55), tz + hz + u(0.08, 0.2))
        s.limb("head", (0, muzzle_y, tz + 0.7 * hz), (0, ty - 0.3, tz + hz + 0.05), 0.075, 0.06)
        s.limb("head", (0, ty - 0.3, tz + hz + 0.05), tip, 0.06, 0.045)
        for side in (-1, 1):
            tip = (side * 0.1, muzzle_y - 0.14, tz + hz + 0.16)
            s.limb("tusks", (side * 0.08, muzzle_y - 0.05, tz + 0.8 * hz), tip, 0.025, 0.012)
    elif reach:
        s.ball("snout", (0, muzzle_y, tz + hz * 0.7 + reach * 0.35), (width, width * 0.8, reach * 0.75))
        nose_z = tz + hz * 0.7 + reach * 1.05
        s.ball("nose", (0, muzzle_y + width * 0.3, nose_z), (width * 0.38, width * 0.32, width * 0.3))
    for side in (-1, 1):
        s.ball("nose", (side * hx * 0.48, ty + 0.2 * hy, tz + hz * 0.84), (0.032, 0.036, 0.025))
        if patches:
            s.ball("nose", (side * hx * 0.46, ty + 0.15 * hy, tz + hz * 0.76), (0.062, 0.075, 0.04))
        size = ear_size * u(0.85, 1.15)
        if ears == "pointed":
            middle = (side * hx * 0.62, ty + hy * 0.75 + size * 0.5, tz - 0.1 * hz)
            lean = rotation_matrix(z=-side * u(8, 20))
            s.cone("ears", middle, size * 0.62, 0.012, size, 0.01, rotation=lean)
        elif ears == "floppy":
            middle = (side * (hx + 0.02), ty + 0.05 * hy - 0.3 * size, tz - 0.1 * hz)
            lean = rotation_matrix(z=side * u(8, 20))
            s.ball("ears", middle, (0.035, size, size * 0.6), lean)
        elif ears == "round":
            s.ball("ears", (side * hx * 0.75, ty + hy * 0.8, tz - 0.1 * hz), (size * 0.6, size * 0.6, size * 0.35))
        elif ears == "long":
            tip = (side * hx * u(0.5, 0.9), ty + hy + 2.2 * size, tz - 0.2 * hz)
            s.limb("ears", (side * hx * 0.45, ty + hy * 0.7, tz - 0.1 * hz), tip, size * 0.34, size * 0.26)
        elif ears == "huge":
            middle = (side * (hx + 0.75 * size), ty + 0.05, tz - 0.25 * hz)
            s.ball("ears", middle, (size, size * 1.25, 0.035), rotation_matrix(y=side * u(15, 35)))
        if horns:
            tip = (side * hx * 0.95, ty + hy + 0.13, tz + 0.03)
            s.limb("horns", (side * hx * 0.5, ty + hy * 0.8, tz), tip, 0.03, 0.014)
    _, ry, rz = rump = (0.0, y + 0.4 * by, -bz * 0.88)
    length = tail_length * u(0.85, 1.2)
    if tail == "thin":
        s.limb("tail", rump, (0, ry - 0.4 * length, rz - 0.8 * length), 0.035, 0.025)
    elif tail == "up":
        s.limb("tail", rump, (u(-0.05, 0.05), ry + length, rz - 0.35 * length), 0.04, 0.03)
    elif tail == "bushy":
        middle = (0, ry + 0.25 * length, rz - 0.45 * length)
        s.ball("tail", middle, (0.095, 0.1, length * 0.62), rotation_matrix(x=u(15, 40)))
        s.ball("belly", (0, ry + 0.62 * length, rz - 0.92 * length), (0.06, 0.065, 0.1), rotation_matrix(x=30))
    elif tail == "stub":
        s.ball("tail", rump, (0.065, 0.065, 0.075))
    elif tail == "hair":
        s.limb("mane", rump, (0, ry - length, rz - 0.2), 0.06, 0.035)
    throat = (0, (base[1] + ty) / 2 - 0.02, (base[2] + tz) / 2 + 0.02)
    return Anchor((0, ty + hy * 0.86, tz - 0.05 * hz), hx, throat, max(bx * 0.68, hx * 0.72))


def bird(
    s: Shape,
    u: Draw,
    body: tuple[float, float, float],
    head: float,
    neck: float,
    beak: tuple[float, float],
    legs: float,
    comb: bool = False,
    tail: float = 0.15,
    upright: bool = False,
    big_eyes: bool = False,
) -> Anchor:
    """Two legs, wings and a beak."""
    bx, by, bz = (b * u(0.9, 1.1) for b in body)
    y = legs + by * 0.92
    s.ball("body", (0, y, 0), (bx, by, bz))
    s.ball("belly", (0, y - 0.1 * by, 0.22 * bz), (bx * 0.8, by * 0.85, bz * 0.85))
    r = head * u(0.92, 1.08)
    _, ty, tz = top = (0.0, y + by * (0.95 if upright else 0.75) + neck, bz * (0.15 if upright else 0.72))
    s.limb("head", (0, y + 0.3 * by, tz * 0.7), top, r * 0.9, r * 0.75)
    s.ball("head", top, (r, r, r))
    s.cone("beak", (0, ty - 0.1 * r, tz + r + beak[1] * 0.35), beak[0], 0.012, beak[1] * 0.6, 0.01, axis="z")
    for side in (-1, 1):
        size = r * (0.42 if big_eyes else 0.18)
        if big_eyes:
            s.ball("belly", (side * r * 0.42, ty + 0.12 * r, tz + r * 0.66), (size, size, size * 0.5))
        out, pupil = (0.86, size * 0.6) if big_eyes else (0.82, size)
        s.ball("eyes", (side * r * 0.44, ty + 0.14 * r, tz + r * out), pupil)
        lean = rotation_matrix(z=side * u(3, 14), x=u(-15, 5))
        s.ball("wings", (side * bx * 0.98, y + 0.05, -0.05 * bz), (0.05, by * 0.72, bz * 0.78), lean)
        if legs > 0.06:
            s.limb("beak", (side * bx * 0.4, y - 0.8 * by, 0), (side * bx * 0.4, 0.02, 0.0), 0.026)
        s.ball("beak", (side * bx * 0.45, 0.02, 0.06 + 0.25 * bz), (0.08, 0.025, 0.11))
    height, lean = (-0.75 * by, -20) if upright else (0.1, 25)
    s.ball("wings", (0, y + height, -bz - tail * 0.3), (bx * 0.45, 0.05, tail), rotation_matrix(x=lean))
    if comb:
        for k in range(3):
            s.ball("comb", (0, ty + r + 0.01, tz - 0.07 + 0.07 * k), (0.025, 0.055, 0.045))
        s.ball("comb", (0, ty - r * 0.75, tz + r * 0.95), (0.025, 0.06, 0.03))
    return Anchor((0, ty + r * 0.88, tz), r, (0, ty - r * 0.95, tz * 0.9), r * 0.85)


def fish(s: Shape, u: Draw) -> None:
    length, height = u(0.4, 0.5), u(0.2, 0.3)
    radii, pattern = (0.13 * u(0.9, 1.2), height, length), STRIPES if u.random() < 0.3 else PLAIN
    s.ball("body", (0, 0, 0), radii, pattern=pattern, second="fins")
    for side in (-1, 1):
        s.ball("fins", (side * 0.16, -0.05, 0.08), (0.03, 0.08, 0.14), rotation_matrix(y=side * 35))
        s.ball("eyes", (side * 0.085, 0.06, length * 0.74), 0.045)
    s.box("fins", (0, 0.0, -length - 0.1), (0.02, u(0.18, 0.26), 0.14), taper=(0, 0))
    s.ball("fins", (0, height, -0.05), (0.02, 0.12, 0.22))


def whale(s: Shape, u: Draw) -> None:
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


def turtle(s: Shape, u: Draw) -> Anchor:
    r = u(0.36, 0.42)
    s.ball("shell", (0, 0.2, 0), (r, u(0.22, 0.28), r * 1.1), pattern=SPOTS, second="marks")
    s.ball("body", (0, 0.13, 0), (r * 1.06, 0.09, r * 1.14))
    for side, end in CORNERS:
        s.limb("body", (side * 0.26, 0.12, end * 0.26), (side * 0.38, 0.03, end * 0.38), 0.08, 0.07)
    z = r * 1.1 + 0.2
    s.limb("body", (0, 0.15, r), (0, 0.25, z), 0.09, 0.1)
    s.ball("body", (0, 0.28, z + 0.02), (0.13, 0.12, 0.14))
    for side in (-1, 1):
        s.ball("eyes", (side * 0.08, 0.32, z + 0.11), 0.032)
    s.limb("body", (0, 0.1, -r), (0, 0.07, -r - 0.18), 0.05, 0.02)
    return Anchor((0, 0.39, z), 0.13, (0, 0.19, r + 0.06), 0.11)


def frog(s: Shape, u: Draw) -> Anchor:
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


def snail(s: Shape, u: Draw) -> None:
    s.limb("body", (0, 0.07, -0.42), (0, 0.08, 0.34), 0.08, 0.09)
    s.limb("body", (0, 0.08, 0.34), (0, 0.3, 0.46), 0.085, 0.075)
    r = u(0.25, 0.3)
    s.ball("shell", (0, 0.12 + r, -0.1), (0.15, r, r))
    s.torus("marks", (0, 0.12 + r, -0.1), r * 0.55, 0.06, axis="x")
    s.ball("shell", (0, 0.12 + r, -0.1), (0.2, 0.09, 0.09))
    for side in (-1, 1):
        s.limb("body", (side * 0.04, 0.34, 0.48), (side * 0.1, 0.5, 0.54), 0.02)
        s.ball("eyes", (side * 0.1, 0.51, 0.54), 0.035)


def bee(s: Shape, u: Draw) -> None:
    s.ball("body", (0, 0, -0.05), (u(0.2, 0.24), 0.22, 0.38), pattern=STRIPES, second="marks")
    s.ball("marks", (0, 0.03, 0.38), 0.16)
    for side in (-1, 1):
        s.ball("wings", (side * 0.3, 0.26, -0.06), (0.26, 0.02, 0.15), rotation_matrix(z=side * u(20, 40)))
        s.ball("wings", (side * 0.07, 0.08, 0.5), 0.04)
        s.limb("marks", (side * 0.06, 0.15, 0.46), (side * 0.12, 0.3, 0.56), 0.018)
    s.cone("marks", (0, 0, -0.46), 0.05, 0.005, 0.07, 0.005, axis="z", rotation=rotation_matrix(y=180))


def dinosaur(s: Shape, u: Draw) -> Anchor:
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
        middle = (0, 0.98 - 0.5 * a - 0.18 * a * a, 0.12 - 0.2 * a - 0.42 * a * a)
        s.cone("spikes", middle, 0.055, 0.005, 0.075, 0.004, rotation=rotation_matrix(x=-40 - 30 * a))
    return Anchor((0, 1.03, 0.3), 0.13, (0, 0.72, 0.2), 0.13)


# --- people and robots -----------------------------------------------------------------------------------------------


def person(s: Shape, u: Draw, kind: str) -> Anchor:
    """A toy figure: head, hair, shirt, trousers; the kind adds what tells a king from a robot."""
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


def robot(s: Shape, u: Draw) -> Anchor:
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


def snowman(s: Shape, u: Draw) -> Anchor:
    a, b, c = u(0.28, 0.32), u(0.2, 0.23), u(0.145, 0.165)
    s.ball("body", (0, a * 0.95, 0), a)
    s.ball("body", (0, a * 1.85 + b * 0.7, 0), b)
    y = a * 1.85 + b * 1.4 + c * 0.85
    s.ball("body", (0, y, 0), c)
    s.cone("nose", (0, y, c + 0.08), 0.036, 0.005, 0.1, 0.004, axis="z")
    for side in (-1, 1):
        s.ball("buttons", (side * 0.06, y + 0.05, c * 0.9), 0.026)
        hand = (side * (b + 0.26), a * 1.9 + b + u(0.05, 0.2), 0)
        s.limb("arms", (side * b * 0.9, a * 1.9 + b * 0.7, 0), hand, 0.022)
    for k in range(3):
        s.ball("buttons", (0, a * 1.75 + b * (0.45 + 0.38 * k), b * (0.98 - 0.1 * abs(k - 1))), 0.03)
    return Anchor((0, y + c * 0.9, 0), c, (0, y - c * 0.85, 0), c * 0.85)


def teddy_bear(s: Shape, u: Draw) -> Anchor:
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
