"""Base scores beside SDS, and Perp-Neg, against closed forms and limits."""

from __future__ import annotations

import gc
import io
import math
from dataclasses import replace

import pytest
import torch
from test_priors import tiny_pipeline
from toy import (
    MEAN,
    R_ON,
    LinearReward,
    ToyPrior,
    cameras_for,
    random_images,
)

from psd_gs.cameras import orbit, turntable
from psd_gs.config.guidance import (
    GuidanceConfig,
    ISMConfig,
    NegativeConfig,
    PSDConfig,
    VSDConfig,
)
from psd_gs.errors import ConfigError
from psd_gs.guidance import vsd as vsd_module
from psd_gs.guidance.base_scores import asd, csd, nfsd, sds
from psd_gs.guidance.denoiser import Denoiser
from psd_gs.guidance.guide import Guidance
from psd_gs.guidance.ism import invert
from psd_gs.guidance.perp_neg import perp_neg, perpendicular, prompts_of_views
from psd_gs.guidance.vsd import Lora, vsd
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.rewards.base import CallableReward

OFF = NegativeConfig(mode="off")
WORST = "broken, blurry"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setting(t=(0.3, 0.7), progress: float = 0.5, negative: str = "", seed: int = 0):
    """A denoiser of the toy, latents of a render and two noises."""
    prior, groups = ToyPrior(), len(t)
    texts = [prior.embed([text]) for text in ("y", negative, "")]
    if negative:  # somewhere else than the prompt
        texts[1].sequence[:, 0] = -MEAN
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(prior, torch.tensor(t), cameras_for(groups), *texts, progress, generator)
    return denoiser, prior.encode(random_images(groups)).detach(), randn(2, groups, 1, 1, 8, 8, seed=9)


def residual_from_epsilon(eps, noise, denoiser):
    """A residual in x0 for what the literature writes as ``eps - noise``."""
    alpha, sigma = denoiser.levels(denoiser.t)
    return sigma / alpha * (eps - noise)


def epsilons(prediction, denoiser):
    """Conditional and negative predictions as noises."""
    alpha, sigma = denoiser.levels(denoiser.t)
    return [(prediction.x_t - alpha * x) / sigma for x in (prediction.cond, prediction.neg)]


# --- base scores -----------------------------------------------------------------------------------------------------


def test_csd_is_what_sds_gains_per_unit_of_scale():
    denoiser, x0, noise = setting()
    prediction = denoiser.noised(x0, noise)
    config = GuidanceConfig()
    classifier = csd(prediction, denoiser, config)
    low, high = (sds(prediction, denoiser, replace(config, guidance_scale=s)) for s in (5.0, 6.0))
    torch.testing.assert_close(high - low, classifier)
    limit = sds(prediction, denoiser, replace(config, guidance_scale=1e7)) / 1e7
    torch.testing.assert_close(limit, classifier, atol=1e-5, rtol=1e-4)
    cond, neg = epsilons(prediction, denoiser)
    torch.testing.assert_close(classifier, residual_from_epsilon(cond, neg, denoiser))


def test_csd_moves_from_the_empty_to_the_negative_prompt():
    for progress, share in ((0.0, 0.0), (0.5, 0.4), (1.0, 0.8)):
        denoiser, x0, noise = setting(progress=progress, negative=WORST)
        prediction = denoiser.noised(x0, noise)
        null = denoiser.predict_null(prediction.x_t, denoiser.t)
        actual = csd(prediction, denoiser, GuidanceConfig(csd_negative=(0.0, 0.8)))
        torch.testing.assert_close(actual, (1 - share) * null + share * prediction.neg - prediction.cond)
        assert (null - prediction.neg).abs().max() > 0.1


def test_nfsd_denoises_by_the_negative_prompt_and_by_itself_where_clean():
    denoiser, x0, noise = setting(t=(0.1, 0.7), negative=WORST)
    prediction = denoiser.noised(x0, noise)
    alpha, sigma = denoiser.levels(denoiser.t)
    cond, neg = epsilons(prediction, denoiser)
    null = (prediction.x_t - alpha * denoiser.predict_null(prediction.x_t, denoiser.t)) / sigma
    expected = torch.stack([null[:, 0], (null - neg)[:, 1]], 1) + 7.5 * (cond - null)
    torch.testing.assert_close(
        nfsd(prediction, denoiser, GuidanceConfig()), residual_from_epsilon(expected, 0, denoiser)
    )


def test_asd_without_a_shift_is_classifier_guidance_and_with_one_compares_two_times():
    denoiser, x0, noise = setting(seed=3)
    prediction = denoiser.noised(x0, noise)
    still = asd(prediction, denoiser, GuidanceConfig(asd_shift=0.0))
    torch.testing.assert_close(still, 6.5 * csd(prediction, denoiser, GuidanceConfig()))

    denoiser, *_ = setting(seed=3)
    u = torch.rand(2, generator=torch.Generator().manual_seed(3))
    later = denoiser.t + 0.1 * (denoiser.t - 0.02) * u
    alpha, sigma = denoiser.levels(later)
    x_later = alpha * x0 + sigma * noise
    cond_later, _ = denoiser.branches(x_later, later, denoiser.text, denoiser.negative)
    cond, neg = epsilons(prediction, denoiser)
    guided = neg + 7.5 * (cond - neg)
    expected = residual_from_epsilon(guided, (x_later - alpha * cond_later) / sigma, denoiser)
    torch.testing.assert_close(asd(prediction, denoiser, GuidanceConfig()), expected)


def test_ism_equals_ddim_inversion_in_epsilon():
    denoiser, x0, noise = setting(t=(0.3, 0.75))
    config = GuidanceConfig(ism=ISMConfig(delta=(0.06, 0.06)))
    actual = sds(invert(x0, noise[:1], denoiser, config), denoiser, config)
    for g, strides in enumerate(([0.2, 0.039], [0.2, 0.2, 0.2, 0.089])):
        one, t, x = denoiser[torch.tensor([g])], 1e-3, None
        for stride in [0.0, *strides, 0.06]:
            if x is None:
                alpha, sigma = one.levels(torch.tensor([t]))
                x = alpha * x0[g : g + 1] + sigma * noise[0, g : g + 1]
            now, after = torch.tensor([t]), torch.tensor([t + stride])
            (a, s), (a_next, s_next) = one.levels(now), one.levels(after)
            eps = (x - a * one.predict_null(x[None], now)[0]) / s
            x, t = a_next / a * x + (s_next - a_next / a * s) * eps, t + stride
        alpha, sigma = one.levels(one.t)
        cond, neg = one.predict(x[None], one.t)
        guided = (x - alpha * (neg + 7.5 * (cond - neg))[0]) / sigma
        expected = residual_from_epsilon(guided, eps, one)[0]
        torch.testing.assert_close(actual[0, g], expected, rtol=1e-5, atol=1e-7)


def test_ism_anneals_its_interval_and_vanishes_with_it():
    norms = []
    for progress in (0.0, 0.4, 0.8, 1.0):
        denoiser, x0, noise = setting(t=(0.5,), progress=progress)
        denoiser = replace(denoiser, text=denoiser.null)
        config = GuidanceConfig(guidance_scale=0.0, ism=ISMConfig(delta=(0.2, 0.001)))
        prediction = invert(x0, noise[:1, :1], denoiser, config)
        norms.append(float(sds(prediction, denoiser, config).norm()))
    assert norms[0] > norms[1] > norms[2] == norms[3]
    assert norms[2] < 0.02 * norms[0]


# --- vsd -------------------------------------------------------------------------------------------------------------


def tiny_prior() -> MultiViewPrior:
    return MultiViewPrior(tiny_pipeline())


def bowl(images, prompts):
    """A black box: how dark the images are."""
    return -images.mean((1, 2, 3))


def view_steps(guidance: Guidance, steps: range, x: torch.Tensor):
    """Gradient descent of four views; returns them and all logs."""
    cameras, logs = turntable(4, size=8), []
    for step in steps:
        images = x.detach().requires_grad_(True)
        out = guidance(images, cameras, step / 10, step)
        (gradient,) = torch.autograd.grad(out.loss, images)
        assert gradient.isfinite().all()
        x = images - 0.1 * gradient
        logs.append(out.logs)
    return x.detach(), logs


def test_an_untrained_copy_makes_vsd_classifier_guidance():
    prior = tiny_prior()
    guidance = Guidance(prior, "a red cube", GuidanceConfig(method="vsd", preference="none"))
    denoiser = guidance._denoiser(torch.tensor([0.4]), turntable(4), 0.5)
    x0, noise = torch.rand(1, 4, 3, 8, 8), torch.randn(2, 1, 4, 3, 8, 8)
    prediction = denoiser.noised(x0, noise)
    with torch.no_grad():
        actual = vsd(prediction, denoiser, GuidanceConfig())
    torch.testing.assert_close(actual, 6.5 * (prediction.neg - prediction.cond), rtol=1e-4, atol=1e-5)


def test_the_copy_learns_the_renders_and_leaves_the_prior_alone():
    prior = tiny_prior()
    x_t, t, cameras = torch.randn(1, 4, 3, 8, 8), torch.tensor([0.5]), turntable(4)
    text, null = prior.embed(["a red cube"]), prior.embed([""])
    before = prior.predict(x_t, t, text, null, cameras)
    config = GuidanceConfig(method="vsd", preference="none", vsd=VSDConfig(lr=3e-2))
    guidance = Guidance(prior, "a red cube", config)
    denoiser = guidance._denoiser(t, cameras, 0.5)
    x0 = torch.full((1, 4, 3, 8, 8), 0.5)
    noised = denoiser.add_noise(x0, torch.randn(1, *x0.shape), t)

    @torch.no_grad()
    def error(guidance, denoiser):
        return float((guidance.lora(denoiser, noised) - x0).square().mean())

    start = error(guidance, denoiser)
    for _ in range(15):
        guidance.lora.train(denoiser, x0)
    assert error(guidance, denoiser) < 0.95 * start
    assert all(torch.equal(a, b) for a, b in zip(before, prior.predict(x_t, t, text, null, cameras), strict=True))
    name = guidance.lora.name
    del guidance, denoiser
    gc.collect()
    assert not [k for k, _ in prior.unet.named_parameters() if name in k]
    assert all(torch.equal(a, b) for a, b in zip(before, prior.predict(x_t, t, text, null, cameras), strict=True))


@pytest.mark.full
def test_a_resumed_vsd_run_equals_an_uninterrupted_one():
    config = GuidanceConfig(method="vsd", psd=PSDConfig(start=0.0), negative=OFF, vsd=VSDConfig(lr=1e-2))
    reward = CallableReward(bowl)
    whole = Guidance(tiny_prior(), "a red cube", config, reward=reward, seed=1)
    x, _ = view_steps(whole, range(3), torch.full((1, 4, 3, 8, 8), 0.5))
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    end, logs = view_steps(whole, range(3, 6), x)
    buffer.seek(0)
    resumed = Guidance(tiny_prior(), "a red cube", config, reward=reward, seed=2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    end_resumed, logs_resumed = view_steps(resumed, range(3, 6), x)
    assert torch.equal(end, end_resumed)
    assert logs == logs_resumed
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert "lora_loss" in logs[0]


@pytest.mark.full
def test_copies_on_one_prior_do_not_meet():
    prior, config = tiny_prior(), GuidanceConfig(method="vsd", preference="none", vsd=VSDConfig(lr=1e-2))
    alone, _ = view_steps(Guidance(tiny_prior(), "a cube", config), range(3), torch.full((1, 4, 3, 8, 8), 0.5))
    first, second = (Guidance(prior, "a cube", config, seed=seed) for seed in (0, 5))
    x = torch.full((1, 4, 3, 8, 8), 0.5)
    for step in range(3):
        view_steps(second, range(step, step + 1), x)
        x, _ = view_steps(first, range(step, step + 1), x)
    assert torch.equal(x, alone)


def test_vsd_needs_a_network_and_peft(monkeypatch):
    with pytest.raises(ConfigError, match=r"can take LoRA weights.*received toy.*method asd"):
        Guidance(ToyPrior(), "y", GuidanceConfig(method="vsd", preference="none"))
    monkeypatch.setattr(vsd_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "psd-gs\[vsd\]"'):
        Lora(tiny_prior(), VSDConfig(), torch.Generator())


# --- Perp-Neg --------------------------------------------------------------------------------------------------------


def around(*angles: tuple[float, float]):
    azimuth, elevation = torch.tensor(angles).T
    return orbit(azimuth, elevation, torch.full_like(azimuth, 2.0), torch.full_like(azimuth, 40.0), 8, 8)


def test_perp_neg_prompts_turn_with_the_camera():
    directions = TextEmbedding(torch.eye(4)[:, None], pooled=torch.eye(4))
    cameras = around((0, 0), (45, 10), (-90.01, 0), (135, 0), (180, 0), (30, 70))
    positive, perp = prompts_of_views(directions, cameras)
    rows = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(positive.sequence[:, 0], torch.tensor(rows), atol=2e-4, rtol=0)
    assert torch.equal(positive.pooled, positive.sequence[:, 0])
    first, second = ([row[0].index(1) for row in text.sequence.tolist()] for text in perp.texts)
    assert (first[:5], second[:5]) == ([0, 0, 1, 1, 1], [1, 1, 0, 0, 0])
    front = [0, -1.574]
    side = [0, -1.5735]
    forty_five = [-(4 * math.exp(-0.25) - 2.426)] * 2
    behind = [-(math.exp(-0.25) - 0.606), -(math.exp(-0.25) + 0.967)]
    expected = torch.tensor([front, forty_five, side, behind, [-0.394, -1.967], [0, 0]]).T
    torch.testing.assert_close(perp.weights, expected, atol=1e-3, rtol=0)


def test_perpendicular_parts_leave_the_prompt_alone():
    positive, null, first, second = (randn(2, 3, 1, 1, 4, 4, seed=i) for i in range(4))
    main = positive - null
    for other in (first, second):
        assert (perpendicular(other - null, main) * main).sum((-3, -2, -1)).abs().max() < 1e-12
    weights = torch.tensor([[-1.0, 0.0, -0.5], [-2.0, 0.0, 0.0]], dtype=torch.float64)[..., None]
    actual = perp_neg(positive, null, (first, second), weights) - null
    torch.testing.assert_close(actual[:, 1], main[:, 1])
    along = (actual * main).sum((-3, -2, -1)) / main.square().sum((-3, -2, -1))
    torch.testing.assert_close(along, torch.ones_like(along))
    u = first[0, 2] - null[0, 2]
    v = main[0, 2]
    expected = v - 0.5 * (u - (u * v).sum() / (v * v).sum() * v)
    torch.testing.assert_close(actual[0, 2], expected)


class Sided(ToyPrior):
    """A single-view prior with another mean for every direction."""

    def embed(self, prompts):
        text = super().embed(prompts)
        for row, prompt in zip(text.sequence, prompts, strict=True):
            row[0] += 0.5 * len(prompt) * R_ON * bool(prompt)
        return text


@pytest.mark.parametrize("perp_neg", [False, True])
def test_groups_keep_their_prompts(perp_neg):
    guidance = Guidance(Sided(), "y", GuidanceConfig(preference="none", perp_neg=perp_neg))
    denoiser = guidance._denoiser(torch.tensor([0.2, 0.5, 0.8]), cameras_for(3), 0.5)
    x_t, some = randn(2, 3, 1, 1, 8, 8), torch.tensor([2, 0])
    together = denoiser.predict(x_t, denoiser.t)
    for whole, part in zip(together, denoiser[some].predict(x_t[:, some], denoiser.t[some]), strict=True):
        torch.testing.assert_close(part, whole[:, some])
    for n in range(2):
        alone = denoiser.predict(x_t[n : n + 1], denoiser.t)
        torch.testing.assert_close(alone[0][0], together[0][n])
    assert (together[0][:, 0] - together[0][:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("method", ["recon", "csd", "ism", "asd"])
def test_perp_neg_goes_with_methods_and_refinement(method):
    negative = NegativeConfig(start=0.0, every=1, t_max=1.0)
    config = GuidanceConfig(method=method, perp_neg=True, psd=PSDConfig(start=0.0, t_max=1.0), negative=negative)
    guidance = Guidance(Sided(), "y", config, reward=LinearReward())
    images = random_images(3)
    out = guidance(images, cameras_for(3), 0.5, 0)
    (gradient,) = torch.autograd.grad(out.loss, images)
    assert gradient.isfinite().all()
    assert out.logs["negative_shift"] > 0


def test_perp_neg_takes_four_predictions_and_acts():
    images, cameras = random_images(2), cameras_for(2)
    gradients, calls = [], []
    for on in (False, True):
        prior = Sided()
        config = GuidanceConfig(preference="none", perp_neg=on)
        guidance = Guidance(prior, "y", config)
        gradients.append(torch.autograd.grad(guidance(images, cameras, 0.5, 0).loss, images)[0])
        calls.append(prior.calls)
    assert calls == [[2], [2, 2]]
    assert not torch.equal(*gradients)
