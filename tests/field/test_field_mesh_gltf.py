"""glTF as engines read it: materials, textures, numbers of every type, nodes, and what is refused by its name."""

from __future__ import annotations

import io
import json
import logging
import math
import struct

import numpy as np
import pytest
import torch
import trimesh
from mesh_builders import (
    BLUE,
    GREEN,
    QUAD,
    QUAD_FACES,
    QUAD_UV,
    RED,
    YELLOW,
    Glb,
    assert_color,
    assert_quadrants,
    encoded,
    quad_glb,
    quadrants,
    sampled,
    srgb,
)
from PIL import Image

from psd_gs.errors import FormatError
from psd_gs.export.gltf_plain import plain_glb
from psd_gs.mesh.describe import describe_mesh
from psd_gs.mesh.points import read_points
from psd_gs.mesh.read import read_scene

PNG = encoded(quadrants())
REPEAT, MIRROR, CLAMP = 10497, 33648, 33071


def textured(tmp_path, image=PNG, mime="image/png", sampler=None, info=None, more=None, **attributes):
    glb = Glb()
    reference = {**glb.texture(image, mime, **(sampler or {})), **(info or {})}
    material = {"pbrMetallicRoughness": {"baseColorTexture": reference, **(more or {})}}
    return quad_glb(tmp_path / "a.glb", material, glb, **attributes)


# --- textures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mime"),
    [
        (PNG, "image/png"),
        (encoded(quadrants(), "JPEG", quality=95, subsampling=0), "image/jpeg"),
        (encoded(quadrants(), "WEBP", lossless=True), "image/webp"),
        (encoded(quadrants().quantize(4)), "image/png"),
        (encoded(quadrants().convert("RGBA")), "image/png"),
        (PNG, "image/jpeg"),  # what it says it is does not count
    ],
    ids=["png", "jpeg", "webp", "palette", "rgba", "wrong mime"],
)
def test_kinds_of_pictures(tmp_path, image, mime):
    assert_quadrants(textured(tmp_path, image, mime))


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_grey_pictures(tmp_path, bits):
    grey = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(8, axis=1)
    pixels = {1: grey > 0, 8: grey, 16: grey.astype(np.uint16) * 257}[bits]
    path = textured(tmp_path, encoded(Image.fromarray(pixels)))
    points, rgb = sampled(path)
    assert (rgb[points[:, 0] < -0.05][:, 0] < 200).all()
    np.testing.assert_allclose(rgb[(points[:, 0] < -0.05) & (points[:, 0] > -0.3)], 0, atol=1)
    np.testing.assert_allclose(rgb[(points[:, 0] > 0.05) & (points[:, 0] < 0.3)], 255, atol=1)


def test_sixteen_bits_keep_their_middle(tmp_path):
    half = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    assert_color(textured(tmp_path, encoded(half)), (128, 128, 128))


def test_the_extension_of_a_picture_goes_before_its_fallback(tmp_path):
    glb = Glb()
    reference = glb.texture(encoded(Image.new("RGB", (4, 4))))
    glb.texture(encoded(quadrants(), "WEBP", lossless=True), "image/webp")
    glb.document["textures"][0]["extensions"] = {"EXT_texture_webp": {"source": 1}}
    glb.document["extensionsUsed"] = ["EXT_texture_webp"]
    assert_quadrants(quad_glb(tmp_path / "a.glb", {"pbrMetallicRoughness": {"baseColorTexture": reference}}, glb))


def ktx2(width=16, height=8) -> bytes:
    return b"\xabKTX 20\xbb\r\n\x1a\n" + np.array([0, 1, width, height], "<u4").tobytes() + bytes(100)


def test_ktx2_is_named_unless_there_is_a_fallback(tmp_path):
    glb = Glb(extensionsUsed=["KHR_texture_basisu"], extensionsRequired=["KHR_texture_basisu"])
    reference = glb.texture(ktx2(), "image/ktx2")
    glb.document["textures"][0] = {"extensions": {"KHR_texture_basisu": {"source": 0}}}
    path = quad_glb(tmp_path / "a.glb", {"name": "m", "pbrMetallicRoughness": {"baseColorTexture": reference}}, glb)
    with pytest.raises(FormatError, match=r"KTX2 texture \(KHR_texture_basisu\), which is not supported. Convert"):
        sampled(path)
    assert describe_mesh(path)["materials"] == [{"name": "m", "textures": {"color": [16, 8]}}]
    glb.document["textures"][0]["source"] = 1
    glb.texture(PNG)
    glb.save(path)
    assert_quadrants(path)


@pytest.mark.parametrize(
    ("transform", "order"),
    [
        ({"offset": [0.5, 0.5]}, (YELLOW, BLUE, GREEN, RED)),
        ({"offset": [0, 1], "scale": [1, -1]}, (BLUE, YELLOW, RED, GREEN)),  # the extension's example of a flip
        ({"offset": [1, 0], "scale": [-1, 1]}, (GREEN, RED, YELLOW, BLUE)),
        # the extension's other example: the lower left quadrant of a picture, here by itself
        ({"offset": [0, 1], "rotation": math.pi / 2, "scale": [0.5, 0.5]}, (BLUE,) * 4),
        # counter-clockwise: u goes to where v pointed, up on the picture
        ({"offset": [0, 1], "rotation": math.pi / 2}, (BLUE, RED, YELLOW, GREEN)),
        ({"scale": [0.5, 0.5]}, (RED,) * 4),
        ({"texCoord": 1}, (GREEN,) * 4),
    ],
)
def test_texture_transform(tmp_path, transform, order):
    other = np.tile(np.array([[0.75, 0.25]], "f4"), (4, 1))
    path = textured(tmp_path, info={"extensions": {"KHR_texture_transform": transform}}, TEXCOORD_1=other)
    assert_quadrants(path, order)


def test_rotated_texture_corner_by_corner(tmp_path):
    """The formula of the extension at each corner, on a picture whose colours are its coordinates."""
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256)[None], np.arange(256)[:, None]
    turn, scale, offset = 0.4, np.array([0.5, 0.3]), np.array([0.2, 0.45])
    transform = {"rotation": turn, "scale": scale.tolist(), "offset": offset.tolist()}
    path = textured(tmp_path, encoded(Image.fromarray(ramp)), info={"extensions": {"KHR_texture_transform": transform}})
    points, rgb = sampled(path)
    uv = np.stack([points[:, 0], -points[:, 1]], axis=1) / (2 * np.abs(points).max()) + 0.5
    c, s = math.cos(turn), math.sin(turn)
    expected = (uv * scale) @ np.array([[c, s], [-s, c]]).T + offset
    np.testing.assert_allclose(rgb[:, :2] / 255, expected, atol=0.01)


def test_quantized_texture_coordinates_with_the_transform_that_undoes_them(tmp_path):
    """As gltfpack writes them."""
    stored = np.zeros((4, 4), "u2")
    stored[:, :2] = np.rint(QUAD_UV * 4095)
    glb = Glb(extensionsRequired=["KHR_mesh_quantization", "KHR_texture_transform"])
    undo = {"KHR_texture_transform": {"scale": [65535 / 4095] * 2}}
    material = {"pbrMetallicRoughness": {"baseColorTexture": {**glb.texture(PNG), "extensions": undo}}}
    path = quad_glb(tmp_path / "a.glb", material, glb, TEXCOORD_0=(stored, {"normalized": True, "type": "VEC2"}))
    glb.document["bufferViews"][glb.document["accessors"][1]["bufferView"]]["byteStride"] = 8
    glb.save(path)
    assert_quadrants(path)


def test_second_texture_coordinates(tmp_path):
    assert_quadrants(textured(tmp_path, info={"texCoord": 1}, TEXCOORD_0=np.zeros((4, 2), "f4"), TEXCOORD_1=QUAD_UV))


@pytest.mark.parametrize(
    ("wrap", "uv", "order"),
    [
        ({}, QUAD_UV + 3, (RED, GREEN, BLUE, YELLOW)),
        ({"wrapS": REPEAT, "wrapT": REPEAT}, QUAD_UV - 7, (RED, GREEN, BLUE, YELLOW)),
        ({"wrapS": MIRROR, "wrapT": REPEAT}, QUAD_UV + np.array([1, 0]), (GREEN, RED, YELLOW, BLUE)),
        ({"wrapS": MIRROR, "wrapT": MIRROR}, QUAD_UV + np.array([2, -1]), (BLUE, YELLOW, RED, GREEN)),
        ({"wrapS": CLAMP, "wrapT": CLAMP}, QUAD_UV + np.array([3, -5]), (GREEN,) * 4),
        ({"wrapS": CLAMP, "wrapT": REPEAT}, QUAD_UV + np.array([-3, 2]), (RED, RED, BLUE, BLUE)),
    ],
)
def test_wrapping(tmp_path, wrap, uv, order):
    assert_quadrants(textured(tmp_path, sampler=wrap, TEXCOORD_0=uv.astype("f4")), order)


def test_a_picture_that_repeats_does_not_drift(tmp_path):
    """Eight times along each side: the colour of every place follows from its coordinates."""
    points, rgb = sampled(textured(tmp_path, TEXCOORD_0=(QUAD_UV * 8).astype("f4")))
    uv = np.stack([points[:, 0], -points[:, 1]], axis=1) / (2 * np.abs(points).max()) + 0.5
    cell = uv * 8 % 1
    inner = (np.abs(cell - 0.5) > 0.04).all(1) & (cell > 0.04).all(1) & (cell < 0.96).all(1)
    expected = np.array([RED, GREEN, BLUE, YELLOW])[2 * (cell[:, 1] > 0.5) + (cell[:, 0] > 0.5)]
    assert inner.mean() > 0.5
    np.testing.assert_allclose(rgb[inner], expected[inner], atol=2)


def test_nearest_keeps_texels_apart(tmp_path):
    two = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    for kind, mixed in (({"magFilter": 9728}, False), ({"magFilter": 9729}, True)):
        _, rgb = sampled(textured(tmp_path, encoded(two), sampler=kind))
        pure = (np.abs(rgb - RED).max(1) < 1) | (np.abs(rgb - BLUE).max(1) < 1)
        assert pure.all() != mixed


# --- colours ---------------------------------------------------------------------------------------------------------


def test_factor_vertex_colour_and_texture_multiply_as_light(tmp_path):
    grey = encoded(Image.new("RGB", (2, 2), (188, 188, 188)))  # 0.5 as light
    color = np.tile(np.array([[0.5, 1, 0.25, 1]], "f4"), (4, 1))
    path = textured(tmp_path, grey, more={"baseColorFactor": [1, 0.5, 1, 1]}, COLOR_0=color)
    light = 0.50289
    assert_color(path, tuple(srgb(light * factor) for factor in (0.5, 0.5, 0.25)))


@pytest.mark.parametrize(
    "color",
    [
        (np.tile(np.array([[0, 0.5, 0, 1]], "f4"), (4, 1)), {}),
        (np.tile(np.array([[0, 0.5, 0]], "f4"), (4, 1)), {}),
        (np.tile(np.array([[0, 32768, 0, 65535]], "u2"), (4, 1)), {"normalized": True}),
        (np.tile(np.array([[0, 128, 0, 255]], "u1"), (4, 1)), {"normalized": True}),
        (np.tile(np.array([[0, 128, 0, 255]], "u1"), (4, 1)), {}),  # what several exporters forget
    ],
)
@pytest.mark.parametrize("material", [None, {}])
def test_vertex_colours_of_every_type(tmp_path, color, material):
    assert_color(quad_glb(tmp_path / "a.glb", material, COLOR_0=color), (0, srgb(0.5), 0))


def test_emission_is_added_and_unlit_has_none(tmp_path):
    for unlit in (False, True):
        glb = Glb()
        material = {
            "pbrMetallicRoughness": {"baseColorFactor": [0.25, 0, 0, 1]},
            "emissiveTexture": glb.texture(encoded(Image.new("RGB", (2, 2), (255, 255, 255)))),
            "emissiveFactor": [0.1, 0.2, 0],
            "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 2}},
        }
        if unlit:
            material["extensions"]["KHR_materials_unlit"] = {}
        light = (0.25, 0, 0) if unlit else (0.45, 0.4, 0)
        assert_color(quad_glb(tmp_path / "a.glb", material, glb), tuple(map(srgb, light)))


def test_emission_alone_is_seen(tmp_path):
    glb = Glb()
    material = {
        "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]},
        "emissiveTexture": glb.texture(PNG),
        "emissiveFactor": [1, 1, 1],
    }
    assert_quadrants(quad_glb(tmp_path / "a.glb", material, glb))


def test_specular_glossiness(tmp_path):
    glb = Glb()
    glossy = {"diffuseTexture": glb.texture(PNG), "diffuseFactor": [1, 1, 1, 1]}
    assert_quadrants(quad_glb(tmp_path / "a.glb", {"extensions": {"KHR_materials_pbrSpecularGlossiness": glossy}}, glb))


@pytest.mark.parametrize(("mode", "share"), [("OPAQUE", 1.0), ("MASK", 0.5), ("BLEND", 0.75)])
def test_what_is_transparent_is_not_there(tmp_path, mode, share):
    """Alpha of 1, 0.3 and 0 in columns: a mask cuts at one half, glass is seen, nothing is not."""
    alpha = np.zeros((8, 8, 4), np.uint8)
    alpha[..., 0], alpha[:, :4, 3], alpha[:, 4:6, 3] = 255, 255, 77
    glb = Glb()
    reference = glb.texture(encoded(Image.fromarray(alpha)), magFilter=9728)
    material = {"alphaMode": mode, "pbrMetallicRoughness": {"baseColorTexture": reference}}
    points, _ = sampled(quad_glb(tmp_path / "a.glb", material, glb))
    assert len(points) == 2000
    width, height = np.ptp(points[:, 0]), np.ptp(points[:, 1])
    assert width / height == pytest.approx(share, abs=0.01)


def test_all_transparent_is_shown_and_said(tmp_path, caplog):
    material = {"alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0]}}
    assert_color(quad_glb(tmp_path / "a.glb", material), (255, 0, 0))
    assert "transparent" in caplog.text


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scale"), [("i1", 127), ("i2", 32767), ("u1", 255), ("u2", 65535)])
@pytest.mark.parametrize("normalized", [True, False])
def test_quantized_positions(tmp_path, kind, scale, normalized):
    """KHR_mesh_quantization, undone by the node (as gltfpack does) or left in whole numbers."""
    unit = (QUAD[:, :3] + 1) / 2
    stored = np.zeros((4, 4), kind)
    stored[:, :3] = np.rint(unit * scale)
    factor = 3 if normalized else 3 / scale
    glb = Glb(extensionsRequired=["KHR_mesh_quantization"])
    glb.document["nodes"] = [{"mesh": 0, "scale": [factor] * 3, "translation": [-1, 0, 0]}]
    place = {"normalized": normalized, "type": "VEC3"}
    path = quad_glb(tmp_path / "a.glb", {}, glb, POSITION=(stored, place))
    glb.document["bufferViews"][0]["byteStride"] = stored.itemsize * 4
    glb.save(path)
    middle = np.rint(0.5 * scale) / scale * 3
    assert describe_mesh(path)["bounds"] == [[-1, 0, round(middle, 6)], [2, 3, round(middle, 6)]]


def test_interleaved_and_sparse(tmp_path):
    """Positions and coordinates in one view of stride 20; then the first corner is moved, and a whole accessor given,
    by sparse values."""
    rows = np.concatenate([QUAD, QUAD_UV], axis=1).astype("f4")
    glb = Glb(meshes=[])
    shared = glb.view(rows.tobytes(), byteStride=20)
    where, what = glb.view(np.array([0], "u1").tobytes()), glb.view(np.array([[-3, -1, 0]], "f4").tobytes())
    float3 = {"componentType": 5126, "count": 4, "type": "VEC3"}
    sparse = {"count": 1, "indices": {"bufferView": where, "componentType": 5121}, "values": {"bufferView": what}}
    glb.document["accessors"] = [
        {**float3, "bufferView": shared, "sparse": sparse},
        {**float3, "bufferView": shared, "byteOffset": 12, "type": "VEC2"},
    ]
    moved = QUAD + np.array([10, 0, 0], "f4")
    all_of_it = glb.view(np.arange(4, dtype="u1").tobytes()), glb.view(moved.tobytes())
    glb.document["accessors"].append(
        {
            **float3,
            "sparse": {
                "count": 4,
                "indices": {"bufferView": all_of_it[0], "componentType": 5121},
                "values": {"bufferView": all_of_it[1]},
            },
        }
    )
    material = {"pbrMetallicRoughness": {"baseColorTexture": glb.texture(PNG)}}
    indices = glb.accessor(QUAD_FACES)
    glb.document["materials"] = [material]
    glb.document["meshes"] = [
        {
            "primitives": [
                {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": indices, "material": 0},
                {"attributes": {"POSITION": 2}, "indices": indices, "material": 0},
            ]
        }
    ]
    scene = read_scene(glb.save(tmp_path / "a.glb"))
    np.testing.assert_array_equal(scene.parts[0].positions, [[-3, -1, 0], *QUAD[1:]])
    np.testing.assert_array_equal(scene.parts[0].uv[0], QUAD_UV[QUAD_FACES.reshape(2, 3)])
    np.testing.assert_array_equal(scene.parts[1].positions, moved)
    assert any("coordinates are missing" in note for note in scene.notes)


@pytest.mark.parametrize(
    ("mode", "indices", "faces"),
    [
        (5, [0, 1, 3, 2], [[0, 1, 3], [3, 1, 2]]),
        (5, None, [[0, 1, 2], [2, 1, 3]]),
        (6, [0, 1, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (4, None, [[0, 1, 2]]),
        (5, [0, 1, 2, 2, 2, 3, 0], [[0, 1, 2], [2, 3, 0]]),  # two strips, joined by triangles without area
    ],
)
def test_strips_and_fans(tmp_path, mode, indices, faces):
    glb = Glb()
    primitive = glb.primitive(None if indices is None else np.array(indices, "u1"), POSITION=QUAD)
    glb.document["meshes"] = [{"primitives": [{**primitive, "mode": mode}]}]
    (part,) = read_scene(glb.save(tmp_path / "a.glb")).parts
    rolled = [sorted(face[k:] + face[:k] for k in range(3))[0] for face in part.faces.tolist()]
    assert rolled == [sorted(face[k:] + face[:k] for k in range(3))[0] for face in faces]


def test_points_and_lines(tmp_path):
    glb = Glb()
    color = np.tile(np.array([[1, 0, 0, 1]], "f4"), (4, 1))
    points = {**glb.primitive(None, POSITION=QUAD, COLOR_0=color), "mode": 0}
    lines = {**glb.primitive(np.array([0, 1], "u1"), POSITION=QUAD), "mode": 1}
    glb.document["meshes"] = [{"primitives": [points, lines]}]
    path = glb.save(tmp_path / "a.glb")
    assert_color(path, (255, 0, 0))
    facts = describe_mesh(path)
    assert (facts["vertices"], facts["faces"], facts["notes"]) == (4, 0, ["lines are ignored"])


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_nodes_instances_mirrors_and_what_is_hidden(tmp_path):
    glb = Glb(extensionsUsed=["KHR_node_visibility", "EXT_mesh_gpu_instancing"])
    places = glb.accessor(np.array([[0, 0, 0], [0, 5, 0]], "f4"))
    sizes = glb.accessor(np.array([[1, 1, 1], [2, 2, 2]], "f4"))
    half_turn = math.sqrt(0.5)
    glb.document |= {
        "scenes": [{"nodes": [9]}, {"nodes": [0]}],
        "scene": 1,
        "nodes": [
            {"children": [1, 2, 3], "translation": [100, 0, 0]},
            {"mesh": 0, "rotation": [0, 0, half_turn, half_turn], "scale": [2, 1, 1]},  # a quarter turn about z
            {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 7, 1]},
            {"children": [4], "extensions": {"KHR_node_visibility": {"visible": False}}},
            {"mesh": 0, "translation": [0, 999, 0]},
        ],
    }
    glb.document["nodes"] += [{"mesh": 0, "translation": [0, 555, 0]}] * 5  # in the other scene, or in none
    instances = {"attributes": {"TRANSLATION": places, "SCALE": sizes}}
    glb.document["nodes"].append({"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": instances}})
    glb.document["nodes"][0]["children"].append(10)
    scene = read_scene(quad_glb(tmp_path / "a.glb", {}, glb))
    boxes = [(part.positions.min(0).round(5).tolist(), part.positions.max(0).round(5).tolist()) for part in scene.parts]
    assert boxes == [([99, -2, 0], [101, 2, 0]), ([99, -1, 7], [101, 1, 7]), ([98, -1, 0], [102, 7, 0])]
    assert [len(part.faces) for part in scene.parts] == [2, 2, 4]
    for part in scene.parts:
        a, b, c = part.positions[part.faces].transpose(1, 0, 2)
        assert (np.cross(b - a, c - a)[:, 2] > 0).all()  # a mirror does not turn the faces inside out


def test_skins_and_morph_targets_at_rest(tmp_path):
    """The right half follows a joint that is moved up; a target of weight one half pushes everything out."""
    joints = np.zeros((4, 4), "u1")
    joints[[1, 2], 0] = 1
    weights = np.zeros((4, 4), "u1")
    weights[:, 0] = 255
    bind = np.tile(np.eye(4, dtype="f4"), (2, 1, 1))
    bind[1, :3, 3] = [-1, 0, 0]  # the second joint was at x = 1 when it was bound
    glb = Glb(nodes=[{"mesh": 0, "skin": 0, "translation": [0, 0, 77]}, {"children": [2]}, {"translation": [1, 5, 0]}])
    glb.document["scenes"] = [{"nodes": [0, 1]}]
    inverse = glb.accessor(bind.transpose(0, 2, 1).reshape(2, 16))
    glb.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": inverse}]
    path = quad_glb(tmp_path / "a.glb", {}, glb, JOINTS_0=joints, WEIGHTS_0=(weights, {"normalized": True}))
    glb.document["meshes"][0]["primitives"][0]["targets"] = [
        {"POSITION": glb.accessor(np.tile([[0, 0, 4]], (4, 1)).astype("f4"))}
    ]
    glb.document["meshes"][0]["weights"] = [0.5]
    (part,) = read_scene(glb.save(path)).parts
    np.testing.assert_allclose(part.positions, [[-1, -1, 2], [1, 4, 2], [1, 6, 2], [-1, 1, 2]], atol=1e-6)


# --- compressed ------------------------------------------------------------------------------------------------------


def sphere(n=24):
    u, v = np.meshgrid(np.linspace(0, np.pi, n), np.linspace(0, 2 * np.pi, 2 * n), indexing="ij")
    positions = np.stack([np.sin(u) * np.cos(v), np.cos(u), np.sin(u) * np.sin(v)], axis=-1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(2 * n - 1), indexing="ij")
    a = (i * 2 * n + j).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + 2 * n], 1), np.stack([a + 1, a + 2 * n + 1, a + 2 * n], 1)])
    return positions.astype("f4"), faces.astype("u4")


def assert_plain(path, part):
    """What a page gets needs no codec, and is the same mesh to another reader."""
    data = plain_glb(path)
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    assert not {"extensionsUsed", "extensionsRequired"} & document.keys()
    assert "compression" not in json.dumps(document)
    (mesh,) = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    scale = 32767 if mesh.vertices.max() > 2 else 1  # it takes normalized numbers as they are
    np.testing.assert_allclose(mesh.vertices[mesh.faces] / scale, part.positions[part.faces], atol=1e-6)


def test_draco(tmp_path):
    codec = pytest.importorskip("DracoPy")
    positions, faces = sphere()
    colors = np.rint((positions + 1) * 127.5).astype("u1")
    name = "KHR_draco_mesh_compression"
    glb = Glb(extensionsUsed=[name], extensionsRequired=[name], materials=[{}])
    packed = codec.encode(positions, faces, quantization_bits=14, colors=colors)
    ids = {one["attribute_type"]: one["unique_id"] for one in codec.decode(packed).attributes}
    about = {"bufferView": glb.view(packed), "attributes": {"POSITION": ids[0], "COLOR_0": ids[2]}}
    glb.document["accessors"] = [
        {"componentType": 5126, "count": len(positions), "type": "VEC3"},
        {"componentType": 5121, "normalized": True, "count": len(positions), "type": "VEC3"},
        {"componentType": 5125, "count": faces.size, "type": "SCALAR"},
    ]
    places = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    glb.document["meshes"] = [{"primitives": [{**places, "extensions": {name: about}}]}]
    path = glb.save(tmp_path / "a.glb")
    facts = describe_mesh(path)
    assert 0.95 * len(faces) < facts["faces"] <= len(faces)  # those without area are lost at the poles
    np.testing.assert_allclose(facts["bounds"], [[-1] * 3, [1] * 3], atol=0.01)
    (part,) = read_scene(path).parts
    np.testing.assert_allclose(part.colors[:, :3], (part.positions + 1) / 2, atol=0.01)
    assert_plain(path, part)
    glb.document["accessors"][0]["count"] = 10**9
    glb.save(path)
    with pytest.raises(FormatError, match="promises more than"):
        describe_mesh(path)


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_meshopt(tmp_path, name):
    codec = pytest.importorskip("meshopt")
    positions, faces = sphere()
    glb = Glb(extensionsUsed=[name], extensionsRequired=[name], materials=[{}])
    stored = np.zeros((len(positions), 4), "i2")
    stored[:, :3] = np.rint(positions * 32767)
    views = [
        (codec.encode_gltf_buffer(stored, "ATTRIBUTES"), stored, 8, "ATTRIBUTES"),
        (codec.encode_gltf_buffer(faces.reshape(-1), "TRIANGLES"), faces.reshape(-1), 4, "TRIANGLES"),
    ]
    for data, table, stride, mode in views:
        i = glb.view(data)
        packed = {**glb.document["bufferViews"][i], "byteStride": stride, "count": len(table), "mode": mode}
        glb.document["bufferViews"][i] = {
            "buffer": 1,
            "byteLength": table.nbytes,
            "extensions": {name: packed},
            **({"byteStride": stride} if mode == "ATTRIBUTES" else {}),
        }
    glb.document["accessors"] = [
        {"bufferView": 0, "componentType": 5122, "normalized": True, "count": len(positions), "type": "VEC3"},
        {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"},
    ]
    glb.document["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}]
    glb.document["buffers"] = [{"byteLength": len(glb.blob)}, {"byteLength": 99999, "extensions": {name: {}}}]
    path = glb.save(tmp_path / "a.glb")
    (part,) = read_scene(path).parts
    np.testing.assert_allclose(np.linalg.norm(part.positions, axis=1), 1, atol=1e-4)
    assert len(part.faces) == len(faces)
    assert_plain(path, part)
    glb.document["bufferViews"][0]["extensions"][name]["count"] = 10**8
    glb.save(path)
    with pytest.raises(FormatError, match="promises 800000000 bytes"):
        read_scene(path)


@pytest.mark.parametrize(
    ("name", "module"), [("KHR_draco_mesh_compression", "DracoPy"), ("EXT_meshopt_compression", "meshopt")]
)
def test_a_codec_that_is_not_installed_is_named(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    glb = Glb(extensionsRequired=[name])
    path = quad_glb(tmp_path / "a.glb", {}, glb)
    if module == "DracoPy":
        packed = {"bufferView": 0, "attributes": {"POSITION": 0}}
        glb.document["meshes"][0]["primitives"][0]["extensions"] = {name: packed}
    else:
        view = glb.document["bufferViews"][0]
        view["extensions"] = {name: {**view, "count": 4, "byteStride": 12, "mode": "ATTRIBUTES"}}
    glb.save(path)
    with pytest.raises(FormatError, match=rf'{module} is not installed.*pip install "psd-gs\[compressed\]"'):
        read_scene(path)


# --- what is refused, and what is said -------------------------------------------------------------------------------


def test_an_unknown_required_extension_is_named(tmp_path):
    path = quad_glb(tmp_path / "a.glb", {}, Glb(extensionsRequired=["ACME_\x1b[31mvoxels", "KHR_materials_sheen"]))
    with pytest.raises(FormatError, match=r"requires ACME_\\x1b\[31mvoxels, which is not supported"):
        read_scene(path)


def test_what_is_ignored_is_said(tmp_path, caplog):
    glb = Glb(extensionsUsed=["ACME_sparkle", "KHR_texture_transform"], animations=[{}])
    path = quad_glb(tmp_path / "a.glb", {}, glb)
    with caplog.at_level(logging.WARNING):
        read_points(path, 10, torch.Generator())
    assert caplog.text.count("extensions that are ignored: ACME_sparkle") == 1
    assert "at rest" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asset": {"version": "1.0"}}, "expected glTF 2.0, received version '1.0'"),
        ({"extensionsUsed": ["KHR_gaussian_splatting"]}, "received splats"),
        ({"nodes": [{"mesh": 0, "children": [0]}]}, "two parents"),
        ({"nodes": [{"mesh": 0, "scale": [1, "x", 1]}]}, "cannot be read"),
        ({"nodes": [{"mesh": -1}]}, "no entry -1"),
        ({"scene": 3}, "no entry 3"),
        ({"accessors": 3}, "no list of objects"),
    ],
)
def test_unsound_documents(tmp_path, change, message):
    path = quad_glb(tmp_path / "a.glb", {})
    glb = Glb()
    quad_glb(path, {}, glb)
    glb.document |= change
    with pytest.raises(FormatError, match=message):
        read_scene(glb.save(path))


def test_a_gltf_that_is_binary_and_a_glb_that_is_not(tmp_path):
    quad_glb(tmp_path / "a.glb", {})
    (tmp_path / "b.gltf").write_bytes((tmp_path / "a.glb").read_bytes())
    assert len(read_scene(tmp_path / "b.gltf").parts) == 1
