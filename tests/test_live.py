"""The live view: a client sees the asset change, the training does not notice, and the buttons work."""

from __future__ import annotations

import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import assert_same, make_trainer, red_ball, tiny_config

from psd_gs import live
from psd_gs.errors import BackendError, ConfigError
from psd_gs.gaussians import random_ball
from psd_gs.live import LiveView, most_visible, splat_values

pytest.importorskip("viser")


@pytest.fixture
def view(monkeypatch):
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    view = LiveView(18080)
    yield view
    view.close()


@pytest.fixture
def client(view, monkeypatch):
    """Somebody who looks: a WebSocket that takes what comes; holds the number of bytes."""
    import viser
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    url = view.address.replace("http", "ws")
    with connect(url, subprotocols=[f"viser-v{viser.__version__}"], max_size=None) as socket:
        received = [0]

        def listen() -> None:
            try:
                for message in socket:
                    received[0] += len(message)
            except ConnectionClosed:
                pass

        threading.Thread(target=listen, daemon=True).start()
        # viser counts a client from the first camera that it tells, which only a browser does
        monkeypatch.setattr(view.server, "get_clients", lambda: {0: socket})
        yield received


def shown(view) -> np.ndarray:
    return view._splats.buffer.copy()


def settle(view) -> None:
    """Wait until the last copy was sent."""
    assert view._idle.wait(20)


@pytest.mark.usefixtures("one_thread")
def test_a_client_sees_the_asset_change_and_the_training_does_not_notice(view, client):
    trainer, alone = make_trainer(tiny_config(steps=12)), make_trainer(tiny_config(steps=12))
    pictures, steps = [], []
    for event in view.follow(trainer, threading.Event()):
        settle(view)
        pictures.append(shown(view))
        steps.append(event.step)
    for _ in alone.run():
        pass
    assert steps == list(range(1, 13))
    assert_same(trainer.state_dict(), alone.state_dict())
    assert view.updates == 12
    assert all(a.shape != b.shape or (a != b).any() for a, b in pairwise(pictures))
    centres = pictures[-1][:, :3].copy().view(np.float32)
    np.testing.assert_allclose(centres, trainer.gaussians.means.detach().numpy())
    assert set(view._charts) == set(live.CURVES)
    steps_drawn, win, lose = view._charts["reward"].data
    assert (win >= lose).all()
    assert steps_drawn[-1] == 12
    assert client[0] > 1000
    assert "red ball" in view._title.content
    assert "step 12 of 12" in view._text.content


def test_nothing_is_sent_when_nobody_looks_or_too_soon(view, client, monkeypatch):
    ball = red_ball()
    with monkeypatch.context() as patch:
        patch.setattr(view.server, "get_clients", dict)
        view.update(ball, "")
        assert view.updates == 0
    monkeypatch.setattr(live, "INTERVAL", 60.0)
    view.update(ball, "first")
    settle(view)
    assert view.updates == 1
    assert view._due > time.monotonic() + 30
    view.update(ball, "too soon")
    assert view._idle.is_set()
    assert view.updates == 1


@pytest.mark.usefixtures("one_thread")
def test_pause_and_stop_and_keep(view):
    trainer = make_trainer(tiny_config(steps=30))
    events = view.follow(trainer, threading.Event())
    next(events)
    view.paused.set()
    timer = threading.Timer(0.5, view.paused.clear)
    timer.start()
    start = time.monotonic()
    assert next(events).step == 2
    assert time.monotonic() - start >= 0.4
    view.paused.set()
    threading.Timer(0.3, view.stopped.set).start()
    assert list(events) == []
    assert trainer.step == 2


@pytest.mark.usefixtures("one_thread")
def test_an_interrupt_ends_a_pause(view):
    interrupted = threading.Event()
    events = view.follow(make_trainer(tiny_config(steps=30)), interrupted)
    next(events)
    view.paused.set()
    threading.Timer(0.2, interrupted.set).start()
    assert list(events) == []


def test_it_listens_on_this_machine_only_and_finds_a_free_port(view):
    assert view.address == "http://127.0.0.1:18080"
    assert view.server.get_host() == "127.0.0.1"
    other = LiveView(18080)
    assert other.address != view.address
    other.close()


def test_it_prints_nothing(capfd):
    LiveView(18090).close()
    assert capfd.readouterr() == ("", "")


def test_without_viser_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(BackendError, match=r'pip install "psd-gs\[live\]", or leave --live out'):
        LiveView()


def test_ports_that_are_none():
    with pytest.raises(ConfigError, match="expected 1 to 65535, received 0"):
        LiveView(0)


def test_what_is_sent():
    ball = random_ball(20, 0.4, scale=0.1, opacity=0.7, generator=torch.Generator().manual_seed(0))
    ball.scales[:, 0] += 1.0
    ball.quats[:] = torch.tensor([2.0**0.5, 0, 0, 2.0**0.5])  # a quarter turn about z: x becomes y
    centres, covariances, colours, opacities = splat_values(ball)
    np.testing.assert_allclose(centres, ball.means)
    np.testing.assert_allclose(opacities, 0.7, atol=1e-6)
    wide = (0.1 * np.e) ** 2
    np.testing.assert_allclose(covariances, np.tile(np.diag([0.01, wide, 0.01]), (20, 1, 1)), atol=1e-6)
    assert colours.shape == (20, 3)


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
