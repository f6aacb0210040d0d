"""Wavefront OBJ and its material libraries as a scene (Wavefront's appendices B1 and "MTL material format")."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from psd_gs.colours import srgb_to_linear
from psd_gs.export.blocks import read_bytes
from psd_gs.export.siblings import read_sibling
from psd_gs.mesh.picture import Picture, Texture, Wrap
from psd_gs.mesh.scene import PLAIN, Material, Part, Scene, label, linear_rgba, triangulated, unit

MAX_LIBRARY = 1 << 24
MAX_PICTURE = 1 << 28
_INVISIBLE = 0.05
"""Surfaces that are less opaque than this are left out."""
_OPTIONS = {
    **dict.fromkeys(("-blendu", "-blendv", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type", "-bm"), (1, 1)),
    **{"-mm": (2, 2), "-o": (1, 3), "-s": (1, 3), "-t": (1, 3)},
}
"""Fewest and most values of the options before a texture's name."""


@dataclass
class Faces:
    """Polygons of one object and material as they are found: their lines, and how many vertices and texture
    coordinates there were by then."""

    rows: list[str] = field(default_factory=list)
    vertices: list[int] = field(default_factory=list)
    texels: list[int] = field(default_factory=list)


def read_obj_scene(path: str | os.PathLike[str]) -> Scene:
    """A part for every object and material; the vertices alone if there are no faces.

    Raises:
        FormatError: a library or picture out of the folder.
        InputError: the file cannot be opened.
        ValueError: the file is unsound.
    """
    path = Path(path)
    vertices: list[str] = []
    texels: list[str] = []
    paint: list[str] = []
    libraries: list[str] = []
    groups: dict[tuple[str, str], Faces] = {}
    notes: list[str] = []
    thing = group = material = ""
    faces: Faces | None = None
    lines = False
    for line in _lines(read_bytes(path)):
        key, _, rest = line.partition(" ")
        match key:
            case "v":
                vertices.append(rest)
            case "vt":
                texels.append(rest)
            case "f" | "fo":
                if faces is None:
                    faces = groups.setdefault((thing or group, material), Faces())
                faces.rows.append(rest)
                faces.vertices.append(len(vertices))
                faces.texels.append(len(texels))
            case "o" | "g" | "usemtl":
                faces = None
                name = rest.strip()
                thing, group = (name, "") if key == "o" else (thing, name if key == "g" else group)
                material = name if key == "usemtl" else material
            case "mtllib":
                libraries.append(rest.strip())
            case "#MRGB":  # ZBrush's painting: mask, red, green and blue of the vertices before
                paint.append(rest.strip())
            case "l" | "curv" | "curv2" | "surf":
                lines = True
    if lines:
        notes.append("lines and curves are ignored")
    positions, colors = vertices_of(vertices, "".join(paint))
    materials = _materials(path, libraries, notes) if groups else {}
    uv = _texels(texels)
    if not groups:
        return Scene([Part("obj", positions, np.zeros((0, 3), np.int64), _plain(colors), colors)], notes)
    for name in sorted({name for _, name in groups} - set(materials) - {""}):
        notes.append(f"the material {label(name)} is in no library beside it: ignored")
    parts = [
        _part(name or "obj", found, positions, colors, uv, materials.get(used, _plain(colors)), notes)
        for (name, used), found in groups.items()
    ]
    return Scene([part for part in parts if len(part.faces)], notes)


def _lines(data: bytes) -> Iterator[str]:
    """Lines of text without those that are empty; a backslash at the end joins it with the next one."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ")
    for line in text.split("\n"):
        line = line.replace("\t", " ").strip()
        if line:
            yield line


def _numbers(text: str) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " R"]]:
    """All numbers of lines of text, and how many each line has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of text that is no number: then they are too few
        values = np.fromstring(text, np.float64, sep=" ")
    begins, counts = _words(text)
    if len(values) != begins.sum():
        raise ValueError("numbers that are none")
    return values, counts


def _words(text: str) -> tuple[Bool[np.ndarray, " B"], Int[np.ndarray, " R"]]:
    """Where words begin, and how many each line has."""
    letters = np.frombuffer(text.encode(), np.uint8)
    gap = letters <= ord(" ")
    begins = ~gap & np.concatenate([[True], gap[:-1]])
    line = np.cumsum(letters == ord("\n"))
    return begins, np.bincount(line[begins], minlength=int(line[-1]) + 1 if len(line) else 1)


def _joined(rows: list[str]) -> str:
    """Lines of text, without comments."""
    text = "\n".join(rows)
    return re.sub("#[^\n]*", "", text) if "#" in text else text


def corners_of(found: Faces) -> tuple[Int[np.ndarray, "C 2"], Int[np.ndarray, " P"]]:
    """Vertex and texture coordinate of every corner, counted from 0, and how many corners each polygon has; below 0
    stands what is left out or was not there by then."""
    text = _joined(found.rows)
    if "/" in text:
        text = re.sub(r"/(?=/|\s|$)", "/0", text)
    begins, counts = _words(text)
    slashes = np.frombuffer(text.encode(), np.uint8) == ord("/")
    more = np.bincount(np.cumsum(begins)[slashes] - 1, minlength=int(begins.sum()))
    values, _ = _numbers(text.replace("/", " "))
    if len(values) != len(more) + more.sum():
        raise ValueError("corners that are none")
    first = np.cumsum(more + 1) - more - 1
    second = np.where(more > 0, values[np.minimum(first + 1, len(values) - 1)], 0)
    pairs = np.stack([values[first], second], axis=1).astype(np.int64)
    seen = np.repeat(np.array([found.vertices, found.texels]).T, counts, axis=0)
    return np.where(pairs < 0, seen + pairs, pairs - 1), counts


def vertices_of(rows: list[str], paint: str) -> tuple[Float[np.ndarray, "V 3"], Float[np.ndarray, "V 4"] | None]:
    """Places, and linear colours where six numbers or ZBrush's painting give them."""
    if not rows:
        return np.zeros((0, 3)), None
    values, counts = _numbers(_joined(rows))
    if counts.min() < 3:
        raise ValueError("a vertex of fewer than three numbers")
    first = np.cumsum(counts) - counts
    positions = values[first[:, None] + np.arange(3)]
    if paint and len(paint) >= 8 * len(rows):
        painted = np.frombuffer(bytes.fromhex(paint[: 8 * len(rows)]), np.uint8).reshape(-1, 4)
        return positions, linear_rgba(painted[:, 1:] / 255)
    colored = counts >= 6
    if not colored.any():
        return positions, None
    colors = np.tile(np.array(PLAIN.color), (len(rows), 1))
    colors[colored] = linear_rgba(unit(values[first[colored, None] + np.arange(3, 6)]))
    return positions, colors


def _texels(rows: list[str]) -> Float[np.ndarray, "T 2"]:
    """Texture coordinates as they stand there: v goes up, and is 0 where it is left out."""
    if not rows:
        return np.zeros((0, 2))
    values, counts = _numbers(_joined(rows))
    if counts.min() < 1:
        raise ValueError("texture coordinates without numbers")
    first = np.cumsum(counts) - counts
    second = np.where(counts > 1, values[np.minimum(first + 1, len(values) - 1)], 0)
    return np.stack([values[first], second], axis=1)


def _plain(colors: np.ndarray | None) -> Material:
    return PLAIN if colors is None else Material()


def _part(
    name: str,
    found: Faces,
    positions: Float[np.ndarray, "V 3"],
    colors: Float[np.ndarray, "V 4"] | None,
    texels: Float[np.ndarray, "T 2"],
    material: Material,
    notes: list[str],
) -> Part:
    """The triangles of an object and material, with only the vertices that they use."""
    corners, counts = corners_of(found)
    vertex, texel = corners.T
    if len(corners) and not (0 <= vertex.min() <= vertex.max() < len(positions) and texel.max() < len(texels)):
        raise ValueError(f"a face has a corner that is none of {len(positions)} vertices")
    entries, _ = triangulated(vertex, counts, positions)
    used, faces = np.unique(vertex[entries], return_inverse=True)
    uv = {}
    if material.texture is not None or material.emission_texture is not None:
        if (texel >= 0).all():
            uv = {0: texels[texel[entries]]}
        else:
            notes.append(f"a texture of {material.name} is ignored: its coordinates are missing")
    chosen = None if colors is None else colors[used]
    return Part(label(name), positions[used], faces.reshape(-1, 3), material, chosen, None, uv)


def _materials(path: Path, libraries: list[str], notes: list[str]) -> dict[str, Material]:
    """The materials of all libraries by name; the first of a name counts."""
    found: dict[str, Material] = {}
    for line in libraries:
        # one name with spaces, or several names
        for names in ([line], line.split()):
            try:
                texts = [read_sibling(path, name, MAX_LIBRARY) for name in names]
            except FileNotFoundError:
                continue
            for text in texts:
                for material in _library(path, text, notes):
                    found.setdefault(material[0], material[1])
            break
        else:
            notes.append(f"the library {label(line)} is not beside it: ignored")
    return found


def _library(path: Path, text: bytes, notes: list[str]) -> Iterator[tuple[str, Material]]:
    """The materials of a library with their names.

    The diffuse colour multiplies its texture, as the format says; only black does not, which several exporters write
    beside every texture.
    """
    pictures: dict[str, Picture | None] = {}
    name: str | None = None
    material = Material()
    solid: float | None = None
    for line in [*_lines(text), "newmtl"]:
        key, _, rest = line.partition(" ")
        key, words = key.lower(), rest.split()
        if key == "newmtl":
            if name is not None:
                if material.texture is not None and not any(material.color[:3]):
                    material = replace(material, color=(1, 1, 1, material.color[3]))
                if material.emission_texture is not None and not any(material.emission):
                    material = replace(material, emission=(1, 1, 1))
                yield name, material
            name, material, solid = rest.strip(), Material(label(rest.strip()), cutoff=_INVISIBLE), None
        elif key in ("kd", "ke"):
            rgb = _rgb(words)
            if rgb is not None and key == "kd":
                material = replace(material, color=(*rgb, material.color[3]))
            elif rgb is not None:
                material = replace(material, emission=rgb)
        elif key == "d" or (key == "tr" and solid is None):
            value = float(words[-1])
            solid = value if key == "d" else None
            material = replace(material, color=(*material.color[:3], value if key == "d" else 1 - value))
        elif key in ("map_kd", "map_ke"):
            texture = _texture(path, rest, pictures, notes)
            if texture is not None and key == "map_kd":
                material = replace(material, texture=texture, pictures={**material.pictures, "color": texture.picture})
            elif texture is not None:
                more = {**material.pictures, "emissive": texture.picture}
                material = replace(material, emission_texture=texture, pictures=more)
        elif key == "map_d":
            notes.append(f"the opacity map of {label(name or '')} is ignored")


def _rgb(words: list[str]) -> tuple[float, float, float] | None:
    """Linear RGB; None if it is given as a spectrum or in CIE coordinates."""
    if not words or words[0] in ("spectral", "xyz"):
        return None
    values = np.array((words * 3)[:3] if len(words) < 3 else words[:3], np.float64)
    r, g, b = srgb_to_linear(np.nan_to_num(values)).tolist()
    return r, g, b


def texture_line(rest: str) -> tuple[list[tuple[str, list[str]]], str]:
    """Options with their values, and the name of a texture, which may have spaces; empty if there is none."""
    options = []
    words = rest.split()
    while words and words[0].lower() in _OPTIONS:
        option = words.pop(0).lower()
        fewest, most = _OPTIONS[option]
        count = fewest
        while count < min(most, len(words)) and re.fullmatch(r"[+-]?\d*\.?\d+([eE][+-]?\d+)?", words[count]):
            count += 1
        options.append((option, words[:count]))
        words = words[count:]
    if not words:
        return options, ""
    return options, rest[[word.start() for word in re.finditer(r"\S+", rest)][-len(words)] :].strip().strip('"')


def _texture(path: Path, rest: str, pictures: dict[str, Picture | None], notes: list[str]) -> Texture | None:
    """The texture of a line, see :func:`texture_line`."""
    scale, offset = [1.0, 1.0], [0.0, 0.0]
    wrap: Wrap = "repeat"
    options, name = texture_line(rest)
    for option, values in options:
        if option in ("-s", "-o"):
            target = scale if option == "-s" else offset
            target[: min(2, len(values))] = [float(value) for value in values[:2]]
        elif option == "-clamp" and values[0].lower() == "on":
            wrap = "clamp"
    if not name:
        return None
    if name not in pictures:
        try:
            pictures[name] = Picture(f"{path}: {name!r:.100}", read_sibling(path, name, MAX_PICTURE))
        except FileNotFoundError:
            notes.append(f"the texture {label(name)} is not beside it: ignored")
            pictures[name] = None
    picture = pictures[name]
    if picture is None:
        return None
    # v goes up in the file and down in a picture: 1 - (s v + o)
    matrix = ((scale[0], 0.0, offset[0]), (0.0, -scale[1], 1 - offset[1]))
    return Texture(picture, 0, matrix, (wrap, wrap))
