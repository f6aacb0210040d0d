"""The presets of the published priors against closed forms, and a prior that knows the object."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from bench import oracle
from bench.oracle_prior import (
    CLEAN_STD,
    OTHER_STD,
    Flaws,
    OraclePrior,
    OracleReward,
    Target,
    blurred,
    posterior_mean,
    read_target,
)
from mini.dataset import over

from psd_gs.cameras import orbit, turntable
from psd_gs.config import PRESETS, Config, make_config
from psd_gs.densify import sweep
from psd_gs.entries import FAMILIES
from psd_gs.gaussians import from_points, random_ball
from psd_gs.guidance.base_scores import recon
from psd_gs.guidance.denoiser import Denoiser
from psd_gs.mesh.scene import Part
from psd_gs.trainer import sample_background

PUBLISHED = [(name, family) for name in PRESETS for family in FAMILIES if family != "mini"]


def most(config: Config, first: float = 1.0) -> float:
    """Gaussians at the end where the first round leaves the share ``first``, every round grows its full share and no
    other one prunes.
    """
    densify, count = config.densify, int(first * config.init.count)
    every = max(1, round(densify.every * config.steps))
    for step in range(every, config.steps, every):
        if densify.start <= step / config.steps <= densify.stop:
            count += min(int(densify.grow * count), max(0, densify.cap - count))
    return count


@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_the_last_pictures_are_as_large_as_the_prior_sees(name, family):
    """Smaller ones are enlarged for it, and six decibels are lost (docs/results/presets.md)."""
    config = make_config(name, family)
    assert config.cameras.size[1] == (256 if "dream" in family else config.prior_size or 512)


@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_the_cap_can_be_reached(name, family):
    config = make_config(name, family)
    assert most(config) == config.densify.cap
    assert most(config, 0.08) == config.densify.cap  # most of the first ones lie outside the object


@pytest.mark.parametrize(
    ("name", "family", "least"), [("dreamgaussian", "sd", 12_000), ("mvdream", "mvdream", 100_000)]
)
def test_recipes_grow_as_their_sources_do(name, family, least):
    assert most(make_config(name, family)) >= least


@pytest.mark.parametrize("name", PRESETS)
def test_of_the_first_gaussians_none_is_hidden(name):
    starts = {make_config(name, family).init for family in FAMILIES if family != "mini"}
    assert len(starts) == 1
    init = starts.pop()
    ball = random_ball(
        init.count,
        init.radius,
        scale=init.scale,
        opacity=init.opacity,
        generator=torch.Generator().manual_seed(0),
    )
    assert oracle.hidden(ball, 96) < 0.02
    neighbour = 0.554 * (4 / 3 * np.pi * init.radius**3 / init.count) ** (1 / 3)
    assert init.scale == pytest.approx(neighbour, rel=0.02)


def test_a_fog_is_known_by_what_it_hides():
    fog = random_ball(5000, 0.5, scale=0.05, opacity=0.12, generator=torch.Generator().manual_seed(0))
    assert 0.3 < oracle.hidden(fog, 96) < 0.5


@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_what_published_priors_ask_for(name, family):
    guidance = make_config(name, family).guidance
    assert guidance.negative_prompt == make_config("mvdream", "mvdream").guidance.negative_prompt
    assert (guidance.psd.turn, guidance.psd.every) == (30.0, 3)
    rates = make_config(name, family).optimizer.means
    assert rates[0] <= 1e-3
    assert rates[1] <= 1e-4


# --- the oracle ------------------------------------------------------------------------------------------------------


def cube() -> Target:
    """Half a unit to each side before it is fitted; a colour per face, so that its sides can be told apart."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    colours = np.linspace(0.2, 1, 36).reshape(12, 3)
    return Target("cube", [Part("cube", corners, faces, face_colors=np.concatenate([colours, np.ones((12, 1))], 1))])


def test_views_are_where_the_mesh_is():
    target = cube()
    assert np.linalg.norm(target.vertices, axis=1).max() == pytest.approx(0.5)
    cameras = turntable(4, elevation=0.0, size=128)
    views = target.views(cameras)
    side = 0.5 / 3**0.5
    distance, focal = float(cameras.positions[0].norm()), float(cameras.Ks[0, 0, 0])
    nearest = (2 * side * focal / (distance - side)) ** 2  # the face toward the camera covers the others
    assert float(views[0, 3].sum()) == pytest.approx(nearest, rel=0.02)
    doubled = target.views(cameras[torch.tensor([0, 1, 0])])
    assert torch.equal(doubled[0], doubled[2])
    assert torch.equal(doubled[1], views[1])
    assert not torch.allclose(views[0], views[2], atol=0.05)
    white = over(views, torch.ones(3))
    assert float(white[0, :, 0, 0].min()) == 1


def test_the_answer_is_the_mean_of_what_the_noisy_picture_may_show():
    """Against importance weights of many draws of the data."""
    generator = torch.Generator().manual_seed(0)
    mean, std, alpha, sigma, x_t = 0.3, 0.5, torch.tensor(0.8), torch.tensor(0.6), torch.tensor(0.9)
    x0 = mean + std * torch.randn(200_000, generator=generator, dtype=torch.float64)
    weights = torch.softmax(-0.5 * ((x_t - alpha * x0) / sigma) ** 2, 0)
    exact = posterior_mean(x_t, torch.tensor(mean), std, alpha, sigma)
    assert float((weights * x0).sum()) == pytest.approx(float(exact), abs=5e-3)


def test_the_oracle_sees_the_background_that_the_trainer_draws():
    prior = OraclePrior(cube(), image_size=32, seed=7)
    drawn = torch.Generator().manual_seed(7)
    cameras = turntable(4, size=32)
    text = prior.embed(["a cube"])
    for _ in range(3):
        background = sample_background("augment", drawn)
        true = over(prior.target.views(cameras), background)[None]
        x0 = prior.encode(true)
        assert torch.equal(prior.background, background)
        t = torch.tensor([0.3])
        x_t = prior.add_noise(x0, torch.zeros_like(x0), t)
        cond, neg = prior.predict(x_t, t, text, prior.embed([""]), cameras)
        torch.testing.assert_close(cond, x0)  # without noise and at the object, both know the answer
        torch.testing.assert_close(neg, x0)
        assert float(OracleReward(prior).score(prior.decode(cond), ["a cube"], cameras).min()) > 8  # 60 dB
    resumed = OraclePrior(cube(), image_size=32, seed=7)
    resumed.skip(3)
    assert torch.equal(resumed.background, prior.background)


def test_flaws():
    cameras = turntable(4, size=32)
    exact = OraclePrior(cube(), image_size=32)
    turned = OraclePrior(cube(), image_size=32, flaws=Flaws(janus=1.0))
    behind = orbit(torch.arange(4) * 90.0 + 180, *(torch.full((4,), x) for x in (15.0, 0.75 / 0.342020, 40.0)), 32, 32)
    torch.testing.assert_close(turned._seen(cameras)[0], exact.target.views(behind), atol=2e-2, rtol=0)
    red = OraclePrior(cube(), image_size=32, flaws=Flaws(tint=0.1))._seen(cameras)
    assert float(red[:, :, 0].sum()) > float(exact._seen(cameras)[:, :, 0].sum())
    dot = torch.zeros(1, 1, 41, 41)
    dot[0, 0, 20, 20] = 1
    soft = blurred(dot, 3.0)
    place = torch.arange(41.0) - 20
    assert float(soft.sum()) == pytest.approx(1, abs=1e-5)
    assert float((soft[0, 0].sum(0) * place**2).sum()) == pytest.approx(9, rel=0.06)  # cut at 2.5 deviations
    latent = OraclePrior(cube(), image_size=64, latent=True)
    x0 = latent.encode(torch.full((1, 4, 3, 64, 64), 0.25))
    assert x0.shape == (1, 4, 3, 8, 8)
    torch.testing.assert_close(latent.decode(x0), torch.full((1, 4, 3, 64, 64), 0.25))


def test_a_run_is_measured_and_taken_up_again(tmp_path, capsys, monkeypatch):
    mesh = tmp_path / "cube.ply"
    import trimesh

    trimesh.creation.box().export(mesh)
    command = ["--out", str(tmp_path / "out"), "run", "draft", "--meshes", str(mesh), "--size", "32", "--steps", "12"]
    command += ["--set", "init.count=300", "--set", "init.scale=0.06", "--preference", "psd"]
    asked = []
    predict = OraclePrior.predict

    def interrupted(self, *arguments):
        asked.append(1)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return predict(self, *arguments)

    monkeypatch.setattr("psd_gs.trainer.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(OraclePrior, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        oracle.main(command)
    before = len(asked)
    oracle.main(command)
    (file,) = (tmp_path / "out").glob("*.json")
    row = json.loads(file.read_text())
    assert len(asked) < 2 * before + 8, "it went on where it was"
    assert (row["steps"], row["arm"], row["preference"], row["start"]) == (12, "draft", "psd", 300)
    assert row["psnr"] > 8
    assert 0 < row["iou"] <= 1
    calls = len(asked)
    oracle.main(command)
    assert len(asked) == calls, "it is in the journal"
    oracle.main(["--out", str(tmp_path / "out"), "report"])
    assert "| draft `init.count=300` `init.scale=0.06` | 4 x 32 | exact | psd | 12 | 1 |" in capsys.readouterr().out


def test_the_rescale_takes_noise_for_contrast_and_pulls_a_finished_picture_toward_grey():
    """At small times guidance amplifies the noise, so that guided estimates deviate by more than the object does."""
    prior, guidance = (
        OraclePrior(cube(), image_size=64, backgrounds="white"),
        make_config("default", "mvdream").guidance,
    )
    cameras, t = turntable(4, size=64), torch.tensor([0.1])
    x0 = prior.encode(over(prior.target.views(cameras), torch.ones(3))[None])
    text, null = prior.embed(["a cube"]), prior.embed([""])
    denoiser = Denoiser(prior, t, cameras, text, null, null, 0.5, torch.Generator().manual_seed(0))
    noise = torch.randn(1, *x0.shape, generator=torch.Generator().manual_seed(1))
    residual = recon(denoiser.noised(x0, noise), denoiser, guidance)
    alpha, sigma = (float(level) for level in prior.alpha_sigma(t))
    cond, neg = (alpha * std**2 / (alpha**2 * std**2 + sigma**2) for std in (CLEAN_STD, OTHER_STD))
    guided, contrast = neg + guidance.guidance_scale * (cond - neg), float(x0.std())
    factor = ((contrast**2 + (cond * sigma) ** 2) / (contrast**2 + (guided * sigma) ** 2)) ** 0.5
    pull = float((residual * x0).sum() / x0.square().sum())
    assert pull == pytest.approx(guidance.rescale * (1 - factor), abs=0.01)
    assert factor < 0.7


@pytest.mark.parametrize(("name", "family"), PUBLISHED)
def test_guidance_is_rescaled_by_no_more_than_leaves_the_background_clear(name, family):
    assert make_config(name, family).guidance.rescale <= 0.3


def test_a_small_part_of_an_object_is_kept_and_a_floater_is_not():
    draws = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    body = 0.25 * torch.nn.functional.normalize(draws, dim=-1)
    part = torch.tensor([[0.02 * i, 0.4, 0.0] for i in range(5)])
    points = torch.cat([body, part, torch.tensor([[0.45, 0.0, 0.0]])])
    asset = from_points(points, torch.full_like(points, 0.5), scale=0.02, opacity=0.9)
    assert sweep(asset, make_config("default", "mvdream").densify)[-6:].tolist() == 5 * [True] + [False]


def test_targets_of_a_pack(tmp_path):
    target = cube()
    part = target.parts[0]
    np.savez(
        tmp_path / "meshes-x.npz",
        ids=np.array(["other", "cube"]),
        vertex_start=np.array([0, 0, 8]),
        face_start=np.array([0, 0, 12]),
        vertices=(part.positions * 18000).astype(np.int16),
        triangles=part.faces.astype(np.uint16),
        colours=np.full((12, 3), 128, np.uint8),
    )
    (tmp_path / "assets.tsv").write_text("id\tcaption\ncube\ta box\n", encoding="utf-8")
    read = read_target(f"{tmp_path}:cube")
    assert read.name == "a box"
    np.testing.assert_allclose(read.vertices, target.vertices, atol=1e-4)
    with pytest.raises(SystemExit, match="expected the id of a mesh"):
        read_target(f"{tmp_path}:sphere")
