"""Which renderer a machine gets. No GPU: what each of them would say is played."""

from __future__ import annotations

import pytest
import torch
from test_render import odd_cameras, random_scene

from psd_gs.errors import BackendError, ConfigError
from psd_gs.render import choose, choose_renderer, gsplat, render, renderer_device

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _forgotten():
    """What was found out once is remembered, on the machine as it is."""
    yield
    for function in (choose.choose_renderer, choose.trouble_with_triton):
        function.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """A CUDA machine: what gsplat and Triton say there."""

    def play(built: bool = False, loads: str = "", triton: str = "", hip: str | None = None) -> list[str]:
        choose.choose_renderer.cache_clear()
        called = []

        def require(device):
            called.append("gsplat")
            if loads:
                raise BackendError(loads)

        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(gsplat, "is_built", lambda: built)
        monkeypatch.setattr(gsplat, "require_gsplat", require)
        monkeypatch.setattr(choose, "trouble_with_triton", lambda device: triton)
        return called

    yield play
    monkeypatch.undo()  # before the caches are cleared


def test_gsplat_where_its_kernels_load(machine):
    machine(built=True)
    assert choose_renderer(CUDA) == ("gsplat", "its CUDA kernels are built")
    machine(built=True, loads="another CUDA")
    assert choose_renderer(CUDA) == ("triton", "another CUDA")


def test_nothing_is_compiled_by_surprise(machine):
    called = machine(built=False)
    assert choose_renderer(CUDA) == ("triton", "gsplat's CUDA kernels are not built yet")
    assert called == []
    assert choose_renderer(CUDA, "gsplat") == ("gsplat", "as asked for")
    assert called == ["gsplat"]


def test_gsplat_is_not_tried_on_amd(machine):
    called = machine(built=True, hip="6.4")
    assert choose_renderer(CUDA) == ("triton", "gsplat has kernels for NVIDIA GPUs only")
    assert called == []


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu:1"])
def test_the_cpu_beside_networks_on_a_gpu(machine, device):
    machine(triton="Triton is not installed")
    renderer, reason = choose_renderer(torch.device(device))
    assert renderer == "cpu"
    assert "gsplat" in reason
    assert reason.endswith("; Triton is not installed")
    assert renderer_device(torch.device(device)) == torch.device("cpu")
    if device == "cuda":
        assert renderer_device(torch.device(device), "gsplat") == torch.device(device)
    with pytest.raises(BackendError, match=r"no renderer runs on meta: .*Use gaussians\.to\('cpu'\)"):
        render(random_scene(0, n=3).to("meta"), odd_cameras().to("meta"))


def test_networks_on_the_cpu():
    assert choose_renderer(torch.device("cpu")) == ("cpu", "the networks are on the CPU")


def test_what_is_asked_for_and_cannot_run():
    with pytest.raises(ConfigError, match="'auto', 'gsplat', 'triton' or 'cpu', received 'opengl'"):
        choose_renderer(CUDA, "opengl")
    with pytest.raises(BackendError, match=r"needs CUDA tensors|needs a CUDA device"):
        choose_renderer(torch.device("cpu"), "gsplat")
    with pytest.raises(BackendError, match=r"compiles for GPUs only.*C compiler.*--renderer cpu"):
        choose_renderer(torch.device("cpu"), "triton")


def test_triton_that_fails_or_renders_wrong_values(monkeypatch):
    from psd_gs.render import triton

    def fail(device):
        raise RuntimeError("Failed to find C compiler.\nand a long trace")

    monkeypatch.setattr(triton, "self_test", fail)
    assert choose.trouble_with_triton(CUDA) == "Triton does not compile for cuda (Failed to find C compiler.)"
    choose.trouble_with_triton.cache_clear()
    monkeypatch.setattr(triton, "self_test", lambda device: "alpha 0.000, gradient 0.000")
    assert "wrong values on cuda (alpha 0.000" in choose.trouble_with_triton(CUDA)
    choose.trouble_with_triton.cache_clear()
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    assert choose.trouble_with_triton(CUDA) == "Triton is not installed"


def test_a_built_extension_is_found_in_torchs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not gsplat.is_built()
    (tmp_path / "gsplat_cuda").mkdir(exist_ok=True)
    (tmp_path / "gsplat_cuda" / "build.ninja").touch()
    assert not gsplat.is_built()
    (tmp_path / "gsplat_cuda" / "gsplat_cuda.so").touch()
    assert gsplat.is_built()
