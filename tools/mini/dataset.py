"""Procedural scenes traced to geometry buffers and painted; cameras, lights and backgrounds of all training views."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mini.raster import AMBIENT, DIM, GLOSS, KEY, POWER, SKY
from mini.scenes import Palette, Scene, build_scene
from mini.sdf import SDF, trace
from psd_gs.cameras import Cameras, turntable

VIEWS = 4
FOV = (30.0, 50.0)
ELEVATION = (-15.0, 60.0)
DISTANCE = (0.95, 1.12)
"""Factor on the distance at which a ball of radius 0.66 just fills the image."""

LIGHT = (0.35, 0.75, 0.55)
"""World direction of the key light: from above, in front and to the right."""


def sample_cameras(rng: random.Random, size: int) -> Cameras:
    """Four orthogonal views at one elevation, distance and field of view."""
    fov, elevation, azimuth = rng.uniform(*FOV), rng.uniform(*ELEVATION), rng.uniform(0, 360)
    radius = rng.uniform(*DISTANCE) * 0.66
    return turntable(VIEWS, elevation=elevation, radius=radius, fov=fov, size=size, start=azimuth)


@dataclass
class Buffers:
    """Geometry of B sets of V views.

    Attributes:
        slots: which slot each pixel shows; 0 is background.
        normals: outward world normals times 127.
        viewmats: world to camera.
        Ks: intrinsics.
    """

    slots: Int[Tensor, "B V H W"]
    normals: Int[Tensor, "B V H W 3"]
    viewmats: Float[Tensor, "B V 4 4"]
    Ks: Float[Tensor, "B V 3 3"]

    def cameras(self) -> Cameras:
        """All B * V cameras, set-major."""
        size = self.slots.shape[-1]
        return Cameras(self.viewmats.flatten(0, 1), self.Ks.flatten(0, 1), size, size)


def trace_scene(scene: Scene, cameras: Cameras) -> Buffers:
    """Geometry buffers of one scene (B = 1)."""
    slots, normals = trace(SDF(*build_scene(scene)), cameras)
    return Buffers(slots[None], (normals * 127).round().to(torch.int8)[None], cameras.viewmats[None], cameras.Ks[None])


def shade(buffers: Buffers, palettes: list[Palette], light: Float[Tensor, "B 3"]) -> Float[Tensor, "B V 4 H W"]:
    """Premultiplied RGBA of every view: a soft key light, light from the sky, and highlights by material."""
    rgb = torch.tensor([p.rgb for p in palettes])
    material = torch.tensor([p.material for p in palettes])
    index = buffers.slots.long()
    batch = torch.arange(len(palettes))[:, None, None, None]
    albedo, kind = rgb[batch, index], material[batch, index]
    n = buffers.normals.float() / 127
    light = torch.nn.functional.normalize(light, dim=-1)[:, None, None, None]
    position = buffers.cameras().positions.view(*index.shape[:2], 1, 1, 3)
    to_eye = torch.nn.functional.normalize(position, dim=-1)
    halfway = torch.nn.functional.normalize(light + to_eye, dim=-1)
    diffuse = AMBIENT + SKY * n[..., 1] + KEY * (n * light).sum(-1).clamp_min(0)
    gloss, power, dim = (torch.from_numpy(table)[kind] for table in (GLOSS, POWER, DIM))
    highlight = gloss * (n * halfway).sum(-1).clamp_min(0) ** power
    colour = (albedo * (diffuse * dim)[..., None] + highlight[..., None]).clamp(0, 1)
    alpha = (index > 0).float()[..., None]
    return torch.cat([colour * alpha, alpha], -1).permute(0, 1, 4, 2, 3)


def sample_light(n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    return torch.tensor(LIGHT) + 0.25 * torch.randn(n, 3, generator=generator)


def sample_background(n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """White, mid-grey or dark grey, and a random colour in one set of ten.

    A few tones suffice to tell a white or a black object from nothing; a random colour behind every set would be
    most of the variance of the pictures, and drown what the words could explain.
    """
    colour = torch.rand(n, 3, generator=generator)
    kind = torch.rand(n, 1, generator=generator)
    tone = torch.where(kind < 0.35, 1.0, torch.where(kind < 0.7, 0.5, 0.2)).expand(n, 3)
    return torch.where(kind < 0.9, tone, colour)


def over(rgba: Float[Tensor, "*B 4 H W"], background: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 H W"]:
    """Premultiplied pictures with a colour behind."""
    return rgba[..., :3, :, :] + (1 - rgba[..., 3:, :, :]) * background[..., None, None]


def compose(
    rgba: Float[Tensor, "B V 4 H W"], background: Float[Tensor, "B 3"], size: int
) -> Float[Tensor, "B V 3 h w"]:
    """Average down to ``size`` and put the background behind, in [0, 1]."""
    if rgba.shape[-1] != size:
        small = torch.nn.functional.adaptive_avg_pool2d(rgba.flatten(0, 1), size)
        rgba = small.unflatten(0, rgba.shape[:2])
    return over(rgba, background[:, None])
