"""Recipes: settings of published methods, complete, legal, and runnable on the embedded prior's scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from painted import PaintedPrior, RedReward, make_trainer
from test_config import CHECKOUT

from psd_gs.cli.generate import Generate
from psd_gs.config import PRESETS, RECIPES, Config, configs_folder, make_config, preset
from psd_gs.entries import FAMILIES, PRIORS
from psd_gs.errors import ConfigError
from psd_gs.guidance.guide import check_combination

FOLDER = CHECKOUT / "recipes"

EXPECTED = {
    "dreamgaussian": ("sd21", "sds", "none", 100.0, "linear"),
    "gaussiandreamer": ("sd21", "sds", "none", 100.0, "step"),
    "luciddreamer": ("sd21", "ism", "none", 7.5, "mvdream"),
    "mvdream": ("mvdream", "recon", "none", 50.0, "mvdream"),
    "dreamdpo": ("mvdream", "sds", "dreamdpo", 7.5, "mvdream"),
    "rewardsds": ("mvdream", "recon", "rewardsds", 50.0, "mvdream"),
    "dreamreward": ("mvdream", "recon", "dreamfl", 50.0, "mvdream"),
    "psd": ("mvdream", "recon", "psd", 50.0, "mvdream"),
}


def test_every_recipe_has_a_file_and_the_other_way_round():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*RECIPES, "small"}
    assert {path.name for path in (configs_folder() / "recipes").glob("*.yaml")} == {
        f"{n}.yaml" for n in [*RECIPES, "small"]
    }
    for path in FOLDER.glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= {"base", "common", *FAMILIES}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_what_they_say(name):
    prior = preset(name, "")["prior"]
    made = make_config(name, PRIORS[prior].family)
    guidance = made.guidance
    found = (made.prior, guidance.method, guidance.preference, guidance.guidance_scale, guidance.timesteps.schedule)
    assert found == EXPECTED[name]
    assert (made.preset, prior) == (name, made.prior)
    check_combination(guidance)
    assert (guidance.preference == "none") or made.reward != "auto"
    assert made.judge != made.reward or made.reward == "auto"


def test_values_of_the_sources():
    dpo = make_config("dreamdpo", "mvdream")
    assert (dpo.guidance.dreamdpo.threshold, dpo.guidance.dreamdpo.pair, dpo.reward) == (0.01, "view", "hpsv2.1")
    weighed = make_config("rewardsds", "mvdream").guidance.rewardsds
    assert (weighed.n_noises, weighed.preview_steps, weighed.weights, weighed.end) == (7, 15, "min-max", 0.7)
    lucid = make_config("luciddreamer", "sd")
    assert lucid.guidance.ism.delta == (0.1, 0.08)
    assert (lucid.cameras.groups, lucid.init.count) == (4, 100_000)
    assert make_config("gaussiandreamer", "sd").init.source == "shap-e"
    mvdream = make_config("mvdream", "mvdream")
    assert mvdream.guidance.negative_prompt.startswith("ugly, bad anatomy")
    assert mvdream.guidance.negative_prompt.endswith("bad proportions")
    assert dpo.cameras == mvdream.cameras  # by its base


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_take_a_few_steps_at_the_embedded_scale(name):
    made = make_config(name, "mini", {"prompt": "a red ball", "steps": 3})
    assert made.init.source == "ball"
    assert made.guidance.guidance_scale == 7.5
    small = replace(made, cameras=replace(made.cameras, size=(16, 16)), init=replace(made.init, count=100))
    trainer = make_trainer(small)
    logs = [event.logs for event in trainer.run()]
    assert len(logs) == 3
    assert trainer.skipped == 0


def test_groups_of_views_are_rendered_together():
    class Single(PaintedPrior):
        views = 1

        def predict(self, x_t, t, text, negative, cameras):
            self.seen = (x_t.shape[:2], t.tolist(), cameras)
            return super().predict(x_t, t, text, negative, cameras)

    prior = Single()
    made = make_config("luciddreamer", "mini", {"prompt": "a ball", "guidance": {"method": "sds"}})
    made = replace(made, cameras=replace(made.cameras, size=(16, 16), groups=4), init=replace(made.init, count=50))
    trainer = make_trainer(made, prior=prior, reward=RedReward())
    trainer._step()
    shape, times, cameras = prior.seen
    assert tuple(shape) == (4, 1)
    assert len(set(times)) == 4
    assert len(torch.unique(cameras.positions, dim=0)) == 4


# --- the command line ------------------------------------------------------------------------------------------------


def configured(**options: Any) -> Config:
    return Generate(prompt="a ball", **options).resolve("a ball")


def test_a_recipe_names_its_models_and_flags_go_over_it():
    made = configured(recipe="dreamdpo")
    assert (made.preset, made.prior, made.reward, made.judge) == ("dreamdpo", "mvdream", "hpsv2.1", "pickscore")
    assert made.cameras.size == (256, 256)
    small = configured(recipe="dreamdpo", prior="mini", steps=7)
    assert (small.prior, small.reward, small.judge, small.steps) == ("mini", "mini", "mini-judge", 7)
    assert small.guidance.preference == "dreamdpo"
    assert configured(recipe="rewardsds", reward="pickscore").reward == "pickscore"
    assert configured(recipe="mvdream", method="csd").guidance.method == "csd"


def test_a_run_with_a_recipe_repeats_from_its_config(tmp_path):
    from psd_gs.config import to_dict

    made = configured(recipe="dreamdpo", prior="mini")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(made)), encoding="utf-8")
    assert configured(config=path) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "dreamdop"}, r"unknown recipe 'dreamdop'. Did you mean dreamdpo or"),
        ({"recipe": "x"}, r"unknown recipe 'x'. Known: dreamgaussian, .*psd."),
        ({"recipe": "psd", "preset": "draft"}, "--recipe or --preset, received both"),
        ({"recipe": "luciddreamer", "prior": "mini", "preference": "dreamdpo"}, "residual per noise"),
    ],
)
def test_wrong_recipes(options, message):
    with pytest.raises(ConfigError, match=message):
        configured(**options)


def test_presets_and_recipes_do_not_share_names():
    assert not set(PRESETS) & set(RECIPES)
