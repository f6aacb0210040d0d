"""What any mesh or point cloud file holds: parts with places, faces, colours and materials, as engines read them.

All colours are linear here, because that is where they are multiplied.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from psd_gs.colours import srgb_to_linear
from psd_gs.errors import FormatError, PsdGsError
from psd_gs.files import printable
from psd_gs.mesh.picture import Picture, Texture

GREY = tuple(srgb_to_linear(np.full(3, 0.5)).tolist())
"""Linear colour of what has none."""
MAX_ELEMENTS = 20_000_000
"""Vertices and faces of a scene, instances counted as often as they stand there."""
_MAX_CORNERS = 10_000
"""Of a polygon whose ears are clipped; one with more is a fan."""


@dataclass(frozen=True)
class Material:
    """What a surface looks like without light.

    Attributes:
        name: for people.
        color: linear RGBA, which multiplies the rest.
        texture: of the colour.
        emission: linear RGB that is added.
        emission_texture: multiplies the emission.
        cutoff: what is less opaque is not there.
        pictures: all of its textures by what they are for.
    """

    name: str = ""
    color: tuple[float, float, float, float] = (1, 1, 1, 1)
    texture: Texture | None = None
    emission: tuple[float, float, float] = (0, 0, 0)
    emission_texture: Texture | None = None
    cutoff: float = 0
    pictures: Mapping[str, Picture] = field(default_factory=dict)


PLAIN = Material(color=(*GREY, 1))
"""The material of what has neither material nor colours."""


@dataclass(frozen=True)
class Part:
    """Triangles of one material, or points.

    Attributes:
        name: of the node or object.
        positions: where the vertices lie, in the axes of the file.
        faces: corner indices; none in a point cloud.
        material: of all faces.
        colors: linear RGBA of every vertex.
        face_colors: linear RGBA of every face.
        uv: texture coordinates of the corners by their number; the origin is the upper left corner of the picture.
    """

    name: str
    positions: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    material: Material = PLAIN
    colors: Float[np.ndarray, "V 4"] | None = None
    face_colors: Float[np.ndarray, "F 4"] | None = None
    uv: Mapping[int, Float[np.ndarray, "F 3 2"]] = field(default_factory=dict)

    def shade(self, face: Int[np.ndarray, " N"], weights: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 4"]:
        """Linear RGBA at places on faces, which barycentric weights name.

        Raises:
            FormatError: a picture cannot be decoded.
        """
        material = self.material
        rgba = np.tile(np.array(material.color, np.float64), (len(face), 1))
        rgba *= self._look_up(material.texture, face, weights)
        if self.colors is not None:
            rgba *= np.einsum("nk,nkc->nc", weights, self.colors[self.faces[face]])
        if self.face_colors is not None:
            rgba *= self.face_colors[face]
        if any(material.emission):
            rgba[:, :3] += np.array(material.emission) * self._look_up(material.emission_texture, face, weights)[:, :3]
        return np.nan_to_num(rgba).clip(0, 1)

    def _look_up(self, texture: Texture | None, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if texture is None or texture.channel not in self.uv:
            return np.ones((len(face), 4))
        rgba = texture.sample(np.einsum("nk,nkc->nc", weights, self.uv[texture.channel][face]))
        rgba[:, :3] = srgb_to_linear(rgba[:, :3])
        return rgba


@dataclass
class Scene:
    """All parts of a file.

    Attributes:
        parts: without what is not finite.
        notes: what was dropped or ignored, each a phrase.
    """

    parts: list[Part]
    notes: list[str] = field(default_factory=list)

    @property
    def meshes(self) -> list[Part]:
        """The parts that have faces."""
        return [part for part in self.parts if len(part.faces)]

    @property
    def clouds(self) -> list[Part]:
        """The parts that have points alone."""
        return [part for part in self.parts if not len(part.faces)]


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong while ``path`` is parsed as a point cloud or mesh into one of our errors.

    Raises:
        FormatError: a file that its parser stumbles over.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except PsdGsError:
        raise
    # Broken bytes lead parsers, ours and those of libraries, into errors of any kind.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise FormatError(
            f"{path}: expected points or triangles in this {Path(path).suffix[1:].upper()} file, but it cannot be read "
            f"({label(reason.splitlines()[0][:120])}). Copy or export it again."
        ) from error


def label(text: str) -> str:
    """A name out of a file as it may be shown: without control characters, and not endless."""
    return printable(text[:200])


def check_elements(count: int, size: int) -> None:
    """Refuse a scene of more vertices and faces than a file of ``size`` bytes repeats for good reasons."""
    limit = min(MAX_ELEMENTS, 500_000 + 20 * size)
    if count > limit:
        raise ValueError(f"it repeats its parts until they have more than {limit} vertices and faces")


def triangulated(
    corners: Int[np.ndarray, " C"], counts: Int[np.ndarray, " P"], positions: Float[np.ndarray, "V 3"]
) -> tuple[Int[np.ndarray, "T 3"], Int[np.ndarray, " T"]]:
    """Polygons as triangles.

    Convex ones become fans; from one that is not, ears are clipped (Mapbox's earcut). Those of fewer than three
    corners give nothing.

    Args:
        corners: vertices of all polygons, one polygon after the other.
        counts: corners of each polygon.
        positions: of the vertices.

    Returns:
        For each triangle its three entries of ``corners``, and its polygon.
    """
    first = np.cumsum(counts) - counts
    triangles, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for count in np.unique(counts[counts >= 3]):
        polygons = np.flatnonzero(counts == count)
        entries = first[polygons, None] + np.arange(count)
        hollow = ~_convex(positions[corners[entries]]) if count > 3 else np.zeros(len(polygons), bool)
        ears = {i: cut for i in np.flatnonzero(hollow) if (cut := _ears(positions[corners[entries[i]]])) is not None}
        fans = np.delete(np.arange(len(polygons)), list(ears))
        fan = np.stack([np.zeros(count - 2, np.int64), np.arange(1, count - 1), np.arange(2, count)], axis=1)
        triangles += [entries[fans][:, fan].reshape(-1, 3), *(entries[i][cut] for i, cut in ears.items())]
        owners += [np.repeat(polygons[fans], count - 2), *(np.full(len(cut), polygons[i]) for i, cut in ears.items())]
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(triangles)[order], owner[order]


def _convex(polygons: Float[np.ndarray, "P K 3"]) -> Bool[np.ndarray, " P"]:
    """Whether all corners turn the same way, seen along the polygon's normal (Newell)."""
    a, b = polygons - polygons[:, :1], np.roll(polygons, -1, axis=1) - polygons[:, :1]
    normal = np.cross(a, b).sum(1)
    edge = b - a
    turn = np.cross(np.roll(edge, 1, axis=1), edge)
    along = np.einsum("pkd,pd->pk", turn, normal)
    return (along >= -1e-9 * np.abs(along).max(1, keepdims=True)).all(1)


def _ears(polygon: Float[np.ndarray, "K 3"]) -> Int[np.ndarray, "T 3"] | None:
    """Triangles of a polygon that is not convex, oriented as it is; None if it has no area, or too many corners."""
    from mapbox_earcut import triangulate_float64

    a, b = polygon - polygon[0], np.roll(polygon, -1, axis=0) - polygon[0]
    normal = np.cross(a, b).sum(0)
    drop = int(np.abs(normal).argmax())
    if not abs(normal[drop]) > 0 or len(polygon) > _MAX_CORNERS:
        return None
    flat = np.ascontiguousarray(np.delete(a, drop, axis=1))
    ears = triangulate_float64(flat, np.array([len(polygon)], np.uint32)).reshape(-1, 3).astype(np.int64)
    p, q, r = polygon[ears].transpose(1, 0, 2)
    return np.where((np.cross(q - p, r - p) @ normal < 0)[:, None], ears[:, ::-1], ears)


def unit(values: np.ndarray) -> Float[np.ndarray, "N C"]:
    """Colours of any type in [0, 1]: whole numbers count to 255, 65535 or what their type holds, floats to 1 unless
    they are larger. What is not finite has no say in that, and becomes 0 or 1."""
    kind = values.dtype
    largest = float(np.max(values, initial=0, where=np.isfinite(values)))
    if kind == np.uint8:
        limit = 255.0
    elif kind.kind == "f" and not largest > 2:
        limit = 1
    else:
        limit = next((limit for limit in (255.0, 65535.0) if largest <= limit), max(largest, 1))
    return np.nan_to_num(values.astype(np.float64) / limit).clip(0, 1)


def linear_rgba(srgb: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N 4"]:
    """Linear, opaque colours of sRGB ones."""
    return np.concatenate([srgb_to_linear(srgb[:, :3]), np.ones((len(srgb), 1))], axis=1)


def joined(parts: Sequence[Part]) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """Vertices and faces of several parts, in their order."""
    return joined_arrays([(part.positions, part.faces) for part in parts])


def joined_arrays(
    shapes: Sequence[tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]],
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """Vertices and faces of several meshes, in their order."""
    first = np.cumsum([0, *(len(vertices) for vertices, _ in shapes)])
    vertices = np.concatenate([np.zeros((0, 3)), *(vertices for vertices, _ in shapes)])
    faces = [faces + start for (_, faces), start in zip(shapes, first[:-1], strict=True)]
    return vertices, np.concatenate([np.zeros((0, 3), np.int64), *faces])


def kept(part: Part, good: Bool[np.ndarray, " V"]) -> Part:
    """The part without some vertices and the faces that use them."""
    if good.all():
        return part
    faces = good[part.faces].all(1)
    number = np.cumsum(good) - 1
    return Part(
        part.name,
        part.positions[good],
        number[part.faces[faces]],
        part.material,
        None if part.colors is None else part.colors[good],
        None if part.face_colors is None else part.face_colors[faces],
        {channel: uv[faces] for channel, uv in part.uv.items()},
    )
