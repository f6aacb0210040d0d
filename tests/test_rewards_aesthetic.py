"""LAION's aesthetic heads: the published files' layout, the formula, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_rewards import AESTHETIC_LAYERS, aesthetic_heads, clip_folder, pictures

from psd_gs.errors import InputError, ModelError
from psd_gs.rewards.aesthetic import FILES, load_aesthetic
from psd_gs.rewards.clip import image_features, load_clip
from psd_gs.testing import check_reward


@pytest.fixture
def folder(tmp_path):
    return aesthetic_heads(clip_folder(tmp_path))


@pytest.mark.parametrize("file", FILES)
def test_the_kit_passes(folder, file):
    check_reward(load_aesthetic(folder, clip=folder, files=(file,)))


@pytest.mark.parametrize("file", FILES)
def test_score_is_the_formula(folder, file):
    reward = load_aesthetic(folder / file, name="a")
    images = pictures(*range(6), size=(80, 70))
    scores = reward.score(images.view(2, 3, 3, 80, 70), ["", "whatever"])
    assert scores.shape == (2, 3)
    state = {key: value.double() for key, value in torch.load(folder / file, weights_only=True).items()}
    features = image_features(load_clip(folder), images).double()
    if "weight" in state:
        expected = features @ state["weight"].T + state["bias"]
    else:
        expected = features
        for i in AESTHETIC_LAYERS:
            expected = expected @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    torch.testing.assert_close(scores.flatten().double(), expected[:, 0], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError):
        reward.score(images, ["a"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_reach_the_pixels(folder, dtype):
    images = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (exact,) = torch.autograd.grad(load_aesthetic(folder).score(images, ["a"]).sum(), images)
    (half,) = torch.autograd.grad(load_aesthetic(folder, dtype=dtype).score(images, ["a"]).sum(), images)
    assert (exact.abs().amax((2, 3, 4)) > 0).all()
    assert torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), 0) > 0.98
    step = 2e-3 * exact.sign()
    reward = load_aesthetic(folder)
    ahead, behind = (reward.score((images + k * step).detach(), ["a"]).double().sum() for k in (1, -1))
    assert ((ahead - behind) / 2).item() == pytest.approx((exact * step).sum().item(), rel=0.03)


def test_bad_files(folder):
    (folder / FILES[0]).rename(folder / "other.pth")
    assert load_aesthetic(folder).head.weight.shape == (1, 24)  # the linear one is left
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, folder / "wide.pth")
    with pytest.raises(ModelError, match=r"weight \[1, 768\] instead of \[1, 24\]"):
        load_aesthetic(folder / "wide.pth")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"CLIP: expected model\.safetensors"):
        load_aesthetic(folder)
