"""The same asset of two millimetres, a metre and twenty kilometres, far from the origin, and with strays: it looks the
same in every format, film, page and mesh."""

from __future__ import annotations

import base64
import json
import logging
import re

import numpy as np
import pytest
import torch
from foreign_splats import ball, read_ply, read_spz, resized, spz, write_ply
from scipy.spatial import cKDTree

from psd_gs.export.fitting import bounding_ball, fitted
from psd_gs.export.formats import FORMATS, load, save
from psd_gs.export.frames import usual_size
from psd_gs.export.open import open_splats
from psd_gs.export.page import Pane, make_page
from psd_gs.export.pictures import _turn
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.build import BuildOptions, build
from psd_gs.mesh.extract import MeshOptions

FORMATS_READ = [extension for extension in FORMATS if extension not in (".html", ".usdc", ".usdz")]
UTM = (448_262.35, -300.5, 5_411_932.8)
SIZES = {
    "2 mm": (0.002, (0, 0, 0)),
    "20 km": (20_000.0, (0, 0, 0)),
    "20 m off": (10.0, (20, 0, 0)),
    "UTM": (30.0, UTM),
    "UTM, small": (0.3, UTM),
}


def picture(asset: Gaussians) -> np.ndarray:
    """One frame of the film around an asset."""
    return next(iter(_turn(asset, 1, 48, 15.0, (1.0, 1.0, 1.0)))).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 20 * np.log10(255 / max(float(np.sqrt(((a - b) ** 2).mean())), 1e-3))


@pytest.fixture
def metre(tmp_path):
    """The asset of a metre, as a file and as a picture."""
    columns = ball(400, size=0.05)
    write_ply(tmp_path / "metre.ply", columns)
    return columns, picture(load(tmp_path / "metre.ply"))


@pytest.mark.parametrize(("factor", "place"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("extension", FORMATS_READ)
def test_every_size_and_place_looks_the_same_in_every_format(tmp_path, metre, extension, factor, place):
    columns, expected = metre
    write_ply(tmp_path / "a.ply", resized(columns, factor, place), types=dict.fromkeys("xyz", "double"))
    asset = open_splats(tmp_path / "a.ply")
    save(asset.gaussians, tmp_path / f"b{extension}", metadata={})
    back = open_splats(tmp_path / f"b{extension}")
    assert psnr(picture(back.gaussians), expected) > 38
    centre, radius = bounding_ball(back.gaussians)
    world = centre.double() + torch.tensor(back.gaussians.origin, dtype=torch.float64)
    assert radius == pytest.approx(0.67 * factor, rel=0.03)
    assert np.allclose(world, [place[0], -place[1], -place[2]], atol=0.02 * factor)


def test_utm_coordinates_come_back_in_double(tmp_path):
    columns = resized(ball(300), 10.0, UTM)
    write_ply(tmp_path / "a.ply", columns, types=dict.fromkeys("xyz", "double"))
    asset = open_splats(tmp_path / "a.ply")
    assert asset.gaussians.means.abs().max() < 20
    assert asset.describe()["offset"] == pytest.approx([UTM[0], -UTM[1], -UTM[2]], abs=20)
    save(asset.gaussians, tmp_path / "b.spz", metadata={"prompt": "a church"})
    save(open_splats(tmp_path / "b.spz").gaussians, tmp_path / "c.ply")
    back, _ = read_ply(tmp_path / "c.ply")
    for axis in "xyz":
        assert np.abs(back[axis] - columns[axis]).max() < 2e-4, "of ten metres, through 24 bits"
    save(asset.gaussians, tmp_path / "d.ply")
    back, _ = read_ply(tmp_path / "d.ply")
    assert max(np.abs(back[axis] - columns[axis]).max() for axis in "xyz") < 2e-6


def test_floats_far_out_are_given_back_as_they_were(tmp_path):
    """Where the file itself is too coarse, nothing more is lost."""
    columns = {name: values.astype(np.float32) for name, values in resized(ball(100), 10.0, UTM).items()}
    write_ply(tmp_path / "a.ply", columns)
    save(load(tmp_path / "a.ply"), tmp_path / "b.ply")
    back, _ = read_ply(tmp_path / "b.ply")
    assert all((back[axis] == columns[axis]).all() for axis in "xyz")


def test_assets_of_usual_size_and_place_are_not_moved(tmp_path):
    for factor, place in ((1.0, (0, 0, 0)), (10.0, (20, 5, 0)), (1.0, (100, 0, 0)), (0.002, (0, 0, 0))):
        write_ply(tmp_path / "a.ply", resized(ball(50), factor, place))
        assert load(tmp_path / "a.ply").origin == (0.0, 0.0, 0.0)


# --- strays -----------------------------------------------------------------------------------------------------------

STRAYS = [[4e5, 0, 0], [0, -4e6, 0], [5.3e8, 0, 0], [700, 700, -700], [3e37, 0, 1]]


def with_strays(columns, places, opacity: float) -> dict[str, np.ndarray]:
    columns = {name: values.copy() for name, values in columns.items()}
    for row, place in enumerate(places):
        for axis, value in zip("xyz", place, strict=True):
            columns[axis][row] = value
        columns["opacity"][row] = opacity
    return columns


@pytest.mark.parametrize(("places", "opacity"), [*(([stray], -4.0) for stray in STRAYS), (STRAYS, 3.0)])
@pytest.mark.parametrize("extension", FORMATS_READ)
def test_strays_do_not_spoil_the_rest(tmp_path, caplog, extension, places, opacity):
    columns = with_strays(ball(2000, size=0.01), places, opacity)
    write_ply(tmp_path / "a.ply", columns)
    asset = load(tmp_path / "a.ply")
    with caplog.at_level(logging.WARNING):
        save(asset, tmp_path / f"b{extension}", frame="rdf")
    back = load(tmp_path / f"b{extension}", frame="rdf")
    assert len(back) == 2000
    near = asset.means[len(places) :]
    worst = float(cKDTree(back.means.double()).query(near.double())[0].max())
    assert worst <= {".spz": 3.4e-6, ".sog": 1.2e-4, ".compressed.ply": 4e-3}.get(extension, 0)
    said = f"moved {len(places)} stray of 2000 Gaussians"
    assert (said in caplog.text) == (extension in (".spz", ".sog", ".compressed.ply"))


def test_the_bits_of_spz_follow_the_asset(tmp_path):
    for places in ([], STRAYS):
        write_ply(tmp_path / "a.ply", with_strays(ball(2000), places, -4.0))
        save(load(tmp_path / "a.ply"), tmp_path / "a.spz")
        assert read_spz((tmp_path / "a.spz").read_bytes())[2] == 18


@pytest.mark.parametrize("n", [20, 60, 500])
def test_a_stray_does_not_shrink_a_fitted_asset(tmp_path, n):
    """However few Gaussians there are."""
    write_ply(tmp_path / "a.ply", with_strays(resized(ball(n), 10.0, (20, 0, 0)), [[1e4, 0, 0]], 3.0))
    asset = fitted(load(tmp_path / "a.ply"), 0.5)
    near = asset.means[1:].norm(dim=1)
    assert 0.35 < float(near.median()) < 0.55
    assert float(near.max()) < 0.6


def test_fitting_is_blind_for_place_and_size(tmp_path):
    write_ply(tmp_path / "a.ply", ball(300))
    expected = fitted(load(tmp_path / "a.ply"), 0.5)
    for factor, place in SIZES.values():
        write_ply(tmp_path / "b.ply", resized(ball(300), factor, place), types=dict.fromkeys("xyz", "double"))
        found = fitted(load(tmp_path / "b.ply"), 0.5)
        torch.testing.assert_close(found.means, expected.means, atol=2e-4, rtol=0)
        torch.testing.assert_close(found.scales, expected.scales, atol=2e-3, rtol=0)
        assert found.origin == (0.0, 0.0, 0.0)


def test_powers_of_sixteen():
    assert [usual_size(radius) for radius in (0.3, 1.0, 3.9, 0.001, 20_000.0)] == [1, 1, 1, 16.0**-2, 16.0**4]


# --- pages and meshes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "place"), SIZES.values(), ids=SIZES)
def test_pages_hold_every_size(tmp_path, factor, place):
    write_ply(tmp_path / "a.ply", resized(ball(300), factor, place), types=dict.fromkeys("xyz", "double"))
    page = make_page([Pane("a", load(tmp_path / "a.ply"))], "a")
    (described,) = json.loads(re.search('id="assets">(.*?)</script>', page)[1])
    data = base64.b64decode(re.search('id="splat-0">(.*?)</script>', page)[1])
    positions, scales, _, _ = read_spz(data)
    unit = (positions - described["centre"]) / described["radius"]
    assert np.quantile(np.linalg.norm(unit, axis=1), 0.9) == pytest.approx(0.92, abs=0.06)
    assert np.exp(np.median(scales)) / described["radius"] == pytest.approx(0.037, rel=0.1)


@pytest.mark.parametrize(
    "names", [["2 mm", "UTM"], pytest.param([*SIZES], marks=pytest.mark.full)], ids=["some", "all"]
)
def test_meshes_of_every_size(tmp_path, names):
    columns = ball(700, size=0.05)
    options = BuildOptions(MeshOptions(resolution=32, views=8, faces=300), texture_size=0)
    boxes = {}
    for name, (factor, place) in {"metre": (1.0, (0, 0, 0)), **{name: SIZES[name] for name in names}}.items():
        write_ply(tmp_path / "a.ply", resized(columns, factor, place), types=dict.fromkeys("xyz", "double"))
        built = build(load(tmp_path / "a.ply"), options)
        vertices = built.levels[0].vertices
        boxes[name] = (vertices.max(0) - vertices.min(0)) / factor
        assert built.extraction.topology.watertight
        back = built.placement.undo(built.levels[0]).vertices
        np.testing.assert_allclose(back, vertices, atol=1e-4 * factor)
    for box in boxes.values():
        np.testing.assert_allclose(box, boxes["metre"], rtol=0.02)


def test_spz_in_other_units_are_read_in_metres(tmp_path, caplog):
    write_ply(tmp_path / "a.ply", resized(ball(200), 0.002))
    with caplog.at_level(logging.WARNING):
        save(load(tmp_path / "a.ply"), tmp_path / "a.spz", metadata={})
    assert "one unit of the file is 0.0625 of the asset" in caplog.text
    assert json.loads((tmp_path / "a.spz.json").read_text())["scale"] == 0.0625
    assert bounding_ball(open_splats(tmp_path / "a.spz").gaussians)[1] == pytest.approx(0.00109, rel=0.05)
    positions, scales, _, _ = read_spz((tmp_path / "a.spz").read_bytes())
    assert np.exp(np.median(scales)) / np.abs(positions).max() == pytest.approx(0.04, rel=0.05)


def test_giants_that_spz_cannot_hold_are_counted(tmp_path, caplog):
    columns = ball(50)
    for axis, log in enumerate((5.93, 5.95, 7.0)):  # e^5.9375 is the largest, and the second rounds to it
        columns[f"scale_{axis}"] = columns[f"scale_{axis}"].copy()
        columns[f"scale_{axis}"][axis] = log
    write_ply(tmp_path / "a.ply", columns)
    save(load(tmp_path / "a.ply"), tmp_path / "a.spz")
    assert [text for text in caplog.messages if "larger than" in text] == [
        f"{tmp_path / 'a.spz'}: 1 Gaussians are larger than SPZ holds, and end at 379"
    ]
    assert np.sort(load(tmp_path / "a.spz").scales.amax(1))[-3:].tolist() == [5.9375] * 3


def test_boxes_of_kilometres_are_exact(tmp_path):
    """Corners at -2050 to -2000, which 12 bits below the point could not hold."""
    corners = np.array([[x, y, z] for x in (-2050, -2000) for y in (0, -50) for z in (0, -50)], float)
    columns = {**ball(8, size=2.7), **dict(zip("xyz", corners.T, strict=True))}
    (tmp_path / "a.spz").write_bytes(spz(columns, fraction=11))
    save(load(tmp_path / "a.spz"), tmp_path / "b.spz")
    assert (read_spz((tmp_path / "b.spz").read_bytes())[0] == corners).all()
