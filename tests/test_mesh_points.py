"""Starting points from point clouds and meshes of every supported format, and from broken files."""

import random

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_export_ply import mutate, random_gaussians
from test_mesh_glb import tall_box

from psd_gs.errors import FormatError, InputError
from psd_gs.export.formats import save
from psd_gs.export.ply import is_gaussian_ply
from psd_gs.mesh.glb import write_glb
from psd_gs.mesh.points import RADIUS, read_points


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def box_trimesh() -> trimesh.Trimesh:
    box = tall_box()
    return trimesh.Trimesh(
        box.vertices, box.faces, process=False, vertex_colors=(box.colors * 255).round().astype("u1")
    )


def assert_on_the_box(points: torch.Tensor) -> None:
    """On the surface of the 2 x 6 x 4 box, centred and scaled to a diagonal of 2 RADIUS, y up."""
    half = torch.tensor([1.0, 3.0, 2.0]) * RADIUS / 14**0.5
    assert points.norm(dim=1).max() <= RADIUS + 1e-6
    excess = points.abs() / half
    torch.testing.assert_close(excess.max(1).values, torch.ones(len(points)), rtol=0, atol=0.03)
    # Uniform over the area: the faces across x, y and z have 48, 16 and 24 of the 88 units.
    share = torch.bincount(excess.argmax(1), minlength=3) / len(points)
    torch.testing.assert_close(share, torch.tensor([48.0, 16.0, 24.0]) / 88, rtol=0, atol=0.05)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj", ".glb"])
def test_meshes(tmp_path, suffix):
    path = tmp_path / f"box{suffix}"
    if suffix == ".glb":
        write_glb(tall_box(), path)
    else:
        box_trimesh().export(path)
    points, rgb = read_points(path, 4000, generator())
    assert points.dtype == rgb.dtype == torch.float32
    assert points.shape == rgb.shape == (4000, 3)
    assert_on_the_box(points)
    if suffix == ".stl":  # has no colours
        assert (rgb == 0.5).all()
    else:
        edge = 3 * RADIUS / 14**0.5
        top, bottom = rgb[points[:, 1] > 0.99 * edge], rgb[points[:, 1] < -0.99 * edge]
        torch.testing.assert_close(top, torch.full_like(top, 0.5), rtol=0, atol=0.02)
        torch.testing.assert_close(bottom, torch.tensor([1.0, 0.0, 0.25]).expand_as(bottom), rtol=0, atol=0.05)
    again = read_points(path, 4000, generator())
    assert torch.equal(again[0], points)
    assert torch.equal(again[1], rgb)


def test_scene_with_transforms_texture_and_material(tmp_path):
    """A textured quad below a plain red one that is three times as large and placed by its node."""
    quad = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    halves = np.zeros((4, 8, 3), np.uint8)
    halves[:, :4, 1] = halves[:, 4:, 2] = 200
    textured, plain = quad.copy(), quad.copy()
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(halves))
    textured.visual = trimesh.visual.TextureVisuals(uv=quad.vertices[:, :2], material=material)
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[1.0, 0.0, 0.0, 1.0])
    plain.visual = trimesh.visual.TextureVisuals(material=red)
    scene = trimesh.Scene([textured])
    scene.add_geometry(plain, transform=np.array([[3, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    scene.export(tmp_path / "scene.glb")
    points, rgb = read_points(tmp_path / "scene.glb", 4000, generator())
    scale = np.hypot(3, 2) / (2 * RADIUS)
    x, y = (points[:, 0] * scale + 1.5), (points[:, 1] * scale + 1)
    upper, lower = y > 1.02, y < 0.98
    assert upper.float().mean() == pytest.approx(0.75, abs=0.03)
    assert x[lower].max() < 1.02
    assert (rgb[upper] == torch.tensor([1.0, 0.0, 0.0])).all()
    # at the very edges a texture that repeats mixes both halves
    green, blue = rgb[lower & (x > 0.1) & (x < 0.4)], rgb[lower & (x > 0.6) & (x < 0.9)]
    torch.testing.assert_close(green, torch.tensor([0, 200 / 255, 0]).expand_as(green), rtol=0, atol=0.01)
    torch.testing.assert_close(blue, torch.tensor([0, 0, 200 / 255]).expand_as(blue), rtol=0, atol=0.01)


def test_point_clouds(tmp_path):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(300, 3)) * [1, 5, 1] + [10, 0, 0]
    colours = rng.integers(0, 256, (300, 4), dtype=np.uint8)
    trimesh.PointCloud(positions, colours).export(tmp_path / "cloud.ply")
    points, rgb = read_points(tmp_path / "cloud.ply", 1000, generator())
    assert len(points) == 300
    assert points.norm(dim=1).max() == pytest.approx(RADIUS, abs=1e-6)
    assert points.std(0).argmax() == 1
    order = np.lexsort((rgb.numpy() * 255).round().astype(int).T)
    expected = np.lexsort(colours[:, :3].astype(int).T)
    centred = positions - (positions.min(0) + positions.max(0)) / 2
    centred *= RADIUS / np.linalg.norm(centred, axis=1).max()
    np.testing.assert_allclose(points.numpy()[order], centred[expected], atol=1e-5)
    some, _ = read_points(tmp_path / "cloud.ply", 50, generator())
    assert len(some) == len(some.unique(dim=0)) == 50
    trimesh.PointCloud(positions).export(tmp_path / "plain.ply")
    assert (read_points(tmp_path / "plain.ply", 10, generator())[1] == 0.5).all()
    assert not is_gaussian_ply(tmp_path / "cloud.ply")


def test_gaussian_ply_is_recognised(tmp_path):
    save(random_gaussians(3, 0), tmp_path / "a.ply")
    assert is_gaussian_ply(tmp_path / "a.ply")
    write_glb(tall_box(), tmp_path / "a.glb")
    assert not is_gaussian_ply(tmp_path / "a.glb")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.fbx", b"", r"expected a point cloud or mesh \(\.ply.*received \.fbx"),
        ("a.ply", b"not", "is not a PLY file"),
        ("a.glb", b"glTF", "this GLB file"),
        ("a.obj", b"hello\n", "this OBJ file"),
        ("c.obj", b"v 1 1 1\nv 1 1 1\n", "received one place"),
        ("a.stl", b"", "this STL file"),
        ("b.obj", b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "no finite area"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_points(tmp_path / name, 10, generator())
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="Check the path"):
        read_points(tmp_path / "nothing.glb", 10, generator())


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".obj", ".stl"])
def test_broken_files_give_format_errors_only(tmp_path, suffix, caplog):
    path = tmp_path / f"box{suffix}"
    if suffix == ".glb":
        write_glb(tall_box(), path, metadata={"prompt": "a box"})
    else:
        box_trimesh().export(path)
    good, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        path.write_bytes(mutate(good, rng))
        caplog.clear()
        try:
            points, rgb = read_points(path, 20, generator())
            assert points.isfinite().all()
            assert points.norm(dim=1).max() <= RADIUS + 1e-5
            assert rgb.isfinite().all()
            assert 0 <= rgb.min() <= rgb.max() <= 1
        except FormatError:
            refused += 1
            assert not caplog.records  # the error says it all
    assert 20 < refused <= 150
