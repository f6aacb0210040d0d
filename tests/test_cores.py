"""What other programs take, and how processes divide the rest."""

import itertools
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from psd_gs import cores
from psd_gs.cli import terminal
from psd_gs.cores import Load


def test_own_work_is_no_load():
    before = Load(10.0, own=3.0, all=50.0)
    assert Load(14.0, own=7.0, all=60.0).others(before) == pytest.approx(1.5)
    assert Load(14.0, own=14.0, all=60.0).others(before) == 0
    assert Load(14.0, own=3.0, all=None).others(before) == 0
    assert Load(10.1, own=3.0, all=60.0).others(before) == 0, "too short to say"


def test_only_the_cores_of_this_process_count(tmp_path, monkeypatch):
    """And of them neither idling nor waiting nor programs that give way."""
    rows = ["cpu 9 9 9 9 9 9 9 9 0 0", "cpu0 100 7 20 900 11 3 4 5 0 0", "cpu1 900 0 900 0 0 0 0 0 0 0", "intr 5"]
    (tmp_path / "stat").write_text("\n".join(rows))
    monkeypatch.setattr(cores, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert Load.now().all == pytest.approx((100 + 20 + 3 + 4 + 5) / 100)
    monkeypatch.setattr(cores, "_STAT", tmp_path / "nowhere")
    assert Load.now().all is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
def test_a_busy_program_is_seen():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = Load.now()
        time.sleep(0.5)
        assert Load.now().others(before) > 0.1
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.parametrize(("running", "expected"), [([1], True), ([2], False), ([3, 1, 2], True), ([], False)])
def test_alone_is_who_finds_no_other_at_one_of_three_looks(running, expected, monkeypatch):
    looks = [f"cpu 1 2 3\nprocs_running {n}\nprocs_blocked 1\n" for n in running] or ["cpu 1 2 3\n"]
    turns = itertools.cycle(looks)
    monkeypatch.setattr(cores, "_STAT", SimpleNamespace(read_text=lambda: next(turns)))
    assert cores.alone() is expected


def test_not_alone_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_STAT", tmp_path / "nowhere")
    assert not cores.alone()


@pytest.mark.parametrize(
    ("alone", "said", "expected"),
    [
        (True, {}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}),
        (False, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (True, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
        (True, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (True, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_how_threads_wait_is_left_to_who_has_said_it(alone, said, expected, monkeypatch):
    monkeypatch.setattr(cores, "alone", lambda: alone)
    environment = dict(said)
    cores.choose_waiting(environment)
    assert environment == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
def test_threads_sleep_at_once_beside_a_busy_program():
    code = "import os, psd_gs; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert out.stdout == "PASSIVE None\n"
    finally:
        busy.kill()
        busy.wait()


def test_processes_divide_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [terminal.threads_each(n) for n in (1, 2, 5)] == [2, 1, 1]


def test_slow_steps_are_told_once():
    now = [Load(0.0, own=0.0, all=0.0)]

    def clock():
        now[0] = Load(now[0].seconds + 1, own=now[0].own + 1, all=now[0].all + 2)
        return now[0]

    slow = terminal.SlowSteps(clock)
    assert not any(slow(0.1) for _ in range(60))
    told = [message for message in (slow(0.4) for _ in range(60)) if message]
    assert len(told) == 1
    assert told[0].startswith("steps take 4.0 times as long as at first: other programs keep 1.0 cores busy")


def test_steps_that_are_slow_for_themselves_are_not_told():
    slow = terminal.SlowSteps(lambda: Load(0.0, own=0.0, all=None))
    assert not any(slow(seconds) for seconds in [0.1] * 30 + [1.0] * 60)
