"""What all tests share: the tools on the path, and no silent skips where none are wanted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
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


@pytest.fixture
def one_thread():
    """For tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
