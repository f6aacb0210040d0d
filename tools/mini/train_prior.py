"""Train the embedded prior: text and cameras to four views of a toy-like object.

    cd tools
    python -m mini.dataset --out ../runs/data --sets 12288
    python -m mini.train_prior --data ../runs/data --out ../runs/prior --steps 8000      # two CPU cores, hours
    python -m mini.train_prior --data ../runs/data --out ../runs/prior --device cuda \
        --size 64 --batch 64 --steps 40000                                             # one GPU, minutes

Stop it whenever you like: the same command goes on from the last checkpoint. ``--init FOLDER``
starts from published fp16 weights instead, with the optimizer warmed up again. With
``torchrun --nproc-per-node 2 -m mini.train_prior --threads 1 ...`` every process draws its own batches and the
gradients are averaged: on two CPU cores that is faster than two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mini.dataset import Sets, compose, sample_background, sample_light, shade, trace_scene
from mini.scenes import Look, caption, named_slots, paint, sample_look, scene_of, vocabulary
from mini.tokenizer import train_tokenizer
from psd_gs.cameras import mvdream_cameras, turntable
from psd_gs.priors.multiview import MultiViewPipeline, cosine_scheduler, encode_prompts, set_views

VIEWS = 4
OUTER = ("conv_in", "conv_out", "class_embedding")
"""Layers of the U-Net that meet pixels and camera numbers: not for Muon."""
CHANNELS = (32, 64, 128, 192)
TEXT_WIDTH = 192
TEXT_RATE = 0.1
"""Learning rate of the text encoder relative to the U-Net's: at the same rate noise collapses it."""
BACKGROUND = 0.05
"""Least weight in the loss of pixels away from the object: their colour is drawn at random and would drown the words.

They count the more, the more the noisy picture tells of them; else assets that the prior makes stand in fog.
"""
LEAST_SHARE = 0.04
"""Parts smaller than this share of the object count no more per pixel than one of this share."""
PROMPTS = json.loads((Path(__file__).parents[1] / "bench" / "prompts.json").read_text())


def make_unet(size: int) -> UNet2DConditionModel:
    """MVDream's layout at toy size: two plain levels, two with self- and cross-attention."""
    plain, attends = "DownBlock2D", "CrossAttnDownBlock2D"
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=CHANNELS,
        down_block_types=(plain, plain, attends, attends),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(1, 2, 4, 6),  # numbers of heads, in spite of the name: 32 channels each
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text",  # pooled text beside the time: learns words long before cross-attention does
        addition_embed_type_num_heads=6,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    set_views(unet, VIEWS)
    return unet


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers, with token vectors 15 times CLIP's initial size.

    At CLIP's size (0.02) Adam's steps on the biases drown the words long before the U-Net has a use
    for them, and every prompt ends up as the same vector.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.embeddings.token_embedding.weight, std=0.3)
    nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.15)
    return encoder


class Model(nn.Module):
    """Both trained networks, so that one optimizer and one EMA serve them."""

    def __init__(self, tokenizer: CLIPTokenizer, size: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.unet = make_unet(size)
        self.text_encoder = make_text_encoder(tokenizer)


@dataclass
class Batch:
    """B sets: images in [-1, 1], how much of each pixel the object covers and how much it counts, cameras, captions."""

    images: Tensor
    alpha: Tensor
    emphasis: Tensor
    cameras: Tensor
    captions: list[str]


def emphasis_of(slots: Int[Tensor, "V H W"], named: list[int]) -> Float[Tensor, "V H W"]:
    """What each pixel counts: more on parts that the caption names, by the inverse root of their share of the object.

    A scarf or the wheels of a bus are a tenth of the object's pixels, but half of what the caption says.
    """
    emphasis = torch.ones_like(slots, dtype=torch.float32)
    for slot in named:
        part = slots == slot
        share = part.sum() / (slots > 0).sum().clamp_min(1)
        emphasis[part] = share.clamp_min(LEAST_SHARE).rsqrt()
    return emphasis


def draw_batch(
    data: Sets,
    n: int,
    size: int,
    device: str,
    rng: random.Random,
    generator: torch.Generator,
    named: float = 0.25,
    worn: float = 1.0,
) -> Batch:
    """New colours, captions, lights and backgrounds on randomly picked geometry.

    Args:
        named: share of objects whose parts captions name.
        worn: how much more often objects with accessories are drawn.
    """
    weights = torch.tensor([worn if any(item.accessory for item in scene.items) else 1.0 for scene in data.scenes])
    index = torch.multinomial(weights, n, replacement=True, generator=generator)
    looks = [sample_look(data.scenes[i], rng, named) for i in index]
    buffers = data.buffers[index].to(device)
    rgba = shade(buffers, [paint(look, rng) for look in looks], sample_light(n, generator, device))
    images = compose(rgba, sample_background(n, generator, device), size)
    alpha = torch.nn.functional.adaptive_avg_pool2d(rgba[:, :, 3:].flatten(0, 1), size)
    counts = torch.stack([emphasis_of(b, named_slots(look)) for b, look in zip(buffers.slots, looks, strict=True)])
    emphasis = torch.nn.functional.adaptive_avg_pool2d(counts.flatten(0, 1)[:, None], size)
    captions = [caption(look, rng) for look in looks]
    return Batch(2 * images - 1, alpha, emphasis, mvdream_cameras(buffers.cameras()), captions)


def loss_of(model: Model, batch: Batch, scheduler, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Plain v-prediction; text dropped 10 %, cameras 5 %.

    High noise is drawn more often (density proportional to t) and there is no min-SNR weighting,
    which nearly mutes it: that is where a prior of 32 pixels decides what the object is and that
    all views show the same one, and where score distillation uses it.
    """
    n, device = len(batch.captions), batch.images.device
    t = (torch.rand(n, generator=generator).sqrt() * len(scheduler.alphas_cumprod)).long().to(device)
    noise = torch.randn(batch.images.shape, generator=generator).to(device)
    drop_text = torch.rand(n, generator=generator) < 0.10
    keep_camera = (torch.rand(n, generator=generator) >= 0.05).to(device)
    captions = ["" if drop else text for text, drop in zip(batch.captions, drop_text, strict=True)]
    per_view = t.repeat_interleave(VIEWS)
    clean, noise = batch.images.flatten(0, 1), noise.flatten(0, 1)
    noisy = scheduler.add_noise(clean, noise, per_view)
    target = scheduler.get_velocity(clean, noise, per_view)
    labels = batch.cameras * keep_camera.repeat_interleave(VIEWS)[:, None]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        text = encode_prompts(model.tokenizer, model.text_encoder, captions).repeat_interleave(VIEWS, 0)
        v = model.unet(noisy, per_view, encoder_hidden_states=text, class_labels=labels, return_dict=False)[0]
    told = scheduler.alphas_cumprod.to(device)[per_view, None, None, None]
    background = BACKGROUND + (1 - BACKGROUND) * told
    alpha, emphasis = (torch.nn.functional.max_pool2d(x, 3, 1, 1) for x in (batch.alpha, batch.emphasis))
    weight = emphasis * (background + (1 - background) * alpha)
    weight = weight / weight.mean((1, 2, 3), keepdim=True)
    return (weight * (v.float() - target).square()).mean()


def make_optimizers(model: Model, lr: float) -> tuple[list[nn.Parameter], torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the U-Net's inner matrices (a convolution's filters are the rows of one), AdamW for the rest.

    Muon takes 2D parameters only, so it gets flat views of the first result; `share_gradients` serves them.
    """
    inner = [p for name, p in model.unet.named_parameters() if p.ndim >= 2 and not name.startswith(OUTER)]
    chosen = {id(p) for p in inner}
    rest = [p for p in model.unet.parameters() if id(p) not in chosen]
    views = [nn.Parameter(p.detach().flatten(1)) for p in inner]
    muon = torch.optim.Muon(views, lr, weight_decay=1e-3, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": rest}, {"params": list(model.text_encoder.parameters()), "scale": TEXT_RATE}]
    return inner, muon, torch.optim.AdamW(groups, lr, betas=(0.9, 0.995), weight_decay=1e-3, fused=True)


def share_gradients(muon: torch.optim.Muon, inner: list[nn.Parameter]) -> None:
    for view, p in zip(muon.param_groups[0]["params"], inner, strict=True):
        if p.grad is not None:
            view.grad, p.grad = p.grad.flatten(1), None


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Over all processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_((total / dist.get_world_size()).view_as(gradient))


def pipeline_of(model: Model) -> MultiViewPipeline:
    return MultiViewPipeline(model.tokenizer, model.text_encoder, model.unet, cosine_scheduler(), views=VIEWS)


@torch.no_grad()
def sample_sheet(model: Model, path: Path, rows: list[dict], size: int, seed: int = 0) -> None:
    """A contact sheet: the model's four views of each prompt beside the generator's own render."""
    pipeline = pipeline_of(model)
    pipeline.set_progress_bar_config(disable=True)
    cameras = turntable(VIEWS, elevation=15.0, radius=0.68, size=2 * size)
    generator = torch.Generator().manual_seed(seed)
    images = pipeline([r["prompt"] for r in rows], cameras, generator=generator, output_type="pt").images.cpu()
    scale, columns = max(1, 96 // size), 2
    cell_w, cell_h = (VIEWS + 1) * size * scale + 12, size * scale + 14
    sheet = Image.new("RGB", (columns * cell_w, -(-len(rows) // columns) * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        look, rng = Look.from_json(row["look"]), random.Random(i)
        truth = trace_scene(scene_of(look, rng), cameras[:1])
        rgba = shade(truth, [paint(look, rng)], torch.tensor([[0.35, 0.75, 0.55]]))
        strip = torch.cat([*images[i], compose(rgba, torch.ones(1, 3), size)[0, 0]], dim=2)
        tile = Image.fromarray((strip.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
        tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        x, y = (i % columns) * cell_w, (i // columns) * cell_h
        draw.text((x + 2, y + 1), row["prompt"] + (" (held out)" if row["held_out"] else ""), fill="black")
        sheet.paste(tile, (x, y + 13))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that mini.dataset wrote; new shards are picked up"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, curve, sheets and the fp16 pipeline")
    parser.add_argument("--init", type=Path, help="start from this saved pipeline (fp16 will do)")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--batch", type=int, default=12, help="sets of four views, per process")
    parser.add_argument("--steps", type=int, default=8000, help="stop there")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--decay", type=float, default=0.25, help="fraction of the steps, at the end, over which lr goes to 0"
    )
    parser.add_argument("--named", type=float, default=0.25, help="share of objects whose parts captions name")
    parser.add_argument("--worn", type=float, default=1.0, help="how much more often accessories are drawn")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fp32", action="store_true", help="train in fp32 (CPUs without bf16 instructions)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo" if args.device == "cpu" else "nccl")
    args.out.mkdir(parents=True, exist_ok=True)
    known = [folder for folder in (args.out / "tokenizer", args.init and args.init / "tokenizer") if folder]
    found = next((folder for folder in known if folder.is_dir()), None)
    tokenizer = CLIPTokenizer.from_pretrained(found) if found else train_tokenizer(vocabulary(), known[0])
    torch.manual_seed(args.seed)
    model = Model(tokenizer, args.size)
    if args.init:
        model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.init / "unet").state_dict())
        model.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(args.init / "text_encoder").state_dict())
    model.to(args.device)
    parameters = [*model.unet.parameters(), *model.text_encoder.parameters()]
    inner, *optimizers = make_optimizers(model, args.lr)
    ema = EMAModel(parameters, decay=args.ema)
    scheduler = cosine_scheduler()
    step = 0
    checkpoint = args.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state = load_file(checkpoint, args.device)
        step = int(state["step"])
        model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        for i, shadow in enumerate(ema.shadow_params):
            shadow.copy_(state[f"ema.{i}"])
        for optimizer in optimizers:
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                prefix = f"{type(optimizer).__name__}.{i}."
                optimizer.state[p] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        ema.optimization_step = step

    def save() -> None:
        state: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()} | {
            "step": torch.tensor(step)
        }
        state |= {f"ema.{i}": shadow for i, shadow in enumerate(ema.shadow_params)}
        for optimizer in optimizers:
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                state |= {f"{type(optimizer).__name__}.{i}.{k}": v for k, v in optimizer.state[p].items()}
        save_file({k: v.contiguous() for k, v in state.items()}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        ema.store(parameters)
        ema.copy_to(parameters)
        clean = Model(tokenizer, args.size)
        clean.load_state_dict({k: v.cpu() for k, v in model.state_dict().items()})
        ema.restore(parameters)
        pipeline_of(clean).to(dtype=torch.float16).save_pretrained(args.out / "pipeline")
        if step % (4 * args.save_every) == 0 or step == args.steps:
            rows = PROMPTS[::3] if step < args.steps else PROMPTS
            sample_sheet(clean.float(), args.out / f"samples-{step:06d}.png", rows, args.size)

    data = Sets(args.data)
    curve = (args.out / "curve.jsonl").open("a")
    running, start, seen = None, time.time(), 0
    while step < args.steps:
        seed = args.seed * 1_000_003 + step + rank * 500_000
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        batch = draw_batch(data, args.batch, args.size, args.device, rng, generator, args.named, args.worn)
        # the fused attention's backward pass is slow on CPUs
        with sdpa_kernel(SDPBackend.MATH) if args.device == "cpu" else nullcontext():
            loss = loss_of(model, batch, scheduler, generator, torch.float32 if args.fp32 else torch.bfloat16)
        loss.backward()
        if world > 1:
            average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        left = (args.steps - step) / max(1, args.decay * args.steps)
        rate = args.lr * min(1.0, left, (step + 1) / 200)
        share_gradients(optimizers[0], inner)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        ema.step(parameters)
        step += 1
        seen += args.batch * VIEWS * world
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {step}; lower --lr and go on from the last checkpoint")
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and step % 20 == 0:
            row = {
                "step": step,
                "loss": round(running, 5),
                "views_per_s": round(seen / (time.time() - start), 1),
                "sets": len(data),
            }
            curve.write(json.dumps(row) + "\n")
            curve.flush()
            print(row, flush=True)
        if step % args.save_every == 0 or step == args.steps:
            if rank == 0:
                save()
            data.refresh()


if __name__ == "__main__":
    main()
