"""Corgis by hand: one smooth surface from a distance field, painted with a coat, as meshes beside those of the kits.

    python -m mini.corgi OUT        # meshes-ours.npz and ours.tsv, in the pack's format

Long low body, short legs, large upright ears, white chest, muzzle, blaze, collar and paws, dark eyes and nose; red,
sable or tricolour, standing, sitting or trotting, the tail docked or fluffy.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from skimage.measure import marching_cubes
from torch import Tensor

from mini.pack import COLUMNS, write_meshes, write_table
from mini.sdf import SDF, Shape, rotation_matrix
from psd_gs.mesh.decimate import decimate

GRID = 128
FACES = 9000
RED, SABLE, TRICOLOUR = "red", "sable", "tricolour"
COATS = {
    RED: ((0.82, 0.47, 0.18), (0.74, 0.38, 0.12)),
    SABLE: ((0.72, 0.43, 0.20), (0.34, 0.22, 0.14)),
    TRICOLOUR: ((0.76, 0.44, 0.18), (0.13, 0.12, 0.12)),
}
"""Main colour, and that of the saddle."""
WHITE, DARK, PINK = (0.96, 0.94, 0.90), (0.07, 0.06, 0.06), (0.88, 0.62, 0.58)


@dataclass(frozen=True)
class Corgi:
    """What differs between them.

    Attributes:
        coat: a key of ``COATS``.
        pose: standing, sitting or trotting.
        fluffy: whether it has a long tail.
        seed: of the proportions.
    """

    coat: str
    pose: str
    fluffy: bool
    seed: int


def build(corgi: Corgi) -> tuple[Shape, dict[str, tuple[float, float, float]]]:
    """The parts in slots, and the points that the coat is painted by (in the same units)."""
    u = random.Random(corgi.seed).uniform
    s = Shape(("coat", "ears", "inside", "white", "dark"), smooth=0.022)
    long, wide, deep, leg = u(0.40, 0.47), u(0.17, 0.20), u(0.165, 0.19), u(0.145, 0.18)
    sitting = corgi.pose == "sitting"
    tilt = 38.0 if sitting else 0.0
    y = leg + deep * 0.95
    lift = np.sin(np.radians(tilt))
    chest = (0.0, y + (0.30 * lift if sitting else 0.0), long * (0.62 if not sitting else 0.30))
    rump = (0.0, y - (0.03 if sitting else 0.0), -long * (0.62 if not sitting else 0.40))
    s.limb("coat", rump, chest, deep * 0.98, deep * 1.04)
    s.ball("coat", chest, (wide, deep * 1.06, deep * 1.12))
    s.ball("coat", rump, (wide * 1.04, deep * 1.05, deep * 1.1))
    stride = u(0.05, 0.09) if corgi.pose == "trotting" else u(0.0, 0.015)
    for side in (-1, 1):
        front = (side * wide * 0.58, chest[1] - 0.35 * deep, chest[2] + 0.02)
        paw = (side * wide * 0.6, 0.045, chest[2] + 0.03 + side * stride)
        s.limb("coat", front, (paw[0], 0.09, paw[2]), 0.075, 0.056)
        s.limb("white", (paw[0], 0.10, paw[2]), paw, 0.056, 0.052)
        s.ball("white", (paw[0], 0.038, paw[2] + 0.035), (0.058, 0.04, 0.075))
        if sitting:
            s.ball("coat", (side * wide * 0.86, 0.13, rump[2] + 0.08), (0.085, 0.13, 0.15))
            s.ball("white", (side * wide * 0.92, 0.038, rump[2] + 0.24), (0.058, 0.04, 0.095))
        else:
            foot = (side * wide * 0.62, 0.045, rump[2] - 0.02 - side * stride)
            s.ball("coat", (side * wide * 0.62, rump[1] - 0.25 * deep, rump[2]), (0.09, 0.13, 0.13))
            s.limb("coat", (foot[0], rump[1] - 0.5 * deep, rump[2] - 0.03), (foot[0], 0.09, foot[2]), 0.07, 0.052)
            s.limb("white", (foot[0], 0.10, foot[2]), foot, 0.054, 0.05)
            s.ball("white", (foot[0], 0.038, foot[2] + 0.035), (0.056, 0.04, 0.072))
    head = (0.0, chest[1] + u(0.27, 0.31), chest[2] + u(0.13, 0.17))
    hx, hy, hz = u(0.155, 0.17), u(0.135, 0.15), u(0.14, 0.155)
    s.limb("coat", (0, chest[1] + 0.06, chest[2] + 0.02), (0, head[1] - 0.05, head[2] - 0.05), 0.14, 0.115)
    s.ball("coat", head, (hx, hy, hz))
    for side in (-1, 1):
        s.ball("coat", (side * hx * 0.62, head[1] - 0.055, head[2] + 0.045), (0.075, 0.065, 0.08))
    muzzle = (0.0, head[1] - 0.05, head[2] + hz * 0.95)
    reach = u(0.10, 0.125)
    s.limb("white", (0, muzzle[1], muzzle[2] - 0.06), (0, muzzle[1] - 0.018, muzzle[2] + reach * 0.55), 0.078, 0.048)
    nose = (0.0, muzzle[1] + 0.022, muzzle[2] + reach * 0.55 + 0.042)
    s.ball("dark", nose, (0.032, 0.024, 0.022))
    ear = u(0.17, 0.20)
    for side in (-1, 1):
        lean = rotation_matrix(x=-6, z=-side * u(12, 18))
        root = (side * hx * 0.66, head[1] + hy * 0.66 + ear * 0.42, head[2] - 0.02)
        s.cone("ears", root, 0.088, 0.022, ear * 0.62, 0.018, rotation=lean)
        front = (root[0] - side * 0.004, root[1] - 0.012, root[2] + 0.048)
        s.cone("inside", front, 0.045, 0.01, ear * 0.45, 0.008, rotation=lean)
        s.ball("dark", (side * hx * 0.45, head[1] + 0.03, head[2] + hz * 0.92), (0.019, 0.022, 0.016))
    if corgi.fluffy:
        tip = (0.0, rump[1] + (0.05 if sitting else u(0.14, 0.2)), rump[2] - deep - u(0.16, 0.22))
        s.limb("coat", (0, rump[1] + 0.4 * deep, rump[2] - 0.75 * deep), tip, 0.06, 0.075)
        s.ball("white", (tip[0], tip[1] + 0.02, tip[2] - 0.05), (0.06, 0.062, 0.075))
    else:
        s.ball("white", (0, rump[1] + 0.25 * deep, rump[2] - deep * 1.02), (0.06, 0.06, 0.055))
    return s, {"chest": chest, "rump": rump, "head": head, "muzzle": muzzle, "size": (hx, hy, deep)}


def coat_colours(
    corgi: Corgi, slots: Tensor, slot_names: tuple[str, ...], points: Float[Tensor, "F 3"], at: dict
) -> Float[np.ndarray, "F 3"]:
    """Colours by where a face lies: white collar, chest, belly and blaze; a saddle over the back."""
    red, saddle = (torch.tensor(c) for c in COATS[corgi.coat])
    x, y, z = points.unbind(-1)
    _, hy, deep = at["size"]
    out = red.expand(len(points), 3).clone()
    name = [slot_names[i - 1] for i in slots.tolist()]
    body = torch.tensor([n == "coat" for n in name])
    _, cy, cz = at["chest"]
    _, hy0, hz0 = at["head"]
    low = y < hy0 - hy * 1.0
    back = body & low & (y > cy - 0.1 * deep) & (z < cz + 0.02) & (y + 0.35 * x.abs() > cy - 0.02)
    out[back] = saddle if corgi.coat != RED else torch.tensor(COATS[RED][1])
    out[body & low & (z > cz + 0.3 * deep) & (y < hy0 - hy * 0.75)] = torch.tensor(WHITE)  # chest
    out[body & low & (y < cy - 0.62 * deep) & (x.abs() < 0.13) & (y > 0.12)] = torch.tensor(WHITE)  # belly
    collar = body & low & (z > cz - 0.02) & (z < cz + 0.35 * deep) & (y > cy + 0.55 * deep)
    out[collar] = torch.tensor(WHITE)
    skull = body & ~low
    if corgi.coat == TRICOLOUR:
        out[skull & (y > hy0 + 0.35 * hy)] = torch.tensor(COATS[TRICOLOUR][1])
    width = 0.026 + 0.05 * ((hy0 + 0.1 - y) / 0.2).clamp(0, 1)
    out[skull & (x.abs() < width) & (z > hz0 + 0.02)] = torch.tensor(WHITE)  # blaze
    out[skull & (y < hy0 - 0.03) & (z > hz0 + 0.09) & (x.abs() < 0.09)] = torch.tensor(WHITE)
    for slot, colour in (("white", WHITE), ("dark", DARK), ("inside", PINK)):
        out[torch.tensor([n == slot for n in name])] = torch.tensor(colour)
    ears = torch.tensor([n == "ears" for n in name])
    out[ears] = torch.tensor(COATS[corgi.coat][1 if corgi.coat == TRICOLOUR else 0]) * 0.92
    return out.numpy()


@torch.no_grad()
def mesh(corgi: Corgi) -> tuple[Float[np.ndarray, "V 3"], np.ndarray, Float[np.ndarray, "F 3"]]:
    """Vertices in the unit ball, triangles and face colours."""
    shape, at = build(corgi)
    sdf = SDF(shape.primitives, shape.smooth)
    low, high = shape.bounds()
    low, high = low - 0.05, high + 0.05
    axes = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = torch.cat([sdf(p) for p in points.split(100_000)]).view(GRID, GRID, GRID).numpy()
    spacing = [float(a[1] - a[0]) for a in axes]
    vertices, triangles, _, _ = marching_cubes(values, 0.0, spacing=spacing)
    vertices, triangles = decimate(vertices + low.numpy(), triangles[:, ::-1], FACES)
    centres = torch.from_numpy(vertices[triangles].mean(1)).float()
    colours = coat_colours(corgi, sdf.slot_at(centres), shape.slots, centres, at)
    middle = (vertices.min(0) + vertices.max(0)) / 2
    vertices = vertices - middle
    return (vertices / np.linalg.norm(vertices, axis=1).max()).astype(np.float32), triangles.astype(np.int32), colours


def all_corgis() -> list[Corgi]:
    """Three coats, three poses, both tails."""
    poses = ("standing", "sitting", "trotting")
    return [
        Corgi(coat, pose, fluffy, seed)
        for seed, (coat, pose, fluffy) in enumerate((c, p, f) for c in COATS for p in poses for f in (False, True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pack")
    args = parser.parse_args()
    found = [(f"ours-corgi-{c.seed}", *mesh(c)) for c in all_corgis()]
    write_meshes(args.out / "meshes-ours.npz", found)
    colours = {RED: "orange,white", SABLE: "brown,white", TRICOLOUR: "orange,black,white"}
    rows = [
        dict(zip(COLUMNS, (f"ours-corgi-{c.seed}", "corgi", "corgi dog|welsh corgi", "a", "corgi", "animal", "ours",
                           "CC0-1.0", FACES, 1, colours[c.coat], 1, 1, c.pose), strict=True))
        for c in all_corgis()
    ]  # fmt: skip
    write_table(args.out / "ours.tsv", rows)


if __name__ == "__main__":
    main()
