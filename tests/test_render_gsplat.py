"""The glue around gsplat, with its CUDA kernels played by torch; test_render.py runs the real ones."""

from __future__ import annotations

import inspect

import filelock
import gsplat
import pytest
import torch
from test_render import odd_cameras, random_scene

from psd_gs.errors import BackendError
from psd_gs.render import gsplat as backend
from psd_gs.render import render


def walk(range_start, range_end, T, means2d, conics, opacities, width, height, tile_size, offsets, flatten_ids):
    """``rasterize_to_indices_in_range`` for one view in one tile: contributions pixel after pixel, front to back."""
    assert range_start == 0
    assert range_end * tile_size**2 >= len(flatten_ids)
    assert means2d.shape[0] == 1
    assert offsets.tolist() == [[[0]]]
    gauss, pixel = [], []
    for p in range(width * height):
        transmittance = float(T[0, p // width, p % width])
        dx, dy = (means2d[0] - torch.tensor([p % width + 0.5, p // width + 0.5])).unbind(-1)
        a, b, c = conics[0].unbind(-1)
        alpha = (opacities[0] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp_max(0.999)
        for n in flatten_ids.tolist():
            if alpha[n] < 1 / 255:
                continue
            if transmittance * (1 - float(alpha[n])) <= 1e-4:
                break
            transmittance *= 1 - float(alpha[n])
            gauss.append(n)
            pixel.append(p)
    gauss, pixel = torch.tensor(gauss, dtype=torch.long), torch.tensor(pixel, dtype=torch.long)
    return gauss, pixel, torch.zeros_like(gauss)


@pytest.fixture
def cpu_behind_gsplat(monkeypatch):
    """``gsplat.rasterization`` with its own signature, computed by our CPU backend. Yields the arguments seen."""
    seen = {}
    signature = inspect.signature(gsplat.rasterization)
    gaussians, cameras = random_scene(21, n=40), odd_cameras(17, 13)

    def rasterization(*args, **kwargs):
        seen.update(signature.bind(*args, **kwargs).arguments)
        output = render(gaussians, cameras, backend="cpu")
        # Conics of the 2D covariances, from first principles.
        half = gsplat.cuda._torch_impl._quat_scale_to_covar_preci(seen["quats"], seen["scales"], True, False)[0]
        radii, means2d, depths, conics, _ = gsplat.cuda._torch_impl._fully_fused_projection(
            seen["means"], half, seen["viewmats"], seen["Ks"], seen["width"], seen["height"]
        )
        C, N = depths.shape
        visible = (output.meta["radii"] > 0).all(-1)
        order = [[c * N + n for n in depths[c].argsort().tolist() if visible[c, n]] for c in range(C)]
        starts = torch.tensor([0] + [len(ids) for ids in order]).cumsum(0)[:C]
        info = {
            **{"means2d": means2d, "conics": conics, "depths": depths, "radii": radii},
            "opacities": seen["opacities"].expand(C, N),
            "isect_offsets": starts.int().view(C, 1, 1),
            "flatten_ids": torch.tensor([i for ids in order for i in ids], dtype=torch.int32),
            **{"width": seen["width"], "height": seen["height"], "tile_size": 64},
        }
        return torch.cat([output.rgb, output.depth], -1), output.alpha, info

    monkeypatch.setattr(backend, "require_gsplat", lambda device: None)
    monkeypatch.setattr(gsplat, "rasterization", rasterization)
    monkeypatch.setattr(gsplat, "rasterize_to_indices_in_range", walk)
    return seen, gaussians, cameras


def test_same_contract_as_the_cpu_backend(cpu_behind_gsplat):
    seen, gaussians, cameras = cpu_behind_gsplat
    background = torch.tensor([0.3, 0.6, 0.9])
    expected = render(gaussians, cameras, background, median_depth=True, backend="cpu")
    output = render(gaussians, cameras, background, median_depth=True, antialiased=True, absgrad=True, backend="gsplat")
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(output, name), getattr(expected, name))
    close = (output.median_depth - expected.median_depth).abs() < 1e-4
    assert close.float().mean() > 0.998
    assert expected.median_depth.count_nonzero() > 100
    assert output.meta.keys() == expected.meta.keys()
    torch.testing.assert_close(seen["scales"], gaussians.scales.exp())
    torch.testing.assert_close(seen["opacities"], gaussians.opacities.sigmoid())
    assert seen["render_mode"] == "RGB+ED"
    assert seen["rasterize_mode"] == "antialiased"
    assert seen["absgrad"] is True
    assert seen["packed"] is False
    assert seen["sh_degree"] == 0


@pytest.mark.parametrize(
    "failure", [ImportError("no _C"), AttributeError("'NoneType' has no attribute"), RuntimeError("ninja")]
)
def test_an_extension_that_does_not_load_is_reported_with_a_remedy(monkeypatch, failure):
    def fail(device):
        raise failure

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "_run_smallest_kernel", fail)
    with pytest.raises(BackendError, match=r"nvcc of CUDA .*C\+\+20 compiler.*ninja and packaging") as caught:
        backend.require_gsplat(torch.device("cuda"))
    assert str(failure) in str(caught.value)
    with pytest.raises(BackendError, match="needs CUDA tensors, received cpu"):
        backend.require_gsplat(torch.device("cpu"))


def test_processes_do_not_build_at_once(monkeypatch, tmp_path):
    held = []

    def build(device):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / "gsplat_cuda.lock", timeout=0).acquire()
        held.append(device)

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "_run_smallest_kernel", build)
    backend.require_gsplat(torch.device("cuda"))
    assert held == [torch.device("cuda")]
