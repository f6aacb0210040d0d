"""Meshes for tests of retexturing, written by hand: a skinned and animated one in glTF, and OBJ."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLUE = (30, 60, 200)


def tube(rows: int = 6, columns: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An open tube around +Y with a seam: vertices, triangles that look outside, texture coordinates."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    angle = 2 * np.pi * u
    vertices = np.stack([0.4 * np.sin(angle), 2 * v, 0.4 * np.cos(angle)], axis=-1).reshape(-1, 3)
    at = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    uv = np.stack([0.02 + 0.96 * u, 0.98 - 0.96 * v], axis=-1).reshape(-1, 2)
    return vertices, faces, uv


def box(size: float, centre: tuple[float, float, float] = (0, 0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of a cube."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * size / 2 + centre
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class Writer:
    """A glTF as it grows; ``document`` may be changed before :meth:`glb` or :meth:`gltf`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "extras": {"owner": "somebody"}},
            "accessors": [],
            "bufferViews": [],
            "meshes": [],
            "nodes": [],
            "materials": [],
        }

    def view(self, data: bytes, **more: Any) -> int:
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        )
        self.data += data + bytes(-len(data) % 4)
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, kind: str, dtype: str = "<f4", target: int | None = 34962) -> int:
        codes = {"<f4": 5126, "<u2": 5123, "u1": 5121}
        table = np.ascontiguousarray(values, dtype)
        more = {} if target is None else {"target": target}
        about = {"bufferView": self.view(table.tobytes(), **more), "componentType": codes[dtype]}
        about |= {"count": len(table), "type": kind}
        if kind in ("VEC3", "SCALAR") and dtype == "<f4":
            flat = table.reshape(len(table), -1)
            about |= {"min": flat.min(0).tolist(), "max": flat.max(0).tolist()}
        self.document["accessors"].append(about)
        return len(self.document["accessors"]) - 1

    def primitive(self, vertices, faces, material: int | None, **attributes: int) -> dict[str, Any]:
        named = {"POSITION": self.accessor(vertices, "VEC3"), **attributes}
        indices = self.accessor(np.asarray(faces).reshape(-1), "SCALAR", "<u2", 34963)
        return {"attributes": named, "indices": indices} | ({} if material is None else {"material": material})

    def texture(self, image: np.ndarray) -> int:
        images, textures = (self.document.setdefault(name, []) for name in ("images", "textures"))
        images.append({"mimeType": "image/png", "bufferView": self.view(png(image))})
        textures.append({"source": len(images) - 1})
        return len(textures) - 1

    def glb(self, path: Path) -> Path:
        document = self.document | {"buffers": [{"byteLength": len(self.data)}]}
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text
        body += struct.pack("<I4s", len(self.data), b"BIN\0") + self.data
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path

    def gltf(self, path: Path) -> Path:
        path.with_suffix(".bin").write_bytes(self.data)
        buffers = [{"byteLength": len(self.data), "uri": path.with_suffix(".bin").name}]
        path.write_text(json.dumps(self.document | {"buffers": buffers}))
        return path


def arm(*, uv: bool = True) -> Writer:
    """A tube that bends at its middle, with a texture or none, and a plain box of another material beside it."""
    out = Writer()
    vertices, faces, coordinates = tube()
    upper = np.clip(vertices[:, 1] - 0.5, 0, 1)
    attributes = {
        "JOINTS_0": out.accessor(np.eye(4)[1] * (upper > 0)[:, None], "VEC4", "u1"),
        "WEIGHTS_0": out.accessor(np.stack([1 - upper, upper, 0 * upper, 0 * upper], 1), "VEC4"),
    }
    skin: dict[str, Any] = {"name": "skin", "pbrMetallicRoughness": {"metallicFactor": 0.25}, "extras": {"kept": 1}}
    if uv:
        attributes["TEXCOORD_0"] = out.accessor(coordinates, "VEC2")
        image = np.full((64, 64, 3), BLUE, np.uint8)
        image[::2, ::2] = (40, 80, 220)
        skin["pbrMetallicRoughness"]["baseColorTexture"] = {"index": out.texture(image)}
        skin["occlusionTexture"] = {"index": out.texture(np.full((4, 4, 3), 200, np.uint8))}
    plain = {"name": "plain", "pbrMetallicRoughness": {"baseColorFactor": [0.1, 0.6, 0.1, 1]}}
    out.document["materials"] = [skin, plain]
    beside = out.primitive(*box(0.4, (0.9, 0.2, 0)), 1)
    out.document["meshes"] = [
        {"name": "arm", "primitives": [out.primitive(vertices, faces, 0, **attributes)]},
        {"name": "box", "primitives": [beside]},
    ]
    inverse = np.tile(np.eye(4), (2, 1, 1))
    inverse[1, 3, 1] = -1  # column-major: the joint lies at y = 1
    turn = np.array([[0, 0, 0, 1], [0, 0, np.sin(0.5), np.cos(0.5)], [0, 0, 0, 1]])
    times = out.accessor(np.array([0, 0.5, 1.0]), "SCALAR", target=None)
    turns = out.accessor(turn, "VEC4", target=None)
    out.document |= {
        "scene": 0,
        "scenes": [{"nodes": [0, 1, 3], "extras": {"where": "here"}}],
        "nodes": [
            {"name": "arm", "mesh": 0, "skin": 0},
            {"name": "root", "children": [2]},
            {"name": "elbow", "translation": [0, 1, 0]},
            {"name": "box", "mesh": 1, "extras": {"tag": [1, 2]}},
        ],
        "skins": [{"joints": [1, 2], "inverseBindMatrices": out.accessor(inverse, "MAT4", target=None)}],
        "animations": [
            {
                "name": "wave",
                "samplers": [{"input": times, "output": turns}],
                "channels": [{"sampler": 0, "target": {"node": 2, "path": "rotation"}}],
            }
        ],
    }
    return out


OBJ = """# by hand\r
mtllib thing.mtl
o left
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
vt 0 0
vt 0.45 0
vt 0.45 1
vt 0 1
vt 0.55 0
vt 1 0
vt 1 1
vt 0.55 1
usemtl painted
f 4/4 3/3 2/2 1/1
f 5/5 6/6 7/7 8/8
usemtl plain
f 1 2 6 5
f -5 -6 -2 -1
"""

MTL = """newmtl painted
Ka 0.2 0.2 0.2
Kd 0.5 0.5 0.5
map_Kd colours.png
bump bumps.png
newmtl plain
Kd 0.8 0.1 0.1
"""


def write_obj(folder: Path, text: str = OBJ, library: str = MTL) -> Path:
    (folder / "thing.obj").write_bytes(text.encode())
    (folder / "thing.mtl").write_text(library)
    (folder / "colours.png").write_bytes(png(np.full((16, 16, 3), (200, 200, 40), np.uint8)))
    (folder / "bumps.png").write_bytes(png(np.full((4, 4, 3), 99, np.uint8)))
    return folder / "thing.obj"
