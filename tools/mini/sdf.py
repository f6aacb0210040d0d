"""Signed-distance objects: primitives, smooth unions, and sphere tracing into geometry buffers.

An object is a list of primitives, each painted by one colour *slot*. Tracing stores which slot a
pixel shows and the surface normal there, so that colours, light and background can be drawn anew
for every training batch without tracing again.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras

ELLIPSOID, BOX, CONE, TORUS = range(4)
PLAIN, STRIPES, SPOTS, PATCHES = range(4)
"""Patterns: a second slot shows through in stripes (along z), spots or large patches."""

SIZE_COLUMNS = 6
Point = tuple[float, float, float]


@dataclass
class Primitive:
    """One shape in its own frame (y is its axis), then rotated and moved.

    ``size`` by kind (half extents, world units):
        ELLIPSOID: radii x, y, z.
        BOX: half sizes x, y, z, edge radius, taper of x and of z toward +y (0 none, 1 to a line).
        CONE: radius at -y, radius at +y, half height, edge radius (a cylinder if the radii agree).
        TORUS: ring radius, tube radius (ring in the xz plane).
    """

    kind: int
    slot: int
    center: Tensor
    rotation: Tensor
    size: tuple[float, ...]
    pattern: int = PLAIN
    second_slot: int = 0

    def half_extent(self) -> Tensor:
        """Half sizes of the axis-aligned box around the rotated primitive."""
        s = self.size
        if self.kind in (CONE, TORUS):
            side, up = (max(s[:2]), s[2]) if self.kind == CONE else (s[0] + s[1], s[1])
            s = (side, up, side)
        return self.rotation.abs() @ torch.tensor(s[:3])


def rotation_matrix(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """Rotations about x, then y, then z, in degrees."""
    matrix = torch.eye(3)
    for axis, angle in enumerate((x, y, z)):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = c
        turn[i, j], turn[j, i] = -s, s
        matrix = turn @ matrix
    return matrix


def turned(rotation: Tensor, point: Point) -> list[float]:
    """Where a rotation takes a point."""
    return (rotation @ rotation.new_tensor(point)).tolist()


AXES = {"x": rotation_matrix(z=-90), "y": torch.eye(3), "z": rotation_matrix(x=90)}
CORNERS = tuple(itertools.product((-1, 1), repeat=2))
"""Signs of the four corners of a rectangle."""


class Draw(random.Random):
    """Random numbers; called with two bounds, one between them."""

    __call__ = random.Random.uniform


@dataclass
class Shape:
    """A builder: primitives of one object, in slots named by the category."""

    slots: tuple[str, ...]
    smooth: float = 0.012
    primitives: list[Primitive] = field(default_factory=list)
    first_slot: int = 1

    def _add(self, kind, slot, center, size, rotation=None, pattern=PLAIN, second=None) -> None:
        index = self.first_slot + self.slots.index(slot)
        second_slot = self.first_slot + self.slots.index(second) if second else index
        rotation = torch.eye(3) if rotation is None else rotation
        center = torch.tensor([float(c) for c in center])
        self.primitives.append(Primitive(kind, index, center, rotation, tuple(size), pattern, second_slot))

    def ball(self, slot, center, radii, rotation=None, **kwargs) -> None:
        """Ellipsoid; ``radii`` may be one number."""
        radii = (radii,) * 3 if isinstance(radii, (int, float)) else radii
        self._add(ELLIPSOID, slot, center, radii, rotation, **kwargs)

    def box(self, slot, center, half, edge=0.02, taper=(0.0, 0.0), rotation=None, **kwargs) -> None:
        edge = min(edge, 0.95 * min(half))
        self._add(BOX, slot, center, (*half, edge, *taper), rotation, **kwargs)

    def cone(self, slot, center, bottom, top, half_height, edge=0.01, axis="y", rotation=None, **kwargs) -> None:
        """Truncated cone; ``axis`` points from bottom to top."""
        edge = min(edge, 0.95 * half_height, 0.95 * max(bottom, top))
        turn = AXES[axis] if rotation is None else rotation @ AXES[axis]
        self._add(CONE, slot, center, (bottom, top, half_height, edge), turn, **kwargs)

    def cylinder(self, slot, center, radius, half_height, edge=0.01, axis="y", rotation=None, **kwargs) -> None:
        self.cone(slot, center, radius, radius, half_height, edge, axis, rotation, **kwargs)

    def torus(self, slot, center, ring, tube, axis="y", rotation=None, **kwargs) -> None:
        turn = AXES[axis] if rotation is None else rotation @ AXES[axis]
        self._add(TORUS, slot, center, (ring, tube), turn, **kwargs)

    def limb(self, slot, start, end, radius, end_radius=None, **kwargs) -> None:
        """Rounded stick between two points."""
        a, b = (torch.tensor([float(c) for c in p]) for p in (start, end))
        axis = b - a
        length = float(axis.norm())
        y = axis / max(length, 1e-6)
        helper = torch.tensor([1.0, 0.0, 0.0]) if abs(float(y[0])) < 0.9 else torch.tensor([0.0, 0.0, 1.0])
        x = torch.nn.functional.normalize(torch.linalg.cross(y, helper), dim=0)
        z = torch.linalg.cross(x, y)
        end_radius = radius if end_radius is None else end_radius
        grow = min(radius, end_radius)
        size = (radius, end_radius, length / 2 + grow, 0.9 * grow)
        self._add(CONE, slot, ((a + b) / 2).tolist(), size, torch.stack([x, y, z], dim=1), **kwargs)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper corner of the axis-aligned box around all primitives."""
        low = torch.stack([p.center - p.half_extent() for p in self.primitives]).amin(0)
        high = torch.stack([p.center + p.half_extent() for p in self.primitives]).amax(0)
        return low, high

    def transformed(self, scale: float, offset: Tensor) -> Shape:
        """Scaled about the origin, then moved."""
        moved = [
            replace(p, center=p.center * scale + offset, size=(*(s * scale for s in p.size[:4]), *p.size[4:]))
            for p in self.primitives
        ]
        return replace(self, smooth=self.smooth * scale, primitives=moved)

    def stretched(self, factor: tuple[float, float, float]) -> Shape:
        """Stretched along the world axes; exact for unrotated primitives, close enough for the rest."""
        f = torch.tensor(factor)
        out = []
        for p in self.primitives:
            x, y, z = (p.rotation.T.abs() @ f).tolist()
            side = (x * z) ** 0.5
            local = {CONE: (side, side, y), TORUS: (side, y)}.get(p.kind, (x, y, z))
            size = (*(s * k for s, k in zip(p.size, local, strict=False)), *p.size[len(local) :])
            out.append(replace(p, center=p.center * f, size=size))
        return replace(self, primitives=out)

    def normalized(self, radius: float) -> Shape:
        """Centred on its bounding box and scaled so that the farthest primitive corner lies on ``radius``."""
        low, high = self.bounds()
        centre = (low + high) / 2
        reach = max(float(((p.center - centre).abs() + p.half_extent() * 0.9).norm()) for p in self.primitives)
        scale = radius / reach
        return self.transformed(scale, -centre * scale)


class SDF:
    """The distance field of a list of primitives, packed by kind into tensors."""

    def __init__(self, primitives: list[Primitive], smooth: float) -> None:
        self.order = sorted(primitives, key=lambda p: p.kind)
        self.smooth = smooth
        self.counts = [sum(p.kind == kind for p in self.order) for kind in range(4)]
        rotation = torch.stack([p.rotation for p in self.order]).transpose(1, 2)  # world to local
        center = torch.stack([p.center for p in self.order])
        self.matrix = rotation.reshape(-1, 3)
        self.offset = -torch.einsum("pij,pj->pi", rotation, center).reshape(-1, 1)
        sizes = [list(p.size) + [0.0] * (SIZE_COLUMNS - len(p.size)) for p in self.order]
        self.sizes = torch.tensor(sizes)
        self.slots = torch.tensor([[p.slot, p.second_slot, p.pattern] for p in self.order])

    def local(self, points: Float[Tensor, "R 3"]) -> Float[Tensor, "P 3 R"]:
        return (self.matrix @ points.T + self.offset).view(len(self.order), 3, -1)

    def distances(self, points: Float[Tensor, "R 3"]) -> Float[Tensor, "P R"]:
        """Distance to every primitive (exact or a lower bound near the surface)."""
        local = self.local(points).split(self.counts)
        sizes = self.sizes.split(self.counts)
        functions = (_ellipsoid, _box, _cone, _torus)
        return torch.cat([f(p, s) for f, p, s in zip(functions, local, sizes, strict=True) if p.shape[0]])

    def __call__(self, points: Float[Tensor, "R 3"]) -> Float[Tensor, " R"]:
        """Smooth union of all primitives."""
        return -self.smooth * torch.logsumexp(self.distances(points) / -self.smooth, dim=0)

    def normals(self, points: Float[Tensor, "R 3"], step: float = 2e-3) -> Float[Tensor, "R 3"]:
        """Outward unit normals from four samples on a tetrahedron."""
        corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
        values = self((points[None] + step * corners[:, None]).reshape(-1, 3)).view(4, -1)
        return torch.nn.functional.normalize(values.T @ corners, dim=-1)

    def slot_at(self, points: Float[Tensor, "R 3"]) -> Int[Tensor, " R"]:
        """The slot that paints each surface point: the nearest primitive's, or its pattern's."""
        nearest = self.distances(points).argmin(0)
        first, second, pattern = self.slots[nearest].unbind(-1)
        x, y, z = self.local(points)[nearest, :, torch.arange(points.shape[0])].unbind(-1)
        size = self.sizes[nearest, :3].amax(-1)
        u, v, w = x / size, y / size, z / size
        shows = torch.stack(
            [
                torch.zeros_like(u, dtype=torch.bool),
                torch.sin(w * 9.0) > 0.15,
                torch.sin(7 * u) * torch.sin(7 * v + 1) * torch.sin(7 * w + 2) > 0.2,
                torch.sin(3.1 * u + 1.3) + torch.sin(3.7 * v + 0.4) + torch.sin(3.3 * w + 2.0) > 0.7,
            ]
        )
        use_second = shows.gather(0, pattern[None])[0]
        return torch.where(use_second, second, first)


def _length(p: Float[Tensor, "P 3 R"]) -> Float[Tensor, "P R"]:
    """Norm over the middle axis; several times faster on CPU than ``norm(dim=1)``."""
    return (p[:, 0] ** 2 + p[:, 1] ** 2 + p[:, 2] ** 2).sqrt()


def _ellipsoid(p: Tensor, s: Tensor) -> Tensor:
    """Inigo Quilez' first-order bound: k0 (k0 - 1) / k1."""
    radii = s[:, :3, None]
    scaled = p / radii
    k0 = _length(scaled)
    k1 = _length(scaled / radii).clamp_min(1e-6)
    return k0 * (k0 - 1) / k1


def _box(p: Tensor, s: Tensor) -> Tensor:
    half, edge, taper = s[:, :3, None], s[:, 3, None], s[:, 4:6, None]
    rise = ((p[:, 1:2] / half[:, 1:2]) * 0.5 + 0.5).clamp(0, 1)
    shrink = 1 - taper * rise
    half = torch.stack([half[:, 0] * shrink[:, 0], half[:, 1].expand_as(shrink[:, 0]), half[:, 2] * shrink[:, 1]], 1)
    slope = (taper[:, :, 0] * s[:, [0, 2]] / (2 * s[:, 1:2])).amax(1)
    q = p.abs() - half + edge[:, None]
    distance = _length(q.clamp_min(0)) + q.amax(1).clamp_max(0) - edge
    return distance / (1 + slope**2).sqrt()[:, None]


def _cone(p: Tensor, s: Tensor) -> Tensor:
    """Truncated cone (Inigo Quilez' exact capped cone), its edges rounded by shrinking first."""
    edge = s[:, 3, None]
    r1 = (s[:, 0, None] - edge).clamp_min(0)
    r2 = (s[:, 1, None] - edge).clamp_min(0)
    h = s[:, 2, None] - edge
    qx, qy = (p[:, 0] ** 2 + p[:, 2] ** 2).sqrt(), p[:, 1]
    cax = qx - torch.minimum(qx, torch.where(qy < 0, r1, r2))
    cay = qy.abs() - h
    k2x, k2y = r2 - r1, 2 * h
    along = (((r2 - qx) * k2x + (h - qy) * k2y) / (k2x**2 + k2y**2)).clamp(0, 1)
    cbx, cby = qx - r2 + k2x * along, qy - h + k2y * along
    inside = (cbx < 0) & (cay < 0)
    distance = torch.minimum(cax**2 + cay**2, cbx**2 + cby**2).clamp_min(1e-12).sqrt()
    return torch.where(inside, -distance, distance) - edge


def _torus(p: Tensor, s: Tensor) -> Tensor:
    ring = (p[:, 0] ** 2 + p[:, 2] ** 2).sqrt() - s[:, 0, None]
    return (ring**2 + p[:, 1] ** 2).sqrt() - s[:, 1, None]


def camera_rays(cameras: Cameras) -> tuple[Float[Tensor, "C H W 3"], Float[Tensor, "C H W 3"]]:
    """Origins and unit directions through the pixel centres."""
    y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    c2w = cameras.camera_to_world
    directions = pixels @ torch.linalg.inv(cameras.Ks).transpose(1, 2) @ c2w[:, :3, :3].transpose(1, 2)
    directions = torch.nn.functional.normalize(directions, dim=-1).view(-1, cameras.height, cameras.width, 3)
    return c2w[:, None, None, :3, 3].expand_as(directions), directions


@torch.no_grad()
def trace(
    sdf: SDF, cameras: Cameras, *, reach: float = 0.9, steps: int = 40, tolerance: float = 1.5e-3
) -> tuple[Int[Tensor, "C H W"], Float[Tensor, "C H W 3"]]:
    """Sphere-trace an object that lies within ``reach`` of the origin.

    Returns:
        The slot at each pixel (0 where nothing is hit) and the outward normal in world axes.
    """
    origins, directions = camera_rays(cameras)
    shape = directions.shape[:3]
    o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    closest = -(o * d).sum(-1)
    chord = reach**2 - ((o + closest[:, None] * d) ** 2).sum(-1)
    active = (chord > 0).nonzero()[:, 0]
    half = chord[active].sqrt()
    t, far = closest[active] - half, closest[active] + half
    hits, points = [], []
    for step in range(steps):
        p = o[active] + t[:, None] * d[active]
        distance = sdf(p)
        done = distance < tolerance
        if step % 2 or step == steps - 1 or done.any():
            hits.append(active[done])
            points.append(p[done])
            alive = ~done & (t < far)
            active, t, far, distance = active[alive], t[alive], far[alive], distance[alive]
            if not len(active):
                break
        t = t + distance.clamp_min(tolerance)
    index, point = torch.cat(hits), torch.cat(points)
    slots = torch.zeros(o.shape[0], dtype=torch.uint8)
    normals = torch.zeros_like(o)
    if len(index):
        slots[index] = sdf.slot_at(point).to(torch.uint8)
        normals[index] = sdf.normals(point)
    return slots.view(shape), normals.view(*shape, 3)
