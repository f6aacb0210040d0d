"""Before and after: the Gaussians above, the mesh with its colours and with light alone below."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.export.fitting import bounding_ball
from psd_gs.export.frames import usual_size
from psd_gs.export.metadata import Metadata
from psd_gs.export.pictures import contact_sheet
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.raster import located, project, rasterize, sample
from psd_gs.mesh.surface import Mesh
from psd_gs.mesh.texture import TexturedMesh
from psd_gs.splats import scaled

_VIEWS, _SIZE = 4, 320
_WHITE = np.ones(3, np.float32)


def render_mesh(
    mesh: Mesh | TexturedMesh, cameras: Cameras, *, shaded: bool = False
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Views of a mesh, one sample per pixel.

    Args:
        mesh: world units.
        cameras: any.
        shaded: grey under a light at the camera instead of the colours.

    Returns:
        sRGB on white, and 1 where the mesh is, else 0.
    """
    height, width = cameras.height, cameras.width
    flat = project(mesh.vertices, cameras)
    ids, _ = rasterize(flat, mesh.faces, height, width)
    images = np.broadcast_to(_WHITE, (len(cameras), height, width, 3)).copy()
    for c, eye in enumerate(cameras.positions.cpu().numpy()):
        pixels = located(ids[c], flat[c], mesh.faces)
        if shaded:
            normal = pixels.interpolate(mesh.normals, mesh.faces)
            ray = eye - pixels.interpolate(mesh.vertices, mesh.faces)
            cosine = np.einsum("pk,pk->p", normal, ray)
            cosine /= np.maximum(np.linalg.norm(normal, axis=1) * np.linalg.norm(ray, axis=1), 1e-20)
            colors = np.repeat(0.15 + 0.75 * np.clip(cosine, 0, 1)[:, None], 3, axis=1)
        elif isinstance(mesh, TexturedMesh):
            size = len(mesh.color)
            colors = sample(mesh.color / np.float32(255), pixels.interpolate(mesh.uv * size, mesh.faces))
        else:
            colors = pixels.interpolate(mesh.colors, mesh.faces)
        images[c, pixels.rows, pixels.columns] = colors
    return images, (ids >= 0).astype(np.float32)


def compare_png(
    gaussians: Gaussians,
    mesh: Mesh | TexturedMesh,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata | None = None,
) -> None:
    """Four views around the asset: Gaussians, mesh, and the mesh in grey.

    Args:
        gaussians: the asset.
        mesh: of it, in the same world.
        path: of the ``.png``; replaced in one step.
        metadata: goes into an ``iTXt`` chunk.

    Raises:
        OutputError: the file cannot be written.
    """
    from psd_gs.render import render

    centre, radius = bounding_ball(gaussians)
    unit = usual_size(radius)
    cameras = turntable(_VIEWS, radius=1.1 * radius / unit, size=_SIZE)
    centred = scaled(replace(gaussians, means=gaussians.means - centre), 1 / unit)
    white = gaussians.means.new_ones(3)
    with torch.no_grad():
        splat = render(centred, cameras.to(gaussians.device), white).rgb.cpu()
    fine = replace(mesh, vertices=((mesh.vertices - centre.cpu().numpy()) / unit).astype(np.float32))
    double = cameras.resized(2 * _SIZE, 2 * _SIZE)
    colors, light = (halved(render_mesh(fine, double, shaded=shaded)[0]) for shaded in (False, True))
    images = [*splat, *colors, *light]
    captions = [f"{name}, {90 * i} degrees" for name in ("splat", "mesh", "shape") for i in range(_VIEWS)]
    contact_sheet(images, path, captions=captions, columns=_VIEWS, size=_SIZE, metadata=metadata)


def halved(images: Float[np.ndarray, "C H W K"]) -> Float[Tensor, "C h w K"]:
    """Means of 2 by 2 pixels: smooth outlines."""
    return torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
