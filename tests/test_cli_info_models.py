"""What ``psd-gs info`` says of the models, also of files that others wrote."""

from __future__ import annotations

import pytest
from painted import red_ball

from psd_gs import cli
from psd_gs.export.formats import save


@pytest.mark.parametrize("name", ["ball.ply", "ball.spz", "ball.glb", "ball.sog"])
def test_the_licence_chain_travels_with_every_format(tmp_path, capsys, name):
    model = {"name": "sd21", "repository": "a/b", "revision": "4e63672c0310", "licence": "CreativeML OpenRAIL++-M"}
    save(red_ball(), tmp_path / name, metadata={"prompt": "a ball", "models": {"prior": [model], "reward": "odd"}})
    cli.main(["info", str(tmp_path / name)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith(" sd21 · a/b · 4e63672c0310 · CreativeML OpenRAIL++-M") for line in lines)
    assert any(line.startswith("reward model") and line.endswith("odd") for line in lines)
