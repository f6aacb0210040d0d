"""``psd-gs sheet``: assets of several kinds on one picture, and one clear line where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from painted import red_ball
from PIL import Image
from test_mesh_glb import tall_box

from psd_gs import cli
from psd_gs.export.formats import save
from psd_gs.mesh.glb import write_glb


@pytest.fixture
def assets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save(red_ball(), "run/splat.ply", metadata={"prompt": "a red ball"})
    save(red_ball(), "plain.spz")
    write_glb(tall_box(), "box.glb", metadata={"prompt": "a box"})
    return ["run", "plain.spz", "box.glb"]


def test_sheet(assets, capsys):
    cli.main(["sheet", *assets, "-o", "a.png", "--columns", "3", "--size", "48"])
    assert capsys.readouterr().out.startswith("a.png  ")
    with Image.open("a.png") as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(int)
    assert sheet.shape[1] == 3 * (48 + 8) + 8
    cells = [sheet[8:56, 8 + 56 * i : 56 + 56 * i] for i in range(3)]
    for cell in cells[:2]:
        assert (cell[24, 24] - [255, 255, 255]).min() < -150
        assert cell[24, 24, 0] > cell[24, 24, 1] + 100, "a red ball in its middle"
    assert all((cell[0, 0] > 250).all() and (cell < 200).any() for cell in cells)
    assert (sheet[58:] < 128).any(), "captions"
    named = ["--captions", "one", "two", "three"]
    cli.main(["sheet", *assets, "--columns", "3", "--size", "48", *named])
    with Image.open("sheet.png") as other:
        other_sheet = np.asarray(other.convert("RGB")).astype(int)
    assert (other_sheet[:56] == sheet[:56]).all()
    assert (other_sheet[58:] != sheet[58:]).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.ply"], "missing.ply"),
        (["run", "--output", "a.jpg"], "expected a .png, received a.jpg"),
        (["run", "--size", "4"], "received 4 and 0"),
        (["run", "--captions", "a", "b"], "--captions: expected 1, received 2"),
        (["run", "-o", "no/a.png"], "cannot write"),
    ],
)
def test_one_clear_line(assets, tmp_path, capsys, arguments, said):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        cli.main(["sheet", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
