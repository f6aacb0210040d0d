"""Perp-Neg: what the other sides of the object look like, taken out of a view's prompt.

Against the many-faced results of single-view priors. Source: Perp-Neg (2304.04968), Eqs. 7-9, with the
interpolation and weights of its text-to-3D code. All is linear in the network's output at one ``x_t``, so it is
written with clean estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_gs.cameras import Cameras, view_angles
from psd_gs.priors.base import TextEmbedding

FRONT, SIDE, BACK, OVERHEAD = range(4)
"""Rows of the embedded :data:`~psd_gs.guidance.prompts.DIRECTIONS`."""


@dataclass(frozen=True)
class PerpNeg:
    """Two further prompts for each of C views.

    Attributes:
        texts: two embeddings of C rows.
        weights: of their perpendicular parts, zero or below.
    """

    texts: tuple[TextEmbedding, TextEmbedding]
    weights: Float[Tensor, "2 C"]

    def __getitem__(self, rows: Int[Tensor, " K"]) -> PerpNeg:
        first, second = (text[rows.to(text.sequence.device)] for text in self.texts)
        return PerpNeg((first, second), self.weights[:, rows])


def prompts_of_views(directions: TextEmbedding, cameras: Cameras) -> tuple[TextEmbedding, PerpNeg]:
    """The positive and negative prompts of C views.

    The positive one is interpolated between front and side, or side and back, by azimuth; the negative ones are the
    sides that must not show. From overhead nothing is removed.

    Args:
        directions: the prompt embedded for front, side, back and overhead.
        cameras: C of them.
    """
    azimuth, elevation = view_angles(cameras)
    turn = azimuth.abs() / 90
    ahead, overhead = turn < 1, elevation > 60
    r = torch.where(ahead, 1 - turn, 2 - turn)  # 1 in front (side), 0 at the side (back)
    near = torch.where(ahead, FRONT, SIDE)
    far = torch.where(ahead, SIDE, BACK)
    positive = _lerp(_rows(directions, far), _rows(directions, near), r)
    positive = _lerp(positive, _rows(directions, torch.full_like(near, OVERHEAD)), overhead.to(r))
    weights = torch.where(
        ahead,
        -torch.stack([4 * torch.exp(-0.5 * r) - 2.426, 4 * torch.exp(-0.5 * (1 - r)) - 2.426]),
        -torch.stack([torch.exp(-0.5 * r) - 0.606, torch.exp(-0.5 * r) + 0.967]),
    )
    weights = torch.where(overhead, 0, weights)
    others = (_rows(directions, near), _rows(directions, torch.where(ahead, SIDE, FRONT)))
    return positive, PerpNeg(others, weights)


def perp_neg(
    positive: Float[Tensor, "N G V C h w"],
    unconditional: Float[Tensor, "N G V C h w"],
    others: tuple[Float[Tensor, "N G V C h w"], Float[Tensor, "N G V C h w"]],
    weights: Float[Tensor, "2 G V"],
) -> Float[Tensor, "N G V C h w"]:
    """The conditional estimate that plain guidance turns into Perp-Neg's: each view by itself."""
    main = positive - unconditional
    for other, weight in zip(others, weights, strict=True):
        positive = positive + weight[..., None, None, None] * perpendicular(other - unconditional, main)
    return positive


def perpendicular(u: Float[Tensor, "*B C h w"], v: Float[Tensor, "*B C h w"]) -> Float[Tensor, "*B C h w"]:
    """The part of ``u`` at a right angle to ``v``, over the last three dimensions."""
    dims = (-3, -2, -1)
    return u - (u * v).sum(dims, keepdim=True) / v.square().sum(dims, keepdim=True).clamp_min(1e-6) * v


def _rows(text: TextEmbedding, index: Int[Tensor, " C"]) -> TextEmbedding:
    return text[index.to(text.sequence.device)]


def _lerp(start: TextEmbedding, end: TextEmbedding, weight: Float[Tensor, " C"]) -> TextEmbedding:
    """Between two embeddings, row by row; masks join."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return a | b if a.dtype == torch.bool else torch.lerp(a, b, weight.to(a).view(-1, *[1] * (a.ndim - 1)))

    pairs = {f.name: (getattr(start, f.name), getattr(end, f.name)) for f in fields(start)}
    return replace(start, **{name: mix(*pair) for name, pair in pairs.items() if pair[0] is not None})
