"""Where cameras stand, what they see, and MVDream's convention against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from psd_gs.cameras import Cameras, look_at_origin, mvdream_cameras, orbit, turntable


def one(azimuth: float, elevation: float, distance: float = 2.0, fov: float = 40.0, width=64, height=64) -> Cameras:
    angles = (torch.tensor([v], dtype=torch.float64) for v in (azimuth, elevation, distance, fov))
    return orbit(*angles, width, height)


def project(cameras: Cameras, points: Tensor) -> Tensor:
    """Pixels ``[C, P, 2]`` of world points ``[P, 3]``, from the definitions of the two matrices."""
    homogeneous = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], 1)
    camera = torch.einsum("cij,pj->cpi", cameras.viewmats.to(points), homogeneous)[..., :3]
    assert (camera[..., 2] > 0).all(), "a point behind the camera"
    pixels = torch.einsum("cij,cpj->cpi", cameras.Ks.to(points), camera)
    return pixels[..., :2] / pixels[..., 2:]


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [
        (0, 0, (0, 0, 2)),
        (90, 0, (2, 0, 0)),
        (180, 0, (0, 0, -2)),
        (270, 0, (-2, 0, 0)),
        (0, 30, (0, 1, 3**0.5)),
        (45, 0, (2**0.5, 0, 2**0.5)),
        (120, -90, (0, -2, 0)),
    ],
)
def test_orbit_positions(azimuth, elevation, position):
    torch.testing.assert_close(
        one(azimuth, elevation).positions[0], torch.tensor(position, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_what_is_up_is_up_and_what_is_right_is_right():
    points = torch.tensor([[0.0, 0.2, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    up, x, centre = project(one(0, 0), points)[0]
    assert up[1] < centre[1] - 3
    assert up[0] == pytest.approx(32)
    assert x[0] > centre[0] + 3
    assert x[1] == pytest.approx(32)
    assert centre.tolist() == pytest.approx([32, 32])
    _, from_behind, _ = project(one(180, 0), points)[0]
    assert from_behind[0] < 29


@pytest.mark.parametrize("elevation", [-90.0, -89.9999, -40.0, 0.0, 60.0, 89.9999, 90.0])
@pytest.mark.parametrize("azimuth", [0.0, 37.0, 90.0, 200.0])
def test_rotations_are_proper_and_look_at_the_origin(azimuth, elevation):
    viewmat = one(azimuth, elevation).viewmats[0]
    rotation = viewmat[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(torch.det(rotation)) == pytest.approx(1, abs=1e-9)
    # The origin lies two units ahead, on the optical axis.
    assert viewmat[:3, 3].tolist() == pytest.approx([0, 0, 2], abs=1e-9)
    assert viewmat[3].tolist() == [0, 0, 0, 1]
    # No roll: the camera's x axis is horizontal.
    assert abs(float(rotation[0, 1])) < 1e-9


@pytest.mark.parametrize("y", [1.5, -1.5])
def test_straight_above_and_below(y):
    rotation = look_at_origin(torch.tensor([[0.0, y, 0.0]]))[0, :3, :3]
    assert rotation[0].tolist() == [1, 0, 0]
    assert rotation[2].tolist() == [0, -np.sign(y), 0]
    assert float(torch.det(rotation)) == pytest.approx(1)


def test_camera_to_world_is_the_inverse():
    cameras = turntable(5, elevation=20)
    product = cameras.camera_to_world @ cameras.viewmats
    torch.testing.assert_close(product, torch.eye(4).expand(5, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.camera_to_world, torch.linalg.inv(cameras.viewmats), atol=1e-5, rtol=0)


def test_field_of_view_is_vertical():
    cameras = one(0, 0, distance=2.0, fov=50.0, width=90, height=60)
    top = 2 * math.tan(math.radians(25))
    _, y = project(cameras, torch.tensor([[0.0, top, 0.0]], dtype=torch.float64))[0, 0]
    assert float(y) == pytest.approx(0, abs=1e-9)
    x, _ = project(cameras, torch.tensor([[1.5 * top, 0.0, 0.0]], dtype=torch.float64))[0, 0]
    assert float(x) == pytest.approx(90, abs=1e-9)


@pytest.mark.parametrize("elevation", [0.0, 35.0])
def test_turntable_shows_the_ball_whole_and_no_more(elevation):
    cameras = turntable(6, elevation=elevation, radius=0.75, size=100, start=10)
    direction = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = project(cameras, 0.75 * torch.nn.functional.normalize(direction, dim=1))
    assert pixels.min() > -0.01
    assert pixels.max() < 100.01
    assert (pixels.amin((1, 2)) < 1).all()
    assert (pixels.amax((1, 2)) > 99).all()
    x, _, z = cameras.positions.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(x, z)) % 360
    assert azimuth.tolist() == pytest.approx([10, 70, 130, 190, 250, 310], abs=1e-3)


def test_resized_keeps_the_fields_of_view():
    points = 0.3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cameras = one(25, 15, width=64, height=48)
    resized = cameras.resized(160, 96)
    assert (resized.width, resized.height) == (160, 96)
    factor = torch.tensor([160 / 64, 96 / 48], dtype=torch.float64)
    torch.testing.assert_close(project(resized, points), project(cameras, points) * factor)
    assert torch.equal(resized.viewmats, cameras.viewmats)


def test_indexing_keeps_the_dimension():
    cameras = turntable(4)
    assert len(cameras) == 4
    assert torch.equal(cameras[1:3].viewmats, cameras.viewmats[1:3])
    assert torch.equal(cameras[torch.tensor([2, 0])].Ks, cameras.Ks[[2, 0]])
    with pytest.raises(TypeError, match=r"expected a slice or a tensor, received 1"):
        cameras[1]


def mvdream_closed_form(elevation: float, azimuth: float) -> np.ndarray:
    """MVDream's normalized camera-to-world, z up: azimuth 0 at -y, growing toward +x."""
    e, a = math.radians(elevation), math.radians(azimuth)
    position = np.array([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
    right = np.array([math.cos(a), math.sin(a), 0.0])
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(position, right), position, position], axis=1)
    return matrix


@pytest.mark.parametrize("distance", [1.0, 2.7])
@pytest.mark.parametrize("elevation", [-15.0, 0.0, 15.0, 60.0])
@pytest.mark.parametrize("azimuth", [0.0, 30.0, 90.0, 215.0, 359.0])
def test_mvdream_closed_form(azimuth, elevation, distance):
    # Our front (azimuth 0) is MVDream's +x, which is its azimuth 90.
    flat = mvdream_cameras(one(azimuth, elevation, distance))
    assert flat.shape == (1, 16)
    np.testing.assert_allclose(flat[0].view(4, 4), mvdream_closed_form(elevation, azimuth + 90), atol=1e-9)


def test_mvdream_front_is_plus_x():
    matrix = mvdream_cameras(one(0, 0))[0].view(4, 4)
    assert matrix[:3, 3].tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    assert matrix[:3, 1].tolist() == pytest.approx([0, 0, 1], abs=1e-12)


def test_mvdream_round_trip():
    cameras = turntable(7, elevation=33, start=11)
    cameras = Cameras(cameras.viewmats.double(), cameras.Ks.double(), cameras.width, cameras.height)
    matrix = mvdream_cameras(cameras).view(-1, 4, 4)
    assert torch.allclose(torch.det(matrix[:, :3, :3]), torch.ones(7, dtype=torch.float64), atol=1e-6)
    to_ours = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)  # z up to y up
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # OpenGL axes to OpenCV's
    rotation = to_ours @ matrix[:, :3, :3] @ flip
    position = to_ours @ matrix[:, :3, 3:] * cameras.positions.norm(dim=1)[:, None, None]
    torch.testing.assert_close(rotation, cameras.camera_to_world[:, :3, :3])
    torch.testing.assert_close(position[..., 0], cameras.positions)
