"""The conformance kit: our own models pass, and a broken one is told what is wrong with it.

Published rewards and the families of priors pass in the tests beside their own.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from test_priors import tiny_pipeline

from psd_gs.entries import PREFERENCES
from psd_gs.guidance.preference import Preference
from psd_gs.priors import load_prior
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.rewards import load_reward
from psd_gs.rewards.base import CallableReward
from psd_gs.testing import check_preference, check_prior, check_reward

ALWAYS = {"start": 0.0, "t_max": 1.0}


@pytest.mark.parametrize("name", PREFERENCES.own)
def test_our_preferences_pass(name):
    check_preference(name, ALWAYS if name != "none" else None)


@pytest.mark.full
def test_the_embedded_prior_passes():
    check_prior(load_prior("mini", dtype="float32"))


@pytest.mark.full
def test_the_embedded_prior_passes_in_half_precision_with_its_rounding():
    check_prior(load_prior("mini", dtype="bfloat16"), tolerance=0.02)


@pytest.mark.parametrize("name", ["mini", "mini-judge", "mini-judge:-0.5,mini"])
def test_the_embedded_rewards_pass(name):
    check_reward(load_reward(name))


def test_a_function_passes():
    check_reward(CallableReward(lambda images, prompts: images.mean((1, 2, 3))))


# --- and what is broken does not -------------------------------------------------------------------------------------


class Epsilon(MultiViewPrior):
    """Answers with the noise instead of the clean estimate."""

    def to_x0(self, output, x_t, t):
        alpha, sigma = self.alpha_sigma(t)
        return (x_t - alpha * super().to_x0(output, x_t, t)) / sigma


class Fixed(MultiViewPrior):
    """Embeds every prompt alike."""

    def embed(self, prompts):
        return TextEmbedding(torch.ones(len(prompts), 2, 3))


class Detached(MultiViewPrior):
    def encode(self, images):
        return super().encode(images.detach())


class Wild(MultiViewPrior):
    def decode(self, x0):
        return 3 * x0


class Backwards(MultiViewPrior):
    """Its time runs from noise to clean."""

    def alpha_sigma(self, t):
        return super().alpha_sigma(1 - t)


class Mixing(MultiViewPrior):
    """Lets groups see each other."""

    def predict(self, x_t, t, text, negative, cameras):
        return super().predict(x_t + x_t.mean(0), t, text, negative, cameras)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Epsilon, r"predict: expected clean estimates, which at t = 0.001 are within .* received [\d.]+"),
        (Fixed, "embed: expected prompts to differ, received equal rows"),
        (Detached, "encode: expected gradients, received none"),
        (Wild, r"decode: expected values in \[0, 1\], received -[\d.]+ to [\d.]+"),
        (Backwards, "alpha_sigma: expected sigma / alpha to rise with t, which is 0 where clean"),
        (Mixing, "predict: expected groups not to see each other, received a difference of"),
    ],
)
def test_broken_priors_are_told_why(cls, message):
    with pytest.raises(AssertionError, match=f"^prior broken: {message}"):
        check_prior(cls(tiny_pipeline(), "broken"))


class Broken:
    name, differentiable = "broken", True

    def __init__(self, score):
        self.score = score


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda images, prompts, cameras: images.mean(),
            r"score: expected [2, 4], or [2] of whole groups, received []",
        ),
        (lambda images, prompts, cameras: math.nan * images.mean((2, 3, 4)), "finite numbers, received 8 that are not"),
        (lambda images, prompts, cameras: images.detach().mean((2, 3, 4)), "score: expected gradients, received none"),
        (
            lambda images, prompts, cameras: images.mean((2, 3, 4)) + len(images),
            "expected groups not to see each other",
        ),
    ],
)
def test_broken_rewards_are_told_why(score, message):
    with pytest.raises(AssertionError, match=f"^reward broken: .*{re.escape(message)}"):
        check_reward(Broken(score))


class Forgetful(Preference):
    """Says more each time, and forgets it in checkpoints."""

    count = 0

    def residual(self, step):
        self.count += 1
        return self.count * step.latents, {}


class Careless(Preference):
    """Takes any run for granted."""

    def __init__(self, setup):
        self.prior, self.rewards = setup.prior, setup.rewards


class Vague(Preference):
    def residual(self, step):
        return None, {"verdict": torch.tensor(math.nan)}

    def loss(self, views):
        return views.images.detach().sum(), {}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Forgetful, "load_state_dict: expected to go on, received a difference of"),
        (Careless, "expected to refuse a run without reward with a ConfigError, received no error"),
        (Vague, "loss: expected gradients, received none"),
    ],
)
def test_broken_preferences_are_told_why(cls, message, monkeypatch):
    entry = type(PREFERENCES["psd"])(cls)
    monkeypatch.setitem(PREFERENCES.own, "psd", entry)
    with pytest.raises(AssertionError, match=f"^preference psd: {message}"):
        check_preference("psd", ALWAYS)


def test_an_unknown_preference_is_told_what_there_is():
    with pytest.raises(AssertionError, match=r"one of none, psd, .*; is the package installed\?, received tilt"):
        check_preference("tilt")
