"""What is a value, what is damage, and what of a splat may be missing: every odd number in every format."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from foreign_splats import C0, ball, read_ply, write_ply

from psd_gs.asset import open_asset
from psd_gs.errors import FormatError
from psd_gs.export.formats import FORMATS, load, save
from psd_gs.export.open import open_splats
from psd_gs.export.ply import is_gaussian_ply

WRITTEN = [extension for extension in FORMATS if extension not in (".html", ".usdz")]


@pytest.mark.parametrize("extension", WRITTEN)
def test_infinite_opacities_and_flat_axes_are_values(tmp_path, extension):
    """An opacity of one has an infinite logit, and an axis of zero length a log scale of minus infinity."""
    columns = ball(200)
    columns["opacity"][:120], columns["opacity"][120:130] = np.inf, -np.inf
    columns["scale_0"][:20] = -np.inf
    write_ply(tmp_path / "a.ply", columns)
    asset = load(tmp_path / "a.ply")
    assert len(asset) == 200
    assert asset.opacities.clamp(-15, 15).equal(asset.opacities)
    assert asset.opacities[[0, 120]].tolist() == [15.0, -15.0]
    assert float(asset.scales[0, 0]) == -20.0
    save(asset, tmp_path / f"b{extension}")
    back = load(tmp_path / f"b{extension}")
    opaque = back.opacities.sigmoid()
    assert len(back) == 200
    assert (int((opaque > 0.99).sum()), int((opaque < 0.01).sum())) == (120, 10)


def test_writers_take_infinities_too(tmp_path):
    write_ply(tmp_path / "a.ply", ball(50))
    asset = load(tmp_path / "a.ply")
    asset.opacities[:5], asset.scales[5:9, 1] = torch.inf, -torch.inf
    save(asset, tmp_path / "b.ply")
    columns, _ = read_ply(tmp_path / "b.ply")
    assert columns["opacity"][:5].tolist() == [15.0] * 5
    assert columns["scale_1"][5:9].tolist() == [-20.0] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", np.nan), ("z", np.inf), ("scale_1", np.inf), ("scale_1", np.nan), ("opacity", np.nan), ("f_dc_2", np.inf)],
)
def test_damage_is_refused_or_left_out_and_counted(tmp_path, caplog, name, value):
    columns = ball(50)
    columns[name][[3, 7]] = value
    write_ply(tmp_path / "a.ply", columns)
    with pytest.raises(FormatError, match="received 50 of which 2 hold NaN"):
        load(tmp_path / "a.ply")
    with caplog.at_level(logging.WARNING):
        assert len(open_splats(tmp_path / "a.ply").gaussians) == 48
        assert len(open_asset(tmp_path / "a.ply")) == 48
    assert [record.getMessage().count("left out 2 of 50 Gaussians") for record in caplog.records] == [1, 1]


def test_flat_splats_of_two_scales(tmp_path):
    columns = ball(100, degree=3)
    del columns["scale_2"]
    write_ply(tmp_path / "a.ply", columns)
    asset = open_splats(tmp_path / "a.ply").gaussians
    assert (len(asset), asset.sh_degree, asset.mode) == (100, 3, "2dgs")
    assert np.allclose(asset.scales[:, 2].exp(), 1e-6, rtol=1e-4)
    np.testing.assert_allclose(asset.scales[:, 1], columns["scale_1"], atol=1e-6)
    np.testing.assert_allclose(asset.sh0[:, 0, 1], columns["f_dc_1"], atol=1e-6)
    assert is_gaussian_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("kind", ["uchar", "ushort", "float"])
def test_colours_in_place_of_harmonics(tmp_path, kind):
    """Nerfstudio's export with ply_color_mode rgb, and of other integer types."""
    columns = ball(100)
    rgb = [0.5 + C0 * columns.pop(f"f_dc_{i}") for i in range(3)]
    top = {"uchar": 255, "ushort": 65535, "float": 1}[kind]
    given = {
        name: np.round(value * top) if top > 1 else value
        for name, value in zip(("red", "green", "blue"), rgb, strict=True)
    }
    normals = {name: np.zeros(100) for name in ("nx", "ny", "nz")}
    write_ply(tmp_path / "a.ply", {**columns, **normals, **given}, types=dict.fromkeys(given, kind))
    asset = open_splats(tmp_path / "a.ply").gaussians
    np.testing.assert_allclose(asset.sh0[:, 0] * C0 + 0.5, np.stack(rgb, 1), atol=0.51 / 255 if top == 255 else 1e-4)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["f_dc_0", "f_dc_1", "f_dc_2"], "no colour"),
        (["opacity"], "no opacity"),
        (["rot_0", "rot_1", "rot_2", "rot_3"], "no rotation"),
        (["scale_1", "scale_2"], None),
        (["scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"], None),
    ],
)
def test_parts_of_splats_are_splats_and_upright(tmp_path, caplog, missing, said):
    """Never taken for a point cloud, whose axes are others."""
    columns = {name: values for name, values in ball(60).items() if name not in missing}
    columns["y"] = np.abs(columns["y"])  # down in the axes of the file
    write_ply(tmp_path / "a.ply", columns)
    with caplog.at_level(logging.WARNING):
        asset = open_splats(tmp_path / "a.ply").gaussians
    assert len(asset) == 60
    assert (asset.means[:, 1] <= 0).all()
    assert bool(caplog.messages) == bool(said)
    assert not said or said in caplog.messages[0]


@pytest.mark.parametrize("missing", ["z", "scale_0", "rot_2"])
def test_what_cannot_be_guessed_is_named(tmp_path, missing):
    columns = ball(20)
    del columns[missing]
    write_ply(tmp_path / "a.ply", columns)
    with pytest.raises(FormatError, match=f"{missing}.*Export it again"):
        load(tmp_path / "a.ply")


def test_further_properties_are_named(tmp_path, caplog):
    write_ply(tmp_path / "a.ply", {**ball(20), "label": np.zeros(20), "confidence": np.zeros(20)})
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path / "a.ply")) == 20
    assert "2 further properties are not kept (label, confidence)" in caplog.text


def test_further_elements_are_named(tmp_path, caplog):
    """Such as the camera that some programs put behind the splats."""
    more = [b"element intrinsic 2", b"property float intrinsic", b"element none 0", b"property float none"]
    write_ply(tmp_path / "a.ply", ball(20), after=more, tail=bytes(8))
    assert len(load(tmp_path / "a.ply")) == 20
    assert "besides the splats it has intrinsic: not kept" in caplog.text


def test_harmonics_of_degree_4_are_cut(tmp_path, caplog):
    columns = ball(30, degree=4)
    write_ply(tmp_path / "a.ply", columns)
    with caplog.at_level(logging.WARNING):
        asset = load(tmp_path / "a.ply", frame="gltf")
    assert asset.sh_degree == 3
    assert "degree 4" in caplog.text
    np.testing.assert_allclose(asset.shN[:, 14, 1], columns[f"f_rest_{24 + 14}"], atol=1e-6)
