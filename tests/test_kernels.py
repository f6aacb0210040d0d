"""Compiled loops: where no disk will have them, and those that the package brings."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching

from psd_gs import kernels


def double(x):
    return 2 * x


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Neither the folder of the source nor the user's can be written; temporary files go to ``tmp_path``."""

    def refuse(self):
        raise OSError("read-only file system")

    for locator in caching.FunctionCache._impl_class._locator_classes:
        if locator is not caching.UserProvidedCacheLocator:
            monkeypatch.setattr(locator, "ensure_cache_path", refuse)
    monkeypatch.setattr(kernels.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    kernels.temporary_cache.cache_clear()
    yield tmp_path
    kernels.temporary_cache.cache_clear()


def test_a_folder_of_temporary_files_serves_where_nothing_else_does(nowhere):
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(double)
    assert kernels.njit(nogil=True)(double)(21) == 42
    (folder,) = nowhere.iterdir()
    assert list(folder.rglob("*.nbi"))
    if os.name != "nt":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_could_fill_is_not_used(nowhere, kind):
    """What lies in a cache is run."""
    folder = nowhere / f"psd-gs-kernels-{os.getuid()}"
    other = nowhere / "other"
    other.mkdir()
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "link":
        folder.symlink_to(other)
    else:
        folder.write_text("")
    assert kernels.temporary_cache() is None
    assert kernels.njit()(double)(21) == 42
    assert not list(nowhere.rglob("*.nbi"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert kernels.njit()(double)(21) == 42


# --- kernels that the package brings ----------------------------------------------------------------------------------


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """``double`` compiled for :data:`psd_gs.kernels.TARGET` and brought; nothing else is kept or found."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    monkeypatch.setattr(kernels, "BROUGHT", folder)
    monkeypatch.setattr(kernels, "fits", lambda: True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "here"))
    with monkeypatch.context() as patch:
        patch.setattr(kernels.Cache, "save_overload", kernels.Cache.bring)
        assert kernels.njit()(double)(21) == 42
    assert list(folder.glob("*.nbi"))
    return folder


def hits(kernel):
    assert kernel(21) == 42
    return sum(kernel.stats.cache_hits.values())


def test_a_kernel_that_was_brought_is_not_compiled(brought, tmp_path):
    assert hits(kernels.njit()(double)) == 1
    assert not list((tmp_path / "here").rglob("*.nbi"))


def test_kernels_for_another_processor_are_compiled_here(brought, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "fits", lambda: False)
    assert hits(kernels.njit()(double)) == 0
    assert list((tmp_path / "here").rglob("*.nbi"))


def test_kernels_of_another_numba_are_compiled_here(brought, monkeypatch):
    monkeypatch.setattr(numba, "__version__", "0.0.0")
    assert hits(kernels.njit()(double)) == 0


def test_a_processor_fits_by_its_features(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    features = kernels.FEATURES
    monkeypatch.setattr(kernels.codegen, "get_host_cpu_features", lambda: ",".join(features))
    assert kernels.fits.__wrapped__()
    features = kernels.FEATURES - {"+avx2"} | {"-avx2"}
    assert not kernels.fits.__wrapped__()
    features = kernels.FEATURES
    monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    assert not kernels.fits.__wrapped__()


@pytest.mark.full
def test_the_tool_compiles_the_kernels_of_a_run(tmp_path):
    tool = Path(__file__).parents[1] / "tools" / "compile_kernels.py"
    subprocess.run([sys.executable, tool, "--out", tmp_path], check=True, timeout=600)
    kept = {path.name.rpartition("-")[0] for path in tmp_path.glob("*.nbi")}
    render = {"_project.project_forward", "_project.project_backward", "_raster.sum_gradients"}
    render |= {f"_raster.rasterize_{way}" for way in ("forward", "backward")}
    render |= {f"_lists.{name}" for name in ("sort_by_depth", "count_tiles", "offsets_of", "fill_tiles")}
    assert kept == render | {"tsdf._fuse", "decimate._collapse"}
