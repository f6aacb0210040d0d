"""Where an asset lies as people see it, and moved to where it can be looked at."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.export.frames import inner_box, near_the_others, transform
from psd_gs.gaussians import Gaussians
from psd_gs.splats import scaled

VISIBLE = 0.05
"""Gaussians below this opacity do not count when an asset is measured."""


def bounding_ball(gaussians: Gaussians) -> tuple[Float[Tensor, " 3"], float]:
    """Centre and radius of a ball around what is visible, strays and half a percent of the rest left out.

    Returns:
        The centre of :func:`psd_gs.export.frames.robust_box` and the 99.5 percent quantile of the distance from it,
        two standard deviations of each Gaussian included; world units, above zero.
    """
    visible = gaussians.opacities.sigmoid() >= VISIBLE
    if visible.any():
        gaussians = gaussians.select(visible)
    if len(gaussians) == 0:
        return gaussians.means.new_zeros(3), 1e-3
    means = gaussians.means.detach().cpu().numpy()
    near = near_the_others(means)
    centre = torch.from_numpy(inner_box(means[near]).mean(0)).to(gaussians.means)
    gaussians = gaussians.select(torch.from_numpy(near).to(gaussians.device))
    reach = (gaussians.means - centre).norm(dim=1) + 2 * gaussians.scales.amax(1).exp()
    radius = reach.sort().values[round(0.995 * (len(reach) - 1))]
    return centre, float(radius) or 1e-3


def fitted(gaussians: Gaussians, radius: float) -> Gaussians:
    """An asset of any place and size in a ball around the origin: what every start, evaluation and picture does.

    Args:
        gaussians: in any units.
        radius: of the ball that :func:`bounding_ball` becomes, world units; strays, which it leaves out, stay
            outside.
    """
    centre, reach = bounding_ball(gaussians)
    centred = replace(gaussians, means=gaussians.means - centre, origin=(0.0, 0.0, 0.0))
    return scaled(centred, radius / reach)


def moved(gaussians: Gaussians, matrix: Float[Tensor, "4 4"]) -> Gaussians:
    """:func:`psd_gs.export.frames.transform` of tensors, on the CPU."""
    return Gaussians.of(transform(gaussians.splats(), matrix.numpy()))
