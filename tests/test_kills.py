"""Whatever kills a run, at whatever moment: the same command goes on, to the same bits, and leaves no rubbish."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from painted import tiny_config

from psd_gs.config import to_dict

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes in another way"),
]

MOMENTS = int(os.environ.get("PSD_GS_KILLS", "1"))
"""Of each signal and command."""

PROGRAM = [sys.executable, str(Path(__file__).with_name("painted_program.py"))]
ENDED = (130, -signal.SIGTERM, -signal.SIGKILL, 0)  # also before the program listens, or after its end


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    tiny = to_dict(tiny_config())
    options = {name: tiny[name] for name in ("guidance", "init", "cameras", "densify")}
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump({**options, "steps": 12, "solid_steps": 2, "backgrounds": "white"})
    )
    (folder / "prompts.txt").write_text("a red ball\na round ball\n")
    return folder


COMMANDS = {
    "generate": ["generate", "a red ball", "--prior", "mini", "--config", "tiny.yaml"],
    "batch": ["batch", "prompts.txt", "--prior", "mini", "--config", "tiny.yaml", "--device", "cpu"],
    "eval": ["eval", "run", "suite.txt", "--arms", "psd", "--prior", "mini", "--config", "tiny.yaml", "--size", "32"],
}


def command(name: str, folder: str) -> list[str]:
    return [*PROGRAM, *COMMANDS[name], "--output-dir", folder]


def call(place: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=place, capture_output=True, text=True, timeout=300)


def state(folder: Path) -> dict[str, object]:
    """What a run leaves, without what tells the time; rubbish shows by its name."""
    out: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".ply":
            out[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            out[name] = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        elif path.is_file():
            out[name] = ""
    return out


@pytest.fixture(scope="module")
def straight(place):
    """The state of an uninterrupted run of each command and the seconds that it takes, made once."""
    made: dict[str, tuple[dict[str, object], float]] = {}

    def run(name: str) -> tuple[dict[str, object], float]:
        if name not in made:
            (place / "suite.txt").write_text("a red ball | a blue ball\n")
            start = time.monotonic()
            done = call(place, command(name, f"whole-{name}"))
            assert done.returncode == 0, done.stderr
            made[name] = state(place / f"whole-{name}"), time.monotonic() - start
        return made[name]

    return run


@pytest.mark.parametrize("number", range(MOMENTS))
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_goes_on(place, straight, name, how, number):
    whole, seconds = straight(name)
    folder = f"{name}-{how.name}-{number}"
    moments = random.Random(f"{name} {how} {number}")
    for _ in range(2):  # also what goes on is killed
        again = ["--resume"] if name == "generate" and list(place.glob(f"{folder}/*/config.yaml")) else []
        process = subprocess.Popen(
            [*command(name, folder), *again], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
        assert process.returncode in ENDED, err
        assert "Traceback" not in err or "Exception ignored in" in err  # Python's own word of an interrupt in a __del__
    again = ["--resume"] if name == "generate" and list(place.glob(f"{folder}/*/config.yaml")) else []
    done = call(place, [*command(name, folder), *again])
    assert done.returncode == 0, done.stderr
    assert state(place / folder) == whole
