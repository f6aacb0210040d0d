"""Files of meshes made by hand, with nothing of the package: what a reader is tested on must come from elsewhere."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from psd_gs.mesh.points import read_points

COMPONENT = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KIND = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], "f4")
"""Two by two, facing +z."""
QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "f4")
"""The whole picture, upright."""
QUAD_FACES = np.array([0, 1, 2, 0, 2, 3], "u2")
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 30)


def quadrants(size: int = 64) -> Image.Image:
    """Red and green above blue and yellow."""
    pixels = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:] = RED, GREEN, BLUE, YELLOW
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def container(document: dict[str, Any], blob: bytes) -> bytes:
    """A binary glTF."""
    blob += bytes(-len(blob) % 4)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


class Glb:
    """A document of glTF that grows with its buffer."""

    def __init__(self, **document: Any) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "accessors": [],
            "bufferViews": [],
            **document,
        }
        self.blob = bytearray()

    def view(self, data: bytes, **more: Any) -> int:
        self.blob += bytes(-len(self.blob) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data), **more}
        )
        self.blob += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, array: np.ndarray, **more: Any) -> int:
        table = np.ascontiguousarray(array).reshape(len(array), -1)
        about = {
            "bufferView": self.view(table.tobytes()),
            "componentType": COMPONENT[table.dtype.str[1:]],
            "count": len(table),
            "type": KIND[table.shape[1]],
        }
        self.document["accessors"].append({**about, **more})
        return len(self.document["accessors"]) - 1

    def primitive(self, indices: np.ndarray | None = QUAD_FACES, **attributes: Any) -> dict[str, Any]:
        """A primitive; an attribute is an array, or an array and what its accessor says besides."""
        places = {
            name: self.accessor(value[0], **value[1]) if isinstance(value, tuple) else self.accessor(value)
            for name, value in attributes.items()
        }
        return {"attributes": places, **({} if indices is None else {"indices": self.accessor(indices)})}

    def texture(self, image: bytes, mime: str = "image/png", **sampler: int) -> dict[str, Any]:
        """A texture of its own; returns what refers to it."""
        lists = {name: self.document.setdefault(name, []) for name in ("images", "samplers", "textures")}
        lists["images"].append({"mimeType": mime, "bufferView": self.view(image)})
        lists["samplers"].append(sampler)
        lists["textures"].append({"source": len(lists["images"]) - 1, "sampler": len(lists["samplers"]) - 1})
        return {"index": len(lists["textures"]) - 1}

    def save(self, path: Path) -> Path:
        self.blob += bytes(-len(self.blob) % 4)
        document = {**self.document, "buffers": self.document.get("buffers", [{"byteLength": len(self.blob)}])}
        if path.suffix == ".gltf":
            path.write_text(json.dumps(document))
            return path
        path.write_bytes(container(document, bytes(self.blob)))
        return path


def quad_glb(path: Path, material: dict[str, Any] | None = None, glb: Glb | None = None, **attributes: Any) -> Path:
    """The quad with a material in one file."""
    glb = glb or Glb()
    primitive = glb.primitive(**{"POSITION": QUAD, "TEXCOORD_0": QUAD_UV, **attributes})
    if material is not None:
        glb.document["materials"] = [material]
        primitive["material"] = 0
    glb.document["meshes"] = [{"primitives": [primitive]}]
    return glb.save(path)


def sampled(path: Path, n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Points in the ball and their sRGB colours, 0 to 255."""
    points, rgb = read_points(path, n, torch.Generator().manual_seed(0))
    return points.numpy().astype(float), rgb.numpy() * 255


def assert_quadrants(path: Path, order: tuple = (RED, GREEN, BLUE, YELLOW), tolerance: float = 4) -> None:
    """The quad shows four colours: above on the left and the right, below on the left and the right."""
    points, rgb = sampled(path)
    x, y = points[:, 0], points[:, 1]
    half = np.abs(points).max()
    inner = (np.minimum(np.abs(x), np.abs(y)) > 0.08 * half) & (np.maximum(np.abs(x), np.abs(y)) < 0.92 * half)
    expected = np.array(order)[2 * (y < 0) + (x > 0)]
    assert inner.mean() > 0.6
    np.testing.assert_allclose(rgb[inner], expected[inner], atol=tolerance)


def assert_color(path: Path, color: tuple[float, float, float], tolerance: float = 1) -> None:
    """One colour everywhere."""
    _, rgb = sampled(path, 300)
    np.testing.assert_allclose(rgb, np.broadcast_to(color, rgb.shape), atol=tolerance)


def srgb(linear: float) -> float:
    """IEC 61966-2-1, 0 to 255."""
    return 255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)
