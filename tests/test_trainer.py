"""The optimization loop: it learns, it can be stopped and resumed to the bit, and it survives what is broken."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from painted import RED, PaintedPrior, assert_same, make_trainer, tiny_config
from torch import Tensor
from toy import LinearReward, ToyPrior

from psd_gs import trainer as trainer_module
from psd_gs.cameras import Cameras, turntable
from psd_gs.config import CameraConfig, Config, DensifyConfig, OptimizerConfig
from psd_gs.config.guidance import DreamFLConfig, GuidanceConfig
from psd_gs.errors import BackendError, FormatError, OutputError, PsdGsError
from psd_gs.evaluation.scores import ring_images, view_scores
from psd_gs.gaussians import sh0_to_rgb
from psd_gs.render import render
from psd_gs.scoring import score_asset
from psd_gs.trainer import (
    Trainer,
    read_tensors,
    sample_background,
    sample_cameras,
    stream_seeds,
    write_tensors,
)


def advance(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """So many steps, or fewer at the end of the run; logs without the time that they took."""
    logs: list[dict[str, float]] = []
    if not steps:
        return logs
    for event in trainer.run():
        logs.append({name: value for name, value in event.logs.items() if not name.startswith("seconds")})
        if len(logs) == steps:
            break
    return logs


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


# --- it learns -------------------------------------------------------------------------------------------------------


def test_the_asset_becomes_what_the_prior_wants():
    guidance = GuidanceConfig(method="recon", preference="none", guidance_scale=1.0)
    trainer = make_trainer(tiny_config(steps=100, guidance=guidance))
    cameras, white = turntable(4, size=16), torch.ones(3)
    wanted = render(trainer.guidance.prior.target, cameras, white).rgb

    def error() -> float:
        return float((render(trainer.gaussians.detach(), cameras, white).rgb - wanted).square().mean())

    start = error()
    logs = advance(trainer, 1000)
    assert len(logs) == 100
    assert error() < 0.1 * start
    # The body is red where it shows.
    done = trainer.finish()
    weight = done.opacities.sigmoid()[:, None]
    colour = (sh0_to_rgb(done.sh0[:, 0]).clamp(0, 1) * weight).sum(0) / weight.sum()
    assert (colour - torch.tensor(RED)).abs().max() < 0.2
    assert sum(log["base_norm"] for log in logs[-10:]) < 0.5 * sum(log["base_norm"] for log in logs[:10])


class Watching(PaintedPrior):
    """A prior and a reward in one; ``seen`` collects the pictures that the reward is shown."""

    differentiable, render_size = True, 32

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def score(self, images: Tensor, prompts: list[str], cameras: Cameras | None = None) -> Tensor:
        self.seen.append(images.detach())
        return images.mean((2, 3, 4))


def dazzling(config: Config) -> tuple[Trainer, Watching]:
    """A training whose Gaussians are brighter than white, before the eyes of its networks."""
    watching = Watching()
    watching.paint = lambda cameras: torch.zeros(1, 4, 3, 16, 16)
    trainer = make_trainer(config, prior=watching, reward=watching)
    trainer.gaussians.sh0.data.fill_(5.0)
    return trainer, watching


def test_a_step_shows_no_reward_more_than_white():
    always = DreamFLConfig(start=0.0, t_max=1.0, estimate_t_max=0.0)
    trainer, watching = dazzling(tiny_config(guidance=GuidanceConfig(preference="dreamfl", dreamfl=always)))
    advance(trainer, 1)
    assert [float(images.max()) for images in watching.seen] == [1.0]
    assert trainer.gaussians.sh0.detach().mean() < 5.0  # it learns all the same


def test_a_score_shows_no_network_more_than_white():
    """Of a reward or judge after a run, in ``eval`` and where a reward is fitted to answers."""
    trainer, watching = dazzling(tiny_config())
    asset = trainer.gaussians.detach()
    score_asset(asset, "a ball", watching)
    view_scores(watching, ring_images(asset, 4, 32), "a ball")
    assert [float(images.max()) for images in watching.seen] == [1.0, 1.0]


def test_it_runs_on_the_analytic_toy():
    config = tiny_config(steps=30, cameras=CameraConfig(size=(8, 8)))
    trainer = make_trainer(config, prior=ToyPrior(), reward=LinearReward())
    logs = advance(trainer, 1000)
    assert len(logs) == 30
    assert any("reward_win" in log for log in logs)
    assert max(log.get("negative_shift", 0) for log in logs) > 0
    assert all(math.isfinite(value) for log in logs for value in log.values())


# --- what a step does ------------------------------------------------------------------------------------------------


def test_rates_decay_exponentially():
    trainer = make_trainer(tiny_config(steps=10, densify=DensifyConfig(enabled=False)))
    options = trainer.config.optimizer
    rates = []
    for _ in trainer.run():
        rates.append({name: optimizer.rates[0] for name, optimizer in trainer.optimizers.items()})
    for name in ("means", "scales", "quats", "opacities", "sh0"):
        first, last = getattr(options, name)
        expected = [first ** (1 - i / 10) * last ** (i / 10) for i in range(10)]
        assert [rate[name] for rate in rates] == pytest.approx(expected)
        assert trainer.optimizers[name].betas == options.betas


def test_regularizers_push_opacity_and_size_down_and_nothing_else():
    trainer = make_trainer(tiny_config(optimizer=OptimizerConfig(opacity_weight=0.3, scale_weight=0.7)))
    g = trainer.gaussians
    loss = trainer._regularizer()
    torch.testing.assert_close(loss, 0.3 * g.opacities.sigmoid().mean() + 0.7 * g.scales.exp().mean())
    loss.backward()
    assert (g.opacities.grad > 0).all()
    assert (g.scales.grad > 0).all()
    assert g.means.grad is g.quats.grad is g.sh0.grad is None


def test_sizes_follow_the_schedule(monkeypatch):
    sizes = []
    inner = trainer_module.render

    def spy(gaussians, cameras, *args, **kwargs):
        sizes.append((cameras.width, cameras.height))
        return inner(gaussians, cameras, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "render", spy)
    advance(make_trainer(tiny_config(steps=8, cameras=CameraConfig(size=(8, 24), size_at=0.5))), 100)
    assert sizes == [(8, 8)] * 4 + [(24, 24)] * 4


def test_sampled_cameras_stay_in_range():
    config = CameraConfig(elevation=(-10.0, 50.0), fov=(30.0, 45.0), distance=(0.9, 1.1), radius=0.6)
    generator = torch.Generator().manual_seed(0)
    azimuths, elevations, fovs, distances = [], [], [], []
    for _ in range(300):
        cameras = sample_cameras(config, 4, 32, generator)
        x, y, z = cameras.positions.unbind(-1)
        distance = cameras.positions.norm(dim=1)
        assert (distance - distance[0]).abs().max() < 1e-5
        elevation = torch.rad2deg(torch.asin(y / distance))
        assert (elevation - elevation[0]).abs().max() < 1e-3
        azimuth = torch.rad2deg(torch.atan2(x, z))
        turns = (azimuth - azimuth[0]) % 360
        assert turns.tolist() == pytest.approx([0, 90, 180, 270], abs=1e-2)
        fov = 2 * math.degrees(math.atan(16 / float(cameras.Ks[0, 1, 1])))
        azimuths.append(float(azimuth[0]) % 360)
        elevations.append(float(elevation[0]))
        fovs.append(fov)
        distances.append(float(distance[0]) * math.sin(math.radians(fov) / 2) / 0.6)
    for values, low, high in ((azimuths, 0, 360), (elevations, -10, 50), (fovs, 30, 45), (distances, 0.9, 1.1)):
        assert low - 1e-3 <= min(values) < low + 0.1 * (high - low)
        assert high + 1e-3 >= max(values) > high - 0.1 * (high - low)


def test_sampled_backgrounds():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample_background("augment", generator) for _ in range(600)])
    is_tone = [(drawn == torch.tensor(tone)).all(-1) for tone in (1.0, 0.5, 0.2)]
    for tone, share in zip(is_tone, (0.35, 0.35, 0.2), strict=True):
        assert abs(tone.float().mean() - share) < 0.07
    colours = drawn[~torch.stack(is_tone).any(0)]
    assert 0.05 < len(colours) / 600 < 0.16
    assert (colours.std(-1) > 0.01).float().mean() > 0.9
    assert torch.equal(sample_background("white", generator), torch.ones(3))


def test_every_consumer_has_its_own_stream():
    seeds = stream_seeds(0)
    assert len(set(seeds.values())) == len(seeds) == 5
    assert seeds == stream_seeds(0)
    assert not set(seeds.values()) & set(stream_seeds(1).values())


# --- growing and pruning in the loop ---------------------------------------------------------------------------------


def test_rounds_happen_when_they_should():
    options = DensifyConfig(start=0.2, stop=0.6, every=0.1, grow=0.2, cap=10**6)
    trainer = make_trainer(tiny_config(steps=40, densify=options))
    logs = advance(trainer, 100)
    rounds = [step for step, log in enumerate(logs, 1) if "grown" in log]
    assert rounds == [8, 12, 16, 20, 24, 28, 32, 36]
    assert all(logs[step - 1]["grown"] > 0 for step in rounds if step <= 24)
    assert not any(logs[step - 1]["grown"] for step in rounds if step > 24)
    counts = [120.0, *(log["gaussians"] for log in logs)]
    for before, after, log in zip(counts, counts[1:], logs, strict=False):
        assert after == before + log.get("grown", 0) - log.get("pruned", 0)


def test_survivors_keep_their_moments_and_new_ones_start_at_zero(monkeypatch):
    trainer = make_trainer()
    trainer.gaussians.opacities.data[10:20] = -6.0
    plans, before = [], {}
    plan = trainer.densifier.plan

    def spy(gaussians, grow, spared):
        before.update({name: {k: v.clone() for k, v in trainer._moments(name).items()} for name in gaussians.params()})
        plans.append(plan(gaussians, grow, spared))
        return plans[-1]

    monkeypatch.setattr(trainer.densifier, "plan", spy)
    advance(trainer, 8)
    ((index, new),) = plans
    assert new.any()
    assert set(range(120)) - set(index.tolist()) == set(range(10, 20))
    for name, moments in before.items():
        now = trainer._moments(name)
        assert torch.equal(now["step"], moments["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            if name != "shN":
                assert moments[key].any()
            assert torch.equal(now[key][~new], moments[key][index[~new]])
            assert not now[key][new].any()
    assert all(p.requires_grad and p.is_leaf for p in trainer.gaussians.params().values())
    advance(trainer, 3)
    assert trainer.step == 11


def test_switched_off_it_leaves_the_number_alone():
    trainer = make_trainer(tiny_config(densify=DensifyConfig(enabled=False)))
    logs = advance(trainer, 100)
    assert {log["gaussians"] for log in logs} == {120.0}
    assert len(trainer.finish()) == 120


def test_nothing_left_is_said_clearly():
    trainer = make_trainer(tiny_config(densify=replace(tiny_config().densify, prune_opacity=0.99)))
    with pytest.raises(PsdGsError, match=r"every Gaussian became transparent by step 8: .*--seed"):
        advance(trainer, 100)


@pytest.mark.parametrize("solid_steps", [0, 5])
def test_finish_leaves_the_run_alone(solid_steps):
    trainer = make_trainer(tiny_config(solid_steps=solid_steps))
    advance(trainer, 20)
    state = {name: value.clone() for name, value in trainer.state_dict().items()}
    done = trainer.finish()
    assert not any(p.requires_grad for p in done.params().values())
    assert_same(state, trainer.state_dict())
    firm = torch.sigmoid(done.opacities).median() > 0.9
    assert firm == (solid_steps > 0)


# --- broken steps ----------------------------------------------------------------------------------------------------


def test_nan_of_the_prior_is_skipped_and_counted():
    trainer = make_trainer(prior=PaintedPrior(broken=(6, 7, 15)))
    logs = advance(trainer, 100)
    assert trainer.skipped == 3
    assert logs[-1]["skipped"] == 3
    assert len(logs) == 40
    for parameter in trainer.state_dict().values():
        if parameter.is_floating_point():
            assert parameter.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_gradient_changes_nothing(monkeypatch, value):
    trainer = make_trainer()
    advance(trainer, 5)
    before = {name: v.clone() for name, v in trainer.state_dict().items() if name.startswith(("gaussians", "adam"))}
    trainer.gaussians.means.register_hook(lambda grad: grad * value)
    advance(trainer, 1)
    after = trainer.state_dict()
    assert_same(before, {name: after[name] for name in before})
    assert trainer.skipped == 1
    assert trainer.step == 6
    trainer._adopt(trainer.gaussians, {name: trainer._moments(name) for name in trainer.gaussians.params()})
    advance(trainer, 1)
    assert trainer.skipped == 1
    assert not torch.equal(trainer.gaussians.means.detach(), before["gaussians.means"])


# --- stop and resume -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Trainer:
    """An uninterrupted run."""
    trainer = make_trainer(folder=tmp_path_factory.mktemp("whole"))
    advance(trainer, 1000)
    return trainer


@pytest.mark.parametrize("stop", [1, 7, 8, 22])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, whole, stop):
    first = make_trainer(folder=tmp_path)
    advance(first, stop)
    first.save_checkpoint()
    second = make_trainer(folder=tmp_path)
    second.load_checkpoint()
    assert second.step == stop
    assert_same(first.state_dict(), second.state_dict())
    advance(second, 1000)
    state = whole.state_dict()
    assert_same(state, second.state_dict())
    assert {"generator.cameras", "generator.background", "generator.densify", "adam.means.exp_avg_sq"} <= state.keys()
    assert {"guidance.noise_generator", "guidance.negative.delta", "guidance.psd.gap_mean"} <= state.keys()
    assert metrics(whole.folder) == metrics(tmp_path)
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 41))
    assert_same(whole.finish().params(), second.finish().params())
    # It was a run in which everything acted.
    rows = metrics(whole.folder)
    assert sum(row.get("grown", 0) for row in rows) > 0
    assert any("reward_win" in row for row in rows)
    assert max(row.get("negative_shift", 0) for row in rows) > 0


def test_the_same_on_two_threads(tmp_path):
    one = make_trainer()
    advance(one, 12)
    torch.set_num_threads(2)
    two = make_trainer()
    advance(two, 12)
    assert_same(one.state_dict(), two.state_dict())


def test_another_seed_is_another_run():
    ends = []
    for seed in (0, 0, 1):
        trainer = make_trainer(tiny_config(seed=seed))
        advance(trainer, 3)
        ends.append(trainer.gaussians.means.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_there_is_a_checkpoint_before_the_first_step_and_after_the_last(tmp_path):
    trainer = make_trainer(folder=tmp_path)
    events = trainer.run()
    next(events)
    fresh = make_trainer(folder=tmp_path)
    fresh.load_checkpoint()
    assert fresh.step == 0
    assert_same(fresh.state_dict(), make_trainer().state_dict())
    for _ in events:
        pass
    last = make_trainer(folder=tmp_path)
    last.load_checkpoint()
    assert last.step == 40
    assert_same(last.state_dict(), trainer.state_dict())
    assert list(last.run()) == []


def test_checkpoints_come_by_the_clock(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 7))
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: next(clock))
    trainer = make_trainer(folder=tmp_path)
    saved = []
    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", lambda: (saved.append(trainer.step), save()))
    advance(trainer, 12)
    gaps = [b - a for a, b in itertools.pairwise(saved)]
    assert saved[0] == 0
    assert len(saved) >= 3
    assert max(gaps) * 7 <= 30


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    trainer = make_trainer(folder=tmp_path)
    advance(trainer, 5)
    trainer.save_checkpoint()
    advance(trainer, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "t": 0.')  # the process died in the middle of a line
    resumed = make_trainer(folder=tmp_path)
    resumed.load_checkpoint()
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    advance(resumed, 1)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_logs_are_valid_json_whatever_happens(tmp_path):
    trainer = make_trainer(folder=tmp_path, prior=PaintedPrior(broken=(2,)))
    advance(trainer, 3)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[1])["base_norm"] is None


def damaged(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(b"\x00\xff" * 500)
    elif kind == "entry missing":
        write_tensors(path, {k: v for k, v in read_tensors(path).items() if k != "generator.cameras"})
    elif kind == "parameter missing":
        write_tensors(path, {k: v for k, v in read_tensors(path).items() if k != "gaussians.sh0"})
    elif kind == "other shape":
        write_tensors(path, read_tensors(path) | {"guidance.negative.delta": torch.zeros(1, 9, 9)})
    elif kind == "other generator":
        write_tensors(path, read_tensors(path) | {"generator.cameras": torch.zeros(3)})


@pytest.mark.parametrize("k", [1, 8, 21])
def test_out_of_memory_keeps_the_last_finished_step_to_the_bit(tmp_path, whole, k):
    """Also where the guidance had drawn noise and refined its embedding before it failed."""
    trainer = make_trainer(folder=tmp_path)
    guidance, calls = trainer.guidance, []

    class Full:
        prior, state_dict = guidance.prior, guidance.state_dict

        def __call__(self, *arguments):
            calls.append(1)
            out = guidance(*arguments)
            if len(calls) == k:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return out

    trainer.guidance = Full()
    with pytest.raises(BackendError, match=rf"in step {k} with .* saved as of step {k - 1};"):
        advance(trainer, 1000)
    resumed = make_trainer(folder=tmp_path)
    resumed.load_checkpoint()
    assert resumed.step == k - 1
    advance(resumed, 1000)
    assert_same(resumed.state_dict(), whole.state_dict())
    assert metrics(tmp_path) == metrics(whole.folder)


def test_out_of_memory_amid_a_change_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """Some parameters have moved then, others have not."""
    trainer = make_trainer(folder=tmp_path)
    advance(trainer, 3)
    trainer.save_checkpoint()
    saved = read_tensors(tmp_path / "checkpoints" / "latest.safetensors")
    steps = trainer.run()
    next(steps)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.optimizers["opacities"], "step", full)
    with pytest.raises(BackendError, match=r"out of memory in step 5 .* saved as of step 3;"):
        next(steps)
    assert_same(read_tensors(tmp_path / "checkpoints" / "latest.safetensors"), saved)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "truncated",
        "empty",
        "garbage",
        "entry missing",
        "parameter missing",
        "other shape",
        "other generator",
    ],
)
def test_damaged_checkpoints_are_one_clear_line(tmp_path, kind):
    trainer = make_trainer(folder=tmp_path)
    trainer.save_checkpoint()
    damaged(tmp_path / "checkpoints" / "latest.safetensors", kind)
    with pytest.raises(FormatError, match=r"latest.safetensors.*Start anew with --overwrite") as caught:
        make_trainer(folder=tmp_path).load_checkpoint()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, monkeypatch):
    trainer = make_trainer(folder=tmp_path)
    advance(trainer, 3)
    trainer.save_checkpoint()
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*latest.safetensors: No space left on device. Free some"):
        trainer.save_checkpoint()
    monkeypatch.undo()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"latest.safetensors", "previous.safetensors"}
    resumed = make_trainer(folder=tmp_path)
    resumed.load_checkpoint()
    assert resumed.step == 3


def test_unwritable_folders_are_one_clear_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trainer = make_trainer(folder=tmp_path / "file")
    with pytest.raises(OutputError, match=r"cannot write .*checkpoints"):
        advance(trainer, 1)
    gone = make_trainer(folder=tmp_path / "gone")
    gone.step = 1
    assert len(advance(gone, 2)) == 2
    (line,) = (message for message in caplog.messages if "metrics.jsonl" in message)
    assert "No such file or directory" in line
    assert line.endswith("Going on without a log from step 2 on.")


ENDLESS = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from painted import make_trainer, tiny_config
from psd_gs import trainer
trainer.CHECKPOINT_SECONDS = 0.0
run = make_trainer(tiny_config(steps=100_000), Path(sys.argv[1]))
if len(sys.argv) > 2:
    run.load_checkpoint()
for event in run.run():
    pass
"""


def killed(folder: Path, seconds: float, *resume: str) -> None:
    """Run the endless training in another process and kill it ``seconds`` after it has written something new."""
    log = folder / "metrics.jsonl"
    length = log.stat().st_size if log.exists() else -1
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder), *resume],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not log.exists() or log.stat().st_size == length:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.wait()
    process.stderr.close()


def check_after_kill(folder: Path) -> None:
    trainer = make_trainer(tiny_config(steps=100_000), folder)
    trainer.load_checkpoint()
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, trainer.step + 1))
    straight = make_trainer(tiny_config(steps=100_000))
    advance(straight, min(trainer.step, 30))
    if trainer.step <= 30:
        assert_same(trainer.state_dict(), straight.state_dict())
    advance(trainer, 2)
    assert [row["step"] for row in metrics(folder)][-2:] == [trainer.step - 1, trainer.step]


@pytest.mark.full
def test_killed_again_and_again(tmp_path):
    generator = torch.Generator().manual_seed(0)
    killed(tmp_path, 0.0)
    for _ in range(10):
        check_after_kill(tmp_path)
        killed(tmp_path, 0.3 * float(torch.rand((), generator=generator)), "resume")
    check_after_kill(tmp_path)
