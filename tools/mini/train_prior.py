"""Train the embedded prior: text and cameras to four views of an everyday thing.

    cd tools
    python -m mini.train_text --pack PACK --init PIPELINE --out ../runs/text
    python -m mini.train_prior --pack PACK --init ../runs/text --out ../runs/prior

Stop it whenever you like: the same command goes on from the last checkpoint. It starts from the weights of ``--init``:
of this network, of one with smaller patches or none, or of one with a level less, around which ``--channels`` with one
more put a level of a larger grid. Pictures are drawn while training, by ``--workers``
processes; ``--reuse`` trains each of them several times, under other noise, where drawing is slower than training.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from jaxtyping import Num
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pixel_unshuffle
from torch.utils.data import DataLoader

from mini.checkpoint import Checkpoint
from mini.muon import Muon
from mini.names import HELD
from mini.networks import LAYOUT, SHARD, VIEWS, Model, is_outer, make_unet, warm_start
from mini.world import SINGLE, Group, Groups, joined
from psd_gs.cameras import turntable
from psd_gs.export.pictures import contact_sheet
from psd_gs.priors.multiview import encode_prompts
from psd_gs.priors.multiview_pipeline import MultiViewPipeline, set_views

PLAIN = ("conv_in", "conv_out", "class_embedding")
"""Layers of the U-Net that meet pixels and camera numbers: not for Muon."""
TEXT_RATE = 0.1
"""Learning rate of the text encoder relative to the U-Net's: at the same rate noise collapses it."""
BACKGROUND = 0.05
"""Least weight in the loss of cells away from the object: their colour is drawn at random and would drown the words.

They count the more, the more the noisy picture tells of them; else assets that the prior makes stand in fog.
"""
LEAST_NOISE = 0.2
"""Errors of clean details count as those of a velocity do, 1 / sigma^2, but no more than at this sigma^2."""
OLD_PROMPTS = [row["prompt"] for row in json.loads((Path(__file__).parents[1] / "bench/prompts.json").read_text())]


def collate(groups: list[Group]) -> Group:
    """Groups of one kind to a batch; pictures stay bytes until they are on the device."""
    return joined(groups, groups[0].apart)


def moved(batch: Group, device: str) -> Group:
    tensors = {name: t.to(device, non_blocking=True) for name, t in vars(batch).items() if isinstance(t, Tensor)}
    return replace(batch, **tensors)


def in_cells(pictures: Num[Tensor, "B C H W"], patch: int) -> Num[Tensor, "B C p*p H/p W/p"]:
    """Pictures by colour, place in a cell, and cell."""
    return pixel_unshuffle(pictures, patch).unflatten(1, (-1, patch**2))


def loss_of(model: Model, batch: Group, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Squared error of the velocity of patch means and of clean details; text dropped 10 %, cameras 5 %.

    High noise is drawn more often (density proportional to t) and there is no min-SNR weighting, which nearly mutes
    it: that is where it is decided what the object is and that all views show the same one.
    """
    device = batch.images.device
    alone = 1 if batch.apart else VIEWS  # pictures that share time and text
    draws = torch.rand(3, len(batch.captions) // alone, generator=generator, device=device)
    times = (draws[0].sqrt() * len(model.scheduler.alphas_cumprod)).long().repeat_interleave(alone)
    keep_camera = (draws[1] >= 0.05).float().repeat_interleave(alone)
    dropped = (draws[2] < 0.10).tolist()
    captions = ["" if drop else text for text, drop in zip(batch.captions[::alone], dropped, strict=True)]
    clean = in_cells(batch.images, model.patch).float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=generator, device=device)
    signal = model.scheduler.alphas_cumprod.to(device)[times, None, None, None, None]
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    mean, mean_noise, less = clean.mean(2, keepdim=True), noise.mean(2, keepdim=True), sigma / model.patch
    total = (signal + less**2).sqrt()  # deviation of the noisy mean, see to_cells
    noisy = (alpha * clean).addcmul_(sigma, noise).add_((1 / total - 1) * (alpha * mean + sigma * mean_noise))
    set_views(model.unet, alone)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        text = encode_prompts(model.tokenizer, model.text_encoder, captions).repeat_interleave(alone, 0)
        labels = batch.cameras * keep_camera[:, None]
        out = model.unet(
            noisy.flatten(1, 2), times, encoder_hidden_states=text, class_labels=labels, return_dict=False
        )[0]
    out = out.float().unflatten(1, (-1, model.patch**2))
    said, velocity = out.mean(2, keepdim=True), (alpha * model.patch * mean_noise - less * mean) / total
    share = sigma.clamp_min(LEAST_NOISE**0.5).reciprocal()
    scaled = torch.addcmul((mean - said) * share + velocity - said, out - clean, share)
    told = signal / total**2  # of the mean of a cell
    background = BACKGROUND + (1 - BACKGROUND) * told[:, 0, 0]
    cover, emphasis = (in_cells(x, model.patch).amax((1, 2)).float() for x in (batch.alpha, batch.emphasis))
    weight = emphasis * (background + (1 - background) * cover / 255)
    return (weight / weight.mean((1, 2), keepdim=True) * scaled.square().mean((1, 2))).mean()


def make_optimizers(model: Model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the U-Net's inner matrices and filters, AdamW for the rest."""
    inner = [p for name, p in model.unet.named_parameters() if p.ndim >= 2 and not name.startswith(PLAIN)]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.unet.parameters() if id(p) not in chosen]
    text = [p for p in model.text_encoder.parameters() if p.requires_grad]
    groups = [{"params": rest}, {"params": text, "scale": TEXT_RATE}]
    return [
        Muon(inner, lr, weight_decay=1e-3),
        torch.optim.AdamW(groups, lr, betas=(0.9, 0.995), weight_decay=1e-3, fused=True),
    ]


@torch.no_grad()
def sample_sheet(pipeline: MultiViewPipeline, prompts: list[str], path: Path) -> None:
    """A contact sheet: the model's four views of each prompt."""
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.unet.config.sample_size * pipeline.config.patch
    cameras = turntable(VIEWS, elevation=15.0, radius=0.68, size=size)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(prompts, cameras, generator=generator, output_type="pt", num_inference_steps=15).images.cpu()
    captions = [text for prompt in prompts for text in (prompt, *[""] * (VIEWS - 1))]
    pictures = [*images.flatten(0, 1).permute(0, 2, 3, 1)]
    contact_sheet(pictures, path, captions=captions, columns=2 * VIEWS, size=size)


def looked_at() -> list[str]:
    """Prompts of the sheets: some of the old ones, and the development prompts."""
    return [*OLD_PROMPTS[:8:2], *(row["prompt"] for row in HELD["dev_prompts"][:2]), "a dog", "a chair"]


def kept_tensors(model: Model, ema: EMAModel) -> dict[str, Tensor]:
    """Of a checkpoint."""
    means = {f"ema.{i}": mean for i, mean in enumerate(ema.shadow_params)}
    return {f"model.{name}": value for name, value in model.state_dict().items()} | means


def start_model(args: argparse.Namespace) -> Model:
    """The networks of ``--init`` in the layout that is asked for."""
    torch.manual_seed(args.seed)
    old = MultiViewPipeline.from_pretrained(args.init)
    old.unet.float()
    old.text_encoder.float().get_input_embeddings().requires_grad_(False)
    unet = make_unet(args.size, args.patch, args.channels or old.unet.config.block_out_channels)
    model = Model(old.tokenizer, old.text_encoder, unet, args.patch, args.size / LAYOUT)
    warm_start(model, old)
    return model


def yielding(worker: int) -> None:
    """A process that draws takes what the networks' threads leave; Windows has no such order."""
    if hasattr(os, "nice"):
        os.nice(19)


def batches(args: argparse.Namespace, step: int) -> Iterator[Group]:
    """Drawn anew every ``--reuse`` steps, one of the last few between."""
    groups = Groups(args.pack, args.size, args.batch, args.flat, args.seed, args.single, args.loose)
    first = step // args.reuse
    numbers = ([b * args.batch + i for i in range(args.batch)] for b in range(first, 2**40))
    loader = DataLoader(
        groups, batch_sampler=numbers, collate_fn=collate, num_workers=args.workers,
        prefetch_factor=4 if args.workers else None, pin_memory=args.device == "cuda",
        worker_init_fn=yielding,
    )  # fmt: skip
    kept: deque[Group] = deque(maxlen=8 * args.reuse)
    generator = torch.Generator().manual_seed(args.seed)
    fresh = iter(loader)
    while True:
        if step % args.reuse == 0 or not kept:
            kept.append(moved(next(fresh), args.device))
            yield kept[-1]
        else:
            yield kept[int(torch.randint(len(kept), (), generator=generator))]
        step += 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, curve, sheets and the fp16 pipeline")
    parser.add_argument("--init", type=Path, required=True, help="saved pipeline to start from (fp16 will do)")
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--patch", type=int, default=4, help="pixels per side of a cell")
    parser.add_argument("--channels", type=int, nargs="+", help="of the U-Net's levels (default: as in --init)")
    parser.add_argument("--outer", type=int, default=0, help="steps in which a new level is trained alone")
    parser.add_argument("--batch", type=int, default=12, help="sets of four views")
    parser.add_argument("--flat", type=float, default=0.2, help="share of batches of emoji")
    parser.add_argument(
        "--loose", type=float, default=0.0, help="share of batches of single views of four times as many scenes"
    )
    parser.add_argument("--single", type=float, default=SINGLE, help="share of the scenes that show one thing")
    parser.add_argument("--reuse", type=int, default=1, help="steps per drawn batch")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--steps", type=int, default=8000, help="stop there")
    parser.add_argument("--minutes", type=float, default=1e9, help="or after so long in all, with the rate going to 0")
    parser.add_argument("--call", type=float, default=1e9, help="minutes after which this call ends")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--decay", type=float, default=0.25, help="last share of the run, over which lr goes to 0")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fp32", action="store_true", help="train in fp32 (CPUs without bf16 instructions)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--sheet-every", type=int, default=400, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = start_model(args).to(args.device)
    parameters = model.trained()
    optimizers = make_optimizers(model, args.lr)
    ema = EMAModel(parameters, decay=args.ema)
    inner = [p for name, p in model.unet.named_parameters() if not is_outer(name, model.unet)]
    inner += model.text_encoder.parameters()
    checkpoint = Checkpoint(args.out / "checkpoint.safetensors", kept_tensors(model, ema), optimizers)
    step, before = checkpoint.load(step=0, seconds=0.0)
    ema.optimization_step = step

    def publish() -> None:
        """The running mean of the weights as a pipeline, and what it paints."""
        ema.store(parameters)
        ema.copy_to(parameters)
        mean = copy.deepcopy(model)
        ema.restore(parameters)
        sample_sheet(mean.pipeline(), looked_at(), args.out / f"samples-{step:06d}.png")
        mean.half().pipeline().save_pretrained(args.out / "pipeline", max_shard_size=SHARD)

    curve = (args.out / "curve.jsonl").open("a")
    running, seen, start = None, 0, time.time()
    for batch in batches(args, step):
        spent = time.time() - start
        share = max(step / args.steps, (before + spent) / 60 / args.minutes)
        if share >= 1 or spent / 60 >= args.call:
            break
        generator = torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + step)
        # the fused attention's backward pass is slow on CPUs
        with sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext():
            loss = loss_of(model, batch, generator, torch.float32 if args.fp32 else torch.bfloat16)
        loss.backward()
        for p in inner if step < args.outer else ():
            p.grad = None
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = args.lr * min(1.0, (1 - share) / max(args.decay, 1e-9), (step + 1) / 200)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        ema.step(parameters)
        step += 1
        seen += len(batch.captions)
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {step}; lower --lr and go on from the last checkpoint")
        if not batch.apart:
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 20 == 0:
            row = {"step": step, "loss": running and round(running, 5), "views_per_s": seen / (time.time() - start)}
            print(json.dumps(row), file=curve, flush=True)
            print(row, flush=True)
        if step % args.save_every == 0:
            checkpoint.save(step=step, seconds=before + time.time() - start)
        if step % args.sheet_every == 0:
            publish()
    checkpoint.save(step=step, seconds=before + time.time() - start)
    publish()


if __name__ == "__main__":
    main()
