"""Opening assets of any origin, splats, meshes and point clouds, as Gaussians that can be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from psd_gs.errors import InputError
from psd_gs.export.fitting import fitted
from psd_gs.export.formats import read_metadata
from psd_gs.export.open import holds_gaussians, open_splats
from psd_gs.gaussians import Gaussians, from_points
from psd_gs.mesh.describe import mesh_metadata
from psd_gs.mesh.points import read_points
from psd_gs.runs import ASSET

RADIUS = 0.62
"""Radius of the ball that an asset is fitted into, world units: it fills nine tenths of an evaluation view."""

POINTS = 40_000
"""Samples of a mesh's surface."""


def open_asset(path: str | os.PathLike[str], *, fit: bool = True, large: bool = False) -> Gaussians:
    """Read an asset: a splat file of any format, a mesh or point cloud (.ply, .glb, .gltf, .obj, .stl), a run folder.

    A mesh becomes opaque Gaussians on its surface, in its own colours: nothing is lit.

    Args:
        path: of the file or run folder.
        fit: move and scale it into a ball of :data:`RADIUS` around the origin, so that assets of any origin are
            framed alike; otherwise splats stay as they are (a mesh has no scale of its own here).
        large: read a compressed file whatever it becomes in memory.

    Raises:
        FormatError: a damaged file.
        InputError: a file that is missing or of unknown kind.
    """
    path = Path(path)
    if path.is_dir() or holds_gaussians(path):
        asset = open_splats(path, large=large).gaussians
        return fitted(asset, RADIUS) if fit else asset
    points, rgb = read_points(path, POINTS, torch.Generator().manual_seed(0))
    return fitted(surface_gaussians(points, rgb), RADIUS)


def surface_gaussians(points: Float[Tensor, "N 3"], rgb: Float[Tensor, "N 3"]) -> Gaussians:
    """Opaque Gaussians as wide as the points are apart, so that the surface closes."""
    spacing = cKDTree(points.numpy()).query(points.numpy(), k=min(5, len(points)))[0][:, -1]
    return from_points(points, rgb, scale=max(1e-4, 0.7 * float(spacing[spacing > 0].mean())), opacity=0.95)


def prompt_of(path: str | os.PathLike[str]) -> str:
    """The prompt that an asset was made from, according to its metadata.

    Raises:
        InputError: it is not known.
    """
    path = Path(path)
    path = path / ASSET if path.is_dir() else path
    prompt = (read_metadata(path) if holds_gaussians(path) else mesh_metadata(path)).get("prompt")
    if not isinstance(prompt, str):
        raise InputError(f"{path}: expected metadata that name its prompt, received none. Give it with --prompt.")
    return prompt
