"""Files and folders of strangers run nothing, whatever command reads them; what the user names does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from ranked import make_runs
from test_eval_runs import ROWS

from psd_gs import cli
from psd_gs.batch.tasks import Outcome, Worker, make_tasks
from psd_gs.config import make_config, to_dict
from psd_gs.rewards.fitted import LinearHead, save_fitted
from psd_gs.runs import write_yaml

CODE = """from pathlib import Path
Path(__file__).with_name("ran").touch()
def f(images, prompts):
    return [0.0] * len(images)
"""
SMALL = ("--preset", "draft", "--steps", "1", "--device", "cpu", "--prior", "mini")


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A module that leaves a trace; the current folder is beside it."""
    (tmp_path / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "evil.py"


def ran(evil: Path) -> bool:
    return evil.with_name("ran").exists()


def refused(capsys, *arguments: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments])
    assert stop.value.code == 1
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    return out.err + out.out


ROLES = ["reward: {file}:f", "judge: {file}:f", "reward: evil:f", "reward: mini,evil:f:0.5"]


@pytest.mark.parametrize("options", ROLES)
def test_a_config_file(options, evil, capsys):
    Path("config.yaml").write_text(options.format(file=evil) + "\n")
    assert "is code, and config.yaml names it" in refused(
        capsys, "generate", "a cube", "--config", "config.yaml", *SMALL
    )
    Path("prompts.txt").write_text("a cube\n")
    assert "is code" in refused(capsys, "batch", "prompts.txt", "--config", "config.yaml", *SMALL)
    assert not ran(evil)


@pytest.mark.parametrize("role", ["reward", "judge"])
def test_a_run_that_is_resumed(role, evil, capsys):
    """Naming the other role, or another function, does not let it in."""
    folder = Path("outputs/a-cube-0")
    folder.mkdir(parents=True)
    options = {"prompt": "a cube", "prior": "mini", "reward": "mini", "judge": "mini-judge", role: f"{evil}:f"}
    write_yaml(folder / "config.yaml", to_dict(make_config("draft", "mini", options)))
    for more in ([], ["--reward", "mini"], ["--judge", "mini-judge"], [f"--{role}", f"{evil}:g"]):
        if role == "judge" and more[:1] == ["--judge"]:
            continue  # then it is the judge
        message = refused(capsys, "generate", "a cube", "--resume", "--device", "cpu", "--prior", "mini", *more)
        assert "is code" in message, more
    assert not ran(evil)


def test_a_task_of_a_batch(evil, tmp_path):
    config = make_config("draft", "mini", {"prior": "mini", "reward": f"{evil}:f", "judge": "mini"})
    (task,) = make_tasks(config, ["a cube"], tmp_path / "out")
    outcome = Worker("cpu").run(task)
    assert isinstance(outcome, Outcome)
    assert "is code" in (outcome.error or "")
    assert not ran(evil)


def test_a_fitted_reward(evil, capsys):
    save_fitted("fitted", LinearHead(torch.zeros(3), torch.zeros(3)), {"base": f"{evil}:f"})
    for arguments in (
        ("generate", "a cube", "--reward", "fitted", *SMALL),
        ("generate", "a cube", "--reward", "fitted", "--allow-code", *SMALL),
        ("fit-reward", "pairs.jsonl", "out", "--from", "fitted"),
        ("eval", "score", "a.ply", "--prompt", "a cube", "--models", "fitted"),
    ):
        message = refused(capsys, *arguments)
        assert "the fitted reward fitted: expected one of" in message or "cannot read pairs.jsonl" in message
    assert not ran(evil)


def test_an_evaluation(evil, capsys):
    """Neither a file of options, nor an arm, nor what an earlier evaluation wrote can name a function."""
    for options in (f"reward: {evil}:f\n", "judge: evil:f\n"):
        Path("config.yaml").write_text(options)
        asked = ("eval", "run", "smoke-5", "--prior", "mini")
        assert "same for all arms" in refused(capsys, *asked, "--arms", "x=config.yaml")
        assert "is code, and config.yaml names it" in refused(capsys, *asked, "--config", "config.yaml")
    for i, row in enumerate(ROWS):
        place = Path("found") / row["arm"] / str(i)
        place.mkdir(parents=True)
        (place / "eval.json").write_text(json.dumps({**row, "optimized": f"{evil}:f", "prior": "evil:f"}))
    cli.main(["eval", "report", "found"])
    assert not ran(evil)


def test_a_folder_of_runs(evil, capsys):
    """rank and report of a folder whose every name is a function, and whose options are tags of Python."""
    make_runs(Path("outputs"), ["a cube"], each=2)
    for run in Path("outputs").iterdir():
        record = {"prompt": "a cube", "reward": f"{evil}:f", "judge": "evil:f", "scores": {"evil:f": 1.0}}
        (run / "psd_gs.json").write_text(json.dumps(record))
        (run / "config.yaml").write_text("a: !!python/object/apply:evil.f []\nb: !!python/name:evil.f\n")
        cli.main(["report", str(run)])
    from psd_gs.ranking.server import Session

    assert Session([Path("outputs")], "pairs.jsonl", "ada").state()["total"] == 1
    assert "could not determine a constructor" in refused(
        capsys, "generate", "a cube", "--config", str(run / "config.yaml"), *SMALL
    )
    assert not ran(evil)


@pytest.mark.full
@pytest.mark.usefixtures("quick_files")
@pytest.mark.parametrize("how", [["--reward", "{file}:f"], ["--config", "config.yaml", "--allow-code"]])
def test_what_the_user_names_runs(how, evil):
    Path("config.yaml").write_text(f"reward: {evil}:f\n")
    cli.main(["generate", "a cube", "--preference", "none", *(part.format(file=evil) for part in how), *SMALL])
    assert ran(evil)
    assert f"{evil}:f" in Path("outputs/a-cube-0/config.yaml").read_text()
