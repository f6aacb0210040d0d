"""What :func:`psd_gs.render.render` asks of a backend's ``rasterize``, and what it gets."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Settings(NamedTuple):
    """How Gaussians are drawn; see the arguments of :func:`psd_gs.render.render`."""

    degree: int
    antialiased: bool
    median_depth: bool
    absgrad: bool


class Drawn(NamedTuple):
    """Images of C cameras and the N projected Gaussians in them; see :class:`psd_gs.render.RenderOutput`.

    Without ``Settings.median_depth`` the median may be anything.
    """

    rgb: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C H W 1"]
    median_depth: Float[Tensor, "C H W 1"] | None
    means2d: Float[Tensor, "C N 2"]
    radii: Int[Tensor, "C N 2"]
    depths: Float[Tensor, "C N"]
