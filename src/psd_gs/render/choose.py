"""Which renderer a machine gets: gsplat where its kernels are built, Triton where it compiles, else the CPU."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

import torch

from psd_gs.errors import BackendError, ConfigError

Renderer = Literal["gsplat", "triton", "cpu"]
Backend = Literal["auto", "gsplat", "triton", "cpu"]

TRITON_NEEDS = (
    "a GPU that Triton supports and, at its first use, a C compiler with Python's headers (Debian: apt install gcc "
    "python3-dev)"
)


@cache
def choose_renderer(device: torch.device, asked: Backend = "auto") -> tuple[Renderer, str]:
    """The renderer beside networks on ``device``, and why. Nothing that takes long is compiled unless it is asked for.

    Args:
        device: of the networks.
        asked: a renderer; auto is the fastest that runs at once.

    Raises:
        BackendError: the renderer that was asked for cannot run.
        ConfigError: not a renderer.
    """
    if asked not in ("auto", "gsplat", "triton", "cpu"):
        raise ConfigError(f"renderer: expected 'auto', 'gsplat', 'triton' or 'cpu', received {asked!r}")
    if asked == "gsplat":
        from psd_gs.render.gsplat import require_gsplat

        require_gsplat(device)
    elif asked == "triton":
        require_triton(device)
    if asked != "auto":
        return asked, "as asked for"
    if device.type == "cpu":
        return "cpu", "the networks are on the CPU"
    if not (without_gsplat := trouble_with_gsplat(device)):
        return "gsplat", "its CUDA kernels are built"
    if not (without_triton := trouble_with_triton(device)):
        return "triton", without_gsplat
    return "cpu", f"{without_gsplat}; {without_triton}"


def renderer_device(device: torch.device, asked: Backend = "auto") -> torch.device:
    """Where the Gaussians live beside networks on ``device``; see :func:`choose_renderer`."""
    return torch.device("cpu") if choose_renderer(device, asked)[0] == "cpu" else device


def trouble_with_gsplat(device: torch.device) -> str:
    """Why gsplat's kernels do not run on ``device`` at once; empty if they do."""
    if device.type != "cuda" or torch.version.hip:
        return "gsplat has kernels for NVIDIA GPUs only"
    from psd_gs.render.gsplat import is_built, require_gsplat

    if not is_built():
        return "gsplat's CUDA kernels are not built yet"
    try:
        require_gsplat(device)
    except BackendError as error:
        return str(error)
    return ""


@cache
def trouble_with_triton(device: torch.device) -> str:
    """Why Triton does not render on ``device``; empty if it does."""
    if device.type == "mps":
        return "Triton has no compiler for Apple's GPUs"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from psd_gs.render.triton import self_test

        wrong = self_test(device)
    except Exception as error:  # its compilers and drivers each raise their own
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        return f"Triton does not compile for {device} ({reason})"
    return f"Triton renders wrong values on {device} ({wrong})" if wrong else ""


def require_triton(device: torch.device) -> None:
    """Make sure that the Triton kernels compile for ``device`` and render what they should.

    Raises:
        BackendError: they do not.
    """
    if trouble := trouble_with_triton(device):
        raise BackendError(
            f"renderer 'triton': {trouble}. Expected {TRITON_NEEDS}. Renderer 'cpu' runs without: use --renderer cpu, "
            "or gaussians.to('cpu')"
        )
