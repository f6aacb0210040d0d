"""The primitives of ``sdf.py`` as triangles, for the z-buffer: the same shapes without the smooth joints."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int

from mini.raster import Surface, crease_normals
from mini.scenes import Palette
from mini.sdf import BOX, CONE, ELLIPSOID, PLAIN, SDF, Primitive

CREASE = np.float32(np.cos(np.radians(40)))
AROUND = 24
"""Segments of a turned shape."""

Triangles = tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, "F 3"]]


def grid(rows: int, columns: int, wraps: bool) -> Int[np.ndarray, "F 3"]:
    """Two triangles for every cell of a grid of vertices; its columns may close to a ring."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if wraps else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, e], -1).reshape(-1, 3)])


@cache
def sphere(rows: int) -> Triangles:
    """The unit sphere, by longitude and latitude, the poles on y."""
    latitude = np.linspace(np.pi / 2, -np.pi / 2, rows)
    return turned(np.stack([np.cos(latitude), np.sin(latitude)], 1), 2 * rows)


def turned(profile: Float[np.ndarray, "P 2"], around: int = AROUND) -> Triangles:
    """A profile of (radius, height) from the top to the bottom, turned about y."""
    angle = np.arange(around) * (2 * np.pi / around)
    radius, height = profile[:, :1], profile[:, 1:]
    points = np.stack([radius * np.sin(angle), np.broadcast_to(height, (len(profile), around)), radius * np.cos(angle)])
    points, triangles = np.moveaxis(points, 0, -1).reshape(-1, 3), grid(len(profile), around, wraps=True)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return points, triangles[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-9]  # none at the poles


def ellipsoid(primitive: Primitive) -> Triangles:
    points, triangles = sphere(14 if primitive.pattern == PLAIN else 40)
    return points * np.array(primitive.size[:3]), triangles


def box(primitive: Primitive) -> Triangles:
    """A rounded box: the surface of a cube, divided along the edges and pulled onto the rounding."""
    half, edge, taper = np.array(primitive.size[:3]), primitive.size[3], primitive.size[4:6]
    step = 2 if primitive.pattern == PLAIN else 12
    knots = [
        np.unique(np.concatenate([[-h, -h + 0.4 * edge], np.linspace(-h + edge, h - edge, step), [h - 0.4 * edge, h]]))
        for h in half
    ]
    points, triangles, count = [], [], 0
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for side in (-1, 1):
            face = np.empty((len(knots[u]), len(knots[v]), 3))
            face[..., axis] = side * half[axis]
            face[..., u], face[..., v] = knots[u][:, None], knots[v]
            cells = grid(len(knots[u]), len(knots[v]), wraps=False)
            triangles.append((cells if side > 0 else cells[:, ::-1]) + count)
            points.append(face.reshape(-1, 3))
            count += len(points[-1])
    p = np.concatenate(points)
    inner = np.clip(p, edge - half, half - edge)
    away = p - inner
    p = inner + edge * away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    rise = p[:, 1:2] / half[1] * 0.5 + 0.5
    p[:, [0, 2]] *= 1 - np.array(taper) * rise
    return p, np.concatenate(triangles)


def cone(primitive: Primitive) -> Triangles:
    """A truncated cone with round edges, from the tip to the foot."""
    bottom, top, half, edge = primitive.size[:4]
    r1, r2, h = max(bottom - edge, 0.0), max(top - edge, 0.0), half - edge
    slant = np.arctan2(r1 - r2, 2 * h)  # of the outward normal, above the horizon
    profile = [[0.0, h + edge]]
    for radius, height, first, last in ((r2, h, np.pi / 2, slant), (r1, -h, slant, -np.pi / 2)):
        angle = np.linspace(first, last, 5)
        profile += np.stack([radius + edge * np.cos(angle), height + edge * np.sin(angle)], 1).tolist()
    profile.append([0.0, -h - edge])
    if primitive.pattern != PLAIN:
        profile = [*profile[:6], *np.linspace(profile[5], profile[6], 16)[1:-1].tolist(), *profile[6:]]
    return turned(np.array(profile))


def torus(primitive: Primitive) -> Triangles:
    ring, tube = primitive.size[:2]
    angle = np.linspace(0, 2 * np.pi, 13)
    return turned(np.stack([ring + tube * np.cos(angle), -tube * np.sin(angle)], 1))


SHAPES = {ELLIPSOID: ellipsoid, BOX: box, CONE: cone}


def tessellate(primitives: list[Primitive], smooth: float) -> tuple[Triangles, Int[np.ndarray, " F"]]:
    """World triangles of a list of primitives, and the slot that each shows.

    Args:
        primitives: as ``scenes.build_scene`` returns them.
        smooth: radius of the smooth union, which only patterns read here.
    """
    points, faces, slots, count = [], [], [], 0
    for primitive in primitives:
        local, triangles = SHAPES.get(primitive.kind, torus)(primitive)
        world = local.astype(np.float32) @ primitive.rotation.numpy().T + primitive.center.numpy()
        if primitive.pattern == PLAIN:
            slot = np.full(len(triangles), primitive.slot)
        else:
            centres = torch.from_numpy(world[triangles].mean(1))
            slot = SDF([primitive], smooth).slot_at(centres).numpy()
        points.append(world)
        faces.append(triangles + count)
        slots.append(slot)
        count += len(world)
    return (np.concatenate(points), np.concatenate(faces).astype(np.int32)), np.concatenate(slots)


def painted(primitives: list[Primitive], smooth: float, palette: Palette, named: list[int]) -> Surface:
    """A surface in the colours and materials of a palette.

    Args:
        primitives: as ``scenes.build_scene`` returns them.
        smooth: radius of the smooth union.
        palette: by slot.
        named: slots that the caption names.
    """
    (vertices, triangles), slots = tessellate(primitives, smooth)
    return Surface(
        vertices,
        triangles,
        crease_normals(vertices, triangles, CREASE),
        np.array(palette.rgb, np.float32)[slots],
        np.array(palette.material, np.int8)[slots],
        np.isin(slots, named).astype(np.float32),
    )
