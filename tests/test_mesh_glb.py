"""The GLB writer, read back by two independent readers and checked against the rules of the format."""

import json
import struct

import numpy as np
import pygltflib
import pytest
import trimesh

from psd_gs import __version__
from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.errors import InputError
from psd_gs.mesh.glb import write_glb
from psd_gs.mesh.surface import Mesh, vertex_normals


def tall_box() -> Mesh:
    """2 wide (x), 6 high (y), 4 deep (z), standing on y = 0; red at the bottom, grey on top."""
    box = trimesh.creation.box(extents=(2, 6, 4)).apply_translation([0, 3, 0])
    vertices, faces = np.asarray(box.vertices, np.float32), np.asarray(box.faces, np.int64)
    colors = np.where(vertices[:, 1:2] > 3, [0.5, 0.5, 0.5], [1.0, 0.0, 0.25]).astype(np.float32)
    return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))


def test_trimesh_reads_it(tmp_path):
    box = tall_box()
    metadata = {"prompt": "a büchse", "seed": 3, "score": float("nan")}
    write_glb(box, tmp_path / "a.glb", metadata=metadata)
    scene = trimesh.load_scene(tmp_path / "a.glb", process=False)
    (mesh,) = scene.geometry.values()
    np.testing.assert_array_equal(scene.bounds, [[-1, 0, -2], [1, 6, 2]])
    np.testing.assert_array_equal(mesh.vertices, box.vertices)
    np.testing.assert_array_equal(mesh.faces, box.faces)
    np.testing.assert_allclose(mesh.vertex_normals, box.normals, atol=1e-6)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(48)
    linear = mesh.visual.vertex_attributes["color"] / 65535
    assert (linear[:, 3] == 1).all()
    top = box.vertices[:, 1] > 3
    np.testing.assert_allclose(linear[top, :3], 0.21404, atol=2e-5)  # the sRGB standard's value for 0.5
    np.testing.assert_allclose(linear[~top, 2], 0.05088, atol=2e-5)  # and for 0.25
    assert mesh.visual.material.metallicFactor == 0
    assert mesh.visual.material.roughnessFactor == pytest.approx(0.9)


def test_structure(tmp_path):
    write_glb(tall_box(), tmp_path / "a.glb", metadata={"prompt": "a box", "score": float("inf")})
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length, json_length, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    assert json_length % 4 == 0
    document = json.loads(data[20 : 20 + json_length], parse_constant=pytest.fail)
    body_length, kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert kind == b"BIN\0"
    assert body_length == document["buffers"][0]["byteLength"] == len(data) - 28 - json_length

    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert gltf.asset.generator == f"psd-gs {__version__}"
    assert gltf.asset.extras == gltf.nodes[0].extras == {"psd_gs": {"prompt": "a box", "score": None}}
    assert gltf.nodes[0].rotation is None
    (primitive,) = gltf.meshes[0].primitives
    accessors = {
        name: gltf.accessors[getattr(primitive.attributes, name)] for name in ("POSITION", "NORMAL", "COLOR_0")
    }
    assert accessors["POSITION"].min == [-1, 0, -2]
    assert accessors["POSITION"].max == [1, 6, 2]
    assert (accessors["COLOR_0"].componentType, accessors["COLOR_0"].normalized) == (pygltflib.UNSIGNED_SHORT, True)
    indices = gltf.accessors[primitive.indices]
    assert (indices.componentType, indices.count) == (pygltflib.UNSIGNED_SHORT, 36)
    assert [view.target for view in gltf.bufferViews] == [34962] * 3 + [34963]
    for view in gltf.bufferViews:
        assert view.byteOffset % 4 == 0
        assert view.byteOffset + view.byteLength <= body_length


@pytest.mark.parametrize(("count", "component"), [(65535, pygltflib.UNSIGNED_SHORT), (65536, pygltflib.UNSIGNED_INT)])
def test_index_width(tmp_path, count, component):
    vertices = np.random.default_rng(0).random((count, 3)).astype(np.float32)
    faces = np.array([[0, 1, count - 1]])
    write_glb(Mesh(vertices, faces, vertices, np.tile(np.float32([0, 1, 0]), (count, 1))), tmp_path / "a.glb")
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert gltf.accessors[gltf.meshes[0].primitives[0].indices].componentType == component
    assert gltf.asset.extras == {}
    (mesh,) = trimesh.load_scene(tmp_path / "a.glb", process=False).geometry.values()
    assert mesh.faces.tolist() == faces.tolist()


def test_transfer_function():
    values = np.linspace(0, 1, 257)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7)
    np.testing.assert_allclose(srgb_to_linear(values), trimesh.visual.color.srgb_to_linear(values), atol=1e-7)


def test_broken_meshes_are_refused(tmp_path):
    box = tall_box()
    box.vertices[0, 0] = np.nan
    with pytest.raises(InputError, match="finite vertices"):
        write_glb(box, tmp_path / "a.glb")
    empty = Mesh(*(np.zeros((0, 3), kind) for kind in (np.float32, np.int64, np.float32, np.float32)))
    with pytest.raises(InputError, match="at least one face"):
        write_glb(empty, tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())
