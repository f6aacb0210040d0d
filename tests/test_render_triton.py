"""The Triton backend without a GPU: interpreted it equals the CPU backend, and it compiles for what users have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench import aot
from test_render import odd_cameras, random_scene

from psd_gs.errors import BackendError
from psd_gs.render import render

TESTS = Path(__file__).parent


def interpreted(*arguments: str) -> None:
    """Run tests in a process of their own: Triton reads the variable when it is imported."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_equal_to_the_cpu_backend_under_the_interpreter():
    interpreted(str(TESTS / "triton_interpreted.py"))


@pytest.mark.full
def test_all_tests_of_the_contract_under_the_interpreter():
    interpreted(str(TESTS / "test_render.py"), "-k", "triton")
    interpreted(str(TESTS / "triton_interpreted.py"), "-m", "full")


@pytest.mark.full
def test_compiled_for_hopper_no_register_is_spilled():
    launches = [launch for launch in aot.launches() if launch.kernel.fn.__name__.startswith(("rasterize", "project_b"))]
    assert len(launches) == 3
    for launch in launches:
        used = aot.usage(aot.compile_for(aot.TARGETS["sm_90"], launch))
        assert used.spilled == 0, launch.kernel
        assert used.registers <= 200, launch.kernel


@pytest.mark.full
@pytest.mark.parametrize("target", aot.TARGETS)
def test_compiles_for_each_kind_of_gpu(target):
    binary = "cubin" if target.startswith("sm") else "hsaco"
    for launch in aot.launches() + aot.launches(sh_degree=3, antialiased=True, median_depth=False):
        assert aot.compile_for(aot.TARGETS[target], launch).asm[binary]


def test_without_a_gpu_it_is_refused_with_a_remedy():
    with pytest.raises(BackendError, match=r"compiles for GPUs only.*--renderer cpu"):
        render(random_scene(0, n=3), odd_cameras(), backend="triton")
