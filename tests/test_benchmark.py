"""``psd-gs bench``: a table that says what was timed, and why something was not."""

from __future__ import annotations

import pytest
import torch

from psd_gs import benchmark, cli
from psd_gs.benchmark import Timing, render_times, table


@pytest.mark.full
def test_the_embedded_prior_is_timed(capsys):
    cli.main(["bench", "--device", "cpu", "--gaussians", "200", "--size", "16", "--repeats", "1"])
    text = capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| render, cpu", "| mini: step", "| mini: step with a pair"]
    assert [row[1] for row in rows] == ["4 x 16", "4 x 32", "4 x 32"]
    assert all(row[2] == "200" and float(row[3]) > 0 for row in rows)
    assert "guidance" in rows[2][4]
    assert f"torch {torch.__version__}" in text
    assert "- device cpu, renderer cpu: the networks are on the CPU" in text


def test_weights_that_are_not_here_are_not_fetched(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "render_times", lambda *_: iter([]))
    monkeypatch.setattr("psd_gs.weights.is_here", lambda entry: False)
    cli.main(["bench", "--device", "cpu", "--prior", "mvdream"])
    assert "| mvdream: step |  | 20,000 | - | its weights are not here: `psd-gs models pull mvdream`" in (
        capsys.readouterr().out
    )


def test_a_renderer_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(benchmark, "trouble_with_gsplat", lambda device: "not built")
    monkeypatch.setattr(benchmark, "trouble_with_triton", lambda device: "no | compiler")
    found = list(render_times(torch.device("cuda"), (50,), 16, 1))
    assert [(t.what, t.milliseconds is None, t.note) for t in found] == [
        ("render, gsplat", True, "not built"),
        ("render, triton", True, "no | compiler"),
        ("render, cpu", False, "forward and backward"),
    ]
    assert "no / compiler |" in table(found)
    assert table([Timing("a", "b", 1000, 2.345)]).splitlines()[-1] == "| a | b | 1,000 | 2.3 |  |"
