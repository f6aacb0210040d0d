"""Which Gaussians of an asset may change, and where new ones may be: a box, a ball, or chosen ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.errors import InputError

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

Region = Callable[[Float[Tensor, "N 3"]], Bool[Tensor, " N"]]
"""Which points lie in it."""

SAME = 1e-4
"""Two Gaussians of two files are the same up to this distance, in units of the asset's largest extent: what
quantized formats lose."""


def box(lower: Float[Tensor, " 3"], upper: Float[Tensor, " 3"]) -> Region:
    """Points between two corners, both included."""
    return lambda points: ((points.double() >= lower) & (points.double() <= upper)).all(1)


def ball(centre: Float[Tensor, " 3"], radius: float) -> Region:
    """Points within ``radius`` of ``centre``."""
    return lambda points: (points.double() - centre).norm(dim=1) <= radius


def nearest(means: Float[Tensor, "N 3"], chosen: Bool[Tensor, " N"]) -> Region:
    """Points whose nearest one of ``means`` is a chosen one: their Voronoi cells."""
    tree = tree_of(means)
    return lambda points: chosen[neighbours(tree, points)[1]]


def matching(means: Float[Tensor, "N 3"], wanted: Float[Tensor, "M 3"], name: str | os.PathLike[str]) -> Tensor:
    """Which of ``means`` a selection names, by their places.

    Args:
        means: of the whole asset.
        wanted: of the chosen ones, in any order.
        name: of the selection's file, for messages.

    Returns:
        A mask ``[N]``.

    Raises:
        InputError: some of the chosen ones are not in the asset.
    """
    reach = SAME * float((means.amax(0) - means.amin(0)).amax())
    lost = int((neighbours(tree_of(means), wanted)[0] > reach).sum())
    if lost:
        raise InputError(
            f"{name}: expected a selection of the asset's own Gaussians, received {len(wanted)} of which {lost} lie "
            "where the asset has none. Save the selection from the same file, without moving it."
        )
    return neighbours(tree_of(wanted), means)[0] <= reach


def tree_of(points: Float[Tensor, "N 3"]) -> cKDTree:
    """For :func:`neighbours`."""
    from scipy.spatial import cKDTree

    return cKDTree(points.detach().double().cpu().numpy())


def neighbours(tree: cKDTree, points: Float[Tensor, "M 3"]) -> tuple[Float[Tensor, " M"], Int[Tensor, " M"]]:
    """Distance to the nearest point of a tree, and its index."""
    distance, index = tree.query(points.detach().double().cpu().numpy(), workers=-1)
    return torch.from_numpy(distance), torch.from_numpy(index)
