"""Further members of the kinds of faults that people reported of tools like this one, each with its right value."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_splats import C0, ball, glb_of, read_ply, write_ply
from mesh_builders import QUAD, Glb

from psd_gs.cli.found import places
from psd_gs.config import read_yaml
from psd_gs.errors import FormatError, InputError, OutputError, UnsupportedError
from psd_gs.export.formats import load, save
from psd_gs.export.frames import robust_box
from psd_gs.export.open import holds_gaussians, open_splats
from psd_gs.files import read_given, write_atomic
from psd_gs.mesh.points import read_points

KHR = "KHR_gaussian_splatting"
WHOLE = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}


# --- values that are in range but for rounding, or but for a few ------------------------------------------------------


def attributes(columns, **over) -> dict[str, np.ndarray]:
    """Of a splat in glTF, as float32."""

    def table(*names: str) -> np.ndarray:
        return np.stack([columns[name] for name in names], axis=1).astype("f4")

    found = {
        "POSITION": table("x", "y", "z"),
        f"{KHR}:ROTATION": table("rot_1", "rot_2", "rot_3", "rot_0"),
        f"{KHR}:SCALE": np.exp(table("scale_0", "scale_1", "scale_2")),
        f"{KHR}:OPACITY": np.full((len(columns["x"]), 1), 0.75, "f4"),
        f"{KHR}:SH_DEGREE_0_COEF_0": table("f_dc_0", "f_dc_1", "f_dc_2"),
    }
    return found | over


def test_opacities_that_rounding_took_out_of_the_unit_interval(tmp_path):
    opacity = np.array([1 + 2e-7, -1e-7, 0.5] * 10, "f4")[:, None]
    columns = ball(30)
    (tmp_path / "a.glb").write_bytes(glb_of(attributes(columns, **{f"{KHR}:OPACITY": opacity}), {KHR: WHOLE}))
    found = load(tmp_path / "a.glb").opacities
    assert found[:3].tolist() == [15.0, -15.0, 0.0]


@pytest.mark.parametrize("length", [1e-30, 1e-9, 1e12, 1e30])
def test_rotations_of_any_length(tmp_path, length):
    columns = ball(20)
    write_ply(tmp_path / "a.ply", columns | {f"rot_{i}": columns[f"rot_{i}"] * length for i in range(4)})
    save(load(tmp_path / "a.ply"), tmp_path / "b.ply")
    back, _ = read_ply(tmp_path / "b.ply")
    assert all(np.allclose(back[f"rot_{i}"], columns[f"rot_{i}"], atol=1e-6) for i in range(4))


@pytest.mark.parametrize(("name", "value"), [("f_dc_0", -1e30), ("f_dc_1", 1e4), ("f_rest_3", 1e4), ("scale_1", 18.0)])
@pytest.mark.parametrize("extension", [".sog", ".compressed.ply"])
def test_one_odd_splat_does_not_spoil_what_the_others_share(tmp_path, extension, name, value):
    columns = ball(600, degree=1)
    columns[name][0] = value
    write_ply(tmp_path / "a.ply", columns)
    asset = load(tmp_path / "a.ply")
    save(asset, tmp_path / f"b{extension}")
    back = load(tmp_path / f"b{extension}")
    near = torch.cdist(asset.means[1:].double(), back.means.double()).argmin(1)
    assert float((back.sh0[near] - asset.sh0[1:]).abs().max()) * C0 < 0.02
    assert float((back.shN[near] - asset.shN[1:]).abs().max()) < 0.05
    assert float((back.scales[near].sort(1).values - asset.scales[1:].sort(1).values).abs().max()) < 0.1


def test_of_two_splats_neither_is_a_stray():
    assert robust_box(np.array([[0.0, 0, 0], [0.3, 9, 0]])).tolist() == [[0, 0, 0], [pytest.approx(0.3), 9, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_colours_of_points_that_are_not_finite_leave_the_others_alone(tmp_path, value):
    columns = {axis: ball(400)[axis] for axis in "xyz"}
    colours = {name: np.full(400, level) for name, level in (("red", 0.8), ("green", 0.4), ("blue", 0.2))}
    colours["green"][:4] = value
    write_ply(tmp_path / "a.ply", columns | colours)
    _, rgb = read_points(tmp_path / "a.ply", 300, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rgb.median(0).values, torch.tensor([0.8, 0.4, 0.2]), rtol=0, atol=5e-3)


# --- splats of other trainers -----------------------------------------------------------------------------------------


def test_mip_splatting_keeps_its_filter_apart(tmp_path):
    """Scales and opacities are those of the blurred Gaussians: s' = sqrt(s^2 + f^2), o' = o * prod(s) / prod(s')."""
    columns = ball(40)
    width = np.linspace(0, 0.05, 40)
    write_ply(tmp_path / "a.ply", columns | {"filter_3D": width})
    found = load(tmp_path / "a.ply")
    scales = np.exp(np.stack([columns[f"scale_{i}"] for i in range(3)], 1))
    blurred = np.sqrt(scales**2 + width[:, None] ** 2)
    opacity = scales.prod(1) / blurred.prod(1) / (1 + np.exp(-columns["opacity"]))
    np.testing.assert_allclose(found.scales.exp(), blurred, rtol=1e-5)
    np.testing.assert_allclose(found.opacities.sigmoid(), opacity, rtol=1e-5)
    assert found.mode == "antialiased"


def test_anchors_of_scaffold_gs_are_named(tmp_path):
    columns = ball(9)
    write_ply(tmp_path / "a.ply", columns | {f"f_anchor_feat_{i}": columns["x"] for i in range(32)})
    with pytest.raises(UnsupportedError, match=r"anchors of Scaffold-GS.*Bake them"):
        load(tmp_path / "a.ply")


@pytest.mark.parametrize(
    ("old", "new"), [(b"element vertex", b"element Vertex"), (b"property float", b"property Float32")]
)
def test_words_of_a_header_in_capitals(tmp_path, old, new):
    write_ply(tmp_path / "a.ply", ball(16))
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "b.ply").write_bytes(data.replace(old, new))
    assert holds_gaussians(tmp_path / "b.ply")
    assert load(tmp_path / "b.ply").means.equal(load(tmp_path / "a.ply").means)


# --- splats in glTF as mesh tools leave them --------------------------------------------------------------------------


def splats(glb: Glb, columns, **over) -> dict:
    primitive = glb.primitive(None, **attributes(columns, **over))
    return primitive | {"mode": 0, "extensions": {KHR: WHOLE}}


def several_files(glb: Glb, path: Path) -> None:
    path.with_name("a.bin").write_bytes(bytes(glb.blob))
    glb.document["buffers"] = [{"byteLength": len(glb.blob), "uri": "a.bin"}]


def data_uri(glb: Glb, path: Path) -> None:
    text = base64.b64encode(bytes(glb.blob)).decode()
    glb.document["buffers"] = [{"byteLength": len(glb.blob), "uri": f"data:application/octet-stream;base64,{text}"}]


def no_scene(glb: Glb, path: Path) -> None:
    del glb.document["scene"], glb.document["scenes"]


def no_names(glb: Glb, path: Path) -> None:
    """``extensionsUsed`` is missing."""


def hidden(glb: Glb, path: Path) -> None:
    invisible = {"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": False}}}
    glb.document |= {"nodes": [{"mesh": 0}, invisible], "scenes": [{"nodes": [0, 1]}]}


def beside_a_mesh(glb: Glb, path: Path) -> None:
    glb.document["meshes"].append({"primitives": [glb.primitive(POSITION=QUAD)]})
    glb.document |= {"nodes": [{"mesh": 0}, {"mesh": 1}], "scenes": [{"nodes": [0, 1]}]}


def sparse(glb: Glb, path: Path) -> None:
    """One position is changed to what it is already."""
    rows, places = glb.view(np.array([3], "<u2").tobytes()), glb.view(bytes(glb.blob[36:48]))
    changes = {"count": 1, "indices": {"bufferView": rows, "componentType": 5123}, "values": {"bufferView": places}}
    glb.document["accessors"][0]["sparse"] = changes


@pytest.mark.parametrize("change", [several_files, data_uri, no_scene, no_names, hidden, beside_a_mesh, sparse])
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_splats_in_gltf(tmp_path, change: Callable, suffix, caplog):
    columns, path = ball(50), tmp_path / f"a{suffix}"
    glb = Glb(**({} if change is no_names else {"extensionsUsed": [KHR]}))
    glb.document["meshes"] = [{"primitives": [splats(glb, columns)]}]
    change(glb, path)
    if suffix == ".gltf" and "buffers" not in glb.document:
        data_uri(glb, path)
    glb.save(path)
    assert holds_gaussians(path)
    found = open_splats(path).gaussians
    expected = np.stack([columns[axis] for axis in "xyz"], 1)
    np.testing.assert_allclose(found.means, expected, atol=1e-6)
    assert ("1 meshes beside the splats are not kept" in caplog.text) == (change is beside_a_mesh)


def test_quantized_splats(tmp_path):
    columns, glb = ball(50), Glb(extensionsUsed=[KHR], extensionsRequired=["KHR_mesh_quantization"])
    whole = attributes(columns)
    place = np.rint(whole["POSITION"] * 60_000).astype("i2")
    turn = (np.rint(whole[f"{KHR}:ROTATION"] * 32767).astype("i2"), {"normalized": True})
    opacity = (np.full((50, 1), 204, "u1"), {"normalized": True})
    primitive = splats(glb, columns, **{"POSITION": place, f"{KHR}:ROTATION": turn, f"{KHR}:OPACITY": opacity})
    glb.document |= {"meshes": [{"primitives": [primitive]}], "nodes": [{"mesh": 0, "scale": [1 / 60_000] * 3}]}
    glb.save(tmp_path / "a.glb")
    found = load(tmp_path / "a.glb")
    np.testing.assert_allclose(found.means, whole["POSITION"], atol=1e-5)
    np.testing.assert_allclose(found.opacities.sigmoid(), 0.8, atol=1e-6)
    # a quaternion and its negative are one rotation
    same = (found.quats[:, [1, 2, 3, 0]].numpy() * whole[f"{KHR}:ROTATION"]).sum(1)
    np.testing.assert_allclose(np.abs(same), 1, atol=1e-4)


def test_gltf_is_read_and_not_written(tmp_path):
    write_ply(tmp_path / "a.ply", ball(9))
    for name in ("b.gltf", "meta.json"):
        with pytest.raises(InputError, match="expected a splat file"):
            save(load(tmp_path / "a.ply"), tmp_path / name)


# --- what is passed in place of an asset ------------------------------------------------------------------------------

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
LEFT = {
    "page of a server": b"\n<!DOCTYPE html><title>Sign in</title>",
    "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("name", ["a.ply", "a.glb", "a.obj", "a.stl", "a.splat", "a.sog", "a.ply.gz"])
def test_packed_files_and_failed_downloads_are_named(tmp_path, name):
    write_ply(tmp_path / "whole.ply", ball(20))
    path, data = tmp_path / name, (tmp_path / "whole.ply").read_bytes()

    def said() -> str:
        with pytest.raises(UnsupportedError) as caught:
            read_points(path, 10, torch.Generator()) if path.suffix in (".obj", ".stl") else open_splats(path)
        return str(caught.value)

    for kind, pack in PACK.items():
        if not (name.endswith(".gz") and kind != "gzip"):
            path.write_bytes(pack(data))
            assert said().startswith(f"{path}: packed with {kind}. Unpack it first")
    for kind, text in LEFT.items() if name != "a.ply.gz" else ():
        path.write_bytes(text)
        assert kind in said()
    if name != "a.ply.gz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("whole.ply", data)
        assert said().startswith(f"{path}: packed with zip")


def test_a_zip_with_backslashes(tmp_path):
    """As older tools of Windows write them."""
    write_ply(tmp_path / "a.ply", ball(40))
    save(load(tmp_path / "a.ply"), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as whole, zipfile.ZipFile(tmp_path / "b.sog", "w") as other:
        for name in whole.namelist():
            other.writestr(f"asset\\{name}", whole.read(name))
    assert load(tmp_path / "b.sog").means.equal(load(tmp_path / "a.sog").means)


# --- names and streams ------------------------------------------------------------------------------------------------


def test_the_longest_names_are_written(tmp_path):
    write_atomic(tmp_path / ("a" * 251 + ".ply"), "x")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(OutputError, match=r"File name too long\. Free some space or choose"):
        write_atomic(tmp_path / ("a" * 300), "x")


def test_files_that_would_become_one_are_refused(tmp_path):
    sources = [tmp_path / "a" / "x.ply", tmp_path / "a" / "x.splat", tmp_path / "b" / "x.ply"]
    with pytest.raises(InputError, match=r"x\.ply and .*x\.splat, which would both become .*Rename one"):
        places(sources, None)
    assert places(sources[1:], tmp_path / "out") == [tmp_path / "out" / "a" / "x", tmp_path / "out" / "b" / "x"]


def test_a_pipe_that_a_person_names_is_read_and_a_device_without_end_is_not(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("steps: 3\n"))
    writer.start()
    assert read_yaml(pipe, given=True) == {"steps": 3}
    writer.join()
    with pytest.raises(FormatError, match="expected at most 10 bytes"):
        read_given("/dev/zero", 10)
