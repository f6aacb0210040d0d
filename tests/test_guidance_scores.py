"""The pure functions of the guidance against closed forms."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from toy import LinearReward, cameras_for, preferring

from psd_gs.cameras import orbit
from psd_gs.config.guidance import (
    GuidanceConfig,
    Method,
    NegativeConfig,
    PSDConfig,
    Scale,
    Schedule,
    TimestepConfig,
    Weighting,
)
from psd_gs.config.guidance import Preference as PreferenceName
from psd_gs.errors import ConfigError, InputError
from psd_gs.guidance.base_scores import WEIGHTINGS, BaseScore, base_score, recon, rescale_guidance, score_loss, sds
from psd_gs.guidance.denoiser import Prediction
from psd_gs.guidance.guide import check_combination
from psd_gs.guidance.preference import Candidates, Preference, group_norm, judge, preference_class, take
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.guidance.psd import SCALES, advantages, contrast, guarded
from psd_gs.guidance.timesteps import SCHEDULES
from psd_gs.priors.base import TextEmbedding
from psd_gs.rewards.base import CallableReward, group_score


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_choice_has_an_implementation():
    assert all(isinstance(base_score(name), BaseScore) for name in get_args(Method))
    assert all(issubclass(preference_class(name), Preference) for name in get_args(PreferenceName))
    assert set(WEIGHTINGS) == set(get_args(Weighting)) - {"auto"}
    assert set(SCHEDULES) == set(get_args(Schedule))
    assert set(SCALES) == set(get_args(Scale))


# Timesteps


@pytest.mark.parametrize(
    ("progress", "low", "high"), [(0.0, 0.98, 0.98), (0.4, 0.5, 0.74), (0.8, 0.02, 0.5), (1.0, 0.02, 0.5)]
)
def test_mvdream_schedule_draws_between_its_annealed_bounds(progress, low, high):
    t = SCHEDULES["mvdream"](progress, torch.tensor([0.0, 0.25, 1.0]), TimestepConfig())
    torch.testing.assert_close(t, torch.tensor([low, low + 0.25 * (high - low), high]))


def test_uniform_schedule_ignores_progress():
    u = torch.tensor([0.0, 0.5, 1.0])
    for progress in (0.0, 0.7, 1.0):
        t = SCHEDULES["uniform"](progress, u, TimestepConfig())
        torch.testing.assert_close(t, torch.tensor([0.02, 0.5, 0.98]))


def test_linear_schedule_falls_and_ignores_chance():
    config = TimestepConfig(schedule="linear", anneal_end=1.0)
    t = torch.stack([SCHEDULES["linear"](p, torch.rand(3), config) for p in (0.0, 0.25, 0.5, 1.0)])
    torch.testing.assert_close(t, torch.tensor([0.98, 0.74, 0.5, 0.02])[:, None].expand(4, 3))


def test_step_schedule_drops_its_upper_bound_once():
    u, config = torch.tensor([0.0, 0.5, 1.0]), TimestepConfig(anneal_end=0.5)
    for progress, high in ((0.0, 0.98), (0.49, 0.98), (0.5, 0.5), (1.0, 0.5)):
        t = SCHEDULES["step"](progress, u, config)
        torch.testing.assert_close(t, torch.tensor([0.02, (0.02 + high) / 2, high]))


def test_sqrt_schedule_falls_with_the_root():
    config = TimestepConfig(t_min_end=0.3, anneal_end=1.0)
    t = [float(SCHEDULES["sqrt"](p, torch.rand(1), config)) for p in (0.0, 0.25, 1.0)]
    assert t == pytest.approx([0.98, 0.98 - 0.68 / 2, 0.3])


def test_dreamtime_never_rises_and_spends_its_weight():
    config = TimestepConfig(t_max_start=0.999, t_min_end=0.001, anneal_end=1.0)
    progress = torch.arange(4001) / 4000
    t = torch.cat([SCHEDULES["dreamtime"](float(p), torch.rand(1), config) for p in progress])
    assert (t.diff() <= 0).all()
    assert (float(t[0]), float(t[-1])) == pytest.approx((0.999, 0.001))
    # The share of the run between two times is the integral of W_p: a plateau and two half Gaussians.
    upper = 0.3 * math.sqrt(math.pi / 2) * math.erf(0.199 / 0.3 / math.sqrt(2))
    lower = 0.1 * math.sqrt(math.pi / 2)
    share = ((t <= 0.8) & (t >= 0.5)).double().mean()
    assert share == pytest.approx(0.3 / (0.3 + upper + lower), rel=0.01)
    constant = TimestepConfig(schedule="dreamtime", dreamtime=(1.0, 0.001, 0.1, 0.1), anneal_end=1.0)
    flat = [float(SCHEDULES["dreamtime"](p, torch.rand(1), constant)) for p in (0.25, 0.5, 0.75)]
    assert flat == pytest.approx([0.74, 0.5, 0.26], abs=2e-3)  # a constant weight is the linear schedule


# Base scores


def test_score_loss_has_the_given_gradient_over_the_batch():
    x0, gradient = randn(2, 4, 3, 5, 5).requires_grad_(True), randn(2, 4, 3, 5, 5, seed=1)
    (actual,) = torch.autograd.grad(score_loss(x0, gradient), x0)
    torch.testing.assert_close(actual, gradient / 8)


def test_residuals_and_weightings_equal_the_epsilon_forms():
    x0, noise = randn(2, 1, 3, 4, 4), randn(1, 2, 1, 3, 4, 4, seed=1)
    eps_cond, eps_neg = randn(1, 2, 1, 3, 4, 4, seed=2), randn(1, 2, 1, 3, 4, 4, seed=3)
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    x_t = alpha * x0 + sigma * noise
    prediction = Prediction(x0, x_t, (x_t - sigma * eps_cond) / alpha, (x_t - sigma * eps_neg) / alpha)
    eps = eps_neg + 7.5 * (eps_cond - eps_neg)
    weights = {"sds": sigma**2, "uniform": 1.0, "recon": sigma / alpha, "fantasia3d": alpha * sigma**2}
    for name, w in weights.items():
        actual = WEIGHTINGS[name](alpha, sigma) * sds(prediction, None, GuidanceConfig())
        torch.testing.assert_close(actual, w * (eps - noise))


def test_rescaled_guidance_mixes_standard_deviations_per_group():
    guided, cond = 5 * randn(2, 3, 4, 3, 4, 4), randn(2, 3, 4, 3, 4, 4, seed=1)
    full = rescale_guidance(guided, cond, 1.0)
    torch.testing.assert_close(full.flatten(2).std(2), cond.flatten(2).std(2))
    half = rescale_guidance(guided, cond, 0.7)
    torch.testing.assert_close(half, 0.7 * full + 0.3 * guided)
    prediction = Prediction(0 * cond[0], cond, cond, cond)
    torch.testing.assert_close(recon(prediction, None, GuidanceConfig()), -cond)


# Preference


def test_a_pair_weighs_plus_and_minus_one():
    rewards = torch.tensor([0.2501, 0.3, 0.25]).view(1, 3, 1)
    rewards = torch.cat([rewards, torch.tensor([0.25, 0.9, 0.25]).view(1, 3, 1)])
    weights, gap = advantages(rewards)
    torch.testing.assert_close(weights[:, :, 0], torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]))
    torch.testing.assert_close(gap[:, 0], (rewards[0] - rewards[1]).abs()[:, 0])


def test_many_noises_are_weighed_by_z_scores():
    rewards = randn(6, 3, 4)
    weights, gap = advantages(rewards)
    z = (rewards - rewards.mean(0)) / rewards.std(0, unbiased=False)
    torch.testing.assert_close(weights, z / 3)
    torch.testing.assert_close(gap, 2 * rewards.std(0, unbiased=False))
    assert weights.sum(0).abs().max() < 1e-14


def test_scales_have_their_closed_forms():
    gap, mean = torch.tensor([0.0, 0.01, 0.02, 0.2]), torch.tensor(0.02)
    expected = {
        "gap": [0, 0.5, 1, 3],
        "sign": [1, 1, 1, 1],
        "ramp": [0, 0.25, 0.5, 1],
        "bt": [0.0, *(2 / (1 + math.exp(-x)) - 1 for x in (0.5, 1.0, 10.0))],
    }
    for name, values in expected.items():
        torch.testing.assert_close(SCALES[name](gap, mean, 0.04), torch.tensor(values, dtype=torch.float32))


def test_contrast_is_the_difference_of_epsilon_residuals():
    estimates, noise, x0 = randn(2, 3, 4, 1, 4, 4), randn(2, 3, 4, 1, 4, 4, seed=1), randn(3, 4, 1, 4, 4, seed=2)
    rewards = randn(2, 3, 1, seed=3)
    best, worst = rewards.argmax(0), rewards.argmin(0)
    alpha, sigma = 0.9, math.sqrt(1 - 0.81)
    residual = (alpha * x0 + sigma * noise - alpha * estimates) / sigma - noise
    pair = take(residual, best) - take(residual, worst)
    actual = alpha / sigma * contrast(estimates, advantages(rewards)[0])
    assert (actual - pair).abs().max() < 1e-9


def test_view_pairs_are_ranked_one_by_one():
    estimates, rewards = randn(2, 3, 4, 1, 2, 2), randn(2, 3, 4, seed=1)
    actual = contrast(estimates, advantages(rewards)[0])
    for g in range(3):
        for v in range(4):
            w = int(rewards[1, g, v] > rewards[0, g, v])
            torch.testing.assert_close(actual[g, v], -(estimates[w, g, v] - estimates[1 - w, g, v]))
            assert torch.equal(take(estimates, rewards.argmax(0))[g, v], estimates[w, g, v])


@pytest.mark.parametrize("reference", ["noise", "base", "contrast"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, math.inf])
def test_guard_bounds_each_group(ratio, reference):
    estimates, rewards, residuals = randn(2, 5, 1, 1, 8, 8), randn(2, 5, 1, seed=1), randn(2, 5, 1, 1, 8, 8, seed=2)
    psd = preferring("psd", PSDConfig(weight=2.0, guard=ratio, guard_reference=reference))
    score = psd.decide(Candidates(estimates, rewards, residuals)).score
    limit = {
        "noise": ((group_norm(residuals[0]) ** 2 + group_norm(residuals[1]) ** 2) / 2).sqrt(),
        "base": group_norm(residuals.mean(0)),
        "contrast": group_norm(estimates[0] - estimates[1]),
    }[reference]
    norms = group_norm(score)
    free = (
        preferring("psd", PSDConfig(weight=2.0, guard=math.inf)).decide(Candidates(estimates, rewards, residuals)).score
    )
    expected = torch.minimum(group_norm(free), ratio * limit) if math.isfinite(ratio) else group_norm(free)
    torch.testing.assert_close(norms, expected)
    assert guarded(free, limit, math.inf) is free


def test_gap_mean_is_an_average_over_valid_units():
    psd, estimates, residuals = preferring("psd", PSDConfig()), randn(2, 3, 1, 1, 2, 2), randn(2, 3, 1, 1, 2, 2)

    def step(*gaps: float):
        rewards = torch.tensor([[[g] for g in gaps], [[0.0]] * len(gaps)])
        return psd.decide(Candidates(estimates, rewards, residuals))

    nan = float("nan")
    assert float(step(nan, nan, nan).logs["kappa"]) == 0
    assert psd.gap_mean.isnan()
    assert int(psd.nan_pairs) == 3
    verdict = step(0.2, nan, 0.4)
    torch.testing.assert_close(psd.gap_mean, torch.tensor(0.3))
    assert int(psd.nan_pairs) == 4
    assert torch.equal(verdict.score[1], torch.zeros_like(verdict.score[1]))
    step(0.6, 0.6, 0.6)
    torch.testing.assert_close(psd.gap_mean, torch.tensor(0.99 * 0.3 + 0.01 * 0.6))
    step(nan, nan, nan)
    torch.testing.assert_close(psd.gap_mean, torch.tensor(0.303))


def test_equal_rewards_say_nothing():
    for scale in get_args(Scale):
        psd = preferring("psd", PSDConfig(scale=scale))
        rewards = torch.full((2, 2, 1), 0.3)
        verdict = psd.decide(Candidates(randn(2, 2, 1, 1, 4, 4), rewards, randn(2, 2, 1, 1, 4, 4)))
        assert verdict.score.abs().max() == 0


def test_psd_acts_within_its_window():
    psd = preferring("psd", PSDConfig(start=0.1, end=0.7, every=3, t_max=0.6))
    t = torch.tensor([0.3, 0.7])
    assert psd.acts(0.5, 6, t).tolist() == [True, False]
    for progress, step in ((0.09, 6), (0.71, 6), (0.5, 7)):
        assert not psd.acts(progress, step, t).any()
    assert not preferring("psd", PSDConfig(weight=0.0)).acts(0.5, 0, t).any()


def test_large_weights_without_a_guard_are_warned_of(caplog):
    preferring("psd", PSDConfig(weight=3.0))
    assert not caplog.text
    preferring("psd", PSDConfig(weight=3.0, guard=math.inf))
    assert "typical set" in caplog.text


# Rewards and prompts


def test_group_scores():
    scores = torch.tensor([[0.1, 0.3], [0.2, 0.2]])
    torch.testing.assert_close(group_score(scores), torch.tensor([0.2, 0.2]))
    torch.testing.assert_close(group_score(scores, "min"), torch.tensor([0.1, 0.2]))
    soft = group_score(scores, "softmin", 0.1)
    torch.testing.assert_close(soft, torch.tensor([-0.1 * math.log((math.exp(-1) + math.exp(-3)) / 2), 0.2]))
    joint = torch.tensor([0.5, 0.6])
    assert group_score(joint, "min") is joint


def test_judge_by_group_view_and_direction():
    reward, images, cameras = LinearReward(), randn(2, 4, 3, 8, 8), cameras_for(2, 4)
    per_view = reward.score(images, ["y", "y"], cameras)
    torch.testing.assert_close(judge(reward, images, "y", cameras, PSDConfig()), per_view.mean(1, keepdim=True))
    torch.testing.assert_close(judge(reward, images, "y", cameras, PSDConfig(pair="view")), per_view)
    seen: list[str] = []

    def function(batch, prompts):
        seen.extend(prompts)
        return [len(prompt) for prompt in prompts]

    actual = judge(CallableReward(function), images, "y", cameras, PSDConfig(pair="view", reward_prompt="view"))
    assert seen == [directed("y")[i] for i in direction_index(cameras)]
    assert actual.shape == (2, 4)
    assert actual.flatten().tolist() == [len(prompt) for prompt in seen]


def test_a_reward_of_groups_judges_single_views_as_groups_of_one():
    class Joint(LinearReward):
        def score(self, images, prompts, cameras):
            return super().score(images, prompts, cameras).mean(1)

    images, cameras = randn(2, 4, 3, 8, 8), cameras_for(2, 4)
    actual = judge(Joint(), images, "y", cameras, PSDConfig(pair="view"))
    torch.testing.assert_close(actual, LinearReward().score(images, ["y", "y"], cameras))


def test_callable_reward_checks_its_answer():
    reward = CallableReward(lambda images, prompts: images.mean((1, 2, 3)).tolist(), "mean")
    images = torch.rand(2, 4, 3, 8, 8, requires_grad=True)
    scores = reward.score(images, ["a", "b"])
    torch.testing.assert_close(scores, images.mean((2, 3, 4)).detach())
    assert not scores.requires_grad
    with pytest.raises(InputError, match="expected 8 numbers"):
        CallableReward(lambda images, prompts: [0.5]).score(images, ["a", "b"])


def test_directions_of_views():
    azimuth = torch.tensor([0.0, 44, 46, 134, 136, 180, 226, 300, 320, 10])
    elevation = torch.tensor([0.0] * 9 + [70.0])
    n = len(azimuth)
    cameras = orbit(azimuth, elevation, torch.full((n,), 2.0), torch.full((n,), 40.0), 8, 8)
    assert direction_index(cameras).tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 0, 3]
    assert directed("a cup")[2] == "a cup, back view"


def test_text_rows_expand_to_views_only():
    text = TextEmbedding(torch.randn(1, 3, 5), torch.randn(1, 4), torch.ones(1, 3, dtype=torch.bool))
    grown = text.expand(8)
    assert (grown.sequence.shape, grown.pooled.shape, grown.mask.shape) == ((8, 3, 5), (8, 4), (8, 3))
    assert grown.expand(8) is grown
    assert len(grown[torch.tensor([1, 2])]) == 2
    with pytest.raises(InputError, match="expected 1 text embedding or 6"):
        grown.expand(6)


# Options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidanceConfig(method="dds"), "expected one of sds, recon, .* received 'dds'"),
        (lambda: GuidanceConfig(rescale=1.5), "rescale: expected a value from 0 to 1"),
        (lambda: PSDConfig(n_noises=1), "n_noises: expected a value from 2"),
        (lambda: PSDConfig(start=1000), "start: expected a value from 0 to 1"),
        (lambda: PSDConfig(pooling="max"), "expected one of mean, min, softmin"),
        (lambda: TimestepConfig(t_max_end=0.01), "t_min_end <= t_max_end"),
        (lambda: TimestepConfig(t_max_start=1.0), "t_max_start: expected"),
        (lambda: check_combination(GuidanceConfig(psd=PSDConfig(pair_scale=1))), "factor 1 - scale"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_unit_scale_is_fine_without_refinement():
    for rest in ({"negative": NegativeConfig(mode="off")}, {"preference": "none"}):
        check_combination(GuidanceConfig(psd=PSDConfig(pair_scale=1), **rest))
