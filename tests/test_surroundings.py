"""``generate`` where machines are odd: it works, or ends in one clear line, and never costs a finished asset."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from painted import make_trainer, tiny_config

import psd_gs
from psd_gs.config import to_dict
from psd_gs.errors import OutputError
from psd_gs.export.formats import load
from psd_gs.files import append

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and permissions of POSIX")

PROGRAM = Path(__file__).with_name("painted_program.py")
CONFIGS = Path(__file__).parents[1] / "configs"
PROMPT = "a red ball, 球"
CODE = """
import runpy, sys
{first}
sys.path.insert(0, {folder!r})
runpy.run_path({program!r}, run_name="__main__")
"""
NO_USER = "import pwd; pwd.getpwuid = {}.__getitem__"
NO_TEMPORARY = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc']"
READ_ONLY_FOLDER = "import os; os.chdir('read-only')"


def limited(size: int) -> Callable[[], None]:
    """No file of more bytes: what a full disk does to the large ones."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def bound_by_permissions() -> None:
    """Root passes by what a folder permits, unless the right to do so is given up for good."""
    drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for capability in (override, search):
        ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


@dataclass(frozen=True)
class Place:
    """Surroundings of a process.

    Attributes:
        first: code that runs before the program.
        environment: variables; None deletes one. FOLDER stands for that of the test.
        before: runs in the new process.
        code: that the process returns.
        says: what stands on standard error.
        asset: whether it is there in the end.
        output: where standard output goes, if not to the test.
    """

    first: str = "pass"
    environment: Mapping[str, str | None] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    code: int = 0
    says: str = ""
    asset: bool = True
    output: str = ""


NOBODY: dict[str, str | None] = dict.fromkeys(("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "HF_HOME"))
PLACES = {
    "no home": Place(NO_USER, {**NOBODY, "HOME": "/nonexistent"}),
    "no user": Place(NO_USER, NOBODY),
    "read-only": Place(
        READ_ONLY_FOLDER,
        {**NOBODY, "HOME": "FOLDER/read-only", "TMPDIR": "FOLDER/out", "PYTHONPATH": "FOLDER/read-only"},
        bound_by_permissions,
    ),
    "read-only, no temporary files": Place(
        f"{READ_ONLY_FOLDER}; {NO_TEMPORARY}",
        {**NOBODY, "PYTHONPATH": "FOLDER/read-only"},
        bound_by_permissions,
        code=1,
        says="Name one that can be written with TMPDIR",
        asset=False,
    ),
    "room for small files": Place(
        before=limited(30_000), code=1, says="latest.safetensors: File too large", asset=False
    ),
    "room for 300 kB": Place(before=limited(300_000)),
    "full disk behind the output": Place(output="/dev/full", says="standard output: No space left on device. Going on"),
    "dumb and narrow terminal": Place(environment={"TERM": "dumb", "COLUMNS": "20", "LC_ALL": "C", "LANG": None}),
    "one core": Place(environment={"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}, before=one_core),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    options = to_dict(tiny_config(steps=6, solid_steps=2))
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    names = ("guidance", "init", "cameras", "densify", "steps", "solid_steps", "backgrounds")
    path.write_text(yaml.safe_dump({name: options[name] for name in names}))
    return path


@pytest.mark.full
@pytest.mark.parametrize("name", PLACES)
def test_odd_places(tmp_path, tiny, name):
    place = PLACES[name]
    (tmp_path / "out").mkdir()
    package = tmp_path / "read-only" / "psd_gs"
    if "read-only" in name:  # the package where no cache of kernels can be kept
        shutil.copytree(Path(psd_gs.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(CONFIGS, package / "configs")  # as in a wheel
        for path in (package, *package.rglob("*"), package.parent):
            path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for variable, value in place.environment.items():
        environment.pop(variable, None)
        if value is not None:
            environment[variable] = value.replace("FOLDER", str(tmp_path))
    code = CODE.format(first=place.first, folder=str(PROGRAM.parent), program=str(PROGRAM))
    arguments = ["generate", PROMPT, "--prior", "mini", "--config", str(tiny), "--output-dir", f"{tmp_path}/out/runs"]
    with open(place.output or tmp_path / "said", "wb") as said:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment,
            preexec_fn=place.before,
            stdout=said,
            stderr=subprocess.PIPE,
            timeout=1200,
            check=False,
        )
    error = done.stderr.decode()
    assert done.returncode == place.code, error
    assert "Traceback" not in error
    assert place.says in error
    assert error.count("error: ") == (1 if place.code else 0)
    found = list((tmp_path / "out").rglob("splat.ply"))
    assert bool(found) == place.asset
    assert not list((tmp_path / "out").rglob("*.part*"))
    if place.asset:
        assert len(load(found[0])) > 50
        record = json.loads(found[0].with_name("psd_gs.json").read_text())
        assert record["prompt"] == PROMPT
        assert all("File too large" in reason for reason in record.get("failed", {}).values())
        lines = (tmp_path / "said").read_text(errors="replace").splitlines() if not place.output else []
        assert not lines or max(map(len, lines)) > 20  # nothing is cut off


def test_a_full_disk_costs_neither_the_steps_nor_the_asset(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("psd_gs.trainer.CHECKPOINT_SECONDS", 0)
    trainer = make_trainer(tiny_config(steps=3), tmp_path)
    save = trainer.save_checkpoint

    def full() -> None:
        if trainer.step:
            raise OutputError("cannot write latest.safetensors: No space left on device.")
        save()

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    assert [event.step for event in trainer.run()] == [1, 2, 3]
    assert "Going on without a checkpoint of step 3" in caplog.text
    assert len(trainer.finish()) > 0
    trainer.load_checkpoint()
    assert trainer.step == 0


def test_a_full_disk_costs_the_log_alone(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(tiny_config(steps=3), tmp_path)
    monkeypatch.setattr(
        "psd_gs.trainer.append", lambda path, line: append("/dev/full" if trainer.step > 1 else path, line)
    )
    assert [event.step for event in trainer.run()] == [1, 2, 3]
    assert caplog.text.count("Going on without a log from step 2 on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
