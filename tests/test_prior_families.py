"""Stable Diffusion 1.5, 2.1, XL and 3 through diffusers: saved, reloaded, converted, distilled; all offline."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from painted import RedReward, tiny_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from bench.memory import GPU, stages, without_data

from psd_gs import TextTo3DPipeline
from psd_gs.cameras import turntable
from psd_gs.cli.generate import Generate
from psd_gs.config import to_dict
from psd_gs.entries import PRIORS
from psd_gs.errors import BackendError, ConfigError, InputError, ModelError
from psd_gs.guidance.base_scores import Prediction
from psd_gs.models import AUTO_MEMORY, MARGIN, resolve
from psd_gs.priors import load_prior, mini, prior_family
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.memory import PRESETS
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.mvdream import MVDreamPrior
from psd_gs.priors.sd3 import EDGE, StableDiffusion3Prior
from psd_gs.priors.stable_diffusion import StableDiffusionPrior, StableDiffusionXLPrior
from psd_gs.testing import check_prior

FAMILIES = list(tiny_models.PIPELINES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every family as ``save_pretrained`` leaves it."""
    root = tmp_path_factory.mktemp("families")
    for name, make in tiny_models.PIPELINES.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def priors(folders):
    return {name: load_prior(str(folder)) for name, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def prior(request, priors):
    return priors[request.param]


def draw(prior, groups: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(groups, prior.views, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))


def inputs(prior, groups: int = 1):
    cameras = turntable(groups * prior.views, elevation=20)
    return (draw(prior, groups), torch.linspace(0.3, 0.8, groups), *texts(prior), cameras)


def texts(prior):
    both = prior.embed(["a red cube", ""])
    return both[:1], both[1:]


# --- contract --------------------------------------------------------------------------------------------------------


def test_families(priors, folders):
    assert [type(priors[n]) for n in ("sd15", "sd21", "sdxl", "sd3")] == [
        StableDiffusionPrior,
        StableDiffusionPrior,
        StableDiffusionXLPrior,
        StableDiffusion3Prior,
    ]
    expected = {name: PRIORS[name].family for name in FAMILIES}
    assert {name: prior_family(str(folder)) for name, folder in folders.items()} == expected
    assert {name: prior.family for name, prior in priors.items()} == expected
    assert all(prior.image_size == 64 and prior.name == str(folders[name]) for name, prior in priors.items())


def test_reward_and_judge_of_a_folder_are_those_of_its_family(folders, tmp_path):
    for name, folder in folders.items():
        assert resolve(str(folder), "auto", "auto") == (str(folder), *PRIORS[name].companions)
    tiny_models.save_mvdream(tmp_path / "mvdream")
    assert resolve(str(tmp_path / "mvdream"), "auto", "auto")[1:] == ("hpsv2.1", "pickscore")
    embedded = str(mini.folder("prior"))
    assert resolve(embedded, "auto", "auto") == (embedded, "mini", "mini-judge")
    config = Generate(prompt="a corgi", prior=str(folders["sdxl"])).resolve("a corgi")
    assert (config.reward, config.judge, config.prior_size) == ("hpsv2.1", "pickscore", 512)


def test_the_kit_passes(prior):
    check_prior(prior)


def test_predictions_by_hand(priors):
    """Both branches one by one through the bare network, and the textbook conversions, written out per family."""
    for name, prior in priors.items():
        x_t, t, text, negative, cameras = inputs(prior, groups=2)
        found = prior.predict(x_t, t, text, negative, cameras)
        for embedding, estimate in zip((text, negative), found, strict=True):
            for g in range(2):
                rows = range(prior.views * g, prior.views * (g + 1))
                out = bare_output(name, prior, x_t[g], t[g], embedding, cameras[torch.tensor(rows)])
                torch.testing.assert_close(estimate[g], clean(name, prior, x_t[g], out, t[g]), atol=2e-4, rtol=1e-3)
        assert (found[0] - found[1]).abs().max() > 1e-4, "the text has no say"


def test_one_text_is_computed_once(prior):
    x_t, t, text, negative, cameras = inputs(prior, groups=2)
    both, rows = prior.predict(x_t, t, text, negative, cameras), []
    hook = prior.denoiser.register_forward_pre_hook(
        lambda _, args, options: rows.append(len(args[0] if args else options["hidden_states"])), with_kwargs=True
    )
    alone = prior.predict(x_t, t, negative, negative, cameras)
    hook.remove()
    assert rows == [2 * prior.views]
    assert torch.equal(*alone)
    torch.testing.assert_close(alone[0], both[1], atol=1e-4, rtol=1e-4)


def bare_output(name: str, prior, x: Tensor, t: Tensor, text, cameras) -> Tensor:
    sequence = text.sequence.expand(len(x), -1, -1)
    step = (999 * t).round().long()
    with torch.no_grad():
        if name == "sd3":
            tau = 3 * t / (1 + 2 * t)
            pooled = text.pooled.expand(len(x), -1)
            return prior.pipeline.transformer(x, sequence, pooled, (1000 * tau).expand(len(x))).sample
        if name == "sdxl":
            sizes = torch.tensor([[1024.0, 1024, 0, 0, 64, 64]])
            added = {"text_embeds": text.pooled, "time_ids": sizes}
            return prior.unet(x, step, sequence, added_cond_kwargs=added).sample
        if name == "mvdream":
            from psd_gs.cameras import mvdream_cameras

            return prior.unet(x, step, sequence, class_labels=mvdream_cameras(cameras)).sample
        return prior.unet(x, step, sequence).sample


def clean(name: str, prior, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
    if name == "sd3":
        return x - 3 * t / (1 + 2 * t) * out
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0)[(999 * t).round().long()].float()
    if name == "sd21":
        return a.sqrt() * x - (1 - a).sqrt() * out
    return (x - (1 - a).sqrt() * out) / a.sqrt()


def test_conversions_recover_x0_exactly(prior):
    """A network that knew noise and x0 would be read back exactly, in every parametrization."""
    x0, noise, t = draw(prior, 3, 1), draw(prior, 3, 2), torch.tensor([0.05, 0.5, 0.9])
    alpha, sigma = prior.alpha_sigma(t)
    x_t = prior.add_noise(x0, noise, t)
    kind = "flow" if isinstance(prior, StableDiffusion3Prior) else prior.prediction_type
    output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0}[kind]
    torch.testing.assert_close(prior.to_x0(output, x_t, t), x0, atol=2e-5, rtol=1e-4)


def test_levels(prior):
    t = torch.linspace(0, 1, 101)
    alpha, sigma = prior.alpha_sigma(t)
    assert ((alpha > 0) & (alpha < 1) & (sigma > 0) & (sigma < 1)).all()
    assert (alpha.diff(dim=0) <= 0).all()
    if isinstance(prior, StableDiffusion3Prior):
        torch.testing.assert_close(alpha + sigma, torch.ones_like(alpha))
        assert sigma.min() == pytest.approx(EDGE)
        torch.testing.assert_close(prior.timesteps(t), 1000 * sigma.flatten())
    else:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_flow_levels_are_the_schedulers(priors):
    """Our shifted times are those at which diffusers' sampler evaluates the network; it begins with pure noise, ours
    stay a little away from it, for the signal must not vanish."""
    prior = priors["sd3"]
    scheduler = prior.pipeline.scheduler
    ours = prior.flow_time(torch.linspace(1e-3, 1, 1000)).flip(0)
    torch.testing.assert_close(ours[1:], scheduler.sigmas[1:1000])
    assert (float(ours[0]), float(scheduler.sigmas[0])) == (pytest.approx(1 - EDGE), 1)


def test_embeddings(prior):
    text, empty = texts(prior)
    assert text.sequence.dtype == torch.float32
    assert text.sequence.shape == empty.sequence.shape
    assert empty.sequence.norm() > 0.1, "the trust region of the negative embedding would be a point"
    assert not text.sequence.requires_grad
    assert (text.pooled is not None) == (prior.family in ("sdxl", "sd3"))
    assert (text.sequence - empty.sequence).abs().max() > 1e-3


def test_gradients_reach_the_negative_embedding_and_no_weight(prior):
    x_t, t, text, negative, cameras = inputs(prior)
    negative.sequence.requires_grad_(True)
    cond, neg = prior.predict(x_t, t, text, negative, cameras)
    (gradient,) = torch.autograd.grad(neg.square().sum(), negative.sequence, retain_graph=True)
    assert gradient.abs().max() > 0
    (none,) = torch.autograd.grad(cond.square().sum(), negative.sequence)
    assert none.abs().max() < 1e-6 * gradient.abs().max()
    modules = (prior.denoiser, prior.vae, *prior._text_encoders())
    assert not any(p.requires_grad for module in modules for p in module.parameters())


def test_images_and_latents(prior):
    images = torch.rand(2, prior.views, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    x0 = prior.encode(images)
    config = prior.vae.config
    mean = prior.vae.encode(2 * images.flatten(0, 1) - 1).latent_dist.mean
    torch.testing.assert_close(x0.flatten(0, 1), (mean - (config.shift_factor or 0)) * config.scaling_factor)
    (gradient,) = torch.autograd.grad(x0.square().sum(), images)
    assert gradient.abs().max() > 0
    decoded = prior.vae.decode(mean).sample
    torch.testing.assert_close(prior.decode(x0).flatten(0, 1), (0.5 * decoded + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_other_image_sizes(folders):
    prior = load_prior(str(folders["sdxl"]), image_size=128)
    assert (prior.image_size, prior.latent_shape) == (128, (4, 16, 16))
    estimates = prior.predict(*inputs(prior))
    assert estimates[0].shape == (1, 1, 4, 16, 16)
    with pytest.raises(ConfigError, match="multiple of 64, received 100"):
        load_prior(str(folders["sdxl"]), image_size=100)


def test_the_third_text_encoder_of_sd3_is_optional(tmp_path):
    tiny_models.sd3(with_t5=False).save_pretrained(tmp_path / "sd3")
    prior = load_prior(str(tmp_path / "sd3"))
    assert prior.predict(*inputs(prior))[0].isfinite().all()


def test_the_number_of_cameras_is_checked(prior):
    x_t, t, text, negative, cameras = inputs(prior, 2)
    with pytest.raises(InputError, match=rf"expected {2 * prior.views} cameras"):
        prior.predict(x_t, t, text, negative, cameras[:1])


def test_renders_above_white_reach_the_encoder_clamped_and_still_learn(priors):
    prior = priors["sd15"]
    images = torch.full((1, 1, 3, 64, 64), 1.3, requires_grad=True)
    x0 = prior.encode(images)
    assert torch.equal(x0, prior.encode(torch.ones(1, 1, 3, 64, 64)))
    x0.sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(folders, priors, dtype):
    for name in ("sd15", "sdxl", "mvdream"):
        exact, half = priors[name], load_prior(str(folders[name]), dtype=dtype)
        assert half.dtype == getattr(torch, dtype)
        overflows = name == "sdxl" and dtype == "float16"  # its autoencoder does in half precision
        assert half.vae.dtype == (torch.float32 if overflows else getattr(torch, dtype))
        a, b = exact.predict(*inputs(exact))[0], half.predict(*inputs(half))[0]
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.05 * a.norm()


@pytest.mark.parametrize(("native", "wide"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_float16_but_where_it_overflows(monkeypatch, native, wide):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    kinds = (MultiViewPrior, MVDreamPrior, StableDiffusionPrior, StableDiffusionXLPrior, StableDiffusion3Prior)
    assert [kind.fast_dtype("cuda:1") for kind in kinds] == [torch.float16] * 4 + [wide]
    assert {kind.fast_dtype("cpu") for kind in kinds} == {torch.float32}
    with without_data():
        pipeline = tiny_models.PIPELINES["sdxl"]().to(torch.float16)
        prior = StableDiffusionXLPrior(pipeline, "sdxl", device=GPU)
    assert (prior.dtype, prior.vae.dtype) == (torch.float16, torch.bfloat16)


# --- preference score distillation on a flow -------------------------------------------------------------------------


def test_the_preference_identity_on_sd3(priors):
    """``(v_w - (n_w - x0)) - (v_l - (n_l - x0)) = -(x0_w - x0_l) / tau``: velocities and clean estimates agree."""
    prior = priors["sd3"]
    x0, noise, t = draw(prior, 1, 3), draw(prior, 1, 4), torch.tensor([0.4])
    text, negative = texts(prior)
    cameras = turntable(1)
    tau = prior.alpha_sigma(t)[1]
    sides = []
    for n in (noise, -noise):
        x_t = prior.add_noise(x0, n, t)
        torch.testing.assert_close(x_t, (1 - tau) * x0 + tau * n)
        v = prior.network(x_t, prior.timesteps(t), text, negative, cameras)
        estimates = prior.predict(x_t, t, text, negative, cameras)
        guided_v = v[1] + 4 * (v[0] - v[1])
        guided = Prediction(x0, x_t[None], estimates[0][None], estimates[1][None]).guided(4.0)[0]
        sides.append((guided_v - (n - x0), guided))
        eps = x_t + (1 - tau) * guided_v
        torch.testing.assert_close((x_t - (1 - tau) * guided) / tau, eps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close((x0 - guided) / tau, guided_v - (n - x0), atol=1e-4, rtol=1e-4)  # SDS in v
    (score_w, x0_w), (score_l, x0_l) = sides
    torch.testing.assert_close(score_w - score_l, -(x0_w - x0_l) / tau, atol=1e-4, rtol=1e-4)


# --- through the trainer ---------------------------------------------------------------------------------------------


def test_three_steps_of_distillation(prior):
    options = {name: value for name, value in to_dict(tiny_config()).items() if isinstance(value, dict) and value}
    options["guidance"] |= {"preference": "psd"}
    made = TextTo3DPipeline(prior, RedReward())
    result = made("a red cube", steps=3, overrides=options)
    assert len(result.gaussians) > 0
    assert all(p.isfinite().all() for p in result.gaussians.params().values())
    assert result.logs == {} or all(value == value for value in result.logs.values())
    assert result.negative.sequence.shape == prior.embed([""]).sequence.shape
    again = made("a red cube", steps=3, overrides=options)
    for a, b in zip(result.gaussians.params().values(), again.gaussians.params().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("quick_files")
def test_the_refined_negative_embedding_can_be_used_again(tmp_path, priors):
    """With its pooled part, where the model has one."""
    options = {name: value for name, value in to_dict(tiny_config()).items() if isinstance(value, dict) and value}
    made = TextTo3DPipeline(priors["sdxl"], RedReward())
    made("a red cube", steps=1, overrides=options).save(tmp_path)
    more = options | {"negative_embedding": str(tmp_path / "negative.safetensors")}
    assert made("a red cube", steps=1, overrides=more).negative.pooled is not None


def test_out_of_memory_keeps_the_run_and_says_what_helps(tmp_path, priors, monkeypatch):
    made = TextTo3DPipeline(priors["sd15"], RedReward())
    trainer = made.trainer(replace(tiny_config(), prompt="a ball", steps=5), tmp_path)
    predict, calls = priors["sd15"].predict, []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(*arguments)

    monkeypatch.setattr(priors["sd15"], "predict", full)
    with pytest.raises(BackendError, match=r"out of memory in step \d+ with \d+ Gaussians\. .*--resume.*--vram 24, 12"):
        list(trainer.run())
    monkeypatch.undo()
    resumed = made.trainer(trainer.config, tmp_path)
    resumed.load_checkpoint()
    assert [event.step for event in resumed.run()][-1] == 5


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("vram", [size for size in PRESETS if size])
def test_memory_presets_change_nothing_but_memory(folders, priors, vram):
    for name, plain in priors.items():
        small = load_prior(str(folders[name]), vram=vram)
        for a, b in zip(plain.predict(*inputs(plain, 2)), small.predict(*inputs(small, 2)), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
        images = torch.rand(2, plain.views, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        x0 = plain.encode(images)
        torch.testing.assert_close(small.encode(images), x0, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(small.decode(x0), plain.decode(x0), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="expected one of 0, 24, 12, 8 GB, received 6"):
        load_prior(str(folders["sd15"]), vram=6)


@pytest.mark.full
def test_offloading_moves_the_denoiser_away_between_calls():
    """On a device without data, for which any other than the CPU stands."""
    with without_data() as meter:
        pipeline = tiny_models.PIPELINES["sd15"]()
        prior = StableDiffusionPrior(pipeline, "sd15", device=GPU, memory=PRESETS[8])

        def where() -> str:
            return prior.denoiser.device.type

        assert (where(), prior.vae.device.type) == ("cpu", GPU.type), "it comes when it is asked"
        embedding = tiny_embedding(prior)
        images = torch.rand(1, 1, 3, 64, 64, device=GPU, requires_grad=True)
        x_t = prior.encode(images)
        t = torch.full((1,), 0.5, device=GPU)
        prior.predict(x_t, t, embedding, embedding, turntable(1, size=64).to(GPU))
        assert where() == GPU.type
        with torch.enable_grad():
            prior.decode(x_t)
        assert where() == GPU.type, "a denoiser in a graph has to stay"
        with torch.no_grad():
            prior.decode(x_t)
        assert where() == "cpu"
        prior.memory = PRESETS[0]
        prior.predict(x_t, t, embedding, embedding, turntable(1, size=64).to(GPU))
        prior.encode(images)
        assert where() == GPU.type
        assert meter.peak >= meter.now > 0


def test_one_text_encoder_at_a_time_and_no_denoiser_beside_it():
    with without_data() as meter:
        with unset_fake_temporarily():  # its scheduler looks at its own numbers
            pipeline = tiny_models.PIPELINES["sd3"]()
        prior = StableDiffusion3Prior(pipeline, "sd3", device=GPU)
        embedding = tiny_embedding(prior)
        x_t = torch.rand(1, 1, *prior.latent_shape, device=GPU)
        prior.predict(x_t, torch.full((1,), 0.5, device=GPU), embedding, embedding, turntable(1, size=64).to(GPU))
        assert prior.denoiser.device.type == GPU.type
        seen = []

        def note(module, *_):
            everybody = [e.device.type for e in (*prior._text_encoders(), prior.denoiser)]
            seen.append((everybody.count(GPU.type), module.device.type))

        for encoder in prior._text_encoders():
            encoder.register_forward_hook(note)
        prior.embed(["a corgi"])
        assert seen == [(1, GPU.type)] * 3
        assert {e.device.type for e in (*prior._text_encoders(), prior.denoiser)} == {"cpu"}
        assert meter.peak > 0


def tiny_embedding(prior):
    width = prior.denoiser.config.get("cross_attention_dim") or prior.denoiser.config.joint_attention_dim
    pooled = prior.denoiser.config.get("pooled_projection_dim")
    return TextEmbedding(torch.rand(1, 7, width, device=GPU), torch.rand(1, pooled, device=GPU) if pooled else None)


@pytest.mark.full
@pytest.mark.parametrize(("vram", "limit"), [(0, 9.5), (12, 11.0), (8, 7.5)])
@pytest.mark.parametrize(("family", "also"), [("mvdream", set()), ("imagedream", {"picture"})])
def test_four_views_fit(family, also, vram, limit):
    """Of a run with every part: texts, a turned pair, refinement, scoring; the context and workspaces are not in it."""
    peaks = stages(family, vram)
    assert set(peaks) == {"texts", "encode", "turn", "predict", "reward", "refine", "backward", "scoring"} | also
    assert max(peaks.values()) <= limit
    if vram != 12:
        assert max(peaks.values()) <= PRIORS[family].peaks[vram == 8]


@pytest.mark.full
@pytest.mark.parametrize(("family", "name"), [("sd", "sd21"), ("sdxl", "sdxl"), ("sd3", "sd3")])
def test_little_memory_holds_every_family(family, name):
    """Denoiser and reward are away while they have nothing to do, in the backward pass too."""
    assert max(stages(family, 8).values()) <= PRIORS[name].peaks[1] <= 7.5


def test_auto_takes_mvdream_where_it_fits():
    assert math.ceil(MARGIN * PRIORS["mvdream"].peaks[0]) == AUTO_MEMORY


def test_the_encoder_is_checkpointed():
    """The graph of one encoding, with and without."""
    kept = {}
    for memory in (PRESETS[0], PRESETS[12]):
        with without_data() as meter:
            prior = StableDiffusionPrior(tiny_models.PIPELINES["sd15"](), "sd15", device=GPU, memory=memory)
            images = torch.rand(1, 1, 3, 256, 256, device=GPU, requires_grad=True)
            before = meter.now
            x0 = prior.encode(images)
            kept[memory.checkpoint] = meter.now - before
            x0.sum().backward()
    assert kept[True] < 0.6 * kept[False]


# --- damage ----------------------------------------------------------------------------------------------------------


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "truncated": (lambda f: shorten(f / "unet" / "diffusion_pytorch_model.safetensors"), "is truncated: expected"),
    "no weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "expected the weights of a network, received no safetensors file",
    ),
    "no component": (lambda f: shutil.rmtree(f / "text_encoder"), "expected the files of a CLIPTextModel"),
    "other width": (lambda f: edit(f / "unet" / "config.json", cross_attention_dim=48), "of another shape: "),
    "other depth": (lambda f: edit(f / "text_encoder" / "config.json", num_hidden_layers=3), "missing: encoder.layers"),
    "other class": (lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"), "received FluxPipeline"),
    "other component": (lambda f: edit(f / "model_index.json", unet=["diffusers", "Nope"]), "has no class Nope"),
    "remote code": (lambda f: edit(f / "model_index.json", unet=["evil", "Net"]), "Remote code is never run"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "expected a diffusers pipeline with model_index.json"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "received invalid JSON"),
    "other levels": (lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="flow"), "v_prediction or"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_line(tmp_path, folders, damage):
    folder = tmp_path / "sd15"
    shutil.copytree(folders["sd15"], folder)
    change, part = DAMAGES[damage]
    change(folder)
    with pytest.raises(ModelError) as caught:
        load_prior(str(folder))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_2022_still_load(tmp_path, folders, priors):
    """Old names of the autoencoder's attention; position_ids and a prefix in the text encoder."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "sd15"
    shutil.copytree(folders["sd15"], folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in load_file(file).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    save_file(state, file, {"format": "pt"})
    file = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(state, file, {"format": "pt"})
    prior = load_prior(str(folder))
    for a, b in zip(prior.predict(*inputs(prior)), priors["sd15"].predict(*inputs(priors["sd15"])), strict=True):
        assert torch.equal(a, b)
    images = torch.rand(1, 1, 3, 64, 64)
    assert torch.equal(prior.encode(images), priors["sd15"].encode(images))


def test_modules_stay_plain_sdpa(priors):
    """No xformers: torch's own attention everywhere."""
    names = {type(p).__name__ for prior in priors.values() for p in prior.denoiser.attn_processors.values()}
    assert names <= {"AttnProcessor2_0", "MultiViewAttnProcessor", "JointAttnProcessor2_0"}
    assert isinstance(priors["sd15"].denoiser, nn.Module)


@pytest.mark.full
def test_the_step_benchmark_runs_tiny_without_a_gpu(capsys, monkeypatch):
    from bench import step

    from psd_gs import benchmark

    monkeypatch.setattr(benchmark, "WARM", 0)
    monkeypatch.setattr(step, "REPEATS", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    step.main(["--case", "mvdream"])
    out = capsys.readouterr().out
    assert "no CUDA GPU: tiny networks" in out
    for part in ("| mvdream: step with a pair | 4 x ", "bare networks, ms: encode "):
        assert part in out
    assert "mvdream at full size, TFLOPs: sds 3.8, psd 13.2; ideal psd / sds 3.43, every 3 steps 1.81" in out
