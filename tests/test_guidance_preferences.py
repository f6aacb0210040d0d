"""Preference scores beside PSD against closed forms, and every combination of the two switches in short runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from test_guidance_methods import bowl, randn, setting, tiny_prior, view_steps
from test_guidance_toy import off_manifold, optimize, reward_gain
from toy import (
    COND_VAR,
    MEAN,
    LinearReward,
    ToyPrior,
    cameras_for,
    flatten,
    preferring,
    random_images,
)

from psd_gs.config.guidance import (
    DreamDPOConfig,
    DreamFLConfig,
    GuidanceConfig,
    ISMConfig,
    JudgingConfig,
    Method,
    NegativeConfig,
    PairConfig,
    Preference,
    PSDConfig,
    RewardSDSConfig,
    TimestepConfig,
    VSDConfig,
)
from psd_gs.errors import ConfigError
from psd_gs.guidance.dreamdpo import rank
from psd_gs.guidance.guide import Guidance
from psd_gs.guidance.preference import Candidates
from psd_gs.guidance.rewardsds import noise_weights, preview
from psd_gs.rewards.base import CallableReward
from psd_gs.rewards.combine import Scored, WeightedSum

OFF = NegativeConfig(mode="off")


# --- DreamDPO --------------------------------------------------------------------------------------------------------


def ballot(gap: float, **more) -> Candidates:
    """Two noises, the second better by ``gap``."""
    rewards = torch.tensor([0.2, 0.2 + gap], dtype=torch.float64).view(2, 1, 1)
    unguided = randn(2, 1, 1, 1, 4, 4, seed=2)
    return Candidates(randn(2, 1, 1, 1, 4, 4), rewards, randn(2, 1, 1, 1, 4, 4, seed=1), unguided, **more)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_dreamdpo_is_winner_only_below_tau_and_the_contrast_above(form):
    for gap, smooth, push in ((0.009, False, 0), (0.011, False, 1), (0.004, True, 0.4), (0.5, True, 1)):
        candidates = ballot(gap)
        verdict = preferring("dreamdpo", DreamDPOConfig(form=form, smooth=smooth)).decide(candidates)
        loser = candidates.residuals if form == "paper" else candidates.unguided
        expected = candidates.residuals[1] - push * loser[0]
        torch.testing.assert_close(verdict.score + candidates.residuals.mean(0), expected)
        assert float(verdict.logs["kappa"]) == pytest.approx(push)


def test_without_a_threshold_dreamdpo_always_contrasts_and_the_first_wins_a_tie():
    for smooth in (False, True):
        candidates = ballot(0.0)
        verdict = preferring("dreamdpo", DreamDPOConfig(threshold=0.0, smooth=smooth)).decide(candidates)
        assert (int(verdict.best), int(verdict.worst)) == (0, 1)
        expected = candidates.residuals[0] - (0 if smooth else 1) * candidates.residuals[1]
        torch.testing.assert_close(verdict.score + candidates.residuals.mean(0), expected)


def test_judges_vote():
    up, down, nothing = (torch.tensor(x).view(2, 1, 1) for x in ([0.1, 0.4], [0.5, 0.2], [math.nan, 0.3]))

    def verdict(*panel):
        best, worst, gap, valid = rank(list(panel))
        return int(best), int(worst), pytest.approx(float(gap)), bool(valid)

    assert verdict(up) == (1, 0, 0.3, True)
    assert verdict(up, down, down) == (0, 1, 0.3, True)
    assert verdict(up, up, down) == (1, 0, 0.3, True)
    assert verdict(up, down) == (1, 0, 0.3, True)  # the first decides a draw
    assert verdict(up, nothing) == (1, 0, 0.3, True)
    assert verdict(nothing, down) == (0, 1, math.inf, True)
    assert verdict(nothing)[3] is False
    many = randn(5, 3, 4)
    best, worst, gap, _ = rank([many])
    assert torch.equal(best, many.argmax(0))
    assert torch.equal(worst, many.argmin(0))
    torch.testing.assert_close(gap, many.amax(0) - many.amin(0))


def test_a_panel_overrules_its_first_judge():
    """And without any verdict the base score remains."""
    config = GuidanceConfig(preference="dreamdpo", dreamdpo=DreamDPOConfig(threshold=0.0))
    cameras = cameras_for(2)

    class Sulk(LinearReward):
        def score(self, images, prompts, cameras):
            return -super().score(images, prompts, cameras)

    def gradient(config, *judges):
        images = random_images(2)
        (out,) = torch.autograd.grad(
            Guidance(ToyPrior(), "y", config, reward=judges)(images, cameras, 0.5, 0).loss, images
        )
        return out

    panel = [LinearReward(), Sulk(), Sulk()]
    assert torch.equal(gradient(config, *panel), gradient(config, Sulk()))
    voting = replace(config, dreamdpo=replace(config.dreamdpo, vote=True))
    combined = WeightedSum([Scored(reward, 1.0) for reward in panel], "a,b,c")
    assert torch.equal(gradient(voting, combined), gradient(config, Sulk()))
    assert torch.equal(gradient(voting, LinearReward()), gradient(config, LinearReward()))
    assert not torch.equal(gradient(config, LinearReward()), gradient(config, Sulk()))
    silent = replace(config, preference="rewardsds", rewardsds=RewardSDSConfig(n_noises=2))
    nan = CallableReward(lambda images, prompts: [math.nan] * len(images))
    torch.testing.assert_close(gradient(config, nan), gradient(silent, nan))


# --- RewardSDS -------------------------------------------------------------------------------------------------------


def test_noise_weights():
    rewards = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2]).view(5, 1, 1)
    expected = {
        "min-max": [-0.05, 0.45, 0, 0.45, -0.05],
        "best": [0, 1, 0, 0, 0],
        "softmax": rewards.flatten().softmax(0).tolist(),
    }
    for kind, weights in expected.items():
        torch.testing.assert_close(noise_weights(rewards, kind).flatten(), torch.tensor(weights, dtype=torch.float32))
    for n in range(2, 9):
        torch.testing.assert_close(noise_weights(randn(n, 3, 2), "min-max").sum(0), torch.full((3, 2), 0.8).double())
    torch.testing.assert_close(noise_weights(rewards[:3], "min-max").flatten(), torch.tensor([-0.1, 0.9, 0]))


def test_rewardsds_lies_between_sds_and_a_contrast():
    """0.9 T - 0.1 B = 0.8 (T + B) / 2 + 0.5 (T - B)."""
    residuals, rewards = randn(6, 2, 1, 1, 4, 4), randn(6, 2, 1, seed=1)
    verdict = preferring("rewardsds", RewardSDSConfig(n_noises=6)).decide(Candidates(residuals, rewards, residuals))
    order = rewards[:, :, 0].argsort(0, descending=True)
    top, bottom = (torch.stack([residuals[order[i], [0, 1]] for i in rows]).mean(0) for rows in ((0, 1), (4, 5)))
    expected = 0.8 * (top + bottom) / 2 + 0.5 * (top - bottom)
    torch.testing.assert_close(verdict.score + residuals.mean(0), expected)


def test_previews_follow_the_probability_flow():
    denoiser, x0, noise = setting(t=(0.6, 0.9))
    prediction = denoiser.noised(x0, noise)
    assert torch.equal(preview(prediction, denoiser, 3.0, 1), prediction.guided(3.0))
    alpha, sigma = denoiser.levels(denoiser.t)
    basis, z = denoiser.prior.basis, flatten(prediction.x_t) - (alpha * MEAN.view(8, 8)).flatten(2)
    exact = MEAN + (COND_VAR / (alpha**2 * COND_VAR + sigma**2)).sqrt().flatten(2) * (z @ basis @ basis.T)
    errors = [
        float((flatten(preview(prediction, denoiser, 1.0, n)) @ basis - exact @ basis).norm()) for n in (1, 10, 100)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02 * float((exact @ basis).norm())


# --- DreamFL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimate_t_max", [0.0, 1.0])
def test_dreamfl_adds_the_pixel_gradient_at_the_given_ratio(estimate_t_max):
    reward, cameras = LinearReward(), cameras_for(3)
    dreamfl = DreamFLConfig(weight=0.6, ceiling=1e9, estimate_t_max=estimate_t_max)
    config = GuidanceConfig(preference="dreamfl", dreamfl=dreamfl)
    images = random_images(3)
    prior = ToyPrior()
    out = Guidance(prior, "y", config, reward=reward)(images, cameras, 0.5, 0)
    (total,) = torch.autograd.grad(out.loss, images)
    plain = Guidance(ToyPrior(), "y", GuidanceConfig(preference="none"))(images, cameras, 0.5, 0)
    (base,) = torch.autograd.grad(plain.loss, images)
    push = total - base
    torch.testing.assert_close(push.flatten(1).norm(dim=1), 0.6 * base.flatten(1).norm(dim=1))
    direction = -reward.direction.expand(3, 3, 64).flatten(1)  # down the loss is up the reward, in all channels
    assert torch.cosine_similarity(push.flatten(1), direction, dim=1).min() > 1 - 1e-9
    assert out.logs["reward_share"] == pytest.approx(0.6, rel=1e-5)
    assert prior.decoded == (3 if estimate_t_max else 0)
    if not estimate_t_max:
        assert out.logs["reward"] == pytest.approx(
            float(reward.score(images.detach().clamp(0, 1), ["y"] * 3, cameras).mean()), rel=1e-5
        )


def test_dreamfl_rests_above_its_ceiling_and_outside_its_window():
    images, cameras = random_images(2), cameras_for(2)

    def gradient(config, progress=0.5):
        guidance = Guidance(ToyPrior(), "y", config, reward=LinearReward())
        return torch.autograd.grad(guidance(images, cameras, progress, 0).loss, images)[0]

    plain = GuidanceConfig(preference="none")
    low = GuidanceConfig(preference="dreamfl", dreamfl=DreamFLConfig(ceiling=-1e9))
    late = GuidanceConfig(preference="dreamfl", dreamfl=DreamFLConfig(start=0.6, ceiling=1e9))
    torch.testing.assert_close(gradient(low), gradient(plain))
    assert torch.equal(gradient(late), gradient(plain))
    assert not torch.equal(gradient(late, 0.7), gradient(plain, 0.7))


# --- combinations ----------------------------------------------------------------------------------------------------

SILENT = {
    ("ism", "dreamdpo"): "residual per noise",
    ("ism", "rewardsds"): "residual per noise",
}
COMBINATIONS = list(itertools.product(get_args(Method), get_args(Preference)))


@pytest.mark.parametrize(("method", "preference"), [c for c in COMBINATIONS if c not in SILENT])
def test_every_legal_combination_runs(method, preference):
    config = GuidanceConfig(
        method=method,
        preference=preference,
        negative_prompt="bad",
        psd=PSDConfig(start=0.0, t_max=1.0),
        negative=NegativeConfig(start=0.0, every=1, t_max=1.0),
        dreamdpo=DreamDPOConfig(smooth=True),
        rewardsds=RewardSDSConfig(preview_steps=3),
        dreamfl=DreamFLConfig(start=0.0),
    )
    reward = None if preference == "none" else Brightness()
    prior = tiny_prior() if method == "vsd" else ToyPrior(views=4)
    guidance = Guidance(prior, "a red cube", config, reward=reward)
    x, logs = view_steps(guidance, range(3), torch.full((1, 4, 3, 8, 8), 0.5))
    assert (x - 0.5).abs().max() > 1e-5
    assert all(math.isfinite(value) for entry in logs for value in entry.values())
    said = {"none": "base_norm", "dreamfl": "reward_share"}.get(preference, "gap")
    assert all(said in entry for entry in logs)
    assert ("negative_shift" in logs[0]) == (preference == "psd")
    assert ("lora_loss" in logs[0]) == (method == "vsd")


class Brightness:
    """A reward with a gradient and a score per view."""

    name = "brightness"
    differentiable = True

    def score(self, images, prompts, cameras):
        return images.mean((2, 3, 4))


@pytest.mark.parametrize(
    ("config", "prior", "reward", "message"),
    [
        *((GuidanceConfig(method=m, preference=p), ToyPrior(), LinearReward(), why) for (m, p), why in SILENT.items()),
        (
            GuidanceConfig(method="csd", preference="dreamdpo", dreamdpo=DreamDPOConfig(form="code")),
            ToyPrior(),
            LinearReward(),
            "defined for sds and recon",
        ),
        (GuidanceConfig(preference="dreamfl"), ToyPrior(), CallableReward(bowl, "vlm"), "received the black box vlm"),
        (GuidanceConfig(preference="rewardsds"), ToyPrior(), None, "expected a reward for preference rewardsds"),
        (GuidanceConfig(negative=OFF), ToyPrior(), [LinearReward()] * 2, "vote in dreamdpo only"),
        (GuidanceConfig(preference="none", perp_neg=True), ToyPrior(4), None, "received toy with 4 views"),
        (GuidanceConfig(preference="none", perp_neg=True, view_prompts=False), ToyPrior(), None, "view_prompts too"),
        (GuidanceConfig(method="nfsd", preference="none"), ToyPrior(), None, "nfsd: expected a negative prompt"),
    ],
)  # fmt: skip
def test_illegal_combinations_say_why(config, prior, reward, message):
    with pytest.raises(ConfigError, match=message):
        Guidance(prior, "y", config, reward=reward)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimestepConfig(dreamtime=(0.4, 0.5, 0.3, 0.1)), "first time above the second"),
        (lambda: ISMConfig(stride=0.0), "stride"),
        (lambda: VSDConfig(rank=0), "rank"),
        (lambda: PairConfig(n_noises=1), "n_noises"),
        (lambda: PSDConfig(n_noises=3, turn=30.0), "an even number with turn"),
        (lambda: PSDConfig(turn=120.0), "turn"),
        (lambda: JudgingConfig(every=0), "every"),
        (lambda: DreamDPOConfig(form="old"), "expected one of paper, code"),
        (lambda: RewardSDSConfig(weights="worst"), "expected one of min-max, best, softmax"),
        (lambda: RewardSDSConfig(preview_steps=0), "preview_steps"),
        (lambda: DreamFLConfig(weight=-1.0), "weight"),
        (lambda: GuidanceConfig(csd_negative=(0.0, 2.0)), "csd_negative"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# --- the toy ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_what_the_preferences_do_to_the_toy():
    """Ranked residuals climb within what the prior can paint. A contrast without a base term has nothing that pulls the
    render there, and the pixel gradient of DreamFL leaves it."""

    def end(**options):
        x, _ = optimize(GuidanceConfig(**options), 200)
        return reward_gain(x), off_manifold(x)

    base, _ = end(preference="none")
    weighed = end(preference="rewardsds", rewardsds=RewardSDSConfig(n_noises=6, end=1.0))
    winners = end(preference="dreamdpo", dreamdpo=DreamDPOConfig(threshold=1e9))
    for gain, off in (weighed, winners):
        assert gain > base + 0.1
        assert off < 0.1
    for form in ("paper", "code"):
        _, off = end(preference="dreamdpo", dreamdpo=DreamDPOConfig(form=form, threshold=0.0))
        assert off > 1
    _, off = end(preference="dreamfl", dreamfl=DreamFLConfig(ceiling=1e9, estimate_t_max=0.0))
    assert off > 10 * weighed[1]
