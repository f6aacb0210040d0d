"""Any size and place, holes in the data and strays: what starts a run is fitted the same way."""

from __future__ import annotations

import numpy as np
import pytest
from mesh_builders import QUAD, Glb, sampled
from test_field_mesh_formats import CORNERS, XYZ, ply

from psd_gs.errors import FormatError
from psd_gs.mesh.describe import describe_mesh
from psd_gs.mesh.points import RADIUS

DOUBLE = [(name, "double") for name in "xyz"]
UTM = (448262.1, 5411932.7, 100.0)


def shell(n=1200):
    """Points on a sphere of diameter 1, with its box filled."""
    normal = np.random.default_rng(0).normal(size=(n, 3))
    points = 0.5 * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    points[:6] = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    return points


def cloud(path, points, kind=XYZ, form="binary_little_endian"):
    return ply(path, {"vertex": (kind, points.tolist())}, form)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize(("size", "offset"), [(0.002, (0, 0, 0)), (1, (0, 0, 0)), (20_000, (0, 0, 0)), (3, UTM)])
def test_clouds_of_any_size_and_place(tmp_path, form, size, offset):
    path = cloud(tmp_path / "a.ply", shell() * size + offset, DOUBLE, form)
    points, _ = sampled(path, 5000)
    assert len(points) == 1200
    np.testing.assert_allclose(np.ptp(points, axis=0), 2 * RADIUS, atol=1e-6)
    found = np.sort(np.linalg.norm(points[:, None] - points[None, ::40], axis=2).min(0))
    assert found.max() < 1e-6


@pytest.mark.parametrize(("factor", "offset"), [(0.001, (0, 0, 0)), (1, (0, 0, 0)), (10_000, (0, 0, 0)), (1, UTM)])
def test_meshes_of_any_size_and_place(tmp_path, factor, offset):
    rows = (QUAD.astype(float) * factor + offset).tolist()
    points, _ = sampled(ply(tmp_path / "a.ply", {"vertex": (DOUBLE, rows), "face": ([CORNERS], [((0, 1, 2, 3),)])}))
    np.testing.assert_allclose(np.abs(points[:, :2]).max(0), RADIUS / 2**0.5, atol=0.01)
    assert np.abs(points[:, 2]).max() < 1e-6


def test_a_node_in_utm_coordinates(tmp_path):
    glb = Glb(nodes=[{"mesh": 0, "translation": list(UTM), "scale": [1e-3] * 3}])
    glb.document["meshes"] = [{"primitives": [glb.primitive(POSITION=QUAD)]}]
    points, _ = sampled(glb.save(tmp_path / "a.glb"))
    np.testing.assert_allclose(np.abs(points[:, :2]).max(0), RADIUS / 2**0.5, atol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_points_that_are_not_finite_are_counted_and_left_out(tmp_path, value, form, caplog):
    rows = shell()
    rows[6::10, 1] = value
    bad = len(rows[6::10])
    text = cloud(tmp_path / "a.ply", rows, form=form)
    points, _ = sampled(text, 5000)
    assert len(points) == 1200 - bad
    np.testing.assert_allclose(np.ptp(points, axis=0), 2 * RADIUS, atol=1e-6)
    assert f"{bad} of 1200 points are not finite: left out" in caplog.text
    facts = describe_mesh(tmp_path / "a.ply")
    assert (facts["format"], facts["vertices"]) == ("PLY point cloud", 1200 - bad)
    assert facts["notes"] == [f"{bad} of 1200 points are not finite: left out"]
    np.testing.assert_allclose(facts["bounds"], [[-0.5] * 3, [0.5] * 3], atol=1e-6)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e20, 1e38])
@pytest.mark.parametrize("count", [1, 12, 100])
def test_strays_do_not_decide_the_fit(tmp_path, far, count, caplog):
    rows = shell()
    rows[-count:] *= 2 * far
    points, _ = sampled(cloud(tmp_path / "a.ply", rows), 5000)
    assert len(points) == 1200 - count
    np.testing.assert_allclose(np.ptp(points, axis=0), 2 * RADIUS, atol=1e-6)
    assert f"{count} of 1200 points are far from all others: left out" in caplog.text


def test_strays_at_all_distances(tmp_path):
    """As structure from motion leaves them: the size is the object's within a factor of five."""
    rows = shell()
    rows[-60:] *= np.geomspace(2, 1e5, 60)[:, None]
    points, _ = sampled(cloud(tmp_path / "a.ply", rows), 5000)
    assert np.ptp(points[:1000], axis=0).min() > 2 * RADIUS / 5.1


def test_a_small_cloud_with_one_stray(tmp_path):
    rows = np.concatenate([np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(-1, 3), [[1e6, 0, 0]], [[0.5] * 3]])
    points, _ = sampled(cloud(tmp_path / "a.ply", rows.astype(float)))
    assert len(points) == 9


def grid(n=12):
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    i = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.stack([i, i + n, i + n + 1, i + 1], axis=1)
    return np.stack([x, y, 0 * x], -1).reshape(-1, 3), [(tuple(face),) for face in faces.tolist()]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e5])
def test_a_stray_vertex_of_a_mesh_goes_with_its_faces(tmp_path, value, caplog):
    """One corner of a grid of quads is far away or nowhere: without it the grid is what it was."""
    places, faces = grid()
    places[0, 0] = value
    path = ply(tmp_path / "a.ply", {"vertex": (XYZ, places.tolist()), "face": ([CORNERS], faces)})
    points, _ = sampled(path)
    assert np.abs(points[:, 0]).max() == pytest.approx(RADIUS / 2**0.5, rel=0.03)
    assert np.abs(points[:, 1]).max() == pytest.approx(RADIUS / 2**0.5, rel=0.03)
    (message,) = caplog.messages
    assert message.endswith("left out")


def test_a_thin_and_long_mesh_is_kept_whole(tmp_path, caplog):
    """A flagpole on a fine base: its few vertices are far from most others, but not beyond a gap."""
    places, faces = grid()
    pole = np.array([[0, 0, z] for z in np.geomspace(2, 40, 6)])
    half = np.array([0.01, 0, 0])
    pole = np.concatenate([pole - half, pole + half])
    first = len(places)
    more = [((first + k, first + k + 6, first + k + 7, first + k + 1),) for k in range(5)]
    rows = np.concatenate([places, pole]).tolist()
    points, _ = sampled(ply(tmp_path / "a.ply", {"vertex": (XYZ, rows), "face": ([CORNERS], faces + more)}))
    assert np.ptp(points[:, 2]) > 1.9 * RADIUS
    assert not caplog.messages


@pytest.mark.parametrize("rows", [[], [[np.nan] * 3] * 4, [[1.0, 2.0, 3.0]] * 4])
def test_nothing_to_fit(tmp_path, rows):
    with pytest.raises(FormatError, match="finite points"):
        sampled(cloud(tmp_path / "a.ply", np.array(rows).reshape(-1, 3)))
