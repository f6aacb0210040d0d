"""Fewer triangles: quadric edge collapse that keeps a closed mesh closed.

Edges are collapsed in the order of the error that this makes, the squared distance to the planes of the
faces around (Garland and Heckbert 1997, "Surface simplification using quadric error metrics"). An edge whose
ends have other common neighbours than the two opposite corners stays, because its collapse would pinch the
surface (link condition; Dey, Edelsbrunner, Guha and Nekhayev 1999). The common decimation libraries skip
that test and leave edges with four faces.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from psd_gs.kernels import njit, part
from psd_gs.mesh.surface import Triangles, select_faces

_PULL = 3e-5
"""Weight of an edge's length and of its middle beside the planes; it decides where the surface is flat."""
_TURN = 0.2
"""Smallest cosine between the normals of a face before and after a collapse."""
_RANKS = 640
"""Of errors; edges of one rank are collapsed in the reverse of the order in which they came, which takes a fraction of
the time of a heap and costs nothing that can be measured."""


def decimate(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], count: int) -> Triangles:
    """At most ``count`` faces, or as few as the topology allows; borders stay as they are.

    A closed mesh stays closed, with the same number of bodies and handles. The result is reproducible.

    Args:
        vertices: any units.
        faces: consistently oriented.
        count: of faces.

    Returns:
        Float32 vertices and int64 faces.
    """
    if len(faces) <= count:
        return vertices.astype(np.float32), faces.astype(np.int64)
    faces = faces.astype(np.int32)
    middle = vertices.mean(0, dtype=np.float64)
    size = max(float(np.abs(vertices - middle).max()), 1e-30)
    moved = (vertices - middle) / size  # quadrics cancel badly far from the origin
    locked = _on_border(len(vertices), faces)
    alive = len(faces)
    for strict in (True, False):  # first without turning faces over, then at any price
        before = alive + 1
        while count < alive < before:
            before = alive
            alive = _collapse(moved, faces, locked, count, strict)
            faces = faces[faces[:, 0] >= 0]
    vertices, faces = select_faces(moved, faces, np.ones(len(faces), bool))
    return (vertices * size + middle).astype(np.float32), faces.astype(np.int64)


def _on_border(count: int, faces: Int[np.ndarray, "F 3"]) -> Bool[np.ndarray, " V"]:
    """Vertices of edges that do not belong to exactly two faces."""
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    edge, uses = np.unique(ends[:, 0].astype(np.int64) * count + ends[:, 1], return_counts=True)
    border = np.zeros(count, bool)
    border[np.concatenate(np.divmod(edge[uses != 2], count))] = True
    return border


@njit(nogil=True)
def _collapse(vertices, faces, locked, target, strict):
    """Collapse edges until ``target`` faces are left or none can be; vertices move, faces that die become -1."""
    n, alive = len(vertices), len(faces)
    quadric = np.zeros((n, 10))
    # The corners (face * 3 + place) around every vertex, as linked lists that can be joined.
    head, following = np.full(n, np.int32(-1)), np.empty(3 * alive, np.int32)
    for f in range(len(faces)):
        _add_plane(vertices, faces[f], quadric)
        for k in range(3):
            following[3 * f + k] = head[faces[f, k]]
            head[faces[f, k]] = 3 * f + k
    version = np.zeros(n, np.int32)
    seen_from_u, seen_from_both = np.full(n, np.int32(-1)), np.full(n, np.int32(-1))
    queue, edges = np.full(_RANKS + 1, np.int32(-1)), np.empty((0, 4), np.int32)
    for f in range(len(faces)):
        for k in range(3):
            u, v = faces[f, k], faces[f, (k + 1) % 3]
            if u < v and not locked[u] and not locked[v]:
                edges = _push(queue, edges, _rank(_place(vertices, quadric, u, v)[0]), u, v, 0)
    tick, rank = 0, 0
    while alive > target:
        while rank < _RANKS and queue[rank] < 0:
            rank += 1
        if rank == _RANKS:
            break
        u, v, when = _pop(queue, edges, rank)
        if version[u] < 0 or version[v] < 0 or version[u] + version[v] != when:
            continue
        tick += 1
        around_u = _mark(faces, head, following, u, seen_from_u, tick)
        around_v, common = 0, 0
        corner = head[v]
        while corner >= 0:
            f, k = corner // 3, corner % 3
            if faces[f, 0] >= 0:
                around_v += 1
                for step in range(1, 3):
                    w = faces[f, (k + step) % 3]
                    if seen_from_u[w] == tick and seen_from_both[w] != tick:
                        seen_from_both[w] = tick
                        common += w != u
            corner = following[corner]
        if common != 2 or (around_u == 3 and around_v == 3):  # a pinch, or the last tetrahedron
            continue
        _, x, y, z = _place(vertices, quadric, u, v)
        if strict and not (
            _faces_survive(vertices, faces, head, following, u, v, x, y, z)
            and _faces_survive(vertices, faces, head, following, v, u, x, y, z)
        ):
            continue
        vertices[u, 0], vertices[u, 1], vertices[u, 2] = x, y, z
        for entry in range(10):
            quadric[u, entry] += quadric[v, entry]
        alive -= _join(faces, head, following, u, v)
        version[u] += 1
        version[v] = -1
        tick += 1
        corner = head[u]
        while corner >= 0:
            f, k = corner // 3, corner % 3
            for step in range(1, 3):
                w = faces[f, (k + step) % 3]
                if seen_from_u[w] != tick and not locked[w]:
                    seen_from_u[w] = tick
                    new = _rank(_place(vertices, quadric, u, w)[0])
                    edges = _push(queue, edges, new, u, w, version[u] + version[w])
                    rank = min(rank, new)
            corner = following[corner]
    return alive


@part()
def _rank(error):
    """Errors in steps of a quarter of an octave, from 2^-120 on."""
    share, octave = math.frexp(error)
    return min(max(4 * (octave + 120) + int(8 * share) - 4, 0), _RANKS - 1)


@part()
def _push(queue, edges, rank, u, v, when):
    """Put an edge into a queue: linked lists of rows (ends, the sum of their versions, the next row), one for each
    rank and the last for rows that are free. The rows, more of them if they were all taken."""
    if queue[_RANKS] < 0:
        rows = len(edges)
        edges = np.concatenate((edges, np.empty((rows + 1024, 4), np.int32)))
        for row in range(rows, len(edges)):
            edges[row, 3] = row + 1
        edges[-1, 3] = -1
        queue[_RANKS] = rows
    row = queue[_RANKS]
    queue[_RANKS] = edges[row, 3]
    edges[row, 0], edges[row, 1], edges[row, 2], edges[row, 3] = u, v, when, queue[rank]
    queue[rank] = row
    return edges


@part()
def _pop(queue, edges, rank):
    """The edge that came last into a rank of the queue, see :func:`_push`."""
    row = queue[rank]
    queue[rank] = edges[row, 3]
    edges[row, 3] = queue[_RANKS]
    queue[_RANKS] = row
    return edges[row, 0], edges[row, 1], edges[row, 2]


@part()
def _join(faces, head, following, u, v):
    """Give the faces of ``v`` to ``u``, but for those of both, which die; how many that were."""
    dead, joined = 0, np.int32(-1)
    for end in (v, u):
        corner = head[end]
        while corner >= 0:
            f, k, after = corner // 3, corner % 3, following[corner]
            if faces[f, 0] >= 0:
                if end == v and (faces[f, (k + 1) % 3] == u or faces[f, (k + 2) % 3] == u):
                    faces[f, 0] = -1
                    dead += 1
                else:
                    faces[f, k] = u
                    following[corner] = joined
                    joined = corner
            corner = after
    head[u] = joined
    return dead


@part()
def _add_plane(vertices, face, quadric):
    """Add the quadric of a face's plane, weighted by its area, to those of its corners: the upper triangle of the
    symmetric 4 x 4 matrix, row by row."""
    a = face[0]
    nx, ny, nz = _normal(vertices, vertices[a, 0], vertices[a, 1], vertices[a, 2], face[1], face[2])
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    if length == 0:
        return
    plane = (nx / length, ny / length, nz / length, 0.0)
    offset = -(plane[0] * vertices[a, 0] + plane[1] * vertices[a, 1] + plane[2] * vertices[a, 2])
    plane = (plane[0], plane[1], plane[2], offset)
    for k in range(3):
        entry = 0
        for i in range(4):
            for j in range(i, 4):
                quadric[face[k], entry] += 0.5 * length * plane[i] * plane[j]
                entry += 1


@part()
def _normal(vertices, x, y, z, b, c):
    """Normal of the triangle of a point and two vertices, twice its area long."""
    ux, uy, uz = vertices[b, 0] - x, vertices[b, 1] - y, vertices[b, 2] - z
    vx, vy, vz = vertices[c, 0] - x, vertices[c, 1] - y, vertices[c, 2] - z
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@part()
def _place(vertices, quadric, u, v):
    """Error of the best place for the joined vertex of an edge, and that place."""
    q = quadric
    xx, xy, xz, x1 = q[u, 0] + q[v, 0], q[u, 1] + q[v, 1], q[u, 2] + q[v, 2], q[u, 3] + q[v, 3]
    yy, yz, y1 = q[u, 4] + q[v, 4], q[u, 5] + q[v, 5], q[u, 6] + q[v, 6]
    zz, z1, one = q[u, 7] + q[v, 7], q[u, 8] + q[v, 8], q[u, 9] + q[v, 9]
    pull = _PULL * (xx + yy + zz) + 1e-30
    mx, my, mz = (
        (vertices[u, 0] + vertices[v, 0]) / 2,
        (vertices[u, 1] + vertices[v, 1]) / 2,
        (vertices[u, 2] + vertices[v, 2]) / 2,
    )
    # Cramer's rule for the symmetric matrix [[a, b, c], [b, d, e], [c, e, f]]; the pull keeps it positive definite.
    a, b, c, d, e, f = xx + pull, xy, xz, yy + pull, yz, zz + pull
    rx, ry, rz = pull * mx - x1, pull * my - y1, pull * mz - z1
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    D, E, F = a * f - c * c, b * c - a * e, a * d - b * b
    scale = 1 / (a * A + b * B + c * C)
    x, y, z = (A * rx + B * ry + C * rz) * scale, (B * rx + D * ry + E * rz) * scale, (C * rx + E * ry + F * rz) * scale
    error = xx * x * x + yy * y * y + zz * z * z + one
    error += 2 * (xy * x * y + xz * x * z + yz * y * z + x1 * x + y1 * y + z1 * z)
    return max(error, 0.0) + pull * _squared(vertices, u, vertices[v, 0], vertices[v, 1], vertices[v, 2]), x, y, z


@part()
def _squared(vertices, u, x, y, z):
    """Squared distance of a vertex and a point."""
    return (vertices[u, 0] - x) ** 2 + (vertices[u, 1] - y) ** 2 + (vertices[u, 2] - z) ** 2


@part()
def _faces_survive(vertices, faces, head, following, u, v, x, y, z):
    """Whether no face around ``u`` without ``v`` turns over if ``u`` moves."""
    ux, uy, uz = vertices[u, 0], vertices[u, 1], vertices[u, 2]
    corner = head[u]
    while corner >= 0:
        f, k = corner // 3, corner % 3
        b, c = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
        if faces[f, 0] >= 0 and b != v and c != v:
            ox, oy, oz = _normal(vertices, ux, uy, uz, b, c)
            nx, ny, nz = _normal(vertices, x, y, z, b, c)
            old, new = math.sqrt(ox * ox + oy * oy + oz * oz), math.sqrt(nx * nx + ny * ny + nz * nz)
            if ox * nx + oy * ny + oz * nz < _TURN * old * new:
                return False
        corner = following[corner]
    return True


@part()
def _mark(faces, head, following, u, seen, tick):
    """Mark the neighbours of a vertex and count its faces."""
    count = 0
    corner = head[u]
    while corner >= 0:
        f, k = corner // 3, corner % 3
        if faces[f, 0] >= 0:
            count += 1
            seen[faces[f, (k + 1) % 3]] = tick
            seen[faces[f, (k + 2) % 3]] = tick
        corner = following[corner]
    return count
