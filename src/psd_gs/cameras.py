"""Pinhole cameras, where they stand, and every conversion to another camera convention.

World frame: glTF's (right-handed, +Y up, the asset's front faces +Z). Azimuth 0 degrees puts the
camera in front (+Z) and grows toward +X; elevation 0 is the horizon and grows up. Cameras are
OpenCV's (x right, y down, z forward), exactly as ``gsplat.rasterization`` takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIDES = ("front", "side", "back", "overhead")


@dataclass
class Cameras:
    """C pinhole cameras of one image size.

    Attributes:
        viewmats: world to camera, OpenCV axes.
        Ks: intrinsics in pixels; pixel centres lie at half-integers.
        width: pixels.
        height: pixels.
    """

    viewmats: Float[Tensor, "C 4 4"]
    Ks: Float[Tensor, "C 3 3"]
    width: int
    height: int

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        """The cameras that ``index`` picks; an int is refused so that the dimension stays."""
        if isinstance(index, int):
            raise TypeError(f"expected a slice or a tensor, received {index}; write cameras[{index} : {index} + 1].")
        return replace(self, viewmats=self.viewmats[index], Ks=self.Ks[index])

    @property
    def camera_to_world(self) -> Float[Tensor, "C 4 4"]:
        """Inverse of ``viewmats`` (rigid, so transposed rather than solved)."""
        rotation = self.viewmats[:, :3, :3].transpose(1, 2)
        inverse = torch.zeros_like(self.viewmats)
        inverse[:, :3, :3] = rotation
        inverse[:, :3, 3:] = -rotation @ self.viewmats[:, :3, 3:]
        inverse[:, 3, 3] = 1
        return inverse

    @property
    def positions(self) -> Float[Tensor, "C 3"]:
        """Camera centres, world units."""
        return self.camera_to_world[:, :3, 3]

    def to(self, device: torch.device | str) -> Cameras:
        return replace(self, viewmats=self.viewmats.to(device), Ks=self.Ks.to(device))

    def resized(self, width: int, height: int) -> Cameras:
        """The same fields of view on another pixel grid."""
        factor = torch.tensor(
            [[width / self.width], [height / self.height], [1.0]], dtype=self.Ks.dtype, device=self.Ks.device
        )
        return replace(self, Ks=self.Ks * factor, width=width, height=height)


def joined(cameras: list[Cameras]) -> Cameras:
    """All cameras of a list of one image size."""
    viewmats, Ks = (torch.cat([getattr(c, name) for c in cameras]) for name in ("viewmats", "Ks"))
    return replace(cameras[0], viewmats=viewmats, Ks=Ks)


def look_at_origin(position: Float[Tensor, "C 3"]) -> Float[Tensor, "C 4 4"]:
    """World-to-camera matrices of OpenCV cameras that look at the origin with +Y up.

    Straight above and below, where "up" has no projection, +X stays to the right.
    """
    forward = torch.nn.functional.normalize(-position, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=position.dtype, device=position.device).expand_as(forward)
    right = torch.linalg.cross(forward, up)
    fallback = torch.tensor([1.0, 0.0, 0.0], dtype=position.dtype, device=position.device)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, fallback, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)
    viewmats = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3:] = -rotation @ position[..., None]
    viewmats[:, 3, 3] = 1
    return viewmats


def orbit(
    azimuth: Float[Tensor, " C"],
    elevation: Float[Tensor, " C"],
    distance: Float[Tensor, " C"],
    fov: Float[Tensor, " C"],
    width: int,
    height: int,
) -> Cameras:
    """Cameras on spheres around the origin.

    Args:
        azimuth: degrees, 0 in front (+Z), growing toward +X.
        elevation: degrees above the horizon.
        distance: from the origin, world units.
        fov: vertical field of view, degrees.
        width: pixels.
        height: pixels.
    """
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    position = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], dim=-1) * distance[..., None]
    focal = 0.5 * height / torch.tan(0.5 * torch.deg2rad(fov))
    Ks = torch.zeros(azimuth.shape[0], 3, 3, dtype=position.dtype, device=position.device)
    Ks[:, 0, 0] = focal
    Ks[:, 1, 1] = focal
    Ks[:, 0, 2] = width / 2
    Ks[:, 1, 2] = height / 2
    Ks[:, 2, 2] = 1
    return Cameras(look_at_origin(position), Ks, width, height)


def turntable(
    n: int, *, elevation: float = 15.0, radius: float = 0.75, fov: float = 40.0, size: int = 256, start: float = 0.0
) -> Cameras:
    """``n`` cameras evenly around the object, far enough to see a ball of ``radius`` whole.

    Args:
        n: number of views.
        elevation: degrees above the horizon.
        radius: of the ball that must be visible, world units.
        fov: vertical field of view, degrees.
        size: image width and height, pixels.
        start: azimuth of the first view, degrees.
    """
    azimuth = start + torch.arange(n, dtype=torch.float32) * (360.0 / n)
    distance = radius / math.sin(math.radians(fov) / 2)
    return orbit(azimuth, torch.full((n,), elevation), torch.full((n,), distance), torch.full((n,), fov), size, size)


def sphere_of_cameras(views: int, radius: float, size: int, fov: float = 40.0) -> Cameras:
    """Cameras on a Fibonacci sphere, each showing a ball around the origin whole.

    Args:
        views: number of cameras.
        radius: of the ball, world units.
        size: image width and height, pixels.
        fov: vertical field of view, degrees.
    """
    i = torch.arange(views, dtype=torch.float64) + 0.5
    elevation = torch.rad2deg(torch.asin(1 - 2 * i / views))
    golden_angle = 180 * (3 - math.sqrt(5))
    azimuth = (i * golden_angle) % 360
    distance = radius / math.sin(math.radians(fov) / 2)
    full = torch.full((views,), 1.0)
    return orbit(azimuth.float(), elevation.float(), full * distance, full * fov, size, size)


def view_angles(cameras: Cameras) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Azimuth in (-180, 180], 0 in front, and elevation above the horizon, degrees."""
    x, y, z = cameras.positions.unbind(-1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


def side_index(cameras: Cameras, width: float) -> Int[Tensor, " C"]:
    """Index into :data:`SIDES`: overhead above 60 degrees of elevation, front and back within ``width`` of the axis."""
    azimuth, elevation = view_angles(cameras)
    around = (azimuth.abs() >= width).long() + (azimuth.abs() > 180 - width).long()
    return torch.where(elevation > 60, 3, around)


def mvdream_cameras(cameras: Cameras) -> Float[Tensor, "C 16"]:
    """The camera condition of MVDream: a camera-to-world matrix, normalized and flattened.

    MVDream's world is z up with the asset's front at +X; its camera looks along -z of its own
    frame (columns right, up, backward); the translation has unit length, so neither distance nor
    focal length is encoded. Source: bytedance/MVDream, ``camera_utils.py``.
    """
    c2w = cameras.camera_to_world
    axes = c2w.new_tensor([1.0, -1.0, -1.0])  # OpenCV right, down, forward -> right, up, backward
    out = torch.zeros_like(c2w)
    cycle = [2, 0, 1]  # world (x, y, z) -> (z, x, y): +Z front becomes +X, +Y up becomes +Z
    out[:, :3, :3] = (c2w[:, :3, :3] * axes)[:, cycle]
    out[:, :3, 3] = torch.nn.functional.normalize(c2w[:, :3, 3], dim=-1)[:, cycle]
    out[:, 3, 3] = 1
    return out.flatten(1)
