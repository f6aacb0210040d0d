"""Parts of a mesh file as one mesh of the pack: flat colours by face, nothing twice, in the unit ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Int16, UInt8

from mini.raster import face_normals, z_buffer
from psd_gs.cameras import orbit
from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.mesh.scene import Part
from psd_gs.mesh.surface import select_faces

UNIT = 32767
"""A whole number of the pack for a length of 1."""
SPREAD = 26
"""A face whose texels differ by more than this (of 255, in any channel) is divided."""
FINEST = 0.07
"""No edge shorter than this share of the radius is divided."""
LEVELS = 4
OPAQUE = 110 / 255
"""Mean opacity from which on a face of a cut-out texture is there."""
VIEWS = ((0, 15), (90, 15), (180, 15), (270, 15), (45, 45))
"""Azimuths and elevations from which colours are weighed."""
_SIZE, _FOV = 48, 30.0


@dataclass(frozen=True)
class FlatMesh:
    """A mesh of the pack.

    Attributes:
        vertices: in the unit ball, times ``UNIT``; the bounding box is centred on the origin.
        triangles: of vertices.
        colours: sRGB by face.
        radius: of the ball in the units of the file.
    """

    vertices: Int16[np.ndarray, "V 3"]
    triangles: Int[np.ndarray, "F 3"]
    colours: UInt8[np.ndarray, "F 3"]
    radius: float

    @property
    def areas(self) -> Float[np.ndarray, " F"]:
        """Of the faces, up to a common factor."""
        return np.linalg.norm(face_normals(self.vertices.astype(np.float32) / UNIT, self.triangles), axis=1)

    def turned(self, turn: int, pitch: int) -> FlatMesh:
        """By quarters: first ``pitch`` degrees about +X (90 takes +Y to +Z), then ``turn`` about +Y (+Z to +X)."""
        v = self.vertices
        for _ in range(pitch // 90 % 4):
            v = np.stack([v[:, 0], -v[:, 2], v[:, 1]], axis=1)
        for _ in range(turn // 90 % 4):
            v = np.stack([v[:, 2], v[:, 1], -v[:, 0]], axis=1)
        return replace(self, vertices=v)

    def brightened(self, gain: float) -> FlatMesh:
        """With more of the linear light."""
        return replace(self, colours=_bytes(srgb_to_linear(self.colours / 255) * gain))

    def seen(self) -> Float[np.ndarray, " F"]:
        """Pixels that each face fills in all of ``VIEWS``; the areas if there are none."""
        azimuth, elevation = torch.tensor(VIEWS, dtype=torch.float32).T
        fov = torch.full_like(azimuth, _FOV)
        cameras = orbit(azimuth, elevation, 1.02 / torch.sin(torch.deg2rad(fov / 2)), fov, _SIZE, _SIZE)
        vertices, triangles = self.vertices.astype(np.float32) / UNIT, self.triangles.astype(np.int32)
        pixels = np.zeros(len(triangles))
        for view, K in zip(cameras.viewmats.numpy(), cameras.Ks.numpy(), strict=True):
            faces, _ = z_buffer(vertices, triangles, view, K, _SIZE)
            pixels += np.bincount(faces[faces >= 0], minlength=len(triangles))
        return pixels if pixels.any() else self.areas


def flat_mesh(parts: Sequence[Part]) -> FlatMesh:
    """One mesh of all parts.

    Raises:
        ValueError: nothing is left of them.
    """
    _, radius = _ball(np.concatenate([part.positions[part.faces].reshape(-1, 3) for part in parts]))
    pieces = [painted(part, FINEST * radius) for part in parts]
    corners, colours = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    centre, radius = _ball(corners.reshape(-1, 3))  # anew: holes of a texture may have taken the rim away
    places = np.round((corners.reshape(-1, 3) - centre) / radius * UNIT).astype(np.int16)
    vertices, triangles = np.unique(places, axis=0, return_inverse=True)
    triangles = triangles.reshape(-1, 3)
    keep = _single(vertices, triangles, colours)
    return FlatMesh(*select_faces(vertices, triangles[keep], np.ones(len(keep), bool)), colours[keep], radius)


def painted(part: Part, finest: float) -> tuple[Float[np.ndarray, "F 3 3"], UInt8[np.ndarray, "F 3"]]:
    """Corners and sRGB of flat-coloured triangles.

    A triangle with a texture is split in four where the texels under it differ, unless its edges are as short as
    ``finest``.
    """
    material, corners = part.material, part.positions[part.faces]
    texture = material.texture
    if texture is None or texture.channel not in part.uv:
        centre = np.full((len(corners), 3), 1 / 3)
        return corners, _bytes(part.shade(np.arange(len(corners)), centre)[:, :3])
    # an opaque material says nothing by its alpha, and glass is drawn as if it were opaque
    look = replace(material, color=(*material.color[:3], 1.0), texture=replace(texture, nearest=True))
    part, solid = replace(part, material=look), not material.cutoff
    face = np.arange(len(corners))
    inside = np.tile(np.eye(3), (len(face), 1, 1))  # barycentric corners of the pieces within their faces
    out_corners, out_colours = [], []
    for level in range(LEVELS + 1):
        weights = _GRID @ inside
        rgba = part.shade(np.repeat(face, len(_GRID)), weights.reshape(-1, 3)).reshape(*weights.shape[:2], 4)
        texels, alpha = _bytes(rgba[..., :3]), np.ones(weights.shape[:2]) if solid else rgba[..., 3]
        places = inside @ corners[face]
        spread = np.maximum(np.ptp(texels.astype(int), axis=1).max(1), 255 * np.ptp(alpha, axis=1))
        edge = np.linalg.norm(places - np.roll(places, 1, axis=1), axis=-1).max(1)
        split = (spread > SPREAD) & (edge > finest) & (level < LEVELS)
        mean = (texels * (alpha + 1e-6)[..., None]).sum(1) / (alpha + 1e-6).sum(1)[:, None]
        # what is all but one colour keeps exactly that colour
        colour = np.where((spread <= SPREAD)[:, None], np.median(texels, axis=1), np.round(mean)).astype(np.uint8)
        keep = ~split & (alpha.mean(1) >= OPAQUE)
        out_corners.append(places[keep])
        out_colours.append(colour[keep])
        face, inside = np.repeat(face[split], 4), (_QUARTERS @ inside[split][:, None]).reshape(-1, 3, 3)
    return np.concatenate(out_corners), np.concatenate(out_colours)


def _grid(n: int) -> Float[np.ndarray, "N 3"]:
    """Barycentric centres of the n * n equal parts of a triangle."""
    upright = [((i + 1 / 3) / n, (j + 1 / 3) / n) for i in range(n) for j in range(n - i)]
    turned = [((i + 2 / 3) / n, (j + 2 / 3) / n) for i in range(n) for j in range(n - i - 1)]
    at = np.array(upright + turned)
    return np.column_stack([at, 1 - at.sum(1)])


_GRID = _grid(4)
_QUARTERS = np.array(
    [[[2, 0, 0], [1, 1, 0], [1, 0, 1]], [[1, 1, 0], [0, 2, 0], [0, 1, 1]],
     [[1, 0, 1], [0, 1, 1], [0, 0, 2]], [[1, 1, 0], [0, 1, 1], [1, 0, 1]]]
) / 2  # fmt: skip
"""Barycentric corners of the four quarters of a triangle."""


def _single(
    vertices: Int16[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"], colours: UInt8[np.ndarray, "F 3"]
) -> Int[np.ndarray, " K"]:
    """Which faces have an area and lie on corners of their own.

    Some files hold a part twice, in its own colour and in that of the rest. Of several faces on the same corners the
    one stays whose colour the single faces show least.
    """
    ordered = np.sort(triangles, axis=1)
    tone = np.unique(colours, axis=0, return_inverse=True)[1].ravel()
    first = np.unique(np.column_stack([ordered, tone]), axis=0, return_index=True)[1]
    first = first[(np.diff(ordered[first], axis=1) > 0).all(1)]
    if not len(first):
        raise ValueError("nothing but lines and points")
    _, group, count = np.unique(ordered[first], axis=0, return_inverse=True, return_counts=True)
    group, tone = group.ravel(), tone[first]
    area = np.linalg.norm(face_normals(vertices.astype(np.float32) / UNIT, triangles[first]), axis=1)
    shown = np.bincount(tone, area * (count[group] == 1))
    order = np.lexsort((-first, shown[tone], group))
    return np.sort(first[order[np.unique(group[order], return_index=True)[1]]])


def _ball(points: Float[np.ndarray, "N 3"]) -> tuple[Float[np.ndarray, " 3"], float]:
    """Centre of the bounding box, and the distance of the farthest point from it."""
    if not len(points):
        raise ValueError("no faces")
    centre = (points.min(0) + points.max(0)) / 2
    radius = float(np.linalg.norm(points - centre, axis=1).max())
    if not radius > 0:
        raise ValueError("no extent")
    return centre, radius


def _bytes(values: Float[np.ndarray, "*B"]) -> UInt8[np.ndarray, "*B"]:
    """Linear values as sRGB bytes."""
    return np.round(linear_to_srgb(values) * 255).astype(np.uint8)
