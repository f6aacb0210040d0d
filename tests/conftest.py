"""What all tests share: the tools on the path, and no silent skips where none are wanted."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

# Before torch is loaded, here and in every process that a test starts: most tensors are tiny, so that two threads would
# only wait for each other, and each core has a process of tests of its own.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

FAIL_ON_SKIP = "PSD_GS_FAIL_ON_SKIP"
"""Set by ``.ci/run``: a skipped test is a failure there, unless it needs a GPU."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("gpu")
    if report.skipped and not expected and os.environ.get(FAIL_ON_SKIP):
        report.outcome, report.longrepr = "failed", f"skipped, which {FAIL_ON_SKIP} forbids: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and os.environ.get(FAIL_ON_SKIP):
        report.outcome, report.longrepr = "failed", f"skipped, which {FAIL_ON_SKIP} forbids: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Where a shell started the tests in the background, they would ignore Ctrl-C, and so what they interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """For every test, whatever the one before it set: another number of threads rounds differently."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini_pipeline():
    """The embedded models, loaded once."""
    from psd_gs import TextTo3DPipeline

    return TextTo3DPipeline.from_pretrained("mini", device="cpu")


@pytest.fixture
def quick_files(monkeypatch):
    """Small pictures and coarse meshes, for tests that are about something else."""
    from psd_gs.export import pictures
    from psd_gs.mesh import extract

    monkeypatch.setattr(pictures, "preview_png", partial(pictures.preview_png, size=48))
    monkeypatch.setattr(pictures, "turntable_film", partial(pictures.turntable_film, frames=4, size=48))
    monkeypatch.setattr(pictures, "picture_png", partial(pictures.picture_png, size=32))
    coarse = extract.MeshOptions(resolution=32, views=6, faces=500)
    monkeypatch.setattr(extract, "extract_mesh", partial(extract.extract_mesh, options=coarse))
