"""Splats in glTF: the rules of KHR_gaussian_splatting, other readers, other writers, and node transforms."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from splats import FLOORS, assert_within, asset, turned

from psd_gs.cameras import orbit
from psd_gs.errors import FormatError, InputError
from psd_gs.export.fitting import moved
from psd_gs.export.formats import load, save
from psd_gs.export.frames import sh_basis
from psd_gs.export.gltf import EXTENSION, write_gltf
from psd_gs.gaussians import Gaussians, sh0_to_rgb
from psd_gs.render import render

DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}


def pack(document: dict, blob: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    blob += bytes(-len(blob) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def unpack(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def foreign(path, g: Gaussians, nodes: list[dict], edit=lambda document: None) -> None:
    """As another writer might: interleaved float columns, normalized integers, two primitives, several nodes."""
    n = len(g)
    quats = torch.nn.functional.normalize(g.quats, dim=1)[:, [1, 2, 3, 0]]
    floats = torch.cat([g.means, g.scales.exp(), g.sh.reshape(n, -1)], 1).numpy().astype("<f4")
    rotation = np.rint(quats.numpy() * 32767).astype("<i2")
    opacity = np.rint(g.opacities.sigmoid().numpy() * 65535).astype("<u2")
    opacity = np.stack([opacity, opacity * 0], 1)  # a stride of 4
    views, accessors, blob = [], [], b""
    for array, stride in ((floats, floats.shape[1] * 4), (rotation, 8), (opacity, 4)):
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes, "byteStride": stride})
        blob += array.tobytes()
    names = ["POSITION", f"{EXTENSION}:SCALE"]
    names += [f"{EXTENSION}:SH_DEGREE_{band}_COEF_{i}" for band in range(g.sh_degree + 1) for i in range(2 * band + 1)]
    for i in range(len(names)):
        accessors.append({"bufferView": 0, "byteOffset": 12 * i, "componentType": 5126, "count": n, "type": "VEC3"})
    accessors.append({"bufferView": 1, "componentType": 5122, "normalized": True, "count": n, "type": "VEC4"})
    accessors.append({"bufferView": 2, "componentType": 5123, "normalized": True, "count": n, "type": "SCALAR"})
    names += [f"{EXTENSION}:ROTATION", f"{EXTENSION}:OPACITY"]
    splats = {"mode": 0, "attributes": dict(zip(names, range(99), strict=False)), "extensions": {EXTENSION: {}}}
    mesh = {"mode": 0, "attributes": {"POSITION": 0}}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": [{"primitives": [mesh, splats]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    edit(document)
    path.write_bytes(pack(document, blob))


# --- what we write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rules_of_the_extension(tmp_path, degree):
    """Every requirement of the specification that can be checked from the file alone."""
    g, path = asset(50, degree), tmp_path / "a.glb"
    write_gltf(g.splats(), path, metadata={"prompt": "a büchse", "score": float("inf")})
    document, blob = unpack(path)
    assert struct.unpack_from("<4sII", path.read_bytes()) == (b"glTF", 2, path.stat().st_size)
    assert document["extensionsUsed"] == [EXTENSION]
    assert "extensionsRequired" not in document
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert primitive["extensions"] == {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}}
    wanted = {"POSITION": "VEC3", "COLOR_0": "VEC4"}
    wanted |= {f"{EXTENSION}:{name}": kind for name, kind in (("ROTATION", "VEC4"), ("SCALE", "VEC3"))}
    wanted |= {f"{EXTENSION}:OPACITY": "SCALAR"}
    wanted |= {f"{EXTENSION}:SH_DEGREE_{b}_COEF_{i}": "VEC3" for b in range(degree + 1) for i in range(2 * b + 1)}
    columns = {}
    assert len(blob) == document["buffers"][0]["byteLength"]
    for name, i in primitive["attributes"].items():
        accessor = document["accessors"][i]
        view = document["bufferViews"][accessor["bufferView"]]
        assert accessor["type"] == wanted.pop(name)
        assert accessor["count"] == 50
        assert view["byteOffset"] % 4 == 0
        assert view["target"] == 34962
        dtype = DTYPES[accessor["componentType"]]
        columns[name] = np.frombuffer(blob, dtype, view["byteLength"] // np.dtype(dtype).itemsize, view["byteOffset"])
        columns[name] = columns[name].reshape(50, -1)
    assert not wanted
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == columns["POSITION"].min(0).tolist()
    assert position["max"] == columns["POSITION"].max(0).tolist()
    np.testing.assert_allclose(np.linalg.norm(columns[f"{EXTENSION}:ROTATION"], axis=1), 1, atol=1e-6)
    assert (columns[f"{EXTENSION}:SCALE"] > 0).all()
    assert ((columns[f"{EXTENSION}:OPACITY"] >= 0) & (columns[f"{EXTENSION}:OPACITY"] <= 1)).all()
    assert document["asset"]["extras"]["psd_gs"] == {"prompt": "a büchse", "score": None}
    assert document["nodes"][0]["extras"] == document["asset"]["extras"]


def test_pygltflib_reads_it(tmp_path):
    g = asset(80, 3)
    save(g, tmp_path / "a.glb")
    file = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    blob = file.binary_blob()

    def column(name: str) -> torch.Tensor:
        accessor = file.accessors[getattr(file.meshes[0].primitives[0].attributes, name)]
        view = file.bufferViews[accessor.bufferView]
        data = blob[view.byteOffset : view.byteOffset + view.byteLength]
        return torch.from_numpy(np.frombuffer(data, DTYPES[accessor.componentType]).reshape(80, -1).copy())

    sh = [column(f"{EXTENSION}:SH_DEGREE_{band}_COEF_{i}") for band in range(4) for i in range(2 * band + 1)]
    read = Gaussians(
        means=column("POSITION"),
        quats=column(f"{EXTENSION}:ROTATION")[:, [3, 0, 1, 2]],
        scales=column(f"{EXTENSION}:SCALE").log(),
        opacities=column(f"{EXTENSION}:OPACITY")[:, 0].logit(),
        sh0=sh[0][:, None],
        shN=torch.stack(sh[1:], 1),
    )
    assert_within(g, read, FLOORS[".glb"])


def test_trimesh_sees_a_coloured_point_cloud(tmp_path):
    g = asset(60, 0)
    save(g, tmp_path / "a.glb")
    (cloud,) = trimesh.load_scene(tmp_path / "a.glb").geometry.values()
    np.testing.assert_array_equal(cloud.vertices, g.means)
    data, blob = unpack(tmp_path / "a.glb")
    view = data["bufferViews"][1]
    linear = np.frombuffer(blob, "<u2", 240, view["byteOffset"]).reshape(60, 4) / 65535
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb[:, :3], sh0_to_rgb(g.sh0[:, 0]), atol=2e-4)
    np.testing.assert_allclose(linear[:, 3], g.opacities.sigmoid(), atol=1e-5)


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("psd_gs.export.gltf._attributes", lambda g: {"POSITION": np.zeros((1, 3 << 26), "<f4")})
    with pytest.raises(InputError, match=r"at most 4 GiB.*--max-splats"):
        save(asset(6, 0), tmp_path / "a.glb")


# --- what others write ------------------------------------------------------------------------------------------------

S = math.sqrt(0.5)
NODES = {
    "plain": [{"mesh": 0}],
    "turned": [{"mesh": 0, "rotation": [S, 0, 0, S], "translation": [1, 2, 3], "scale": [2, 2, 2]}],
    "nested": [{"children": [1], "translation": [0, 1, 0]}, {"mesh": 0, "rotation": [0.5, 0.5, 0.5, 0.5]}],
    "matrix": [{"mesh": 0, "matrix": [0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0.5, 0, 0, 1]}],
}


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("degree", [0, 2, 3])
def test_foreign_files(tmp_path, nodes, degree):
    g = asset(60, degree)
    foreign(tmp_path / "a.glb", g, NODES[nodes])
    matrices = {
        "plain": torch.eye(4),
        "turned": torch.tensor([[2.0, 0, 0, 1], [0, 0, -2, 2], [0, 2, 0, 3], [0, 0, 0, 1]]),
        "nested": torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]),
        "matrix": torch.tensor([[0.0, 0, 1, 0.5], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]),
    }
    expected = moved(g, matrices[nodes].double())
    floor = replace(FLOORS[".glb"], position=2e-6, rotation=0.1, opacity=2e-5, sh=1e-5)
    assert_within(expected, load(tmp_path / "a.glb"), floor)


def test_two_primitives_of_different_degree(tmp_path):
    g = asset(20, 2)
    low = {f"{EXTENSION}:SH_DEGREE_{b}_COEF_{i}" for b in (1, 2) for i in range(2 * b + 1)}

    def edit(document):
        splats = document["meshes"][0]["primitives"][1]
        kept = {name: i for name, i in splats["attributes"].items() if name not in low}
        document["meshes"][0]["primitives"].append({**splats, "attributes": kept})

    foreign(tmp_path / "a.glb", g, [{"mesh": 0}], edit)
    both = load(tmp_path / "a.glb")
    assert (len(both), both.sh_degree) == (40, 2)
    torch.testing.assert_close(both.shN[:20], g.shN)
    assert not both.shN[20:].any()


def edits():
    yield "no splats", lambda d: d["meshes"][0]["primitives"].pop(), f"has no {EXTENSION}"
    yield "sheared", lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "shears its splats"
    yield "loop", lambda d: d["nodes"][0].update(children=[0]), "two parents"
    yield "count", lambda d: d["accessors"][0].update(count=10**15), "go beyond a view of"
    yield "negative", lambda d: d["accessors"][0].update(count=-1), "count is -1"
    yield "zero", lambda d: d["accessors"][0].update(count=0), "different or wrong shapes"
    yield "offset", lambda d: d["bufferViews"][1].update(byteOffset=10**9), "go beyond a buffer of"
    yield "shorter", lambda d: d["accessors"][0].update(count=5), "different or wrong shapes"
    yield "sparse", lambda d: d["accessors"][0].update(sparse={}), "count is None"
    yield "uri", lambda d: d["buffers"][0].update(uri="a.bin"), "there is no 'a.bin' beside it"
    yield "type", lambda d: d["accessors"][0].update(type="MAT4"), "no sound glTF"
    yield "nan", lambda d: d["nodes"][0].update(translation=[math.nan, 0, 0]), "translation"
    linear = {EXTENSION: {"colorSpace": "lin_rec2020_display"}}
    yield "linear", lambda d: d["meshes"][0]["primitives"][1].update(extensions=linear), "colour space"
    yield "outside", lambda d: d["buffers"][0].update(uri="../a.bin"), "files in its own folder"


@pytest.mark.parametrize(("edit", "message"), [pytest.param(e, m, id=name) for name, e, m in edits()])
def test_unsound_files(tmp_path, edit, message):
    foreign(tmp_path / "a.glb", asset(12, 1), [{"mesh": 0}], edit)
    with pytest.raises(FormatError, match=message) as caught:
        load(tmp_path / "a.glb")
    assert "\n" not in str(caught.value)


def test_many_instances_are_refused(tmp_path):
    nodes = [{"mesh": 0, "children": list(range(1, 3000))}] + [{"mesh": 0}] * 2999
    foreign(tmp_path / "a.glb", asset(2000, 3), nodes)
    with pytest.raises(FormatError, match=r"received \d+ Gaussians in"):
        load(tmp_path / "a.glb")


# --- turning ----------------------------------------------------------------------------------------------------------


def test_basis_is_orthonormal_and_agrees_with_the_parity_table():
    directions = torch.nn.functional.normalize(
        torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    basis = torch.from_numpy(sh_basis(directions.double().numpy()))
    gram = basis.T @ basis / len(basis) * 4 * math.pi
    torch.testing.assert_close(gram, torch.eye(16).double(), rtol=0, atol=0.06)
    g = asset(10, 3)
    x180 = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    torch.testing.assert_close(moved(g, x180).shN, turned(g).shN, rtol=0, atol=1e-5)


def test_a_turned_asset_seen_by_a_turned_camera():
    g = asset(60, 3)
    g.means *= 0.5
    angle = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.linalg.matrix_exp(torch.linalg.cross(angle.expand(3, 3), torch.eye(3).double(), dim=1))
    numbers = (torch.tensor([value]) for value in (30.0, 20.0, 4.0, 40.0))
    camera = orbit(*numbers, 48, 48)
    turned_camera = replace(camera, viewmats=camera.viewmats @ turn.T.float())
    expected = render(g, camera).rgb
    assert expected.std() > 0.05
    torch.testing.assert_close(render(moved(g, turn), turned_camera).rgb, expected, rtol=0, atol=2e-4)
