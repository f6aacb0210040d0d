"""Fluffy Gaussians made solid: the last phase of an asset that is meant to become a mesh.

Score distillation leaves fog: Gaussians of low opacity whose alpha differs from view to view, so that no closed
surface has the outlines of all views. Here the same Gaussians, made small and opaque, are fitted to their old renders
in which fog is resolved: what is more than half opaque becomes opaque, the rest vanishes. No diffusion model takes
part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.adam import Adam
from psd_gs.cameras import Cameras, sphere_of_cameras
from psd_gs.export.fitting import bounding_ball
from psd_gs.gaussians import Gaussians, usable
from psd_gs.render import render

_VIEWS = 48
_VIEWS_PER_STEP = 4
_SIZE = 96
_RATES = {"means": 4e-3, "scales": 2e-2, "quats": 1e-2, "opacities": 1e-1, "sh0": 1e-2, "shN": 5e-4}
_HARDER = 6.0
"""Added to the logits of the opacities at the start."""
_SMALLER = 0.5
"""Factor on the standard deviations at the start."""
_BAND = 0.2
"""Range of alpha around one half that is stretched instead of rounded to 0 or 1."""
_TRANSPARENT = 0.1
"""Gaussians below this opacity are dropped at the end."""
_FINE = 0.5
"""Pixels. The screen-space blur of the renders closes the gaps between Gaussians with smaller standard deviations,
so that fitting them would leave a sieve."""


def solidify(
    gaussians: Gaussians, steps: int, hold: Callable[[Gaussians], Float[Tensor, ""]] | None = None
) -> Gaussians:
    """The asset without fog, fitted to its own views with decided alpha; reproducible.

    The loss of each step is the mean squared error of premultiplied colour and alpha over 4 of 48 views, and what
    ``hold`` says of the asset.

    Args:
        gaussians: finished. If most are finer than half a pixel of these views, they are a surface, not fog, and
            given back.
        steps: of Adam; 0 gives the asset back.
        hold: a further loss of the same kind, of views that are known better than by looking at the asset.
    """
    if steps <= 0 or len(gaussians) == 0:
        return gaussians
    centre, radius = bounding_ball(gaussians)
    if float(gaussians.scales.amax(1).exp().median()) < _FINE * 2 * radius / _SIZE:
        return gaussians
    start = gaussians.detach().map(torch.clone)
    start = replace(start, means=(start.means - centre) / radius, scales=start.scales - math.log(radius))

    def placed(asset: Gaussians) -> Gaussians:
        return replace(asset, means=asset.means * radius + centre, scales=asset.scales + math.log(radius))

    cameras = sphere_of_cameras(_VIEWS, 1.05, _SIZE).to(start.device)
    target = _decided(start, cameras)
    start = replace(start, opacities=start.opacities + _HARDER, scales=start.scales + math.log(_SMALLER))
    asset = start.map(lambda p: p.contiguous().requires_grad_(True))
    adam = Adam(list(asset.params().values()), [_RATES[name] for name in asset.params()], eps=1e-15)
    for step in range(steps):
        views = (torch.arange(_VIEWS_PER_STEP) * (_VIEWS // _VIEWS_PER_STEP) + 5 * step) % _VIEWS
        views = views.to(start.device)
        out = render(asset, cameras[views])
        loss = (torch.cat([out.rgb, out.alpha], dim=-1) - target[views]).square().mean()
        if hold:
            loss = loss + hold(placed(asset))
        adam.zero_grad()
        loss.backward()
        adam.step()
        adam.rates = [rate * 0.1 ** (1 / steps) for rate in adam.rates]
    done = asset.detach()
    return placed(done.select((torch.sigmoid(done.opacities) >= _TRANSPARENT) & usable(done)))


@torch.no_grad()
def _decided(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, "C H W 4"]:
    """Premultiplied RGBA of every view, its alpha pushed away from one half."""
    views = []
    for first in range(0, len(cameras), _VIEWS_PER_STEP):
        out = render(gaussians, cameras[first : first + _VIEWS_PER_STEP])
        alpha = ((out.alpha - 0.5) / _BAND + 0.5).clamp(0, 1)
        views.append(torch.cat([out.rgb / out.alpha.clamp_min(1e-3) * alpha, alpha], dim=-1))
    return torch.cat(views)
