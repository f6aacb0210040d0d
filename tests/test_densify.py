"""Growing, pruning and the final sweep."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from reference import render_dense
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.config import DensifyConfig
from psd_gs.densify import Densifier, components, contribution, prunable, sweep
from psd_gs.gaussians import Gaussians, from_points, random_ball, rgb_to_sh0, rotation_matrices
from psd_gs.render import render


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(n: int = 200, scale: float = 0.02, opacity: float = 0.5, seed: int = 0) -> Gaussians:
    g = random_ball(n, 0.5, scale=scale, opacity=opacity, generator=generator(seed))
    return replace(g, sh0=rgb_to_sh0(torch.rand(n, 3, generator=generator(seed + 1)))[:, None])


def joined(*parts: Gaussians) -> Gaussians:
    return Gaussians(**{name: torch.cat([getattr(p, name) for p in parts]) for name in parts[0].params()})


def blob(centre: tuple[float, float, float], n: int = 1, scale: float = 0.02, opacity: float = 0.9) -> Gaussians:
    return from_points(torch.tensor([centre]).repeat(n, 1), torch.full((n, 3), 0.5), scale=scale, opacity=opacity)


def shell(n: int, radius: float, scale: float = 0.04, opacity: float = 0.95) -> Gaussians:
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator()), dim=1)
    return from_points(radius * direction, torch.full((n, 3), 0.5), scale=scale, opacity=opacity)


def densifier(gradient: Tensor, seed: int = 0, **options) -> Densifier:
    """One that has observed ``gradient`` in one view."""
    made = Densifier(DensifyConfig(**options), generator(seed))
    made.gradient, made.visible = gradient.clone(), torch.ones_like(gradient)
    return made


def observation(absgrad: Tensor, visible: Tensor) -> dict:
    """What a backward pass leaves: ``[C, N]`` norms of gradients, and who was seen."""
    means2d = torch.zeros(*absgrad.shape, 2)
    means2d.absgrad = torch.stack([0.6 * absgrad, 0.8 * absgrad], -1)
    return {"means2d": means2d, "radii": visible[..., None].expand(-1, -1, 2).int()}


# --- statistics ------------------------------------------------------------------------------------------------------


def test_observe_means_over_the_views_that_see_a_gaussian():
    d = Densifier(DensifyConfig(grow=0.5), generator())
    d.observe(observation(torch.tensor([[4.0, 1.0, 9.0, 1.0], [0.0, 1.0, 9.0, 1.0]]),
                          torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]])))  # fmt: skip
    d.observe(observation(torch.tensor([[4.0, 3.0, 9.0, math.nan], [0.0, 3.0, 9.0, 1.0]]),
                          torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]])))  # fmt: skip
    torch.testing.assert_close(d.gradient, torch.tensor([8.0, 8.0, 0.0, 3.0]))
    assert d.visible.tolist() == [2, 4, 0, 3]
    index, new = d.plan(ball(4), grow=True)
    assert index.tolist() == [0, 1, 2, 3, 0, 1]  # means 4, 2, 0 and 1: the largest first
    assert new.tolist() == [False] * 4 + [True] * 2


def test_observed_gradients_come_from_the_picture_alone():
    g = ball().map(lambda p: p.requires_grad_(True))
    made = []
    for regularizer in (0.0, 100.0):
        d = Densifier(DensifyConfig(), generator())
        out = render(g, turntable(3, size=32), absgrad=True)
        (out.rgb.square().sum() + regularizer * (g.scales.exp().mean() + g.opacities.sigmoid().mean())).backward()
        d.observe(out.meta)
        made.append(d.gradient)
    assert made[0].max() > 0
    assert torch.equal(*made)


# --- growing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grow", "cap", "added"), [(0.1, 1000, 20), (0.1, 205, 5), (0.1, 150, 0), (0.0, 1000, 0), (1.0, 1000, 200)]
)
def test_budget_and_cap(grow, cap, added):
    gradient = torch.rand(200, generator=generator())
    index, new = densifier(gradient, grow=grow, cap=cap).plan(ball(), grow=True)
    assert index[:200].tolist() == list(range(200))
    assert int(new.sum()) == added
    assert new[200:].all()
    assert set(index[200:].tolist()) == set(gradient.topk(added).indices.tolist())


def test_the_budget_does_not_depend_on_the_scale_of_the_gradient():
    gradient = torch.rand(200, generator=generator())
    plans = [densifier(factor * gradient).plan(ball(), grow=True)[0] for factor in (1e-6, 1.0, 1e6)]
    assert torch.equal(plans[0], plans[1])
    assert torch.equal(plans[2], plans[1])


def test_no_growth_when_it_is_over():
    index, new = densifier(torch.rand(200)).plan(ball(), grow=False)
    assert len(index) == 200
    assert not new.any()


def test_what_is_pruned_is_not_doubled():
    g = ball(10)
    g.opacities[3] = -20
    gradient = torch.zeros(10)
    gradient[3], gradient[7] = 5, 1
    index, _ = densifier(gradient, grow=0.12).plan(g, grow=True)
    assert index.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 7]


def test_small_ones_are_cloned_and_large_ones_split():
    g = ball(6)
    g.scales[:3] = torch.tensor([0.06, 0.01, 0.005]).log()
    d = densifier(torch.ones(6), grow=1.0, split_scale=0.03)
    origin, new = d.plan(g, grow=True)
    out = d.apply(g, origin, new)
    assert sorted(origin.tolist()) == sorted([*range(6), *range(6)])
    split, cloned = (origin < 3).nonzero()[:, 0], (origin >= 3).nonzero()[:, 0]
    torch.testing.assert_close(out.scales[split].exp(), g.scales[origin[split]].exp() / 1.6)
    assert torch.equal(out.scales[cloned], g.scales[origin[cloned]])
    assert torch.equal(out.means[cloned], g.means[origin[cloned]])
    assert (out.means[split] - g.means[origin[split]]).norm(dim=1).min() > 1e-4
    for name in ("quats", "sh0", "shN"):
        assert torch.equal(getattr(out, name), getattr(g, name)[origin])
    assert torch.equal(out.opacities[split], g.opacities[origin[split]])
    # Two clones let through what the original did.
    for i in range(3, 6):
        passed = 1 - out.opacities[origin == i].sigmoid()
        assert len(passed) == 2
        torch.testing.assert_close(passed.prod(), 1 - g.opacities[i].sigmoid())
    assert len(d.gradient) == len(d.visible) == 0


def test_halves_are_drawn_inside_the_original():
    g = blob((0.1, 0.2, 0.3), n=2000)
    g.scales[:] = torch.tensor([0.3, 0.1, 0.05]).log()
    g.quats[:] = torch.randn(4, generator=generator())
    d = densifier(torch.ones(2000), grow=1.0, cap=10**6)
    out = d.apply(g, *d.plan(g, grow=True))
    local = (out.means - g.means[0]) @ rotation_matrices(g.quats[:1])[0]
    std = local.std(0) / torch.tensor([0.3, 0.1, 0.05])
    torch.testing.assert_close(std, torch.full((3,), 0.7), atol=0.03, rtol=0)
    assert local.mean(0).abs().max() < 0.02


@pytest.mark.parametrize("opacity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("scale", "difference"), [(0.02, 0.004), (0.06, 0.02)])
def test_doubling_hardly_changes_the_picture(scale, difference, opacity):
    g, cameras = ball(800, scale, opacity), turntable(2, size=64)
    before = render(g, cameras, torch.ones(3))
    d = densifier(torch.rand(800, generator=generator()), cap=10**6)
    index, new = d.plan(g, grow=True)
    after = render(d.apply(g, index, new), cameras, torch.ones(3))
    assert int(new.sum()) == 96
    assert (after.rgb - before.rgb).abs().mean() < difference
    assert (after.alpha - before.alpha).mean().abs() < 0.004
    naive = render(g.select(index), cameras, torch.ones(3))
    assert (naive.alpha - before.alpha).mean() > (after.alpha - before.alpha).mean().abs()


def test_follows_its_generator_and_resumes():
    g, gradient = ball(100, scale=0.05), torch.rand(100, generator=generator())

    def grown(d: Densifier) -> Tensor:
        return d.apply(g, *d.plan(g, grow=True)).means

    first = densifier(gradient, seed=1, grow=0.3)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    means = grown(first)
    assert torch.equal(means, grown(densifier(gradient, seed=1, grow=0.3)))
    assert not torch.equal(means, grown(densifier(gradient, seed=2, grow=0.3)))
    resumed = Densifier(first.config, generator(99))
    resumed.load_state_dict(state)
    assert torch.equal(means, grown(resumed))
    assert torch.equal(first.generator.get_state(), resumed.generator.get_state())


def test_the_original_is_left_alone():
    g = ball(50, scale=0.05)
    copy = g.map(torch.Tensor.clone)
    d = densifier(torch.ones(50), grow=1.0)
    d.apply(g, *d.plan(g, grow=True))
    assert all(torch.equal(a, b) for a, b in zip(g.params().values(), copy.params().values(), strict=True))


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_prune_rules():
    g = ball(7, opacity=0.5)
    config = DensifyConfig(prune_opacity=0.02, prune_scale=0.35)
    g.opacities[0] = torch.tensor(0.019).logit()
    g.opacities[1] = torch.tensor(0.021).logit()
    g.scales[2, 1] = math.log(0.36)
    g.scales[3, 1] = math.log(0.34)
    g.means[4, 0] = math.nan
    g.scales[5, 2] = math.inf
    assert prunable(g, config).tolist() == [True, False, True, False, True, True, False]


@pytest.mark.parametrize("field", ["means", "quats", "scales", "opacities", "sh0"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_broken_gaussian_survives(field, value):
    g = ball(5)
    getattr(g, field)[2].view(-1)[0] = value
    assert prunable(g, DensifyConfig()).tolist() == [False, False, True, False, False]


# --- what shows, and what hangs together -----------------------------------------------------------------------------


def test_contribution_is_the_sum_of_blending_weights():
    g, cameras = ball(12, scale=0.08, opacity=0.7).map(torch.Tensor.double), turntable(3, size=24)
    # Paint one Gaussian white, all others black: the reference's picture is that one's weights.
    weights = []
    for i in range(12):
        rgb = torch.zeros(12, 3, dtype=torch.float64)
        rgb[i] = 1
        painted = replace(g, sh0=rgb_to_sh0(rgb)[:, None])
        weights.append(float(render_dense(painted, cameras).rgb[..., 0].sum()))
    found = contribution(g.map(torch.Tensor.float), cameras)
    torch.testing.assert_close(found.double(), torch.tensor(weights, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    assert not found.requires_grad


def test_contribution_ignores_colour_and_higher_bands():
    g, cameras = ball(30, scale=0.05), turntable(2, size=24)
    coloured = replace(g, sh0=torch.full_like(g.sh0, -5.0), shN=torch.randn(30, 3, 3))
    assert torch.equal(contribution(g, cameras), contribution(coloured, cameras))
    g.map(lambda p: p.requires_grad_(True))
    contribution(g, cameras)
    assert g.sh0.grad is None


def test_components():
    chain = joined(*(blob((0.05 * i, 0.0, 0.0)) for i in range(8)))
    apart = blob((0.0, 0.5, 0.0), n=3)
    labels = components(joined(chain, apart))
    assert len(set(labels[:8])) == 1
    assert len(set(labels[8:])) == 1
    assert labels[0] != labels[8]
    assert components(blob((0, 0, 0))).tolist() == [0]
    assert components(ball(2).select(torch.tensor([], dtype=torch.long))).tolist() == []


def test_sweep_removes_floaters_and_hidden_ones_but_not_the_body():
    body = shell(2000, 0.4)
    inside = ball(120, scale=0.02, opacity=0.9, seed=5)
    inside = replace(inside, means=0.4 * inside.means)
    floater = blob((0.0, 0.7, 0.0), n=2)
    outside = blob((0.0, 9.0, 0.0))
    faint = blob((0.0, 0.45, 0.0), opacity=0.01)
    huge = blob((0.0, 0.0, 0.0), scale=0.6, opacity=0.1)
    keep = sweep(joined(body, inside, floater, outside, faint, huge), DensifyConfig())
    assert keep[:2000].float().mean() > 0.99
    assert not keep[2000:].any()


def test_sweep_keeps_two_bodies():
    pair = joined(
        shell(200, 0.2), replace(shell(200, 0.2), means=shell(200, 0.2).means + torch.tensor([0.0, 0.7, 0.0]))
    )
    pair = replace(pair, means=pair.means - torch.tensor([0.0, 0.35, 0.0]))
    assert len(set(components(pair))) == 2
    assert sweep(pair, DensifyConfig()).float().mean() > 0.95


@pytest.mark.parametrize("g", [ball(20, opacity=0.001), joined(*[blob((0.0, 30.0 + i, 0.0)) for i in range(3)])])
def test_sweep_of_nothing_visible_keeps_nothing(g):
    assert not sweep(g, DensifyConfig()).any()


def test_sweep_hardly_changes_the_picture():
    g = joined(shell(600, 0.4), blob((0.0, 0.62, 0.0)))
    kept = g.select(sweep(g, DensifyConfig()))
    views: Cameras = turntable(4, size=48)
    white = torch.ones(3)
    body = render(g.select(torch.arange(600)), views, white).rgb
    assert (render(kept, views, white).rgb - body).abs().mean() < 1e-3
