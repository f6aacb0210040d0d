"""Triangle meshes: the dataclass, isosurface, cleaning, normals and topology."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

SMALLEST_PART = 0.02
"""Connected components below this share of the largest one's area are floaters."""


@dataclass
class Mesh:
    """A triangle mesh with one colour and one normal per vertex, in the world frame.

    Attributes:
        vertices: float32, world units.
        faces: int64, counter-clockwise seen from outside.
        colors: float32, sRGB in [0, 1].
        normals: float32, unit length, outward.
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    colors: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"]


Triangles = tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]
"""Vertices and faces."""


def isosurface(field: Float[np.ndarray, "X Y Z"]) -> Triangles:
    """The closed surface that separates negative (inside) from positive (outside) samples.

    Cavities that cannot be reached from outside are filled, so nothing hides in the interior. The
    surface is Lewiner's marching cubes (2003), oriented counter-clockwise seen from outside.

    Args:
        field: signed distances; overwritten where cavities and the border are closed.

    Returns:
        Vertices in sample coordinates and faces; both empty if no sample is inside.
    """
    from scipy.ndimage import label
    from skimage.measure import marching_cubes

    for axis in range(3):
        border = np.moveaxis(field, axis, 0)
        border[[0, -1]] = np.maximum(border[[0, -1]], 1)
    free, _ = label(field > 0)
    field[(free != free[0, 0, 0]) & (free > 0)] = -1
    if field.min() >= 0:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(field, 0.0)
    faces = faces.astype(np.int64)
    return vertices, faces if signed_volume(vertices, faces) > 0 else faces[:, ::-1]


def signed_volume(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> float:
    """Volume enclosed by a closed mesh; negative if its faces are clockwise seen from outside."""
    a, b, c = vertices.astype(np.float64)[faces].transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def parts(faces: Int[np.ndarray, "F 3"], vertices: int) -> Int[np.ndarray, " F"]:
    """Connected component of every face, counted from 0; faces are connected where they share a vertex."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.concatenate([faces[:, [0, 1]].T, faces[:, [1, 2]].T], axis=1)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(vertices, vertices))
    _, part = connected_components(graph, directed=False)
    return np.unique(part[faces[:, 0]], return_inverse=True)[1]


def drop_small_parts(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], share: float = SMALLEST_PART
) -> Triangles:
    """Without the connected components below ``share`` of the largest one's area."""
    part = parts(faces, len(vertices))
    if not part.any():
        return vertices, faces
    area = np.bincount(part, _face_normals(vertices, faces)[1])
    return select_faces(vertices, faces, (area >= share * area.max())[part])


@dataclass(frozen=True)
class Topology:
    """What makes a mesh a solid, or keeps it from being one.

    Attributes:
        watertight: every edge belongs to exactly two faces, which run along it in opposite directions.
        bodies: connected components.
        euler: V - E + F over the vertices in use.
        genus: number of handles over all bodies, ``bodies - euler / 2``; None if the mesh is not watertight.
        boundary_edges: edges of one face only.
        non_manifold_edges: edges of three faces or more.
        flipped_edges: edges whose two faces run along them in the same direction.
        volume: enclosed by the faces, world units cubed; negative if they look inward.
    """

    watertight: bool
    bodies: int
    euler: int
    genus: int | None
    boundary_edges: int
    non_manifold_edges: int
    flipped_edges: int
    volume: float


def topology(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Topology:
    """Count edges and components (Euler-Poincare formula); vertices at one place are not welded."""
    if len(faces) == 0:
        return Topology(False, 0, 0, None, 0, 0, 0, 0.0)
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel().astype(np.int64)
    low, high = np.minimum(start, end), np.maximum(start, end)
    _, edge, count = np.unique(low * len(vertices) + high, return_inverse=True, return_counts=True)
    balance = np.bincount(edge, np.where(start < end, 1, -1))
    boundary, crowded = int((count == 1).sum()), int((count > 2).sum())
    flipped = int(((count == 2) & (balance != 0)).sum())
    watertight = boundary == crowded == flipped == 0
    bodies = int(parts(faces, len(vertices)).max()) + 1
    euler = len(np.unique(faces)) - len(count) + len(faces)
    genus = bodies - euler // 2 if watertight else None
    return Topology(watertight, bodies, euler, genus, boundary, crowded, flipped, signed_volume(vertices, faces))


def select_faces(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], keep: Bool[np.ndarray, " F"]
) -> Triangles:
    """The faces that ``keep`` picks and only the vertices that they use."""
    used, faces = np.unique(faces[keep], return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def vertex_normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals, the area-weighted mean of the faces around each vertex."""
    direction, area = _face_normals(vertices, faces)
    weighted = direction * area[:, None]
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(weighted[:, axis], 3), len(vertices)) for axis in range(3)], axis=1
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    up = np.array([0.0, 1.0, 0.0])  # where the faces cancel out, any direction will do
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), up).astype(np.float32)


def _face_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (zero for degenerate faces) and areas."""
    a, b, c = vertices.astype(np.float64)[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1)
    return normal / np.maximum(length, 1e-300)[:, None], length / 2
