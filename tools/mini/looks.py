"""What named things look like, in few numbers: from these the text encoder learns it before any picture is painted."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mini.check_names import Asked, cameras_of
from mini.dataset import sample_light
from mini.scenes import phrased
from mini.world import World

SIDE = 8
"""Pixels per side of what counts of a render: colours on grey, and coverage, from four sides."""
NUMBERS = 96
"""Principal components of that."""
RENDERS = 8
"""Of each name: the first in its own colours, the others as captions have them."""


@dataclass(frozen=True)
class Looks:
    """Renders of all names that have meshes.

    Attributes:
        captions: what each shows.
        numbers: how it looks. Of components that vary more, less counts than of the picture (by the root of the
            deviation), so that rare shapes and colours are heard too.
        names: of all things.
        shown: which name each render is of.
    """

    captions: list[str]
    numbers: Float[Tensor, "N K"]
    names: list[str]
    shown: Int[Tensor, " N"]

    def means(self) -> Float[Tensor, "names K"]:
        """Over the renders of each name."""
        total = torch.zeros(len(self.names), self.numbers.shape[1]).index_add_(0, self.shown, self.numbers)
        return total / torch.bincount(self.shown)[:, None]

    def right(self, said: Float[Tensor, "R K"], rows: list[Asked]) -> float:
        """How often what is said of a name or synonym is nearest to its own look, among 20."""
        means = dict(zip(self.names, self.means(), strict=True))
        wins = 0
        for numbers, asked in zip(said, rows, strict=True):
            those = torch.stack([means[name] for name in (asked.name, *asked.others)])
            wins += int((those - numbers).square().sum(1).argmin()) == 0
        return wins / max(1, len(rows))


def looks_of(world: World, renders: int = RENDERS) -> Looks:
    """Of every name ``renders`` variants, drawn and captioned anew, from the cameras of samples."""
    names = [name.caption for name in world.solids]
    captions, thumbnails, shown = [], [], []
    for number in range(renders):
        for i, name in enumerate(world.solids):
            rng = random.Random(f"looks/{name.caption}/{number}")
            thing = world.thing(name, rng, coloured=0.3 if number else 0.0)
            light = sample_light(1, torch.Generator().manual_seed(rng.getrandbits(40)))[0]
            group = world.views(thing.surface, "", cameras_of(world.size), light, torch.full((3,), 0.5))
            pictures = torch.cat([group.images, group.alpha], 1).float() / 255
            thumbnails.append(F.adaptive_avg_pool2d(pictures, SIDE).flatten())
            captions.append(phrased(world.phrase(thing), rng))
            shown.append(i)
        print(f"\r{number + 1} of {renders} renders of {len(names)} names", end="", flush=True)
    print()
    return Looks(captions, components(torch.stack(thumbnails)), names, torch.tensor(shown))


def components(values: Float[Tensor, "N D"], count: int = NUMBERS) -> Float[Tensor, "N K"]:
    """The first principal components, divided by the root of their deviation."""
    values = values - values.mean(0)
    variance, axes = torch.linalg.eigh(values.T @ values / len(values))
    count = min(count, int((variance > 1e-6 * variance[-1]).sum()))
    return values @ axes[:, -count:] / variance[-count:] ** 0.25
