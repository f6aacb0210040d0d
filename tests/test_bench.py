"""Benchmarks: measures against closed forms, colours against the generator, work that is taken up again."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import PaintedPrior, RedReward, bright, tiny_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from bench import common, densify, export, generate, growth, limit, recognizable
from bench.recognizable import NAMES, classify, fits, named, needed, shares
from mini.dataset import sample_light, shade, trace_scene
from mini.scenes import COLOURS, ItemLook, Look, paint, scene_of

from psd_gs.config import read_config, to_dict
from psd_gs.evaluation.suites import load_suite
from psd_gs.export.formats import load
from psd_gs.gaussians import from_points, random_ball
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.scoring import evaluation_cameras

# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_of_a_verdict():
    row = {"scores": [[3.0, *[0.0] * 10], [1.0, *[0.0] * 4, 2.0, *[0.0] * 5]]}
    assert recognizable.accuracy(row) == 0.5
    assert [recognizable.accuracy(row, group) for group in recognizable.GROUPS] == [1.0, 0.5, 1.0]
    assert recognizable.score(row) == 2.0
    assert recognizable.accuracy({"scores": [[0.0] * 11]}) == 0.0  # a tie is not right


def test_ratio_counts_from_the_given_zero():
    ones = np.ones(6)
    assert recognizable.ratio_above(0.8 * ones, 1.8 * ones, -0.2 * ones) == "0.50 [0.50, 0.50]"


def test_the_generator_can_build_every_prompt_of_the_suites():
    items = [item for suite in ("mini-40", "mini-dev-8") for item in load_suite(suite)]
    assert {item.prompt for item in items} == recognizable.looks().keys()


def test_crumbs_are_counted():
    body = random_ball(300, 0.3, scale=0.05, opacity=0.5, generator=torch.Generator().manual_seed(0))
    speck = from_points(torch.tensor([[3.0, 0.0, 0.0]]), torch.ones(1, 3), scale=0.01, opacity=0.5)
    both = body.map(torch.clone)
    for name, tensor in both.params().items():
        setattr(both, name, torch.cat([tensor, speck.params()[name]]))
    assert densify.crumbs(body) == 0
    assert densify.crumbs(both) == 1


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


def test_finished_work_is_found_again(tmp_path):
    made = []

    def make(picture):
        made.append(picture)
        return {"x": len(made)}

    first = common.kept(tmp_path / "new", {"a": 1}, make)
    assert first == {"x": 1, "picture": str(made[0])}
    assert common.kept(tmp_path / "new", {"a": 1}, make) == first
    assert common.kept(tmp_path / "new", {"a": 2}, make)["x"] == 2
    assert len(set(made)) == 2


def arguments_of(folder: Path) -> list[str]:
    tiny = to_dict(tiny_config())
    options = {name: tiny[name] for name in ("guidance", "init", "cameras", "densify", "backgrounds", "solid_steps")}
    sets = [f"--set={name}={json.dumps(value)}" for name, value in options.items()]
    return ["--prompts", "1", "--steps", "12", "--output-dir", str(folder), *sets]


@pytest.fixture
def painted(monkeypatch):
    """Benchmarks with a prior, reward and judge that take no time."""
    monkeypatch.setattr(common, "load_pipeline", lambda *_: TextTo3DPipeline(PaintedPrior(), RedReward(), bright()))


@pytest.mark.usefixtures("painted")
def test_the_fixed_arm_starts_with_what_the_densified_one_ended_with(tmp_path, capsys):
    table = densify.main(arguments_of(tmp_path))
    folders = {arm: tmp_path / arm / "a-corgi-0" for arm in ("densified", "fixed")}
    final = len(load(folders["densified"] / "splat.ply"))
    assert final != 120
    configs = {arm: read_config(folder / "config.yaml") for arm, folder in folders.items()}
    assert (configs["densified"].init.count, configs["fixed"].init.count) == (120, final)
    assert (configs["densified"].densify.enabled, configs["fixed"].densify.enabled) == (True, False)
    logs = [json.loads(line) for line in (folders["densified"] / "metrics.jsonl").read_text().splitlines()]
    grown, pruned = (sum(log.get(name, 0) for log in logs) for name in ("grown", "pruned"))
    assert f"| densified | 120 | {grown:.0f} | {pruned:.0f} | {final} |" in table
    assert f"| fixed | {final} | 0 | 0 |" in table
    assert "| densified against fixed |" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("splat.ply")}
    assert densify.main(arguments_of(tmp_path)) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("splat.ply")} == before


def test_options_of_an_evaluation(painted, tmp_path):
    parser = argparse.ArgumentParser()
    common.add_sweep_arguments(parser, "x")
    sweep = common.sweep_of(parser.parse_args(arguments_of(tmp_path)), ["psd"])
    assert [item.prompt for item in sweep.plan.items] == ["a corgi"]
    assert sweep.config(sweep.plan.arms[0], "a corgi", 3).steps == 12
    with pytest.raises(SystemExit):
        parser.parse_args(["--set", "steps"])


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
        "| first run on an empty kernel cache, more | 40.0 s | at most 4 s | no |",
        "| peak memory | 1.50 GB | at most 2 GB | yes |",
        "| loading, export and scores | 10.0 s | at most 8 s | no |",
        "| step against its bare calls | 1.25 x | at most 1.12 x | no |",
        "| run with preference against one without | 2.00 x | at most 1.8 x | no |",
    ]


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_two_prompts_from_the_command_line(tmp_path):
    report = tmp_path / "recognizable.md"
    arguments = ["--output-dir", str(tmp_path / "out"), "--prompts", "2", "--steps", "3", "--set", "init.count=100"]
    arguments += ["--draws", "1", "--sampling-steps", "2", "--report", str(report)]
    text = recognizable.main(arguments)
    assert "right caption picked" in text
    assert report.read_text() == text.rstrip() + "\n"
    assert {path.name for path in tmp_path.glob("*.png")} == {f"recognizable_{k}.png" for k in recognizable.KINDS}
    rows = [json.loads(line) for line in report.with_suffix(".jsonl").read_text().splitlines()]
    assert [(len(row["scores"]), len(row["scores"][0])) for row in rows] == [(2, 11)] * 8
    kept = sorted((tmp_path / "out" / "pictures").glob("*.json"))
    assert len(kept) == 8  # of each prompt three kinds and the empty picture
    recognizable.main(arguments)
    assert sorted((tmp_path / "out" / "pictures").glob("*.json")) == kept


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


# --- the renderer's limit --------------------------------------------------------------------------------------------


def test_pairs_that_contribute_are_those_of_a_walk_over_all():
    """Every Gaussian at every pixel, from front to back, in float64."""
    gaussians = random_ball(150, 0.5, scale=0.06, opacity=0.6, generator=torch.Generator().manual_seed(0))
    cameras = evaluation_cameras(40)[:2]
    pairs, forward, backward = limit.measure(gaussians, cameras, 1)
    with torch.no_grad():
        options = (40, 40, 0, False)
        projected = limit._Project.apply(
            *gaussians.params().values(), cameras.viewmats, cameras.Ks, cameras.positions, options
        )
    rows = projected[1].double().numpy()
    y, x = np.mgrid[:40, :40] + 0.5
    contributing = 0
    for view in range(2):
        T, live = np.ones((40, 40)), np.ones((40, 40), bool)
        for i in np.argsort(rows[view, :, 7], kind="stable"):
            a, k, h, opacity, *_, cutoff, centre_x, centre_y, _ = rows[view, i]
            dy = y - centre_y
            sigma = 0.5 * (a * (x - centre_x - k * dy) ** 2 + h * dy**2)
            left = T * (1 - np.minimum(opacity * np.exp(-sigma), 0.999))
            reached = (sigma <= cutoff) & live
            live &= ~(reached & (left <= 1e-4))
            contributing += int((reached & live).sum())
            T = np.where(reached & live, left, T)
    assert pairs.contributing == pytest.approx(contributing, rel=1e-3)  # a pixel at the edge may round either way
    assert pairs.contributing <= pairs.visited <= 256 * pairs.listed
    assert forward.operations == limit.FORWARD * pairs.visited
    assert backward.seconds > 0
    assert limit.fma_rate(1, size=64) > 0


# --- growth and comparison -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [3, 10, 40]
    assert growth.exponent(sizes, [0.2 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_is_printed_with_its_bar(capsys, monkeypatch):
    monkeypatch.setitem(growth.KINDS, "prompts", (growth.queueing, (2, 4)))
    growth.main(["--only", "prompts", "--rounds", "1"])
    assert "prompts" in capsys.readouterr().out
    assert growth.measure([lambda: None], 2)[0] < 1


def test_every_shared_format_is_converted_both_ways(tmp_path):
    directions = export.conversions(tmp_path, export.SHARED)
    assert [title for title, *_ in directions][:3] == [
        "PLY to .ply",
        "PLY to .compressed.ply",
        ".compressed.ply to PLY",
    ]
    made = {target for _, _, target in directions}
    assert all(source in made | {tmp_path / "in.ply"} for _, source, _ in directions)
    assert {f"PLY to {extension}" for extension in export.SHARED} <= {title for title, *_ in directions}


def test_splat_transform_has_to_be_there(tmp_path):
    with pytest.raises(SystemExit, match=r"expected splat-transform, received no .*cli\.mjs"):
        export.compare(10, tmp_path, export.SHARED, 1)
