"""Simple convex shapes that stand for a mesh in a physics engine."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from psd_gs.errors import BackendError, InputError
from psd_gs.mesh.decimate import decimate
from psd_gs.mesh.surface import Triangles

Collision = Literal["none", "hull", "coacd"]

HULL_FACES = 255
"""Most faces of a hull; physics engines refuse or thin out larger ones (256 in PhysX)."""
_COACD_FACES = 3000
_FLAT = 1e-10  # variance across, as a share of the largest one


def collision_shapes(vertices: Float[np.ndarray, "V 3"], faces: np.ndarray, kind: Collision) -> list[Triangles]:
    """Convex shapes that cover a mesh.

    Args:
        vertices: of the mesh.
        faces: of the mesh.
        kind: ``hull`` is one convex hull; ``coacd`` several ones that follow hollows (Wei et al. 2022,
            CoACD), which takes ten seconds or more.

    Raises:
        BackendError: coacd is not installed.
        InputError: the mesh is flat.
    """
    if kind == "none":
        return []
    if kind == "hull":
        return [convex_hull(vertices)]
    try:
        import coacd
    except ImportError as error:
        raise BackendError(
            "--collision coacd needs the package coacd, which is not installed. "
            'Run `pip install "psd-gs[collision]"`, or take --collision hull.'
        ) from error
    coacd.set_log_level("error")
    coarse = decimate(vertices, faces, _COACD_FACES)
    pieces = coacd.run_coacd(coacd.Mesh(*coarse), seed=0)
    return [convex_hull(np.asarray(piece, np.float32)) for piece, _ in pieces]


def convex_hull(points: Float[np.ndarray, "V 3"]) -> Triangles:
    """The convex hull, of at most :data:`HULL_FACES` faces.

    Raises:
        InputError: the points lie in a plane.
    """
    import trimesh

    spread = np.linalg.eigvalsh(np.cov(points.astype(np.float64), rowvar=False))
    if spread[0] <= _FLAT * spread[-1]:
        raise InputError("--collision: expected a solid mesh, received a flat one. Leave it out.")
    hull = trimesh.convex.convex_hull(points)
    # Thinned by leaving out corners, not by decimation: the result is convex and never sticks out.
    corners, count = np.asarray(hull.vertices), HULL_FACES // 2 + 1
    while len(hull.faces) > HULL_FACES:
        hull = trimesh.convex.convex_hull(corners[np.unique((corners @ _fibonacci(count).T).argmax(0))])
        count -= 8
    return np.asarray(hull.vertices, np.float32), np.asarray(hull.faces, np.int64)


def _fibonacci(count: int) -> Float[np.ndarray, "count 3"]:
    """Directions evenly over the sphere."""
    i = np.arange(count) + 0.5
    y = 1 - 2 * i / count
    angle = i * np.pi * (3 - 5**0.5)
    return np.stack([np.sqrt(1 - y * y) * np.cos(angle), y, np.sqrt(1 - y * y) * np.sin(angle)], axis=1)
