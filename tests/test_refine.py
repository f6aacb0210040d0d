"""Refining an asset: where it lies, what of it changes, what stays to the bit, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import PaintedPrior, RedReward, assert_same, red_ball, tiny_config
from scipy.spatial.transform import Rotation
from splats import asset as random_asset
from torch import Tensor

from psd_gs import cli
from psd_gs.cameras import turntable
from psd_gs.config import Config, RefineConfig, read_config
from psd_gs.errors import ConfigError, InputError, OutputError
from psd_gs.export.fitting import bounding_ball, moved
from psd_gs.export.formats import FORMATS, load, save, sha256_of
from psd_gs.framing import ROOMS
from psd_gs.gaussians import Gaussians, rgb_to_sh0, rotation_matrices
from psd_gs.job import Job
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.refine import BOUND, RADIUS, Original, Refinement, bounded, inverse, task
from psd_gs.render import render
from psd_gs.result import Result, products_of

pytestmark = pytest.mark.usefixtures("quick_files")


def similarity(generator: np.random.Generator) -> Tensor:
    """A random rotation, scale and place."""
    out = torch.eye(4, dtype=torch.float64)
    scale = 10 ** generator.uniform(-3, 3)
    out[:3, :3] = scale * torch.from_numpy(Rotation.random(random_state=generator).as_matrix())
    out[:3, 3] = scale * torch.from_numpy(generator.uniform(-3, 3, 3))
    return out


def covariances(g: Gaussians) -> Tensor:
    axes = rotation_matrices(g.quats.double()) * g.scales.double().exp()[:, None]
    return axes @ axes.transpose(1, 2)


def elsewhere(g: Gaussians) -> Gaussians:
    """Twenty times as large, somewhere else."""
    return replace(g, means=20 * g.means + torch.tensor([300.0, -20.0, 7.0]), scales=g.scales + np.log(20))


@pytest.fixture
def grey(tmp_path) -> Path:
    """A grey ball far out, with harmonics, and quaternions that have no length of one."""
    ball = red_ball()
    g = torch.Generator().manual_seed(5)
    grey = rgb_to_sh0(torch.full((150, 1, 3), 0.4))
    asset = elsewhere(replace(ball, sh0=grey, shN=0.1 * torch.randn(150, 15, 3, generator=g)))
    save(asset, tmp_path / "ball.ply")
    return tmp_path / "ball.ply"


def refining(path: Path, steps: int = 12, **refine) -> Config:
    """A short run on an asset in which everything acts."""
    config = tiny_config(steps=steps, refine=RefineConfig(asset=str(path), sha256=sha256_of(path), **refine))
    return replace(config, densify=replace(config.densify, start=0.0, every=0.2, prune_opacity=0.005))


def refined(config: Config, folder: Path, products=None) -> Result:
    """A whole run; of what is made beside the asset, by default only the asset in its own format."""
    own = {name: make for name, make in products_of(config).items() if name == Path(config.refine.asset).name}
    with Job.open(folder, config) as job:
        job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        assert job.run()
        return job.finish(products=own if products is None else products)


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_frames_there_and_back(frames):
    asset, generator = random_asset(8, degree=3), np.random.default_rng(0)
    for _ in range(frames):
        matrix = similarity(generator)
        back = moved(moved(asset, matrix), inverse(matrix))
        for name in ("means", "scales", "opacities", "sh0", "shN"):
            assert torch.allclose(getattr(back, name), getattr(asset, name), atol=1e-5, rtol=1e-5), name
        size = covariances(asset).diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        assert ((covariances(back) - covariances(asset)) / size).abs().max() < 1e-5


def test_harmonics_turn_with_the_asset():
    asset = replace(random_asset(30, degree=3), opacities=torch.full((30,), 3.0))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("y", 90, degrees=True).as_matrix())
    views = turntable(4, elevation=0.0, radius=2.6, size=48)
    still, turned = render(asset, views).rgb, render(moved(asset, matrix), views).rgb
    # Turned toward +X by a quarter: the camera at 90 degrees sees what the one in front saw.
    assert torch.allclose(turned.roll(-1, 0), still, atol=2e-3)


def test_the_asset_is_fitted_and_stands_upright(tmp_path):
    asset = random_asset(50, degree=1)
    save(asset, tmp_path / "a.glb")
    for up, front in (("+z", "-y"), ("-y", "-z"), ("+x", None), ("+z", None), (None, "-x")):
        original = Original.of(RefineConfig(asset=str(tmp_path / "a.glb"), up=up, front=front))
        turn = original.to_world[:3, :3] / original.to_world[:3, :3].det() ** (1 / 3)
        for axis, wanted in ((up, [0, 1, 0]), (front, [0, 0, 1])):
            if axis:
                own = torch.zeros(3, dtype=torch.float64)
                own["xyz".index(axis[1])] = 1 if axis[0] == "+" else -1
                assert torch.allclose(turn @ own, torch.tensor(wanted, dtype=torch.float64))
        centre, reach = bounding_ball(original.fitted(original.gaussians))
        assert reach == pytest.approx(RADIUS, rel=0.2)
        assert centre.norm() < 0.15


def test_fog_does_not_count_where_an_asset_is_fitted(grey):
    clean = load(grey)
    fog = clean.select(torch.arange(100))
    fog.means = clean.means.mean(0) + 60 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    fog.opacities = torch.full((100,), 0.15).logit()
    before = Original.of(RefineConfig(asset=str(grey))).to_world
    for name, tensor in clean.params().items():
        setattr(clean, name, torch.cat([tensor, getattr(fog, name)]))
    save(clean, grey)
    torch.testing.assert_close(Original.of(RefineConfig(asset=str(grey))).to_world, before)


# --- what changes and what stays -------------------------------------------------------------------------------------


def test_it_becomes_what_is_wanted_where_it_was(grey, tmp_path):
    result = refined(refining(grey, steps=40), tmp_path / "run", products_of(refining(grey)))
    before, after = load(grey), load(tmp_path / "run" / "ball.ply")
    colour = after.sh0[:, 0] * 0.28209479 + 0.5
    assert (colour[:, 0] - colour[:, 1]).mean() > 0.1
    assert torch.allclose(bounding_ball(after)[0], bounding_ball(before)[0], atol=2)
    assert after.sh_degree == 3
    record = json.loads((tmp_path / "run" / "psd_gs.json").read_text())
    assert record["scores"]["red"] > record["refined"]["scores_before"]["red"] + 0.01
    assert record["refined"]["asset"] == "ball.ply"
    assert len(after) == len(result.gaussians) == 150 + record["refined"]["grown"] - record["refined"]["dropped"]
    assert {"before-after.html", "moved.png", "report.html", "splat.ply"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert not result.failed


def rows_of(path: Path) -> np.ndarray:
    plyfile = pytest.importorskip("plyfile")
    return plyfile.PlyData.read(str(path))["vertex"].data


REGIONS = {
    "box": {"box": (290.0, 20.0, -10.0, 310.0, 40.0, 20.0)},
    "sphere": {"sphere": (300.0, 28.0, -7.0, 7.0)},
}
"""In the file's axes, y down; the ball's centre is at (300, 20, -7) there."""


@pytest.mark.parametrize("region", REGIONS)
def test_outside_stays_to_the_bit_and_new_ones_grow_inside(region, grey, tmp_path):
    raw = rows_of(grey).copy()
    for name in ("rot_0", "rot_1", "rot_2", "rot_3"):  # as 3DGS trains them
        raw[name] *= 3.7
    data = grey.read_bytes()
    extra = data[: -raw.nbytes].replace(b"end_header", b"comment by another writer\nend_header")
    grey.write_bytes(extra + raw.tobytes())
    refined(refining(grey, **REGIONS[region]), tmp_path / "run")
    after = rows_of(tmp_path / "run" / "ball.ply")
    place = np.stack([raw["x"], raw["y"], raw["z"]], 1)
    if region == "box":
        inside = np.all((place >= [290, 20, -10]) & (place <= [310, 40, 20]), axis=1)
    else:
        inside = np.linalg.norm(place - [300, 28, -7], axis=1) <= 7
    assert 5 < inside.sum() < 140
    bits = {row.tobytes() for row in after}
    assert {row.tobytes() for row in raw[~inside]} <= bits
    outside = {row.tobytes() for row in raw[~inside]}
    others = after[[row.tobytes() not in outside for row in after]]
    places = np.stack([others["x"], others["y"], others["z"]], 1)
    assert len(others) > inside.sum()  # some grew
    if region == "box":
        assert np.all(places[:, 1] >= 20 - 1e-4)
    else:
        assert np.all(np.linalg.norm(places - [300, 28, -7], axis=1) <= 7 + 1e-4)
    assert not any(row.tobytes() in bits for row in raw[inside])
    assert b"by another writer" in (tmp_path / "run" / "ball.ply").read_bytes()


def test_a_selection_of_another_program_chooses(grey, tmp_path):
    whole = load(grey)
    chosen = whole.means[:, 1] > -20
    save(whole.select(chosen.nonzero()[:, 0].flip(0)), tmp_path / "mask.ply")  # order does not matter
    result = refined(refining(grey, mask=str(tmp_path / "mask.ply")), tmp_path / "run")
    kept = result.rows[result.rows >= 0]
    outside = ~chosen[kept]
    assert outside.sum() == (~chosen).sum()
    for name, tensor in result.gaussians.params().items():
        assert torch.equal(tensor[result.rows >= 0][outside], getattr(whole, name)[kept][outside]), name
    others = result.gaussians.means[result.rows < 0]
    distance = torch.cdist(others, whole.means)
    assert chosen[distance.argmin(1)].float().mean() > 0.99
    whole.means += 1.0
    save(whole, tmp_path / "mask.ply")
    with pytest.raises(InputError, match="lie where the asset has none"):
        Original.of(RefineConfig(asset=str(grey), mask=str(tmp_path / "mask.ply")))


@pytest.mark.parametrize(
    ("only", "still"), [("colour", ("means", "quats", "scales", "opacities")), ("shape", ("sh0", "shN"))]
)
def test_only_a_part_changes(only, still, grey, tmp_path):
    result = refined(refining(grey, only=only), tmp_path / "run")
    before = load(grey)
    old = result.rows >= 0
    for name, tensor in result.gaussians.params().items():
        same = torch.equal(tensor[old], getattr(before, name)[result.rows[old]])
        assert same == (name in still), name
    if only == "colour":
        assert old.all()
        assert result.refined["silhouette_iou"] == 1.0


def test_keep_holds_the_original(grey, tmp_path):
    before = load(grey)

    def change(keep: float) -> float:
        result = refined(refining(grey, keep=keep, only="colour"), tmp_path / f"run{keep}")
        return float((result.gaussians.sh0 - before.sh0).abs().mean())

    free, held, fast = change(0.0), change(1.0), change(100.0)
    assert fast < 0.3 * free
    assert fast < held < free


def test_a_refinement_holds_on_by_its_strength(grey):
    assert [task(grey, strength)["refine"]["keep"] for strength in (0.2, 0.6, 0.65, 0.7, 0.75, 0.8, 1.0)] == [
        0, 0, 0.075, 0.15, 0.075, 0, 0
    ]  # fmt: skip
    assert task(grey, 0.7, keep=0.0)["refine"]["keep"] == 0
    assert task(grey, 0.2, keep=2.0)["refine"]["keep"] == 2


def test_an_asset_with_room_is_smaller_and_lower(grey):
    original = Original.of(RefineConfig(asset=str(grey)))
    low = original.with_room(0.5)
    points = torch.tensor([[0.0, -RADIUS, 0.0], [0.0, RADIUS, 0.0], [0.0, 1.5 * RADIUS, 0.0]], dtype=torch.float64)
    own = (points - original.to_world[:3, 3]) @ torch.linalg.inv(original.to_world[:3, :3]).T
    placed = own @ low.to_world[:3, :3].T + low.to_world[:3, 3]
    wanted = torch.tensor([[0.0, -RADIUS, 0.0], [0.0, 0.6 * RADIUS, 0.0], [0.0, RADIUS, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(placed, wanted)
    assert torch.equal(Original.of(RefineConfig(asset=str(grey), room=0.5)).to_world, low.to_world)


class Undecided(PaintedPrior):
    """Draws an asset with a certain room; without words, the mean of what it is with any."""

    def __init__(self, original: Original, room: float) -> None:
        self.any = [PaintedPrior(original.with_room(room).fitted(original.gaussians)) for room in ROOMS]
        super().__init__(self.any[ROOMS.index(room)].target)

    def predict(self, x_t, t, text, negative, cameras):
        cond, _ = super().predict(x_t, t, text, negative, cameras)
        return cond, sum(prior.paint(cameras) for prior in self.any) / len(self.any)


@pytest.mark.parametrize(("only", "drawn", "chosen"), [("all", 0.6, 0.6), ("all", 0.0, 0.0), ("colour", 0.6, 0.0)])
def test_an_asset_gets_the_room_that_the_prior_expects(only, drawn, chosen, grey, tmp_path):
    original = Original.of(RefineConfig(asset=str(grey)))
    prior = Undecided(original, drawn)
    config = refining(grey, steps=2, only=only, room=None)
    with Job.open(tmp_path / "run", config) as job:
        trainer = job.begin(TextTo3DPipeline(prior, RedReward()))
        assert trainer.config.refine.room == chosen
        assert torch.equal(trainer.refinement.original.to_world, original.with_room(chosen).to_world)
    assert read_config(tmp_path / "run" / "config.yaml").refine.room == chosen
    with Job.open(tmp_path / "run", config) as job:  # what the run has decided is no difference
        assert job.has_begun
        job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        assert job.config.refine.room == chosen
    with pytest.raises(OutputError, match="differs in refine"):
        Job.open(tmp_path / "run", replace(config, refine=replace(config.refine, room=1.0)))


def test_room_is_for_what_can_be_added(grey):
    assert [task(grey, strength)["refine"]["room"] for strength in (0.2, 0.6, 0.7, 1.0)] == [0, 0, None, None]
    assert task(grey, 0.7, room=0.3)["refine"]["room"] == 0.3


def test_what_is_wanted_much_is_held_less():
    error = torch.tensor([1e-4, BOUND, 1e4], requires_grad=True)
    held = bounded(error)
    torch.testing.assert_close(held, torch.tensor([1e-4, BOUND / 2, BOUND]), rtol=2e-3, atol=0)
    (pull,) = torch.autograd.grad(held.sum(), error)
    torch.testing.assert_close(pull, torch.tensor([1.0, 0.25, 0.0]), rtol=3e-3, atol=1e-6)


def test_small_gaussians_share_gradients_and_large_ones_do_not(grey):
    config = refining(grey)
    refinement = Refinement(Original.of(config.refine), config)
    cell = 2 * config.cameras.radius / 16
    start = refinement.start
    start.scales = torch.full_like(start.scales, np.log(cell / 5))
    start.scales[::3] = np.log(cell)
    for parameter in start.params().values():
        parameter.requires_grad_(True)
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    own = {name: parameter.grad.clone() for name, parameter in start.params().items()}
    assert torch.equal(refinement.pool(start, step=3, seen=16), start.means)
    small = torch.arange(150) % 3 > 0
    offset = torch.rand(3, generator=torch.Generator().manual_seed(3))
    places = [tuple(row) for row in ((start.means.detach() / cell + offset).floor()).tolist()]
    for name, parameter in start.params().items():
        assert torch.equal(parameter.grad[~small], own[name][~small])
        for i in small.nonzero()[:, 0].tolist():
            together = [j for j in range(150) if places[j] == places[i]]
            torch.testing.assert_close(parameter.grad[i], own[name][together].mean(0))


def test_what_was_faint_or_large_is_not_dropped(grey, tmp_path):
    whole = load(grey)
    whole.opacities[:20] = -8.0
    whole.scales[20:25] = 4.0
    save(whole, grey)
    result = refined(refining(grey), tmp_path / "run")
    assert set(range(25)) <= set(result.rows.tolist())


def test_no_more_than_wanted(grey, tmp_path):
    result = refined(refining(grey, steps=30, max_splats=160), tmp_path / "run")
    assert 150 < len(result.gaussians) <= 160


@pytest.mark.parametrize(
    "extension",
    [
        pytest.param(e, marks=pytest.mark.full if e == ".usdc" else ())
        for e in FORMATS
        if FORMATS[e].read and e not in (".ply", ".usdz")
    ],
)
def test_every_format_comes_back_as_itself(extension, grey, tmp_path):
    save(load(grey), tmp_path / f"thing{extension}", metadata={"made by": "somebody"})
    config = refining(tmp_path / f"thing{extension}", steps=2, box=(290.0, -40.0, -20.0, 310.0, 40.0, 4.0))
    result = refined(config, tmp_path / "run")
    before, after = load(tmp_path / f"thing{extension}"), load(tmp_path / "run" / f"thing{extension}")
    assert after.sh_degree == before.sh_degree
    assert len(after) == len(result.gaussians)
    if extension in (".glb", ".usdc"):
        same = (result.rows >= 0) & ~Original.of(config.refine).chosen[result.rows.clamp_min(0)]
        for name, tensor in before.params().items():
            assert torch.equal(getattr(after, name)[same], tensor[result.rows[same]]), name


# --- the run ---------------------------------------------------------------------------------------------------------


def test_a_resumed_refinement_equals_an_uninterrupted_one(grey, tmp_path):
    config = refining(grey, steps=8, box=(290.0, 20.0, -10.0, 310.0, 40.0, 20.0))
    refined(config, tmp_path / "whole")
    with Job.open(tmp_path / "parts", config) as job:
        trainer = job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        for event in trainer.run():
            if event.step == 5:
                trainer.save_checkpoint()
                break
    refined(config, tmp_path / "parts")
    one, other = (load(tmp_path / name / "ball.ply") for name in ("whole", "parts"))
    assert_same(one.params(), other.params())


def test_another_file_is_another_run(grey, tmp_path):
    config = refining(grey, steps=2)
    refined(config, tmp_path / "run")
    save(replace(load(grey), opacities=torch.zeros(150)), grey)
    with pytest.raises(InputError, match="is another file than when the run began"):
        Original.of(config.refine)
    changed = replace(config, refine=replace(config.refine, sha256=sha256_of(grey)))
    with pytest.raises(OutputError, match="differs in refine"):
        Job.open(tmp_path / "run", changed)
    with Job.find(tmp_path, changed) as job:
        assert not job.has_begun


def test_views_of_small_gaussians_are_rendered_larger(grey):
    config = refining(grey)
    original = Original.of(config.refine)
    assert Refinement(original, config).zoom == 1
    fine = replace(original, gaussians=replace(original.gaussians, scales=original.gaussians.scales - 5))
    assert Refinement(fine, config).zoom == 4


def test_strength_is_the_highest_noise_level(grey):
    times = task(grey, 0.3)["guidance"]["timesteps"]
    assert times == {"t_max_start": 0.3, "t_min_start": 0.3, "t_max_end": 0.3, "t_min_end": 0.02}
    assert task(grey, 1.0)["guidance"]["timesteps"]["t_max_end"] == 0.5
    with pytest.raises(InputError, match="0 to 1"):
        task(grey, 1.2)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(grey, tmp_path, capsys):
    arguments = [
        "refine",
        str(grey),
        "a red ball",
        "--steps",
        "2",
        "--preset",
        "draft",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    cli.main([*arguments, "--box", "290,20,-10,310,40,20", "--strength", "0.4", "--quiet"])
    folder = tmp_path / "out" / "a-red-ball-0"
    assert (folder / "ball.ply").exists()
    assert "t_max_start: 0.4" in (folder / "config.yaml").read_text()
    assert "a-red-ball-0  (mini" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box=0,0,0,1,1,1"], "--box: expected Gaussians inside, received none of 150"),
        (["--sphere", "0,0,0,1"], "--sphere: expected Gaussians inside"),
        (["--box", "1,2,3"], "--box: expected 6 numbers"),
        (["--box=0,0,0,-1,1,1"], "X0 < X1"),
        (["--sphere", "0,0,0,nan"], "--sphere: expected 4 numbers"),
        (["--box=-1,-1,-1,1,1,1", "--sphere", "0,0,0,9"], "one of --box, --sphere and --mask"),
        (["--strength", "1.5"], "--strength: expected 0 to 1"),
        (["--keep", "-1"], "keep: expected a value from 0"),
        (["--max-splats", "20"], "--max-splats: expected at least the 150"),
        (["--up", "+y", "--front", "-y"], "along two axes"),
        (["--mask", "nowhere.ply"], "nowhere.ply"),
        (["--set", "solid_steps=3", "--steps", "1"], "solid_steps: expected 0"),
    ],
)
def test_bad_input_is_one_line(arguments, message, grey, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["refine", str(grey), "a red ball", "--quiet", "--output-dir", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_splat_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"splat\.ply"):
        task(tmp_path / "empty")
    with pytest.raises(InputError, match="one of"):
        task(tmp_path / "thing.obj")
    with pytest.raises(ConfigError, match="radius above 0"):
        RefineConfig(asset="a.ply", sphere=(0.0, 0.0, 0.0, 0.0))
