"""Short runs of every base score times every preference, against recorded ones: guidance may be rewritten, not changed.

``python tests/test_guidance_recorded.py`` records anew, for a change of the methods themselves.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_guidance_methods import tiny_prior
from toy import ToyPrior, cameras_for, random_images

from psd_gs.config import GuidanceConfig, from_dict, merged
from psd_gs.guidance.guide import Guidance
from psd_gs.rewards.combine import Scored, WeightedSum

FILE = Path(__file__).parent / "data" / "guidance_runs.npz"
STEPS = 4

ALL_ACT = {
    "negative_prompt": "broken, blurry",
    "psd": {"start": 0.0, "t_max": 1.0},
    "negative": {"start": 0.0, "every": 2, "t_max": 1.0, "lr": 0.02},
    "dreamdpo": {"smooth": True, "t_max": 0.8},
    "rewardsds": {"preview_steps": 3, "end": 1.0},
    "dreamfl": {"start": 0.0, "ceiling": 1e3, "estimate_t_max": 0.5},
}
"""Options under which every part of each method has something to do within a few steps."""

PREFERENCES = ("none", "psd", "dreamdpo", "rewardsds", "dreamfl")
METHODS = ("sds", "recon", "csd", "ism", "nfsd", "asd")
RUNS: dict[str, dict[str, Any]] = {
    f"{method} {preference}": {"method": method, "preference": preference}
    for method, preference in itertools.product(METHODS, PREFERENCES)
    if (method, preference) not in (("ism", "dreamdpo"), ("ism", "rewardsds"))
}
RUNS |= {
    "vsd psd": {"method": "vsd"},
    "turned": {"psd": {"turn": 30.0, "n_noises": 4}, "negative": {"mode": "reward"}},
    "kept": {"psd": {"keep_noise": False, "antithetic": False, "n_noises": 3, "scale": "bt", "guard": 0.5}},
    "views": {"psd": {"pair": "view", "reward_prompt": "view", "scale": "ramp", "guard_reference": "contrast"}},
    "paused": {"psd": {"every": 2, "t_max": 0.7}, "negative": {"mode": "off"}},
    "perp": {"perp_neg": True, "weighting": "recon"},
    "votes": {"preference": "dreamdpo", "dreamdpo": {"vote": True, "form": "code", "n_noises": 3}},
    "softmax": {"preference": "rewardsds", "rewardsds": {"weights": "softmax", "preview_steps": 1}},
}


class Rows:
    """How much brighter the even rows of a view are than a share of the odd ones."""

    differentiable = True

    def __init__(self, share: float) -> None:
        self.name, self.share = f"rows {share}", share

    def score(self, images, prompts, cameras):
        return (images[..., ::2, :] - self.share * images[..., 1::2, :]).mean((2, 3, 4))


def run(options: dict[str, Any]) -> dict[str, np.ndarray]:
    """The images, the negative embedding and the mean of each log of a short run."""
    config = from_dict(GuidanceConfig, merged(ALL_ACT, options), "test")
    prior = tiny_prior() if config.method == "vsd" else ToyPrior(4 if config.preference == "rewardsds" else 1)
    reward = WeightedSum([Scored(Rows(0.5), std=0.1), Scored(Rows(2.0), -0.5, std=0.1)], "both")
    guidance = Guidance(prior, "y", config, reward=None if config.preference == "none" else reward, seed=5)
    images = random_images(2, prior.views).detach().to(prior.embed([""]).sequence.dtype)
    logs: list[dict[str, float]] = []
    for step in range(STEPS):
        images.requires_grad_(True)
        out = guidance(images, cameras_for(2, prior.views), step / STEPS, step)
        (gradient,) = torch.autograd.grad(out.loss, images)
        images = images.detach() - 0.05 * gradient
        logs.append(out.logs)
    spoken = sorted({name for entry in logs for name in entry})
    means = [np.mean([entry[name] for entry in logs if name in entry]) for name in spoken]
    state = [float(value.double().abs().mean()) for name, value in sorted(guidance.state_dict().items())]
    return {
        "images": images[:, :, 0].numpy(),
        "logs": np.array(means),
        "names": np.array(spoken),
        "state": np.array(state),
    }


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_as_it_was(name, recorded):
    loose = name.startswith("vsd")  # a network in float32, whose sums differ from machine to machine
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if loose else {"rtol": 1e-7, "atol": 1e-9}
    for part, value in run(RUNS[name]).items():
        before = recorded[f"{name}/{part}"]
        if part == "names":
            assert value.tolist() == before.tolist()
        else:
            np.testing.assert_allclose(value, before, **tolerance, err_msg=part)


if __name__ == "__main__":
    torch.set_num_threads(1)
    done = {f"{name}/{part}": value for name, options in RUNS.items() for part, value in run(options).items()}
    np.savez_compressed(FILE, **done)
    sys.stdout.write(f"{FILE}: {FILE.stat().st_size} bytes\n")
