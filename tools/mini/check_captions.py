"""Which of 20 names a prior itself holds for right of a render: the one under which it errs least about the noise.

    cd tools
    python -m mini.check_captions --pack PACK ../runs/prior/pipeline

The diffusion classifier of Li et al. (arXiv 2303.16203). Unlike :mod:`mini.check_names` it needs no samples: it takes
a tenth of the time, priors of small pictures are not at a loss for being blurred, and it tells much sooner whether a
training gets anywhere. Each render meets the same noise under all its names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mini.check_names import Asked, asked_for, drawn
from mini.check_prior import Labelled
from mini.pack import Pack
from mini.scenes import article
from mini.world import World

TIME = 0.9
"""Of the noise: names differ most where little else is told."""


@torch.no_grad()
def errors(prior: Labelled, world: World, asked: Asked, number: int, seed: int) -> Float[Tensor, " N"]:
    """Mean squared error of the clean estimate of a render of ``asked``, under its own name and under the others."""
    group = drawn(world, asked.name, number)
    names = [asked.name, *asked.others]
    clean = prior.encode(group.images.float()[None] / 255)
    levels = torch.full((1,), TIME)
    x_t = prior.add_noise(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)), levels)
    x_t, levels = x_t.expand(len(names), *clean.shape[1:]), levels.expand(len(names))
    prior.labels = group.cameras
    captions = [article(name) if world.names[name].article else name for name in names]
    text = prior.embed([caption for caption in captions for _ in range(prior.views)])
    estimate = prior.to_x0(prior.network(x_t, prior.timesteps(levels), text, text, None)[0], x_t, levels)
    return (estimate - clean).square().flatten(1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", type=Path, nargs="+", help="saved pipelines to compare")
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--rows", type=int, help="no more than so many of the list")
    parser.add_argument("--renders", type=int, default=1, help="of each name")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pack = Pack(args.pack)
    for folder in args.pipelines:
        prior = Labelled.from_pretrained(folder, name=str(folder))
        world = World(pack, prior.image_size)
        rows = asked_for(world)[: args.rows]
        found = [
            errors(prior, world, asked, number, number * len(rows) + i)
            for number in range(args.renders)
            for i, asked in enumerate(rows)
        ]
        right = sum(int(row.argmin()) == 0 for row in found)
        higher = sum(float(row[1:].mean() / row[0]) for row in found) / len(found)
        print(f"{str(folder)[-40:]:40} {right} of {len(found)}, other names err {higher:.3f} times as much", flush=True)


if __name__ == "__main__":
    main()
