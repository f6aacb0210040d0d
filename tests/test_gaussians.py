"""The Gaussians' container, its activations and its starting shapes."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from psd_gs.gaussians import from_points, random_ball, rgb_to_sh0, rotation_matrices, sh0_to_rgb


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("degree", "coefficients"), [(0, 1), (1, 4), (2, 9), (3, 16)])
def test_from_points(degree, coefficients):
    points, rgb = torch.randn(9, 3, generator=generator()), torch.rand(9, 3, generator=generator(1))
    g = from_points(points, rgb, scale=0.02, opacity=0.3, sh_degree=degree)
    assert len(g) == 9
    assert g.sh_degree == degree
    assert g.sh.shape == (9, coefficients, 3)
    assert torch.equal(g.means, points)
    assert g.means.data_ptr() != points.data_ptr()
    torch.testing.assert_close(g.scales.exp(), torch.full((9, 3), 0.02))
    torch.testing.assert_close(g.opacities.sigmoid(), torch.full((9,), 0.3))
    torch.testing.assert_close(sh0_to_rgb(g.sh0[:, 0]), rgb)
    assert torch.equal(rotation_matrices(g.quats), torch.eye(3).expand(9, 3, 3))
    assert not g.shN.any()


def test_random_ball_is_uniform_in_volume():
    g = random_ball(20_000, 0.5, scale=0.05, opacity=0.1, generator=generator())
    distance = g.means.norm(dim=1)
    assert distance.max() <= 0.5
    # In a uniform ball the cube of the relative radius and the height are known distributions.
    assert kstest(((distance / 0.5) ** 3).numpy(), "uniform").pvalue > 1e-3
    cosine = (g.means[:, 1] / distance).numpy()
    assert kstest(cosine, "uniform", args=(-1, 2)).pvalue > 1e-3
    assert g.means.mean(0).abs().max() < 0.01
    rgb = sh0_to_rgb(g.sh0[:, 0])
    assert (rgb.mean(0) - 0.5).abs().max() < 1e-3
    assert rgb.std() == pytest.approx(0.02, rel=0.05)


def test_random_ball_follows_its_generator():
    a, b, other = (random_ball(50, 1.0, scale=0.1, opacity=0.5, generator=generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(a.params().values(), b.params().values(), strict=True))
    assert not torch.equal(a.means, other.means)


def test_select_and_map():
    g = random_ball(10, 1.0, scale=0.1, opacity=0.5, sh_degree=1, generator=generator())
    mask = torch.arange(10) % 3 == 0
    for picked in (g.select(mask), g.select(mask.nonzero()[:, 0])):
        assert len(picked) == 4
        assert all(torch.equal(getattr(picked, name), p[mask]) for name, p in g.params().items())
    assert len(g.select(torch.zeros(10, dtype=torch.bool))) == 0
    doubled = g.map(lambda p: 2 * p)
    assert all(torch.equal(getattr(doubled, name), 2 * p) for name, p in g.params().items())
    assert list(g.params()) == ["means", "quats", "scales", "opacities", "sh0", "shN"]
    learning = g.map(lambda p: p.requires_grad_(True))
    assert not any(p.requires_grad for p in learning.detach().params().values())


@pytest.mark.parametrize("length", [1.0, 0.01, 300.0])
def test_rotation_matrices_against_scipy(length):
    quats = torch.randn(200, 4, generator=generator(), dtype=torch.float64)
    wxyz = length * torch.nn.functional.normalize(quats, dim=1)
    expected = Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()
    torch.testing.assert_close(rotation_matrices(wxyz), torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_rotation_matrices_gradient():
    quats = torch.randn(3, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_matrices, (quats,))


def test_colour_round_trip():
    rgb = torch.rand(20, 3, generator=generator())
    torch.testing.assert_close(sh0_to_rgb(rgb_to_sh0(rgb)), rgb)
    assert not rgb_to_sh0(torch.full((3,), 0.5)).any()
