"""A pack of four things and four emoji, for the tests of the embedded models' world."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from mini.pack import Pack, write_meshes, write_table
from mini.raster import Surface, crease_normals
from PIL import Image


def surface(vertices, triangles, colours=None, material=0, cosine=2.0) -> Surface:
    v, t = np.asarray(vertices, np.float32), np.asarray(triangles, np.int32)
    colours = np.full((len(t), 3), 0.5, np.float32) if colours is None else np.asarray(colours, np.float32)
    normals = crease_normals(v, t, np.float32(cosine))
    return Surface(v, t, normals, colours, np.full(len(t), material, np.int8), np.zeros(len(t), np.float32))


def cube() -> Surface:
    """Half a unit wide, wound outwards, every side in a colour of its own."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * 0.35
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return surface(corners, triangles, np.repeat(np.linspace(0.1, 0.9, 18).reshape(6, 3), 2, 0))


def write_pack(folder: Path) -> Pack:
    """A box, a table, a red ball and a tall pillar, and four emoji."""
    s = cube()
    shades = np.array([(0.5, 0.3, 0.2), (0.55, 0.33, 0.22)] * 5 + [(0.1, 0.2, 0.9)] * 2, np.float32)
    meshes, rows = [], []
    for ident, caption, synonyms, category, factor in (
        ("t-box", "wooden thing", "timber thing", "container", (1, 1, 1)),
        ("t-table", "low bench", "sofa stool|couch", "furniture", (1, 0.3, 1)),
        ("t-ball", "round pebble", "spectacles", "nature", (1, 1, 1)),
        ("t-pillar", "stone post", "", "structure", (0.4, 1.2, 0.4)),
    ):
        moved = s.stretched(factor).normalized(1.0)
        meshes.append((ident, moved.vertices, moved.triangles, shades))
        rows.append({"id": ident, "caption": caption, "synonyms": synonyms, "article": "a", "category": category,
                     "colours": "brown,blue", "quality": "1"})  # fmt: skip
    write_meshes(folder / "meshes-t.npz", meshes)
    write_table(folder / "assets.tsv", rows)
    with zipfile.ZipFile(folder / "emoji.zip", "w") as archive:
        emoji = []
        for i, caption in enumerate(("kite", "harp", "drum", "flute")):
            picture = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
            picture.paste((250, 20 * i, 0, 255), (32, 32, 96, 96))
            with archive.open(f"e-{i}.webp", "w") as file:
                picture.save(file, "webp", lossless=True)
            emoji.append({"id": f"e-{i}", "caption": caption, "synonyms": "", "article": "a", "category": "leisure",
                          "colours": "red", "quality": "1"})  # fmt: skip
    write_table(folder / "emoji.tsv", emoji)
    return Pack(folder)
