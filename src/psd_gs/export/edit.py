"""What may be taken out of finished Gaussians before they are exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from psd_gs.errors import ConfigError, InputError
from psd_gs.export.blocks import exp, sigmoid
from psd_gs.export.frames import median
from psd_gs.splats import Splats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

REACH = 2.0
"""Standard deviations to which a Gaussian reaches when groups are told apart."""


@dataclass(frozen=True)
class Edit:
    """Which Gaussians are exported, and with how many harmonics.

    Attributes:
        sh_degree: highest to keep, 0 to 3; None for all.
        max_splats: keep those that cover most; None for all.
        prune: drop rows that are not finite, what nobody sees, and what floats.
        min_opacity: Gaussians below it count as unseen, in [0, 1].
        floaters: detached groups with less than this share of the visible area float, in [0, 1].
    """

    sh_degree: int | None = None
    max_splats: int | None = None
    prune: bool = False
    min_opacity: float = 0.02
    floaters: float = 0.005

    def __post_init__(self) -> None:
        if self.sh_degree is not None and not 0 <= self.sh_degree <= 3:
            raise ConfigError(f"--sh-degree: expected 0 to 3, received {self.sh_degree}.")
        if self.max_splats is not None and self.max_splats < 1:
            raise ConfigError(f"--max-splats: expected 1 or more, received {self.max_splats}.")
        for name in ("min_opacity", "floaters"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')}: expected 0 to 1, received {getattr(self, name)}.")


def apply(edit: Edit, splats: Splats) -> Splats:
    """The splats that ``edit`` leaves, in their order; the same object if nothing changes.

    Raises:
        InputError: none is left.
    """
    if edit.sh_degree is not None and edit.sh_degree < splats.sh_degree:
        splats = replace(splats, shN=np.ascontiguousarray(splats.shN[:, : (edit.sh_degree + 1) ** 2 - 1]))
    if edit.prune:
        splats = _keep(splats, splats.usable & (sigmoid(splats) >= edit.min_opacity))
        splats = _keep(splats, ~floating(splats, edit.floaters))
    if edit.max_splats is not None and edit.max_splats < len(splats):
        splats = splats.select(np.sort(largest(splats, edit.max_splats)))
    if len(splats) == 0:
        raise InputError(
            "expected Gaussians that outlast pruning, received none. Lower --min-opacity or leave --prune out."
        )
    return splats


def _keep(splats: Splats, mask: Bool[np.ndarray, " N"]) -> Splats:
    return splats if mask.all() else splats.select(mask)


def largest(splats: Splats, count: int) -> Int[np.ndarray, " count"]:
    """Indices of those with the largest :func:`area`, in no order."""
    return np.argpartition(area(splats), len(splats) - count)[-count:]


def area(splats: Splats) -> Float[np.ndarray, " N"]:
    """Opacity times the product of the two larger standard deviations: what a Gaussian covers, face on."""
    return sigmoid(splats) * exp(np.sort(splats.scales, axis=1)[:, 1:].sum(axis=1))


def floating(splats: Splats, share: float) -> Bool[np.ndarray, " N"]:
    """Gaussians of detached groups that hold less than ``share`` of the total :func:`area`."""
    if len(splats) == 0 or share <= 0:
        return np.zeros(len(splats), bool)
    labels = groups(splats)
    mass = np.bincount(labels, weights=area(splats))
    return (mass < min(share * mass.sum(), mass.max()))[labels]


def groups(splats: Splats) -> Int[np.ndarray, " N"]:
    """Labels of the groups of Gaussians that hang together.

    Space is cut into cells of :data:`REACH` times the median size. A Gaussian fills the cell of its centre and,
    if it is larger than a cell, four more along each of its large axes. Filled cells hang together if they
    touch. Linear in the number of Gaussians.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.transform import Rotation

    means, sizes = splats.means.astype(np.float64), np.exp(splats.scales.astype(np.float64))
    cell = REACH * float(median(sizes.mean(axis=1)))
    middle = median(means.T)

    def keys(points: Float[np.ndarray, "M 3"]) -> Int[np.ndarray, " M"]:
        # 20 bits per axis; what is farther than half a million cells piles up at the border.
        cells = np.floor((points - middle) / cell).clip(2 - 2**19, 2**19 - 2).astype(np.int64) + 2**19
        return cells[:, 0] << 40 | cells[:, 1] << 20 | cells[:, 2]

    owner, axis = (sizes > cell).nonzero()
    turns = Rotation.from_quat(splats.quats[owner][:, [1, 2, 3, 0]]).as_matrix()
    reach = REACH * sizes[owner, axis, None] * turns[np.arange(len(owner)), :, axis]
    filled = [keys(means)] + [keys(means[owner] + step * reach) for step in (-1.0, -0.5, 0.5, 1.0)]
    cells, cell_of = np.unique(np.concatenate(filled), return_inverse=True)
    centre, tips = cell_of[: len(means)], cell_of[len(means) :].reshape(4, -1)
    pairs = [np.stack([centre[owner], tip]) for tip in tips]
    for x, y, z in _HALF_OF_THE_NEIGHBOURS:
        neighbour = cells + ((x << 40) + (y << 20) + z)
        place = np.minimum(np.searchsorted(cells, neighbour), len(cells) - 1)
        there = cells[place] == neighbour
        pairs.append(np.stack([there.nonzero()[0], place[there]]))
    rows, columns = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(cells), len(cells)))
    return connected_components(graph, directed=False)[1][centre]


_HALF_OF_THE_NEIGHBOURS = [
    (x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)
]
