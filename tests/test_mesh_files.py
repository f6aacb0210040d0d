"""Mesh files, read back by other programs: place and size, levels, collision shapes, and ``psd-gs mesh`` itself."""

from __future__ import annotations

import json
import sys

import numpy as np
import pygltflib
import pytest
import trimesh
from PIL import Image
from test_mesh_texture import SIZE, ball, splat_ball

from psd_gs.cli import main
from psd_gs.errors import BackendError, InputError
from psd_gs.export.formats import save
from psd_gs.mesh import build as build_module
from psd_gs.mesh.build import BuildOptions, Placement, build, place
from psd_gs.mesh.extract import MeshOptions
from psd_gs.mesh.glb import write_glb
from psd_gs.mesh.save import save_mesh
from psd_gs.mesh.shapes import HULL_FACES, collision_shapes, convex_hull
from psd_gs.mesh.texture import TexturedMesh, tangents

SMALL = MeshOptions(resolution=32, views=12, faces=600)


def textured() -> TexturedMesh:
    """A quarter of a turn of colours over a ball; the atlas need not be a good one here."""
    mesh = ball(2)
    uv = np.float32([0.5, 0.5]) + 0.5 * mesh.vertices[:, :2]
    color = np.zeros((16, 16, 3), np.uint8)
    color[:8], color[8:] = (200, 10, 30), (20, 120, 40)  # the upper rows red, the lower green
    tangent = tangents(mesh.vertices, mesh.faces, mesh.normals, uv)
    return TexturedMesh(mesh.vertices, mesh.faces, mesh.normals, uv, color, tangent, color)


def test_glb_with_textures(tmp_path):
    mesh = textured()
    write_glb(mesh, tmp_path / "a.glb", metadata={"prompt": "ein Bär"})
    (read,) = trimesh.load_scene(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_array_equal(read.vertices, mesh.vertices)
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_allclose(read.visual.uv, mesh.uv * [1, -1] + [0, 1], atol=1e-6)  # trimesh turns v up
    material = read.visual.material
    np.testing.assert_array_equal(np.asarray(material.baseColorTexture.convert("RGB")), mesh.color)
    np.testing.assert_array_equal(np.asarray(material.normalTexture.convert("RGB")), mesh.normal_map)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert [image.mimeType for image in gltf.images] == ["image/png"] * 2
    assert gltf.nodes[0].extras["psd_gs"] == {"prompt": "ein Bär"}
    assert gltf.meshes[0].primitives[0].attributes.TANGENT is not None
    assert gltf.extensionsUsed == []


def test_unlit(tmp_path):
    write_glb(textured(), tmp_path / "a.glb", unlit=True)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert gltf.extensionsUsed == ["KHR_materials_unlit"]
    assert gltf.materials[0].extensions == {"KHR_materials_unlit": {}}
    assert gltf.materials[0].normalTexture is None
    assert gltf.meshes[0].primitives[0].attributes.TANGENT is None


def test_collision_names(tmp_path):
    mesh = textured()
    shapes = [convex_hull(mesh.vertices[mesh.vertices[:, 0] * side > 0]) for side in (1, -1)]
    write_glb(mesh, tmp_path / "a.glb", collision=shapes)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert [node.name for node in gltf.nodes] == ["asset", "asset_00-convcolonly", "asset_01-convcolonly"]
    assert [mesh.name for mesh in gltf.meshes] == ["asset", "UCX_asset_00", "UCX_asset_01"]
    assert gltf.nodes[0].children == [1, 2]
    scene = trimesh.load_scene(tmp_path / "a.glb", process=False)
    assert len(scene.geometry) == 3
    assert scene.geometry["UCX_asset_00"].is_convex


def test_hulls_are_convex_small_and_never_stick_out():
    mesh = ball(4)
    ((vertices, faces),) = collision_shapes(mesh.vertices, mesh.faces, "hull")
    hull = trimesh.Trimesh(vertices, faces)
    assert hull.is_convex
    assert hull.is_watertight
    assert 100 < len(faces) <= HULL_FACES
    assert 0.95 * 4 / 3 * np.pi * 0.125 < hull.volume <= 4 / 3 * np.pi * 0.125
    assert collision_shapes(mesh.vertices, mesh.faces, "none") == []
    with pytest.raises(InputError, match="a flat one"):
        convex_hull(mesh.vertices * [1, 0, 1])


def test_coacd_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "coacd", None)
    mesh = ball(1)
    with pytest.raises(BackendError, match=r"psd-gs\[collision\]"):
        collision_shapes(mesh.vertices, mesh.faces, "coacd")


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl"])
def test_other_formats(tmp_path, suffix):
    mesh = textured()
    metadata = {"prompt": "ein Bär"}
    files = save_mesh(mesh, tmp_path / f"a{suffix}", metadata=metadata)
    assert set(files) == set(tmp_path.iterdir())
    (read,) = trimesh.load_scene(tmp_path / f"a{suffix}", process=False).geometry.values()
    np.testing.assert_allclose(read.triangles, mesh.vertices[mesh.faces], atol=1e-6)
    assert json.loads((tmp_path / f"a{suffix}.json").read_text(encoding="utf-8"))["prompt"] == "ein Bär"
    if suffix == ".obj":
        colors = np.asarray(read.visual.to_color().vertex_colors)[:, :3]
        top = read.vertices[:, 1] < -0.2  # small y has small v here: the upper rows
        assert np.abs(colors[top].astype(int) - [200, 10, 30]).max() <= 1
        assert (tmp_path / "a_normal.png").exists()
    if suffix == ".ply":
        low = mesh.vertices[:, 1] < -0.2
        assert np.abs(np.asarray(read.visual.vertex_colors)[low, :3].astype(int) - [200, 10, 30]).max() <= 1
        assert b"comment psd_gs {" in (tmp_path / "a.ply").read_bytes()


def test_obj_with_vertex_colours_and_collision(tmp_path):
    mesh = ball(2)
    save_mesh(mesh, tmp_path / "a.obj", collision=[convex_hull(mesh.vertices)])
    assert {path.name for path in tmp_path.iterdir()} == {"a.obj"}
    read = trimesh.load_scene(tmp_path / "a.obj", process=False, split_objects=True, group_material=False).geometry
    assert {"asset", "UCX_asset_00"} == {name.split(".")[0] for name in read}


@pytest.mark.parametrize(("height", "pivot"), [(None, "keep"), (2.0, "keep"), (2.0, "base"), (None, "center")])
def test_place(height, pivot):
    box = np.float32([[1, 2, 3], [3, 6, 4]])
    placement = place(box, height, pivot)
    low, high = placement(box)
    assert high[1] - low[1] == pytest.approx(height or 4)
    assert placement.scale == (0.5 if height else 1)
    if pivot == "keep":
        np.testing.assert_allclose(low, placement.scale * box[0])
    else:
        np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-6)
        assert (low[1] if pivot == "base" else low[1] + high[1]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="higher than 0"):
        place(box * [1, 0, 1], 1.0, "base")


def test_levels_share_the_place():
    options = BuildOptions(SMALL, texture_size=128, texture_views=4, lods=2, height=3.0, pivot="base", collision="hull")
    stages = []
    built = build(splat_ball(1500), options, on_stage=stages.append)
    counts = [len(mesh.faces) for mesh in built.levels]
    assert counts[0] <= 600
    assert counts[1] <= 300
    assert counts[2] <= 150
    assert [len(mesh.color) for mesh in built.levels] == [128, 64, 64]
    for mesh in built.levels:
        assert mesh.vertices[:, 1].min() == pytest.approx(0, abs=0.1)
        assert mesh.vertices[:, 1].max() == pytest.approx(3, abs=0.1)
    assert len(built.collision) == 1
    assert "level of detail 2" in stages
    facts = built.facts(1)
    assert (facts["lod"], facts["faces"], facts["watertight"]) == (1, counts[1], True)
    undone = Placement(facts["splat_scale"], tuple(facts["splat_offset"])).undo(built.levels[0])
    assert np.linalg.norm(undone.vertices, axis=1).max() < 0.55


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save(splat_ball(1500), "a.ply", metadata={"prompt": "a ball", "seed": 3})

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["mesh", *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


SMALL_FLAGS = ("--resolution", "32", "--faces", "600", "--texture-size", str(SIZE), "--texture-views", "4")


def test_command(command, tmp_path):
    flags = ("--height", "2", "--collision", "hull", "--lods", "1", "--preview", "p.png")
    code, out, err = command("a.ply", "b.glb", *SMALL_FLAGS, *flags)
    assert (code, err) == (0, "")
    assert "watertight, 1 bodies" in out
    names = {"a.ply", "a.ply.json", "p.png", "b.glb", "b.glb.json", "b_lod1.glb", "b_lod1.glb.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    gltf = pygltflib.GLTF2().load("b.glb")
    facts = gltf.asset.extras["psd_gs"]
    assert (facts["prompt"], facts["seed"], facts["frame"]) == ("a ball", 3, "gltf")
    low, high = np.array(facts["bounds"])
    assert (low[1], high[1]) == (pytest.approx(0, abs=1e-5), pytest.approx(2, abs=1e-5))
    assert len(gltf.nodes) == 2
    with Image.open("p.png") as picture:
        assert picture.size[0] > 4 * 320


def test_command_without_metadata(command, tmp_path):
    assert command("a.ply", "b.stl", *SMALL_FLAGS[:4], "--no-metadata", "--pivot", "keep")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.ply", "a.ply.json", "b.stl"}
    low, high = trimesh.load_mesh("b.stl").bounds
    np.testing.assert_allclose(low, -0.5, atol=0.03)
    np.testing.assert_allclose(high, 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("nothing.ply", "b.glb"), ["cannot read nothing.ply"]),
        (("a.ply", "b.fbx"), ["b.fbx: expected a mesh file", "Blender"]),
        (("a.ply", "no/b.glb"), ["no/b.glb: expected the name of a file"]),
        (("a.ply", "a.ply"), ["expected another file"]),
        (("text.ply", "b.glb"), ["text.ply is not a PLY file"]),
        (("a.txt", "b.glb"), ["a.txt: expected a splat file"]),
        (("a.ply", "b.glb", "--texture-size", "1000"), ["--texture-size", "power of two"]),
        (("a.ply", "b.glb", "--height", "-1"), ["--height"]),
        (("a.ply", "b.glb", "--lods", "9"), ["--lods"]),
        (("a.ply", "b.glb", "--resolution", "5"), ["resolution"]),
        (("a.ply", "b.stl", "--collision", "hull"), ["b.stl: expected .glb or .obj"]),
        (("a.ply", "b.glb", "--preview", "p.gif"), ["--preview: expected a .png"]),
        (("clear.ply", "b.glb"), ["expected an asset with an opaque surface"]),
    ],
)
def test_bad_input_is_one_line_and_no_file(command, tmp_path, arguments, parts):
    (tmp_path / "text.ply").write_text("hello")
    (tmp_path / "a.txt").write_text("hello")
    clear = splat_ball(20)
    clear.opacities[:] = -9
    save(clear, "clear.ply")
    before = {path.name for path in tmp_path.iterdir()}
    code, _, err = command(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_nothing_is_left_when_writing_fails(command, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "bake", lambda *a, **k: textured())
    monkeypatch.setattr("os.replace", full)
    before = {path.name for path in tmp_path.iterdir()}
    code, _, err = command("a.ply", "b.glb", *SMALL_FLAGS)
    assert (code, err.startswith("error: cannot write b.glb: No space left")) == (1, True)
    assert {path.name for path in tmp_path.iterdir()} == before
