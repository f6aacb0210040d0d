"""The live view: a client sees the asset change, the training does not notice, and the buttons work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from painted import assert_same, make_trainer, red_ball, tiny_config

from psd_gs import live
from psd_gs.errors import ConfigError
from psd_gs.export.formats import load
from psd_gs.gaussians import Gaussians, random_ball
from psd_gs.live import LiveView, most_visible, splat_bytes


@pytest.fixture
def view(monkeypatch) -> Iterator[LiveView]:
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    view = LiveView(18080)
    yield view
    view.close()


def ask(view: LiveView, path: str, method: str = "GET") -> bytes:
    """What the page does."""
    with urlopen(Request(view.address + path, method=method), timeout=20) as reply:
        return reply.read()


def state(view: LiveView) -> dict:
    return json.loads(ask(view, "state"))


def shown(view: LiveView, folder: Path) -> Gaussians:
    """The splats that the page has, in the world frame."""
    (folder / "a.splat").write_bytes(ask(view, "splats"))
    return load(folder / "a.splat", frame="gltf")


def settle(view: LiveView) -> None:
    """Wait until the last copy was made ready."""
    assert view._idle.wait(20)


def test_a_client_sees_the_asset_change_and_the_training_does_not_notice(view, tmp_path):
    trainer, alone = make_trainer(tiny_config(steps=12)), make_trainer(tiny_config(steps=12))
    pictures, versions = [], []
    before = state(view)
    assert (before["title"], before["version"], before["curves"]) == ("loading models", 0, "")
    for _ in view.follow(trainer, threading.Event()):
        settle(view)
        pictures.append(ask(view, "splats"))
        versions.append(state(view)["version"])
    for _ in alone.run():
        pass
    assert_same(trainer.state_dict(), alone.state_dict())
    assert versions == list(range(1, 13))
    assert all(a != b for a, b in pairwise(pictures))
    got = shown(view, tmp_path)
    expected = trainer.gaussians.detach()
    order, other = (g.means.numpy()[:, 0].argsort() for g in (expected, got))
    np.testing.assert_array_equal(got.means.numpy()[other], expected.means.numpy()[order])
    last = state(view)
    assert last["title"] == "a red ball, seed 0"
    assert last["status"].startswith("step 12 of 12, ")
    assert all(f">{title}<" in last["curves"] for title in live.CURVES)
    assert last["curves"].count("<svg") == len(live.CURVES)


def test_nothing_is_made_when_nobody_looks_or_too_soon(view, monkeypatch):
    ball = red_ball()
    view.update(ball, "")
    assert view.updates == 0  # nobody has asked yet
    state(view)
    view._looked -= live.LOOKS
    view.update(ball, "")
    assert view.updates == 0  # nobody asks any more
    state(view)
    monkeypatch.setattr(live, "INTERVAL", 60.0)
    view.update(ball, "first")
    settle(view)
    assert view.updates == 1
    assert view._due > time.monotonic() + 30
    view.update(ball, "too soon")
    assert view._idle.is_set()
    assert view.updates == 1


def test_what_cannot_be_shown_leaves_the_last_version(view):
    ball = red_ball()
    state(view)
    for means in (ball.means, torch.full_like(ball.means, torch.nan)):
        ball.means = means
        view.update(ball, "")
        settle(view)
    assert view.updates == 2
    assert len(ask(view, "splats")) == 32 * len(ball)


def test_pause_and_stop_and_keep(view):
    trainer = make_trainer(tiny_config(steps=30))
    events = view.follow(trainer, threading.Event())
    next(events)
    assert json.loads(ask(view, "pause", "POST"))["paused"]
    assert state(view)["paused"]
    timer = threading.Timer(0.5, ask, (view, "go", "POST"))
    timer.start()
    start = time.monotonic()
    assert next(events).step == 2
    assert time.monotonic() - start >= 0.4
    ask(view, "pause", "POST")
    threading.Timer(0.3, ask, (view, "keep", "POST")).start()
    assert list(events) == []
    assert trainer.step == 2


def test_an_interrupt_ends_a_pause(view):
    interrupted = threading.Event()
    events = view.follow(make_trainer(tiny_config(steps=30)), interrupted)
    next(events)
    view.paused.set()
    threading.Timer(0.2, interrupted.set).start()
    assert list(events) == []


def test_it_listens_on_this_machine_only_and_finds_a_free_port(view):
    assert view.address.startswith("http://127.0.0.1:18080/")
    assert len(view.address.split("/")[3]) > 30
    other = LiveView(18080)
    assert other.server.port > 18080
    other.close()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/pause", {}),
        ("/keep", {}),
        ("/guess/keep", {}),
        ("{token}/keep", {"Origin": "http://evil.example"}),
        ("{token}/keep", {"Origin": "null"}),
        ("{token}/keep", {"Origin": "http://127.0.0.1:1"}),
        ("{token}/keep", {"Origin": "https://127.0.0.1:18080"}),
        ("{token}/keep", {"Host": "evil.example:18080"}),
        ("{token}/keep", {"Host": "127.0.0.1.evil.example"}),
        ("{token}/pause", {"Host": "evil.example", "Origin": "http://evil.example"}),
        ("{token}/state", {"Host": "evil.example"}),
    ],
)
def test_no_other_page_can_stop_a_run(view, path, headers):
    url = f"http://127.0.0.1:18080{path.format(token='/' + view.server.token)}"
    method = "GET" if path.endswith("state") else "POST"
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, method=method, headers=headers), timeout=20)
    assert refused.value.code == 403
    refused.value.close()
    assert not view.paused.is_set()
    assert not view.stopped.is_set()
    with pytest.raises(HTTPError) as refused:  # a link or a picture elsewhere cannot do it either
        ask(view, "keep")
    assert refused.value.code == 404
    refused.value.close()
    assert not view.stopped.is_set()


def test_it_prints_nothing(capfd):
    LiveView(18090).close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("port", [-1, 65536, 10**20])
def test_ports_that_are_none(port):
    with pytest.raises(ConfigError, match=f"--live-port: expected 0 .* to 65535, received {port}"):
        LiveView(port)


def test_what_is_sent(tmp_path):
    ball = random_ball(20, 0.4, scale=0.1, opacity=0.7, generator=torch.Generator().manual_seed(0))
    (tmp_path / "a.splat").write_bytes(splat_bytes(ball))
    got = load(tmp_path / "a.splat", frame="gltf")
    assert sorted(got.means.tolist()) == sorted(ball.means.tolist())
    np.testing.assert_allclose(got.scales.exp(), 0.1, rtol=1e-5)
    np.testing.assert_allclose(got.opacities.sigmoid(), 0.7, atol=0.5 / 255 + 1e-5)


def test_of_too_many_the_largest_are_sent(monkeypatch):
    monkeypatch.setattr(live, "MOST", 5)
    ball = random_ball(20, 0.4, scale=0.1, opacity=0.7)
    ball.scales[3:8] += 1.0
    kept = most_visible(ball)
    assert len(kept) == 5
    assert (kept.scales == ball.scales[3]).all()


@pytest.mark.full
def test_the_benchmark_of_its_cost_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    from bench.live import main

    main(["--prior", "mini", "--preset", "draft", "--steps", "4", "--block", "2"])
    out = capsys.readouterr().out
    assert "CPU seconds" in out
    assert "updates of the page" in out
