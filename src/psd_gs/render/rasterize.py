"""Differentiable rendering of Gaussians: one contract; gsplat's CUDA kernels, Triton's, and those of the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import BackendError, ConfigError, InputError
from psd_gs.gaussians import Gaussians
from psd_gs.render.backend import Settings
from psd_gs.render.choose import Backend, choose_renderer, require_triton
from psd_gs.resize import clamped


@dataclass
class RenderOutput:
    """Images of C cameras, and what densification needs to know.

    Attributes:
        rgb: sRGB colour over the background; not clamped from above.
        alpha: opacity in [0, 1).
        depth: expected z (accumulated z / alpha), world units; 0 where nothing is hit.
        median_depth: z of the Gaussian at which the transmittance falls to 0.5, 0 where it never does;
            None unless it was asked for. Not differentiable.
        meta: gsplat's keys. ``means2d [C,N,2]`` in pixels, in the graph: call ``retain_grad()`` on it
            before the backward pass and read ``.grad`` after it, and ``.absgrad`` (sums of absolute
            values over pixels) if ``absgrad`` was set; ``radii [C,N,2]`` int32 pixels, 0 where
            invisible; ``depths [C,N]``, meaningful where visible; ``width``, ``height``, ``n_cameras``,
            ``gaussian_ids`` (None).
    """

    rgb: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C H W 1"]
    median_depth: Float[Tensor, "C H W 1"] | None
    meta: dict[str, Any]

    @property
    def pictures(self) -> Float[Tensor, "C 3 H W"]:
        """``rgb`` as rewards are shown it, in [0, 1]."""
        return clamped(self.rgb).permute(0, 3, 1, 2)


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Float[Tensor, "C 3"] | Float[Tensor, " 3"] | None = None,
    *,
    sh_degree: int | None = None,
    antialiased: bool | None = None,
    median_depth: bool = False,
    absgrad: bool = False,
    backend: Backend = "auto",
) -> RenderOutput:
    """Render Gaussians from every camera (Kerbl et al. 2023), differentiably in the Gaussians and the background.

    All backends share gsplat's conventions: EWA projection with 0.3 pixels^2 of blur, pixel centres at
    half-integers, alpha = min(0.999, opacity exp(-sigma)) where it is at least 1/255, front to back until
    the transmittance would fall to 1e-4, near plane 0.01. A zero quaternion or a non-finite parameter
    makes a Gaussian invisible.

    Args:
        gaussians: scales are logarithms and opacities logits, as stored; computed with in float32.
        cameras: on the same device as the Gaussians.
        background: sRGB colour in [0, 1], one or one per camera; black if None.
        sh_degree: spherical harmonics in use, 0 to the degree of the Gaussians; None is all.
        antialiased: scale opacities by sqrt(det / det blurred) (Mip-Splatting, Yu et al. 2024); None: as the
            ``mode`` of the Gaussians says.
        median_depth: also return the median depth.
        absgrad: also sum absolute screen-space gradients (AbsGS, Ye et al. 2024).
        backend: "auto" is "cpu" for CPU tensors, else what :func:`psd_gs.render.choose_renderer` says of their device.

    Raises:
        BackendError: the backend cannot run, or not on this device.
        ConfigError: ``backend`` or ``sh_degree`` out of range.
        InputError: tensors on different devices, or a background of another shape.
    """
    device = gaussians.device
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= min(3, gaussians.sh_degree):
        raise ConfigError(
            f"sh_degree: expected 0 to {min(3, gaussians.sh_degree)} for these Gaussians, received {degree}"
        )
    if cameras.viewmats.device != device or cameras.Ks.device != device:
        raise InputError(f"cameras are on {cameras.viewmats.device}, Gaussians on {device}: use cameras.to({device!s})")
    C = len(cameras)
    if background is None:
        background = torch.zeros(3, device=device)
    if background.shape not in ((3,), (C, 3)):
        raise InputError(f"background: expected shape (3,) or ({C}, 3), received {tuple(background.shape)}")
    background = background.to(device, torch.float32).expand(C, 3)
    if backend == "auto":
        backend, reason = choose_renderer(device)
        if backend == "cpu" and device.type != "cpu":
            raise BackendError(f"no renderer runs on {device}: {reason}. Use gaussians.to('cpu')")
    if backend == "gsplat":
        from psd_gs.render.gsplat import rasterize
    elif backend == "triton":
        require_triton(device)
        from psd_gs.render.triton import rasterize
    elif backend == "cpu":
        if device.type != "cpu":
            raise BackendError(f"backend 'cpu' needs CPU tensors, received {device}: use gaussians.to('cpu')")
        from psd_gs.render.cpu import rasterize
    else:
        raise ConfigError(f"backend: expected 'auto', 'gsplat', 'triton' or 'cpu', received {backend!r}")
    if antialiased is None:
        antialiased = gaussians.mode == "antialiased"
    gaussians = gaussians.map(torch.Tensor.float)
    cameras = replace(cameras, viewmats=cameras.viewmats.float(), Ks=cameras.Ks.float())
    drawn = rasterize(gaussians, cameras, background, Settings(degree, antialiased, median_depth, absgrad))
    meta = {name: getattr(drawn, name) for name in ("means2d", "radii", "depths")}
    meta |= {"width": cameras.width, "height": cameras.height, "n_cameras": C, "gaussian_ids": None}
    return RenderOutput(drawn.rgb, drawn.alpha, drawn.depth, drawn.median_depth if median_depth else None, meta)
