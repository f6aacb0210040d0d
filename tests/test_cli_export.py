"""``psd-gs export`` and ``psd-gs info``, and what export can take out of an asset."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from splats import asset, axes

import psd_gs
from psd_gs import cli
from psd_gs.errors import ConfigError
from psd_gs.export.edit import Edit, apply, area, floating, groups
from psd_gs.export.formats import load, save
from psd_gs.export.ply import write_ply
from psd_gs.gaussians import Gaussians, from_points


@pytest.fixture
def command(capsys):
    """Runs the command line in this process: exit code, output, errors."""

    def run(*arguments) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def together(*parts: Gaussians) -> Gaussians:
    tensors = zip(*(part.params().values() for part in parts), strict=True)
    return Gaussians(*(torch.cat(list(tensor)) for tensor in tensors))


def sphere(n: int, radius: float, centre=(0.0, 0.0, 0.0), scale: float = 0.03, opacity: float = 0.8) -> Gaussians:
    """Splats on a sphere, evenly spread."""
    i = torch.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, i * (math.pi * (1 + 5**0.5))
    ring = (1 - z * z).sqrt()
    points = torch.stack([ring * angle.cos(), ring * angle.sin(), z], 1) * radius + torch.tensor(centre)
    return from_points(points, torch.full((n, 3), 0.6), scale=scale, opacity=opacity)


# --- what is taken out ------------------------------------------------------------------------------------------------


def test_floaters_are_found_and_parts_are_kept():
    body = sphere(800, 0.5)
    needle = from_points(torch.tensor([[0.0, 0.9, 0.0]]), torch.ones(1, 3), scale=0.01, opacity=0.9)
    needle.scales[0, 1] = math.log(0.2)  # reaches down into the body
    stray = sphere(3, 0.02, (1.5, 0.0, 0.0))
    far = from_points(torch.tensor([[1e7, 0.0, 0.0], [0.0, -3e30, 0.0]]), torch.ones(2, 3), scale=0.02, opacity=0.9)
    scene = together(body, needle, stray, far)
    labels = groups(scene.splats())
    assert len(set(labels[:801])) == 1
    assert len(set(labels)) == 4
    mask = floating(scene.splats(), 0.01)
    assert mask.tolist() == [False] * 801 + [True] * 5
    assert not floating(scene.splats(), 0.0).any()
    twin = together(body, sphere(800, 0.5, (3.0, 0.0, 0.0)))
    assert not floating(twin.splats(), 0.3).any()
    assert not floating(stray.splats(), 1.0).any(), "the largest group always stays"


def test_prune_takes_what_is_broken_faint_or_floating():
    body = sphere(400, 0.5)
    faint = sphere(10, 0.4, opacity=0.01)
    broken = sphere(3, 0.4)
    broken.means[0, 0], broken.sh0[1, 0, 0], broken.quats[2] = float("nan"), float("inf"), 0.0
    scene = together(faint, body, broken, sphere(1, 0.0, (2.0, 0.0, 0.0)))
    assert (apply(Edit(prune=True), scene.splats()).means == body.splats().means).all()
    assert len(apply(Edit(prune=True, min_opacity=0.0, floaters=0.0), scene.splats())) == 411
    whole = body.splats()
    assert apply(Edit(), whole) is whole


def test_the_largest_stay_in_order():
    g = asset(200).splats()
    kept = apply(Edit(max_splats=50), g)
    where = [int(np.abs(g.means - mean).sum(1).argmin()) for mean in kept.means]
    assert where == sorted(where)
    assert set(where) == set(np.argsort(area(g))[-50:])
    sizes = np.sort(np.exp(g.scales), axis=1)
    np.testing.assert_allclose(area(g), sizes[:, 1] * sizes[:, 2] / (1 + np.exp(-g.opacities)), rtol=1e-5)
    assert apply(Edit(max_splats=500), g) is g


def test_lower_degree():
    g = asset(20, degree=3).splats()
    for degree in range(4):
        assert (apply(Edit(sh_degree=degree), g).shN == g.shN[:, : (degree + 1) ** 2 - 1]).all()
    assert apply(Edit(sh_degree=3), asset(5, degree=1).splats()).sh_degree == 1


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"sh_degree": 4}, "--sh-degree"), ({"max_splats": 0}, "--max-splats"), ({"min_opacity": 2.0}, "--min-opacity")],
)
def test_options_out_of_range(options, flag):
    with pytest.raises(ConfigError, match=flag):
        Edit(**options)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_neither_conversion_nor_info_loads_torch(tmp_path):
    """Whose import takes longer than the conversion of half a million splats."""
    save(asset(300, degree=2), tmp_path / "in.ply")
    made = [f"a{extension}" for extension in (".ply", ".compressed.ply", ".splat", ".spz", ".sog", ".glb")]
    code = (
        "import sys\n"
        "from psd_gs.cli import main\n"
        f"main(['export', 'in.ply', *{made}, '--prune', '--max-splats', '200', '--sh-degree', '1'])\n"
        f"for name in {made}: main(['export', name, 'b.ply']); main(['info', name])\n"
        "assert not {'torch', 'numba', 'jaxtyping'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(psd_gs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_export_and_info(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g = asset(300, degree=2)
    write_ply(g.splats(), "in.ply", metadata={"prompt": "a cat", "seed": 5, "scores": {"mini": 0.25}})
    code, out, err = command("export", "in.ply", "a.spz", "a.splat", "--sh-degree", "1", "--max-splats", "200")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "200 of 300 Gaussians, SH degree 1"
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["a.spz", "a.splat"]
    assert (len(load("a.spz")), load("a.spz").sh_degree, load("a.splat").sh_degree) == (200, 1, 0)
    assert {p.name for p in tmp_path.iterdir()} == {"in.ply", "a.spz", "a.spz.json", "a.splat", "a.splat.json"}

    code, out, err = command("info", "a.spz")
    assert (code, err) == (0, "")
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["format"] == "SPZ"
    assert lines["Gaussians"] == "200"
    assert lines["prompt"] == '"a cat"'
    assert "SH degree  1" in out
    assert "bounds     x -1." in out
    facts = json.loads(command("info", "a.spz", "--json")[1])
    assert (facts["n_splats"], facts["metadata"]["seed"], facts["frame"]) == (200, 5, "rdf")
    assert np.allclose(facts["bounds"], [[-1.5] * 3, [1.5] * 3], atol=0.1)

    assert command("export", "in.ply", "b.ply", "b.spz", "--no-metadata", "--spz-version", "4")[0] == 0
    assert {p.name for p in tmp_path.glob("b.*")} == {"b.ply", "b.spz"}
    assert b"psd-gs" not in (tmp_path / "b.ply").read_bytes()
    assert (tmp_path / "b.spz").read_bytes()[:4] == b"NGSP"


def test_frames(tmp_path, command):
    a, b, c, d = (tmp_path / f"{name}.ply" for name in "abcd")
    save(axes(), a)
    command("export", a, b, "--frame", "gltf")
    assert torch.equal(load(b, frame="gltf").means, axes().means)
    command("export", b, c)  # the metadata of b say how it lies
    assert torch.equal(load(c).means, axes().means)
    facts = json.loads(command("info", b, "--json")[1])
    assert facts["frame"] == "gltf"
    assert facts["bounds"][1] == [1.0, 1.0, 1.0]
    command("export", a, b, "--frame", "gltf", "--no-metadata")
    command("export", b, d, "--input-frame", "gltf")
    assert torch.equal(load(d).means, axes().means)


def test_prune_rescues_a_file_with_broken_rows(tmp_path, command):
    save(sphere(400, 0.5), tmp_path / "a.ply")
    data = bytearray((tmp_path / "a.ply").read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    (tmp_path / "a.ply").write_bytes(data)
    code, out, err = command("export", tmp_path / "a.ply", tmp_path / "b.spz")
    assert (code, out) == (1, "")
    assert "1 hold NaN" in err
    assert "--prune" in err
    code, out, err = command("export", tmp_path / "a.ply", tmp_path / "b.spz", "--prune")
    assert code == 0
    assert "left out 1 of 400" in err
    assert len(load(tmp_path / "b.spz")) == 399


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("export", "a.ply"), ["expected a file to write"]),
        (("export", "a.ply", "a.ply"), ["expected another file", "a.ply twice"]),
        (("export", "a.ply", "b.spz", "b.xyz"), ["b.xyz", "expected a splat file, one of .compressed.ply, .ply"]),
        (("export", "nothing.ply", "b.spz"), ["cannot read nothing.ply"]),
        (("export", "text.ply", "b.spz"), ["text.ply is not a PLY file"]),
        (("export", "a.ply", "no/b.spz"), ["cannot write", "b.spz: No such file"]),
        (("export", "a.ply", "b.spz", "--sh-degree", "5"), ["--sh-degree", "0 to 3"]),
        (
            ("export", "a.ply", "b.spz", "--prune", "--min-opacity", "1"),
            ["that outlast pruning, received none"],
        ),
        (("info", "nothing.ply"), ["cannot read nothing.ply"]),
        (("info", "wrong.splat"), ["wrong.splat begins like a 3DGS PLY file", ".ply"]),
        (("info", "a.png"), ["a.png: expected a splat file"]),
    ],
)
def test_bad_input_is_one_line_and_no_file(tmp_path, command, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    save(asset(50), "a.ply")
    (tmp_path / "text.ply").write_text("hello")
    (tmp_path / "wrong.splat").write_bytes((tmp_path / "a.ply").read_bytes())
    before = {p.name for p in tmp_path.iterdir()}
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert {p.name for p in tmp_path.iterdir()} == before


# --- many files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(monkeypatch, tmp_path):
    """A folder with three assets."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/splat.ply", "b/splat.ply", "b/c/other.compressed.ply"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save(asset(50, 1), name, metadata={"prompt": name})


def files(pattern: str) -> set[str]:
    return {path.as_posix() for path in Path().glob(pattern)}


def test_a_folder(three, command):
    code, out, err = command("export", ".", "--to", ".spz", ".glb", "--sh-degree", "0")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3
    stems = {"a/splat", "b/splat", "b/c/other"}
    assert files("**/*.spz") == {f"{stem}.spz" for stem in stems}
    assert files("**/*.glb") == {f"{stem}.glb" for stem in stems}
    assert load("b/c/other.glb").sh_degree == 0
    assert json.loads(Path("a/splat.glb.json").read_text())["prompt"] == "a/splat.ply"


def test_a_glob_into_another_folder(three, command):
    options = ("--to", ".sog", "--output-dir", "web", "--no-metadata", "--max-splats", "20")
    assert command("export", "*/splat.ply", *options)[0] == 0
    assert {p for p in files("web/**/*") if Path(p).is_file()} == {"web/a/splat.sog", "web/b/splat.sog"}
    assert len(load("web/a/splat.sog")) == 20


def test_the_others_are_converted_after_a_broken_file(three, command):
    Path("a/splat.ply").write_bytes(b"ply\n")
    code, out, err = command("export", "a", "b/splat.ply", "--to", ".spz")
    assert (code, len(out.splitlines()), err.count("\n")) == (1, 1, 1)
    assert "splat.ply: the PLY header does not end" in err
    assert files("**/*.spz") == {"b/splat.spz"}


def test_no_files(three, command):
    code, out, err = command("export", "nothing/*", "--to", ".spz")
    assert (code, out) == (1, "")
    assert "no file found for nothing/*" in err
    assert command("export", "a", "--to", ".spz", "--sh-degree", "9")[0] == 1
    assert command("export", "a", "--to", ".xyz")[0] == 1
