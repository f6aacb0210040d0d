"""What ``psd-gs info`` says of meshes: ours in every format, and those of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from test_mesh_files import textured
from test_mesh_glb import tall_box

from psd_gs.cli import main
from psd_gs.errors import FormatError
from psd_gs.mesh.describe import describe_mesh
from psd_gs.mesh.save import save_mesh
from psd_gs.mesh.shapes import convex_hull
from psd_gs.mesh.surface import Mesh

ORIGIN = {"prompt": "ein Bär", "seed": 3, "units": "metres"}


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_our_files(tmp_path, suffix):
    box = tall_box()
    collision = [convex_hull(box.vertices)] * 2 if suffix in (".glb", ".obj") else []
    save_mesh(box, tmp_path / f"a{suffix}", metadata=ORIGIN, collision=collision)
    save_mesh(box, tmp_path / f"a_lod1{suffix}")
    save_mesh(box, tmp_path / f"ab_lod1{suffix}")
    facts = describe_mesh(tmp_path / f"a{suffix}")
    assert facts["bytes"] == (tmp_path / f"a{suffix}").stat().st_size
    assert (facts["vertices"], facts["faces"]) == (36 if suffix == ".stl" else 8, 12)
    assert (facts["bodies"], facts["watertight"], facts["boundary_edges"]) == (1, True, 0)
    assert facts["bounds"] == [[-1, 0, -2], [1, 6, 2]]
    assert facts["collision_shapes"] == len(collision)
    assert facts["lods"] == [f"a_lod1{suffix}"]
    assert {name: facts["metadata"][name] for name in ORIGIN} == ORIGIN


@pytest.mark.parametrize(("suffix", "maps"), [(".glb", {"color", "normal"}), (".obj", {"color"})])
def test_textures(tmp_path, suffix, maps):
    save_mesh(textured(), tmp_path / f"a{suffix}", metadata=None)
    facts = describe_mesh(tmp_path / f"a{suffix}")
    assert facts["materials"] == [{"name": "asset", "textures": {name: [16, 16] for name in maps}}]
    assert (facts["watertight"], facts["metadata"], facts["lods"]) == (True, {}, [])


def test_transforms_seams_and_holes(tmp_path):
    """Two halves of a box that only share places, apart from a lid that is missing, and a box far away."""
    box = trimesh.creation.box()
    lower, upper = (trimesh.Trimesh(box.vertices, box.faces[rows], process=False) for rows in (slice(6), slice(6, 11)))
    scene = trimesh.Scene({"lower": lower, "upper": upper})
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.export(tmp_path / "a.glb")
    facts = describe_mesh(tmp_path / "a.glb")
    assert (facts["faces"], facts["bodies"], facts["watertight"], facts["boundary_edges"]) == (23, 2, False, 3)
    assert facts["bounds"] == [[-0.5] * 3, [10.5, 0.5, 0.5]]


def test_command(tmp_path, capsys):
    path = tmp_path / "a.glb"
    models = {"prior": [{"name": "mini", "licence": "Apache-2.0"}]}
    mesh = textured()
    save_mesh(mesh, path, metadata={**ORIGIN, "models": models, "faces": 320}, collision=[convex_hull(mesh.vertices)])
    main(["info", str(path)])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert (lines["format"], lines["vertices"], lines["faces"]) == ("binary glTF", "162", "320")
    assert (lines["bodies"], lines["watertight"], lines["collision shapes"]) == ("1", "yes", "1")
    assert lines["materials"] == "asset color 16 x 16 normal 16 x 16"
    assert lines["bounds"].startswith("x -0.500 to 0.500")
    assert lines["bounds"].endswith(" m")
    assert (lines["prompt"], lines["prior model"]) == ('"ein Bär"', "mini · Apache-2.0")
    main(["info", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["materials"][0]["textures"]["normal"] == [16, 16]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.obj", b"hello\n", "neither finite points nor triangles"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "expected"),
        ("a.obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "neither finite points nor triangles"),
        ("a.stl", b"solid nothing\n", "expected"),
        ("a.glb", b"glTF" + bytes(20), "expected binary glTF 2, received version 0"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\nend_header\n", "truncated"),
        ("a.gltf", b"{}", "expected"),
        ("nothing.stl", None, "cannot read"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, name, content, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match="1"):
        main(["info", str(tmp_path / name)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part in err


def test_a_point_cloud(tmp_path, capsys):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "a.ply")
    facts = describe_mesh(tmp_path / "a.ply")
    assert (facts["format"], facts["vertices"], facts["faces"]) == ("PLY point cloud", 3, 0)
    assert facts["bounds"] == [[0, 0, 0], [1, 1, 1]]
    assert "watertight" not in facts
    main(["info", str(tmp_path / "a.ply")])
    assert "points  3" in capsys.readouterr().out


def test_a_truncated_glb(tmp_path):
    box = tall_box()
    save_mesh(Mesh(box.vertices, box.faces, box.colors, box.normals), tmp_path / "a.glb")
    (tmp_path / "a.glb").write_bytes((tmp_path / "a.glb").read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"a\.glb"):
        describe_mesh(tmp_path / "a.glb")
