"""OBJ with other base colours: its libraries name other textures, and the file itself stays as it is where it can.

It changes where it has to: faces without texture coordinates get some, vertex colours, which would multiply the new
ones, become white, and faces without a material get one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from psd_gs.errors import FormatError
from psd_gs.export.blocks import read_bytes
from psd_gs.export.siblings import read_sibling, sibling_path
from psd_gs.mesh.draft import chosen_names, fresh_prefix, usable
from psd_gs.mesh.obj import MAX_LIBRARY, MAX_PICTURE, Faces, corners_of, texture_line, vertices_of
from psd_gs.mesh.scene import triangulated
from psd_gs.mesh.uv import unwrap

_LINE = re.compile(r"(?:[^\r\n]*\\(?:\r\n|\r|\n))*[^\r\n]*(?:\r\n|\r|\n|$)")
"""A line of text, with those that a backslash joins to it and its end."""

_TEXTURES = ("map_", "bump", "norm", "disp", "decal", "refl")
"""How lines begin that name a picture."""


@dataclass
class Line:
    """A line of text, its keyword and what follows it.

    Attributes:
        raw: as it stands there, with its end.
    """

    raw: str
    key: str
    rest: str


@dataclass
class ObjDraft:
    """See :class:`psd_gs.mesh.draft.Draft`.

    Attributes:
        path: of the file.
        text: of the file with what has to change.
        libraries: text by path beside it.
        pictures: that these name, by path beside it, as they are.
        textures: names of the new ones.
        alpha: never; opacity is none of a texture's business there.
    """

    path: Path
    text: str
    libraries: dict[str, str]
    pictures: dict[str, bytes]
    textures: list[str]
    alpha: bool = False

    @property
    def sheets(self) -> int:
        return len(self.textures)

    def files(self, textures: Sequence[bytes], name: str, about: Mapping[str, Any]) -> dict[str, bytes]:
        out = self.pictures | dict(zip(self.textures, textures, strict=True))
        out |= {library: _bytes(text) for library, text in self.libraries.items()}
        return {**out, name: _bytes(self.text)}


def draft_obj(path: Path, material: str | None, size: int) -> ObjDraft:
    """See :func:`psd_gs.mesh.repaint.draft`."""
    lines = _lines(_text(read_bytes(path)))
    faces = _faces_by_material(lines)
    chosen = [name for name, yes in zip(faces, chosen_names(list(faces), material, path), strict=True) if yes]
    libraries, missing = _libraries(path, lines)
    known = {name: options for text in libraries.values() for name, options in _textures(text).items()}
    sheets: dict[tuple[str, str], int] = {}
    dress: dict[str, tuple[str, str]] = {}
    cut = []
    pictures = _pictures(path, libraries)
    prefix = fresh_prefix(path.stem, [*pictures, *libraries, *missing])
    for name in chosen:
        texture = known.get(name)
        key = ("new", "")
        if all(_has_uv(lines[i].rest) for i in faces[name]):
            if texture is not None:
                key = ("texture", texture[1])
            elif _lies(lines, faces[name]):
                key = ("material", name)
        if key[0] == "new":
            cut += faces[name]
        number = sheets.setdefault(key, len(sheets))
        dress[name] = (texture[0] if texture and key[0] == "texture" else "", f"{prefix}-{number}.png")
    _whiten(path, lines, [i for name in chosen for i in faces[name]], whole=len(chosen) == len(faces))
    if cut:
        _unwrap(lines, sorted(cut), size)
    libraries = {library: _dressed(text, dress) for library, text in libraries.items()}
    new = {name: how for name, how in dress.items() if name not in known}
    header = ""
    if new:
        if "" in new:
            unnamed = next(n for n in ("color", *(f"color-{i}" for i in range(len(known) + 1))) if n not in known)
            new = {(name or unnamed): how for name, how in new.items()}
            header = f"usemtl {unnamed}\n"
        library = missing[0] if missing else f"{prefix}.mtl"
        if not missing:
            header = f"mtllib {library}\n{header}"
        libraries[library] = "".join(f"newmtl {name}\nKd 1 1 1\nmap_Kd {file}\n" for name, (_, file) in new.items())
    names = [f"{prefix}-{i}.png" for i in range(len(sheets))]
    return ObjDraft(path, header + "".join(line.raw for line in lines), libraries, pictures, names)


# --- reading ---------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _lines(text: str) -> list[Line]:
    lines = []
    for raw in _LINE.findall(text):
        plain = re.sub(r"\\(\r\n|\r|\n)", " ", raw).replace("\t", " ").strip()
        key, _, rest = plain.partition(" ")
        lines.append(Line(raw, key, rest.strip()))
    return lines


def _faces_by_material(lines: list[Line]) -> dict[str, list[int]]:
    """Numbers of the lines that are faces, by the name of the material, "" without one."""
    out: dict[str, list[int]] = {}
    name = ""
    for i, line in enumerate(lines):
        if line.key == "usemtl":
            name = line.rest
        elif line.key in ("f", "fo"):
            out.setdefault(name, []).append(i)
    return out


def _libraries(path: Path, lines: list[Line]) -> tuple[dict[str, str], list[str]]:
    """Text by path of the libraries that are there, and the paths of those that are not."""
    found: dict[str, str] = {}
    missing = []
    for rest in (line.rest for line in lines if line.key == "mtllib"):
        for names in ([rest], rest.split()):
            try:
                texts = {sibling_path(path, name): read_sibling(path, name, MAX_LIBRARY) for name in names}
            except FileNotFoundError:
                continue
            found |= {name: _text(text) for name, text in texts.items()}
            break
        else:
            missing.append(sibling_path(path, rest))
    return found, missing


def _textures(library: str) -> dict[str, tuple[str, str] | None]:
    """Options and name of the colour's texture of every material, None without one."""
    out: dict[str, tuple[str, str] | None] = {}
    name: str | None = None
    for line in _lines(library):
        if line.key.lower() == "newmtl":
            name = line.rest
            out.setdefault(name, None)
        elif line.key.lower() == "map_kd" and name is not None:
            options, picture = texture_line(line.rest)
            if picture:
                out[name] = (" ".join(word for option, values in options for word in (option, *values)), picture)
    return out


def _pictures(path: Path, libraries: Mapping[str, str]) -> dict[str, bytes]:
    """All that the libraries name and that is there."""
    out = {}
    for line in (line for text in libraries.values() for line in _lines(text)):
        if line.key.lower().startswith(_TEXTURES) and (name := texture_line(line.rest)[1]):
            try:
                out[sibling_path(path, name)] = read_sibling(path, name, MAX_PICTURE)
            except FileNotFoundError:
                continue
    return out


def _words(rest: str) -> list[str]:
    return rest.split("#")[0].split()


def _has_uv(rest: str) -> bool:
    return all(len(parts := word.split("/")) > 1 and parts[1] for word in _words(rest))


def _geometry(lines: list[Line], faces: Sequence[int]) -> tuple[Float[np.ndarray, "V 3"], np.ndarray, np.ndarray]:
    """Places of all vertices, vertex and texture coordinate of every corner of some faces, and corners of each."""
    found, wanted = Faces(), set(faces)
    count = {"v": 0, "vt": 0}
    for i, line in enumerate(lines):
        if line.key in count:
            count[line.key] += 1
        elif i in wanted:
            found.rows.append(line.rest)
            found.vertices.append(count["v"])
            found.texels.append(count["vt"])
    positions, _ = vertices_of([line.rest for line in lines if line.key == "v"], "")
    pairs, counts = corners_of(found)
    if len(pairs) and not 0 <= pairs[:, 0].min() <= pairs[:, 0].max() < len(positions):
        raise ValueError(f"a face has a corner that is none of {len(positions)} vertices")
    return positions, pairs, counts


def _lies(lines: list[Line], faces: Sequence[int]) -> bool:
    """Whether texture coordinates that no texture uses are of use."""
    positions, pairs, counts = _geometry(lines, faces)
    rows = [line.rest for line in lines if line.key == "vt"]
    uv = np.array([[float(word) for word in (*_words(row), "0")[:2]] for row in rows])
    entries, _ = triangulated(pairs[:, 0], counts, positions)
    return usable(uv[pairs[:, 1]][entries], positions[pairs[:, 0]][entries])


# --- writing ---------------------------------------------------------------------------------------------------------


def _dressed(library: str, dress: Mapping[str, tuple[str, str]]) -> str:
    """A library whose materials, those in ``dress``, take their colour from a texture (options, file) alone."""
    textured = {name for name, texture in _textures(library).items() if texture is not None}
    out: list[str] = []
    name = ""
    end = "\r\n" if "\r\n" in library else "\n"
    for line in _lines(library):
        key = line.key.lower()
        name = line.rest if key == "newmtl" else name
        if name not in dress:
            out.append(line.raw)
            continue
        texture = " ".join(filter(None, ("map_Kd", *dress[name]))) + end
        if key == "newmtl":
            out.append(line.raw if line.raw.endswith(("\n", "\r")) else line.raw + end)
            out += [] if name in textured else [texture]
        elif key in ("kd", "map_kd"):
            out.append(f"Kd 1 1 1{end}" if key == "kd" else texture)
        else:
            out.append(line.raw)
    return "".join(out)


def _whiten(path: Path, lines: list[Line], faces: Sequence[int], *, whole: bool) -> None:
    """Make the colours of the vertices of some faces white, in place."""
    painted = [line for line in lines if line.key == "#MRGB"]
    if painted and not whole:
        raise FormatError(
            f"{path}: expected one material or no painted vertices, received ZBrush's (#MRGB) and --material. "
            "Leave --material out, or export the mesh with a texture."
        )
    for line in painted:
        line.raw = ""
    vertices = [line for line in lines if line.key == "v"]
    colored = [line for line in vertices if len(_words(line.rest)) >= 6]
    if not colored:
        return
    largest = max(float(word) for line in colored for word in _words(line.rest)[3:6])
    white = "1" if largest <= 2 else "255" if largest <= 255 else "65535"
    for i in np.unique(_geometry(lines, faces)[1][:, 0]):
        line = vertices[i]
        words = _words(line.rest)
        line.rest = " ".join([*words[:3], white, white, white, *words[6:]])
        line.raw = f"v {line.rest}{_end(line.raw)}"


def _end(raw: str) -> str:
    return raw[len(raw.rstrip("\r\n")) :]


def _unwrap(lines: list[Line], faces: Sequence[int], size: int) -> None:
    """Give faces texture coordinates of an atlas, in place; they become triangles."""
    positions, pairs, counts = _geometry(lines, faces)
    entries, owner = triangulated(pairs[:, 0], counts, positions)
    used, local = np.unique(pairs[:, 0][entries], return_inverse=True)
    atlas = unwrap(positions[used], local.reshape(-1, 3), size)
    coordinates = [line for line in lines if line.key == "vt"]
    counted_back = any("/-" in lines[i].rest for i in range(len(lines)) if lines[i].key in ("f", "fo"))
    words = [word for i in faces for word in _words(lines[i].rest)]
    ends = np.searchsorted(owner, np.arange(len(faces) + 1))
    for k, i in enumerate(faces):
        end = _end(lines[i].raw) or "\n"
        rows = []
        for t in range(ends[k], ends[k + 1]):
            corners = []
            for entry, vertex in zip(entries[t], atlas.faces[t], strict=True):
                old = words[entry].split("/")
                normal = f"/{old[2]}" if len(old) > 2 and old[2] else ""
                corners.append(f"{old[0]}/{len(coordinates) + vertex + 1}{normal}")
            rows.append(f"f {' '.join(corners)}{end}")
        lines[i].raw = "".join(rows)
    new = "".join(f"vt {u:.7g} {1 - v:.7g}\n" for u, v in atlas.uv.astype(float).tolist())
    # where they renumber none: behind all others, and before the faces that name them unless some count back
    if counted_back:
        last = lines[-1]
        last.raw = (last.raw if not last.raw or last.raw.endswith(("\n", "\r")) else last.raw + "\n") + new
    elif coordinates:
        at = next(i for i in range(len(lines) - 1, -1, -1) if lines[i].key == "vt")
        lines[at].raw = (lines[at].raw if _end(lines[at].raw) else lines[at].raw + "\n") + new
    else:
        first = min(faces)
        lines[first].raw = new + lines[first].raw
