"""Meshes beside the splats that they were made from: views of both, and how much they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from psd_gs.cameras import Cameras, orbit
from psd_gs.export.frames import bounding_ball
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.raster import located, project, rasterize, sample
from psd_gs.mesh.surface import Mesh
from psd_gs.mesh.texture import TexturedMesh
from psd_gs.render import render

UNSEEN = 16
"""Views that neither the surface nor its texture was made from."""
_FINER = 2
"""Samples per pixel and axis of the views of a mesh; those of a splat are blurred by its projection."""
GREY = 0.5


def unseen_cameras(radius: float, views: int = UNSEEN, size: int = 256) -> Cameras:
    """Cameras that look at a ball around the origin from random directions, always the same ones."""
    generator = torch.Generator().manual_seed(16)
    azimuth = 360 * torch.rand(views, generator=generator)
    elevation = torch.rad2deg(torch.asin(2 * torch.rand(views, generator=generator) - 1))
    distance = 1.05 * radius / np.sin(np.radians(15))
    return orbit(azimuth, elevation, torch.full((views,), distance), torch.full((views,), 30.0), size, size)


def mesh_views(
    mesh: Mesh | TexturedMesh, cameras: Cameras, background: float = GREY
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Unlit colours, sRGB, and the share of every pixel that is covered."""
    fine = cameras.resized(_FINER * cameras.width, _FINER * cameras.height)
    flat = project(mesh.vertices, fine)
    ids, _ = rasterize(flat, mesh.faces, fine.height, fine.width)
    images = np.full((*ids.shape, 3), background, np.float32)
    for c in range(len(fine)):
        pixels = located(ids[c], flat[c], mesh.faces)
        if isinstance(mesh, TexturedMesh):
            texture = mesh.color.astype(np.float32) / 255
            rgb = sample(texture, pixels.interpolate(mesh.uv, mesh.faces) * len(texture))
        else:
            rgb = pixels.interpolate(mesh.colors, mesh.faces)
        images[c, pixels.rows, pixels.columns] = rgb
    return _shrunk(images), _shrunk((ids >= 0).astype(np.float32)[..., None])[..., 0]


def _shrunk(images: Float[np.ndarray, "C H W K"]) -> Float[np.ndarray, "C h w K"]:
    count, height, width, channels = images.shape
    return images.reshape(count, height // _FINER, _FINER, width // _FINER, _FINER, channels).mean((2, 4))


@torch.no_grad()
def splat_views(
    gaussians: Gaussians, cameras: Cameras, background: float = GREY
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Colours, sRGB, and alpha."""
    out = render(gaussians.to("cpu"), cameras, torch.full((3,), background))
    return out.rgb.clamp(0, 1).numpy(), out.alpha[..., 0].numpy()


def against_splat(
    gaussians: Gaussians, mesh: Mesh | TexturedMesh, size: int = 256
) -> tuple[dict[str, float], Float[np.ndarray, "C H W2 3"]]:
    """How far the mesh is from its splat in :data:`UNSEEN` views, and the views, splat left, mesh right.

    Returns:
        ``iou``: intersection over union of the pixels that are at least half covered, all views together;
        ``worst_iou``: of the worst view; ``psnr``: dB over the pixels where the splat's alpha is at least one
        half, both on grey, so a pixel that the mesh misses counts with all of its colour.
    """
    centre, radius = bounding_ball(gaussians)
    cameras = unseen_cameras(radius, size=size)
    wanted, alpha = splat_views(replace(gaussians, means=gaussians.means - centre), cameras)
    got, cover = mesh_views(replace(mesh, vertices=mesh.vertices - centre.cpu().numpy().astype(np.float32)), cameras)
    inside, covered = alpha >= 0.5, cover >= 0.5
    both, either = (inside & covered).sum((1, 2)), (inside | covered).sum((1, 2))
    error = float(((wanted - got)[inside] ** 2).mean())
    measured = {
        "iou": float(both.sum() / either.sum()),
        "worst_iou": float((both / np.maximum(either, 1)).min()),
        "psnr": float(-10 * np.log10(max(error, 1e-10))),
    }
    return measured, np.concatenate([wanted, got], axis=2)
