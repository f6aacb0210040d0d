"""Networks on one device, Gaussians on another; and what CUDA asks of the loop. No GPU: devices are played."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from painted import make_trainer, tiny_config
from torch import Tensor
from torch.utils._pytree import tree_leaves

from psd_gs import pipeline as pipeline_module
from psd_gs.cameras import Cameras
from psd_gs.guidance.guide import GuidanceOutput
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.resize import resized
from psd_gs.trainer import Stopwatch, Trainer, read_tensors

ELSEWHERE = torch.device("cuda", 7)


class There(Tensor):
    """A tensor of another device, which refuses to be mixed with those of this one."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        seen = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        assert all(isinstance(t, There) or t.ndim == 0 for t in seen), f"{func} mixes devices"
        return super().__torch_function__(func, types, args, kwargs or {})


class Event:
    """``torch.cuda.Event``: its time is known only after it was waited for."""

    streams: list = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.done = False

    def record(self, stream) -> None:
        self.streams.append(stream)
        pending.append(self)

    def synchronize(self) -> None:
        """Events of a stream are done in order."""
        for event in pending[: pending.index(self) + 1]:
            event.done = True

    def elapsed_time(self, other: Event) -> float:
        if not (self.done and other.done):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1.0


pending: list[Event] = []


@pytest.fixture
def second_device(monkeypatch):
    """``tensor.to(ELSEWHERE)`` gives a ``There``; yields what crossed."""
    crossed: list[Tensor] = []
    to = Tensor.to

    def cross(tensor, *args, **kwargs):
        if args and args[0] == ELSEWHERE:
            crossed.append(tensor)
            return tensor.as_subclass(There)
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", cross)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream", device))
    Event.streams.clear()
    pending.clear()
    return crossed


class Networks:
    """A guidance on ``ELSEWHERE`` that wants black pictures; ``nan`` makes it answer NaN."""

    prior = SimpleNamespace(device=ELSEWHERE, views=4)
    nan = False

    def __call__(self, images: Tensor, cameras: Cameras, progress: float, step: int) -> GuidanceOutput:
        assert isinstance(images, There)
        assert isinstance(cameras.viewmats, There)
        loss = images.square().mean()
        return GuidanceOutput(loss, {"base_norm": math.nan if self.nan else 1.0}, 3)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def trainer_beside(networks: Networks) -> Trainer:
    here = make_trainer()
    return Trainer(tiny_config(), networks, here.gaussians)  # type: ignore[arg-type]


def test_pictures_cross_once_per_step_and_their_gradient_comes_back(second_device):
    trainer = trainer_beside(Networks())
    before = trainer.gaussians.detach().map(torch.clone)
    trainer._step()
    pictures = [tensor for tensor in second_device if tensor.ndim > 3]
    assert [tensor.shape for tensor in pictures] == [(1, 4, 3, 16, 16)]
    for name, parameter in trainer.gaussians.params().items():
        assert not isinstance(parameter, There)
        assert parameter.numel() == 0 or (parameter - before.params()[name]).abs().max() > 0, name
    trainer._step()
    assert not any(isinstance(value, There) for value in trainer.state_dict().values())
    assert trainer.densifier.gradient.any()


def test_times_are_those_of_the_device_of_the_networks(second_device):
    logs = trainer_beside(Networks())._step()
    assert {"seconds_render", "seconds_guidance", "seconds_backward"} <= logs.keys()
    assert set(Event.streams) == {("stream", ELSEWHERE)}


def test_a_step_that_is_skipped_waits_for_its_times(second_device):
    networks = Networks()
    networks.nan = True
    trainer = trainer_beside(networks)
    logs = trainer._step()
    assert trainer.skipped == 1
    assert logs["seconds_backward"] == 0.001


def test_stopwatch_without_cuda():
    watch = Stopwatch(torch.device("cpu"))
    watch.lap("nap")
    assert 0 <= watch.seconds()["seconds_nap"] < 1


def test_a_checkpoint_is_taken_up_on_the_device_of_the_gaussians(tmp_path):
    """Everything that the next step mixes with them; the meta device plays a GPU."""
    first = make_trainer(folder=tmp_path)
    for _ in range(3):  # within a round of the densifier
        first._step()
    first.save_checkpoint()
    state = read_tensors(tmp_path / "checkpoints" / "latest.safetensors")
    second = make_trainer()
    second._adopt(second.gaussians.detach().to("meta"))
    second.load_state_dict(state)
    N = len(second.gaussians)
    assert len(state["densifier.gradient"]) == N
    means2d = torch.zeros(4, N, 2, device="meta")
    means2d.absgrad = torch.ones(4, N, 2, device="meta")
    second.densifier.observe({"means2d": means2d, "radii": torch.ones(4, N, 2, dtype=torch.int32, device="meta")})
    for name, optimizer in second.optimizers.items():
        parameter = second.gaussians.params()[name]
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    on_the_host = ("step", "skipped", "generator.", "guidance.")
    beside = {name: value for name, value in second.state_dict().items() if not name.startswith(on_the_host)}
    assert {"gaussians.means", "adam.means.exp_avg", "densifier.gradient", "densifier.visible"} <= beside.keys()
    for name, value in beside.items():
        if not name.endswith((".step", ".generator")):  # Adam counts its steps on the host, as do generators
            assert value.device.type == "meta", name


def test_gaussians_go_to_the_renderer_and_not_to_the_networks(mini_pipeline, monkeypatch):
    """On a GPU without gsplat's kernels and without Triton the CPU renders."""
    asked = []

    def choose(device, *rest):
        asked.append(device)
        return "cpu", "played"

    monkeypatch.setattr(pipeline_module, "choose_renderer", choose)
    config = mini_pipeline.config("draft", {"prompt": "a corgi"})
    trainer = mini_pipeline.trainer(config)
    assert asked == [mini_pipeline.prior.device]
    assert trainer.renderer == "cpu"
    assert trainer.gaussians.device.type == "cpu"


@pytest.mark.parametrize(("name", "calls"), [("cuda:1", [torch.device("cuda", 1)]), ("cuda", []), ("cpu", [])])
def test_a_numbered_gpu_becomes_the_current_one(monkeypatch, name, calls):
    """Else events, streams and workspaces open a context on the first."""
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(pipeline_module, "load_prior", lambda *args, **kwargs: SimpleNamespace(name="mini"))
    monkeypatch.setattr(pipeline_module, "load_reward", lambda *args, **kwargs: None)
    TextTo3DPipeline.from_pretrained("mini", reward="mini", judge="mini-judge", device=name)
    assert seen == calls


class OnApple(There):
    """A tensor of a GPU that lacks the gradient of antialiased interpolation."""

    device = torch.device("mps")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is not torch.nn.functional.interpolate, "not on this device"
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        return super().__torch_function__(func, types, args, kwargs)


def test_resizing_is_done_where_its_gradient_is(monkeypatch):
    pictures = torch.rand(2, 3, 9, 9, requires_grad=True)
    to = Tensor.to
    monkeypatch.setattr(
        Tensor, "to", lambda t, *a, **k: t.as_subclass(OnApple) if a[0] == OnApple.device else to(t, *a, **k)
    )
    small = resized(pictures.as_subclass(OnApple), 5, 5)
    assert type(small) is OnApple
    (gradient,) = torch.autograd.grad(small.as_subclass(Tensor).square().sum(), pictures)
    plain = torch.nn.functional.interpolate(pictures, (5, 5), mode="bilinear", antialias=True)
    assert torch.equal(small.as_subclass(Tensor), plain)
    assert torch.equal(gradient, torch.autograd.grad(plain.square().sum(), pictures)[0])
    assert resized(pictures, 9, 9) is pictures
