"""Growing and pruning Gaussians under score distillation.

A budget instead of a magic gradient threshold: in every round the share ``grow`` of the Gaussians
with the largest mean screen-space gradient is doubled, however large that gradient is, because
its scale changes with the prior, the guidance scale and the timestep. Works on either rendering
backend, since both report gsplat's meta.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.config import DensifyConfig
from psd_gs.gaussians import SH_C0, Gaussians, rotation_matrices, usable
from psd_gs.render.rasterize import render

NEIGHBOURS = 12
REACH = 2.0
"""Two Gaussians touch if their centres are nearer than so many of their mean standard deviations together."""


class Densifier:
    """Gradient statistics over the steps of a round, and what to do with them.

    Args:
        config: options.
        generator: draws the places of split Gaussians (CPU).
    """

    def __init__(self, config: DensifyConfig, generator: torch.Generator) -> None:
        self.config = config
        self.generator = generator
        self.gradient = torch.zeros(0)
        self.visible = torch.zeros(0)

    def observe(self, meta: dict[str, Any], count: int | None = None) -> None:
        """Add one step's screen-space gradients, all views of it; call after the backward pass.

        The first ``count`` Gaussians of the render are those that may grow (None: all); others stand around them.

        Only the guidance acts through the screen positions (the regularizers act on parameters), so
        these are guidance gradients.
        """
        means2d = meta["means2d"]
        norm = means2d.absgrad[:, :count].norm(dim=-1)
        seen = (meta["radii"][:, :count] > 0).all(-1) & norm.isfinite()
        if self.gradient.shape[0] != norm.shape[1]:
            self.gradient = torch.zeros(norm.shape[1], device=norm.device)
            self.visible = torch.zeros(norm.shape[1], device=norm.device)
        self.gradient = self.gradient.to(norm.device) + torch.where(seen, norm, 0).sum(0)
        self.visible = self.visible.to(norm.device) + seen.sum(0)

    def plan(
        self, gaussians: Gaussians, grow: bool, spared: Bool[Tensor, " N"] | None = None
    ) -> tuple[Int[Tensor, " M"], Bool[Tensor, " M"]]:
        """Which Gaussians live on, and which of them are new.

        Args:
            gaussians: the present ones.
            grow: whether any are doubled.
            spared: which live on even if they hardly show.

        Returns:
            Indices into the present Gaussians, those to be doubled at the end once more, and a mask of
            those second copies.
        """
        dropped = prunable(gaussians, self.config)
        keep = (~dropped if spared is None else ~dropped | spared).nonzero()[:, 0]
        mean = self.gradient / self.visible.clamp_min(1)
        room = max(0, self.config.cap - len(keep))
        count = min(int(self.config.grow * len(keep)), room) if grow and len(mean) == len(gaussians) else 0
        picked = keep[mean[keep].topk(count).indices] if count else keep[:0]
        new = torch.zeros(len(keep) + count, dtype=torch.bool, device=keep.device)
        new[len(keep) :] = True
        return torch.cat([keep, picked]), new

    def apply(self, gaussians: Gaussians, index: Int[Tensor, " M"], new: Bool[Tensor, " M"]) -> Gaussians:
        """The Gaussians that :meth:`plan` asks for: large ones split in two smaller, small ones cloned.

        Both halves of a split lie at random places inside the original, 1.6 times smaller (3DGS,
        section 5.2). Clones lie on each other, so that each gets the opacity ``1 - sqrt(1 - a)``: the
        product of their transmittances is that of the original (Bulò et al., 2404.06109).
        """
        out = gaussians.select(index).map(torch.Tensor.clone)
        doubled = torch.isin(index, index[new])
        split = doubled & (out.scales.exp().amax(-1) > self.config.split_scale)
        cloned = doubled & ~split
        alpha = torch.sigmoid(out.opacities[cloned]).clamp_max(0.995)
        out.opacities[cloned] = (1 - (1 - alpha).sqrt()).logit()
        scales = out.scales[split].exp()
        noise = torch.randn(scales.shape, generator=self.generator).to(scales.device)
        out.means[split] += torch.einsum("nij,nj->ni", rotation_matrices(out.quats[split]), scales * noise * 0.7)
        out.scales[split] -= math.log(1.6)
        self.gradient, self.visible = self.gradient[:0], self.visible[:0]
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next round depends on."""
        return {"gradient": self.gradient, "visible": self.visible, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken, on any device: the sums follow the Gaussians that are observed."""
        self.gradient, self.visible = state["gradient"].clone(), state["visible"].clone()
        self.generator.set_state(state["generator"].cpu())


def prunable(gaussians: Gaussians, config: DensifyConfig) -> Bool[Tensor, " N"]:
    """Gaussians that are nearly transparent, far too large, or not finite."""
    faint = torch.sigmoid(gaussians.opacities) < config.prune_opacity
    huge = gaussians.scales.exp().amax(-1) > config.prune_scale
    return faint | huge | ~usable(gaussians)


def contribution(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, " N"]:
    """How much each Gaussian shows: its blending weight, summed over all pixels of all views.

    The picture is linear in the colours, so the weights are the gradient of its sum.
    """
    probe = gaussians.detach()
    probe.sh0 = torch.full_like(probe.sh0, 1.0).requires_grad_(True)
    probe.shN = probe.shN[:, :0]
    render(probe, cameras).rgb[..., 0].sum().backward()
    assert probe.sh0.grad is not None
    return probe.sh0.grad[:, 0, 0] / SH_C0


def components(gaussians: Gaussians) -> Int[np.ndarray, " N"]:
    """Labels of the groups of Gaussians that touch each other."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    means = gaussians.means.detach().cpu().double().numpy()
    size = gaussians.scales.detach().exp().mean(-1).cpu().double().numpy()
    n = len(means)
    if n < 2:
        return np.zeros(n, dtype=np.int64)
    distance, index = cKDTree(means).query(means, k=min(NEIGHBOURS + 1, n))
    touch = distance < REACH * (size[:, None] + size[index])
    rows = np.broadcast_to(np.arange(n)[:, None], index.shape)[touch]
    graph = coo_matrix((np.ones(len(rows)), (rows, index[touch])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def sweep(gaussians: Gaussians, config: DensifyConfig) -> Bool[Tensor, " N"]:
    """Which Gaussians of a finished asset to keep: those that show in views at three elevations and belong to a body,
    not floaters.
    """
    keep = ~prunable(gaussians, config)
    if not keep.any():
        return keep
    shown = torch.zeros(len(gaussians), device=gaussians.device)
    for elevation in (-20.0, 15.0, 55.0):
        cameras = turntable(8, elevation=elevation, radius=0.8, size=96, start=elevation)
        shown = torch.maximum(shown, contribution(gaussians, cameras.to(gaussians.device)))
    keep &= shown > 0.05 * shown[keep].median()
    index = keep.nonzero()[:, 0]
    if not len(index):
        return keep
    labels = torch.from_numpy(components(gaussians.select(index))).to(index.device)
    mass = torch.zeros(int(labels.max()) + 1, device=index.device)
    mass.index_add_(0, labels, torch.sigmoid(gaussians.opacities.detach()[index]))
    keep[index] = mass[labels] >= config.component_mass * mass.sum()
    return keep
