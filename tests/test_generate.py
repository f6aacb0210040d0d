"""``psd-gs generate`` for real, once as a command and once as the Python API, with few steps of the default preset."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from PIL import Image
from program import psd_gs as command

import psd_gs
from psd_gs.config import Config, from_dict
from psd_gs.export.formats import load
from psd_gs.export.ply import read_ply_metadata

pytestmark = pytest.mark.full

FILES = {"splat.ply", "mesh.glb", "turntable.mp4", "preview.png", "config.yaml", "metrics.jsonl", "psd_gs.json"}
FILES |= {"report.html", "progress.png", "progress"}
STEPS = 30
"""Enough for several pairs, a refinement of the negative embedding and growth."""


@pytest.fixture(scope="module")
def corgi(mini_pipeline):
    """The result of a short run in Python, and its logs."""
    events = []
    result = mini_pipeline("a corgi", seed=0, steps=STEPS, on_step=events.append)
    return result, events


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """``psd-gs generate "a corgi"`` with few steps, everything else as a user gets it."""
    folder = tmp_path_factory.mktemp("real")
    done = command("generate", "a corgi", "--steps", str(STEPS), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "a-corgi-0", done


def test_generate_writes_everything(real):
    folder, done = real
    assert {path.name for path in folder.iterdir()} == FILES | {"checkpoints", "negative.safetensors"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["latest.safetensors"]
    assert "Traceback" not in done.stderr
    assert "warning" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"prior mini · reward mini · judge mini-judge · cpu · preset default, {STEPS} steps")
    assert any(
        line.startswith(f"step {STEPS}/{STEPS}  ") and "Gaussians" in line and "reward" in line for line in lines
    )
    assert lines[-1].startswith(f"{Path('outputs') / 'a-corgi-0'}  (mini ")


def test_generated_files_open(real):
    folder, _ = real
    splat = load(folder / "splat.ply")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row.get("negative_shift", 0) for row in rows) > 0
    assert sum("reward_win" in row for row in rows) >= 3
    assert rows[-1]["gaussians"] >= len(splat) > 500
    preview = Image.open(folder / "preview.png")
    assert preview.width == 4 * preview.height
    (mesh,) = trimesh.load_scene(folder / "mesh.glb", process=False).geometry.values()
    assert 100 < len(mesh.faces) <= 20_000
    _, uses = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
    assert (uses % 2 == 0).all(), "the surface is not closed"
    assert (folder / "turntable.mp4").stat().st_size > 10_000
    config = from_dict(Config, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), "config")
    assert (config.prompt, config.steps, config.prior, config.judge) == ("a corgi", STEPS, "mini", "mini-judge")
    metadata = read_ply_metadata(folder / "splat.ply")
    record = json.loads((folder / "psd_gs.json").read_text())
    files = record.pop("files")
    assert metadata == record
    assert files["splat.ply"] == sha256((folder / "splat.ply").read_bytes()).hexdigest()
    assert files.keys() == {"splat.ply", "preview.png", "turntable.mp4", "progress.png", "mesh.glb"}
    assert metadata["scores"].keys() == {"mini", "mini-judge"}


def test_the_python_api_makes_the_same_asset(real, corgi):
    (folder, _), (result, _) = real, corgi
    splat = load(folder / "splat.ply")
    for name in ("means", "scales", "opacities", "sh0"):
        assert torch.equal(getattr(splat, name), getattr(result.gaussians, name)), name
    scores = json.loads((folder / "psd_gs.json").read_text())["scores"]
    assert scores == {name: round(score, 4) for name, score in result.scores.items()}


def test_pair_and_refinement_act_in_the_default_preset(corgi):
    result, events = corgi
    assert [event.step for event in events] == list(range(1, STEPS + 1))
    assert {event.steps for event in events} == {STEPS}
    judged = [event for event in events if "reward_win" in event.logs]
    assert len(judged) >= 3
    assert all(
        (event.step - 1) / STEPS <= result.config.guidance.psd.end < 1 for event in judged
    )  # the base ends the run
    assert all(event.logs["reward_win"] >= event.logs["reward_lose"] for event in judged)
    assert any(event.logs["gap"] > 0 and event.logs["pair_share"] > 0 for event in judged)
    assert max(event.logs.get("negative_shift", 0) for event in events) > 0
    unrefined = psd_gs.pipeline.load_prior("mini").embed([""]).sequence
    assert not torch.equal(result.negative.sequence, unrefined)
    assert all(math.isfinite(value) for event in events for value in event.logs.values())
    assert sum(event.logs.get("grown", 0) for event in events) > 0


def test_a_result_knows_what_it_is(corgi):
    result, _ = corgi
    assert len(result.gaussians) > 500
    assert not any(p.requires_grad for p in result.gaussians.params().values())
    assert result.config.prompt == "a corgi"
    assert (result.config.prior, result.config.reward, result.config.judge) == ("mini", "mini", "mini-judge")
    assert set(result.scores) == {"mini", "mini-judge"}
    metadata = result.metadata
    assert metadata["prompt"] == "a corgi"
    assert metadata["n_splats"] == len(result.gaussians)
    assert metadata["psd_gs_version"] == psd_gs.__version__
    assert metadata["ai_generated"] is True
    assert metadata["steps_done"] == metadata["steps"] == STEPS
    embedded = {"repository": "embedded", "licence": "Apache-2.0"}
    models = {"prior": "mini", "reward": "mini", "judge": "mini-judge"}
    assert metadata["models"] == {role: [{"name": name, **embedded}] for role, name in models.items()}
    assert json.loads(json.dumps(metadata)) == metadata
