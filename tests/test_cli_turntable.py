"""``psd-gs turntable``: films by extension, and one clear line where none can be."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from psd_gs import cli
from psd_gs.export.ply import write_ply
from psd_gs.gaussians import random_ball


@pytest.fixture
def ball(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asset = random_ball(50, 0.4, scale=0.1, opacity=0.9, generator=torch.Generator().manual_seed(0))
    write_ply(asset.splats(), "ball.ply", metadata={"prompt": "a ball"})
    return "ball.ply"


def test_films(ball, tmp_path, capsys):
    for name, more in (("a.mp4", []), ("a.webp", ["--kind", "normal"]), ("a.gif", ["--background", "#204060"])):
        cli.main(["turntable", ball, name, "--frames", "2", "--size", "32", *more])
        assert capsys.readouterr().out.startswith(f"{name}  ")
    assert Image.open("a.webp").mode == "RGBA"
    assert Image.open("a.webp").getexif()[0x010E] == '{"prompt":"a ball"}'
    assert Image.open("a.gif").convert("RGB").getpixel((0, 0)) == (32, 64, 96)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ball.ply", "a.avi"], "expected a film ending in .mp4, .webp, .gif, received .avi"),
        (["ball.ply", "a.mp4", "--background", "transparent"], "mp4 has no transparency"),
        (["ball.ply", "a.gif", "--background", "reddish"], "expected a colour such as white"),
        (["ball.ply", "a.gif", "--frames", "0"], "received 0 of 512 at 24"),
        (["missing.ply", "a.gif"], "missing.ply"),
        (["empty.ply", "a.gif"], "empty.ply is"),
        (["ball.ply", "missing/a.gif", "--frames", "1", "--size", "16"], "cannot write"),
    ],
)
def test_one_clear_line(ball, tmp_path, capsys, arguments, said):
    (tmp_path / "empty.ply").write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.main(["turntable", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.ply", "empty.ply"]
