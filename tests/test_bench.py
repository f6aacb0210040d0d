"""Benchmarks: statistics against closed forms, colours against the generator, work that is taken up again."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from bench import common, generate, preference, recognizable, verdicts
from bench.colours import NAMES, classify, fits, named, needed, shares
from mini.dataset import sample_light, shade, trace_scene
from mini.scenes import COLOURS, ItemLook, Look, paint, scene_of

from psd_gs.errors import PsdGsError
from psd_gs.gaussians import from_points, random_ball
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.scoring import evaluation_cameras
from psd_gs.trainer import StepEvent

PROMPTS = common.load_prompts()


# --- stand-ins: a pipeline whose assets are balls, and judges with known tastes --------------------------------------


class Judge:
    """Likes dark pictures, and captions in the order of their length."""

    differentiable = True

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, images, prompts, cameras=None):
        dark = 1 - images.mean((2, 3, 4))
        return 10 * dark.mean(1) - torch.tensor([float(len(prompt)) for prompt in prompts])


class Prior:
    name = "stand-in"
    device = torch.device("cpu")


class StandIn(TextTo3DPipeline):
    """Makes a ball of ``init.count`` Gaussians; counts how often."""

    def __init__(self) -> None:
        super().__init__(Prior(), Judge("likes"), Judge("judges"))
        self.made: list = []

    def trainer(self, config, folder=None):
        self.made.append(config)
        return Run(config)


class Run:
    def __init__(self, config) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        self.gaussians = random_ball(config.init.count, 0.5, scale=0.05, opacity=0.5, generator=generator)

    def run(self):
        for step in range(self.config.steps):
            grown = {"grown": 3.0, "pruned": 1.0} if step == 1 else {}
            yield StepEvent(step + 1, self.config.steps, grown)
        if self.config.guidance.method == "sds":
            raise PsdGsError("every Gaussian became transparent")

    def finish(self):
        return self.gaussians.select(torch.arange(len(self.gaussians) - 2))


@pytest.fixture
def bench(tmp_path):
    return common.Bench(StandIn(), tmp_path / "out")


def config_of(bench, **options):
    options = {"steps": 4, "init": {"count": 40}} | options
    return common.make_run_config(bench, "draft", PROMPTS[0]["prompt"], 0, options, where="test")


# --- statistics ------------------------------------------------------------------------------------------------------


def row_of(*sets):
    return {"judge": [list(scores) for scores in sets]}


def test_measures_of_a_verdict():
    right = [3.0, *[0.0] * 10]
    colour = [1.0, *[0.0] * 4, 2.0, *[0.0] * 5]
    row = row_of(right, colour)
    assert verdicts.accuracy(row) == 0.5
    assert verdicts.accuracy(row, "objects") == 1.0
    assert verdicts.accuracy(row, "colours") == 0.5
    assert verdicts.accuracy(row, "arrangements") == 1.0
    assert (verdicts.right_score(row), verdicts.worst_score(row)) == (2.0, 1.0)
    e = np.exp
    expected = (e(6) / (e(6) + 10) + e(2) / (e(2) + e(4) + 9)) / 2
    assert verdicts.match_probability(row, scale=2.0) == pytest.approx(expected)


def test_a_tie_is_not_right():
    assert verdicts.accuracy(row_of([0.0] * 11)) == 0.0


def test_captions_and_groups_agree():
    for prompt in PROMPTS:
        texts = verdicts.captions(prompt)
        assert texts[0] == prompt["prompt"]
        for group, place in verdicts.GROUPS.items():
            assert texts[place] == prompt["distractors"][group]


def test_verdict_scores_sets_by_captions():
    images = torch.rand(2, 4, 3, 8, 8)
    scores = verdicts.verdict(images, PROMPTS[0], {"judge": Judge("judges")})["judge"]
    texts = verdicts.captions(PROMPTS[0])
    expected = [[10 * float(1 - views.mean()) - len(text) for text in texts] for views in images]
    assert np.allclose(scores, expected, atol=1e-3)


def test_ratio_counts_from_the_given_zero():
    ones = np.ones(6)
    ratio, interval = recognizable.ratio_above(0.8 * ones, 1.8 * ones, -0.2 * ones)
    assert ratio == pytest.approx(0.5)
    assert interval == "[0.50, 0.50]"


def test_tables_are_markdown():
    assert verdicts.table(["a", "b"], [["x|y", 1]]).splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]


def test_logit_scale_undoes_the_standardization():
    class Embedded:
        class network:  # noqa: N801
            class config:  # noqa: N801
                score_std = 2.5

    assert verdicts.logit_scale(Embedded()) == 2.5
    assert verdicts.logit_scale(Judge("judges")) == 1.0


# --- colours ---------------------------------------------------------------------------------------------------------


def test_every_colour_is_named_at_any_shading():
    palette = torch.tensor(list(COLOURS.values()))
    for factor in (0.75, 0.9, 1.0):
        assert [NAMES[i] for i in classify((factor * palette).clamp(0, 1)).tolist()] == list(NAMES)


@pytest.mark.parametrize(("colour", "least"), [("red", 0.97), ("purple", 0.97), ("beige", 0.9), ("gray", 0.9)])
def test_colours_of_generator_renders(colour, least):
    look = Look((ItemLook("sphere", colour),))
    rng = random.Random(3)
    buffers = trace_scene(scene_of(look, rng), evaluation_cameras(24))
    rgba = shade(buffers, [paint(look, rng)], sample_light(1, torch.Generator().manual_seed(0)))[0]
    assert shares(rgba)[colour] >= least


def test_colours_ignore_what_is_transparent():
    rgba = torch.zeros(1, 4, 2, 2)
    rgba[0, :, 0, 0] = torch.tensor([0.86, 0.12, 0.12, 1.0])
    rgba[0, :, 0, 1] = 0.4 * torch.tensor([0.13, 0.26, 0.86, 1.0])
    assert shares(rgba) == {"red": 1.0}
    assert shares(torch.zeros(1, 4, 2, 2)) == {}


def test_needed_shares():
    one = Look((ItemLook("car", "red"),))
    several = Look((ItemLook("bus", "cyan", part="wheels", part_colour="yellow"),))
    assert named(several) == ["cyan", "yellow"]
    assert needed(one) == {"red": 0.5}
    assert needed(several) == {"cyan": 0.1, "yellow": 0.1}
    assert needed(several, {"cyan": 0.7, "yellow": 0.05}) == pytest.approx({"cyan": 0.1, "yellow": 0.04})
    assert fits({"cyan": 0.5, "yellow": 0.05}, needed(several, {"cyan": 0.7, "yellow": 0.05}))
    assert not fits({"cyan": 0.5}, needed(several))


# --- work that is kept -----------------------------------------------------------------------------------------------


def test_finished_runs_are_not_made_again(bench):
    config = config_of(bench)
    row = bench.asset_row(PROMPTS[0], config)
    assert [c.steps for c in bench.pipeline.made] == [3, 4]  # once to warm up, once in earnest
    assert (row["gaussians"], row["grown"], row["pruned"], row["swept"]) == (38, 3, 1, 2)
    assert bench.asset_row(PROMPTS[0], config) is row
    again = common.Bench(StandIn(), bench.out)
    assert again.asset_row(PROMPTS[0], config) == json.loads(json.dumps(row))
    assert again.pipeline.made == []
    assert bench.picture(row["key"]).exists()


def test_another_judge_scores_the_kept_asset(bench):
    config = config_of(bench)
    row = bench.asset_row(PROMPTS[0], config)
    pipeline = StandIn()
    pipeline.judge = Judge("another")
    again = common.Bench(pipeline, bench.out).asset_row(PROMPTS[0], config)
    assert again["key"] != row["key"]
    assert (again["judge"], again["seconds"], pipeline.made) == (row["judge"], row["seconds"], [])


def test_options_that_cannot_act_do_not_make_another_run(bench):
    quiet = {"guidance": {"preference": "none"}}
    louder = {"guidance": {"preference": "none", "psd": {"weight": 1.5}}}
    first, second = (bench.decides(config_of(bench, **options)) for options in (quiet, louder))
    assert first == second
    assert bench.decides(config_of(bench)) != bench.decides(config_of(bench, guidance={"psd": {"weight": 1.5}}))


def test_a_torn_line_is_ignored(tmp_path):
    journal = common.Journal(tmp_path)
    journal.append({"key": "a", "x": 1})
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "x"')
    again = common.Journal(tmp_path)
    again.append({"key": "c", "x": 3})
    assert set(common.Journal(tmp_path).rows) == {"a", "c"}


def test_shards_share_what_they_finished(tmp_path):
    first, second = (common.Bench(StandIn(), tmp_path, (i, 2)) for i in range(2))
    prompts = PROMPTS[:5]
    assert first.mine(prompts) + second.mine(prompts) == [prompts[i] for i in (0, 2, 4, 1, 3)]
    row = second.asset_row(prompts[1], config_of(second))
    assert common.Journal(tmp_path).rows[row["key"]]["prompt"] == prompts[1]["prompt"]


def test_a_vanished_asset_is_an_empty_one(bench):
    row = bench.asset_row(PROMPTS[0], config_of(bench, guidance={"method": "sds"}))
    assert row["gaussians"] == 0
    assert "transparent" in row["error"]
    assert row["colours"] == {}
    assert verdicts.right_score(row) == pytest.approx(-len(PROMPTS[0]["prompt"]), abs=1e-3)  # white


def test_small_components_are_counted():
    body = random_ball(300, 0.3, scale=0.05, opacity=0.5, generator=torch.Generator().manual_seed(0))
    speck = from_points(torch.tensor([[3.0, 0.0, 0.0]]), torch.ones(1, 3), scale=0.01, opacity=0.5)
    both = body.map(torch.clone)
    for name, tensor in both.params().items():
        setattr(both, name, torch.cat([tensor, speck.params()[name]]))
    assert common.small_components(body) == 0
    assert common.small_components(both) == 1


# --- arms ------------------------------------------------------------------------------------------------------------


def test_arms_are_parsed():
    arm = preference.Arm.parse("fixed:densify.enabled=false,init.count=final:psd,steps=time:psd")
    assert arm == preference.Arm("fixed", {"densify": {"enabled": False}}, time_of="psd", count_of="psd")
    assert preference.Arm.parse("psd") == preference.Arm("psd", {})


def compare(bench, *texts, prompts=PROMPTS[:2]):
    arms = {arm.name: arm for arm in map(preference.Arm.parse, texts)}
    return preference.Comparison(bench, arms, "draft", {"steps": 10, "init": {"count": 40}}, prompts)


def test_an_arm_can_start_with_the_final_count_of_another(bench):
    runs = compare(bench, "grown", "fixed:densify.enabled=false,init.count=final:grown")
    assert runs.run("fixed", PROMPTS[0], 0)["start"] == runs.run("grown", PROMPTS[0], 0)["gaussians"] == 38


def test_an_arm_can_take_the_time_of_another(bench, monkeypatch):
    real = common.optimize

    def slow_preference(pipeline, config):
        asset, facts = real(pipeline, config)
        per_step = 2.5 if config.guidance.preference == "psd" else 1.0
        return asset, facts | {"seconds": config.steps * per_step}

    monkeypatch.setattr(common, "optimize", slow_preference)
    runs = compare(bench, *preference.ARMS)
    row = runs.run("base-time", PROMPTS[0], 0)
    assert row["steps"] == 25
    assert row["seconds"] == runs.run("psd", PROMPTS[0], 0)["seconds"]
    resumed = compare(common.Bench(StandIn(), bench.out), *preference.ARMS)
    assert resumed.run("base-time", PROMPTS[0], 0)["key"] == row["key"]


def test_arms_must_refer_to_earlier_ones(bench):
    with pytest.raises(Exception, match="no arm before it"):
        compare(bench, "late:steps=time:psd", "psd")


def test_comparison_and_report(bench):
    def row(score, seconds, held):
        scores = [[score, *[0.0] * 10]] * 2
        return {
            "judge": scores, "reward": scores, "seconds": seconds, "cpu_seconds": seconds, "steps": 10, "start": 5,
            "grown": 1, "pruned": 2, "swept": 3, "gaussians": 1, "small_components": 0, "error": None,
            "held_out": held, "prompt": "a corgi", "machine": bench.machine,
        }  # fmt: skip

    runs = {
        "psd": [[row(1.0, 3.0, False), row(2.0, 3.0, False)], [row(0.5, 3.0, True)] * 2],
        "base": [[row(1.0, 2.0, False), row(1.0, 2.0, False)], [row(0.7, 2.0, True)] * 2],
    }
    c = preference.comparison(runs, "psd", "base", 1.0)
    assert c["judge"].tolist() == pytest.approx([0.5, -0.2])
    assert (c["wins"], c["held"], c["time"]) == (0.5, 0.0, 1.5)
    assert c["met"][0] is False
    page = preference.report(runs, ["base"], bench, "Title", "draft", 2)
    assert "| psd against base | 1.50x | 50 % | 0 % | +0.150 [-0.200, +0.500]" in page
    assert bench.machine["cpu"] in page


def test_dev_prompts_are_not_report_prompts():
    development = common.load_prompts(common.PROMPTS.with_name("dev_prompts.json"))
    assert len(development) == 8
    assert not {row["prompt"] for row in development} & {row["prompt"] for row in PROMPTS}
    assert all(len(set(verdicts.captions(row))) == 11 for row in development)


# --- time ------------------------------------------------------------------------------------------------------------


def test_clocks_count_and_repeat():
    done: list[int] = []
    clocks = generate.Clocks(every=2, synchronize=lambda: None)
    function = clocks.around(done.append, lambda x: f"of {x % 2}", lambda x: lambda: done.append(-x))
    for i in range(6):
        function(i)
    assert done == list(range(6))
    assert {kind: len(seconds) for kind, seconds in clocks.seconds.items()} == {"of 0": 3, "of 1": 3}
    assert clocks.bare("of 1", repetitions=1) > 0
    assert done[6:] == [-1, -5]


def test_bars_of_the_main_command():
    rows = [
        {"kind": "command", "run": "first", "seconds": 90.0, "loop": 40.0, "gigabytes": 1.5},
        {"kind": "command", "run": "second", "seconds": 50.0, "loop": 40.0, "gigabytes": 1.4},
        {"kind": "loop", "seconds": 40.0, "bare": 32.0, "steps": 10},
        *({"kind": "preference", "arm": arm, "seconds": s} for arm, s in (("psd", 40.0), ("base", 20.0))),
    ]
    assert generate.bars_table(rows, "default", 32).splitlines()[2:] == [
        "| wall time | 50.0 s | at most 120 s | yes |",
        "| first run on an empty kernel cache, more | 40.0 s | at most 30 s | no |",
        "| peak memory | 1.50 GB | at most 2 GB | yes |",
        "| loading, export and scores | 10.0 s |  |  |",
        "| step against its bare calls | 1.25 x | at most 1.2 x | no |",
        "| run with preference against one without | 2.00 x | at most 1.8 x | no |",
    ]


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_two_prompts_from_the_command_line(tmp_path):
    out = ["--out", str(tmp_path / "out"), "--prompts", "2", "--steps", "3", "--set", "init.count=100"]
    report = tmp_path / "preference.md"
    arguments = [*out, "--calibrate", "1", "--report", str(report)]
    preference.main(arguments)
    rows = [json.loads(line) for line in report.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["psd"] * 2 + ["base"] * 2 + ["base-time"] * 2
    journal = (tmp_path / "out" / "runs.jsonl").read_text()
    preference.main(arguments)
    assert (tmp_path / "out" / "runs.jsonl").read_text() == journal

    report = tmp_path / "recognizable.md"
    recognizable.main([*out, "--draws", "1", "--sampling-steps", "2", "--report", str(report)])
    assert "right caption picked" in report.read_text()
    assert report.with_suffix(".png").exists()
    new = (tmp_path / "out" / "runs.jsonl").read_text().removeprefix(journal).splitlines()
    assert sorted(json.loads(line)["kind"] for line in new) == ["empty"] * 2 + ["generator"] * 2 + ["prior"] * 2


@pytest.mark.full
def test_time_of_a_short_run(tmp_path):
    report = tmp_path / "generate.md"
    arguments = ["--preset", "draft", "--steps", "4", "--set", "init.count=100", "--repeat", "1"]
    generate.main([*arguments, "--skip-command", "--report", str(report)])
    rows = [json.loads(line) for line in report.with_suffix(".jsonl").read_text().splitlines()]
    parts = {row["part"]: row["calls"] for row in rows if row["kind"] == "part"}
    assert parts["render"] == parts["render, backward"] == 4
    assert sum(calls for part, calls in parts.items() if part.startswith("reward")) > 0
    assert "step against its bare calls" in report.read_text()
