"""The prior on patches: warm start, schedule, saving, and a few steps of training."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mini import gpu_run
from mini.check_prior import own_time
from mini.checkpoint import Checkpoint
from mini.muon import COEFFICIENTS, Muon, orthogonal
from mini.networks import Model, grown, inflated, is_outer, make_text_encoder, make_unet, warm_start, widened
from mini.pack import Pack
from mini.train_prior import LEAST_NOISE, collate, kept_tensors, loss_of, make_optimizers, parse, start_model
from mini.words import make_tokenizer
from mini.world import Group
from mini_pack import write_pack
from torch.nn.functional import avg_pool2d, pixel_shuffle, pixel_unshuffle

from psd_gs.cameras import joined, mvdream_cameras, turntable
from psd_gs.priors import load_prior
from psd_gs.priors.multiview import MultiViewPrior, encode_prompts, from_cells, to_cells
from psd_gs.priors.multiview_pipeline import MultiViewPipeline, cosine_scheduler, set_views

CHANNELS = (32, 64, 64, 64)
CHECKPOINT = Path(gpu_run.__file__).parent / "checkpoints" / "prior"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    """Sixteen pixels in patches of two."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["a", "corgi", "red", "cube"], tmp_path_factory.mktemp("tokenizer"))
    vectors = torch.randn(len(tokenizer), 192, generator=torch.Generator().manual_seed(1))
    return Model(tokenizer, make_text_encoder(tokenizer, vectors), make_unet(16, 2, CHANNELS), 2)


def enlarged(x, factor: int):
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def conditions(rows: int) -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "timestep": torch.full((rows,), 600),
        "encoder_hidden_states": torch.randn(rows, 5, 192, generator=generator),
        "class_labels": torch.randn(rows, 16, generator=generator),
        "return_dict": False,
    }


@pytest.mark.parametrize("patch", [1, 2])
def test_a_prediction_of_velocities_of_means_and_of_clean_details(patch):
    """From the true ones the clean picture comes back; with a patch of 1 they are velocities of pixels."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 4, 3, 8, 8, generator=generator)
    alpha = torch.tensor([0.9, 0.2]).view(2, 1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    mean = lambda x: enlarged(avg_pool2d(x.flatten(0, 1), patch).unflatten(0, (2, 4)), patch)  # noqa: E731
    total = (alpha**2 + sigma**2 / patch**2).sqrt()
    velocity = (alpha * patch * mean(noise) - sigma / patch * mean(x0)) / total
    if patch == 1:
        torch.testing.assert_close(velocity, alpha * noise - sigma * x0)
    said = pixel_unshuffle(velocity + x0 - mean(x0), patch)
    torch.testing.assert_close(from_cells(said, alpha * x0 + sigma * noise, alpha, sigma, patch), x0)


def test_a_wider_first_level_answers_nearly_the_same():
    torch.manual_seed(0)
    old, new = make_unet(16, 1, CHANNELS), make_unet(16, 1, (48, *CHANNELS[1:]))
    x = torch.randn(4, 3, 16, 16)
    widened(old, new)
    with torch.no_grad():
        a, b = old(x, **conditions(4))[0], new(x, **conditions(4))[0]
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.9
    channels = new.conv_in.weight.unflatten(0, (16, 3)).flatten(2)  # in groups of two, with one that is new
    torch.testing.assert_close(channels[:, :2].flatten(0, 1), old.conv_in.weight.flatten(1))
    assert torch.cosine_similarity(channels[:, 0], channels[:, 2], dim=-1).abs().mean() < 0.3
    assert max(float(p.detach().abs().max()) for p in new.parameters()) < 20  # half precision holds them


@pytest.mark.parametrize("patch", [2, 4])
def test_a_warm_start_paints_what_the_old_prior_did_enlarged(model, patch):
    """At every noise, whatever the noise within the patches is: their means decide."""
    torch.manual_seed(0)
    old = MultiViewPipeline(model.tokenizer, model.text_encoder, make_unet(16, 1, CHANNELS), cosine_scheduler())
    new = Model(model.tokenizer, model.text_encoder, make_unet(16 * patch, patch, CHANNELS), patch)
    warm_start(new, old)
    small, large = MultiViewPrior(old), MultiViewPrior(new.pipeline())
    z = torch.randn(3, 4, 3, 16, 16)
    t = torch.tensor([0.1, 0.5, 0.97])
    alpha, sigma = large.alpha_sigma(t)
    within = torch.randn(3, 4, 3, 16 * patch, 16 * patch)
    within -= enlarged(avg_pool2d(within.flatten(0, 1), patch).unflatten(0, (3, 4)), patch)
    x_t = enlarged(z, patch) * (alpha**2 + (sigma / patch) ** 2).sqrt() + within
    cameras = joined([turntable(4, elevation=15.0)] * 3)
    text = small.embed(["a corgi"])
    expected, _ = small.predict(z, t, text, text, cameras)
    received, _ = large.predict(x_t, t, text, text, cameras)
    torch.testing.assert_close(received, enlarged(expected, patch), atol=1e-3, rtol=1e-3)


def test_a_network_on_larger_patches_says_what_it_said_of_their_means():
    torch.manual_seed(0)
    old = make_unet(16, 2, CHANNELS)
    new = inflated(old, 2, 4)
    x = torch.randn(4, 3, 16, 16)
    within = torch.randn(4, 3, 32, 32)
    within -= enlarged(avg_pool2d(within, 2), 2)
    with torch.no_grad():
        expected = pixel_shuffle(old(pixel_unshuffle(x, 2), **conditions(4))[0], 2)
        received = pixel_shuffle(new(pixel_unshuffle(enlarged(x, 2) + within, 4), **conditions(4))[0], 4)
    torch.testing.assert_close(received, enlarged(expected, 2), atol=1e-4, rtol=1e-3)


def test_a_level_can_be_added_outside_and_trained_alone():
    """Inside it the network has the weights that it had, and the schedule can stay what it was trained with."""
    torch.manual_seed(0)
    old, new = make_unet(16, 2, CHANNELS), make_unet(32, 2, (32, *CHANNELS))
    before = {name: value.clone() for name, value in new.state_dict().items()}
    grown(old, new)
    state = new.state_dict()
    for name, value in old.state_dict().items():
        if not is_outer(name, old) or name.startswith(("down_blocks", "up_blocks")):
            moved = re.sub(r"^down_blocks\.(\d)", lambda found: f"down_blocks.{int(found[1]) + 1}", name)
            assert torch.equal(state[moved], value)
    changed = {name for name, value in before.items() if not torch.equal(value, state[name])}
    assert not any(is_outer(name, new) for name in changed)
    with torch.no_grad():
        assert new(torch.randn(4, 12, 16, 16), **conditions(4))[0].shape == (4, 12, 16, 16)
    finer, coarser = cosine_scheduler(2, shift=4), cosine_scheduler(4)
    assert torch.equal(finer.alphas_cumprod, coarser.alphas_cumprod)
    assert finer.config.prediction_type == "sample"


@pytest.mark.parametrize("patch", [2, 4])
def test_the_mean_over_a_patch_has_the_signal_to_noise_ratio_of_a_pixel_without_patches(patch):
    plain, shifted = cosine_scheduler().alphas_cumprod, cosine_scheduler(patch).alphas_cumprod
    ratio = lambda a: a / (1 - a)  # noqa: E731
    torch.testing.assert_close(ratio(shifted)[:990] * patch**2, ratio(plain)[:990], rtol=2e-3, atol=1e-6)
    assert (shifted.diff() < 0).all()


@pytest.mark.parametrize(("size", "patch"), [(32, 1), (64, 4), (128, 4), (128, 8)])
def test_priors_are_compared_at_times_that_spoil_as_much_of_the_layout(size, patch):
    prior = SimpleNamespace(image_size=size, alphas_cumprod=cosine_scheduler(patch).alphas_cumprod)
    plain = cosine_scheduler().alphas_cumprod.logit()
    for t in (0.15, 0.55, 0.95):
        own = own_time(prior, t)
        ratio = prior.alphas_cumprod.logit()[round(999 * own)]  # logarithm of signal to noise, of a pixel
        assert float(ratio) + 2 * math.log(size / 32) == pytest.approx(float(plain[round(999 * t)]), abs=0.01)
        assert (own == pytest.approx(t, abs=1e-3)) == (size == 32 * patch)


def test_patches_are_nobodys_business_outside(model, tmp_path):
    """Saved and loaded as any pipeline; pixels go in and clean pixels come out."""
    model.pipeline().save_pretrained(tmp_path / "saved")
    prior = load_prior(str(tmp_path / "saved"))
    assert isinstance(prior, MultiViewPrior)
    assert (prior.family, prior.image_size, prior.latent_shape) == ("mini", 16, (3, 16, 16))
    cameras = turntable(4, elevation=15.0)
    images = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x0, t = prior.encode(images), torch.tensor([0.6])
    torch.testing.assert_close(prior.decode(x0), images)
    x_t = prior.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), t)
    text, empty = prior.embed(["a corgi"]), prior.embed([""])
    cond, neg = prior.predict(x_t, t, text, empty, cameras)
    assert cond.shape == neg.shape == x0.shape
    levels = [level[0] for level in prior.alpha_sigma(t)]
    with torch.no_grad():
        set_views(model.unet, 4)
        expected = model.unet(
            to_cells(x_t[0], *levels, 2),
            prior.timesteps(t).repeat(4),
            encoder_hidden_states=encode_prompts(model.tokenizer, model.text_encoder, ["a corgi"]).expand(4, -1, -1),
            class_labels=mvdream_cameras(cameras),
            return_dict=False,
        )[0]
    torch.testing.assert_close(cond[0], from_cells(expected, x_t[0], *levels, 2), atol=1e-4, rtol=1e-3)
    views = prior.pipeline("a red cube", cameras, num_inference_steps=2, output_type="pt").images
    assert views.shape == (1, 4, 3, 16, 16)


def group(apart: bool, seed: int = 0) -> Group:
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    alpha = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    alpha[..., 4:12, 4:12] = 255
    cameras = mvdream_cameras(turntable(4, elevation=15.0))
    texts = ["a corgi", "a red cube", "corgi", "a cube"] if apart else ["a corgi"] * 4
    return Group(picture, alpha, torch.full_like(alpha, 32), cameras, texts, apart)


def test_training_goes_on_at_another_size(model, tmp_path):
    """With the same weights; the pipeline that comes of it paints at the new size."""
    model.pipeline().save_pretrained(tmp_path / "small")
    folders = ["--pack", str(tmp_path), "--out", str(tmp_path), "--init", str(tmp_path / "small")]
    large = start_model(parse([*folders, "--size", "32", "--patch", "2"]))
    assert torch.equal(large.scheduler.alphas_cumprod, cosine_scheduler(2).alphas_cumprod)  # squares of 32 / 16 pixels
    for name, value in model.unet.state_dict().items():
        assert torch.equal(large.unet.state_dict()[name], value)
    large.pipeline().save_pretrained(tmp_path / "large")
    assert load_prior(str(tmp_path / "large")).image_size == 32


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="source archives are without it")
def test_the_checkpoint_of_the_repository_can_be_trained_on(tmp_path):
    folders = ["--pack", str(tmp_path), "--out", str(tmp_path), "--init", str(CHECKPOINT)]
    model = start_model(parse(folders))
    assert (model.patch, model.unet.config.sample_size, model.unet.config.in_channels) == (4, 32, 48)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.trained())


@pytest.mark.parametrize("apart", [False, True])
def test_pictures_of_different_things_do_not_see_each_other(model, apart):
    """Changing one picture changes the answers of its own set alone."""
    batch = collate([group(apart), group(apart, 1)])
    assert batch.apart == apart
    alone = 1 if apart else 4
    set_views(model.unet, alone)
    x = torch.randn(8, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0] += 1
    kwargs = conditions(8)
    with torch.no_grad():
        a, b = model.unet(x, **kwargs)[0], model.unet(other, **kwargs)[0]
    changed = (a - b).abs().amax((1, 2, 3)) > 1e-6
    assert changed.tolist() == [True] * alone + [False] * (8 - alone)


def test_the_loss_is_that_of_the_velocity_of_means_and_of_details_and_counts_emphasis(model):
    """For a network that says nothing, over pictures that the object fills."""
    for parameter in model.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    scheduler, batch = model.scheduler, collate([group(False)])
    batch.alpha.fill_(255)

    def errors(images) -> torch.Tensor:
        """Squares, by pixel, of what there was to say."""
        generator = torch.Generator().manual_seed(3)
        t = (torch.rand(3, 1, generator=generator)[0].sqrt() * 1000).long()
        clean = images.float() / 127.5 - 1
        noise = pixel_shuffle(torch.randn(4, 3, 4, 8, 8, generator=generator).flatten(1, 2), 2)
        signal, power = scheduler.alphas_cumprod[t], 1 - scheduler.alphas_cumprod[t]
        mean, mean_noise = (enlarged(avg_pool2d(x, 2), 2) for x in (clean, noise))
        velocity = (signal.sqrt() * 2 * mean_noise - power.sqrt() / 2 * mean) / (signal + power / 4).sqrt()
        return (velocity - (clean - mean) / power.clamp_min(LEAST_NOISE).sqrt()).square()

    loss = loss_of(model, batch, torch.Generator().manual_seed(3), torch.float32)
    assert float(loss.detach()) == pytest.approx(float(errors(batch.images).mean()), 1e-4)
    batch.emphasis[..., :7] = 96  # three times as much, and a cell counts as its strongest pixel
    weights = torch.ones(16)
    weights[:8] = 3
    expected = (errors(batch.images) * weights / weights.mean()).mean()
    weighted = loss_of(model, batch, torch.Generator().manual_seed(3), torch.float32)
    assert float(weighted.detach()) == pytest.approx(float(expected), 1e-4)


@pytest.mark.full
def test_training_learns_and_goes_on_from_its_checkpoint(model, tmp_path):
    from diffusers.training_utils import EMAModel

    batch = collate([group(False), group(False, 1)])

    def start() -> tuple:
        torch.manual_seed(0)
        fresh = Model(model.tokenizer, model.text_encoder, make_unet(16, 2, CHANNELS), 2)
        optimizers = make_optimizers(fresh, 2e-3)
        return fresh, optimizers, EMAModel(fresh.trained(), decay=0.9)

    def run(state, steps: range) -> list[float]:
        net, optimizers, ema = state
        losses = []
        for step in steps:
            loss = loss_of(net, batch, torch.Generator().manual_seed(step % 3), torch.float32)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            ema.step(net.trained())
            losses.append(float(loss.detach()))
        return losses

    table = model.text_encoder.get_input_embeddings().weight.clone()
    one = start()
    losses = run(one, range(6))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    def checkpoint(net, optimizers, ema) -> Checkpoint:
        return Checkpoint(tmp_path / "c.safetensors", kept_tensors(net, ema), optimizers)

    assert checkpoint(*one).load(step=0, seconds=0.0) == [0, 0.0]
    checkpoint(*one).save(step=6, seconds=90.0)
    more = run(one, range(6, 8))
    two = start()
    assert checkpoint(*two).load(step=0, seconds=0.0) == [6, 90.0]
    two[2].optimization_step = 6
    assert run(two, range(6, 8)) == pytest.approx(more, rel=1e-4)
    assert torch.equal(model.text_encoder.get_input_embeddings().weight, table)  # word vectors are fixed


def test_what_a_lent_machine_gives_back_joins_to_the_same_files(tmp_path, monkeypatch):
    """In pieces below the limit, as few files as may come back."""
    monkeypatch.setattr(gpu_run, "PIECE", 4000)
    saved = tmp_path / "out" / "pipeline" / "unet"
    saved.mkdir(parents=True)
    (saved / "weights").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "out" / "curve.jsonl").write_text("{}\n")
    for step in (5, 10):
        (tmp_path / "out" / f"samples-{step:06d}.png").write_bytes(b"png")
    (tmp_path / "back").mkdir()
    gpu_run.give_back(tmp_path / "out", tmp_path / "back")
    assert max(f.stat().st_size for f in (tmp_path / "back").iterdir()) <= 4000
    gpu_run.join(argparse.Namespace(folder=tmp_path / "back", out=tmp_path / "joined"))
    assert (tmp_path / "joined" / "pipeline" / "unet" / "weights").read_bytes() == bytes(range(256)) * 40
    assert (tmp_path / "joined" / "curve.jsonl").exists()
    assert [f.name for f in (tmp_path / "joined").glob("*.png")] == ["samples-000010.png"]


def test_a_slim_pack_keeps_the_good_meshes_as_they_are(tmp_path):
    pack = write_pack(tmp_path)
    arrays = dict(np.load(tmp_path / "meshes-t.npz"))
    np.savez(tmp_path / "meshes-t.npz", **gpu_run.chosen(arrays, {"t-table", "t-pillar"}))
    slim = Pack(tmp_path)
    for ident in ("t-table", "t-pillar"):
        np.testing.assert_array_equal(slim.mesh(ident).vertices, pack.mesh(ident).vertices)
        np.testing.assert_array_equal(slim.mesh(ident).triangles, pack.mesh(ident).triangles)
        np.testing.assert_array_equal(slim.mesh(ident).colours, pack.mesh(ident).colours)
    with pytest.raises(KeyError):
        slim.mesh("t-box")


@pytest.mark.parametrize("shape", [(40, 40), (12, 90), (90, 12)])
def test_orthogonal_keeps_singular_vectors(shape):
    """Singular vectors stay; singular values go through the quintic, one after another in double precision."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        a, b, c = COEFFICIENTS
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonal(matrix), (u @ values.diag() @ vh).float(), rtol=0, atol=1e-3)


def test_muon_steps_as_torchs_own():
    """On matrices, as far as bfloat16 tells."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(30, 50, generator=generator), torch.randn(3, 30, 50, generator=generator)
    ends = []
    for kind, options in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        p = torch.nn.Parameter(start.clone())
        optimizer = kind([p], 0.1, weight_decay=0.1, **options)
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
        ends.append(p.detach() - start)
    assert (ends[0] - ends[1]).norm() < 0.02 * ends[1].norm()
