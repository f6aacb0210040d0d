"""How vehicles, buildings, furniture, food, plants and solids are built, in the units of ``creatures.py``."""

from __future__ import annotations

from mini.sdf import CORNERS, PLAIN, SPOTS, STRIPES, Draw, Shape, rotation_matrix, turned

# --- vehicles --------------------------------------------------------------------------------------------------------


def wheels(s: Shape, positions: list[tuple[float, float]], x: float, radius: float, width: float = 0.05) -> None:
    for z, y in positions:
        for side in (-1, 1):
            s.cylinder("wheels", (side * x, y, z), radius, width, 0.015, axis="x")
            s.cylinder("hubs", (side * (x + width * 0.75), y, z), radius * 0.45, width * 0.4, 0.005, axis="x")


def car(s: Shape, u: Draw) -> None:
    length, r = u(0.52, 0.62), u(0.115, 0.14)
    s.box("body", (0, 0.23, 0), (0.25, 0.11, length), edge=0.06)
    s.box("windows", (0, 0.4, u(-0.12, -0.02)), (0.215, 0.11, length * 0.52), edge=0.03, taper=(0.2, 0.35))
    s.box("body", (0, 0.5, u(-0.12, -0.04)), (0.18, 0.02, length * 0.34), edge=0.02)
    wheels(s, [(length * 0.62, r), (-length * 0.62, r)], 0.23, r)
    for side in (-1, 1):
        s.ball("lights", (side * 0.17, 0.26, length), (0.05, 0.045, 0.03))


def truck(s: Shape, u: Draw) -> None:
    r = u(0.11, 0.13)
    cargo = u(0.36, 0.46)
    s.box("cargo", (0, 0.5, -0.2), (0.25, u(0.27, 0.32), cargo), edge=0.02)
    front = -0.2 + cargo + 0.22
    s.box("body", (0, 0.38, front), (0.24, 0.23, 0.18), edge=0.05)
    s.box("windows", (0, 0.47, front + 0.1), (0.2, 0.09, 0.1), edge=0.02)
    s.box("hubs", (0, 0.16, -0.02), (0.2, 0.04, cargo + 0.2), edge=0.02)
    wheels(s, [(front, r), (-0.2 - cargo * 0.55, r), (-0.2 - cargo * 0.55 + 2.2 * r, r)], 0.22, r)


def bus(s: Shape, u: Draw) -> None:
    length, h = u(0.68, 0.78), u(0.22, 0.27)
    s.box("body", (0, 0.14 + h, 0), (0.22, h, length), edge=0.05)
    s.box("windows", (0, 0.14 + h * 1.35, 0.01), (0.227, h * 0.33, length * 0.9), edge=0.01)
    s.box("windows", (0, 0.14 + h * 1.3, length * 0.93), (0.18, h * 0.36, 0.06), edge=0.01)
    for k in range(4):
        s.box("body", (0, 0.14 + h * 1.35, length * (-0.66 + 0.44 * k)), (0.231, h * 0.36, 0.022), edge=0.004)
    wheels(s, [(length * 0.6, 0.13), (-length * 0.6, 0.13)], 0.2, 0.13)


def train(s: Shape, u: Draw) -> None:
    s.cylinder("body", (0, 0.42, 0.18), u(0.17, 0.2), 0.38, 0.03, axis="z")
    s.box("cabin", (0, 0.5, -0.34), (0.22, 0.27, 0.2), edge=0.02)
    s.box("windows", (0, 0.6, -0.34), (0.228, 0.09, 0.12), edge=0.01)
    s.box("roof", (0, 0.79, -0.34), (0.27, 0.03, 0.25), edge=0.02)
    s.box("roof", (0, 0.22, 0), (0.19, 0.06, 0.58), edge=0.02)
    s.cone("roof", (0, 0.7, 0.4), 0.06, u(0.08, 0.11), 0.13)
    s.ball("roof", (0, 0.62, 0.1), (0.08, 0.08, 0.08))
    wheels(s, [(0.42, 0.13), (0.12, 0.13), (-0.34, 0.15)], 0.2, 0.135)


def airplane(s: Shape, u: Draw) -> None:
    length = u(0.6, 0.7)
    s.ball("body", (0, 0, 0), (0.125, 0.125, length))
    s.ball("windows", (0, 0.08, length * 0.62), (0.075, 0.06, 0.13))
    sweep = u(5, 25)
    for side in (-1, 1):
        turn = rotation_matrix(y=side * sweep)
        s.box("wings", (side * 0.36, -0.02, -0.02 - 0.1 * sweep / 25), (0.34, 0.02, 0.13), rotation=turn)
        s.box("wings", (side * 0.16, 0.04, -length * 0.86), (0.16, 0.015, 0.075), rotation=turn)
        s.cylinder("engines", (side * 0.3, -0.09, 0.08), 0.06, 0.12, 0.02, axis="z")
    s.box("wings", (0, 0.17, -length * 0.88), (0.018, 0.16, 0.09), taper=(0, 0.4))


def helicopter(s: Shape, u: Draw) -> None:
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


def boat(s: Shape, u: Draw) -> None:
    s.box("body", (0, 0.1, 0), (0.22, 0.13, 0.5), edge=0.05, taper=(-0.25, -0.2))
    s.ball("body", (0, 0.14, 0.5), (0.19, 0.12, 0.24))
    s.box("deck", (0, 0.22, 0), (0.2, 0.02, 0.46))
    s.cylinder("deck", (0, 0.7, 0.02), 0.024, 0.5)
    h = u(0.36, 0.44)
    s.box("sail", (0, 0.34 + h, -0.2), (0.018, h, 0.22), edge=0.01, taper=(0, 0.9))
    s.box("sail", (0, 0.3 + h * 0.8, 0.22), (0.018, h * 0.8, 0.16), edge=0.01, taper=(0, 0.9))


def rocket(s: Shape, u: Draw) -> None:
    r, h = u(0.14, 0.18), u(0.36, 0.46)
    s.cylinder("body", (0, h, 0), r, h, 0.03)
    s.cone("nose", (0, 2 * h + 0.16, 0), r * 1.02, 0.015, u(0.16, 0.22), 0.01)
    s.ball("windows", (0, h * 1.35, r * 0.8), (0.075, 0.075, 0.06))
    s.cone("nozzle", (0, -0.04, 0), r * 0.95, r * 0.6, 0.07)
    for k in range(4):
        turn = rotation_matrix(y=90 * k + 45)
        x, _, z = turned(turn, (0, 0, r + 0.08))
        s.box("fins", (x, 0.13, z), (0.02, 0.2, 0.13), taper=(0, 0.6), rotation=turn)


def tank(s: Shape, u: Draw) -> None:
    s.box("body", (0, 0.28, 0), (0.26, 0.11, 0.5), edge=0.05)
    for side in (-1, 1):
        s.box("wheels", (side * 0.29, 0.17, 0), (0.08, 0.16, 0.55), edge=0.15)
        for k in range(4):
            s.cylinder("hubs", (side * 0.37, 0.15, -0.36 + 0.24 * k), 0.08, 0.015, axis="x")
    s.ball("turret", (0, 0.44, -0.06), (0.22, 0.14, 0.26))
    s.limb("turret", (0, 0.47, 0.1), (0, 0.47 + u(0, 0.12), 0.78), 0.045)


def submarine(s: Shape, u: Draw) -> None:
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


def house(s: Shape, u: Draw) -> None:
    w, d, h = u(0.32, 0.4), u(0.28, 0.36), u(0.2, 0.26)
    s.box("walls", (0, h, 0), (w, h, d), edge=0.01)
    roof = u(0.15, 0.22)
    s.box("roof", (0, 2 * h + roof - 0.01, 0), (w * 1.15, roof, d * 1.12), edge=0.01, taper=(0.96, 0))
    s.box("door", (u(-0.1, 0.1), 0.13, d), (0.07, 0.13, 0.015))
    for side in (-1, 1):
        s.box("windows", (side * w * 0.62, h * 1.15, d), (0.065, 0.065, 0.012))
        s.box("windows", (side * w, h * 1.1, 0), (0.012, 0.07, 0.08))
    if u.random() < 0.6:
        s.box("door", (w * 0.5, 2 * h + roof * 1.2, -d * 0.3), (0.06, 0.17, 0.06))


def castle(s: Shape, u: Draw) -> None:
    w, h = u(0.32, 0.38), u(0.2, 0.26)
    s.box("walls", (0, h, 0), (w, h, w), edge=0.01)
    tall, r = u(0.34, 0.42), u(0.1, 0.13)
    for x, z in CORNERS:
        s.cylinder("walls", (x * w, tall, z * w), r, tall)
        s.cone("roof", (x * w, 2 * tall + 0.13, z * w), r * 1.25, 0.01, 0.15, 0.006)
    for k in (-1, 0, 1):
        for side in (-1, 1):
            s.box("walls", (k * w * 0.5, 2 * h + 0.04, side * w * 0.93), (0.05, 0.05, 0.03))
    s.box("door", (0, 0.12, w), (0.1, 0.14, 0.02), edge=0.015)


def tower(s: Shape, u: Draw) -> None:
    r, h = u(0.15, 0.19), u(0.5, 0.6)
    s.cone("walls", (0, h, 0), r, r * 0.9, h, 0.01)
    s.cylinder("walls", (0, 2 * h + 0.05, 0), r * 1.3, 0.07)
    s.cone("roof", (0, 2 * h + 0.3, 0), r * 1.45, 0.01, 0.2, 0.006)
    s.box("door", (0, 0.12, r * 0.95), (0.065, 0.12, 0.03))
    for k in range(2):
        s.box("door", (0, 0.5 + 0.32 * k, r * 0.9), (0.04, 0.07, 0.04))


def lighthouse(s: Shape, u: Draw) -> None:
    h = u(0.5, 0.58)
    for k in range(5):
        a, b = 0.22 - 0.024 * k, 0.22 - 0.024 * (k + 1)
        s.cone("walls" if k % 2 == 0 else "stripes", (0, h * (0.2 + 0.4 * k) * 1.0, 0), a, b, h * 0.205, 0.004)
    s.cylinder("roof", (0, 2 * h + 0.02, 0), 0.16, 0.025)
    s.cylinder("lamp", (0, 2 * h + 0.11, 0), 0.085, 0.09)
    s.cone("roof", (0, 2 * h + 0.26, 0), 0.13, 0.01, 0.08, 0.006)


def windmill(s: Shape, u: Draw) -> None:
    s.cone("walls", (0, 0.4, 0), 0.26, 0.17, 0.4, 0.01)
    s.cone("roof", (0, 0.92, 0), 0.22, 0.01, 0.14, 0.006)
    s.box("door", (0, 0.12, 0.25), (0.07, 0.12, 0.02))
    turn = u(0, 90)
    for k in range(4):
        angle = rotation_matrix(z=turn + 90 * k)
        x, y, _ = turned(angle, (0, 0.3, 0))
        s.box("sails", (x, 0.78 + y, 0.26), (0.065, 0.26, 0.014), edge=0.008, rotation=angle)
    s.limb("door", (0, 0.78, 0.12), (0, 0.78, 0.28), 0.04)


def tent(s: Shape, u: Draw) -> None:
    w, h, d = u(0.4, 0.46), u(0.26, 0.32), u(0.4, 0.5)
    s.box("body", (0, h, 0), (w, h, d), edge=0.01, taper=(0.97, 0))
    s.box("door", (0, h * 0.66, d * 0.98), (w * 0.36, h * 0.66, 0.03), edge=0.005, taper=(0.95, 0))


def church(s: Shape, u: Draw) -> None:
    w, h, d = u(0.2, 0.24), u(0.2, 0.24), 0.36
    s.box("walls", (0, h, -0.1), (w, h, d), edge=0.01)
    s.box("roof", (0, 2 * h + 0.13, -0.1), (w * 1.12, 0.14, d * 1.06), edge=0.01, taper=(0.96, 0))
    s.box("walls", (0, 0.4, 0.3), (0.13, 0.4, 0.13), edge=0.01)
    s.box("roof", (0, 0.8 + 0.2, 0.3), (0.15, 0.22, 0.15), edge=0.005, taper=(0.97, 0.97))
    s.limb("door", (0, 1.2, 0.3), (0, 1.38, 0.3), 0.02)
    s.limb("door", (-0.06, 1.3, 0.3), (0.06, 1.3, 0.3), 0.02)
    s.box("door", (0, 0.13, 0.43), (0.06, 0.13, 0.015))


# --- furniture and household -----------------------------------------------------------------------------------------


def chair(s: Shape, u: Draw) -> None:
    w, seat, back = u(0.24, 0.3), u(0.36, 0.44), u(0.28, 0.38)
    s.box("seat", (0, seat, 0), (w, 0.045, w), edge=0.02)
    for x, z in CORNERS:
        s.box("legs", (x * (w - 0.045), seat / 2, z * (w - 0.045)), (0.038, seat / 2, 0.038), edge=0.01)
    s.box("back", (0, seat + back, -w + 0.04), (w, back, 0.04), edge=0.02)


def table(s: Shape, u: Draw) -> None:
    w, d, h = u(0.4, 0.5), u(0.3, 0.42), u(0.36, 0.46)
    if u.random() < 0.3:
        s.cylinder("top", (0, h, 0), w, 0.045, 0.015)
    else:
        s.box("top", (0, h, 0), (w, 0.045, d), edge=0.015)
    for x, z in CORNERS:
        s.box("legs", (x * w * 0.66, h / 2, z * d * 0.66), (0.042, h / 2, 0.042), edge=0.01)


def sofa(s: Shape, u: Draw) -> None:
    w = u(0.46, 0.58)
    s.box("body", (0, 0.17, 0), (w, 0.12, 0.25), edge=0.05)
    s.box("body", (0, 0.36, -0.2), (w, 0.23, 0.09), edge=0.06)
    for side in (-1, 1):
        s.box("body", (side * w, 0.25, 0.02), (0.085, 0.18, 0.26), edge=0.06)
        s.box("cushions", (side * w * 0.44, 0.31, 0.06), (w * 0.41, 0.06, 0.19), edge=0.05)
        for end in (-1, 1):
            s.cylinder("legs", (side * w * 0.85, 0.03, end * 0.18), 0.035, 0.05)


def bed(s: Shape, u: Draw) -> None:
    w, length = u(0.3, 0.4), u(0.5, 0.58)
    s.box("frame", (0, 0.13, 0), (w + 0.03, 0.06, length + 0.03), edge=0.015)
    s.box("frame", (0, 0.3, -length - 0.02), (w + 0.03, 0.27, 0.035), edge=0.02)
    s.box("frame", (0, 0.2, length + 0.02), (w + 0.03, 0.14, 0.03), edge=0.02)
    s.box("pillow", (0, 0.22, 0), (w * 0.96, 0.06, length * 0.97), edge=0.04)
    s.box("blanket", (0, 0.245, 0.16), (w, 0.06, length * 0.68), edge=0.04)
    for side in (-1, 1):
        s.box("pillow", (side * w * 0.45, 0.31, -length * 0.74), (w * 0.38, 0.05, 0.1), edge=0.045)


def lamp(s: Shape, u: Draw) -> None:
    h = u(0.5, 0.7)
    s.cylinder("stand", (0, 0.03, 0), u(0.15, 0.19), 0.03)
    s.cylinder("stand", (0, h / 2, 0), 0.035, h / 2)
    s.cone("shade", (0, h + 0.05, 0), u(0.25, 0.3), u(0.12, 0.17), u(0.14, 0.19), 0.01)


def mug(s: Shape, u: Draw) -> None:
    r, h = u(0.24, 0.28), u(0.25, 0.32)
    s.cylinder("body", (0, h, 0), r, h, 0.02)
    s.cylinder("drink", (0, 2 * h - 0.005, 0), r * 0.85, 0.012, 0.004)
    s.torus("body", (r + 0.07, h, 0), 0.13, 0.04, axis="z")


def teapot(s: Shape, u: Draw) -> None:
    r = u(0.3, 0.34)
    s.ball("body", (0, 0.3, 0), (r, u(0.26, 0.3), r))
    s.ball("lid", (0, 0.55, 0), (0.17, 0.06, 0.17))
    s.ball("lid", (0, 0.63, 0), 0.05)
    s.limb("body", (r * 0.8, 0.24, 0), (r + 0.26, 0.5, 0), 0.08, 0.045)
    s.torus("handle", (-r - 0.08, 0.33, 0), 0.15, 0.035, axis="z")


def bottle(s: Shape, u: Draw) -> None:
    r, h = u(0.15, 0.19), u(0.28, 0.36)
    s.cylinder("body", (0, h, 0), r, h, 0.04)
    s.cone("body", (0, 2 * h + 0.07, 0), r * 0.96, 0.06, 0.1)
    s.cylinder("body", (0, 2 * h + 0.22, 0), 0.06, 0.1)
    s.cylinder("cap", (0, 2 * h + 0.35, 0), 0.07, 0.04)
    s.cylinder("label", (0, h * 0.95, 0), r * 1.03, h * 0.42, 0.01)


def hammer(s: Shape, u: Draw) -> None:
    s.cylinder("handle", (0, 0.4, 0), u(0.045, 0.06), 0.46, 0.02)
    s.box("head", (0, 0.86, 0), (u(0.2, 0.26), 0.09, 0.09), edge=0.02)


def axe(s: Shape, u: Draw) -> None:
    s.cylinder("handle", (0, 0.45, 0), 0.042, 0.5, 0.02)
    s.box("blade", (0.15, 0.8, 0), (0.16, u(0.16, 0.22), 0.028), edge=0.01)
    s.box("blade", (-0.05, 0.8, 0), (0.07, 0.08, 0.05), edge=0.01)


def sword(s: Shape, u: Draw) -> None:
    s.box("blade", (0, 0.68, 0), (u(0.06, 0.075), 0.42, 0.022), edge=0.012)
    s.cone("blade", (0, 1.16, 0), 0.06, 0.004, 0.09, 0.003)
    s.box("guard", (0, 0.25, 0), (u(0.18, 0.24), 0.034, 0.05), edge=0.02)
    s.cylinder("handle", (0, 0.1, 0), 0.042, 0.13)
    s.ball("guard", (0, -0.06, 0), 0.062)


def pencil(s: Shape, u: Draw) -> None:
    h = u(0.4, 0.5)
    s.cylinder("body", (0, 0, 0), 0.09, h, 0.01)
    s.cone("wood", (0, h + 0.09, 0), 0.09, 0.03, 0.1, 0.004)
    s.cone("tip", (0, h + 0.2, 0), 0.034, 0.004, 0.035, 0.002)
    s.cylinder("eraser", (0, -h - 0.05, 0), 0.088, 0.065, 0.02)


def umbrella(s: Shape, u: Draw) -> None:
    r = u(0.42, 0.5)
    radii, pattern = (r, u(0.2, 0.26), r), STRIPES if u.random() < 0.25 else PLAIN
    s.ball("canopy", (0, 0.72, 0), radii, pattern=pattern, second="handle")
    s.cylinder("handle", (0, 0.35, 0), 0.026, 0.4)
    s.torus("handle", (0.07, -0.05, 0), 0.07, 0.026, axis="z")
    s.cone("handle", (0, 1.0, 0), 0.02, 0.004, 0.06, 0.003)


def guitar(s: Shape, u: Draw) -> None:
    s.ball("body", (0, 0.22, 0), (u(0.25, 0.29), 0.23, 0.07))
    s.ball("body", (0, 0.5, 0), (0.19, 0.17, 0.07))
    s.cylinder("neck", (0, 0.42, 0.062), 0.075, 0.02, 0.005, axis="z")
    s.box("neck", (0, 0.88, 0.04), (0.04, 0.36, 0.025), edge=0.01)
    s.box("neck", (0, 1.28, 0.03), (0.06, 0.08, 0.025), edge=0.01)


def key(s: Shape, u: Draw) -> None:
    s.torus("body", (0, 0.7, 0), u(0.15, 0.19), 0.05, axis="z")
    s.cylinder("body", (0, 0.22, 0), 0.042, 0.34)
    s.box("body", (0.09, -0.06, 0), (0.09, 0.035, 0.03))
    s.box("body", (0.07, 0.08, 0), (0.07, 0.03, 0.03))


# --- food and plants -------------------------------------------------------------------------------------------------


def apple(s: Shape, u: Draw) -> None:
    r = u(0.36, 0.42)
    s.ball("body", (0, r * 0.9, 0), (r, r * u(0.86, 0.96), r))
    s.ball("body", (0, r * 1.25, 0), (r * 0.86, r * 0.5, r * 0.86))
    s.limb("stem", (0, r * 1.6, 0), (u(0.0, 0.06), r * 2.1, 0), 0.03, 0.022)
    s.ball("leaf", (0.12, r * 2.02, 0), (0.13, 0.025, 0.06), rotation_matrix(z=20))


def banana(s: Shape, u: Draw) -> None:
    bend = u(0.2, 0.3)
    points = [(-0.46 + 0.23 * k, bend * (k - 2) ** 2 / 2, 0.0) for k in range(5)]
    radii = [0.055, 0.105, 0.12, 0.105, 0.06]
    for k in range(4):
        s.limb("body", points[k], points[k + 1], radii[k], radii[k + 1])
    s.limb("stem", points[4], (0.52, points[4][1] + 0.14, 0), 0.04, 0.035)
    s.ball("stem", points[0], 0.05)


def carrot(s: Shape, u: Draw) -> None:
    s.cone("body", (0, 0.4, 0), 0.02, u(0.14, 0.18), 0.42, 0.018)
    for _ in range(5):
        x, z = u(-0.16, 0.16), u(-0.16, 0.16)
        s.limb("leaf", (0, 0.8, 0), (x, 0.8 + u(0.22, 0.34), z), 0.035, 0.045)


def burger(s: Shape, u: Draw) -> None:
    r = u(0.4, 0.46)
    s.cylinder("bun", (0, 0.07, 0), r, 0.075, 0.06)
    s.cylinder("meat", (0, 0.2, 0), r * 1.02, 0.06, 0.04)
    s.box("cheese", (0, 0.275, 0), (r * 0.8, 0.014, r * 0.8), edge=0.008, rotation=rotation_matrix(y=u(0, 90)))
    s.cylinder("lettuce", (0, 0.32, 0), r * 1.08, 0.025, 0.02)
    s.ball("bun", (0, 0.37, 0), (r * 1.0, u(0.22, 0.28), r * 1.0))


def ice_cream(s: Shape, u: Draw) -> None:
    r = u(0.21, 0.25)
    s.cone("cone", (0, 0.32, 0), 0.02, r * 0.9, 0.34, 0.012)
    s.ball("scoop", (0, 0.74, 0), r * 1.08)
    if u.random() < 0.4:
        s.ball("scoop", (0, 0.74 + r * 1.35, 0), r * 0.85)
        s.ball("cherry", (0, 0.76 + r * 2.25, 0), 0.06)
    else:
        s.ball("cherry", (0, 0.76 + r * 1.08, 0), 0.065)


def cake(s: Shape, u: Draw) -> None:
    r, h = u(0.36, 0.42), u(0.14, 0.18)
    s.cylinder("plate", (0, 0.0, 0), r * 1.2, 0.02)
    s.cylinder("body", (0, h + 0.02, 0), r, h, 0.03)
    s.cylinder("icing", (0, 2 * h + 0.03, 0), r * 1.03, 0.045, 0.03)
    for k in range(u.choice((1, 3, 5))):
        x, _, z = turned(rotation_matrix(y=72 * k), (0, 0, 0.2 if k else 0))
        s.cylinder("candles", (x, 2 * h + 0.15, z), 0.028, 0.1)
        s.ball("cherry", (x, 2 * h + 0.28, z), (0.03, 0.045, 0.03))


def donut(s: Shape, u: Draw) -> None:
    ring, tube = u(0.28, 0.33), u(0.14, 0.17)
    s.torus("body", (0, tube, 0), ring, tube)
    s.torus("icing", (0, tube * 1.2, 0), ring, tube * 0.96, pattern=SPOTS, second="sprinkles")


def watermelon(s: Shape, u: Draw) -> None:
    s.ball("body", (0, 0, 0), (u(0.33, 0.4), 0.34, 0.46), pattern=STRIPES, second="marks")


def pear(s: Shape, u: Draw) -> None:
    s.ball("body", (0, 0.3, 0), (u(0.29, 0.34), 0.3, 0.31))
    s.limb("body", (0, 0.4, 0), (0, 0.68, 0), 0.22, u(0.13, 0.16))
    s.limb("stem", (0, 0.8, 0), (0.03, 0.96, 0), 0.026)
    s.ball("leaf", (0.12, 0.93, 0), (0.12, 0.024, 0.055), rotation_matrix(z=20))


def tree(s: Shape, u: Draw) -> None:
    h = u(0.36, 0.5)
    s.cone("trunk", (0, h / 2, 0), 0.085, 0.06, h / 2 + 0.06)
    r = u(0.27, 0.33)
    s.ball("leaves", (0, h + r * 0.75, 0), r)
    for k in range(4):
        x, _, z = turned(rotation_matrix(y=90 * k + u(0, 45)), (0, 0, r * 0.62))
        s.ball("leaves", (x, h + r * u(0.4, 0.7), z), r * u(0.55, 0.7))


def pine_tree(s: Shape, u: Draw) -> None:
    s.cylinder("trunk", (0, 0.1, 0), 0.07, 0.14)
    w = u(0.32, 0.4)
    for k in range(3):
        s.cone("leaves", (0, 0.36 + 0.26 * k, 0), w * (1 - 0.25 * k), 0.02, 0.2, 0.01)


def cactus(s: Shape, u: Draw) -> None:
    s.limb("body", (0, 0.2, 0), (0, u(0.8, 0.95), 0), 0.13, 0.11)
    for side in (-1, 1):
        y, x = u(0.4, 0.58), u(0.26, 0.32)
        s.limb("body", (0, y, 0), (side * x, y, 0), 0.065)
        s.limb("body", (side * x, y, 0), (side * x, y + u(0.16, 0.28), 0), 0.07)
    s.cone("pot", (0, 0.12, 0), 0.17, 0.22, 0.13)


def flower(s: Shape, u: Draw) -> None:
    h = u(0.5, 0.65)
    s.limb("stem", (0, 0, 0), (0, h, 0), 0.034)
    for side in (-1, 1):
        s.ball("stem", (side * 0.14, h * 0.4, 0), (0.14, 0.026, 0.06), rotation_matrix(z=side * 30))
    n, r = u.choice((5, 6, 7)), u(0.16, 0.2)
    centre = (0.0, h + 0.06, 0.06)
    for k in range(n):
        a = rotation_matrix(z=360 / n * k)
        x, y, _ = turned(a, (0, r, 0))
        s.ball("petals", (x, centre[1] + y, centre[2]), (0.085, 0.125, 0.035), a)
    s.ball("middle", centre, (0.1, 0.1, 0.065))


def mushroom(s: Shape, u: Draw) -> None:
    h, r = u(0.24, 0.34), u(0.32, 0.4)
    s.cone("stem", (0, h / 2 + 0.05, 0), 0.13, 0.1, h / 2 + 0.08, 0.03)
    s.ball("cap", (0, h + 0.14, 0), (r, u(0.2, 0.26), r))
    for k in range(6):
        x, _, z = turned(rotation_matrix(y=60 * k + u(-10, 10)), (0, 0, r * 0.68))
        s.ball("spots", (x, h + 0.285, z), (0.065, 0.04, 0.065))
    s.ball("spots", (0, h + 0.36, 0), (0.08, 0.04, 0.08))


def potted_plant(s: Shape, u: Draw) -> None:
    s.cone("pot", (0, 0.16, 0), 0.15, 0.23, 0.18)
    for k in range(7):
        x, _, z = turned(rotation_matrix(y=51 * k), (0, 0, u(0.16, 0.26)))
        s.limb("leaves", (0, 0.34, 0), (x, u(0.6, 0.85), z), 0.035, 0.075)


# --- solids ----------------------------------------------------------------------------------------------------------


def cube(s: Shape, u: Draw) -> None:
    s.box("body", (0, 0, 0), (0.36, 0.36, 0.36), edge=u(0.005, 0.05))


def sphere(s: Shape, u: Draw) -> None:
    s.ball("body", (0, 0, 0), 0.4)


def cylinder(s: Shape, u: Draw) -> None:
    s.cylinder("body", (0, 0, 0), u(0.26, 0.32), u(0.34, 0.45), u(0.005, 0.04))


def cone(s: Shape, u: Draw) -> None:
    s.cone("body", (0, 0, 0), u(0.32, 0.38), 0.012, u(0.36, 0.46), 0.008)


def torus(s: Shape, u: Draw) -> None:
    s.torus("body", (0, 0, 0), u(0.32, 0.36), u(0.09, 0.13))


def pyramid(s: Shape, u: Draw) -> None:
    s.box("body", (0, 0, 0), (0.38, u(0.3, 0.36), 0.38), edge=0.006, taper=(0.97, 0.97))
