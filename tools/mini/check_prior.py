"""Measure saved priors on the same groups: the error of the clean estimate over object pixels, by noise level.

    cd tools
    python -m mini.check_prior --pack PACK ../src/psd_gs/assets/mini/prior ../runs/prior/pipeline

The things are those of the training; variants, colours, captions, lights, backgrounds and noises are new. Priors of
different sizes and patches see the same groups at their own size, and each at the time that spoils as much of the
layout: the mean over a square of 1/32 of the picture has the signal-to-noise ratio that a pixel has at ``t`` of the
cosine schedule.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from mini.train_prior import collate
from mini.world import Group, Groups
from psd_gs.cameras import Cameras
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import cosine_scheduler

LEVELS = (0.15, 0.35, 0.55, 0.75, 0.95)
SEED = 10**9
"""Far from those that training uses."""


class Labelled(MultiViewPrior):
    """A prior that is told the cameras of a batch as the numbers that they already are."""

    labels: torch.Tensor

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict:
        return {"class_labels": self.labels.repeat(len(text) // len(self.labels), 1)}


def own_time(prior: MultiViewPrior, t: float) -> float:
    """When pictures of a prior are as noisy as those of 32 pixels, which have no patches, are at ``t``."""
    plain = cosine_scheduler().alphas_cumprod
    wanted = plain[round(t * (len(plain) - 1))].logit() - 2 * math.log(prior.image_size / 32)
    return float((prior.alphas_cumprod.logit() - wanted).abs().argmin()) / (len(plain) - 1)


@torch.no_grad()
def object_error(prior: Labelled, batch: Group, t: float, generator: torch.Generator) -> float:
    """Mean squared error of the clean estimate where the object is, in [-1, 1]."""
    clean = prior.encode(batch.images.float().unflatten(0, (-1, prior.views)) / 255)
    levels = torch.full((len(clean),), t)
    x_t = prior.add_noise(clean, torch.randn(clean.shape, generator=generator), levels)
    prior.labels = batch.cameras
    text = prior.embed(batch.captions)
    estimate = prior.to_x0(prior.network(x_t, prior.timesteps(levels), text, text, None)[0], x_t, levels)
    alpha = batch.alpha.float().view(*clean.shape[:2], 1, *clean.shape[3:]) / 255
    return float((alpha * (estimate - clean).square()).mean() / alpha.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", type=Path, nargs="+", help="saved pipelines to compare")
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--batches", type=int, default=8, help="of 12 sets, per noise level")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("t".ljust(40), *(f"{t:>7}" for t in LEVELS), "   mean")
    for folder in args.pipelines:
        prior = Labelled.from_pretrained(folder, name=str(folder))
        groups = Groups(args.pack, prior.image_size, batch=1, flat=0.0, seed=SEED)
        errors = [0.0] * len(LEVELS)
        for i in range(args.batches):
            batch = collate([groups[12 * i + k] for k in range(12)])
            for level, t in enumerate(LEVELS):
                generator = torch.Generator().manual_seed(SEED + i)
                errors[level] += object_error(prior, batch, own_time(prior, t), generator) / args.batches
        mean = sum(errors) / len(errors)
        print(str(folder)[-40:].ljust(40), *(f"{x:7.4f}" for x in errors), f"{mean:7.4f}", flush=True)


if __name__ == "__main__":
    main()
