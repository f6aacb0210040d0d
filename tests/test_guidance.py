"""One guidance step and a run of them, on the analytic prior."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from toy import COND_VAR, DIM, MEAN, NEG_VAR, OFF_STD, LinearReward, ToyPrior, cameras_for, flatten, random_images

from psd_gs.config.guidance import GuidanceConfig, NegativeConfig, PSDConfig, TimestepConfig
from psd_gs.errors import ConfigError, InputError
from psd_gs.guidance.guide import Guidance, sample_noise
from psd_gs.guidance.negative import NegativeEmbedding
from psd_gs.guidance.preference import group_norm
from psd_gs.guidance.timesteps import SCHEDULES
from psd_gs.priors.base import TextEmbedding
from psd_gs.rewards.base import CallableReward

OFF = NegativeConfig(mode="off")


def plain(**kwargs) -> GuidanceConfig:
    return GuidanceConfig(preference="none", **kwargs)


def latent_gradient(guidance: Guidance, images, cameras, progress=0.5, step=0):
    """Gradient of the loss on x0, and the logs; the toy's encoder averages three equal channels."""
    out = guidance(images, cameras, progress, step)
    (gradient,) = torch.autograd.grad(out.loss, images)
    return gradient.sum(2, keepdim=True), out.logs


def drawn(seed: int, x0, t_config: TimestepConfig, n: int, progress: float = 0.5):
    """What a fresh ``Guidance(seed=seed)`` draws first, by its documented order: timesteps, then noise."""
    guidance = Guidance(ToyPrior(), "y", plain(), seed=seed)
    u = torch.rand(len(x0), generator=guidance.timestep_generator)
    return SCHEDULES[t_config.schedule](progress, u, t_config), sample_noise(x0, n, True, guidance.noise_generator)


def textbook_epsilon(x_t, alpha, sigma, mean, variance, basis):
    """``sigma (alpha^2 Sigma + sigma^2)^-1 (x_t - alpha mu)`` with dense matrices."""
    projector, identity = basis @ basis.T, torch.eye(DIM, dtype=torch.float64)
    covariance = variance * projector + OFF_STD**2 * (identity - projector)
    z = flatten(x_t) - alpha * mean
    return (sigma * torch.linalg.solve(alpha**2 * covariance + sigma**2 * identity, z.T)).T.view(x_t.shape)


@pytest.mark.parametrize("phi", [0.0, 0.5])
@pytest.mark.parametrize("method", ["sds", "recon"])
def test_gradients_equal_the_textbook(method, phi):
    prior, images, cameras = ToyPrior(), random_images(3), cameras_for(3)
    x0 = prior.encode(images).detach()
    actual, _ = latent_gradient(Guidance(prior, "y", plain(method=method, rescale=phi), seed=5), images, cameras)
    t, noise = drawn(5, x0, TimestepConfig(), 1)
    for g in range(3):
        alpha, sigma = (value.view(()) for value in prior.alpha_sigma(t[g : g + 1]))
        x_t = alpha * x0[g] + sigma * noise[0, g]
        eps_cond = textbook_epsilon(x_t, alpha, sigma, MEAN, COND_VAR, prior.basis)
        eps_neg = textbook_epsilon(x_t, alpha, sigma, 0 * MEAN, NEG_VAR, prior.basis)
        eps = eps_neg + 7.5 * (eps_cond - eps_neg)
        if method == "sds":
            expected = sigma**2 * (eps - noise[0, g])
        elif phi == 0:
            expected = sigma / alpha * (eps - noise[0, g])
        else:
            guided, cond = (x_t - sigma * eps) / alpha, (x_t - sigma * eps_cond) / alpha
            expected = x0[g] - guided * (phi * cond.std() / guided.std() + 1 - phi)
        torch.testing.assert_close(actual[g], expected / 3, rtol=1e-7, atol=1e-10)


def test_reconstruction_target_is_base_estimate_plus_pair():
    """The x0 form: target = rescaled base estimate + omega kappa (winner - loser)."""
    prior, images, cameras, reward = ToyPrior(views=4), random_images(2, 4), cameras_for(2, 4), LinearReward()
    x0 = prior.encode(images).detach()
    psd = PSDConfig(weight=0.7, scale="sign", guard=float("inf"))
    config = GuidanceConfig(method="recon", rescale=0.0, guidance_scale=3.0, psd=psd, negative=OFF)
    actual, logs = latent_gradient(Guidance(prior, "y", config, reward=reward, seed=3), images, cameras)
    t, noise = drawn(3, x0, TimestepConfig(), 2)
    assert torch.equal(noise[1], -noise[0])
    estimates, base = [], 0
    for i in range(2):
        x_t = prior.add_noise(x0, noise[i], t)
        cond, neg = prior.predict(x_t, t, prior.embed(["y"]), prior.embed([""]), cameras)
        estimates.append(neg + 7.5 * (cond - neg))
        base = base + (neg + 3.0 * (cond - neg)) / 2
    scores = [reward.score(prior.decode(x), ["y"] * 2, cameras).mean(1) for x in estimates]
    first = (scores[0] > scores[1]).double().view(-1, 1, 1, 1, 1) * 2 - 1
    target = base + 0.7 * first * (estimates[0] - estimates[1])
    torch.testing.assert_close(actual * 8, x0 - target)
    assert logs["gap"] == pytest.approx(float((scores[0] - scores[1]).abs().mean()), rel=1e-5)
    assert logs["reward_win"] - logs["reward_lose"] == pytest.approx(logs["gap"], rel=1e-5)


def test_silent_steps_cost_one_prediction_and_no_judging():
    prior, reward = ToyPrior(views=4), LinearReward()
    guidance = Guidance(prior, "y", GuidanceConfig(psd=PSDConfig(every=2), negative=OFF), reward=reward)
    images, cameras = random_images(3, 4), cameras_for(3, 4)
    for progress, step in ((0.05, 0), (0.5, 1), (0.0, 2)):
        logs = guidance(images, cameras, progress, step).logs
        assert set(logs) == {"t", "base_norm"}
    assert (prior.calls, prior.decoded, reward.images_scored) == ([3, 3, 3], 0, 0)
    assert {"gap", "kappa", "pair_norm", "pair_share", "pair_cos"} <= set(guidance(images, cameras, 0.5, 2).logs)
    assert (prior.calls, prior.decoded, reward.images_scored) == ([3, 3, 3, 6], 6, 24)


def test_only_groups_below_t_max_are_judged():
    prior, reward = ToyPrior(), LinearReward()
    timesteps = TimestepConfig(schedule="uniform")
    config = GuidanceConfig(timesteps=timesteps, psd=PSDConfig(t_max=0.5), negative=OFF)
    images, cameras = random_images(16), cameras_for(16)
    guidance, bare = Guidance(prior, "y", config, reward=reward), Guidance(prior, "y", config, reward=reward)
    bare.preference.options = PSDConfig(t_max=0.5, guard=0.0)  # the same noises, no say
    gradient, _ = latent_gradient(guidance, images, cameras)
    t, _ = drawn(0, prior.encode(images), timesteps, 1)
    spoken = (t <= 0.5).tolist()
    assert 0 < sum(spoken) < 16
    assert reward.images_scored == 2 * sum(spoken)
    changed = (gradient != latent_gradient(bare, images, cameras)[0]).flatten(1).any(1)
    assert changed.tolist() == spoken


def test_pair_views_follow_their_own_winner_and_share_the_group():
    images, cameras = random_images(2, 4), cameras_for(2, 4)
    gradients = {}
    for pair in ("group", "view"):
        config = GuidanceConfig(psd=PSDConfig(pair=pair, scale="sign"), negative=OFF)
        gradients[pair], logs = latent_gradient(
            Guidance(ToyPrior(views=4), "y", config, reward=LinearReward()), images, cameras
        )
        assert logs["kappa"] == 1
    assert not torch.equal(gradients["group"], gradients["view"])


def test_pair_share_respects_the_guard():
    for guard in (1.0, 0.25):
        psd = PSDConfig(weight=50.0, guard=guard, guard_reference="base")
        config = GuidanceConfig(psd=psd, negative=OFF)
        guidance = Guidance(ToyPrior(), "y", config, reward=LinearReward())
        logs = guidance(random_images(4), cameras_for(4), 0.5, 0).logs
        assert logs["pair_share"] == pytest.approx(guard, rel=1e-5)


def test_without_a_verdict_the_base_score_remains():
    images, cameras = random_images(4), cameras_for(4)
    nowhere = CallableReward(lambda batch, prompts: [float("nan")] * len(batch))
    guidance = Guidance(ToyPrior(), "y", GuidanceConfig(negative=OFF), reward=nowhere)
    silent = Guidance(ToyPrior(), "y", GuidanceConfig(psd=PSDConfig(guard=0.0), negative=OFF), reward=LinearReward())
    gradient, logs = latent_gradient(guidance, images, cameras)
    assert torch.equal(gradient, latent_gradient(silent, images, cameras)[0])
    assert (logs["kappa"], logs["nan_pairs"]) == (0, 4)
    assert latent_gradient(guidance, images, cameras)[1]["nan_pairs"] == 8


def test_non_finite_renders_do_not_poison_the_gradient():
    images = random_images(2).detach()
    images[1, 0, 0, 0, 0] = float("nan")
    gradient, _ = latent_gradient(Guidance(ToyPrior(), "y", plain()), images.requires_grad_(True), cameras_for(2))
    assert gradient[0].abs().max() > 0
    assert group_norm(gradient[:1]).isfinite().all()


@pytest.mark.parametrize(("n", "antithetic"), [(2, True), (2, False), (5, True), (4, True)])
def test_noise(n, antithetic):
    like = torch.zeros(2, 4, 1, 16, 16)
    noise = sample_noise(like, n, antithetic, torch.Generator().manual_seed(0))
    assert noise.shape == (n, 2, 4, 1, 16, 16)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    half = (n + 1) // 2
    assert torch.equal(noise[half:], -noise[: n - half]) == antithetic


def test_half_precision_rewards_still_have_gaps():
    class Half(LinearReward):
        def score(self, images, prompts, cameras):
            return (1e-4 * super().score(images, prompts, cameras)).half()

    config = GuidanceConfig(psd=PSDConfig(scale="sign"), negative=OFF)
    images, cameras = random_images(4), cameras_for(4)
    half, logs = latent_gradient(Guidance(ToyPrior(), "y", config, reward=Half()), images, cameras)
    assert 0 < logs["gap"] < 1e-2
    assert torch.equal(
        half, latent_gradient(Guidance(ToyPrior(), "y", config, reward=LinearReward()), images, cameras)[0]
    )


def test_more_noises_in_one_call():
    prior, reward = ToyPrior(), LinearReward()
    config = GuidanceConfig(psd=PSDConfig(n_noises=5), negative=OFF)
    Guidance(prior, "y", config, reward=reward)(random_images(2), cameras_for(2), 0.5, 0)
    assert (prior.calls, reward.images_scored) == ([10], 10)


def test_images_of_another_size_are_resized():
    images = torch.rand(2, 1, 3, 20, 20, requires_grad=True)
    guidance = Guidance(ToyPrior(), "y", plain())
    guidance(images, cameras_for(2).resized(20, 20), 0.5, 0).loss.backward()
    assert images.grad.flatten(2).norm(dim=2).min() > 0


def test_single_view_priors_read_directions():
    class Recorder(ToyPrior):
        def predict(self, x_t, t, text, negative, cameras):
            self.rows = text.sequence[:, 1, 0].tolist()
            return super().predict(x_t, t, text, negative, cameras)

        def embed(self, prompts):
            self.prompts = prompts if len(prompts) > 1 else getattr(self, "prompts", prompts)
            text = super().embed(prompts)
            text.sequence[:, 1] = torch.arange(1.0, len(prompts) + 1)[:, None]
            return text

    prior = Recorder()
    Guidance(prior, "a cup", plain())(random_images(4), cameras_for(4), 0.5, 0)
    assert prior.prompts == [f"a cup, {d} view" for d in ("front", "side", "back", "overhead")]
    assert prior.rows == [1, 2, 3, 2]
    prior = Recorder()
    Guidance(prior, "a cup", plain(view_prompts=False))(random_images(4), cameras_for(4), 0.5, 0)
    assert prior.rows == [1]


def test_wrong_views_are_refused():
    guidance = Guidance(ToyPrior(views=4), "y", plain())
    with pytest.raises(InputError, match="groups of 4 views for prior toy"):
        guidance(random_images(2, 1), cameras_for(2), 0.5, 0)
    with pytest.raises(InputError, match="received 2 groups of 4 views and 2 cameras"):
        guidance(random_images(2, 4), cameras_for(2), 0.5, 0)


# Negative embedding


def test_refinement_needs_what_it_needs():
    black_box = CallableReward(lambda images, prompts: [0.0] * len(images), "vlm")
    with pytest.raises(ConfigError, match=r"black box vlm\. Set the mode to pull"):
        Guidance(ToyPrior(), "y", GuidanceConfig(negative=NegativeConfig(mode="reward")), reward=black_box)
    Guidance(ToyPrior(), "y", GuidanceConfig(negative=NegativeConfig(mode="pull")), reward=black_box)
    with pytest.raises(ConfigError, match="expected a reward for preference psd"):
        Guidance(ToyPrior(), "y")
    with pytest.raises(ConfigError, match="nothing could move"):
        NegativeEmbedding(TextEmbedding(torch.zeros(1, 2, 3)), NegativeConfig())


@pytest.mark.parametrize(("scale", "moves"), [(1.0, False), (7.5, True)])
def test_the_negative_branch_has_no_gradient_at_unit_scale(scale, moves):
    """Why a scale of 1 is refused."""
    prior, cameras = ToyPrior(), cameras_for(2)
    negative = NegativeEmbedding(prior.embed([""]), NegativeConfig())
    x_t, t = prior.encode(random_images(2)), torch.full((2,), 0.3)
    cond, neg = prior.predict(x_t, t, prior.embed(["y"]), negative.watched(), cameras)
    (gradient,) = torch.autograd.grad((neg + scale * (cond - neg)).square().sum(), negative.delta)
    assert (gradient.abs().max() > 1e-3) == moves


def test_trust_region_and_clipping():
    negative = NegativeEmbedding(TextEmbedding(torch.full((1, 4, 4), 0.5)), NegativeConfig(lr=0.5, radius=0.1))
    for step in range(5):
        loss = 1e6 * negative.watched().sequence.sum()
        negative.descend(loss, step)
        assert negative.delta.norm() <= 0.2 * (1 + 1e-6)
        assert not negative.embedding.sequence.requires_grad
    torch.testing.assert_close(negative.delta.norm(), torch.tensor(0.2))
    moments = negative.optimizer.state[0]
    # Clipped gradients have norm 1: their running mean after 5 equal steps is 1 - 0.9^5.
    torch.testing.assert_close(moments["exp_avg"].norm(), torch.tensor(1 - 0.9**5))


def test_a_non_finite_loss_leaves_the_embedding():
    negative = NegativeEmbedding(TextEmbedding(torch.ones(1, 2, 3)), NegativeConfig())
    negative.descend(negative.watched().sequence.sum() * float("nan"), 0)
    assert torch.equal(negative.delta, torch.zeros(1, 2, 3))


def test_cadence_counts_from_the_last_update():
    negative = NegativeEmbedding(TextEmbedding(torch.ones(1, 2, 3)), NegativeConfig(every=10, start=0.3, t_max=0.5))
    t = torch.tensor([0.4, 0.6])
    assert negative.due(0.3, 0, t).tolist() == [True, False]
    assert not negative.due(0.29, 0, t).any()
    negative.descend(negative.watched().sequence.sum(), 13)
    assert not negative.due(0.5, 22, t).any()
    assert negative.due(0.5, 23, t).any()


def test_half_precision_embeddings_keep_a_float_master():
    initial = TextEmbedding(torch.ones(1, 2, 3, dtype=torch.bfloat16))
    negative = NegativeEmbedding(initial, NegativeConfig(lr=1e-4))
    for step in range(3):
        negative.descend(negative.watched().sequence.sum(), step)
    torch.testing.assert_close(negative.delta, torch.full((1, 2, 3), -3e-4))
    assert negative.embedding.sequence.dtype == torch.bfloat16


# Runs


def run(guidance: Guidance, x, steps: range, total: int):
    """Plain gradient descent of the latent; returns the latents and all logs."""
    cameras, logs = cameras_for(*x.shape[:2]), []
    for step in steps:
        images = x.detach().repeat(1, 1, 3, 1, 1).requires_grad_(True)
        gradient, entry = latent_gradient(guidance, images, cameras, step / total, step)
        x = x - 0.5 * gradient
        logs.append(entry)
    return x, logs


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("mode", ["pull", "reward"])
def test_pair_and_refinement_act_within_thirty_steps(mode, views):
    config = GuidanceConfig(negative=NegativeConfig(mode=mode))
    guidance = Guidance(ToyPrior(views), "y", config, reward=LinearReward())
    _, logs = run(guidance, ToyPrior().encode(random_images(1, views)).detach(), range(30), 30)
    judged = [i for i, entry in enumerate(logs) if "gap" in entry]
    refined = [i for i, entry in enumerate(logs) if "negative_shift" in entry]
    assert judged[0] in range(3, 9)
    assert len(judged) >= 20
    assert refined
    assert refined[0] >= 9
    assert logs[refined[-1]]["negative_shift"] > 0
    assert guidance.negative.delta.norm() <= 0.1 * guidance.negative.initial.sequence.norm() * (1 + 1e-9)


@pytest.mark.parametrize("mode", ["pull", "auto"])
def test_black_box_rewards_refine_by_pull(mode):
    reward = CallableReward(lambda images, prompts: flatten(images[:, :1]) @ LinearReward().direction)
    guidance = Guidance(ToyPrior(), "y", GuidanceConfig(negative=NegativeConfig(mode=mode)), reward=reward)
    assert guidance.negative.config.mode == "pull"
    run(guidance, ToyPrior().encode(random_images(2)).detach(), range(30), 30)
    assert guidance.negative.delta.norm() > 0


def test_differentiable_rewards_refine_up_their_gradient_if_the_mode_is_auto():
    states = []
    for mode in ("auto", "reward"):
        config = GuidanceConfig(negative=NegativeConfig(mode=mode))
        guidance = Guidance(ToyPrior(), "y", config, reward=LinearReward())
        run(guidance, ToyPrior().encode(random_images(2)).detach(), range(30), 30)
        states.append(guidance.negative.delta)
    assert states[0].norm() > 0
    assert torch.equal(*states)


def test_a_resumed_run_equals_an_uninterrupted_one():
    config = GuidanceConfig(psd=PSDConfig(n_noises=3), negative=NegativeConfig(every=3))
    x = ToyPrior().encode(random_images(2)).detach()
    whole = Guidance(ToyPrior(), "y", config, reward=LinearReward(), seed=4)
    x_mid, _ = run(whole, x, range(20), 30)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    assert whole.negative.delta.norm() > 0
    end, logs = run(whole, x_mid, range(20, 30), 30)

    resumed = Guidance(ToyPrior(), "y", config, reward=LinearReward(), seed=99)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    end_resumed, logs_resumed = run(resumed, x_mid, range(20, 30), 30)
    assert torch.equal(end, end_resumed)
    assert logs == logs_resumed
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_foreign_state_is_refused():
    guidance = Guidance(ToyPrior(), "y", plain())
    state = guidance.state_dict()
    del state["negative.delta"]
    with pytest.raises(InputError, match=r"negative\.delta"):
        guidance.load_state_dict(state)


def test_given_generators_are_used():
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    guidance = Guidance(
        ToyPrior(), "y", plain(), timestep_generator=generators[0], noise_generator=generators[1], seed=7
    )
    before = [g.get_state() for g in generators]
    guidance(random_images(1), cameras_for(1), 0.5, 0)
    assert all(not torch.equal(g.get_state(), state) for g, state in zip(generators, before, strict=True))


@pytest.mark.parametrize("preference", ["none", "psd"])
def test_image_space_pulls_toward_the_decoded_estimate_without_a_graph_of_the_encoder(preference):
    """The estimate is that of the same step in latent space, whose gradient is the way to it over the views."""

    class Watched(ToyPrior):
        def encode(self, images):
            self.graph = torch.is_grad_enabled()
            return super().encode(images)

    config = GuidanceConfig(method="recon", preference=preference, negative=OFF, psd=PSDConfig(start=0.0))
    images, priors = random_images(2), {space: Watched() for space in ("latent", "image")}
    guides = {
        space: Guidance(prior, "y", replace(config, space=space), reward=LinearReward(), seed=3)
        for space, prior in priors.items()
    }
    gradient, logs = latent_gradient(guides["latent"], images, cameras_for(2))
    out = guides["image"](images, cameras_for(2), 0.5, 0)
    (pull,) = torch.autograd.grad(out.loss, images)
    assert {space: prior.graph for space, prior in priors.items()} == {"latent": True, "image": False}
    estimate = priors["image"].encode(images.detach()) - 2 * gradient
    torch.testing.assert_close(pull, (images.detach() - priors["image"].decode(estimate)) / 2)
    assert out.logs == logs
