"""What preference score distillation promises, on a prior where all of it can be computed.

The expectations follow from linear denoisers with Jacobian J: a pair's contrast is on average an ascent
of ``J J^T grad R``, which a direct pixel gradient is not.
"""

from __future__ import annotations

import math

import pytest
import torch
from toy import (
    COND_VAR,
    MEAN,
    NEG_VAR,
    OFF_STD,
    R_OFF,
    R_ON,
    LinearReward,
    ToyPrior,
    cameras_for,
    flatten,
    gain,
    random_images,
)

from psd_gs.config.guidance import GuidanceConfig, NegativeConfig, PSDConfig
from psd_gs.guidance.guide import Guidance
from psd_gs.guidance.preference import take
from psd_gs.guidance.psd import advantages, contrast, turned
from psd_gs.rewards.base import CallableReward

GROUPS = 12


def pairs(alpha_bar: float, scale: float, n: int, seed: int):
    """N independent pairs of one render: estimates, noises, noisy latents, rewards."""
    prior, reward = ToyPrior(), LinearReward()
    x0 = prior.encode(random_images(1)).detach().expand(n, -1, -1, -1, -1)
    t = torch.full((n,), math.acos(math.sqrt(alpha_bar)) * 2 / math.pi, dtype=torch.float64)
    noise = torch.randn(2, *x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    estimates, noisy = [], []
    for i in range(2):
        x_t = prior.add_noise(x0, noise[i], t)
        cond, neg = prior.predict(x_t, t, prior.embed(["y"]), prior.embed([""]), cameras_for(n))
        noisy.append(x_t)
        estimates.append(neg + scale * (cond - neg))
    rewards = torch.stack([reward.score(prior.decode(x), ["y"] * n, None) for x in estimates])
    return torch.stack(estimates), noise, torch.stack(noisy), rewards


def ascent(alpha_bar: float, scale: float) -> torch.Tensor:
    """``J J^T grad R`` of the guided estimate."""
    alpha, sigma = (torch.tensor(math.sqrt(v), dtype=torch.float64) for v in (alpha_bar, 1 - alpha_bar))
    cond, neg = gain(alpha, sigma, COND_VAR), gain(alpha, sigma, NEG_VAR)
    on, off = neg + scale * (cond - neg), gain(alpha, sigma, OFF_STD**2)
    return on**2 * R_ON + off**2 * 3 * R_OFF


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("alpha_bar", [0.9, 0.5, 0.1])
def test_contrast_is_a_gradient_step_on_what_the_prior_can_paint(alpha_bar, scale):
    estimates, noise, noisy, rewards = pairs(alpha_bar, scale, 20_000, seed=0)
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    best, worst = rewards.argmax(0), rewards.argmin(0)
    residual = (noisy - alpha * estimates) / sigma - noise
    in_epsilon = take(residual, best) - take(residual, worst)
    weights, gap = advantages(rewards)
    delta = contrast(estimates, weights)
    assert (alpha / sigma * delta - in_epsilon).abs().max() < 1e-9

    expected = ascent(alpha_bar, scale)
    mean = -flatten(delta).mean((0, 1))
    assert torch.cosine_similarity(mean, expected, dim=0) > 0.99
    # E[(R1 - R2)(x1 - x2)] = 2 sigma^2 J J^T grad R
    weighed = -(gap * flatten(delta)[:, 0]).mean(0)
    assert weighed.norm() == pytest.approx(float(2 * sigma**2 * expected.norm()), rel=0.05)


def test_contrast_without_the_noise_points_down():
    """Why the residual keeps its noise."""
    estimates, _, noisy, rewards = pairs(0.5, 1.0, 5_000, seed=1)
    epsilon = (noisy - math.sqrt(0.5) * estimates) / math.sqrt(0.5)
    delta = take(epsilon, rewards.argmax(0)) - take(epsilon, rewards.argmin(0))
    assert torch.cosine_similarity(-flatten(delta).mean((0, 1)), ascent(0.5, 1.0), dim=0) < -0.5


def test_dropping_the_noise_leaves_what_the_prior_can_paint():
    for keep in (True, False):
        config = GuidanceConfig(psd=PSDConfig(keep_noise=keep), negative=NegativeConfig(mode="off"))
        assert (off_manifold(optimize(config, 200)[0]) < 0.1) == keep


def test_antithetic_pairs_are_farther_apart():
    guidance = {
        antithetic: Guidance(
            ToyPrior(),
            "y",
            GuidanceConfig(psd=PSDConfig(antithetic=antithetic), negative=NegativeConfig(mode="off")),
            reward=LinearReward(),
        )
        for antithetic in (True, False)
    }
    # The same timesteps in both; on average sqrt(2) farther apart.
    norms = {k: g(random_images(2000), cameras_for(2000), 0.5, 0).logs["pair_norm"] for k, g in guidance.items()}
    assert norms[True] / norms[False] == pytest.approx(math.sqrt(2), rel=0.03)


def test_a_turned_pair_contrasts_what_the_tilted_prior_prefers():
    """Its estimates differ by twice the Jacobian times the turn, which a drawn pair does only on average."""
    alpha_bar, degrees, n = 0.5, 30.0, 5
    prior, direction = ToyPrior(), LinearReward().direction.expand(n, 64)
    x0 = torch.zeros(n, 1, 1, 8, 8, dtype=torch.float64)
    noise = torch.randn(1, *x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = turned(noise, direction.view(x0.shape), degrees)
    lengths = flatten(noise).norm(dim=-1)
    torch.testing.assert_close(flatten(pair).norm(dim=-1), lengths.expand(2, -1, -1))
    cosines = torch.cosine_similarity(flatten(pair), flatten(noise), dim=-1)
    torch.testing.assert_close(cosines, torch.full_like(cosines, math.cos(math.radians(degrees))))

    t = torch.full((n,), 0.5, dtype=torch.float64)
    cond = [
        prior.predict(prior.add_noise(x0, e, t), t, prior.embed(["y"]), prior.embed([""]), cameras_for(n))[0]
        for e in pair
    ]
    alpha = sigma = torch.tensor(math.sqrt(alpha_bar), dtype=torch.float64)
    flat = flatten(noise)[0, :, 0]
    across = direction - (direction * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat
    step = 2 * sigma * math.sin(math.radians(degrees)) * lengths[0] / across.norm(dim=1, keepdim=True) * across
    inside = step @ prior.basis @ prior.basis.T
    expected = gain(alpha, sigma, COND_VAR) * inside + gain(alpha, sigma, OFF_STD**2) * (step - inside)
    torch.testing.assert_close(flatten(cond[0] - cond[1])[:, 0], expected)

    for nothing in (torch.zeros_like(x0), torch.full_like(x0, math.nan)):
        assert torch.equal(turned(noise, nothing, degrees), noise.repeat(2, 1, 1, 1, 1, 1))


def test_turned_pairs_climb_farther_than_drawn_ones():
    def end(turn):
        config = GuidanceConfig(psd=PSDConfig(turn=turn), negative=NegativeConfig(mode="off"))
        return optimize(config, 100)[0]

    drawn, pairs = end(0.0), end(30.0)
    assert reward_gain(pairs) > reward_gain(drawn) + 0.1
    assert off_manifold(pairs) < 0.1


def test_a_black_box_has_its_pairs_drawn(caplog):
    def step(turn, reward):
        guidance = Guidance(ToyPrior(), "y", GuidanceConfig(psd=PSDConfig(turn=turn)), reward=reward)
        return guidance(random_images(2), cameras_for(2), 0.5, 0).logs

    black_box = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "vlm")
    assert step(30.0, black_box) == step(0.0, black_box)
    assert "vlm is a black box" in caplog.text
    assert step(30.0, LinearReward()) != step(0.0, LinearReward())


def optimize(config: GuidanceConfig, steps: int, *, pixel_gradient: bool = False):
    """Gradient descent of ``GROUPS`` independent renders; returns the latents and the change of the negative mean."""
    reward = LinearReward()
    guidance = Guidance(ToyPrior(), "y", config, reward=reward)
    x = random_images(GROUPS).detach()[:, :, :1]
    cameras = cameras_for(GROUPS)
    for step in range(steps):
        images = x.expand(-1, -1, 3, -1, -1).requires_grad_(True)
        loss = guidance(images, cameras, step / steps, step).loss * GROUPS
        if pixel_gradient:
            loss = loss - reward.score(images, ["y"] * GROUPS, cameras).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        x = x - 60 / steps * gradient.sum(2, keepdim=True)
    return flatten(x)[:, 0], guidance.negative.delta[0, 0]


def reward_gain(x) -> float:
    """Reward along the data's subspace above the data's mean."""
    return float(((x - MEAN) @ R_ON).mean())


def off_manifold(x) -> float:
    """Root mean square off the data's subspace, in standard deviations of the data."""
    basis = ToyPrior().basis
    off = x - x @ basis @ basis.T
    return float(off.norm(dim=1).mean() / math.sqrt(off.shape[1] - basis.shape[1]) / OFF_STD)


def check_promises(steps: int) -> None:
    free = NegativeConfig(mode="off")
    psd = PSDConfig(guard=math.inf)
    sds, _ = optimize(GuidanceConfig(preference="none"), steps)
    pixel, _ = optimize(GuidanceConfig(preference="none"), steps, pixel_gradient=True)
    preferred, _ = optimize(GuidanceConfig(psd=psd, negative=free), steps)
    guarded, _ = optimize(GuidanceConfig(negative=free), steps)
    stifled, _ = optimize(GuidanceConfig(psd=PSDConfig(guard_reference="base"), negative=free), steps)
    assert off_manifold(sds) < 0.1
    assert off_manifold(pixel) > 1
    for x, margin in ((preferred, 0.3), (guarded, 0.1)):
        assert off_manifold(x) < 0.1
        assert reward_gain(x) > reward_gain(sds) + margin
    # Antithetic residuals cancel as the base converges: measured against their mean, the pair falls silent.
    assert reward_gain(stifled) < reward_gain(guarded)

    for mode in ("pull", "reward"):
        negative = NegativeConfig(mode=mode, lr=1e-2)
        refined, change = optimize(GuidanceConfig(psd=psd, negative=negative), steps)
        assert change @ R_ON < 0
        assert reward_gain(refined) > reward_gain(sds) + 0.3


def test_promises_in_a_short_run():
    check_promises(200)


@pytest.mark.full
def test_promises_in_a_long_run():
    check_promises(1000)
