"""Atlas, textures, normal map and tangents, against surfaces whose colours and normals are known."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import trimesh

from psd_gs.cameras import turntable
from psd_gs.errors import BackendError
from psd_gs.gaussians import Gaussians, from_points
from psd_gs.mesh.extract import Extraction
from psd_gs.mesh.raster import located, project, rasterize, sample
from psd_gs.mesh.surface import Mesh, vertex_normals
from psd_gs.mesh.texture import TexturedMesh, bake, tangent_space_normals, tangents
from psd_gs.mesh.uv import fill_gutters, texels, unwrap

SIZE = 128


def stripes(points: np.ndarray) -> np.ndarray:
    return (0.5 + 0.4 * np.sin(4 * points)).astype(np.float32)


def ball(subdivisions: int = 3) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.5)
    vertices, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int64)
    return Mesh(vertices, faces, stripes(vertices), vertex_normals(vertices, faces))


def splat_ball(n: int = 4000) -> Gaussians:
    """Flat discs on a sphere, without gaps, coloured by :func:`stripes`."""
    i = np.arange(n) + 0.5
    y, angle = 1 - 2 * i / n, i * math.pi * (3 - math.sqrt(5))
    r = np.sqrt(1 - y * y)
    normal = np.stack([r * np.cos(angle), y, r * np.sin(angle)], axis=1)
    points = torch.from_numpy(0.5 * normal).float()
    splats = from_points(points, torch.from_numpy(stripes(points.numpy())), scale=1.6 / math.sqrt(n), opacity=0.95)
    x, y, z = torch.from_numpy(normal).float().unbind(1)
    splats.quats = torch.stack([1 + z, -y, x, torch.zeros(n)], dim=1)  # turns +z to the normal
    splats.scales[:, 2] = math.log(0.002)
    return splats


@pytest.fixture(scope="module")
def sphere() -> Extraction:
    mesh = ball()
    return Extraction(mesh, (mesh.vertices, mesh.faces), splat_ball(), voxel=0.01)


@pytest.fixture(scope="module")
def baked(sphere) -> TexturedMesh:
    return bake(sphere, SIZE, normal_map=True, views=8)


def test_charts_lie_in_the_square_and_do_not_overlap():
    mesh = ball()
    atlas = unwrap(mesh.vertices, mesh.faces, SIZE)
    assert 0 <= atlas.uv.min() <= atlas.uv.max() <= 1
    np.testing.assert_array_equal(atlas.source[atlas.faces], mesh.faces)
    flat = np.concatenate([2 * SIZE * atlas.uv, np.ones((len(atlas.uv), 1))], axis=1)[None]
    first = rasterize(flat, atlas.faces, 2 * SIZE, 2 * SIZE)[0]  # of two faces at one place the first wins,
    last = rasterize(flat, atlas.faces[::-1], 2 * SIZE, 2 * SIZE)[0]  # so an overlap would differ here
    last = np.where(last >= 0, len(mesh.faces) - 1 - last, -1)
    assert (first != last).sum() <= 4  # centres exactly on an edge
    assert (first >= 0).mean() > 0.4


def test_every_face_has_a_texel_even_if_it_is_smaller():
    mesh = ball(4)
    atlas = unwrap(mesh.vertices, mesh.faces, 64)
    found = texels(atlas, 64)
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)
    assert found.weights.min() >= -1e-3
    points = found.interpolate(mesh.vertices[atlas.source], atlas.faces)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.5, atol=0.01)
    assert len(set(zip(found.rows.tolist(), found.columns.tolist(), strict=True))) == len(found.rows)


def test_texture_of_a_coloured_sphere(sphere, baked):
    found = texels(unwrap(sphere.mesh.vertices, sphere.mesh.faces, SIZE), SIZE)
    points = found.interpolate(baked.vertices, baked.faces)
    error = np.abs(baked.color[found.rows, found.columns] / 255 - stripes(points))
    assert error.mean() < 0.015
    assert error.max() < 0.1
    covered = np.zeros((SIZE, SIZE), bool)
    covered[found.rows, found.columns] = True
    assert baked.color[~covered].max(-1).min() > 20  # no black gutters


def test_seams_do_not_show(baked, sphere):
    cameras = turntable(3, radius=0.55, size=96, elevation=20)
    flat = project(baked.vertices, cameras)
    ids = rasterize(flat, baked.faces, 96, 96)[0]
    for c in range(3):
        pixels = located(ids[c], flat[c], baked.faces)
        color = sample(baked.color / np.float32(255), pixels.interpolate(baked.uv * SIZE, baked.faces))
        assert np.abs(color - stripes(pixels.interpolate(baked.vertices, baked.faces))).max() < 0.1


def test_views_bring_the_harmonics_in(sphere):
    """Discs that are brighter by 0.3 cos from an angle to their normal; the field knows degree 0 alone."""
    splats = sphere.solid.map(torch.clone)
    n = torch.nn.functional.normalize(splats.means, dim=1)
    splats.sh0 *= 0.5
    towards = torch.stack([n[:, 1], -n[:, 2], n[:, 0]], dim=1)  # the harmonics of degree 1 for a view along -n
    splats.shN = (0.3 / 0.4886025 * towards)[..., None].repeat(1, 1, 3)
    bright = Extraction(sphere.mesh, sphere.dense, splats, voxel=0.01)
    found = texels(unwrap(sphere.mesh.vertices, sphere.mesh.faces, SIZE), SIZE)

    def error(views: int) -> float:
        mesh = bake(bright, SIZE, views=views)
        points = found.interpolate(mesh.vertices, mesh.faces)
        seen = 0.25 + 0.5 * stripes(points) + 0.3 * 0.8  # about the mean of cos weighted by its square
        return float(np.abs(mesh.color[found.rows, found.columns] / 255 - seen).mean())

    assert error(0) > 0.2
    assert error(12) < 0.04


def test_gutters_take_the_nearest_colour():
    image, covered = np.zeros((9, 9, 3), np.float32), np.zeros((9, 9), bool)
    image[4, 1], image[4, 7] = 0.25, 0.75
    covered[4, [1, 7]] = True
    filled = fill_gutters(image, covered)
    assert (filled[:, :4] == 0.25).all()
    assert (filled[:, 5:] == 0.75).all()
    np.testing.assert_array_equal(fill_gutters(image, np.zeros((9, 9), bool)), image)


def test_normal_map_of_the_same_surface_is_flat(baked):
    assert np.abs(baked.normal_map[..., :2].astype(int) - 128).max() <= 6
    assert baked.normal_map[..., 2].min() >= 253
    np.testing.assert_allclose(np.linalg.norm(baked.tangents[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((baked.tangents[:, :3] * baked.normals).sum(1), 0, atol=1e-5)
    assert set(np.unique(baked.tangents[:, 3])) <= {-1.0, 1.0}


@pytest.mark.parametrize("mirrored", [False, True])
def test_normal_map_follows_the_relief(mirrored):
    """A square in the plane z = 0, u along x and v down; the dense surface leans, its normal to +x or +y."""
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])
    if mirrored:
        uv[:, 0] = 1 - uv[:, 0]
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    tangent = tangents(vertices, faces, normals, uv)
    sign = -1.0 if mirrored else 1.0
    np.testing.assert_allclose(tangent, np.tile([sign, 0, 0, sign], (4, 1)), atol=1e-6)
    flat = np.concatenate([uv * 8, np.ones((4, 1))], axis=1).astype(np.float32)
    places = located(rasterize(flat[None], faces, 8, 8)[0][0], flat, faces)
    points = places.interpolate(vertices, faces)
    for lean, expected in (([1, 0, 0], [sign, 0, 0]), ([0, 1, 0], [0, 1, 0]), ([0, 0, 0], [0, 0, 0])):
        n = np.array(lean) * 0.3 + [0, 0, 1]
        u, w = np.cross([0, 1, 0], n), np.cross(n, [1, 0, 0])
        plane = np.float32([a * u / np.linalg.norm(u) + b * w for a in (-3, 3) for b in (-3, 3)])
        dense = plane, np.array([[0, 2, 1], [1, 2, 3]])
        if vertex_normals(*dense)[0, 2] < 0:
            dense = plane, dense[1][:, ::-1]
        got = tangent_space_normals(places, points, faces, normals, tangent, dense)
        want = np.array(expected) * 0.3 + [0, 0, 1]
        np.testing.assert_allclose(got, np.tile(want / np.linalg.norm(want), (len(got), 1)), atol=1e-5)


def test_degenerate_texture_coordinates_still_give_tangents():
    mesh = ball(1)
    found = tangents(mesh.vertices, mesh.faces, mesh.normals, np.zeros((len(mesh.vertices), 2), np.float32))
    np.testing.assert_allclose(np.linalg.norm(found[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((found[:, :3] * mesh.normals).sum(1), 0, atol=1e-5)


def test_without_xatlas(monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    mesh = ball(1)
    with pytest.raises(BackendError, match="pip install xatlas"):
        unwrap(mesh.vertices, mesh.faces, 64)
