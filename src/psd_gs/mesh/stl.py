"""STL as a scene: the shape, and colours where a dialect of the binary form has them."""

from __future__ import annotations

import itertools
import os
import re

import numpy as np

from psd_gs.export.blocks import read_bytes
from psd_gs.mesh.scene import PLAIN, Material, Part, Scene, linear_rgba

_HEAD = 84
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("color", "<u2")])


def read_stl_scene(path: str | os.PathLike[str]) -> Scene:
    """Triangles with corners of their own.

    Raises:
        InputError: the file cannot be opened.
        ValueError: it is truncated or no STL.
    """
    data = read_bytes(path)
    count = int.from_bytes(data[80:_HEAD], "little") if len(data) >= _HEAD else 0
    length = _HEAD + count * _FACET.itemsize
    text = data[:512].lstrip()[:5].lower() == b"solid"
    # many a binary file begins with "solid" too: then its length tells
    if len(data) >= _HEAD and (length == len(data) or (not text and length < len(data))):
        facets = np.frombuffer(data, _FACET, count, _HEAD)
        notes = [f"{len(data) - length} bytes behind the last triangle are ignored"] if length < len(data) else []
        return Scene([_part(facets["corners"], _colors(data[:80], facets["color"]))], notes)
    if not text:
        raise ValueError(f"it is truncated: {len(data)} bytes, {length} promised")
    rows = re.findall(rb"(?i)\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
    if not rows or len(rows) % 3:
        raise ValueError(f"it is truncated: {len(rows)} corners are no triangles")
    return Scene([_part(np.fromiter(map(float, itertools.chain(*rows)), np.float64), None)])


def _part(corners: np.ndarray, colors: np.ndarray | None) -> Part:
    positions = np.asarray(corners, np.float64).reshape(-1, 3)
    faces = np.arange(len(positions)).reshape(-1, 3)
    return Part("stl", positions, faces, PLAIN if colors is None else Material(), None, colors)


def _colors(head: bytes, stored: np.ndarray) -> np.ndarray | None:
    """Linear RGBA of every facet; None if there are none.

    Magics writes COLOR=RGBA into the head, and MATERIAL= with the diffuse colour that goes before it; a facet whose
    highest bit is 0 has its own, blue in the next five bits. VisCAM and SolidView write red there, and a highest bit
    of 1.
    """
    whole = re.search(rb"MATERIAL=(.{3})", head, re.DOTALL) or re.search(rb"COLOR=(.{3})", head, re.DOTALL)
    own = (stored >> 15) == (0 if whole else 1)
    if whole is None and not own.any():
        return None
    shifts = (0, 5, 10) if whole else (10, 5, 0)
    srgb = np.stack([(stored >> shift) & 31 for shift in shifts], axis=1) / 31
    srgb[~own] = np.frombuffer(whole[1], np.uint8) / 255 if whole else 0.5
    return linear_rgba(srgb)
