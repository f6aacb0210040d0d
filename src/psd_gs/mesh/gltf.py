"""glTF 2.0 as a scene of parts (Khronos glTF 2.0 specification and the extensions named below)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from psd_gs.errors import UnsupportedError
from psd_gs.export.gltf_file import (
    DRACO,
    MESHOPT,
    GltfFile,
    decoded,
    extensions,
    integer,
    matrices,
    numbers,
    objects,
)
from psd_gs.mesh.picture import Picture, Texture, Wrap
from psd_gs.mesh.scene import PLAIN, Material, Part, Scene, check_elements, label

_INSTANCES = "EXT_mesh_gpu_instancing"
TRANSFORM = "KHR_texture_transform"
GLOSSY = "KHR_materials_pbrSpecularGlossiness"
_UNLIT = "KHR_materials_unlit"
_STRENGTH = "KHR_materials_emissive_strength"
_SPLATS = "KHR_gaussian_splatting"
_PICTURES = ("EXT_texture_webp", "EXT_texture_avif", None, "MSFT_texture_dds", "KHR_texture_basisu")
"""Where a texture names its picture, the best first; None is the texture itself."""

_READ = {
    *(_INSTANCES, TRANSFORM, GLOSSY, _UNLIT, _STRENGTH, DRACO, *MESHOPT, *filter(None, _PICTURES)),
    *("KHR_mesh_quantization", "KHR_node_visibility"),
}
_HARMLESS = {
    *("KHR_lights_punctual", "KHR_xmp_json_ld", "KHR_materials_variants", "KHR_animation_pointer"),
    *("KHR_node_selectability", "KHR_node_hoverability", "KHR_interactivity", "EXT_lights_image_based"),
    *("EXT_mesh_features", "EXT_structural_metadata", "EXT_instance_features", "MSFT_lod"),
    "MSFT_packing_normalRoughnessMetallic",
}
"""May be required and left out: the shape and its own colours are the same without them."""

_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
MODES = (_TRIANGLES, _STRIP, _FAN)
"""Of primitives that have faces."""
_INVISIBLE = 0.05
"""Surfaces of a blending material that are less opaque than this are left out, as glass is."""
_WRAPS: dict[int, Wrap] = {10497: "repeat", 33648: "mirror", 33071: "clamp"}
_NEAREST = 9728


def read_gltf_scene(path: str | os.PathLike[str]) -> Scene:
    """Every visible mesh of the scene where its nodes put it, at rest: default weights of morph targets, skins in the
    pose of their joints.

    Raises:
        FormatError: an extension that is required and unknown, splats, glTF 1, or names of files outside the folder.
        InputError: the file cannot be opened.
        ValueError, LookupError, TypeError: the file is unsound.
    """
    return gltf_scene(GltfFile(path))


def gltf_scene(file: GltfFile) -> Scene:
    """The same of a file that is open already, with its document as it is now."""
    return _Reader(file).scene()


@dataclass(frozen=True)
class _Shape:
    """A primitive in the space of its mesh, and what pulls its vertices."""

    part: Part
    joints: Float[np.ndarray, "V K"] | None
    weights: Float[np.ndarray, "V K"] | None


class _Reader:
    """The materials and parts of one file."""

    def __init__(self, file: GltfFile) -> None:
        self.file = file
        self.notes: list[str] = []
        self.materials: dict[int, Material] = {}
        self.pictures: dict[int, Picture | None] = {}
        self.shapes: dict[tuple[int, int, tuple[float, ...]], _Shape | None] = {}
        self.elements = 0

    def scene(self) -> Scene:
        self._check_extensions()
        if objects(self.file.document, "animations"):
            self._note("animations are ignored: the scene is at rest")
        for what in self.file.unused():
            self._note(f"{what} are ignored")
        return Scene([part for node in self.file.placed for part in self._parts(node)], self.notes)

    def _check_extensions(self) -> None:
        required, used = (set(self.file.names(f"extensions{kind}")) for kind in ("Required", "Used"))
        if _SPLATS in required | used:
            raise UnsupportedError(
                f"{self.file.path}: expected a mesh, received splats ({_SPLATS}). Take a command for splats, or name "
                "it with a suffix of theirs."
            )

        def harmless(name: str) -> bool:
            return name in _READ | _HARMLESS or name.startswith("KHR_materials_")

        unknown = sorted(label(name) for name in required if not harmless(name))
        if unknown:
            raise UnsupportedError(
                f"{self.file.path}: requires {', '.join(unknown)}, which is not supported. Import it into a program "
                "that knows it, such as Blender, and export it without."
            )
        ignored = sorted(label(name) for name in used - _READ)
        if ignored:
            self._note(f"extensions that are ignored: {', '.join(ignored)}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # --- geometry ----------------------------------------------------------------------------------------------------

    def _parts(self, i: int) -> Iterator[Part]:
        """The primitives of a node, once for each instance."""
        node = self.file.part("nodes", i)
        if "mesh" not in node:
            return
        mesh = self.file.part("meshes", node["mesh"])
        name = label(str(node.get("name", mesh.get("name", f"node {i}"))))
        placements = self._placements(node, self.file.placed[i])
        morph = [float(weight) for weight in node.get("weights", mesh.get("weights", []))]
        for k in range(len(objects(mesh, "primitives"))):
            shape = self._shape(node["mesh"], k, tuple(morph))
            if shape is None:
                continue
            bones = self._bones(node) if shape.joints is not None else None
            copies = len(placements) if bones is None else 1
            self.elements += (len(shape.part.positions) + len(shape.part.faces)) * copies
            check_elements(self.elements, self.file.size)
            part = replace(shape.part, name=name)
            yield _placed(part, placements) if bones is None else replace(part, positions=_skinned(shape, bones))

    def _placements(self, node: dict[str, Any], placed: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "I 4 4"]:
        """World matrices of a node's instances (EXT_mesh_gpu_instancing)."""
        if _INSTANCES not in extensions(node):
            return placed[None]
        named = extensions(node)[_INSTANCES].get("attributes", {})
        widths = {"TRANSLATION": [0.0] * 3, "ROTATION": [0.0, 0.0, 0.0, 1.0], "SCALE": [1.0] * 3}
        found = {key: self.file.values(named[key], len(rest)) for key, rest in widths.items() if key in named}
        counts = {len(values) for values in found.values()}
        if len(counts) != 1:
            raise ValueError(f"instances with {sorted(counts)} places")
        columns = [found.get(key, np.tile(rest, (*counts, 1))) for key, rest in widths.items()]
        return placed @ matrices(*columns)

    def _shape(self, mesh: int, k: int, morph: tuple[float, ...]) -> _Shape | None:
        """A primitive in the space of its mesh; None if it shows nothing."""
        if (mesh, k, morph) not in self.shapes:
            self.shapes[mesh, k, morph] = self._read_shape(self.file.part("meshes", mesh)["primitives"][k], morph)
        return self.shapes[mesh, k, morph]

    def _read_shape(self, primitive: dict[str, Any], morph: tuple[float, ...]) -> _Shape | None:
        mode, attributes = primitive.get("mode", _TRIANGLES), primitive["attributes"]
        if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN) or "POSITION" not in attributes:
            self._note("lines are ignored" if "POSITION" in attributes else "a part without positions is ignored")
            return None
        packed, indices = self.file.draco(primitive) or (None, None)
        stored = {"POSITION": self.file.raw(attributes["POSITION"])} if packed is None else packed
        count = len(stored["POSITION"])
        corners = triangles_of(self.file, primitive, count, indices)
        used, faces = np.unique(corners, return_inverse=True)
        faces = faces.reshape(-1, 3) if mode != _POINTS else np.zeros((0, 3), np.int64)

        def values(name: str) -> Float[np.ndarray, "V C"]:
            accessor = attributes[name]
            table = stored[name] if name in stored else self.file.raw(accessor)
            # a colour in whole numbers has no other meaning, whether it says so or not
            normalized = name.startswith("COLOR") or self.file.part("accessors", accessor).get("normalized") is True
            return decoded(table[used], normalized, None)

        positions = values("POSITION")
        if positions.shape[1] != 3:
            raise ValueError(f"positions of {positions.shape[1]} numbers")
        for weight, target in zip(morph, objects(primitive, "targets"), strict=False):
            if weight and "POSITION" in target:
                positions = positions + weight * self.file.values(target["POSITION"], 3)[used]
        colors = values("COLOR_0") if "COLOR_0" in attributes else None
        if colors is not None and colors.shape[1] == 3:
            colors = np.concatenate([colors, np.ones((len(colors), 1))], axis=1)
        plain = PLAIN if colors is None else Material()
        material = self._material(primitive["material"]) if "material" in primitive else plain
        channels = {texture.channel for texture in (material.texture, material.emission_texture) if texture is not None}
        uv = {i: values(f"TEXCOORD_{i}")[:, :2][faces] for i in channels if f"TEXCOORD_{i}" in attributes}
        if len(uv) < len(channels):
            self._note(f"a texture of {material.name or 'a material'} is ignored: its coordinates are missing")
        bones = [i for i in range(4) if {f"JOINTS_{i}", f"WEIGHTS_{i}"} <= set(attributes)]
        joints, weights = (
            np.concatenate([values(f"{name}_{i}") for i in bones], axis=1) if bones else None
            for name in ("JOINTS", "WEIGHTS")
        )
        return _Shape(Part("", positions, faces, material, colors, None, uv), joints, weights)

    def _bones(self, node: dict[str, Any]) -> Float[np.ndarray, "J 4 4"] | None:
        """What turns the space of a mesh into the world for each joint of the node's skin; None if it has none."""
        if "skin" not in node:
            return None
        skin = self.file.part("skins", node["skin"])
        if not set(skin["joints"]) <= set(self.file.placed):
            self._note("a skin whose joints are not in the scene is ignored")
            return None
        placed = np.stack([self.file.placed[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" not in skin:
            return placed
        inverse = self.file.values(skin["inverseBindMatrices"], 16).reshape(-1, 4, 4).transpose(0, 2, 1)
        return placed @ inverse[: len(placed)]

    # --- materials ---------------------------------------------------------------------------------------------------

    def _material(self, i: Any) -> Material:
        about = self.file.part("materials", i)
        if i in self.materials:
            return self.materials[i]
        more = extensions(about)
        surface, keys = about.get("pbrMetallicRoughness", {}), ("baseColorFactor", "baseColorTexture")
        if GLOSSY in more:
            surface, keys = more[GLOSSY], ("diffuseFactor", "diffuseTexture")
        named = {
            "color": surface.get(keys[1]),
            "normal": about.get("normalTexture"),
            "metallic_roughness": surface.get("metallicRoughnessTexture"),
            "occlusion": about.get("occlusionTexture"),
            "emissive": about.get("emissiveTexture"),
        }
        textures = {kind: self._texture(info) for kind, info in named.items() if info is not None}
        found = {kind: texture for kind, texture in textures.items() if texture is not None}
        glow = numbers(about, "emissiveFactor", 3, [0, 0, 0])
        glow = glow * numbers(more.get(_STRENGTH, {}), "emissiveStrength", 1, [1])
        cutoff = {"MASK": float(numbers(about, "alphaCutoff", 1, [0.5])[0]), "BLEND": _INVISIBLE}
        self.materials[i] = Material(
            name=label(str(about.get("name", f"material {i}"))),
            color=tuple(numbers(surface, keys[0], 4, [1, 1, 1, 1]).tolist()),
            texture=found.get("color"),
            emission=(0, 0, 0) if _UNLIT in more else tuple(glow.tolist()),
            emission_texture=found.get("emissive"),
            cutoff=cutoff.get(about.get("alphaMode", "OPAQUE"), 0.0),
            pictures={kind: texture.picture for kind, texture in found.items()},
        )
        return self.materials[i]

    def _texture(self, info: dict[str, Any]) -> Texture | None:
        about = self.file.part("textures", info.get("index"))
        picture = self._picture(about)
        if picture is None:
            return None
        sampler = self.file.part("samplers", about["sampler"]) if "sampler" in about else {}
        across, down = (_WRAPS.get(sampler.get(f"wrap{axis}", 0), "repeat") for axis in "ST")
        placed = extensions(info).get(TRANSFORM, {})
        channel = integer(placed, "texCoord", integer(info, "texCoord", 0))
        (x, y), (sx, sy) = numbers(placed, "offset", 2, [0, 0]), numbers(placed, "scale", 2, [1, 1])
        turn = float(numbers(placed, "rotation", 1, [0])[0])
        # the picture's axes: v goes down, and the turn is counter-clockwise (the second example of the extension)
        matrix = (
            (sx * np.cos(turn), sy * np.sin(turn), x),
            (-sx * np.sin(turn), sy * np.cos(turn), y),
        )
        return Texture(picture, channel, matrix, (across, down), sampler.get("magFilter") == _NEAREST)

    def _picture(self, texture: dict[str, Any]) -> Picture | None:
        """The best picture of a texture that can be decoded, else any, whose decoding tells what is wrong with it."""
        more = extensions(texture)
        entries = [texture if name is None else more.get(name, {}) for name in _PICTURES]
        found = [self._image(entry["source"]) for entry in entries if "source" in entry]
        pictures = [picture for picture in found if picture is not None]
        return next((picture for picture in pictures if picture.size is not None), *pictures[-1:]) if pictures else None

    def _image(self, i: Any) -> Picture | None:
        about = self.file.part("images", i)
        if i not in self.pictures:
            name = f"{self.file.path}: image {i}"
            try:
                here = "uri" not in about
                data = self.file.view(about.get("bufferView")) if here else self.file.resource(about["uri"])
                self.pictures[i] = Picture(name, bytes(data))
            except FileNotFoundError as error:
                self._note(f"image {i} is ignored: {label(str(error))}")
                self.pictures[i] = None
        return self.pictures[i]


def triangles_of(
    file: GltfFile, primitive: dict[str, Any], count: int, unpacked: Int[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, "F 3"]:
    """Corners of the triangles of a primitive, all of one orientation; those of points are left as they are.

    Args:
        file: that it is in.
        primitive: of triangles or points.
        count: of its vertices.
        unpacked: its indices, if they were packed.
    """
    indices = unpacked
    if indices is None:
        indices = file.raw(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(count)
    if indices.dtype.kind not in "iu" or (len(indices) and not 0 <= indices.min() <= indices.max() < count):
        raise ValueError(f"corners that are none of {count} vertices")
    mode = _TRIANGLES if unpacked is not None else primitive.get("mode", _TRIANGLES)
    return _triangles(indices.astype(np.int64), mode)


def _triangles(indices: Int[np.ndarray, " N"], mode: int) -> Int[np.ndarray, "F 3"]:
    """Corners of the triangles of a list, strip or fan, all of one orientation; points are left as they are."""
    if mode == _POINTS:
        return indices
    if mode == _TRIANGLES:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if len(indices) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([np.broadcast_to(indices[:1], len(indices) - 2), indices[1:-1], indices[2:]], axis=1)
    faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    faces[1::2] = faces[1::2][:, [1, 0, 2]]
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]  # strips are joined by triangles without area


def _placed(part: Part, placements: Float[np.ndarray, "I 4 4"]) -> Part:
    """The part once where each matrix puts it; its faces look outside still if that is a mirror."""
    copies, count = len(placements), len(part.positions)
    positions = part.positions @ placements[:, :3, :3].transpose(0, 2, 1) + placements[:, None, :3, 3]
    mirror = np.repeat(np.linalg.det(placements[:, :3, :3]) < 0, len(part.faces))
    faces = (part.faces + count * np.arange(copies)[:, None, None]).reshape(-1, 3)
    colors = None if part.colors is None else np.tile(part.colors, (copies, 1))
    uv = {channel: np.tile(corners, (copies, 1, 1)) for channel, corners in part.uv.items()}
    for corners in (faces, *uv.values()):
        corners[mirror] = corners[mirror][:, ::-1]
    return replace(part, positions=positions.reshape(-1, 3), faces=faces, colors=colors, uv=uv)


def _skinned(shape: _Shape, bones: Float[np.ndarray, "J 4 4"]) -> Float[np.ndarray, "V 3"]:
    """Where the joints pull the vertices (glTF 2.0, 3.7.3.3), in the world."""
    assert shape.joints is not None
    assert shape.weights is not None
    joints = shape.joints.astype(np.int64)
    if len(joints) and joints.max() >= len(bones):
        raise ValueError(f"a vertex follows joint {joints.max()} of {len(bones)}")
    weights = shape.weights / np.maximum(shape.weights.sum(1, keepdims=True), 1e-12)
    out = np.zeros_like(shape.part.positions)
    for k in range(joints.shape[1]):
        bone = bones[joints[:, k]]
        moved = np.einsum("vij,vj->vi", bone[:, :3, :3], shape.part.positions) + bone[:, :3, 3]
        out += weights[:, k, None] * moved
    return out
