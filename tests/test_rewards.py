"""The embedded reward and judge: contract, gradients, and what they prefer on freshly built objects."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from psd_gs.cameras import joined, turntable
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.published import EMBEDDED
from psd_gs.rewards import load_reward
from psd_gs.rewards.mini import MiniReward, RewardConfig, RewardNetwork

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from mini.corruptions import JUDGE, REWARD, corrupt
from mini.dataset import over, shade, trace_scene
from mini.dreamer import Dreamer
from mini.preferences import colour_names, shows
from mini.scenes import ItemLook, Look, caption, paint, scene_of


@pytest.fixture(scope="module", params=EMBEDDED)
def reward(request) -> MiniReward:
    return load_reward(request.param)


def one(category: str, colour: str, **rest: str) -> Look:
    return Look((ItemLook(category, colour, **rest),))


def two(first: tuple[str, str], relation: str, second: tuple[str, str]) -> Look:
    return Look((ItemLook(*first), ItemLook(*second)), relation)


GROUPS = [
    [one("car", "red"), one("car", "blue"), one("bus", "red"), one("car", "red", part="wheels", part_colour="yellow")],
    [one("duck", "yellow"), one("duck", "green"), one("pig", "yellow"), two(("duck", "yellow"), "on", ("cube", "red"))],
    [
        two(("apple", "red"), "on", ("cube", "blue")),
        two(("apple", "blue"), "on", ("cube", "red")),
        one("apple", "red"),
        one("cube", "blue"),
    ],
]
HELD_OUT = [
    [one("corgi", "blue"), one("corgi", "red"), one("cat", "blue")],
    [one("car", "purple"), one("car", "green"), one("train", "purple")],
    [one("house", "pink"), one("house", "gray"), one("castle", "pink")],
    [one("mug", "orange"), one("mug", "cyan"), one("teapot", "orange")],
]
"""The first look of each group is never shown in training."""


def rgba_of(look: Look, seed: int = 0) -> torch.Tensor:
    """Four views ``[4, 4, 32, 32]`` of a new object, premultiplied."""
    rng = random.Random(seed)
    buffers = trace_scene(scene_of(look, rng), turntable(4, elevation=20.0, radius=0.68, size=32))
    return shade(buffers, [paint(look, rng)], torch.tensor([[0.35, 0.75, 0.55]]))[0]


@pytest.fixture(scope="module")
def renders() -> dict[Look, torch.Tensor]:
    return {look: rgba_of(look, k) for k, look in enumerate({x for group in GROUPS + HELD_OUT for x in group})}


def pictures(rgba: torch.Tensor, grey: float = 1.0) -> torch.Tensor:
    return over(rgba, torch.full((3,), grey))


def noise_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("views", "size"), [(1, 64), (3, 40), (4, 32)])
def test_one_score_per_group(reward, views, size):
    scores = reward.score(noise_images(2, views, 3, size, size), ["a red car", "a cat"], turntable(2 * views))
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()


def test_contract(reward):
    assert reward.differentiable
    assert reward.name in EMBEDDED
    with pytest.raises(InputError, match="2 prompts"):
        reward.score(noise_images(1, 4, 3, 32, 32), ["a", "b"])


def test_deterministic_and_independent_of_the_batch(reward):
    images = noise_images(3, 4, 3, 64, 64)
    prompts = ["a red car", "a green cube on a blue sphere", "a corgi"]
    together = reward.score(images, prompts)
    assert torch.equal(together, reward.score(images, prompts))
    alone = torch.cat([reward.score(images[i : i + 1], [prompts[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gradient_agrees_with_finite_differences(reward, renders):
    images = pictures(renders[GROUPS[0][0]])[None].double().clamp(0.02, 0.98).requires_grad_()
    exact = load_reward(reward.name, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(exact.score(images, ["a red car"]).sum(), images)
    assert gradient.abs().amax((1, 2, 3, 4)).item() > 0
    assert (gradient[0].abs().amax((1, 2, 3)) > 0).all()  # every view
    direction = gradient.sign() * 1e-3
    ahead, behind = (
        exact.network(
            exact.network.encode_images((images + k * direction).detach()), exact.encode_prompts(["a red car"])
        )
        for k in (1, -1)
    )
    numeric = (ahead - behind).item() / 2
    assert numeric == pytest.approx((gradient * direction).sum().item(), rel=0.05)


def test_size_hardly_matters(reward, renders):
    for look in GROUPS[0]:
        small = F.interpolate(pictures(renders[look]), scale_factor=2.0, mode="bilinear")[None]
        large = F.interpolate(pictures(renders[look]), scale_factor=4.0, mode="bilinear")[None]
        a, b = (reward.score(x, [caption(look)]) for x in (small, large))
        assert abs(a - b).item() < 0.25


def margins(reward: MiniReward, renders, group: list[Look], grey: float) -> list[float]:
    """Score of the first look's picture and caption over every other picture, and every other caption."""
    images = torch.stack([pictures(renders[look], grey) for look in group])
    texts = [caption(look) for look in group]
    by_caption = reward.score(images[:1].expand_as(images), texts)
    by_picture = reward.score(images, texts[:1] * len(group))
    return [(s[0] - other).item() for s in (by_caption, by_picture) for other in s[1:]]


def test_right_beats_wrong(reward, renders):
    won = [
        m > 0
        for group in GROUPS
        for first in range(4)
        for m in margins(reward, renders, group[first:] + group[:first], 0.7)
    ]
    assert sum(won) / len(won) >= 0.9


def test_held_out_colours(reward, renders):
    won = [m > 0 for group in HELD_OUT for m in margins(reward, renders, group, 1.0)]
    assert sum(won) / len(won) >= 0.8


@pytest.mark.full
def test_clean_beats_what_the_prior_dreams(reward, renders, mini_pipeline):
    """Less noise beats more, and the right amount of guidance beats far too much."""
    looks = [group[0] for group in GROUPS + HELD_OUT]
    texts, n = [caption(look) for look in looks], len(looks)
    clean = torch.stack([pictures(renders[look], 0.8) for look in looks])
    dreamer = Dreamer(mini_pipeline.prior, steps=1)
    cameras = joined([turntable(4, elevation=20.0, radius=0.68, size=32)] * (3 * n))
    t = torch.tensor([0.2, 0.7, 0.2]).repeat_interleave(n)
    scale = torch.tensor([4.0, 4.0, 15.0]).repeat_interleave(n)
    generator = torch.Generator().manual_seed(0)
    little, much, excess = dreamer(clean.repeat(3, 1, 1, 1, 1), 3 * texts, cameras, t, scale, generator).chunk(3)
    differences = [(dream - clean).abs().mean() for dream in (little, much)]
    assert 0 < differences[0] < differences[1] < 0.3
    best, good, bad, harsh = (reward.score(images, texts) for images in (clean, little, much, excess))
    won = torch.cat([best > bad, good > bad, best > harsh, good > harsh]).float()
    assert won.mean() >= 0.85


def test_clean_beats_corrupted(reward, renders):
    kinds = (
        "blurred",
        "noisy",
        "saturated",
        "washed",
        "holes",
        "floaters",
        "fogged",
        "empty",
        "disagreeing",
        "blended",
    )
    won = []
    for k, group in enumerate(GROUPS):
        for kind in kinds:
            background = torch.full((3,), 0.8)
            generator = torch.Generator().manual_seed(k)
            bad = corrupt(kind, renders[group[0]], background, renders[group[1]], 0.7, generator)
            images = torch.stack([over(renders[group[0]], background), bad])
            good, worse = reward.score(images, [caption(group[0])] * 2)
            won.append((good > worse).item())
    assert sum(won) / len(won) >= 0.9


def test_save_and_load_are_symmetric(reward, tmp_path):
    reward.save_pretrained(tmp_path / "copy")
    again = MiniReward.from_pretrained(tmp_path / "copy")
    images = noise_images(1, 4, 3, 64, 64)
    assert torch.equal(reward.score(images, ["a red car"]), again.score(images, ["a red car"]))


@pytest.fixture
def small_model(tmp_path) -> Path:
    """A tiny untrained network in the layout of the shipped ones."""
    shipped = load_reward("mini")
    torch.manual_seed(0)
    config = RewardConfig(
        "conv", len(shipped.tokenizer), width=32, channels=(8, 8), depth=1, fusion_depth=1, text_layers=1
    )
    MiniReward(RewardNetwork(config), shipped.tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab"])
@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_damaged_files(small_model, name, damage):
    MiniReward.from_pretrained(small_model)
    path = small_model / name
    if name == "vocab":
        path = next(p for p in (small_model / "vocab.json", small_model / "tokenizer.json") if p.exists())
    damage(path)
    with pytest.raises(ModelError, match="Install psd-gs again"):
        MiniReward.from_pretrained(small_model)


def test_another_architecture(small_model):
    config = json.loads((small_model / "config.json").read_text())
    (small_model / "config.json").write_text(json.dumps(config | {"width": 64}))
    with pytest.raises(ModelError, match="Install psd-gs again"):
        MiniReward.from_pretrained(small_model)
    shutil.rmtree(small_model)
    with pytest.raises(ModelError):
        MiniReward.from_pretrained(small_model)


def test_unknown_name():
    with pytest.raises(ConfigError, match="mini-judge"):
        load_reward("maxi")


def test_embedded_weights_are_small_and_safe():
    folder = Path(sys.modules["psd_gs"].__file__).parent / "assets" / "mini"
    sizes = [(folder / name / "model.safetensors").stat().st_size for name in EMBEDDED.values()]
    assert sum(sizes) < 5.2e6
    for name in EMBEDDED.values():
        assert not list((folder / name).glob("*.bin")) + list((folder / name).glob("*.pt"))


@pytest.mark.parametrize("kind", sorted({*REWARD, *JUDGE}))
def test_corruptions_grow_with_severity(kind, renders):
    rgba, other = (F.interpolate(renders[look], 64) for look in GROUPS[0][:2])
    background = torch.full((3,), 0.8)

    def distance(severity: float) -> float:
        bad = corrupt(kind, rgba, background, other, severity, torch.Generator().manual_seed(1))
        again = corrupt(kind, rgba, background, other, severity, torch.Generator().manual_seed(1))
        assert bad.shape == (4, 3, 64, 64)
        assert 0 <= bad.min() <= bad.max() <= 1
        assert torch.equal(bad, again)
        return (bad - over(rgba, background)).abs().mean().item()

    assert 0 < distance(0.1) <= distance(0.9) * 1.05


def test_reward_and_judge_are_trained_apart():
    assert set(REWARD) - set(JUDGE)
    assert set(JUDGE) - set(REWARD)
    assert load_reward("mini").network.config.architecture != load_reward("mini-judge").network.config.architecture


RED_CAR = one("car", "red")
HATTED = Look((ItemLook("pig", accessory="hat", accessory_colour="blue"),))
BESIDE = two(("cube", "red"), "next to", ("cone", "blue"))
ON = two(("cube", "red"), "on", ("cube", "blue"))


@pytest.mark.parametrize(
    ("seen", "claim", "true"),
    [
        (RED_CAR, RED_CAR, True),
        (RED_CAR, one("car", "blue"), False),
        (RED_CAR, one("bus", "red"), False),
        (one("corgi", "green"), Look((ItemLook("corgi"),)), False),
        (HATTED, HATTED, True),
        (HATTED, Look((ItemLook("pig"),)), False),
        (Look((ItemLook("pig"),)), HATTED, False),
        (BESIDE, two(("cone", "blue"), "next to", ("cube", "red")), True),
        (BESIDE, two(("cone", "red"), "next to", ("cube", "blue")), False),
        (ON, two(("cube", "blue"), "on", ("cube", "red")), False),
        (ON, RED_CAR, False),
        (one("chair", "brown"), Look((ItemLook("chair", material="wooden"),)), True),
    ],
)
def test_what_a_picture_bears_out(seen, claim, true):
    names = colour_names([paint(seen, random.Random(0))])[0].tolist()
    assert shows(seen, names, claim) is true
