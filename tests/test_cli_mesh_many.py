"""``psd-gs mesh --to``: every splat below a folder, one error line per failure."""

import pytest
import torch
import trimesh

from psd_gs.cli import main
from psd_gs.export.formats import save
from psd_gs.gaussians import from_points


def test_folders_become_meshes(tmp_path, capsys):
    direction = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    shell = from_points(direction * 0.4, torch.full((2000, 3), 0.7), scale=0.03, opacity=0.95)
    faint = from_points(direction * 0.4, torch.full((2000, 3), 0.7), scale=0.03, opacity=0.01)
    for name, asset in (("a", shell), ("b", faint)):
        (tmp_path / name).mkdir()
        save(asset, tmp_path / name / "splat.ply")
    quick = ["--to", ".ply", "--resolution", "32", "--faces", "500", "--height", "2"]
    with pytest.raises(SystemExit) as stopped:
        main(["mesh", str(tmp_path), *quick, "--output-dir", str(tmp_path / "out")])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.count("error: ") == 1
    assert "opaque surface" in printed.err
    mesh = trimesh.load(tmp_path / "out" / "a" / "mesh.ply")
    assert mesh.is_watertight
    assert mesh.extents[1] == pytest.approx(2, rel=1e-3)
    assert mesh.bounds[0, 1] == pytest.approx(0, abs=1e-4)
    assert not (tmp_path / "out" / "b" / "mesh.ply").exists()
    made = (tmp_path / "out" / "a" / "mesh.ply").stat().st_mtime_ns
    glob = str(tmp_path / "[a]" / "splat.ply")
    main(["mesh", glob, *quick, "--output-dir", str(tmp_path / "out" / "a")])
    assert (tmp_path / "out" / "a" / "mesh.ply").stat().st_mtime_ns == made
    main(["mesh", glob, *quick, "--output-dir", str(tmp_path / "out" / "a"), "--overwrite"])
    assert (tmp_path / "out" / "a" / "mesh.ply").stat().st_mtime_ns > made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--to", ".glb"], "no file found for nothing"),
        (["a.ply"], "expected one mesh file to write, received 0"),
        (["a.ply", "b.ply", "c.glb"], "expected one mesh file to write, received 2"),
        (["a.ply", "--to", ".glb", "--preview", "a.png"], "--preview: expected one mesh"),
    ],
)
def test_what_is_asked_for_must_be_clear(arguments, message, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["mesh", *arguments])
    assert message in capsys.readouterr().err
