"""Rewards by name: expressions, weighted sums, Python functions, local copies, and what is fetched."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tiny_rewards import blip_folder, blip_sizes

from psd_gs import weights
from psd_gs.cameras import turntable
from psd_gs.config.guidance import PSDConfig
from psd_gs.entries import REWARDS
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.guidance.preference import judge
from psd_gs.models import digests_of
from psd_gs.plugins import resolved
from psd_gs.published import EMBEDDED
from psd_gs.rewards import blip, check_judge, load_reward, names_of, needed, refuse_code
from psd_gs.rewards.base import CallableReward, group_score
from psd_gs.rewards.combine import Scored, Term, WeightedSum, parse_expression
from psd_gs.rewards.fitted import LinearHead, save_fitted
from psd_gs.rewards.parked import ParkedReward, move, set_aside

PATH = "C:\\models\\ImageReward.pt"


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("mini", [Term("mini")]),
        ("hpsv2.1,pickscore:0.5", [Term("hpsv2.1"), Term("pickscore", 0.5)]),
        (" a : 2 , b:-1e-1", [Term("a", 2.0), Term("b", -0.1)]),
        ("my.module:score:0.25,f.py:g", [Term("my.module:score", 0.25), Term("f.py:g")]),
        (f"imagereward={PATH}:3,clip", [Term(f"imagereward={PATH}", 3.0), Term("clip")]),
        (f"imagereward={PATH}", [Term(f"imagereward={PATH}")]),
    ],
)
def test_expressions(text, terms):
    assert parse_expression(text) == terms


@pytest.mark.parametrize("text", ["", "a,,b", "a:0", "a:nan", "a:inf,b", ":1", "a,"])
def test_bad_expressions(text):
    with pytest.raises(ConfigError, match=r"such as hpsv2\.1,pickscore:0\.5"):
        load_reward(text)


def bright(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


class PerGroup:
    """A differentiable reward with one score per group."""

    name, differentiable = "group", True

    def score(self, images, prompts, cameras=None):
        return images.square().mean((1, 2, 3, 4))


class PerView:
    name, differentiable = "view", True

    def score(self, images, prompts, cameras=None):
        return images.mean((2, 3, 4))


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_the_sum_is_the_formula_whatever_came_before():
    images = pictures(3, 4, 3, 8, 8)
    parts = [Scored(PerView(), 1.0, 0.4, 0.1), Scored(PerGroup(), -0.5, 0.3, 0.2)]
    reward = WeightedSum(parts, "view,group:-0.5")
    expected = (images.mean((2, 3, 4)) - 0.4) / 0.1 - 0.5 * (images.square().mean((1, 2, 3, 4)) - 0.3)[:, None] / 0.2
    scores = reward.score(images, ["a"] * 3)
    torch.testing.assert_close(scores, expected)
    reward.score(torch.zeros_like(images), ["a"] * 3)
    assert torch.equal(scores, reward.score(images, ["a"] * 3))
    torch.testing.assert_close(scores[1:2], reward.score(images[1:2], ["a"]))
    # pooling over views acts on the sum
    worst = (images.mean((2, 3, 4)).amin(1) - 0.4) / 0.1 - 0.5 * (images.square().mean((1, 2, 3, 4)) - 0.3) / 0.2
    torch.testing.assert_close(group_score(scores, "min"), worst)
    assert WeightedSum(parts[1:], "g").score(images, ["a"] * 3).shape == (3,)


def test_gradients_and_black_boxes():
    images = pictures(1, 2, 3, 8, 8).requires_grad_()
    both = WeightedSum([Scored(PerView(), 2.0), Scored(PerGroup())], "both")
    assert both.differentiable
    (gradient,) = torch.autograd.grad(both.score(images, ["a"]).sum(), images)
    assert (gradient.abs() > 0).all()
    boxed = WeightedSum([Scored(PerView()), Scored(CallableReward(bright))], "boxed")
    assert not boxed.differentiable
    empty = WeightedSum([Scored(PerView()), Scored(CallableReward(lambda x, p: [float("nan")] * len(x)))], "none")
    assert empty.score(images, ["a"]).isnan().all()


def test_a_bad_back_cannot_hide_behind_a_good_front():
    good = torch.full((1, 4, 3, 8, 8), 0.6)
    hiding = torch.full((1, 4, 3, 8, 8), 0.8)
    hiding[:, 2] = 0.2
    reward = CallableReward(bright)
    both = torch.cat([good, hiding])
    for pooling, wins in (("mean", False), ("min", True), ("softmin", True)):
        first, second = judge(reward, both, "a", turntable(8), PSDConfig(pooling=pooling))[:, 0]
        assert bool(first > second + 1e-6) is wins


def test_embedded_rewards_in_a_sum():
    reward = load_reward("mini,mini-judge:0.5")
    images = pictures(2, 4, 3, 64, 64)
    singles = [load_reward(name).score(images, ["a red car", "a cat"]) for name in ("mini", "mini-judge")]
    torch.testing.assert_close(reward.score(images, ["a red car", "a cat"]), singles[0] + 0.5 * singles[1])
    assert (reward.name, reward.differentiable) == ("mini,mini-judge:0.5", True)
    assert load_reward("mini:2").score(images, ["a", "b"]).shape == (2,)
    assert load_reward("mini").name == "mini"


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "my_judge.py").write_text(
        "LEVEL = 2\n\ndef level(images, prompts):\n    return [LEVEL] * len(images)\n"
    )
    images = pictures(2, 3, 3, 8, 8)
    reward = load_reward(f"{tmp_path / 'my_judge.py'}:level", allow_code=True)
    assert torch.equal(reward.score(images, ["a", "b"]), torch.full((2, 3), 2.0))
    assert not reward.differentiable
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("my_judge:level:0.5", allow_code=True).score(images, ["a", "b"]).tolist() == [[1.0] * 3] * 2
    for bad in ("my_judge:lever", "not_there:f", f"{tmp_path / 'absent.py'}:f"):
        with pytest.raises(ConfigError, match="cannot import"):
            load_reward(bad, allow_code=True)
    with pytest.raises(ConfigError, match="expected a function"):
        load_reward("my_judge:LEVEL", allow_code=True)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match="cannot import"):
        load_reward(f"{tmp_path / 'broken.py'}:f", allow_code=True)


CODE = """from pathlib import Path
Path(__file__).with_name("ran").touch()
def f(images, prompts):
    return [0.0] * len(images)
"""


@pytest.mark.parametrize("form", ["{file}:f", "mini,{file}:f:0.5", "evil:f", "evil:f:2,mini-judge"])
def test_a_function_that_nobody_typed_does_not_run(form, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    name = form.format(file=tmp_path / "evil.py")
    with pytest.raises(ConfigError, match=r"is code, and a file names it.*--allow-code"):
        load_reward(name)
    with pytest.raises(ConfigError, match=r"is code, and run/config.yaml names it"):
        refuse_code(name, "run/config.yaml")
    assert needed(name) == []
    assert names_of(name)
    assert not (tmp_path / "ran").exists()
    load_reward(name, allow_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("base", ["evil:f", "{file}:f", "mini,{file}:f", "{other}", "os:system", "", "mini:f"])
def test_a_fitted_reward_stands_on_a_reward_of_the_list(base, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    for folder, below in (("other", "mini"), ("out", base.format(file=tmp_path / "evil.py", other=tmp_path / "other"))):
        save_fitted(tmp_path / folder, LinearHead(torch.zeros(3), torch.zeros(3)), {"base": below})
    for allow_code in (False, True):
        with pytest.raises(ConfigError, match=r"the fitted reward .*: expected one of mini"):
            load_reward(str(tmp_path / "out"), allow_code=allow_code)
    assert not (tmp_path / "ran").exists()


def test_unknown_names():
    for name in ("clap", "hpsv3", "mini=there"):
        with pytest.raises((ConfigError, ModelError), match="mini"):
            load_reward(name)
    with pytest.raises(ConfigError, match="unknown reward 'clap'"):
        load_reward("mini,clap:0.5")  # before anything is loaded


def test_a_judge_is_not_optimized():
    check_judge("hpsv2.1", "pickscore")
    check_judge("hpsv2.1,pickscore:0.5", "imagereward,clip")
    for reward, same in (("mini", "mini"), ("clip,mini:2", "mini"), ("clip=/a/b", "mini,clip"), ("a:f", "a:f:2")):
        with pytest.raises(ConfigError, match="not optimized"):
            check_judge(reward, same)


# --- published -------------------------------------------------------------------------------------------------------


def test_every_reward_has_its_downloads():
    for name, entry in REWARDS.own.items():
        assert weights.WEIGHTS.get(name) == entry.weights
        assert (name in EMBEDDED) + bool(entry.weights) + bool(entry.source) == 1
        assert set(entry.parts.values()) <= set(weights.WEIGHTS)
        assert entry.std > 0
        assert callable(resolved(entry.load))
    for name, entry in weights.WEIGHTS.items():
        if entry.kind in ("reward", "part"):
            assert entry.files, name
            assert entry.licence, name


def test_what_is_needed():
    assert needed("mini") == []
    assert needed("hpsv2.1,pickscore:0.5") == ["hpsv2.1", "clip-tokenizer", "pickscore"]
    assert needed("imagereward,a.py:f") == ["imagereward", "bert-tokenizer"]
    assert needed("aesthetic") == ["aesthetic", "clip"]
    assert needed("clip=/somewhere") == ["clip-tokenizer"]


def test_local_copies_are_recorded(tmp_path, monkeypatch):
    (tmp_path / "hpc.pth").write_bytes(b"weights")
    (tmp_path / "vocab.json").write_bytes(b"{}")
    (tmp_path / "merges.txt").write_bytes(b"")
    monkeypatch.setattr(weights, "locate", lambda name: pytest.fail(f"{name} was looked for"))
    expected = {"hpsv1/hpc.pth": weights.sha256(tmp_path / "hpc.pth")}
    for path in (tmp_path, tmp_path / "hpc.pth"):
        assert digests_of("mini", f"mini:2,hpsv1={path}:0.5", "mini-judge") == expected


@pytest.fixture
def image_reward(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny ImageReward.pt and its tokenizer; the loader expects that architecture."""
    monkeypatch.setattr(blip, "BlipSizes", blip_sizes)
    return blip_folder(tmp_path, "image")


def test_a_local_copy(image_reward, monkeypatch):
    fetched = []
    monkeypatch.setattr(weights, "locate", lambda name: fetched.append(name) or image_reward)
    images = pictures(1, 2, 3, 64, 64)
    by_folder = load_reward(f"imagereward={image_reward}")
    assert fetched == []
    by_file = load_reward(f"imagereward={image_reward / 'ImageReward.pt'}")
    assert torch.equal(by_folder.score(images, ["a cat"]), by_file.score(images, ["a cat"]))
    assert by_folder.name == f"imagereward={image_reward}"
    published = load_reward("imagereward")
    assert fetched == ["bert-tokenizer", "imagereward"]
    assert torch.equal(by_folder.score(images, ["a cat"]), published.score(images, ["a cat"]))
    both = load_reward(f"imagereward={image_reward}:0.5,mini")
    assert both.score(images, ["a cat"]).shape == (1, 2)


def test_what_is_on_no_hub_is_told_where_it_is():
    with pytest.raises(ModelError, match=r"align_sd, and name it with hpsv1=PATH"):
        load_reward("hpsv1")
    with pytest.raises(ModelError, match=r"reward hpsv1: expected its weights at /nowhere, received nothing"):
        load_reward("hpsv1=/nowhere")


@pytest.mark.full
def test_nothing_heavy_is_imported_by_name_alone():
    import subprocess
    import sys

    code = (
        "import sys, json; from psd_gs.rewards import needed, check_judge; needed('hpsv2.1,mini:2'); "
        "check_judge('mini', 'clip'); print(json.dumps([m for m in ('transformers', 'diffusers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []


def test_bad_shapes_are_told_by_every_part(image_reward):
    reward = load_reward(f"imagereward={image_reward},mini")
    with pytest.raises(InputError, match="expected images"):
        reward.score(pictures(2, 3, 8, 8), ["a", "b"])


# --- away from the device --------------------------------------------------------------------------------------------


class Movable:
    """A reward that knows where it is, and was when it scored."""

    name, differentiable, render_size = "movable", True, 224

    def __init__(self) -> None:
        self.place, self.scored_on = "cuda", []

    def to(self, device) -> None:
        self.place = str(device)

    def score(self, images, prompts, cameras=None):
        self.scored_on.append(self.place)
        if images.isnan().any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (images**2).mean((2, 3, 4))


def test_a_parked_reward_is_on_the_device_only_while_it_scores():
    inside = Movable()
    parked = ParkedReward(inside, torch.device("cuda"))
    assert (inside.place, parked.name, parked.render_size) == ("cpu", "movable", 224)
    assert isinstance(parked, Movable)
    images = torch.ones(1, 2, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(parked.score(images, ["a"]), torch.ones(1, 2))
    assert (inside.scored_on, inside.place) == (["cuda"], "cpu")
    parked.to("cuda")
    assert inside.place == "cpu", "it comes and goes by itself"
    scores = parked.score(images, ["a"])
    assert inside.place == "cuda", "its gradient is not known yet"
    scores.sum().backward()
    assert torch.equal(images.grad, torch.full_like(images, 2 / 48))
    assert inside.place == "cpu"
    with pytest.raises(torch.OutOfMemoryError):
        parked.score(images * math.nan, ["a"])
    assert inside.place == "cpu"


def test_a_parked_sum_and_what_has_no_networks():
    parts = [Movable(), Movable()]
    black_box = CallableReward(lambda images, prompts: torch.zeros(len(images)))
    whole = WeightedSum([Scored(parts[0]), Scored(parts[1], 2.0), Scored(black_box)], "sum")
    parked = ParkedReward(whole, torch.device("cuda"))
    assert {part.place for part in parts} == {"cpu"}
    assert float(parked.score(torch.ones(1, 1, 3, 4, 4), ["a"])) == 3
    assert float(parked.parts[1].reward.score(torch.ones(1, 1, 3, 4, 4), ["a"])) == 1
    assert [part.scored_on for part in parts] == [["cuda"], ["cuda", "cuda"]]
    assert {part.place for part in parts} == {"cpu"}


def test_a_reward_makes_room_for_the_text_encoders():
    reward = Movable()
    with set_aside(reward, torch.device("cuda")):
        assert reward.place == "cpu"
    assert reward.place == "cuda"
    with set_aside(reward, torch.device("cpu")), set_aside(None, torch.device("cuda")):
        assert reward.place == "cuda", "nothing to make room for"


@pytest.mark.parametrize("name", ["mini", "mini-judge"])
def test_embedded_rewards_move_with_what_they_remember(name):
    reward = load_reward(name)
    images = torch.rand(1, 4, 3, 32, 32)
    reward.score(images, ["a cat"], turntable(4))
    move(reward, "meta")
    assert reward.score(images, ["a cat"], turntable(4)).device.type == "meta"
