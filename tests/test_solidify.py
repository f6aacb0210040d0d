"""Fog becomes solid, and its mesh keeps the outline and the colours of the splat."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psd_gs.gaussians import Gaussians, from_points
from psd_gs.mesh.extract import MeshOptions, extract
from psd_gs.solidify import solidify

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from bench.asset_meshes import against_splat


def fog(n: int = 400) -> Gaussians:
    """A ball of radius 0.3 full of large, faint Gaussians, away from the origin."""
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    points = 0.3 * direction * torch.rand(n, 1, generator=g) ** (1 / 3) + torch.tensor([0.5, 0.0, -0.2])
    return from_points(points, torch.tensor([[0.8, 0.3, 0.1]]).expand(n, 3), scale=0.05, opacity=0.2)


def test_fog_becomes_solid():
    asset = fog()
    done = solidify(asset, 60)
    assert done.opacities.sigmoid().median() > 0.9
    assert done.scales.exp().mean() < 0.7 * asset.scales.exp().mean()
    again = solidify(asset, 60)
    for name, value in done.params().items():
        assert torch.equal(value, again.params()[name]), name
    assert solidify(asset, 0) is asset
    fine = replace(asset, scales=asset.scales - 3.0)  # too small for the renders: a faint surface is left as it is
    assert solidify(fine, 60) is fine


def test_meshes_of_fog_have_its_outline():
    asset = fog()
    options = {"resolution": 64, "faces": 3000, "views": 24}
    before, _ = against_splat(asset, extract(asset, MeshOptions(**options, solidify=0)).mesh, size=96)
    found = extract(asset, MeshOptions(**options, solidify=60))
    after, views = against_splat(asset, found.mesh, size=96)
    assert views.shape == (16, 96, 192, 3)
    assert found.topology.watertight
    assert found.topology.bodies == 1
    assert after["iou"] > max(0.9, before["iou"])
    assert after["worst_iou"] <= after["iou"]
    assert after["psnr"] > 22


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_mesh_of_another_place_is_told_apart(shift):
    """Opaque shells: the mesh fits where it is, and not where it is not."""
    direction = torch.nn.functional.normalize(torch.randn(3000, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    shell = from_points(direction * 0.4, torch.full((3000, 3), 0.7), scale=0.02, opacity=0.95)
    mesh = extract(shell, MeshOptions(resolution=64, faces=4000, views=24)).mesh
    mesh.vertices = mesh.vertices + shift
    measured, _ = against_splat(shell, mesh, size=96)
    assert (measured["iou"] > 0.9) == (shift == 0)
