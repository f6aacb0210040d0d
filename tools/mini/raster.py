"""A z-buffer for training views: triangles to shaded pictures, at any camera, in compiled loops.

Light and materials are those of ``dataset.shade``, so that meshes and traced objects look alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from psd_gs.kernels import njit

AMBIENT, SKY, KEY = 0.62, 0.16, 0.30
GLOSS = np.array([0.04, 0.55, 0.75, 0.04], np.float32)
POWER = np.array([12.0, 40.0, 16.0, 12.0], np.float32)
DIM = np.array([1.0, 1.0, 0.72, 1.0], np.float32)
"""Strength and sharpness of highlights, and brightness, by material (``scenes.MATERIALS``)."""
NEAR = 0.05


@dataclass(frozen=True)
class Surface:
    """Triangles as they are drawn.

    Attributes:
        vertices: world positions.
        triangles: of vertices, counter-clockwise seen from outside; both sides are drawn.
        normals: one outward unit normal per corner.
        colours: sRGB of each face in [0, 1].
        materials: of each face, an index into ``scenes.MATERIALS``.
        named: 1 on faces whose colour or place the caption names, else 0.
    """

    vertices: Float[np.ndarray, "N 3"]
    triangles: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "F 3 3"]
    colours: Float[np.ndarray, "F 3"]
    materials: Int[np.ndarray, " F"]
    named: Float[np.ndarray, " F"]

    def moved(self, scale: float = 1.0, offset=(0.0, 0.0, 0.0)) -> Surface:
        """Scaled about the origin, then moved."""
        return replace(self, vertices=(self.vertices * np.float32(scale) + np.asarray(offset, np.float32)))

    def stretched(self, factor) -> Surface:
        """Scaled along the world axes; a negative factor mirrors."""
        f = np.asarray(factor, np.float32)
        normals = self.normals / f
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
        flipped = slice(None, None, -1 if np.prod(f) < 0 else 1)
        return replace(
            self, vertices=self.vertices * f, triangles=self.triangles[:, flipped], normals=normals[:, flipped]
        )

    def normalized(self, radius: float) -> Surface:
        """Centred on its bounding box, the farthest vertex at ``radius``."""
        centre = (self.vertices.min(0) + self.vertices.max(0)) / 2
        scale = radius / np.linalg.norm(self.vertices - centre, axis=1).max()
        return self.moved(scale, -centre * scale)

    def joined(self, other: Surface) -> Surface:
        both = zip(vars(self).items(), vars(other).values(), strict=True)
        out = {name: np.concatenate([a, b]) for (name, a), b in both}
        out["triangles"][len(self.triangles) :] += len(self.vertices)
        return Surface(**out)


@njit(fastmath=True, nogil=True)
def face_normals(vertices, triangles):
    """Outward normals, twice the area long."""
    out = np.empty((len(triangles), 3), np.float32)
    for f in range(len(triangles)):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        out[f, 0] = uy * vz - uz * vy
        out[f, 1] = uz * vx - ux * vz
        out[f, 2] = ux * vy - uy * vx
    return out


@njit(fastmath=True, nogil=True)
def crease_normals(vertices, triangles, cosine):
    """Corner normals: the mean over the faces around a vertex that lean less than a crease, by area.

    Args:
        cosine: of the largest angle that is smoothed; above 1 all faces are flat.
    """
    weighted = face_normals(vertices, triangles)
    start = np.zeros(len(vertices) + 1, np.int64)
    for f in range(len(triangles)):
        for k in range(3):
            start[triangles[f, k] + 1] += 1
    start = np.cumsum(start)
    fill = start[:-1].copy()
    around = np.empty(start[-1], np.int64)
    for f in range(len(triangles)):
        for k in range(3):
            around[fill[triangles[f, k]]] = f
            fill[triangles[f, k]] += 1
    unit = weighted.copy()
    for f in range(len(triangles)):
        length = np.sqrt(weighted[f, 0] ** 2 + weighted[f, 1] ** 2 + weighted[f, 2] ** 2) + np.float32(1e-12)
        for c in range(3):
            unit[f, c] /= length
    out = np.empty((len(triangles), 3, 3), np.float32)
    for f in range(len(triangles)):
        for k in range(3):
            x, y, z = weighted[f, 0], weighted[f, 1], weighted[f, 2]
            for i in range(start[triangles[f, k]], start[triangles[f, k] + 1]):
                g = around[i]
                if g != f and unit[f, 0] * unit[g, 0] + unit[f, 1] * unit[g, 1] + unit[f, 2] * unit[g, 2] >= cosine:
                    x, y, z = x + weighted[g, 0], y + weighted[g, 1], z + weighted[g, 2]
            length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-12)
            out[f, k, 0], out[f, k, 1], out[f, k, 2] = x / length, y / length, z / length
    return out


@njit(fastmath=True, nogil=True)
def _project(vertices, viewmat, K):
    """Pixel coordinates and inverse depth of every vertex; 0 for those behind the near plane."""
    out = np.empty((len(vertices), 3), np.float32)
    for i in range(len(vertices)):
        x = (
            viewmat[0, 0] * vertices[i, 0]
            + viewmat[0, 1] * vertices[i, 1]
            + viewmat[0, 2] * vertices[i, 2]
            + viewmat[0, 3]
        )
        y = (
            viewmat[1, 0] * vertices[i, 0]
            + viewmat[1, 1] * vertices[i, 1]
            + viewmat[1, 2] * vertices[i, 2]
            + viewmat[1, 3]
        )
        z = (
            viewmat[2, 0] * vertices[i, 0]
            + viewmat[2, 1] * vertices[i, 1]
            + viewmat[2, 2] * vertices[i, 2]
            + viewmat[2, 3]
        )
        if z < NEAR:
            out[i] = 0
            continue
        out[i, 0] = (K[0, 0] * x + K[0, 1] * y) / z + K[0, 2]
        out[i, 1] = K[1, 1] * y / z + K[1, 2]
        out[i, 2] = 1 / z
    return out


@njit(fastmath=True, nogil=True)
def z_buffer(vertices, triangles, viewmat, K, size):
    """The nearest face at every pixel centre (-1 where there is none), and its perspective-correct weights.

    Args:
        viewmat: world to camera (OpenCV axes).
        K: intrinsics in pixels of ``size``.
        size: pixels per side.

    Returns:
        Faces ``[size, size]`` and the weights of their second and third corner ``[size, size, 2]``. Triangles that
        cross the near plane are left out.
    """
    faces = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 2), np.float32)
    depth = np.zeros((size, size), np.float32)  # inverse depths: 0 is infinitely far
    p = _project(vertices, viewmat, K)
    for f in range(len(triangles)):
        i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay, az = p[i, 0], p[i, 1], p[i, 2]
        bx, by, bz = p[j, 0], p[j, 1], p[j, 2]
        cx, cy, cz = p[k, 0], p[k, 1], p[k, 2]
        if az == 0 or bz == 0 or cz == 0:
            continue
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if abs(area) < 1e-9:
            continue
        x0 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(size - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0 = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(size - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = np.float32(x + 0.5), np.float32(y + 0.5)
                w1 = ((px - ax) * (cy - ay) - (cx - ax) * (py - ay)) / area
                w2 = ((bx - ax) * (py - ay) - (px - ax) * (by - ay)) / area
                w0 = 1 - w1 - w2
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                inverse = w0 * az + w1 * bz + w2 * cz
                if inverse > depth[y, x]:
                    depth[y, x] = inverse
                    faces[y, x] = f
                    weights[y, x, 0] = w1 * bz / inverse
                    weights[y, x, 1] = w2 * cz / inverse
    return faces, weights


@njit(fastmath=True, nogil=True)
def _shade(faces, weights, vertices, triangles, normals, colours, materials, named, eye, light, fine, out):
    """Adds the shaded pixels of a fine buffer to ``out [5, H, W]``, averaged over ``fine x fine``.

    Scalars throughout: small arrays would be allocated for every pixel.
    """
    share = np.float32(1 / (fine * fine))
    flat = face_normals(vertices, triangles)
    for y in range(len(faces)):
        for x in range(len(faces)):
            f = faces[y, x]
            if f < 0:
                continue
            i, j, k = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            w1, w2 = weights[y, x, 0], weights[y, x, 1]
            w0 = 1 - w1 - w2
            nx = w0 * normals[f, 0, 0] + w1 * normals[f, 1, 0] + w2 * normals[f, 2, 0]
            ny = w0 * normals[f, 0, 1] + w1 * normals[f, 1, 1] + w2 * normals[f, 2, 1]
            nz = w0 * normals[f, 0, 2] + w1 * normals[f, 1, 2] + w2 * normals[f, 2, 2]
            ex = eye[0] - (w0 * vertices[i, 0] + w1 * vertices[j, 0] + w2 * vertices[k, 0])
            ey = eye[1] - (w0 * vertices[i, 1] + w1 * vertices[j, 1] + w2 * vertices[k, 1])
            ez = eye[2] - (w0 * vertices[i, 2] + w1 * vertices[j, 2] + w2 * vertices[k, 2])
            length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-9)
            if flat[f, 0] * ex + flat[f, 1] * ey + flat[f, 2] * ez < 0:
                length = -length
            nx, ny, nz = nx / length, ny / length, nz / length
            away = np.sqrt(ex * ex + ey * ey + ez * ez)
            hx, hy, hz = ex / away + light[0], ey / away + light[1], ez / away + light[2]
            halfway = np.sqrt(hx * hx + hy * hy + hz * hz) + np.float32(1e-9)
            kind = materials[f]
            towards = max(nx * light[0] + ny * light[1] + nz * light[2], 0)
            lambert = (AMBIENT + SKY * ny + KEY * towards) * DIM[kind]
            mirrored = max((nx * hx + ny * hy + nz * hz) / halfway, 0)
            highlight = GLOSS[kind] * mirrored ** POWER[kind] if mirrored > 0.5 else 0.0
            row, column = y // fine, x // fine
            for c in range(3):
                out[c, row, column] += share * min(max(colours[f, c] * lambert + highlight, 0), 1)
            out[3, row, column] += share
            out[4, row, column] += share * named[f]


def draw(
    surface: Surface,
    viewmats: Float[np.ndarray, "V 4 4"],
    Ks: Float[np.ndarray, "V 3 3"],
    size: int,
    light: Float[np.ndarray, " 3"],
    fine: int = 2,
) -> Float[np.ndarray, "V 5 size size"]:
    """Premultiplied RGBA in [0, 1], and how much of each pixel shows named faces.

    Args:
        surface: what is drawn.
        viewmats: world to camera (OpenCV axes).
        Ks: intrinsics in pixels of ``size``.
        size: pixels per side.
        light: world direction towards the key light.
        fine: samples per pixel and side.
    """
    light = (light / np.linalg.norm(light)).astype(np.float32)
    out = np.zeros((len(viewmats), 5, size, size), np.float32)
    for view, K, picture in zip(viewmats.astype(np.float32), Ks.astype(np.float32), out, strict=True):
        enlarged = K.copy()
        enlarged[:2] *= fine
        faces, weights = z_buffer(surface.vertices, surface.triangles, view, enlarged, size * fine)
        eye = -view[:3, :3].T @ view[:3, 3]
        _shade(
            faces, weights, surface.vertices, surface.triangles, surface.normals, surface.colours, surface.materials,
            surface.named, eye, light, fine, picture,
        )  # fmt: skip
    return out
