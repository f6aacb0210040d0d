"""Depth fusion against analytic spheres, and meshes of Gaussians end to end."""

import numpy as np
import pytest
import torch
import trimesh

from psd_gs.cameras import Cameras
from psd_gs.errors import InputError
from psd_gs.gaussians import Gaussians, from_points, random_ball
from psd_gs.mesh.decimate import decimate
from psd_gs.mesh.extract import (
    MeshOptions,
    _enough,
    back_project,
    contour,
    extract,
    extract_mesh,
    field_colors,
    solid_part,
    sphere_of_cameras,
)
from psd_gs.mesh.surface import drop_small_parts, isosurface, signed_volume, topology, vertex_normals
from psd_gs.mesh.tsdf import Grid, fuse


def sphere_depth(cameras: Cameras, spheres) -> tuple[np.ndarray, np.ndarray]:
    """Depth and alpha of opaque spheres (centre, radius), by intersecting every pixel's ray."""
    rows, columns = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    K = cameras.Ks[0]
    ray = torch.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], torch.ones_like(rows)], dim=-1)
    depth = torch.full((len(cameras), cameras.height, cameras.width), torch.inf)
    for centre, radius in spheres:
        c = cameras.viewmats[:, :3, :3] @ torch.tensor(centre) + cameras.viewmats[:, :3, 3]
        a, b = ray.square().sum(-1), torch.einsum("hwi,ci->chw", ray, c)
        discriminant = b * b - a * (c.square().sum(-1) - radius**2)[:, None, None]
        z = torch.where(discriminant > 0, (b - discriminant.clamp_min(0).sqrt()) / a, torch.inf)
        depth = torch.minimum(depth, z)
    alpha = depth.isfinite().float()
    return depth.nan_to_num(posinf=0.0).numpy(), alpha.numpy()


def as_trimesh(vertices, faces) -> trimesh.Trimesh:
    return trimesh.Trimesh(vertices, faces, process=False)


def test_sphere_from_depth():
    centre, radius = (0.05, -0.1, 0.02), 0.5
    cameras = sphere_of_cameras(42, 0.75, size=128)
    depth, alpha = sphere_depth(cameras, [(centre, radius)])
    points = back_project(depth, alpha, cameras)
    np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), radius, atol=1e-4)
    grid = Grid.around(points.min(0), points.max(0), 80)
    assert max(grid.shape) == 80
    vertices, faces = contour(depth, alpha, cameras, grid)
    error = np.linalg.norm(vertices - centre, axis=1) - radius
    assert np.abs(error).max() < 0.6 * grid.voxel
    mesh = as_trimesh(vertices, faces)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    normals = vertex_normals(vertices, faces)
    outward = (vertices - centre) / np.linalg.norm(vertices - centre, axis=1, keepdims=True)
    assert (normals * outward).sum(1).min() > 0.97


@pytest.mark.parametrize("resolution", [96, pytest.param(192, marks=pytest.mark.full)])
def test_leaking_pixels_bore_no_canals(resolution):
    """In 2 % of the blocks of 4 x 4 pixels the view looks through the front, at the back wall or at nothing at all."""
    cameras = sphere_of_cameras(48, 0.6, size=resolution * 3 // 2)
    depth, alpha = sphere_depth(cameras, [((0.0, 0.0, 0.0), 0.5)])
    points = back_project(depth, alpha, cameras)
    block = np.random.default_rng(0).random((len(depth), resolution * 3 // 8, resolution * 3 // 8))
    leak = block.repeat(4, axis=1).repeat(4, axis=2)
    middle = float(cameras.positions[0].norm())  # the back wall lies beyond it by about what the front lies before it
    depth = np.where(leak < 0.01, np.maximum(2 * middle - depth, middle), depth).astype(np.float32)
    alpha[(leak > 0.01) & (leak < 0.02)] = 0
    grid = Grid.around(points.min(0), points.max(0), resolution)
    x, y, z = (low + grid.voxel * np.arange(n) for low, n in zip(grid.lower, grid.shape, strict=True))
    inside = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2) < 0.5 - 4 * grid.voxel
    assert (fuse(depth, alpha, cameras, grid)[inside] > 0).mean() < 0.01  # one view in 50 would free half of it
    vertices, faces = contour(depth, alpha, cameras, grid)
    error = np.abs(np.linalg.norm(vertices, axis=1) - 0.5) / grid.voxel
    assert np.quantile(error, 0.99) < 0.8
    assert error.max() < 3  # where several views leak onto one place
    solid = topology(vertices, faces)
    assert (solid.watertight, solid.bodies, solid.genus) == (True, 1, 0)


def test_fused_values_and_determinism():
    """One view straight at a plane: the value is the distance along the axis over the truncation."""
    cameras = sphere_of_cameras(7, 0.5, size=64)[3:4]
    distance = float(cameras.positions.norm())
    depth, alpha = np.full((1, 64, 64), distance, np.float32), np.ones((1, 64, 64), np.float32)
    alpha[:, :, 40:] = 0.0
    grid = Grid.around(np.full(3, -0.2), np.full(3, 0.2), 24)
    field = fuse(depth, alpha, cameras, grid)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    camera = (grid.lower + index * grid.voxel) @ cameras.viewmats[0, :3, :3].numpy().T
    camera += cameras.viewmats[0, :3, 3].numpy()
    column = cameras.Ks[0, 0, 0].item() * camera[..., 0] / camera[..., 2] + 32
    front = np.clip((distance - camera[..., 2]) / (3 * grid.voxel), None, 1)
    beside = np.floor(column) - 39 - 0.5  # the outline lies between the pixels 39 and 40
    beside *= camera[..., 2] / cameras.Ks[0, 0, 0].item() / (3 * grid.voxel)
    expected = np.where(column >= 40, np.minimum(beside, 1), np.where(front < -1, -1, front))
    away_from_the_edges = (np.abs(column - 40) > 0.01) & (np.abs(front + 1) > 1e-3)
    np.testing.assert_allclose(field[away_from_the_edges], expected[away_from_the_edges], atol=1e-4)
    assert (fuse(depth, alpha, cameras, grid) == field).all()


def test_two_spheres_and_a_floater():
    spheres = [((-0.3, 0.0, 0.0), 0.25), ((0.3, 0.0, 0.0), 0.2), ((0.0, 0.45, 0.0), 0.025)]
    cameras = sphere_of_cameras(42, 0.75, size=128)
    depth, alpha = sphere_depth(cameras, spheres)
    grid = Grid.around(np.array([-0.55, -0.25, -0.25]), np.array([0.5, 0.5, 0.25]), 96)
    vertices, faces = decimate(*contour(depth, alpha, cameras, grid), 4000)
    mesh = as_trimesh(vertices, faces)
    assert len(faces) <= 4000
    assert mesh.is_watertight
    assert mesh.body_count == 2  # the floater has less than 2 % of the largest area
    volumes = sorted(part.volume for part in mesh.split())
    np.testing.assert_allclose(volumes, [4 / 3 * np.pi * r**3 for r in (0.2, 0.25)], rtol=0.06)


def test_cavities_are_filled_and_the_border_is_closed():
    """A ball that is cut by the border, with a cavity and a second ball inside the cavity."""
    x, y, z = np.mgrid[0:40, 0:40, 0:40] - 18.0
    r = np.sqrt(x * x + y * y + z * z)
    field = np.where(r > 13, r - 16, np.where(r > 6, 10 - r, r - 3)).astype(np.float32).clip(-1, 1)[:, 5:]
    vertices, faces = isosurface(field)
    mesh = as_trimesh(vertices, faces)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    cap = np.pi * 3**2 * (16 - 1)  # cut off at a distance of 13 from the centre
    assert signed_volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 16**3 - cap, rel=0.03)
    assert len(isosurface(np.ones((8, 8, 8), np.float32))[1]) == 0


def test_decimation_keeps_shape():
    sphere = trimesh.creation.icosphere(subdivisions=5)
    far = trimesh.creation.icosphere(subdivisions=1, radius=0.05)
    far.apply_translation([3, 0, 0])
    both = trimesh.util.concatenate([sphere, far])
    vertices, faces = drop_small_parts(both.vertices, both.faces)
    assert (len(vertices), len(faces)) == (len(sphere.vertices), len(sphere.faces))
    vertices, faces = decimate(vertices, faces, 2000)
    mesh = as_trimesh(vertices, faces)
    assert 1900 < len(faces) <= 2000
    assert faces.dtype == np.int64
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(sphere.volume, rel=0.005)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1, atol=0.01)
    same = decimate(sphere.vertices, sphere.faces, 10**6)
    assert len(same[1]) == len(sphere.faces)


def test_colours_follow_opacity_and_shape():
    """Brute force over all Gaussians with NumPy, in double precision."""
    g = torch.Generator().manual_seed(1)
    gaussians = random_ball(12, 0.3, scale=0.1, opacity=0.5, generator=g)
    gaussians.quats = torch.randn(12, 4, generator=g)
    gaussians.scales += torch.randn(12, 3, generator=g)
    gaussians.opacities = torch.randn(12, generator=g)
    gaussians.sh0 = torch.randn(12, 1, 3, generator=g) * 0.8
    points = torch.randn(30, 3, generator=g) * 0.2
    got = field_colors(gaussians, points.numpy(), sigma_floor=0.05)
    for point, colour in zip(points.double().numpy(), got, strict=True):
        weights = []
        for i in range(12):
            w, x, y, z = (gaussians.quats[i] / gaussians.quats[i].norm()).double().numpy()
            turn = trimesh.transformations.quaternion_matrix([w, x, y, z])[:3, :3]
            sigma = np.maximum(np.exp(gaussians.scales[i].double().numpy()), 0.05)
            offset = turn.T @ (point - gaussians.means[i].double().numpy())
            alpha = 1 / (1 + np.exp(-gaussians.opacities[i].item()))
            weights.append(alpha * np.exp(-0.5 * ((offset / sigma) ** 2).sum()))
        rgb = np.clip(0.5 + 0.28209479177387814 * gaussians.sh0[:, 0].numpy(), 0, 1)
        np.testing.assert_allclose(colour, np.average(rgb, axis=0, weights=weights), atol=1e-4)


def test_crop_drops_faint_huge_and_far_gaussians():
    gaussians = random_ball(1000, 0.4, scale=0.02, opacity=0.8, generator=torch.Generator().manual_seed(0))
    gaussians.opacities[0] = -5.0
    gaussians.scales[1] = 0.5
    gaussians.means[2] = 9.0
    keep = solid_part(gaussians)
    assert keep.sum() == 997
    assert not keep[:3].any()


def coloured_shell(n: int = 6000) -> Gaussians:
    """A sphere of radius 0.4 around (1, 2, 3): upper half red, lower half blue."""
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    rgb = torch.where(direction[:, 1:2] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    return from_points(direction * 0.4 + torch.tensor([1.0, 2.0, 3.0]), rgb, scale=0.025, opacity=0.9)


def test_gaussians_to_mesh():
    options = MeshOptions(resolution=64, faces=3000)
    found = extract(coloured_shell(), options)
    mesh = found.mesh
    assert found.topology == topology(mesh.vertices, mesh.faces)
    assert found.topology.watertight
    assert found.topology.genus == 0
    assert len(found.dense[1]) > len(mesh.faces)
    assert topology(*found.dense).watertight
    assert mesh.vertices.dtype == mesh.colors.dtype == mesh.normals.dtype == np.float32
    assert mesh.faces.dtype == np.int64
    assert len(mesh.faces) <= 3000
    surface = as_trimesh(mesh.vertices, mesh.faces)
    assert surface.is_watertight
    assert surface.body_count == 1
    assert surface.volume > 0
    offset = mesh.vertices - np.array([1.0, 2.0, 3.0])
    distance = np.linalg.norm(offset, axis=1)
    # The outline of a splat lies about a standard deviation (0.025) outside of its centre, of many a little more.
    assert distance.min() > 0.39
    assert distance.max() < 0.46
    assert ((mesh.normals * offset).sum(1) / distance).min() > 0.8
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    top, bottom = mesh.colors[offset[:, 1] > 0.1], mesh.colors[offset[:, 1] < -0.1]
    np.testing.assert_allclose(top, np.broadcast_to([0.9, 0.1, 0.1], top.shape), atol=0.02)
    np.testing.assert_allclose(bottom, np.broadcast_to([0.1, 0.1, 0.9], bottom.shape), atol=0.02)
    again = extract_mesh(coloured_shell(), options)
    for name in ("vertices", "faces", "colors", "normals"):
        np.testing.assert_array_equal(getattr(again, name), getattr(mesh, name))


@pytest.mark.parametrize(("thickness", "samples"), [(0.02, 192), (0.001, 256)])
def test_thick_gaussians_need_fewer_samples(thickness, samples):
    ball = random_ball(200, 0.5, scale=thickness, opacity=0.9, generator=torch.Generator().manual_seed(0))
    assert _enough(ball) == samples


def test_nothing_opaque_is_refused():
    faint = random_ball(500, 0.4, scale=0.02, opacity=0.01)
    with pytest.raises(InputError, match=r"opaque surface.*none of 500.*Train longer"):
        extract_mesh(faint, MeshOptions(resolution=32))
    thin = random_ball(100, 0.4, scale=0.01, opacity=0.06)
    with pytest.raises(InputError, match="no view reaches an alpha of one half"):
        extract_mesh(thin, MeshOptions(resolution=32))
    with pytest.raises(InputError, match=r"none of 0"):
        extract_mesh(faint.select(torch.zeros(500, dtype=torch.bool)), MeshOptions(resolution=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 8}, "resolution of 32 to 1024"),
        ({"views": 5}, "at least 6 views"),
        ({"faces": 3}, "at least 4 faces"),
        ({"image_size": 9000}, "32 to 4096 pixels, received 9000"),
        ({"solidify": -1}, "0 steps or more"),
        ({"smoothing": -1.0}, "0 to 10 voxels"),
        ({"smallest_part": 2.0}, "smallest part of 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        MeshOptions(**changes)


def test_decimation_never_pinches():
    """Two balls joined by a thin bridge, a handle, and rough noise: closed and of one genus down to few faces."""
    x, y, z = np.mgrid[0:48, 0:32, 0:32].astype(np.float32)
    ball = np.minimum(np.hypot(np.hypot(x - 13, y - 15), z - 15), np.hypot(np.hypot(x - 34, y - 15), z - 15)) - 8
    bridge = np.maximum(np.hypot(y - 15, z - 15) - 1.2, np.abs(x - 24) - 6)
    ring = np.hypot(np.hypot(x - 34, y - 15) - 11, z - 15) - 1.3
    rough = np.random.default_rng(0).normal(0, 0.25, x.shape).astype(np.float32)
    vertices, faces = drop_small_parts(*isosurface(np.minimum(np.minimum(ball, bridge), ring) + rough))
    before = topology(vertices, faces)
    assert before.watertight
    for count in (2000, 300, 60):
        coarse = decimate(vertices, faces, count)
        after = topology(*coarse)
        assert (after.watertight, after.bodies, after.genus) == (True, before.bodies, before.genus)
        assert len(coarse[1]) <= max(count, 60 * (1 + before.genus))
    for a, b in zip(decimate(vertices, faces, 300), decimate(vertices, faces, 300), strict=True):
        np.testing.assert_array_equal(a, b)


def test_decimation_keeps_borders_and_planes():
    """A flat square needs no inner vertices; its border is not touched."""
    x, y = np.meshgrid(np.arange(11.0), np.arange(11.0), indexing="ij")
    index = np.arange(121).reshape(11, 11)
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    vertices, faces = decimate(np.stack([x.ravel(), y.ravel(), np.zeros(121)], 1), faces, 60)
    assert len(faces) <= 60
    found = topology(vertices, faces)
    assert (found.boundary_edges, found.non_manifold_edges, found.flipped_edges) == (40, 0, 0)
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert normal[:, 2].min() > 0
    assert normal[:, 2].sum() / 2 == pytest.approx(100, rel=1e-5)


def test_topology():
    """Against trimesh, and by hand: a torus has one handle, an open box a border."""
    torus = trimesh.creation.torus(1.0, 0.3, major_sections=24, minor_sections=12)
    found = topology(torus.vertices, torus.faces)
    assert (found.watertight, found.bodies, found.euler, found.genus) == (True, 1, 0, 1)
    assert found.volume == pytest.approx(torus.volume)
    balls = trimesh.util.concatenate(
        [trimesh.creation.icosphere(1), trimesh.creation.icosphere(1).apply_translation([3, 0, 0])]
    )
    found = topology(balls.vertices, balls.faces)
    assert (found.watertight, found.bodies, found.euler, found.genus) == (True, 2, 4, 0)
    box = trimesh.creation.box()
    found = topology(box.vertices, box.faces[2:])
    assert found.boundary_edges == 4
    assert not found.watertight
    assert found.genus is None
    turned = box.faces.copy()
    turned[0] = turned[0, ::-1]
    assert topology(box.vertices, turned).flipped_edges == 3
    assert topology(box.vertices, np.concatenate([box.faces, box.faces[:1]])).non_manifold_edges == 3
    assert topology(box.vertices, box.faces[:, ::-1]).volume == pytest.approx(-1)
    assert topology(box.vertices, box.faces[:0]).bodies == 0
