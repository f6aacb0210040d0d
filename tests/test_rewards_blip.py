"""ImageReward and Reward3D against the authors' own code: the image-reward package 1.5 and DreamReward."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.shared import BLIP_PROMPTS, parse
from tiny_rewards import BLIP_FILES, answers, blip_folder, blip_sizes, pictures

from psd_gs.cameras import orbit, turntable
from psd_gs.errors import InputError, ModelError
from psd_gs.rewards.blip import BlipNetwork, BlipReward, BlipSizes, from_package, load_blip_reward, sides
from psd_gs.testing import check_reward

PARAMETERS = {"image": 446_206_689, "scorer": 446_354_530, "fusion": 449_749_473}
"""Of what is used at full size."""


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    return answers("imagereward", "reward3d")


@pytest.fixture(scope="module", params=BLIP_FILES)
def head(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, head) -> Path:
    """Not to be changed; see :func:`changeable`."""
    return blip_folder(tmp_path_factory.mktemp(head), head)


@pytest.fixture
def changeable(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def load(folder, head, **options) -> BlipReward:
    return load_blip_reward(folder, head=head, sizes=blip_sizes(), name=head, **options)


def test_the_kit_passes(folder, head):
    check_reward(load(folder, head))


def test_scores_and_gradients_equal_the_reference(folder, oracle, head, monkeypatch):
    reward = load(folder, head)
    images = pictures(0, 1, 2, 3).requires_grad_()
    prompts = [BLIP_PROMPTS[0]] * 3 + [BLIP_PROMPTS[1]]
    if head == "image":
        scores = reward.score(images[:, None], prompts)[:, 0]
    else:
        monkeypatch.setattr(reward, "view_prompts", False)
        monkeypatch.setattr(reward, "tokens", lambda rows, tokens=reward.tokens: tokens(prompts))
        scores = reward.score(images[None], prompts[:1])
    assert scores.shape == oracle[f"{head}_score"].shape
    np.testing.assert_allclose(scores.detach().numpy(), oracle[f"{head}_score"], rtol=2e-5, atol=2e-5)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    expected = oracle[f"{head}_gradient"] / np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    close = np.abs(gradient[..., ::16, ::16].numpy() - expected).max()
    assert close <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("head", ["image"], indirect=True)
def test_image_reward_from_a_picture_and_a_sentence(folder, oracle, head):
    reward = load(folder, head)
    for text, expected in zip(BLIP_PROMPTS, oracle["image_prompts"], strict=True):
        assert reward.score(pictures(0)[None], [text]).item() == pytest.approx(expected, abs=3e-5)
    resized = reward.score(pictures(9, size=(300, 257))[None], BLIP_PROMPTS[:1])
    assert resized.item() == pytest.approx(oracle["image_resized"][0], abs=2e-3)  # PIL rounds to bytes


def test_full_size_keys_are_the_published_ones(oracle, head):
    listed = parse(oracle[f"{head}_full"])
    assert len(listed) == {"image": 625, "scorer": 631, "fusion": 631}[head]
    with torch.device("meta"):
        network = BlipNetwork(BlipSizes(), head)
        published = {key: torch.empty(shape) for key, shape in listed.items()}
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in from_package(published).items()} == expected
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[head]
    if head == "image":  # the published file is 1,786,880,927 bytes: these, in float32, and the archive's overhead
        total = sum(int(np.prod(shape)) for key, shape in listed.items() if "position_ids" not in key)
        assert 0 < 1_786_880_927 - 4 * total - 8 * 512 < 2.5e5


def test_contract(folder, head):
    reward = load(folder, head)
    images = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cameras = turntable(8)
    scores = reward.score(images, ["a red car", "a cat"], cameras)
    assert scores.shape == ((2, 4) if head == "image" else (2,))
    assert scores.dtype == torch.float32
    alone = [
        reward.score(images[i : i + 1], [p], cameras[4 * i : 4 * i + 4]) for i, p in enumerate(["a red car", "a cat"])
    ]
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores, reward.score(images, ["a hat", "a hat"], cameras))
    assert reward.differentiable
    with pytest.raises(InputError, match="1 prompts"):
        reward.score(images, ["a cat"], cameras)


def test_reward3d_wants_four_views_and_their_cameras(folder, head):
    reward = load(folder, head)
    images = torch.rand(1, 4, 3, 64, 64)
    if head == "image":
        assert reward.score(images[:, :1], ["a cat"]).shape == (1, 1)
        return
    for views, cameras in ((images[:, :3], turntable(3)), (images, None), (images, turntable(3))):
        with pytest.raises(InputError, match="groups of 4 views and a camera for each"):
            reward.score(views, ["a cat"], cameras)
    turned = reward.score(images, ["a cat"], turntable(4, start=180.0))
    assert not torch.equal(reward.score(images, ["a cat"], turntable(4)), turned)


def test_sides():
    azimuth = torch.tensor([0.0, 29.0, 31.0, 90.0, 149.0, 151.0, 180.0, -90.0, -20.0, 0.0])
    elevation = torch.tensor([0.0, 59.0, 0.0, 0.0, 30.0, 0.0, -80.0, 10.0, 61.0, 89.9])
    cameras = orbit(azimuth, elevation, torch.full((10,), 2.0), torch.full((10,), 40.0), 8, 8)
    expected = "front front side side side back back side overhead overhead"
    assert sides(cameras) == expected.split()


def test_gradient_agrees_with_finite_differences(folder, head):
    reward = load(folder, head, dtype=torch.float64)
    reward.network.head.double()
    images = pictures(0, 1, 2, 3)[None].requires_grad_()
    cameras = turntable(4)

    def score(x: torch.Tensor) -> torch.Tensor:
        return reward.score(x, ["a red car"], cameras).double().sum()

    reward.network.features = exact(reward.network)
    (gradient,) = torch.autograd.grad(score(images), images)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()
    step = 1e-3 * gradient.sign()
    numeric = (score((images + step).detach()) - score((images - step).detach())) / 2
    assert numeric.item() == pytest.approx((gradient * step).sum().item(), rel=0.02)


def exact(network: BlipNetwork):
    """The network's features without their cast to float32."""

    def features(x, ids, mask):
        seen = network.vision(pixel_values=x.flatten(0, 1).double()).last_hidden_state
        states = network.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return states[:, 0].unflatten(0, x.shape[:2])

    return features


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_half_precision(folder, head, dtype, tolerance):
    images = pictures(0, 1, 2, 3)[None].requires_grad_()
    full, half = (
        load(folder, head, dtype=d).score(images, ["a red car"], turntable(4)) for d in (torch.float32, dtype)
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad(half.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_everything_is_on_one_device_and_nothing_waits_for_it(folder, head):
    """Meta tensors refuse both a mix of devices and a look at their values."""
    reward = load(folder, head, device="meta", dtype=torch.float16)
    scores = reward.score(torch.rand(2, 4, 3, 64, 64), ["a cat", "a red car"], turntable(8))
    assert (scores.device.type, scores.dtype) == ("meta", torch.float32)


def test_it_moves_with_what_it_remembers(folder, head):
    reward = load(folder, head)
    arguments = torch.rand(2, 4, 3, 64, 64), ["a cat", "a red car"], turntable(8)
    reward.score(*arguments)
    reward.to("meta")
    assert reward.score(*arguments).device.type == "meta"


def test_another_head_is_refused(folder, head):
    other = {"image": "scorer", "scorer": "fusion", "fusion": "image"}[head]
    with pytest.raises(ModelError, match=r"missing: head\.|unknown: head\."):
        load_blip_reward(folder / BLIP_FILES[head], head=other, sizes=blip_sizes())
    with pytest.raises(ModelError, match="of another architecture"):
        load_blip_reward(folder, head=head)
    with pytest.raises(ModelError, match=BLIP_FILES[other]):
        load_blip_reward(folder, head=other, sizes=blip_sizes())


def test_tensors_too_many_are_left_out_and_none_may_be_missing(changeable, head):
    path = changeable / BLIP_FILES[head]
    torch.save(torch.load(path, weights_only=True) | {"blip.extra": torch.zeros(1)}, path)
    load(changeable, head)
    missing = {name: value for name, value in torch.load(path, weights_only=True).items() if "layer.0" not in name}
    torch.save(missing, path)
    with pytest.raises(ModelError, match="missing"):
        load(changeable, head)


def test_damaged_files(changeable, head):
    path = changeable / BLIP_FILES[head]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="Download it again"):
        load(changeable, head)
    path.write_bytes(whole)
    (changeable / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat", encoding="utf-8")
    with pytest.raises(ModelError, match="bert-base-uncased"):
        load(changeable, head)
    (changeable / "vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"tokenizer: expected vocab\.txt"):
        load(changeable, head)
