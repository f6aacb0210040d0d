"""glTF with other base colours: its JSON gets entries, its buffers get bytes at their end, all else stays.

Texture coordinates that are there stay. Parts without any, whose vertices have to be cut along the seams of an atlas,
get copies of their accessors in which the vertices at seams stand once per chart; the old ones stay where they are.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int

from psd_gs.errors import FormatError
from psd_gs.export.gltf_file import DRACO, GltfFile, extensions, integer, objects
from psd_gs.export.metadata import jsonable
from psd_gs.export.siblings import sibling_path
from psd_gs.mesh.draft import chosen_names, fresh_prefix, usable
from psd_gs.mesh.gltf import GLOSSY, MODES, TRANSFORM, triangles_of
from psd_gs.mesh.scene import joined_arrays
from psd_gs.mesh.uv import unwrap

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071
_U2, _U4 = 5123, 5125

Primitive = dict[str, Any]


@dataclass
class GltfDraft:
    """See :class:`psd_gs.mesh.draft.Draft`.

    Attributes:
        file: as it is.
        document: its JSON with the new accessors and materials; the textures are added in :meth:`files`.
        samplers: of the new textures, numbers in the document.
        added: bytes that go behind those that are there.
        alpha: always; a material's opacity is in its base colour.
    """

    file: GltfFile
    document: dict[str, Any]
    samplers: list[int | None] = field(default_factory=list)
    added: bytearray = field(default_factory=bytearray)
    alpha: bool = True

    def __post_init__(self) -> None:
        buffers = objects(self.document, "buffers")
        self.inside = self.file.is_binary and not (buffers and "uri" in buffers[0])
        self.start = -(-len(self.file.blob) // 4) * 4 if self.inside else 0
        self.buffer = 0 if self.inside else len(buffers)

    @property
    def sheets(self) -> int:
        return len(self.samplers)

    def files(self, textures: Sequence[bytes], name: str, about: Mapping[str, Any]) -> dict[str, bytes]:
        document, added = copy.deepcopy(self.document), bytearray(self.added)
        out = self._beside()
        prefix = fresh_prefix(Path(name).stem, out)
        images, views = document.setdefault("images", []), document.get("bufferViews", [])
        for i, (data, sampler) in enumerate(zip(textures, self.samplers, strict=True)):
            image: dict[str, Any] = {"name": f"{prefix}-{i}", "mimeType": "image/png"}
            if self.inside:
                image["bufferView"] = len(views)
                views.append(_append(added, data, self.buffer, self.start))
            else:
                out[f"{prefix}-{i}.png"] = data
                image = {"name": image["name"], "uri": quote(f"{prefix}-{i}.png")}
            extras = {"extras": {"psd_gs": jsonable(about)}} if about else {}
            document.setdefault("textures", []).append(
                {"source": len(images), **({} if sampler is None else {"sampler": sampler})}
            )
            images.append({**image, **extras})
        if views:
            document["bufferViews"] = views
        if self.inside and added:
            about_blob = {"byteLength": self.start + len(added)}
            buffers = document.setdefault("buffers", [])
            buffers[:1] = [{**(buffers[0] if buffers else {}), **about_blob}]
        elif added:
            out[f"{prefix}.bin"] = bytes(added)
            buffer = {"uri": quote(f"{prefix}.bin"), "byteLength": len(added)}
            document.setdefault("buffers", []).append(buffer)
        return {**out, name: self._packed(document, bytes(added))}

    def _beside(self) -> dict[str, bytes]:
        """Files that the document names, as they are."""
        out = {}
        for entry in [*objects(self.document, "buffers"), *objects(self.document, "images")]:
            uri = entry.get("uri")
            if isinstance(uri, str) and uri[:5].lower() != "data:":
                try:
                    out[sibling_path(self.file.path, uri, uri=True)] = self.file.resource(uri)
                except FileNotFoundError:
                    continue  # a picture that was not there before either
        return out

    def _packed(self, document: dict[str, Any], added: bytes) -> bytes:
        if not self.file.is_binary:
            return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text
        blob = bytes(self.file.blob)
        if self.inside:
            blob = blob.ljust(self.start, b"\0") + added
        if blob:
            body += struct.pack("<I4s", len(blob), b"BIN\0") + blob
        for kind, data in self.file.other_chunks:
            body += struct.pack("<I4s", len(data), kind) + bytes(data)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body

    # --- while it is made --------------------------------------------------------------------------------------------

    def accessor(self, table: np.ndarray, about: dict[str, Any], target: int, *, bounds: bool = False) -> int:
        """Append an accessor and return its number.

        Args:
            table: its numbers as they are stored.
            about: componentType, type and normalized.
            target: of the buffer view.
            bounds: whether its smallest and largest numbers are told.
        """
        table = np.ascontiguousarray(table)
        width = table.shape[1] * table.dtype.itemsize
        padded = -(-width // 4) * 4 if target == _ARRAY_BUFFER else width
        rows = np.zeros((len(table), padded), np.uint8)
        rows[:, :width] = table.view(np.uint8).reshape(len(table), width)
        view = _append(self.added, rows.tobytes(), self.buffer, self.start)
        view |= {"target": target} | ({"byteStride": padded} if target == _ARRAY_BUFFER else {})
        views = self.document.setdefault("bufferViews", [])
        views.append(view)
        accessor = {"bufferView": len(views) - 1, "count": len(table), **about}
        if bounds:
            accessor |= {"min": table.min(0).tolist(), "max": table.max(0).tolist()}
        accessors = self.document.setdefault("accessors", [])
        accessors.append(accessor)
        return len(accessors) - 1


def draft_gltf(path: Path, material: str | None, size: int) -> GltfDraft:
    """See :func:`psd_gs.mesh.repaint.draft`."""
    file = GltfFile(path)
    document = copy.deepcopy(file.document)
    out = GltfDraft(file, document)
    places = _primitives(file)
    users: dict[int | None, list[tuple[int, int]]] = {}
    for mesh, k in places:
        users.setdefault(file.part("meshes", mesh)["primitives"][k].get("material"), []).append((mesh, k))
    names = ["" if i is None else str(file.part("materials", i).get("name", f"material {i}")) for i in users]
    chosen = chosen_names(names, material, path)
    sheets: dict[tuple[str, int], int] = {}
    cut: list[tuple[dict[str, Any], list[tuple[int, int]]]] = []
    for (i, mine), wanted in zip(users.items(), chosen, strict=True):
        if not wanted:
            continue
        primitives = [document["meshes"][mesh]["primitives"][k] for mesh, k in mine]
        if i is None:
            i = len(document.setdefault("materials", []))
            document["materials"].append({"name": "color"})
            for primitive in primitives:
                primitive["material"] = i
        about = document["materials"][i]
        info = _base_texture(about)
        key = ("new", 0)
        if info is not None and all(f"TEXCOORD_{_channel(info)}" in p["attributes"] for p in primitives):
            key = ("texture", integer(info, "index"))
        elif all("TEXCOORD_0" in p["attributes"] for p in primitives) and _lies(file, mine, places):
            info, key = {}, ("material", i)
        else:
            info = {}
            cut.append((info, mine))
        if key not in sheets:
            sheets[key] = len(sheets)
            sampler = None
            if key[0] == "texture":
                sampler = file.part("textures", key[1]).get("sampler")
            elif key[0] == "new":
                filters = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
                sampler = len(document.setdefault("samplers", []))
                document["samplers"].append(filters)
            out.samplers.append(sampler)
        info["index"] = len(objects(file.document, "textures")) + sheets[key]
        _dress(about, info)
        for primitive in primitives:
            primitive["attributes"].pop("COLOR_0", None)  # it would multiply the new colour
    if cut:
        _unwrap(out, cut, places, size)
    return out


def _primitives(file: GltfFile) -> dict[tuple[int, int], Float[np.ndarray, "4 4"]]:
    """Those of triangles, by mesh and number, with the world matrix of the first node that shows them, if one does."""
    placed: dict[int, np.ndarray] = {}
    for node, matrix in file.placed.items():
        placed.setdefault(file.part("nodes", node).get("mesh", -1), matrix)
    return {
        (mesh, k): placed.get(mesh, np.eye(4))
        for mesh, about in enumerate(objects(file.document, "meshes"))
        for k, primitive in enumerate(objects(about, "primitives"))
        if primitive.get("mode", 4) in MODES and "POSITION" in primitive["attributes"]
    }


def _base_texture(material: dict[str, Any]) -> dict[str, Any] | None:
    """The reference to the texture that the reader takes as base colour, a copy."""
    more = extensions(material)
    found = more[GLOSSY].get("diffuseTexture") if GLOSSY in more else None
    if GLOSSY not in more:
        found = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
    return copy.deepcopy(found)


def _channel(info: dict[str, Any]) -> int:
    return integer(extensions(info).get(TRANSFORM, {}), "texCoord", integer(info, "texCoord", 0))


def _dress(material: dict[str, Any], info: dict[str, Any]) -> None:
    """Take the base colour from a texture alone."""
    surface = material.setdefault("pbrMetallicRoughness", {})
    surface.pop("baseColorFactor", None)
    surface["baseColorTexture"] = info
    if GLOSSY in extensions(material):
        glossy = material["extensions"][GLOSSY]
        glossy.pop("diffuseFactor", None)
        glossy["diffuseTexture"] = copy.deepcopy(info)


def _corners(
    file: GltfFile, primitive: Primitive, matrix: Float[np.ndarray, "4 4"]
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """All vertices of a primitive in the world, not skinned, and its triangles."""
    positions = file.values(primitive["attributes"]["POSITION"], 3)
    return positions @ matrix[:3, :3].T + matrix[:3, 3], triangles_of(file, primitive, len(positions))


def _lies(file: GltfFile, mine: list[tuple[int, int]], places: Mapping[tuple[int, int], np.ndarray]) -> bool:
    """Whether the first texture coordinates of primitives are of use."""
    corners, uv = [], []
    for mesh, k in mine:
        primitive = file.part("meshes", mesh)["primitives"][k]
        if DRACO in extensions(primitive):
            return True
        vertices, faces = _corners(file, primitive, places[mesh, k])
        corners.append(vertices[faces])
        uv.append(file.values(primitive["attributes"]["TEXCOORD_0"], 2)[faces])
    return usable(np.concatenate(uv), np.concatenate(corners))


def _unwrap(
    out: GltfDraft,
    cut: list[tuple[dict[str, Any], list[tuple[int, int]]]],
    places: Mapping[tuple[int, int], np.ndarray],
    size: int,
) -> None:
    """Lay all of these primitives out in one atlas, and cut their vertices along its seams."""
    file, keys = out.file, [key for _, mine in cut for key in mine]
    olds = [file.part("meshes", mesh)["primitives"][k] for mesh, k in keys]
    if any(DRACO in extensions(old) for old in olds):
        raise FormatError(
            f"{file.path}: expected texture coordinates in a mesh that Draco packed, received none, and it cannot be "
            "cut into charts as it is. Import it into Blender and export it without compression."
        )
    shapes, used = [], []
    for old, key in zip(olds, keys, strict=True):
        vertices, faces = _corners(file, old, places[key])
        rows, local = np.unique(faces, return_inverse=True)
        used.append(rows)
        shapes.append((vertices[rows], local.reshape(-1, 3)))
    vertices, faces = joined_arrays(shapes)
    atlas = unwrap(vertices, faces, size)
    channel = max(sum(name.startswith("TEXCOORD_") for name in old["attributes"]) for old in olds)
    for info, _ in cut:
        info.pop("texCoord", None)
        if channel:
            info["texCoord"] = channel
    first_face = first_vertex = 0
    for (mesh, k), rows, (_, local) in zip(keys, used, shapes, strict=True):
        own, corners = np.unique(atlas.faces[first_face : first_face + len(local)], return_inverse=True)
        source = rows[atlas.source[own] - first_vertex]
        first_face, first_vertex = first_face + len(local), first_vertex + len(rows)
        new = out.document["meshes"][mesh]["primitives"][k]
        new["attributes"] = _gathered(out, new["attributes"], source)
        uv = out.accessor(atlas.uv[own].astype("<f4"), {"componentType": 5126, "type": "VEC2"}, _ARRAY_BUFFER)
        present = sum(name.startswith("TEXCOORD_") for name in new["attributes"])
        new["attributes"] |= {f"TEXCOORD_{i}": uv for i in range(present, channel + 1)}
        if "targets" in new:
            new["targets"] = [_gathered(out, target, source) for target in new["targets"]]
        kind, number = ("<u2", _U2) if len(own) <= 65535 else ("<u4", _U4)
        table = corners.reshape(-1, 1).astype(kind)
        new["indices"] = out.accessor(table, {"componentType": number, "type": "SCALAR"}, _ELEMENT_ARRAY_BUFFER)
        new.pop("mode", None)


def _gathered(out: GltfDraft, attributes: dict[str, int], source: Int[np.ndarray, " W"]) -> dict[str, int]:
    """Copies of accessors with the vertices that ``source`` names."""
    made = {}
    for name, i in attributes.items():
        about = {key: out.file.part("accessors", i)[key] for key in ("componentType", "type")}
        if out.file.part("accessors", i).get("normalized"):
            about["normalized"] = True
        made[name] = out.accessor(out.file.raw(i)[source], about, _ARRAY_BUFFER, bounds=name == "POSITION")
    return made


def _append(blob: bytearray, data: bytes, buffer: int, start: int) -> dict[str, Any]:
    """Put data at the end of a buffer; the view of it."""
    view = {"buffer": buffer, "byteOffset": start + len(blob), "byteLength": len(data)}
    blob += data + bytes(-len(data) % 4)
    return view
