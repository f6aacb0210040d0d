"""``psd-gs eval score`` from end to end with every reward: published in miniature, embedded, sums and functions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_rewards import BLIP_FILES, aesthetic_heads, blip_folder, blip_sizes, clip_config, clip_folder, hps_checkpoints

from psd_gs import weights
from psd_gs.cli import main
from psd_gs.entries import REWARDS
from psd_gs.evaluation.scores import ring_cameras, ring_images, view_scores
from psd_gs.export.formats import load, save
from psd_gs.gaussians import random_ball
from psd_gs.published import EMBEDDED
from psd_gs.rewards import blip, clip, load_reward
from psd_gs.rewards.base import group_score
from psd_gs.scoring import evaluation_cameras, evaluation_images

RING = 4


@pytest.fixture(scope="module")
def words():
    """The tokenizer of the embedded reward."""
    return load_reward("mini").tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory, words):
    """A folder with the files of every published reward, and an asset in it."""
    folder = tmp_path_factory.mktemp("published")
    words.save_pretrained(folder)
    aesthetic_heads(hps_checkpoints(clip_folder(folder, len(words)), len(words)))
    for head in BLIP_FILES:
        blip_folder(folder, head)
    ball = random_ball(40, 0.4, scale=0.08, opacity=0.8, generator=torch.Generator().manual_seed(0))
    save(ball, folder / "asset.ply", metadata={"prompt": "a red car"})
    (folder / "captions.txt").write_text("a red car | a cat | a dog\n", encoding="utf-8")
    (folder / "taste.py").write_text("def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n")
    return folder


@pytest.fixture(autouse=True)
def in_miniature(published, words, monkeypatch):
    """The architectures of the published rewards are those of the files, which are nowhere else."""
    config = clip_config(vocabulary=len(words))
    monkeypatch.setattr(blip, "BlipSizes", blip_sizes)
    for name in ("vit_l_14", "vit_h_14"):
        monkeypatch.setattr(clip, name, lambda: config)
    monkeypatch.setattr(weights, "locate", lambda name: published)


def expression(name: str, folder) -> str:
    return {"function": f"{folder / 'taste.py'}:brightness"}.get(name) or (
        f"{name}={folder}" if name in REWARDS and REWARDS[name].source else name
    )


def score(folder, models: str, capsys) -> dict:
    command = ["eval", "score", str(folder / "asset.ply"), "--as-is", "--captions", str(folder / "captions.txt")]
    main([*command, "--models", models, "--views", str(RING), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in REWARDS if name != "reward3d-fusion"),
        pytest.param("reward3d-fusion", marks=pytest.mark.full),
        "function",
    ],
)
def test_every_reward_scores(published, name, capsys):
    name = expression(name, published)
    row = score(published, name, capsys)
    found = row["scores"][name]
    model, asset = load_reward(name, allow_code=True), load(published / "asset.ply")
    size = 128 if name in EMBEDDED else 256
    cameras = evaluation_cameras(size)
    sets = evaluation_images(asset, size)
    each = [
        float(group_score(model.score(s[None], ["a red car"], cameras[4 * i : 4 * i + 4]))) for i, s in enumerate(sets)
    ]
    assert found["mean"] == pytest.approx(sum(each) / 2, abs=2e-4)
    assert found["worst_set"] == pytest.approx(min(each), abs=2e-4)
    assert 0 < found["match"] < 1
    assert found["views"] == pytest.approx(
        view_scores(model, ring_images(asset, RING, size), "a red car").tolist(), abs=2e-4
    )
    assert len(set(found["views"])) > 1
    assert all(map(math.isfinite, row["janus"]["front"]))


def test_reward3d_sees_one_view_four_times_from_its_side(published):
    model = load_reward("reward3d")
    ring = ring_images(load(published / "asset.ply"), RING, 64)
    behind = torch.full((4,), 2)
    alone = model.score(ring[behind][None], ["a cat"], ring_cameras(RING, 64)[behind])
    assert float(view_scores(model, ring, "a cat")[2]) == pytest.approx(float(alone), abs=1e-5)


def test_a_sum_of_all_kinds_scores_view_by_view(published):
    model = load_reward(f"reward3d,hpsv2.1:2,{expression('function', published)}", allow_code=True)
    assert (model.views, model.render_size) == (4, None)
    assert view_scores(model, ring_images(load(published / "asset.ply"), RING, 64), "a cat").isfinite().all()
