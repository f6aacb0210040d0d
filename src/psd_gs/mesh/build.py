"""From Gaussians to the files that a game engine takes: surface, textures, place and size, levels of detail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from psd_gs.errors import InputError
from psd_gs.export.fitting import bounding_ball
from psd_gs.export.frames import usual_size
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.decimate import decimate
from psd_gs.mesh.extract import Extraction, MeshOptions, extract, field_colors
from psd_gs.mesh.shapes import Collision, collision_shapes
from psd_gs.mesh.surface import Mesh, Triangles, vertex_normals
from psd_gs.mesh.texture import VIEWS, TexturedMesh, bake
from psd_gs.splats import scaled

Pivot = Literal["base", "center", "keep"]
Preset = Literal["mobile", "game", "hero", "film"]

_SMALLEST_TEXTURE = 64


@dataclass(frozen=True)
class Quality:
    """What a preset decides: samples of the distance field along the longest side, triangles, texels."""

    resolution: int
    faces: int
    texture_size: int


PRESETS: dict[Preset, Quality] = {
    "mobile": Quality(192, 5_000, 512),
    "game": Quality(256, 20_000, 1024),
    "hero": Quality(384, 50_000, 2048),
    "film": Quality(512, 200_000, 4096),
}


@dataclass(frozen=True)
class BuildOptions:
    """What is made of an asset.

    Raises:
        InputError: a value out of range.
    """

    surface: MeshOptions = field(default_factory=MeshOptions)
    texture_size: int = PRESETS["game"].texture_size
    """Side of the square textures, a power of two from 64 to 8192; 0 makes vertex colours instead."""
    texture_views: int = VIEWS
    """Renders that correct the texture; 0 takes the colours of the Gaussian field as they are."""
    normal_map: bool = True
    """Keep the relief of the surface before decimation in a texture."""
    height: float | None = None
    """Height of the finished mesh, metres; None keeps the size of the splat."""
    pivot: Pivot = "keep"
    """What lies at the origin: the middle of the base, the middle of the box, or the splat's own origin."""
    lods: int = 0
    """Coarser levels beside the finest, each with half the triangles and half the texture size, at most 6."""
    collision: Collision = "none"
    """Convex shapes for physics."""

    def __post_init__(self) -> None:
        size = self.texture_size
        if size and not (_SMALLEST_TEXTURE <= size <= 8192 and size & (size - 1) == 0):
            raise InputError(f"--texture-size: expected 0 or a power of two from 64 to 8192, received {size}.")
        if self.height is not None and not 1e-4 <= self.height <= 1e5:
            raise InputError(f"--height: expected 0.0001 to 100000 metres, received {self.height}.")
        if not 0 <= self.lods <= 6:
            raise InputError(f"--lods: expected 0 to 6 coarser levels, received {self.lods}.")
        if not 0 <= self.texture_views <= 1000:
            raise InputError(f"--texture-views: expected 0 to 1000, received {self.texture_views}.")


@dataclass(frozen=True)
class Placement:
    """Where the splat went: ``placed = scale * splat + offset``, per vertex.

    Attributes:
        scale: uniform.
        offset: metres.
    """

    scale: float
    offset: tuple[float, float, float]

    def __call__(self, points: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
        return (points * self.scale + np.array(self.offset)).astype(np.float32)

    def undo(self, mesh: Mesh | TexturedMesh) -> Mesh | TexturedMesh:
        """A placed mesh where the splat is."""
        vertices = (mesh.vertices - np.array(self.offset)) / self.scale
        return replace(mesh, vertices=vertices.astype(np.float32))


@dataclass
class Built:
    """Everything that goes into the files.

    Attributes:
        levels: the mesh and its coarser levels, placed.
        collision: convex shapes, placed.
        placement: what was done to the world of the splat.
        extraction: the surface in the world of the splat, in units of ``unit``.
        unit: the power of 16 near the size of the asset, in world units of the splat: 1 for those of usual size.
    """

    levels: list[Mesh | TexturedMesh]
    collision: list[Triangles]
    placement: Placement
    extraction: Extraction
    unit: float = 1.0

    def facts(self, level: int = 0) -> dict[str, Any]:
        """What the metadata of a level say beside where the asset came from."""
        mesh, topology = self.levels[level], self.extraction.topology
        return {
            "faces": len(mesh.faces),
            "vertices": len(mesh.vertices),
            "bounds": [mesh.vertices.min(0).tolist(), mesh.vertices.max(0).tolist()],
            "texture_size": len(mesh.color) if isinstance(mesh, TexturedMesh) else 0,
            "watertight": topology.watertight,
            "bodies": topology.bodies,
            "lod": level,
            "collision_shapes": len(self.collision) if level == 0 else 0,
            "splat_scale": self.placement.scale,
            "splat_offset": list(self.placement.offset),
            "frame": "gltf",
            "units": "metres",
        }


def build(
    gaussians: Gaussians,
    options: BuildOptions = BuildOptions(),
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Built:
    """Make a mesh of an asset.

    Args:
        gaussians: the asset, world frame.
        options: what is made.
        on_stage: called with what is done next, in words.

    Raises:
        BackendError: a package for textures or collision shapes is missing.
        InputError: nothing in the asset is opaque.
    """
    on_stage("surface")
    unit = usual_size(bounding_ball(gaussians)[1])
    extraction = extract(scaled(gaussians, 1 / unit), options.surface)
    placement = place(extraction.mesh.vertices * unit, options.height, options.pivot)
    levels: list[Mesh | TexturedMesh] = []
    mesh = extraction.mesh
    for level in range(options.lods + 1):
        if level:
            on_stage(f"level of detail {level}")
            mesh = coarser(extraction, max(4, options.surface.faces >> level))
        finished: Mesh | TexturedMesh = mesh
        if options.texture_size:
            on_stage(f"texture {level}" if level else "texture")
            size = max(_SMALLEST_TEXTURE, options.texture_size >> level)
            finished = bake(extraction, size, mesh=mesh, normal_map=options.normal_map, views=options.texture_views)
        levels.append(replace(finished, vertices=placement(finished.vertices * unit)))
    if options.collision != "none":
        on_stage("collision shapes")
    shapes = collision_shapes(extraction.mesh.vertices, extraction.mesh.faces, options.collision)
    collision = [(placement(vertices * unit), faces) for vertices, faces in shapes]
    return Built(levels, collision, placement, extraction, unit)


def coarser(extraction: Extraction, faces: int) -> Mesh:
    """The surface with at most ``faces`` triangles, made from the dense one."""
    vertices, corners = decimate(*extraction.dense, faces)
    colors = field_colors(extraction.solid, vertices, sigma_floor=extraction.voxel / 2)
    return Mesh(vertices, corners, colors, vertex_normals(vertices, corners))


def place(vertices: Float[np.ndarray, "V 3"], height: float | None, pivot: Pivot) -> Placement:
    """Scale to a height and move the pivot to the origin.

    Args:
        vertices: world units.
        height: along +Y, metres; None keeps the size.
        pivot: ``base`` is the middle of the bottom of the bounding box, ``center`` the middle of the box.

    Raises:
        InputError: a height is asked for, and the mesh has none.
    """
    lower, upper = vertices.min(0).astype(np.float64), vertices.max(0).astype(np.float64)
    extent = upper[1] - lower[1]
    if height is not None and extent <= 0:
        raise InputError("--height: expected a mesh that is higher than 0, received a flat one. Leave --height out.")
    scale = 1.0 if height is None else float(height / extent)
    origin = np.zeros(3) if pivot == "keep" else (lower + upper) / 2
    if pivot == "base":
        origin[1] = lower[1]
    x, y, z = (-scale * origin).tolist()
    return Placement(scale, (x, y, z))
