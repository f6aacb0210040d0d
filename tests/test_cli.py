"""The command line in all its ways, on a prior that takes milliseconds; for real it runs in ``test_generate.py``."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh
import yaml
from batch_workers import Clock
from painted import PaintedPrior, RedReward, assert_same, bright, tiny_config
from program import psd_gs
from test_generate import FILES

from psd_gs import cli, pipeline, result, runs, trainer
from psd_gs.cli import making
from psd_gs.config import Config, from_dict, to_dict
from psd_gs.errors import OutputError
from psd_gs.export.formats import save
from psd_gs.export.ply import read_ply_metadata
from psd_gs.files import writing
from psd_gs.gaussians import random_ball
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.render import choose_renderer

STEPS = 10


def cpu_seconds(code: str) -> tuple[float, str]:
    """Processor time of a fresh interpreter that runs ``code``, the best of three, and what it printed."""
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", f"import sys, time\n{code}\nprint(time.process_time(), file=sys.stderr)"]
        environment = {**os.environ, "PYTHONUTF8": "1"}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stderr))
    return min(seconds), done.stdout


def test_help_is_quick():
    """Half a second, start of the interpreter included; double that on a slow or busy machine."""
    code = "from psd_gs.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    seconds, text = cpu_seconds(code)
    assert {"generate", "words"} <= set(text.split())
    assert seconds < 1.0


def test_the_package_imports_quickly_and_without_torch():
    heavy = "{'torch', 'numpy', 'diffusers', 'transformers', 'scipy', 'numba'}"
    seconds, _ = cpu_seconds(f"import psd_gs\nassert not {heavy} & set(sys.modules)")
    assert seconds < 0.3


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"psd-gs {version('psd-gs')}\n"


def test_help_of_generate_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = "preset recipe prior reward judge method preference negative-prompt steps seed best-of device init config"
    for flag in [*flags.split(), "output-dir", "resume", "overwrite", "quiet", "debug", "negative-embedding"]:
        assert f"--{flag}" in text, flag


def test_a_real_process_says_it_in_one_line():
    done = psd_gs("generate", "", cwd=Path(__file__).parent)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: expected a prompt in words, such as \"a corgi\", received ''.\n"


def interrupted(folder: Path, seconds: float) -> subprocess.CompletedProcess:
    """Start the main command, and press Ctrl-C some time after its first step."""
    command = [sys.executable, "-c", "from psd_gs.cli import main; main()", "generate", "a red cube", "--steps", "200"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "outputs" / "a-red-cube-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process alone")
def test_a_real_interrupt_is_exact(tmp_path, mini_pipeline):
    done = interrupted(tmp_path, 5.0)
    assert done.returncode == 130
    assert done.stderr == ""
    assert "go on with the same command and --resume" in done.stdout.splitlines()[-1]
    folder = tmp_path / "outputs" / "a-red-cube-0"
    config = from_dict(Config, yaml.safe_load((folder / "config.yaml").read_text()), "config")
    resumed = mini_pipeline.trainer(config, folder)
    resumed.load_checkpoint()
    straight = mini_pipeline.trainer(config)
    for event in straight.run():
        if event.step == resumed.step:
            break
    assert_same(straight.state_dict(), resumed.state_dict())


# --- the same command on a prior that takes milliseconds -------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, quick_files):
    """Calls the program in this process, on the painted prior: ``(exit code, stdout, stderr)``."""
    options = {name: value for name, value in to_dict(tiny_config()).items() if isinstance(value, dict)}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**options, "backgrounds": "white", "steps": STEPS, "solid_steps": 2}))

    def load(prior="auto", *, reward="auto", judge="auto", device="auto", **options):
        made = TextTo3DPipeline(PaintedPrior(), RedReward(), bright("mini-judge"))
        made.reward.name = "mini"
        return made

    monkeypatch.setattr(TextTo3DPipeline, "from_pretrained", load)
    monkeypatch.setattr(making, "silence_libraries", lambda: None)
    monkeypatch.setattr(result, "datetime", Clock)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, tiny: bool = True) -> tuple[int, str, str]:
        more = ["--config", str(file)] if tiny and "--config" not in arguments and arguments[0] == "generate" else []
        code = 0
        try:
            cli.main([*arguments, *more])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


BALL = ("generate", "a red ball")
FOLDER = Path("outputs") / "a-red-ball-0"


def interrupt_at(step: int, monkeypatch, times: int = 1) -> None:
    """Press Ctrl-C in the middle of a step."""
    inner = trainer.Trainer._step

    def stepped(self):
        if self.step == step - 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return inner(self)

    monkeypatch.setattr(trainer.Trainer, "_step", stepped)


def contents(folder: Path) -> dict[str, object]:
    """All files but the report, which has times; of the log, what is not a time."""
    out: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            out[path.name] = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
        elif path.is_file() and path.name != "report.html":
            out[str(path.relative_to(folder))] = path.read_bytes()
    return out


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Of runs that are made once and not changed."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole(command, kept) -> dict[str, object]:
    """The contents of an uninterrupted run of ``BALL``."""
    folder = kept / "whole" / FOLDER.name
    if not folder.exists():
        assert command(*BALL, "--output-dir", str(folder.parent))[0] == 0
    return contents(folder)


@pytest.fixture
def finished(whole, kept) -> Path:
    """That run where the command looks for it."""
    return shutil.copytree(kept / "whole" / FOLDER.name, FOLDER)


@pytest.fixture
def unfinished(command, kept, monkeypatch) -> Path:
    """A run that stopped at step 5."""
    folder = kept / "unfinished" / FOLDER.name
    if not folder.exists():
        with monkeypatch.context() as patch:
            interrupt_at(5, patch)
            assert command(*BALL, "--output-dir", str(folder.parent))[0] == 130
    return shutil.copytree(folder, FOLDER)


def test_runs_are_repeatable_to_the_bit(command, whole):
    code, _, err = command(*BALL)
    assert (code, err) == (0, "")
    assert contents(FOLDER) == whole
    assert len(whole) == 17
    assert sum("progress" in name for name in whole) == 8
    assert command(*BALL, "--seed", "1")[0] == 0
    assert contents(Path("outputs") / "a-red-ball-1")["splat.ply"] != whole["splat.ply"]


def test_a_finished_folder_is_left_alone(command, whole, finished):
    for number in (2, 3):
        code, out, _ = command(*BALL)
        assert code == 0
        assert out.splitlines()[-1].startswith(f"{FOLDER}-{number}  (mini ")
    assert contents(finished) == whole
    assert sorted(path.name for path in Path("outputs").iterdir()) == [f"a-red-ball-0{n}" for n in ("", "-2", "-3")]


def test_the_runs_own_config_repeats_it(command):
    assert command(*BALL, "--seed", "7", "--steps", "9", "--preset", "draft")[0] == 0
    first = Path("outputs") / "a-red-ball-7"
    assert command(*BALL, "--config", str(first / "config.yaml"), "--output-dir", "again")[0] == 0
    assert contents(first) == contents(Path("again") / "a-red-ball-7")


def test_flags_go_over_the_file_over_the_preset(command, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("{preset: draft, seed: 4, steps: 2, guidance: {guidance_scale: 2}, init: {count: 50}}")
    arguments = ("--config", str(file), "--steps", "1", "--method", "sds", "--preference", "none")
    assert command(*BALL, *arguments, "--negative-prompt", "blurry")[0] == 0
    config = yaml.safe_load((Path("outputs") / "a-red-ball-4" / "config.yaml").read_text())
    assert (config["preset"], config["seed"], config["steps"], config["init"]["count"]) == ("draft", 4, 1, 50)
    guidance = config["guidance"]
    assert (guidance["method"], guidance["preference"], guidance["guidance_scale"]) == ("sds", "none", 2.0)
    assert guidance["negative_prompt"] == "blurry"


# --- stop, resume, overwrite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 6, STEPS])
def test_interrupt_and_resume_equal_an_uninterrupted_run(command, whole, monkeypatch, step):
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        code, out, err = command(*BALL)
    assert (code, err) == (130, "")
    assert out.splitlines()[-1] == f"stopped at step {step}; go on with the same command and --resume"
    assert not (FOLDER / "splat.ply").exists()
    code, out, err = command(*BALL, "--resume")
    assert (code, err) == (0, "")
    assert f"going on from step {step}" in out
    assert contents(FOLDER) == whole


def test_interrupting_twice_stops_at_once_and_the_last_checkpoint_holds(command, whole, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(6, patch, times=2)
        code, _, err = command(*BALL)
    assert (code, err) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert command(*BALL, "--resume")[0] == 0
    assert contents(FOLDER) == whole


def test_interrupt_while_files_are_written(command, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("psd_gs.mesh.glb.write_glb", lambda *a, **k: signal.raise_signal(signal.SIGINT))
        code, _, err = command(*BALL)
    assert (code, err) == (130, "interrupted\n")
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert f"going on from step {STEPS}" in out
    assert contents(FOLDER) == whole


def one_line(result: tuple[int, str, str], *parts: str) -> None:
    """A failure: one line on stderr that has all ``parts``, exit code 1, no traceback."""
    code, out, err = result
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    for part in parts:
        assert part in err


def test_an_unfinished_folder_is_neither_lost_nor_mixed_up(command, whole, unfinished):
    before = contents(unfinished)
    one_line(command(*BALL), "holds an unfinished run", "--resume", "--overwrite")
    assert contents(unfinished) == before
    assert command(*BALL, "--overwrite")[0] == 0
    assert contents(unfinished) == whole


def test_overwrite_replaces_a_finished_run(command):
    assert command(*BALL, "--steps", "3")[0] == 0
    (FOLDER / "stray.txt").write_text("")
    assert command(*BALL, "--overwrite")[0] == 0
    assert not (FOLDER / "stray.txt").exists()
    assert yaml.safe_load((FOLDER / "config.yaml").read_text())["steps"] == STEPS
    assert [path.name for path in Path("outputs").iterdir()] == ["a-red-ball-0"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--set", "guidance.method=sdz"),
        ("--init", "missing.ply"),
        ("--device", "cuda:99"),
        ("--negative-embedding", "missing"),
    ],
)
def test_a_command_that_cannot_run_deletes_nothing(command, whole, finished, wrong):
    one_line(command(*BALL, "--overwrite", *wrong))
    assert contents(finished) == whole


def test_a_model_that_cannot_be_loaded_deletes_nothing(command, whole, finished, monkeypatch):
    def fail(*args, **kwargs):
        raise OutputError("no such model")

    monkeypatch.setattr(TextTo3DPipeline, "from_pretrained", fail)
    one_line(command(*BALL, "--overwrite"), "no such model")
    assert contents(finished) == whole


def test_resume_finds_the_unfinished_run_behind_finished_ones(command, whole, finished, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert command(*BALL)[0] == 130
    one_line(command(*BALL), "a-red-ball-0-2 holds an unfinished run")
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{FOLDER}-2  (")
    assert contents(finished) == whole
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert command(*BALL)[0] == 130
    assert command(*BALL, "--overwrite")[0] == 0  # the unfinished third, not the finished first
    assert contents(finished) == whole
    assert len(list(Path("outputs").iterdir())) == 3


def test_resume_without_anything_to_resume(command):
    one_line(command(*BALL, "--resume"), "nothing to resume", "a-red-ball-0", "Leave --resume out")
    assert not Path("outputs").exists()
    one_line(command(*BALL, "--resume", "--overwrite"), "expected --resume or --overwrite, received both")


def test_resuming_a_finished_run_shows_its_scores(command):
    _, first, _ = command(*BALL)
    before = contents(FOLDER)
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert f"{FOLDER} is finished already" in out
    assert out.splitlines()[-1] == first.splitlines()[-1]
    assert contents(FOLDER) == before


def test_resume_keeps_the_runs_own_options_and_says_so(command, unfinished):
    code, out, _ = command(*BALL, "--resume", "--steps", "40", "--method", "sds")
    assert code == 0
    assert "config.yaml differs from this command in steps, guidance, and holds" in out
    assert f"step {STEPS}/{STEPS}" in out
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert (config["steps"], config["guidance"]["method"]) == (STEPS, "recon")


def test_stop_and_keep(command, monkeypatch):
    """The live view ends the run early: everything is written, and says how far it came."""

    class Stopped:
        address = "http://127.0.0.1:8080"
        closed = False

        def __init__(self, port):
            assert port == 9000

        def follow(self, trainer, interrupted):
            for event in trainer.run():
                yield event
                if event.step == 4:
                    return

        def close(self):
            Stopped.closed = True

    monkeypatch.setattr("psd_gs.live.LiveView", Stopped)
    code, out, err = command(*BALL, "--live", "--live-port", "9000")
    assert (code, err) == (0, "")
    assert "live view: http://127.0.0.1:8080" in out
    assert f"kept as of step 4 of {STEPS}" in out
    assert Stopped.closed
    metadata = json.loads((FOLDER / "psd_gs.json").read_text())
    assert (metadata["steps"], metadata["steps_done"]) == (STEPS, 4)
    assert f"4 of {STEPS} steps" in (FOLDER / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (FOLDER / "progress").iterdir())[-1] == "000004.png"
    assert "is finished already" in command(*BALL, "--resume")[1]


def test_report(command, finished):
    page = finished / "report.html"
    assert page.read_text(encoding="utf-8").count("<svg") >= 8
    page.unlink()
    (finished / "turntable.mp4").unlink()
    code, out, _ = command("report", str(finished))
    assert code == 0
    assert out.startswith(str(page))
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "rew')  # a step that is being written
    assert command("report", str(finished))[0] == 0
    with (finished / "metrics.jsonl").open("a") as file:
        file.write("\n")
    one_line(command("report", str(finished)), "metrics.jsonl, line 11", "Delete that line")
    (finished / "psd_gs.json").write_text("[]")
    one_line(command("report", str(finished)), "expected fields by name, received []")
    one_line(command("report", "outputs"), "expected the folder of a run")


def test_another_prompt_of_the_same_name_is_not_resumed(command, unfinished):
    before = contents(unfinished)
    one_line(command("generate", "A red ball!", "--resume"), "nothing to resume", "a-red-ball-0-2")
    assert command("generate", "A red ball!", "--overwrite", "--steps", "2")[0] == 0
    assert contents(unfinished) == before
    assert command(*BALL, "--resume")[0] == 0


def test_a_damaged_checkpoint_is_one_clear_line(command, unfinished):
    path = unfinished / "checkpoints" / "latest.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    (path.parent / "previous.safetensors").unlink()
    one_line(command(*BALL, "--resume"), "latest.safetensors is not a complete safetensors file", "--overwrite")
    (unfinished / "config.yaml").write_text("steps: [")
    one_line(command(*BALL, "--resume"), "config.yaml is not valid YAML")


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_the_checkpoint_before_serves_where_the_last_is_damaged(command, whole, unfinished, damage, caplog):
    path = unfinished / "checkpoints" / "latest.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "gone": b""}[damage])
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert f"going on from step {STEPS}" not in out
    assert "Going on from the checkpoint before it, of step 0" in caplog.text
    assert contents(FOLDER) == whole


def test_a_run_that_has_begun_can_always_go_on(command, monkeypatch):
    """Whatever moment it dies in: the checkpoint is there before the folder counts as begun."""
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_yaml", lambda *a: (_ for _ in ()).throw(OutputError("killed")))
        one_line(command(*BALL), "killed")
    assert (FOLDER / "checkpoints" / "latest.safetensors").exists()
    assert command(*BALL)[0] == 0  # not begun: no switch is needed


# --- several seeds ---------------------------------------------------------------------------------------------------


def test_best_of_keeps_and_ranks_all(command):
    code, out, _ = command(*BALL, "--best-of", "3", "--seed", "5", "--quiet")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert {line.split("  (")[0] for line in lines} == {str(Path("outputs") / f"a-red-ball-{s}") for s in (5, 6, 7)}
    rewards = [float(line.split("(mini ")[1].split(",")[0]) for line in lines]
    assert rewards == sorted(rewards, reverse=True)
    for line in lines:
        folder = Path(line.split("  (")[0])
        assert {path.name for path in folder.iterdir()} >= FILES
        scores = json.loads((folder / "psd_gs.json").read_text())["scores"]
        assert float(line.split("(mini ")[1].split(",")[0]) == pytest.approx(scores["mini"], abs=6e-4)
    alone = command(*BALL, "--seed", "6", "--output-dir", "alone")
    assert alone[0] == 0
    assert contents(Path("outputs") / "a-red-ball-6") == contents(Path("alone") / "a-red-ball-6")


@pytest.mark.full
def test_best_of_goes_on_where_it_stopped(command, whole, monkeypatch):
    with monkeypatch.context() as patch:
        inner = trainer.Trainer._step

        def stepped(self):
            if self.config.seed == 1 and self.step == 4:
                signal.raise_signal(signal.SIGINT)
            return inner(self)

        patch.setattr(trainer.Trainer, "_step", stepped)
        assert command(*BALL, "--best-of", "3")[0] == 130
    code, out, _ = command(*BALL, "--best-of", "3", "--resume")
    assert code == 0
    assert "a-red-ball-0 is finished already" in out
    assert "going on from step 5" in out
    assert len(out.splitlines()[-3:]) == 3
    assert contents(FOLDER) == whole
    assert command(*BALL, "--seed", "1", "--output-dir", "alone")[0] == 0
    assert contents(Path("outputs") / "a-red-ball-1") == contents(Path("alone") / "a-red-ball-1")
    assert (Path("outputs") / "a-red-ball-2" / "splat.ply").exists()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("",), ["expected a prompt in words"]),
        (("   ",), ["expected a prompt in words"]),
        (("🐶",), ["expected a prompt in words"]),
        (("a corgi " * 100,), ["at most 500 characters, received 800"]),
        (("\udcff corgi",), ["expected a prompt in UTF-8"]),
        (("a ball", "--config", "missing.yaml"), ["cannot read missing.yaml: No such file or directory"]),
        (("a ball", "--config", "typo.yaml"), ["guidance: unknown option 'guidence_scale'", "mean guidance_scale?"]),
        (("a ball", "--config", "broken.yaml"), ["broken.yaml is not valid YAML"]),
        (("a ball", "--config", "wrong.yaml"), ["wrong.yaml.steps: expected int, received 'many'"]),
        (("a ball", "--config", "."), ["cannot read ."]),
        (("a ball", "--steps", "0"), ["steps: expected a value from 1 upwards, received 0"]),
        (("a ball", "--seed", "-1"), ["seed: expected a value from 0", "received -1"]),
        (("a ball", "--seed", str(2**70)), ["seed: expected a value from 0"]),
        (("a ball", "--best-of", "0"), ["--best-of: expected 1 or more, received 0"]),
        (("a ball", "--set", "guidance.method=sdz"), ["guidance.method: expected 'sds' or 'recon' or", "'sdz'"]),
        (("a ball", "--set", "guidance.psd.wait=3"), ["guidance.psd: unknown option 'wait'", "weight"]),
        (("a ball", "--set", "steps"), ["expected key=value", "received 'steps'"]),
        (("a ball", "--device", "gpu"), ["unknown device 'gpu'"]),
        (("a ball", "--device", "cuda:99"), ["device cuda:99 is not available", "Leave --device out"]),
        (("a ball", "--init", "missing.ply"), ["missing.ply"]),
        (("a ball", "--init", "truncated.ply"), ["truncated.ply is truncated"]),
        (("a ball", "--init", "truncated.glb"), ["truncated.glb"]),
        (("a ball", "--init", "typo.yaml"), ["typo.yaml: expected a point cloud or mesh", ".yaml"]),
        (("a ball", "--init", "."), ["expected a run folder with splat.ply, received one without"]),
        (("a ball", "--negative-embedding", "missing.safetensors"), ["cannot read missing.safetensors"]),
        (("a ball", "--negative-embedding", "typo.yaml"), ["typo.yaml is not a complete safetensors file"]),
        (("a ball", "--output-dir", "typo.yaml"), ["cannot write", "Choose another place with --output-dir"]),
        (("a ball", "--output-dir", "typo.yaml/below"), ["cannot write", "Choose another place with --output-dir"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(command, tmp_path, arguments, parts):
    (tmp_path / "typo.yaml").write_text("guidance: {guidence_scale: 3}\n")
    (tmp_path / "broken.yaml").write_text("steps: [1,\n")
    (tmp_path / "wrong.yaml").write_text("steps: many\n")
    save(random_ball(50, 0.5, scale=0.05, opacity=0.5), tmp_path / "truncated.ply")
    trimesh.creation.icosphere().export(tmp_path / "truncated.glb")
    for path in (tmp_path / "truncated.ply", tmp_path / "truncated.glb"):
        path.write_bytes(path.read_bytes()[:-500])
    kept = {path.name for path in tmp_path.iterdir()}
    one_line(command("generate", *arguments), *parts)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in kept]
    assert left == [], "a command that fails leaves no files behind"


def test_unknown_models_are_one_clear_line(monkeypatch, command):
    monkeypatch.undo()  # the real loader
    for arguments, part in (
        (("--prior", "sdxx"), "unknown model 'sdxx': expected mini, sd15"),
        (("--reward", "clap"), "unknown reward 'clap'"),
        (("--judge", "clap"), "unknown reward 'clap'"),
    ):
        one_line(command(*BALL, *arguments, "--output-dir", str(Path.cwd() / "nowhere")), part)
    assert not [p for p in Path("nowhere").rglob("*") if p.is_file()], "a command that fails leaves no files behind"


def test_debug_shows_the_traceback(command):
    with pytest.raises(OutputError, match="nothing to resume"):
        command(*BALL, "--resume", "--debug")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generat", "a ball"),
        ("generate", "a ball", "--stepz", "3"),
        ("generate", "a ball", "--preset", "drafd"),
        ("generate", "a ball", "--method", "sdz"),
    ],
)
def test_arguments_that_do_not_parse(command, arguments):
    code, out, err = command(*arguments, tiny=False)
    assert code == 2
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("ein Löwe", "ein-lowe-0"),
        ("一只柯基", "asset-748e92-0"),
        ("a/b\\c: ..", "a-b-c-0"),
        ("[red] ball", "red-ball-0"),
    ],
)
def test_any_letters_make_an_asset(command, prompt, name):
    code, out, err = command("generate", prompt, "--steps", "2", "--output-dir", "out [b]")
    assert (code, err) == (0, "")
    folder = Path("out [b]") / name
    assert out.splitlines()[-1].startswith(str(folder))
    assert json.loads((folder / "psd_gs.json").read_text())["prompt"] == prompt
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["prompt"] == prompt
    assert read_ply_metadata(folder / "splat.ply")["prompt"] == prompt


def test_a_terminal_without_the_letters_is_no_error(command, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert command("generate", "ein Löwe", "--steps", "1")[0] == 0
    narrow.flush()
    assert narrow.buffer.getvalue().startswith(b"prior mini ? reward mini")
    assert b"'l?we'" in narrow.buffer.getvalue()


def test_unknown_words_are_warned_of_before_any_work(command, monkeypatch):
    def work(*args, **kwargs):
        raise OutputError("work has begun")

    monkeypatch.setattr(TextTo3DPipeline, "from_pretrained", work)
    code, out, err = command("generate", "a corgy with a purpel xylophone")
    assert code == 1
    assert "work has begun" in err
    assert "warning: the embedded model does not know 'corgy', 'purpel', 'xylophone'" in out
    assert "close words that it knows: corgi" in out
    assert "psd-gs words" in out


def test_known_words_are_not(command):
    _, out, _ = command("generate", "a corgi", "--steps", "1")
    assert "warning" not in out


# --- a disk that is full ---------------------------------------------------------------------------------------------


def fill_disk(monkeypatch, name: str, nth: int) -> None:
    """From the ``nth`` write of the file ``name`` on, there is no space left."""
    left = [nth]
    replace, append = os.replace, trainer.append

    def check(path: Path) -> None:
        if path.name == name:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def full_replace(source, target):
        check(Path(target))
        replace(source, target)

    def full_append(path: Path, line: bytes) -> None:
        with writing(path):
            check(path)
        append(path, line)

    monkeypatch.setattr(os, "replace", full_replace)
    monkeypatch.setattr(trainer, "append", full_append)


@pytest.mark.parametrize("name", ["latest.safetensors", "splat.ply", "psd_gs.json"])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(command, whole, monkeypatch, name):
    """But pictures of the progress, which make room for the asset."""
    with monkeypatch.context() as patch:
        fill_disk(patch, name, 0)
        one_line(command(*BALL), "cannot write", "No space left on device", "Free some space")
    begun = (FOLDER / "config.yaml").exists()
    assert begun == (name != "latest.safetensors")
    assert command(*BALL, *(["--resume"] if begun else []))[0] == 0
    found = contents(FOLDER)
    gone = {path for path in whole if "progress" in str(path)} if name == "splat.ply" else set()
    assert whole.keys() - found.keys() == gone
    record = {"psd_gs.json"} if gone else set()  # it lists the files
    assert {path: found[path] for path in found.keys() - record} == {
        path: whole[path] for path in found.keys() - record
    }


def test_a_log_that_fills_the_disk_costs_the_log_only(command, whole, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        fill_disk(patch, "metrics.jsonl", 7)
        assert command(*BALL)[0] == 0
    assert "Going on without a log from step 8 on." in caplog.text
    found = contents(FOLDER)
    assert found["splat.ply"] == whole["splat.ply"]
    assert len(found["metrics.jsonl"]) == 7


@pytest.mark.parametrize("name", ["preview.png", "turntable.mp4", "mesh.glb", "report.html"])
def test_what_cannot_be_made_of_an_asset_costs_nothing_else(command, whole, monkeypatch, name):
    with monkeypatch.context() as patch:
        fill_disk(patch, name, 0)
        code, out, err = command(*BALL)
    assert (code, err) == (0, "")
    assert f"no {name}: cannot write" in out
    assert f"{FOLDER} has the asset; --resume tries the rest again" in out
    assert json.loads((FOLDER / "psd_gs.json").read_text())["failed"].keys() == {name}
    assert {path.name for path in FOLDER.iterdir()} == (FILES | {"checkpoints", "negative.safetensors"}) - {name}
    assert contents(FOLDER)["splat.ply"] == whole["splat.ply"]
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert "is finished already" in out
    after = contents(FOLDER)
    assert after.keys() == whole.keys()
    rounded = {"mesh.glb", "psd_gs.json"}  # the mesh is of the splat in the file, whose quaternions are rounded
    assert {key: after[key] for key in after if key not in rounded} == {k: whole[k] for k in whole if k not in rounded}


def test_a_judge_that_fails_costs_its_scores_only(command, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "score_models", lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")))
        code, out, err = command(*BALL)
    assert (code, err) == (0, "")
    assert "no scores: out of memory" in out
    assert out.splitlines()[-1] == f"{FOLDER}  ()"
    code, out, _ = command(*BALL, "--resume")
    assert code == 0
    assert json.loads((FOLDER / "psd_gs.json").read_text())["scores"] == json.loads(whole["psd_gs.json"])["scores"]


# --- what is printed -------------------------------------------------------------------------------------------------


def test_quiet_prints_the_result_alone(command):
    code, out, err = command(*BALL, "--quiet")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert out.startswith(str(FOLDER))


def test_skipped_steps_are_reported(command, monkeypatch):
    monkeypatch.setattr(PaintedPrior.__init__, "__defaults__", (None, (3, 4)))
    _, out, _ = command(*BALL)
    assert "2 steps skipped for non-finite gradients" in out


def test_a_terminal_gets_a_progress_bar_with_the_time_left(command, monkeypatch):
    from rich import console

    inner = console.Console.__init__

    def terminal(self, *args, **kwargs):
        inner(self, *args, **{**kwargs, "force_terminal": True, "width": 120})

    monkeypatch.setattr(console.Console, "__init__", terminal)
    code, out, _ = command(*BALL)
    assert code == 0
    assert f"{STEPS}/{STEPS}" in out
    assert "optimizing" in out
    assert "reward" in out
    assert "0:00:00" in out
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        code, out, _ = command(*BALL)
    assert code == 130
    assert "stopped at step 5; go on with the same command and --resume" in out


def test_words(command):
    code, out, _ = command("words")
    assert code == 0
    spoken = " ".join(out.split())
    assert "objects corgi, corgi dog, dog" in spoken
    assert "red" in spoken.split("other words")[1]


def test_a_dry_run_tells_everything_and_writes_nothing(command, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextTo3DPipeline, "from_pretrained", None)
    code, out, err = command(*BALL, "--dry-run", "--set", "guidance.psd.weight=3", "--set", "steps=7", tiny=False)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "prior mini · reward mini · judge mini-judge · cpu · preset default, 7 steps"
    shown = yaml.safe_load(out[out.index("prompt: ") :])
    assert (shown["prompt"], shown["steps"], shown["guidance"]["psd"]["weight"]) == ("a red ball", 7, 3.0)
    assert shown == to_dict(from_dict(Config, shown, ""))
    code, out, _ = command(*BALL, "--dry-run", "--prior", "mvdream", tiny=False)
    assert code == 0
    assert "would fetch mvdream: " in out
    assert "would fetch hpsv2.1: " in out
    assert "the networks of the loop take" in out
    assert not Path("outputs").exists()


def test_a_gpu_without_a_compiler_makes_the_asset_and_says_what_draws_it(command, monkeypatch):
    choose_renderer.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24e9))
    code, out, err = command(*BALL, "--prior", "mini", "--steps", "3")
    choose_renderer.cache_clear()
    assert (code, err) == (0, "")
    first, second, *_ = out.splitlines()
    assert "· cuda ·" in first
    assert second.startswith("renderer cpu: gsplat's CUDA kernels are not built yet; ")
    assert (FOLDER / "splat.ply").exists()


def test_a_renderer_that_cannot_run_is_said_before_anything_is_loaded(command, monkeypatch):
    monkeypatch.setattr(TextTo3DPipeline, "from_pretrained", None)
    one_line(command(*BALL, "--renderer", "gsplat"), "gsplat")
    one_line(command(*BALL, "--renderer", "triton"), "riton")
    assert not Path("outputs").exists()
