"""Rewards fitted to a known taste: losses in closed form, the taste recovered, too few answers refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranked import annotate, brightness, make_runs

from psd_gs import cli
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.models import digests_of, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.ranking import fit
from psd_gs.ranking.answers import Answer, append_answer, read_answers
from psd_gs.ranking.fit import Comparisons, accuracy, bt_loss, fit_head, folds_of, gain, ipo_loss
from psd_gs.ranking.server import Session
from psd_gs.rewards import load_reward, names_of, needed
from psd_gs.rewards.base import FeatureReward
from psd_gs.rewards.fitted import LinearHead, save_fitted
from psd_gs.scoring import evaluation_images


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Answers of an annotator who likes it bright, given through the page."""
    folder = tmp_path_factory.mktemp("study")
    make_runs(folder / "outputs")
    annotate(Session([folder / "outputs"], folder / "pairs.jsonl", "ada"), brightness)
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def fitted(study) -> Path:
    out = study.parent / "likes-bright"
    cli.main(["fit-reward", str(study), str(out), "--from", "mini", "--device", "cpu"])
    return out


# --- losses ----------------------------------------------------------------------------------------------------------


def test_bt_is_the_log_likelihood_of_the_winner():
    z, degree = torch.tensor([0.7, -0.3, 1.1]).double(), torch.tensor([2.0, -1.0, 0.0]).double()

    def likelihood(x: float) -> float:
        return math.log(1 / (1 + math.exp(-x)))

    e = fit.SMOOTHING
    expected = [
        -(1 - e) * likelihood(0.7 - 1.0) - e * likelihood(1.0 - 0.7),
        -(1 - e) * likelihood(0.3 - 0.5) - e * likelihood(0.5 - 0.3),
        -0.5 * likelihood(1.1) - 0.5 * likelihood(-1.1),
    ]
    assert torch.allclose(bt_loss(z, degree), torch.tensor(expected).double())


@pytest.mark.parametrize("loss", [bt_loss, ipo_loss])
def test_targets_are_bounded_and_grow_with_the_degree(loss):
    """The best difference of each degree: margin + logit(1 - smoothing), or degree / (4 beta)."""
    z = torch.linspace(-8, 8, 16001).double()
    best = [float(z[loss(z, torch.full_like(z, degree)).argmin()]) for degree in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    logit = math.log((1 - fit.SMOOTHING) / fit.SMOOTHING)
    expected = (0.5 + logit, 1.0 + logit) if loss is bt_loss else (0.5, 1.0)
    assert best == pytest.approx([-expected[1], -expected[0], 0, *expected], abs=2e-3)


def synthetic(pairs: int = 300, width: int = 6, noise: float = 0.0) -> tuple[Comparisons, torch.Tensor]:
    """Answers about random features, by a known direction; the base's score is one that does not count."""
    generator = torch.Generator().manual_seed(0)
    taste = torch.randn(width + 1, generator=generator)
    taste[-1] = 0
    features = torch.randn(2 * pairs, width + 1, generator=generator)
    left, right = torch.arange(pairs), torch.arange(pairs, 2 * pairs)
    z = (features[right] - features[left]) @ taste + noise * torch.randn(pairs, generator=generator)
    degree = (z.sign() * (1 + (z.abs() > 1.5).float())).masked_fill(z.abs() < 0.2, 0.0)
    return Comparisons(features, left, right, degree, tuple(f"prompt {i % 20}" for i in range(pairs))), taste


@pytest.mark.parametrize("loss", ["bt", "ipo"])
def test_a_direction_is_recovered(loss):
    data, taste = synthetic()
    head = fit_head(data, loss, 0.003)
    assert torch.cosine_similarity(head.weight, taste, dim=0) > 0.95
    assert ((data.features - head.mean) @ head.weight).std() == pytest.approx(1, abs=1e-4)


def test_ipo_with_hardly_a_penalty_is_least_squares():
    data, _ = synthetic()
    plain = replace(data, degree=torch.where(data.degree == 0, 1.0, data.degree))
    head = fit_head(plain, "ipo", 1e-9)
    difference = data.features[data.right] - data.features[data.left]
    solution = torch.linalg.lstsq(difference.double(), plain.degree.double()[:, None]).solution[:, 0]
    assert torch.cosine_similarity(head.weight.double(), solution, dim=0) > 1 - 1e-5


def test_noise_alone_is_no_better_than_a_coin():
    data, _ = synthetic(150)
    coin = torch.randint(2, (150,), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    found = fit.cross_validated(replace(data, degree=coin), "bt")
    assert found.held_out.low < 0.5 < found.held_out.high


def test_folds_keep_prompts_together():
    prompts = [f"prompt {i % 7}" for i in range(40)]
    folds = folds_of(prompts, 5)
    assert sorted(torch.cat(folds).tolist()) == list(range(40))
    owners = [{prompts[row] for row in fold.tolist()} for fold in folds]
    assert sum(map(len, owners)) == 7


def test_intervals():
    """Wilson's interval of 8 of 10, as tables have it; prompts that all agree leave no doubt."""
    found = accuracy(torch.tensor([True] * 8 + [False] * 2))
    assert (found.share, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert gain(torch.ones(6), torch.zeros(6), ["a", "b", "c"] * 2) == (1.0, 1.0, 1.0)
    mean, low, high = gain(torch.tensor([1.0, 1, 0, 0]), torch.zeros(4), ["a", "a", "b", "b"])
    assert (mean, low, high) == (0.5, 0.0, 1.0)


# --- the taste -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_taste_is_recovered(fitted, study):
    config = json.loads((fitted / "config.json").read_text())
    assert len(read_answers(study)) == 120
    assert config["held_out_accuracy"]["share"] > 0.8
    assert config["base_accuracy"]["share"] < 0.7
    assert config["gain"][1] > 0


@pytest.mark.full
@pytest.mark.parametrize("prompt", ["a cube", "a cone"])
def test_psd_moves_assets_toward_the_taste(fitted, mini_pipeline, prompt):
    """Short runs of the preset as it is, with this reward and without a preference; same seed."""
    reward = load_reward(str(fitted))
    pipeline = TextTo3DPipeline(mini_pipeline.prior, reward, mini_pipeline.judge)
    base, psd = (
        pipeline(prompt, preset="draft", steps=100, overrides={"guidance": guidance, "solid_steps": 0})
        for guidance in ({"preference": "none"}, {})
    )
    assert psd.scores[reward.name] > base.scores[reward.name] + 0.3
    assert evaluation_images(psd.gaussians).mean() > evaluation_images(base.gaussians).mean()


def test_the_folder_is_a_reward_everywhere(tmp_path):
    name = str(tmp_path / "mine")
    weight = torch.randn(257, generator=torch.Generator().manual_seed(0)) / 16
    save_fitted(name, LinearHead(torch.zeros(257), weight), {"base": "mini"})
    reward = load_reward(name)
    assert (reward.name, reward.differentiable) == (name, True)
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = reward.score(images, ["a red cube", "a blue cone"], None)
    assert scores.shape == (2,)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.abs().amax((1, 2, 3, 4)) > 0).all()
    step = 1e-3 * gradient.sign()
    numeric = (reward.score(images + step, ["a red cube", "a blue cone"], None).sum() - scores.sum()).item()
    assert numeric == pytest.approx((gradient * step).sum().item(), rel=0.1)
    both = load_reward(f"mini:2,{name}:0.5").score(images, ["a red cube"] * 2, None)
    alone = load_reward("mini").score(images, ["a red cube"] * 2, None)
    assert torch.allclose(both, 2 * alone + 0.5 * reward.score(images, ["a red cube"] * 2, None), atol=1e-5)
    assert names_of(f"{name}:2") == ["mini", name]
    assert needed(name) == []
    assert resolve("mini", name, "auto") == ("mini", name, "mini-judge")
    with pytest.raises(ConfigError, match="a model that is not optimized, received mini of reward"):
        resolve("mini", name, "mini")
    assert list(digests_of("mini", name)) == [f"{name}/head.safetensors"]


def test_damaged_folders(tmp_path):
    save_fitted(tmp_path / "r", LinearHead(torch.zeros(3), torch.ones(3)), {"base": "mini"})
    (tmp_path / "r" / "head.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="Fit it again"):
        load_reward(str(tmp_path / "r"))
    (tmp_path / "r" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"unknown reward .*a folder that `psd-gs fit-reward` wrote"):
        load_reward(str(tmp_path / "r"))


def test_too_few_answers_are_refused(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    for i in range(30):
        append_answer(path, Answer(f"prompt {i % 3}", f"a{i}", f"b{i}", (0, 1, 2)[i % 3]))
    with pytest.raises(SystemExit):
        cli.main(["fit-reward", str(path), str(tmp_path / "out")])
    assert "at least 50 different pairs with a winner, received 20" in (error := capsys.readouterr().err)
    assert "Answer 30 more" in error
    assert not (tmp_path / "out").exists()
    for i in range(60):
        append_answer(path, Answer(f"prompt {i % 3}", f"c{i}", f"d{i}", 1))
    with pytest.raises(InputError, match=r"at least 5 prompts, received 3: accuracy is measured on prompts"):
        fit.check_enough(read_answers(path))


def test_what_cannot_be_fitted(tmp_path):
    with pytest.raises(ConfigError, match="expected a reward whose features can be read"):
        fit.fit_reward("any", load_reward("mini,mini-judge"), "mini,mini-judge", tmp_path / "out")
    for i in range(50):
        append_answer(tmp_path / "pairs.jsonl", Answer(f"prompt {i % 5}", f"a{i}", f"b{i}", 1))
    with pytest.raises(InputError, match="which is not there"):
        fit.fit_reward(tmp_path / "pairs.jsonl", load_reward("mini"), "mini", tmp_path / "out")


@pytest.mark.parametrize("name", ["mini", "mini-judge"])
def test_features_make_the_score(name):
    reward = load_reward(name)
    assert isinstance(reward, FeatureReward)
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = reward.features(images, ["a red cube", "a dog"])
    assert torch.equal(reward.score_features(features), reward.score(images, ["a red cube", "a dog"]))
