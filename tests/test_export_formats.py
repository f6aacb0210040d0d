"""Splat formats: written, read back by ourselves and by others, frames, signs, and what is bad input."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from splats import FLOORS, assert_within, asset, axes, matched, turned

from psd_gs.cameras import orbit
from psd_gs.errors import FormatError, InputError, OutputError
from psd_gs.export.formats import FORMATS, format_of, load, read_metadata, save, sha256_of, sidecar
from psd_gs.export.open import open_splats
from psd_gs.gaussians import Gaussians, rotation_matrices, sh0_to_rgb
from psd_gs.render import render

# See test_export_usd.py and test_view.py for the others.
EXTENSIONS = [extension for extension in FORMATS if not extension.startswith((".usd", ".html"))]


def options(extension: str, version: int = 3) -> dict:
    return {"version": version} if extension == ".spz" else {}


def view(azimuth: float, elevation: float, turned: bool = False):
    numbers = (torch.tensor([value]) for value in (azimuth, elevation, 4.0, 40.0))
    camera = orbit(*numbers, 64, 64)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    return replace(camera, viewmats=camera.viewmats @ flip) if turned else camera


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean() + 1e-12))


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_round_trip(tmp_path, extension, degree):
    g, path = asset(degree=degree), tmp_path / f"a{extension}"
    save(g, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = load(path)
    assert back.sh_degree == min(degree, FORMATS[extension].sh_degree)
    assert_within(g, back, FLOORS[extension])
    first = path.read_bytes()
    save(g, path)
    assert path.read_bytes() == first, "two exports of the same asset differ"


@pytest.mark.parametrize("degree", [0, 3])
def test_round_trip_of_spz_4(tmp_path, degree):
    g = asset(degree=degree)
    save(g, tmp_path / "a.spz", version=4)
    assert (tmp_path / "a.spz").read_bytes()[:8] == b"NGSP\x04\0\0\0"
    assert_within(g, load(tmp_path / "a.spz"), FLOORS[".spz"])


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("n", [1, 2, 257])
def test_few_and_flat(tmp_path, extension, n):
    """One Gaussian, and many in a plane with the same size and colour: chunks of no extent."""
    g = asset(n, degree=1)
    g.means[:, 1] = 0.25
    g.scales[:], g.sh0[:] = -4.0, 0.5
    save(g, tmp_path / f"a{extension}")
    back = matched(g, load(tmp_path / f"a{extension}"))
    torch.testing.assert_close(back.means, g.means, rtol=0, atol=3e-3)
    torch.testing.assert_close(back.scales, g.scales, rtol=0, atol=0.04)
    torch.testing.assert_close(back.sh0, g.sh0, rtol=0, atol=0.02)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_many_blocks(tmp_path, extension, monkeypatch):
    monkeypatch.setattr("psd_gs.splats.BLOCK", 256)
    g = asset(1000, degree=1)
    save(g, tmp_path / f"a{extension}")
    assert_within(g, load(tmp_path / f"a{extension}"), FLOORS[extension])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extremes_stay_finite(tmp_path, extension):
    g = asset(64, degree=3)
    g.opacities[:4] = torch.tensor([80.0, -80.0, 15.0, -15.0])
    g.scales[4], g.scales[5] = -60.0, 3.0
    g.sh0[6], g.shN[7] = 50.0, -50.0
    g.quats[8] *= 1e-12
    g.means[9, 0], g.means[10] = float("nan"), float("inf")
    save(g, tmp_path / f"a{extension}")
    back = load(tmp_path / f"a{extension}")
    assert len(back) == 62
    assert all(bool(p.isfinite().all()) for p in back.params().values())


# --- axes and signs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["gltf", "rdf"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_three_coloured_axes(tmp_path, extension, frame):
    path = tmp_path / f"a{extension}"
    save(axes(), path, frame=frame)
    back = load(path, frame=frame)
    rgb = sh0_to_rgb(back.sh0[:, 0])
    assert torch.equal(rgb.argmax(1), back.means.argmax(1)), "an axis has the wrong colour or direction"
    raw = load(path, frame="gltf")  # the numbers of the file
    up = raw.means[sh0_to_rgb(raw.sh0[:, 0]).argmax(1) == 1]
    assert (up[:, 1] > 0).all() == (frame == "gltf")
    assert (up[:, 1] < 0).all() == (frame == "rdf")


def test_usual_frames():
    assert {extension: FORMATS[extension].frame for extension in FORMATS} == {
        **dict.fromkeys((".compressed.ply", ".ply", ".splat", ".spz", ".sog"), "rdf"),
        **dict.fromkeys((".glb", ".usdc", ".usdz", ".html"), "gltf"),
    }


@pytest.mark.parametrize("extension", [e for e in EXTENSIONS if FORMATS[e].sh_degree == 3])
def test_signs_of_the_harmonics(tmp_path, extension):
    """The numbers of an RDF file, seen by a camera that is turned likewise, show the same picture as the asset."""
    g = asset(150, degree=3)
    g.scales += 0.7
    path = tmp_path / f"a{extension}"
    save(g, path, frame="rdf")
    raw = load(path, frame="gltf")
    unsigned = replace(raw, shN=turned(raw).shN)
    for angles in ((20.0, 30.0), (200.0, -40.0)):
        expected = render(g, view(*angles)).rgb
        assert expected.std() > 0.05
        assert psnr(render(load(path, frame="rdf"), view(*angles)).rgb, expected) > 33
        assert psnr(render(raw, view(*angles, turned=True)).rgb, expected) > 33
        assert psnr(render(unsigned, view(*angles, turned=True)).rgb, expected) < 25


# --- independent readers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extension", "version"),
    [  # gsply compiles its readers for seconds
        (".ply", 3),
        *(pytest.param(*case, marks=pytest.mark.full) for case in [(".compressed.ply", 3), (".spz", 3), (".spz", 4)]),
    ],
)
def test_gsply_reads_it(tmp_path, extension, version):
    import gsply

    g, path = asset(300), tmp_path / f"a{extension}"
    save(g, path, metadata={"prompt": "a cat"}, **options(extension, version))
    data = (gsply.read_spz if extension == ".spz" else gsply.plyread)(str(path))
    columns = (np.array(getattr(data, name)) for name in ("means", "quats", "scales", "opacities", "sh0", "shN"))
    means, quats, scales, opacities, sh0, shN = (torch.from_numpy(column) for column in columns)
    raw = Gaussians(means, quats, scales, opacities, sh0[:, None], shN)
    assert_within(turned(g), raw, FLOORS[extension])


def test_layout_of_a_splat(tmp_path):
    g = asset(7, degree=0)
    save(g, tmp_path / "a.splat")
    rows = list(struct.iter_unpack("<6f8B", (tmp_path / "a.splat").read_bytes()))
    size = [row[3] * row[4] * row[5] * row[9] / 255 for row in rows]
    assert size == sorted(size, reverse=True)
    for row in rows:
        i = int((g.means - torch.tensor([row[0], -row[1], -row[2]])).norm(dim=1).argmin())
        np.testing.assert_allclose(row[3:6], g.scales[i].exp(), rtol=1e-6)
        np.testing.assert_allclose(np.array(row[6:9]) / 255, sh0_to_rgb(g.sh0[i, 0]), atol=0.002)
        assert row[9] == round(float(g.opacities[i].sigmoid()) * 255)
        axes_of_file = rotation_matrices((torch.tensor([row[10:]], dtype=torch.float32) - 128) / 128)[0]
        turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        expected = turn @ rotation_matrices(g.quats[i : i + 1])[0] @ turn
        torch.testing.assert_close(axes_of_file, expected, rtol=0, atol=0.03)


def test_spz_of_version_1_and_2(tmp_path):
    """Written here from upstream's description: half floats, and rotations of three bytes."""
    for version, positions in ((1, np.array([0.5, -2.0, 4.0], "<f2").tobytes()), (2, None)):
        fixed = b"".join(int(value * 4096).to_bytes(3, "little", signed=True) for value in (0.5, -2.0, 4.0))
        body = struct.pack("<IIIBBBB", 0x5053474E, version, 1, 0, 12, 0, 0) + (positions or fixed)
        body += bytes([128, 255, 0, 128, 160, 144, 176]) + bytes([255, 128, 128])
        (tmp_path / "a.spz").write_bytes(gzip.compress(body))
        g = load(tmp_path / "a.spz")
        assert g.means.tolist() == [[0.5, 2.0, -4.0]]
        assert g.scales.tolist() == [[0.0, -1.0, 1.0]]
        assert g.opacities.sigmoid().item() == pytest.approx(128 / 255)
        assert g.quats[0, 1].item() == pytest.approx(1)
        assert g.quats[0, [0, 2, 3]].abs().max() < 0.09
        assert g.sh0[0, 0].tolist() == pytest.approx([0.5 / 0.15, -0.5 / 0.15, 0.5 / 255 / 0.15], abs=1e-5)


def test_spz_precision_follows_the_size(tmp_path):
    for reach in (1e-3, 1.0, 31.0, 33.0, 5000.0, 8e6):
        g = asset(50, degree=0)
        g.means *= reach / g.means.abs().max()
        save(g, tmp_path / "a.spz")
        error = (load(tmp_path / "a.spz").means - g.means).abs().max()
        assert error <= max(2e-6, reach * 2**-22)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_metadata(tmp_path, extension):
    g, path = asset(100, degree=1), tmp_path / f"a{extension}"
    given = {"prompt": "ein Bär", "seed": 3, "scores": {"mini": 0.5}, "bad": float("nan")}
    save(g, path, metadata=given)
    beside = json.loads(sidecar(path).read_text(encoding="utf-8"))
    wanted = {"prompt": "ein Bär", "seed": 3, "scores": {"mini": 0.5}, "bad": None, "n_splats": 100, "units": "metres"}
    assert wanted.items() <= beside.items()
    assert beside["frame"] == FORMATS[extension].frame
    assert beside["sh_degree"] == min(1, FORMATS[extension].sh_degree)
    assert len(beside["sha256"]) == 64
    assert read_metadata(path)["prompt"] == "ein Bär"
    sidecar(path).unlink()
    assert read_metadata(path).get("prompt") == ("ein Bär" if FORMATS[extension].metadata else None)
    facts = open_splats(path).describe()
    assert (facts["format"], facts["n_splats"]) == (FORMATS[extension].name, 100)
    np.testing.assert_allclose(facts["bounds"], [g.means.amin(0), g.means.amax(0)], atol=3e-3)
    save(g, tmp_path / f"b{extension}")
    assert not sidecar(tmp_path / f"b{extension}").exists()
    assert read_metadata(tmp_path / f"b{extension}") == {}


def test_metadata_of_a_run(tmp_path):
    """They belong to the files that they name, and to no other that comes to lie beside them."""
    save(asset(5, 0), tmp_path / "splat.spz")
    facts = {"prompt": "a dog", "files": {"splat.spz": sha256_of(tmp_path / "splat.spz")}}
    (tmp_path / "psd_gs.json").write_text(json.dumps(facts))
    assert read_metadata(tmp_path / "splat.spz") == facts
    save(asset(5, 0, seed=1), tmp_path / "other.spz")
    assert read_metadata(tmp_path / "other.spz") == {}
    save(asset(5, 0), tmp_path / "ours.spz", metadata={"prompt": "a cat"})
    assert read_metadata(tmp_path / "ours.spz")["prompt"] == "a cat"
    save(asset(5, 0, seed=2), tmp_path / "ours.spz")
    assert read_metadata(tmp_path / "ours.spz") == {}


# --- bad input --------------------------------------------------------------------------------------------------------


def test_unknown_extension(tmp_path):
    for name in ("a.txt", "a", "ply", "a.ply.bak"):
        with pytest.raises(InputError, match="expected a splat file, one of"):
            format_of(tmp_path / name)
    assert format_of("A.PLY") is FORMATS[".ply"]
    assert format_of("a.b.compressed.ply") is FORMATS[".compressed.ply"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_wrong_extension(tmp_path, extension):
    source = tmp_path / f"a{extension}"
    save(asset(40), source)
    for other in EXTENSIONS:
        if FORMATS[other].read is not FORMATS[extension].read:
            target = tmp_path / f"b{other}"
            target.write_bytes(source.read_bytes())
            with pytest.raises(FormatError) as caught:
                load(target)
            assert str(target) in str(caught.value)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_not_a_splat_file(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    for content in (b"", b"\0", b"hello, this is some text", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            load(path)
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / f"nothing{extension}")
    (tmp_path / f"folder{extension}").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / f"folder{extension}")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_nothing_to_write(tmp_path, extension):
    g = asset(3)
    for broken in (g.select(torch.tensor([], dtype=torch.long)), g.map(lambda p: p * float("nan"))):
        with pytest.raises(InputError, match="none is usable"):
            save(broken, tmp_path / f"a{extension}", metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_unwritable_target(tmp_path, extension, monkeypatch):
    g = asset(20)
    with pytest.raises(OutputError):
        save(g, tmp_path / "missing" / f"a{extension}")
    (tmp_path / f"folder{extension}").mkdir()
    with pytest.raises(OutputError):
        save(g, tmp_path / f"folder{extension}")
    assert [p.name for p in tmp_path.iterdir()] == [f"folder{extension}"]

    path = tmp_path / f"a{extension}"
    path.write_bytes(b"older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        save(g, path)
    assert path.read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


def test_absurd_counts(tmp_path):
    """Headers that promise billions are refused before anything is allocated."""
    path = tmp_path / "a.spz"
    header = struct.pack("<IIIBBBB", 0x5053474E, 3, 2**32 - 1, 3, 12, 0, 0)
    path.write_bytes(gzip.compress(header + bytes(1000)))
    with pytest.raises(FormatError, match="received 4294967295 Gaussians"):
        load(path)
    path.write_bytes(gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 0, 3, 12, 0, 0)))
    with pytest.raises(FormatError, match="holds no Gaussians"):
        load(path)
    four = struct.pack("<IIIBBBBI12x", 0x5053474E, 4, 2**31, 0, 12, 0, 5, 32)
    path.write_bytes(four + struct.pack("<QQ", 8, 2**40) * 5 + bytes(40))
    with pytest.raises(FormatError, match="received 2147483648 Gaussians"):
        load(path)


@pytest.mark.parametrize("extension", [".ply", ".compressed.ply"])
def test_no_rows(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    save(asset(1, 0), path)
    head = path.read_bytes().split(b"end_header\n")[0].replace(b"vertex 1", b"vertex 0").replace(b"chunk 1", b"chunk 0")
    path.write_bytes(head + b"end_header\n")
    with pytest.raises(FormatError, match="holds no Gaussians"):
        load(path)


def test_spz_with_an_extension_record(tmp_path):
    """Version 4 may hold records between its header and the table of contents; they are skipped."""
    g, path = asset(30, 1), tmp_path / "a.spz"
    save(g, path, version=4)
    data = path.read_bytes()
    record = struct.pack("<II4x", 0xADBE0002, 4)
    begin = struct.pack("<I", 32 + len(record))
    path.write_bytes(data[:14] + b"\x02" + data[15:16] + begin + data[20:32] + record + data[32:])
    assert_within(g, load(path), FLOORS[".spz"])
