"""``psd-gs eval``: runs that are made once, taken up again, given the same time, compared and reported."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from painted import PaintedPrior, RedReward, bright, tiny_config

from psd_gs import TextTo3DPipeline, trainer
from psd_gs.cli import main
from psd_gs.cli.eval import Run
from psd_gs.config import Config, to_dict
from psd_gs.errors import ConfigError, InputError, OutputError
from psd_gs.evaluation import compare, sweep
from psd_gs.evaluation.arms import parse_arm
from psd_gs.evaluation.report import write_report
from psd_gs.evaluation.scores import Viewing
from psd_gs.evaluation.suites import Item
from psd_gs.evaluation.sweep import Plan, Sweep, collect, spent
from psd_gs.export.formats import load
from psd_gs.job import Request, resolve
from psd_gs.rewards.base import CallableReward
from psd_gs.trainer import Trainer

ITEMS = [Item("a red ball", ("a blue ball",), "balls"), Item("a red box", ("a blue box",), "boxes")]


def options(**more) -> dict:
    """The tiny run of ``painted`` as options over a preset."""
    tiny = to_dict(tiny_config())
    names = ("guidance", "init", "cameras", "densify", "backgrounds", "solid_steps")
    return {name: tiny[name] for name in names} | {"steps": 8} | more


def plan_of(*arms: str, **more) -> Plan:
    request = Request("", "draft", options=more.pop("options", options()))
    more = {"items": ITEMS[:1], "request": request} | more
    return Plan(suite="test", arms=[parse_arm(arm) for arm in arms], viewing=Viewing(4, 32), **more)


def sweep_of(folder, *arms: str, prior=None, **more) -> Sweep:
    pipeline = TextTo3DPipeline(prior or PaintedPrior(), RedReward(), bright())
    return Sweep(pipeline, plan_of(*arms, **more), folder)


def run_all(made: Sweep) -> list:
    return [made.run(*task) for task in made.plan.tasks()]


@pytest.fixture
def trainings(monkeypatch):
    """Configurations of all optimizations that begin, warming up aside."""
    begun: list[Config] = []
    real = TextTo3DPipeline.trainer

    def counted(self, config, folder=None):
        if folder is not None:
            begun.append(config)
        return real(self, config, folder)

    monkeypatch.setattr(TextTo3DPipeline, "trainer", counted)
    return begun


# --- folders ---------------------------------------------------------------------------------------------------------


def test_every_task_has_a_folder_and_is_made_once(tmp_path, trainings):
    rows = run_all(sweep_of(tmp_path, "psd", "none", items=ITEMS))
    assert [(row["arm"], row["prompt"]) for row in rows] == [(a, i.prompt) for i in ITEMS for a in ("psd", "none")]
    assert len(trainings) == 4
    folder = tmp_path / "psd" / "a-red-ball-0"
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "splat.ply", "preview.png", "views.webp", "metrics.jsonl", "cost.json", "eval.json"} <= files
    row = rows[0]
    assert row["seconds"] == pytest.approx(spent(folder / "metrics.jsonl"), abs=1e-3)
    assert (row["steps"], row["error"], row["gaussians"]) == (8, None, len(load(folder / "splat.ply")))
    assert row["scores"].keys() == {"red", "bright"}
    scores = json.loads((folder / "psd_gs.json").read_text())["scores"]
    assert scores.keys() == row["scores"].keys()
    assert not (folder / "progress").exists()
    again = run_all(sweep_of(tmp_path, "psd", "none", items=ITEMS))
    assert again == rows
    assert len(trainings) == 4
    assert [row["arm"] for row in collect(tmp_path)] == ["none", "none", "psd", "psd"]


def test_what_was_killed_goes_on_and_ends_the_same(tmp_path, monkeypatch, trainings):
    whole = run_all(sweep_of(tmp_path / "whole", "psd"))[0]
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    step = Trainer._step

    def killed(self):
        if self.step == 5 and self.folder:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_all(sweep_of(tmp_path / "killed", "psd"))
    assert not (tmp_path / "killed" / "psd" / "a-red-ball-0" / "splat.ply").exists()
    monkeypatch.setattr(Trainer, "_step", step)
    taken = []
    monkeypatch.setattr(Trainer, "_step", lambda self: (taken.append(self.step), step(self))[1])
    row = run_all(sweep_of(tmp_path / "killed", "psd"))[0]
    assert [number for number in taken if number > 2] == [5, 6, 7]  # besides warming up
    assert row["scores"] == whole["scores"]
    folders = [tmp_path / name / "psd" / "a-red-ball-0" for name in ("whole", "killed")]
    a, b = (load(folder / "splat.ply") for folder in folders)
    assert all(torch.equal(x, b.params()[name]) for name, x in a.params().items())
    assert row["seconds"] == pytest.approx(spent(folders[1] / "metrics.jsonl"), abs=1e-3)
    assert len((folders[1] / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_kill_between_the_files_and_the_scores_scores_only(tmp_path, trainings):
    row = run_all(sweep_of(tmp_path, "none"))[0]
    (tmp_path / "none" / "a-red-ball-0" / "eval.json").unlink()
    assert run_all(sweep_of(tmp_path, "none"))[0] == row
    assert len(trainings) == 1


def test_another_judge_scores_what_is_there(tmp_path, trainings):
    run_all(sweep_of(tmp_path, "none"))
    more = sweep_of(tmp_path, "none")
    more.models["dark"] = CallableReward(lambda images, prompts: -images.mean((1, 2, 3)), "dark")
    row = run_all(more)[0]
    assert row["scores"]["dark"]["mean"] == -row["scores"]["bright"]["mean"]
    assert len(trainings) == 1


def test_other_options_are_refused(tmp_path):
    run_all(sweep_of(tmp_path, "none"))
    with pytest.raises(OutputError, match="differs in steps"):
        run_all(sweep_of(tmp_path, "none", options=options(steps=9)))


def test_misspelt_options_show_at_once(tmp_path):
    with pytest.raises(ConfigError, match="guard"):
        sweep_of(tmp_path, "psd", "x:guidance.psd.gard=1")


@pytest.mark.parametrize("asked", [{"preset": "draft"}, {"recipe": "dreamdpo"}, {"file": {"preset": "quality"}}])
def test_a_run_is_resolved_as_generate_resolves_it(mini_pipeline, tmp_path, asked):
    given = Request("a dog", options={"prior": "mini", "device": "cpu", "seed": 3, "steps": 7}, **asked)
    plan = Plan(suite="test", items=ITEMS, arms=[parse_arm("none"), parse_arm("x:steps=9")], request=given)
    made = Sweep(mini_pipeline, plan, tmp_path)
    alone = resolve(given)
    ours = [made.config(arm, "a dog", 3) for arm in plan.arms]
    assert ours[0].weights == made.decisive
    none = replace(alone.guidance, preference="none")
    names = {"reward": "mini", "judge": "mini-judge", "weights": made.decisive}
    assert ours[0] == replace(alone, guidance=none, **names)
    assert ours[1] == replace(alone, steps=9, **names)
    assert ours[0].preset == (asked.get("preset") or asked.get("recipe") or "quality")


def test_eval_run_asks_for_what_is_named():
    run = Run(suite="smoke-5", set=("guidance.psd.weight=3",), steps=9)
    assert run.request("a dog") == Request("a dog", "draft", options={"steps": 9, "guidance": {"psd": {"weight": 3}}})
    assert Run(suite="smoke-5", recipe="psd").request("a dog").preset is None
    assert Run(suite="smoke-5", preset="quality").request("a dog").preset == "quality"


def test_a_vanished_asset_is_a_result(tmp_path):
    row = run_all(sweep_of(tmp_path, "gone:densify.prune_opacity=0.999"))[0]
    assert row["gaussians"] == 0
    assert row["error"]
    assert row["scores"]["bright"]["mean"] == 1.0  # white
    found = compare.results(collect(tmp_path))
    assert "nothing is left" in write_report(tmp_path, found).read_text(encoding="utf-8")


def test_the_reward_picks_the_best_of_n(tmp_path, trainings):
    row = run_all(sweep_of(tmp_path, "best-of-3", options=options(steps=9)))[0]
    assert [config.seed for config in trainings] == [0, 1000, 2000]
    assert [config.steps for config in trainings] == [3, 3, 3]
    assert (row["steps"], row["runs"]) == (9, 3)
    assert row["candidates"][row["picked"]] == max(row["candidates"]) == row["scores"]["red"]["mean"]
    parts = [
        json.loads((tmp_path / "best-of-3" / "a-red-ball-0" / f"candidate-{k}" / "eval.json").read_text())
        for k in range(3)
    ]
    assert row["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
    assert len(collect(tmp_path)) == 1  # the candidates are no tasks
    run_all(sweep_of(tmp_path, "best-of-3", options=options(steps=9)))
    assert len(trainings) == 3


def test_shards_share_the_work(tmp_path, trainings):
    for index in range(2):
        run_all(sweep_of(tmp_path, "none", items=ITEMS, shard=(index, 2)))
    assert [config.prompt for config in trainings] == ["a red ball", "a red box"]
    assert len(collect(tmp_path)) == 2
    with pytest.raises(ConfigError, match="shard"):
        plan_of("none", shard=(2, 2))


# --- time ------------------------------------------------------------------------------------------------------------


class TimedPrior(PaintedPrior):
    """A clock goes on by a second for each set of views that it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def predict(self, x_t, t, *rest):
        self.now += len(x_t)
        return super().predict(x_t, t, *rest)


def timed(tmp_path, monkeypatch, *arms: str, **more) -> Sweep:
    prior = TimedPrior()
    clock = SimpleNamespace(perf_counter=lambda: prior.now, monotonic=lambda: 0.0)
    monkeypatch.setattr(trainer, "time", clock)
    return sweep_of(tmp_path, *arms, prior=prior, budget="equal-time", options=options(steps=12), **more)


def test_equal_time_is_equal(tmp_path, monkeypatch):
    made = timed(tmp_path, monkeypatch, "psd", "none", "best-of-2")
    rows = {row["arm"]: row for row in run_all(made)}
    budget = json.loads((tmp_path / "budget.json").read_text())
    assert (budget["kind"], budget["time_of"]) == ("equal-time", "psd")
    assert budget["seconds_per_step"]["none"] == budget["seconds_per_step"]["best-of-2"] == 1.0
    assert 1.5 < budget["seconds_per_step"]["psd"] < 2.5
    assert rows["psd"]["steps"] == 12
    assert rows["none"]["seconds"] == pytest.approx(rows["psd"]["seconds"], rel=0.1)
    assert rows["best-of-2"]["seconds"] == pytest.approx(rows["none"]["seconds"], abs=1.0)
    assert rows["none"]["seconds"] == rows["none"]["steps"] > 18


def test_the_time_can_be_that_of_the_base(tmp_path, monkeypatch):
    made = timed(tmp_path, monkeypatch, "psd", "none", time_of="none")
    assert made.budget.seconds == 12.0
    assert made.budget.steps == {"psd": int(12 / made.budget.seconds_per_step["psd"]), "none": 12}


def test_a_measured_time_is_kept(tmp_path, monkeypatch):
    first = timed(tmp_path, monkeypatch, "psd", "none").budget
    monkeypatch.setattr(Sweep, "measure", lambda self, arms: {arm.name: 4.0 for arm in arms})
    again = timed(tmp_path, monkeypatch, "psd", "none", "late:guidance.guidance_scale=3").budget
    assert again.seconds == first.seconds
    assert again.steps == first.steps | {"late": int(first.seconds / 4)}
    with pytest.raises(OutputError, match="equal-time psd"):
        _ = sweep_of(tmp_path, "psd").budget


def test_later_shards_wait_for_the_measurement(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="shard 0"):
        _ = timed(tmp_path, monkeypatch, "psd", "none", items=ITEMS, shard=(1, 2)).budget


# --- comparison and report -------------------------------------------------------------------------------------------


def row_of(arm: str, prompt: str, seed: int, judge: float, reward: float = 0.0) -> dict:
    part = {"min": judge - 1, "front": judge, "back": judge, "match": 0.5, "right": 1.0, "views": [judge] * 4}
    return {
        **{
            "suite": "s",
            "preset": "draft",
            "budget": "equal-steps",
            "prompt": prompt,
            "group": prompt[-3:],
            "arm": arm,
        },
        **{
            "seed": seed,
            "prior": "p",
            "optimized": "red",
            "weights": {"w": "123"},
            "version": "0",
            "steps": 5,
            "runs": 1,
        },
        **{"seconds": 2.0, "memory": None, "gaussians": 9, "error": None, "machine": {"processor": "x"}, "folder": "-"},
        "scores": {"red": part | {"mean": reward}, "bright": part | {"mean": judge}},
        "janus": {"opposite": 0.1, "back_share": 0.2, "front": [1.0, 0, 0, 0], "front_by": "likeness", "features": "f"},
    }


ROWS = [
    *(row_of("psd", "a dog", seed, 1.0 + seed) for seed in range(2)),
    *(row_of("none", "a dog", seed, 1.0) for seed in range(2)),
    *(row_of("psd", "a cat", 0, 0.0), row_of("none", "a cat", 0, 0.3), row_of("psd", "a cat", 1, 5.0)),
]


def test_only_tasks_that_all_arms_finished_count():
    found = compare.results(ROWS)
    assert found.seeds == {"a dog": [0, 1], "a cat": [0]}
    assert found.left_out == 1
    assert compare.results(ROWS, prompts=["a cat"]).by_prompt("psd", compare.headline(ROWS[0])[0]).tolist() == [
        0.0,
        1.5,
    ]
    p = compare.compare(found, "psd", "none", compare.headline(ROWS[0])[0])
    assert (p.n, p.wins) == (2, 0.5)
    assert p.mean == pytest.approx((0.5 - 0.3) / 2)
    assert found.groups == {"dog": ["a dog"], "cat": ["a cat"]}
    with pytest.raises(InputError, match="none in common"):
        compare.results(ROWS, ["psd", "dreamdpo"])


def test_the_judge_leads_and_the_optimized_reward_comes_last():
    names = [measure.name for measure in compare.headline(ROWS[0])]
    assert names[0] == "bright"
    assert names[-1] == "red (optimized)"
    assert compare.judges(ROWS[0]) == ["bright"]


def test_parts_of_the_reward_are_no_judges():
    models = ["a=x.pt,b:0.5", "a=x.pt", "b", "c=y.pt"]
    assert compare.held_out(models[0], models) == ["c=y.pt"]


def test_a_judge_does_not_decide_a_run(mini_pipeline, tmp_path):
    plan = Plan(suite="test", items=ITEMS, arms=[parse_arm("none")])
    with_judge = Sweep(mini_pipeline, plan, tmp_path)
    without = Sweep(TextTo3DPipeline(mini_pipeline.prior, mini_pipeline.reward), plan, tmp_path)
    assert with_judge.digests.keys() - without.digests.keys() == {"mini/judge/model.safetensors"}
    assert with_judge.decisive == without.decisive == without.digests
    assert any(name.startswith("mini/prior/") for name in without.digests)


def test_pairs():
    arms = ["psd", "dreamdpo", "none"]
    assert compare.pairs(arms) == [("psd", "none"), ("dreamdpo", "none"), ("psd", "dreamdpo")]
    assert compare.pairs(arms, ["psd"]) == [("dreamdpo", "psd"), ("none", "psd")]
    assert compare.pairs(["only"]) == []
    with pytest.raises(InputError, match="against"):
        compare.pairs(arms, ["other"])


def test_the_report_stands_alone(tmp_path):
    path = write_report(tmp_path / "new", compare.results(ROWS), command="psd-gs eval <run>")
    page = path.read_text(encoding="utf-8")
    assert "psd-gs eval &lt;run&gt;" in page
    assert page.count("<svg") >= 9
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| psd against none | +0.100 | [-0.300, +0.500] | 50 % | [9 %, 91 %] | +0.18 |" in text
    assert "| dog | 1 | 1.500 | 1.000 | 100 % |" in text
    assert "1 finished runs lack a partner" in text
    rows = [json.loads(line) for line in path.with_name("results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all("folder" not in row for row in rows)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_command_with_the_embedded_models(tmp_path, capsys, trainings):
    command = ["eval", "run", "smoke-5", "--prompts", "2", "--arms", "psd,none", "--steps", "2"]
    command += ["--views", "4", "--size", "32", "--output-dir", str(tmp_path)]
    main(command)
    assert "| psd against none |" in capsys.readouterr().out
    assert len(trainings) == 4
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 4
    main(command)
    assert len(trainings) == 4
    main(["eval", "report", str(tmp_path), "--against", "psd"])
    assert "| none against psd |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_scores_of_any_asset(tmp_path, capsys):
    from psd_gs.export.formats import save
    from psd_gs.gaussians import random_ball

    save(random_ball(50, 3.0, scale=0.3, opacity=0.8, generator=torch.Generator().manual_seed(0)), tmp_path / "a.splat")
    command = ["eval", "score", str(tmp_path / "a.splat"), "--prompt", "a ball", "--views", "4", "--size", "32"]
    main([*command, "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["scores"].keys() == {"mini", "mini-judge"}
    assert 0 < row["scores"]["mini-judge"]["match"] < 1
    main(command)
    assert "mini-judge" in capsys.readouterr().out


def test_what_the_command_line_refuses(tmp_path, capsys):
    for arguments, message in (
        (["run", "smoke-6"], "unknown suite"),
        (["run", "smoke-5", "--arms", "psdd"], "expected one of"),
        (["run", "smoke-5", "--shard", "1"], "--shard"),
        (["run", "smoke-5", "--views", "5"], "even"),
        (["run", "smoke-5", "--recipe", "psd", "--preset", "draft"], "received both"),
        (["report", str(tmp_path)], "received none"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", *arguments])
        assert message in capsys.readouterr().err


def test_memory_is_that_of_the_process():
    memory = sweep.Memory(torch.device("cpu"))
    memory.look()
    assert memory.peak is None or 0.05 < memory.peak < 200
