"""A run's folder: whose it is, who may work in it, and what survives whatever happens there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from painted import PaintedPrior, RedReward, tiny_config

from psd_gs import runs
from psd_gs.config import Config, to_dict
from psd_gs.errors import ConfigError, FormatError, InputError, OutputError
from psd_gs.export.formats import load
from psd_gs.job import FREE, LOCK, Job, Request, differences, is_claimed, resolve
from psd_gs.pipeline import TextTo3DPipeline

pytestmark = pytest.mark.usefixtures("quick_files")

CONFIG = tiny_config(steps=4)


@pytest.fixture
def painted() -> TextTo3DPipeline:
    return TextTo3DPipeline(PaintedPrior(), RedReward())


def begun(folder: Path, config: Config = CONFIG) -> Path:
    """A folder with the options of a run in it, and something to lose."""
    folder.mkdir(parents=True)
    runs.write_yaml(folder / runs.OPTIONS, to_dict(config))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest.safetensors").write_bytes(b"precious")
    return folder


def finished(folder: Path, config: Config = CONFIG) -> Path:
    begun(folder, config)
    (folder / runs.ASSET).write_bytes(b"precious")
    (folder / runs.RECORD).write_text("{}")
    return folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("一只柯基", "红色的球"),
        ("Ж", "Ы"),
        (f"a corgi {'with a very long tail ' * 3} and a hat", f"a corgi {'with a very long tail ' * 3} and no hat"),
        ("蓝 cube", "红 cube"),
    ],
)
def test_prompts_that_a_slug_cannot_tell_apart_have_other_folders(one, other):
    assert runs.run_name(one, 0) != runs.run_name(other, 0)
    assert runs.run_name(one, 0) == runs.run_name(one, 0)
    assert runs.run_name(one, 0).isascii()
    assert len(runs.run_name(one, 0)) < 64


@pytest.mark.parametrize(("prompt", "name"), [("a corgi", "a-corgi-3"), ("A Corgi!", "a-corgi-3"), ("Löwe", "lowe-3")])
def test_plain_prompts_have_plain_folders(prompt, name):
    assert runs.run_name(prompt, 3) == name


# --- whose folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [begun, finished])
@pytest.mark.parametrize("switch", ["", "resume", "overwrite"])
@pytest.mark.parametrize("foreign", [{"prompt": "A red ball!"}, {"seed": 7}])
def test_the_run_of_another_prompt_is_never_touched(tmp_path, make, switch, foreign):
    other = make(tmp_path / "a-red-ball-0", replace(CONFIG, **foreign))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with Job.find(tmp_path, CONFIG, **({switch: True} if switch else {})) as job:
        assert job.folder == tmp_path / "a-red-ball-0-2"
        assert not job.has_begun
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == ["a-red-ball-0"]


def test_a_folder_that_cannot_be_read_is_somebody_elses(tmp_path, caplog):
    folder = begun(tmp_path / "a-red-ball-0")
    (folder / runs.OPTIONS).write_text("steps: [")
    with Job.find(tmp_path, CONFIG, overwrite=True) as job:
        assert job.folder.name == "a-red-ball-0-2"
    assert "not valid YAML" in caplog.text
    with pytest.raises(ConfigError, match="not valid YAML"):
        Job.find(tmp_path, CONFIG, resume=True)


def test_which_run_is_taken(tmp_path):
    for number in ("", "-2", "-3"):
        finished(tmp_path / f"a-red-ball-0{number}")
    for switches, name in (({}, "-4"), ({"resume": True}, "-3"), ({"overwrite": True}, "")):
        with Job.find(tmp_path, CONFIG, **switches) as job:
            assert job.folder == tmp_path / f"a-red-ball-0{name}"
            assert job.is_finished == job.has_begun == ("resume" in switches)
    begun(tmp_path / "a-red-ball-0-4")
    with pytest.raises(OutputError, match=r"a-red-ball-0-4 holds an unfinished run. Go on with --resume, or"):
        Job.find(tmp_path, CONFIG)
    for switches in ({"resume": True}, {"overwrite": True}):
        with Job.find(tmp_path, CONFIG, **switches) as job:
            assert job.folder == tmp_path / "a-red-ball-0-4"


def test_another_run_is_refused_or_kept_by_one_rule(tmp_path):
    folder = begun(tmp_path / "run")
    others = {
        "steps": 5,
        "prior": "sd15",
        "solid_steps": 3,
        "device": "cuda",
        "dtype": "float16",
        "renderer": "cpu",
        "vram": 8,
        "judge": "pickscore",
        "weights": {"a": "b"},
    }
    assert set(FREE) <= set(others)
    for name, value in others.items():
        config = replace(CONFIG, **{name: value})
        if name in FREE:
            with Job.open(folder, config) as job:
                assert job.config == config
            with Job.open(folder, config, on_mismatch="keep") as job:
                assert (job.config, job.differs) == (CONFIG, [])
            with Job.open(folder, config, on_mismatch="keep", named=[name]) as job:
                assert job.config == config
            with pytest.raises(OutputError, match=f"differs in {name}"):
                Job.open(folder, config, strict=(name,))
        else:
            with pytest.raises(OutputError, match=rf"holds a run that differs in {name}\. Choose another --output-dir"):
                Job.open(folder, config)
            with Job.open(folder, config, on_mismatch="keep", named=[name]) as job:
                assert (job.config, job.differs) == (CONFIG, [name])
    assert differences(CONFIG, replace(CONFIG, **others)) == ["prior", "steps", "solid_steps"]
    assert not is_claimed(folder)


# --- who works there -------------------------------------------------------------------------------------------------


def _hold(folder: Path, ready, done) -> None:
    with Job.open(folder, CONFIG, on_mismatch="keep"):
        ready.set()
        done.wait(60)


@pytest.fixture
def held(tmp_path):
    """A folder in which another process works."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "a-red-ball-0", ready, done))
    process.start()
    assert ready.wait(60)
    yield tmp_path / "a-red-ball-0", process
    if process.is_alive():  # the event of a killed process stays locked
        done.set()
    process.join()


def test_a_second_process_is_kept_out_until_the_first_is_gone(held):
    folder, process = held
    assert is_claimed(folder)
    with pytest.raises(OutputError, match=r"a-red-ball-0: expected a folder that nobody is working in"):
        Job.open(folder, CONFIG)
    with Job.find(folder.parent, CONFIG) as second, Job.find(folder.parent, CONFIG) as third:
        assert [second.folder.name, third.folder.name] == ["a-red-ball-0-2", "a-red-ball-0-3"]
    begun(folder / "x").rename(folder / "y")  # a run under way there
    for path in (folder / "y").iterdir():
        path.rename(folder / path.name)
    for switch in ("resume", "overwrite"):
        with pytest.raises(OutputError, match="received one that another process holds"):
            Job.find(folder.parent, CONFIG, **{switch: True})
    with Job.find(folder.parent, CONFIG) as next_one:
        assert next_one.folder.name == "a-red-ball-0-2"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (folder / LOCK).exists()
    with Job.find(folder.parent, CONFIG, resume=True) as job:  # what a killed process held is free
        assert job.folder == folder
    assert not (folder / LOCK).exists()


def test_nothing_is_left_of_a_folder_in_which_nothing_was_begun(tmp_path):
    Job.open(tmp_path / "root" / "run", CONFIG).close()
    assert names(tmp_path) == []
    (tmp_path / "root").mkdir()
    Job.open(tmp_path / "root" / "run", CONFIG).close()
    assert names(tmp_path) == ["root"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file.run: Not a directory. Choose another place"):
        Job.open(tmp_path / "file" / "run", CONFIG)


# --- a run's life ----------------------------------------------------------------------------------------------------


def test_begin_go_on_finish_complete(tmp_path, painted):
    with Job.open(tmp_path / "run", CONFIG) as job:
        trainer = job.begin(painted)
        seen = []
        events = trainer.run()
        assert job.run(lambda event: seen.append(event.step), events=(next(events) for _ in range(2)))
    assert seen == [1, 2]
    assert not runs.is_finished(tmp_path / "run")
    with Job.open(tmp_path / "run", CONFIG) as job:
        assert job.begin(painted).step == 2
        assert job.run()
        first = job.finish()
        assert job.is_finished
    (tmp_path / "run" / "preview.png").unlink()
    record = (tmp_path / "run" / runs.RECORD).read_bytes()
    with Job.open(tmp_path / "run", CONFIG) as job:
        assert job.complete(painted).metadata == first.metadata
    assert (tmp_path / "run" / "preview.png").exists()
    assert (tmp_path / "run" / runs.RECORD).read_bytes() == record
    assert not [name for name in names(tmp_path / "run") if name.startswith(".")]
    with Job.open(tmp_path / "straight", CONFIG) as job:
        job.begin(painted)
        job.run()
        assert torch.equal(job.finish().gaussians.means, load(tmp_path / "run" / runs.ASSET).means)


def test_what_is_replaced_stays_until_the_new_run_has_begun(tmp_path, painted, monkeypatch):
    folder = finished(tmp_path / "run")
    before = names(folder)
    with Job.open(folder, replace(CONFIG, prompt="123"), on_mismatch="replace") as job, pytest.raises(InputError):
        job.begin(painted)
    assert names(folder) == before
    with Job.open(folder, CONFIG, on_mismatch="replace") as job, monkeypatch.context() as patch:
        patch.setattr("psd_gs.trainer.Trainer.save_checkpoint", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.begin(painted)
    assert names(tmp_path) == [".run.replaced"]
    with Job.find(tmp_path, replace(CONFIG, prompt="run"), resume=True):
        pass
    with Job.open(folder, CONFIG, on_mismatch="keep") as job:  # it is brought back
        assert job.is_finished
        assert names(folder) == sorted([*before, LOCK])
    with Job.open(folder, CONFIG, on_mismatch="replace") as job:
        job.begin(painted)
    assert names(folder) == ["checkpoints", runs.OPTIONS]
    assert names(tmp_path) == ["run"]


def test_a_run_without_a_checkpoint_starts_anew_where_nobody_can_be_asked(tmp_path, painted, caplog):
    folder = begun(tmp_path / "run")
    with Job.open(folder, CONFIG) as job:
        with pytest.raises(FormatError, match="Start anew with --overwrite"):
            job.begin(painted)
        assert job.begin(painted, anew=True).step == 0
    assert "starting anew" in caplog.text


def test_files_that_a_killed_process_was_writing_are_swept(tmp_path, painted):
    folder = begun(tmp_path / "run")
    for name in (".splat.1234abcd.part.ply", "checkpoints/.latest.12345678.part.safetensors"):
        (folder / name).write_bytes(b"half")
    with Job.open(folder, CONFIG):
        assert not list(folder.rglob(".*.part*"))


def test_other_weights_are_named(tmp_path):
    painted = TextTo3DPipeline(PaintedPrior(), RedReward(), digests={"sd15/unet": "1", "new": "2"})
    config = replace(CONFIG, weights={"sd15/unet": "0", "gone": "3"})
    with Job.open(tmp_path / "run", config) as job:
        job.begin(painted)
        assert job.changed_weights == ["sd15/unet", "gone"]
        assert job.config.weights == painted.digests


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_options_go_over_the_file_over_the_preset():
    request = Request("a ball", file={"preset": "draft", "steps": 7, "seed": 3}, options={"seed": 4})
    config = resolve(request)
    assert (config.preset, config.steps, config.seed) == ("draft", 7, 4)
    assert (config.prior, config.reward, config.judge) == ("mini", "mini", "mini-judge")
    assert resolve(replace(request, preset="quality")).preset == "quality"
    assert resolve(replace(request, recipe="psd", file={}, options={"prior": "mini"})).preset == "psd"
    for wrong, match in (
        ({"preset": "x"}, "unknown preset 'x'"),
        ({"recipe": "x"}, "unknown recipe 'x'"),
        ({"recipe": "psd", "preset": "draft"}, "expected --recipe or --preset, received both"),
        ({"options": {"stepz": 1}}, "unknown option 'stepz'"),
        ({"options": {"judge": "mini", "reward": "mini"}}, "expected a model that is not optimized"),
    ):
        with pytest.raises(ConfigError, match=match):
            resolve(replace(request, **wrong))
    with pytest.raises(InputError, match="expected a prompt in words"):
        resolve(replace(request, prompt="12"))


# --- for real --------------------------------------------------------------------------------------------------------

GENERATE = [sys.executable, "-c", "from psd_gs.cli import main; main()", "generate", "a red cube", "--device", "cpu"]
GENERATE += ["--preset", "draft", "--set", "densify.enabled=false", "--set", "solid_steps=0"]


def until(ready, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.full
def test_two_processes_at_once_make_two_folders(tmp_path):
    both = [
        subprocess.Popen([*GENERATE, "--steps", steps], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for steps in ("3", "6")
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    folders = [tmp_path / "outputs" / name for name in ("a-red-cube-0", "a-red-cube-0-2")]
    assert names(tmp_path / "outputs") == [folder.name for folder in folders]
    steps = []
    for folder in folders:
        assert runs.is_finished(folder)
        rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, len(rows) + 1))
        steps.append(len(rows))
    assert sorted(steps) == [3, 6]


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_termination_stops_after_the_step_and_saves(tmp_path):
    process = subprocess.Popen([*GENERATE, "--steps", "400"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "outputs" / "a-red-cube-0"
    until((folder / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command and --resume" in out.splitlines()[-1]
    assert f"stopped at step {len((folder / 'metrics.jsonl').read_bytes().splitlines())};" in out
    assert not (folder / LOCK).exists()
