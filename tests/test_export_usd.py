"""OpenUSD particle fields, read back by ourselves and by usd-core; broken files cannot harm the process."""

from __future__ import annotations

import json
import random
import sys
import time

import numpy as np
import pytest
import torch
from pxr import Gf, Sdf, Usd, UsdGeom, UsdVol, Vt
from splats import FLOORS, assert_within, asset, axes
from test_export_ply import mutate

from psd_gs.errors import BackendError, FormatError, InputError, OutputError
from psd_gs.export.fitting import moved
from psd_gs.export.formats import load, read_metadata, save, sidecar
from psd_gs.gaussians import Gaussians


@pytest.mark.parametrize(("extension", "degree"), [(".usdc", 0), (".usdz", 3)])
def test_round_trip_and_metadata(tmp_path, extension, degree):
    g, path = asset(degree=degree), tmp_path / f"a{extension}"
    save(g, path, metadata={"prompt": "ein Bär"})
    assert_within(g, load(path), FLOORS[extension])
    first = path.read_bytes()
    time.sleep(2.1 if extension == ".usdz" else 0)  # zip archives hold times in steps of two seconds
    save(g, path, metadata={"prompt": "ein Bär"})
    assert path.read_bytes() == first, "two exports of the same asset differ"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, sidecar(path).name}
    sidecar(path).unlink()
    assert read_metadata(path)["prompt"] == "ein Bär"


@pytest.mark.parametrize("degree", [1, 3])
def test_usd_core_reads_it(tmp_path, degree):
    g, path = asset(100, degree), tmp_path / "a.usdc"
    save(g, path)
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    field = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    assert field.GetRadianceSphericalHarmonicsDegreeAttr().Get() == degree
    quats = [[q.real, *q.imaginary] for q in field.GetOrientationsAttr().Get()]
    sh = np.array(field.GetRadianceSphericalHarmonicsCoefficientsAttr().Get()).reshape(100, -1, 3)
    read = Gaussians(
        means=torch.from_numpy(np.array(field.GetPositionsAttr().Get())),
        quats=torch.tensor(quats),
        scales=torch.from_numpy(np.array(field.GetScalesAttr().Get())).log(),
        opacities=torch.from_numpy(np.array(field.GetOpacitiesAttr().Get())).logit(),
        sh0=torch.from_numpy(sh[:, :1]),
        shN=torch.from_numpy(sh[:, 1:]),
    )
    assert_within(g, read, FLOORS[".usdc"])
    low, high = np.array(field.GetExtentAttr().Get())
    reach = 3 * read.scales.exp().amax(1, keepdim=True)
    np.testing.assert_allclose(low, (g.means - reach).amin(0), rtol=1e-5)
    np.testing.assert_allclose(high, (g.means + reach).amax(0), rtol=1e-5)


def test_frames(tmp_path):
    save(axes(), tmp_path / "a.usdc", frame="rdf")
    assert torch.equal(load(tmp_path / "a.usdc", frame="rdf").means, axes().means)
    assert torch.equal(load(tmp_path / "a.usdc").means, axes().means * torch.tensor([1.0, -1.0, -1.0]))


def test_foreign_file(tmp_path):
    """Z up, under a transform, positions in half precision, two fields of different degree."""
    low, high = asset(10, 0), asset(12, 2)
    layer = Sdf.Layer.CreateAnonymous(".usdc")
    stage = Usd.Stage.Open(layer)
    UsdGeom.SetStageUpAxis(stage, "Z")
    UsdGeom.Xform.Define(stage, "/world").AddTranslateOp().Set(Gf.Vec3d(0, 0, 2))
    for name, g in (("low", low), ("high", high)):
        field = UsdVol.ParticleField3DGaussianSplat.Define(stage, f"/world/{name}")
        field.CreatePositionshAttr(Vt.Vec3hArray.FromNumpy(g.means.numpy().astype(np.float16)))
        field.CreateOrientationsAttr(Vt.QuatfArray.FromNumpy(g.quats[:, [1, 2, 3, 0]].contiguous().numpy()))
        field.CreateScalesAttr(Vt.Vec3fArray.FromNumpy(g.scales.exp().numpy()))
        field.CreateOpacitiesAttr(Vt.FloatArray.FromNumpy(g.opacities.sigmoid().numpy()))
        field.CreateRadianceSphericalHarmonicsDegreeAttr(g.sh_degree)
        field.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray.FromNumpy(g.sh.reshape(-1, 3).numpy()))
    layer.Export(str(tmp_path / "a.usdc"))
    back = load(tmp_path / "a.usdc")
    assert (len(back), back.sh_degree) == (22, 2)
    high.means = high.means.half().float()
    matrix = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 2], [0, -1, 0, 0], [0, 0, 0, 1]])
    expected = moved(high, matrix.double())
    torch.testing.assert_close(back.means[10:], expected.means, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.shN[10:], expected.shN, rtol=0, atol=1e-5)
    assert not back.shN[:10].any()


def test_unwritable_target(tmp_path):
    g = asset(5, 0)
    for extension in (".usdc", ".usdz"):
        with pytest.raises(OutputError):
            save(g, tmp_path / "missing" / f"a{extension}")
        (tmp_path / f"folder{extension}").mkdir()
        with pytest.raises(OutputError):
            save(g, tmp_path / f"folder{extension}")
    assert {p.name for p in tmp_path.iterdir()} == {"folder.usdc", "folder.usdz"}


def test_missing_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(BackendError, match=r"psd-gs\[usd\]"):
        save(asset(5, 0), tmp_path / "a.usdc")
    assert not list(tmp_path.iterdir())


def test_other_files(tmp_path):
    stage = Usd.Stage.CreateNew(str(tmp_path / "cube.usdc"))
    UsdGeom.Cube.Define(stage, "/cube")
    stage.Save()
    with pytest.raises(FormatError, match="expected a ParticleField3DGaussianSplat, received none"):
        load(tmp_path / "cube.usdc")
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "nothing.usdz")
    (tmp_path / "a.usdc").write_bytes(b"PXR-USDC" + bytes(200))
    with pytest.raises(FormatError, match="no sound USD") as caught:
        load(tmp_path / "a.usdc")
    assert "\n" not in str(caught.value)


def damage(tmp_path, cases: int) -> float:
    """Share of the damaged files that were refused."""
    save(asset(60, 1), tmp_path / "a.usdc", metadata={"prompt": "x"})
    save(asset(60, 1), tmp_path / "a.usdz", metadata={"prompt": "x"})
    refused = 0
    for i in range(cases):
        source = tmp_path / ("a.usdc" if i % 2 else "a.usdz")
        path = tmp_path / f"broken{source.suffix}"
        path.write_bytes(mutate(source.read_bytes(), random.Random(i)))
        try:
            assert all(bool(p.isfinite().all()) for p in load(path).params().values())
            json.dumps(read_metadata(path))
        except FormatError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
    return refused / cases


def test_damaged_files(tmp_path):
    assert damage(tmp_path, 4) > 0.25


@pytest.mark.full
def test_many_damaged_files(tmp_path):
    assert damage(tmp_path, 60) > 0.25
