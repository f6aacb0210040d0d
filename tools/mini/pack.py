"""The pack of named low-poly meshes and emoji, in memory: geometry, colours by cluster, pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from skimage.color import rgb2lab

from mini.names import Name, names, read_meshes, read_table
from mini.raster import face_normals

NEAR_COLOURS = 13.0
"""Colours nearer than this (CIE Lab, lightness counting half) are tones of one colour."""
PAINTABLE = 0.4
"""Least share of the surface that "a red NAME" must be able to paint."""
PICTURE = 128
COLUMNS = (
    *("id", "caption", "synonyms", "article", "head", "category", "kit", "licence", "faces"),
    *("has_front", "colours", "quality", "radius", "source"),
)
"""Of a table of meshes."""


@dataclass(frozen=True)
class Mesh:
    """One mesh of the pack.

    Attributes:
        vertices: in the unit ball, +Y up, front to +Z.
        triangles: counter-clockwise seen from outside.
        colours: sRGB by face.
        cluster: by face, which colour it belongs to; 0 is the one with the largest area.
        share: of the area that cluster 0 covers.
    """

    vertices: Float[np.ndarray, "N 3"]
    triangles: Int[np.ndarray, "F 3"]
    colours: Float[np.ndarray, "F 3"]
    cluster: Int[np.ndarray, " F"]
    share: float


def clusters(colours: Float[np.ndarray, "F 3"], areas: Float[np.ndarray, " F"]) -> Int[np.ndarray, " F"]:
    """Faces by colour, the largest area first: each tone joins the largest cluster that is near enough."""
    tones, tone = np.unique(colours, axis=0, return_inverse=True)
    tone = tone.ravel()
    area = np.bincount(tone, areas, len(tones))
    lab = rgb2lab(tones) * (0.5, 1.0, 1.0)
    order = np.argsort(-area, kind="stable")
    centres: list[int] = []
    joined = np.zeros(len(tones), int)
    for i in order:
        gap = [float(np.linalg.norm(lab[i] - lab[c])) for c in centres]
        near = next((k for k, g in enumerate(gap) if g < NEAR_COLOURS), None)
        if near is None:
            centres.append(i)
            near = len(centres) - 1
        joined[i] = near
    total = np.bincount(joined, area)
    rank = np.empty(len(total), int)
    rank[np.argsort(-total, kind="stable")] = np.arange(len(total))
    return rank[joined][tone]


Stored = tuple[Int[np.ndarray, "N 3"], Int[np.ndarray, "F 3"], Int[np.ndarray, "F 3"]]
"""Vertices times 32767, triangles, and colours of the faces in bytes."""


def stored(arrays: Mapping[str, np.ndarray], i: int) -> Stored:
    """A mesh of a file of the pack by its number."""
    (v0, v1), (f0, f1) = arrays["vertex_start"][i : i + 2], arrays["face_start"][i : i + 2]
    return arrays["vertices"][v0:v1], arrays["triangles"][f0:f1], arrays["colours"][f0:f1]


def read_mesh(folder: Path, ident: str) -> Stored:
    """One mesh of a pack, without the others.

    Raises:
        SystemExit: there is none of that id.
    """
    for path in sorted(folder.glob("meshes-*.npz")):
        with np.load(path) as arrays:
            for i in np.flatnonzero(arrays["ids"] == ident):
                return stored(arrays, int(i))
    raise SystemExit(f"{folder}: expected the id of a mesh in its meshes-*.npz, received {ident}.")


class Pack:
    """Everything that the pack's folder holds.

    Args:
        folder: with ``assets.tsv``, ``meshes-*.npz``, ``emoji.tsv`` and ``emoji.zip``.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.rows = {row["id"]: row for row in read_meshes(self.folder)}
        self.pictures = {row["id"]: row for row in read_table(self.folder / "emoji.tsv")}
        self._where: dict[str, tuple[dict[str, np.ndarray], int]] = {}
        for path in sorted(self.folder.glob("meshes-*.npz")):
            arrays = dict(np.load(path))
            self._where |= {str(name): (arrays, i) for i, name in enumerate(arrays["ids"])}
        self._meshes: dict[str, Mesh] = {}

    @property
    def names(self) -> dict[str, Name]:
        return names(self.folder)

    def mesh(self, ident: str) -> Mesh:
        """A mesh by its id; made once."""
        if ident not in self._meshes:
            vertices, triangles, colours = stored(*self._where[ident])
            vertices, triangles = vertices.astype(np.float32) / 32767, triangles.astype(np.int32)
            colours = colours.astype(np.float32) / 255
            areas = np.linalg.norm(face_normals(vertices, triangles), axis=1)
            cluster = clusters(colours, areas)
            share = float(areas[cluster == 0].sum() / areas.sum())
            self._meshes[ident] = Mesh(vertices, triangles, colours, cluster, share)
        return self._meshes[ident]

    @cached_property
    def emoji(self) -> dict[str, Int[np.ndarray, "128 128 4"]]:
        """Straight RGBA by id."""
        with zipfile.ZipFile(self.folder / "emoji.zip") as archive:
            return {
                ident: np.asarray(Image.open(io.BytesIO(archive.read(f"{ident}.webp"))).convert("RGBA"))
                for ident in self.pictures
            }


def write_meshes(path: Path, meshes: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Several (id, vertices, triangles, sRGB by face) as one file of the pack.

    Args:
        path: an npz file.
        meshes: vertices in the unit ball (float) or already times 32767 (int16), colours in [0, 1] or in bytes.
    """
    vertices = [v if v.dtype == np.int16 else np.round(v * 32767).astype(np.int16) for _, v, _, _ in meshes]
    colours = [c if c.dtype == np.uint8 else np.round(c * 255).astype(np.uint8) for *_, c in meshes]
    kind = np.uint32 if max(map(len, vertices)) > 65535 else np.uint16
    np.savez_compressed(
        path,
        ids=np.array([name for name, *_ in meshes]),
        vertex_start=np.cumsum([0, *map(len, vertices)]),
        face_start=np.cumsum([0, *map(len, colours)]),
        vertices=np.concatenate(vertices),
        triangles=np.concatenate([t for _, _, t, _ in meshes]).astype(kind),
        colours=np.concatenate(colours),
    )


def write_table(path: Path, rows: list[dict]) -> None:
    """Rows of a table of the pack: tabs, one header line, no quoting."""
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
