"""The CUDA backend: gsplat's kernels behind our contract."""

from __future__ import annotations

import importlib.util
import math
import subprocess
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import BackendError
from psd_gs.gaussians import Gaussians
from psd_gs.render.backend import Drawn, Settings

_ALL_BATCHES = 1 << 30
"""More batches of Gaussians than any tile has: walk the whole list in one call."""


def require_gsplat(device: torch.device) -> None:
    """Make sure that gsplat's kernels can run on ``device``.

    Raises:
        BackendError: no CUDA device, tensors elsewhere, or a CUDA extension that does not build or load.
    """
    if not torch.cuda.is_available():
        raise BackendError(
            "backend 'gsplat' needs a CUDA device and torch finds none: use backend 'cpu', or install the CUDA "
            f"build of torch (installed: {torch.__version__}) and an NVIDIA driver"
        )
    if device.type != "cuda":
        raise BackendError(f"backend 'gsplat' needs CUDA tensors, received {device}: use gaussians.to('cuda')")
    try:
        # gsplat deletes a build that another process is at: the first builds, the others wait.
        with nullcontext() if _in_wheel() else FileLock(f"{_build_folder()}.lock"):
            _run_smallest_kernel(device)
    except (ImportError, OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        raise BackendError(
            f"gsplat's CUDA extension cannot be built or loaded ({error}). It is compiled at first use and needs nvcc "
            f"of CUDA {torch.version.cuda} or of the same major version (that of torch; set CUDA_HOME), a C++20 "
            "compiler such as g++ 11, and the packages ninja and packaging; `psd-gs doctor` looks for them. Renderers "
            "'triton' and 'cpu' run without it"
        ) from error


def is_built() -> bool:
    """Whether gsplat's CUDA extension is there already: in its wheel, or built by an earlier use."""
    return _in_wheel() or any(file.suffix in (".so", ".pyd") for file in _build_folder().iterdir())


def _in_wheel() -> bool:
    package = importlib.util.find_spec("gsplat")
    folder = Path(package.origin).parent if package and package.origin else None
    return folder is not None and any(folder.glob("csrc*.so")) | any(folder.glob("csrc*.pyd"))


def _build_folder() -> Path:
    """Where torch builds extensions that are compiled at first use; made if it is missing."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory("gsplat_cuda", verbose=False))


@cache
def _run_smallest_kernel(device: torch.device) -> None:
    """Releases differ in how they report a missing extension, but all fail when a kernel is called."""
    from gsplat import quat_scale_to_covar_preci

    quat_scale_to_covar_preci(torch.ones(1, 4, device=device), torch.ones(1, 3, device=device))


def rasterize(gaussians: Gaussians, cameras: Cameras, background: Tensor, settings: Settings) -> Drawn:
    """The backend's part of :func:`psd_gs.render.render`, by gsplat's kernels."""
    require_gsplat(gaussians.device)
    from gsplat import rasterization

    if len(gaussians) == 0:
        return _empty(cameras, background)
    images, alpha, info = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales.exp(),
        gaussians.opacities.sigmoid(),
        gaussians.sh,
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        sh_degree=settings.degree,
        packed=False,
        render_mode="RGB+ED",
        absgrad=settings.absgrad,
        rasterize_mode="antialiased" if settings.antialiased else "classic",
    )
    rgb = images[..., :3] + (1 - alpha) * background[:, None, None, :]
    median = _median_depth(info) if settings.median_depth else None
    return Drawn(rgb, alpha, images[..., 3:], median, info["means2d"], info["radii"], info["depths"])


def _empty(cameras: Cameras, background: Tensor) -> Drawn:
    """No Gaussians, which gsplat's kernels do not accept."""
    C = len(cameras)
    zeros = background.new_zeros(C, cameras.height, cameras.width, 1)
    rgb = background[:, None, None, :].expand(-1, cameras.height, cameras.width, -1).clone()
    radii = torch.zeros(C, 0, 2, dtype=torch.int32, device=background.device)
    means2d, depths = background.new_zeros(C, 0, 2), background.new_zeros(C, 0)
    return Drawn(rgb, zeros, zeros.clone(), zeros.clone(), means2d, radii, depths)


@torch.no_grad()
def _median_depth(info: dict[str, Any]) -> Tensor:
    """Depth of the Gaussian at which the transmittance of a pixel falls to 0.5, from gsplat's lists."""
    N = info["depths"].shape[1]
    ends = torch.cat([info["isect_offsets"][:, 0, 0], info["isect_offsets"].new_tensor([len(info["flatten_ids"])])])
    medians = []
    for c, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        means2d, conics, opacities, depths = (
            info[key][c : c + 1] for key in ("means2d", "conics", "opacities", "depths")
        )
        offsets, ids = info["isect_offsets"][c : c + 1] - start, info["flatten_ids"][start:end] - c * N
        size = info["width"], info["height"], info["tile_size"]
        medians.append(_median_depth_of_view(means2d, conics, opacities, depths, offsets, ids, *size))
    return torch.stack(medians)


def _median_depth_of_view(
    means2d: Float[Tensor, "1 N 2"],
    conics: Float[Tensor, "1 N 3"],
    opacities: Float[Tensor, "1 N"],
    depths: Float[Tensor, "1 N"],
    isect_offsets: Int[Tensor, "1 TH TW"],
    flatten_ids: Int[Tensor, " M"],
    width: int,
    height: int,
    tile_size: int,
) -> Float[Tensor, "H W 1"]:
    """One view at a time, because the list below has an entry for every contribution to every pixel.

    ``rasterize_to_indices_in_range`` lists the contributing Gaussians pixel after pixel, front to back.
    Their alphas are evaluated again and multiplied up with a segmented scan.
    """
    from gsplat import rasterize_to_indices_in_range

    median = means2d.new_zeros(height * width)
    gauss, pixel, _ = rasterize_to_indices_in_range(
        0,
        _ALL_BATCHES,
        means2d.new_ones(1, height, width),
        means2d,
        conics,
        opacities,
        width,
        height,
        tile_size,
        isect_offsets,
        flatten_ids,
    )
    if len(gauss) == 0:
        return median.view(height, width, 1)
    centre = torch.stack([pixel % width, pixel // width], -1) + 0.5
    dx, dy = (means2d[0, gauss] - centre).unbind(-1)
    a, b, c = conics[0, gauss].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[0, gauss] * torch.exp(-sigma)).clamp(max=0.999)
    # Log transmittance after each entry: a running sum in float64 minus its value where the pixel began.
    log_T = torch.log1p(-alpha.double())
    running = log_T.cumsum(0)
    starts = torch.ones_like(pixel, dtype=torch.bool)
    starts[1:] = pixel[1:] != pixel[:-1]
    after = running - (running - log_T)[starts][starts.cumsum(0) - 1]
    crosses = (after <= math.log(0.5)) & (after - log_T > math.log(0.5))
    median[pixel[crosses]] = depths[0, gauss[crosses]]
    return median.view(height, width, 1)
