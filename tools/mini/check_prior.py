"""Measure saved priors on the same batches: the loss over object pixels, by noise level.

    cd tools
    python -m mini.check_prior --data ../runs/data ../src/psd_gs/assets/mini/prior ../runs/prior/pipeline

Geometry is that of the training data; colours, captions, lights, backgrounds and noises are new.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from mini.dataset import Sets
from mini.train_prior import VIEWS, Batch, draw_batch
from psd_gs.priors.multiview import MultiViewPipeline, encode_prompts

LEVELS = (150, 350, 550, 750, 950)
FIRST_SEED = 10**9
"""Far from those that training uses."""


@torch.no_grad()
def object_loss(pipeline: MultiViewPipeline, batch: Batch, t: int, generator: torch.Generator) -> float:
    """Mean squared error of v where the object is."""
    clean = batch.images.flatten(0, 1)
    noise = torch.randn(clean.shape, generator=generator)
    time = torch.full((len(clean),), t)
    noisy = pipeline.scheduler.add_noise(clean, noise, time)
    target = pipeline.scheduler.get_velocity(clean, noise, time)
    text = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, batch.captions).repeat_interleave(VIEWS, 0)
    v = pipeline.unet(noisy, time, encoder_hidden_states=text, class_labels=batch.cameras, return_dict=False)[0]
    return float((batch.alpha * (v - target).square()).mean() / batch.alpha.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", type=Path, nargs="+", help="saved pipelines to compare")
    parser.add_argument("--data", type=Path, required=True, help="folder that mini.dataset wrote")
    parser.add_argument("--batches", type=int, default=10, help="of 12 sets, per noise level")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = Sets(args.data)
    print("t of 1000".ljust(40), *(f"{t:>7}" for t in LEVELS), "   mean")
    for folder in args.pipelines:
        pipeline = MultiViewPipeline.from_pretrained(folder)
        pipeline.unet.float(), pipeline.text_encoder.float()
        losses = []
        for t in LEVELS:
            total = 0.0
            for i in range(args.batches):
                generator = torch.Generator().manual_seed(FIRST_SEED + i)
                batch = draw_batch(data, 12, pipeline.unet.config.sample_size, "cpu", random.Random(i), generator)
                total += object_loss(pipeline, batch, t, generator)
            losses.append(total / args.batches)
        print(
            str(folder)[-40:].ljust(40), *(f"{x:7.4f}" for x in losses), f"{sum(losses) / len(losses):7.4f}", flush=True
        )


if __name__ == "__main__":
    main()
