"""CLIP, HPS and PickScore against open_clip, HPS v2's fork and transformers 4; preprocessing against PIL."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from oracles.shared import IMAGE, LENGTH, SIZES, parse, picture
from PIL import Image
from safetensors.torch import save_file
from tiny_rewards import answers, clip_config, clip_folder, pictures, random_state
from transformers import CLIPModel, CLIPTokenizer

from psd_gs.errors import InputError, ModelError
from psd_gs.rewards import images, load_reward
from psd_gs.rewards.checkpoints import build
from psd_gs.rewards.clip import (
    CLIPReward,
    clean_text,
    from_open_clip,
    image_features,
    load_clip,
    load_clip_reward,
    load_hps_v1,
    load_hps_v2,
    load_pickscore,
    read_tokenizer,
    tokenize,
    vit_h_14,
    vit_l_14,
)
from psd_gs.testing import check_reward


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    return answers("clip")


@pytest.fixture(scope="module")
def mini_tokenizer() -> CLIPTokenizer:
    return load_reward("mini").tokenizer


@pytest.fixture
def folder(tmp_path, mini_tokenizer):
    """A folder as PickScore's: config, weights in transformers' layout, tokenizer."""
    mini_tokenizer.save_pretrained(tmp_path)
    return clip_folder(tmp_path, len(mini_tokenizer))


@pytest.mark.parametrize("load", [load_clip_reward, load_pickscore])
def test_the_kit_passes(folder, load):
    check_reward(load(folder))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def scored() -> list[torch.Tensor]:
    """The pictures that the references scored."""
    return [pictures(seed, size=size)[0] for seed, size in enumerate(SIZES)]


# --- against the references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "act"), [("gelu", "gelu"), ("quick", "quick_gelu")])
def test_open_clip_weights_give_open_clips_embeddings(oracle, name, act):
    model = build(lambda: CLIPModel(clip_config(act)), from_open_clip(random_state(oracle["tiny_keys"])), "tiny")
    pixels = pictures(0, size=SIZES[0]) * 2 - 1
    image = model.visual_projection(model.vision_model(pixels).pooler_output)
    text = model.text_projection(model.text_model(torch.as_tensor(oracle["ids"])).pooler_output)
    torch.testing.assert_close(image.numpy(), oracle[f"{name}_image"], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(text.numpy(), oracle[f"{name}_text"], rtol=2e-5, atol=2e-5)


def reward_of(oracle, monkeypatch, act="gelu", keys="tiny_keys", **options) -> CLIPReward:
    """A tiny reward whose every prompt is the oracle's."""
    tensors = random_state(oracle[keys])
    tensors = from_open_clip(tensors) if keys == "tiny_keys" else tensors
    monkeypatch.setattr("psd_gs.rewards.clip.tokenize", lambda *args: torch.as_tensor(oracle["ids"][:1]))
    return CLIPReward(build(lambda: CLIPModel(clip_config(act)), tensors, "tiny"), None, **options)


@pytest.mark.parametrize(
    ("answer", "tolerance", "options"),
    [
        ("hps_score", 1e-5, {"fit": "pad"}),
        ("hps_v1_score", 3e-3, {"act": "quick_gelu"}),  # PIL rounds to bytes in between
        ("pick_score", 0.3, {"keys": "pick_keys", "scale": "logit"}),  # a hundred times that
    ],
)
def test_scores_equal_the_references(oracle, monkeypatch, answer, tolerance, options):
    reward = reward_of(oracle, monkeypatch, **options)
    scores = torch.cat([reward.score(image[None, None], ["any"])[0] for image in scored()]).numpy()
    np.testing.assert_allclose(scores, oracle[answer], rtol=0, atol=tolerance)
    assert abs(scores[0] - oracle[answer][0]) < tolerance / 100 + 1e-6  # already of the right size


def test_hps_pads_as_the_reference(oracle):
    for expected, image in zip(oracle["hps_pixels"], scored()[3:], strict=True):
        ours = images.normalize(images.fit_pad(image[None], IMAGE))[0, :, ::3, ::3]
        np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)


def test_tokens_equal_open_clips(oracle, tmp_path):
    """With the published vocab.json and merges.txt, cut down to what these prompts need."""
    rows = (str(row).split(" ") for row in oracle["vocabulary"])
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(entry, entry): int(number) for number, entry in rows}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *map(str, oracle["merges"])])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path, "clip", len(vocabulary))
    prompts = [str(prompt) for prompt in oracle["prompts"]]
    assert [clean_text(prompt) for prompt in prompts] == [str(text) for text in oracle["cleaned"]]
    assert tokenize(tokenizer, prompts, 77).tolist() == oracle["prompt_ids"].tolist()


@pytest.mark.parametrize(
    ("name", "make", "tensors", "parameters"),
    [("vit_h_14", vit_h_14, 910, 986_109_441), ("vit_l_14", vit_l_14, 590, 427_616_513)],
)
def test_the_published_key_list_maps_onto_the_full_size_model(oracle, name, make, tensors, parameters):
    with torch.device("meta"):
        model = CLIPModel(make())
        published = {key: torch.empty(shape) for key, shape in parse(oracle[name]).items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in from_open_clip(published).items()} == expected
    assert len(expected) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters


# --- preprocessing ---------------------------------------------------------------------------------------------------


def pil_crop(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    resized = image.resize(
        (int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)), Image.Resampling.BICUBIC
    )
    left, top = (round((n - size) / 2) for n in resized.size)
    return resized.crop((left, top, left + size, top + size))


def pil_pad(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    out = Image.new("RGB", (size, size))
    out.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
    return out


@pytest.mark.parametrize("side", [(64, 64), (256, 256), (512, 512), (517, 300), (200, 333)])
@pytest.mark.parametrize(("ours", "pil"), [(images.fit_crop, pil_crop), (images.fit_pad, pil_pad)])
def test_preprocessing_is_pils(side, ours, pil):
    data = picture(*side, seed=3)
    expected = np.asarray(pil(Image.fromarray(data), 224), np.float32)
    got = ours(torch.as_tensor(data).permute(2, 0, 1)[None] / 255, 224)[0].permute(1, 2, 0).numpy() * 255
    assert got.shape == expected.shape == (224, 224, 3)
    assert np.abs(got - expected).mean() <= 0.5
    assert np.abs(got - expected).max() <= 2


def test_gradients_reach_every_pixel():
    image = noise(1, 3, 12, 17).double().requires_grad_()
    (padded,) = torch.autograd.grad(images.fit_pad(image, 8).sum(), image, retain_graph=True)
    assert (padded != 0).all()
    (cropped,) = torch.autograd.grad(images.fit_crop(image, 8).sum(), image)
    assert (cropped[..., 4:13] != 0).all()  # the sides fall away
    assert (cropped[..., 0] == 0).all()


# --- contract --------------------------------------------------------------------------------------------------------


LOADERS = {"clip": load_clip_reward, "pickscore": load_pickscore}


@pytest.mark.parametrize("name", LOADERS)
def test_one_score_per_view_whatever_the_batch(folder, name):
    reward = LOADERS[name](folder, name=name)
    assert (reward.name, reward.differentiable) == (name, True)
    batch = noise(2, 4, 3, 40, 40)
    prompts = ["a red car", "a cat"]
    scores = reward.score(batch, prompts)
    assert scores.shape == (2, 4)
    assert scores.dtype == torch.float32
    alone = torch.cat([reward.score(batch[i : i + 1], prompts[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores, reward.score(batch, prompts[::-1]))
    limit = torch.tensor(4.0).exp() if name == "pickscore" else 1
    assert scores.abs().max() <= limit
    with pytest.raises(InputError, match="2 prompts"):
        reward.score(batch[:1], prompts)


def test_gradient_agrees_with_finite_differences(folder):
    reward = load_pickscore(folder, dtype=torch.float64)
    start = noise(1, 2, 3, 40, 40).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(start, ["a red car"]).sum(), start)
    assert (gradient.abs().amax((2, 3, 4)) > 0).all()
    step = 2e-3 * gradient.sign()
    ahead, behind = (reward.score((start + k * step).detach(), ["a red car"]).double().sum() for k in (1, -1))
    assert ((ahead - behind) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=0.02)
    assert all(not p.requires_grad for p in reward.model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(folder, dtype, tolerance):
    exact, half = (load_clip_reward(folder, dtype=d) for d in (torch.float32, dtype))
    batch = noise(1, 2, 3, 56, 56).requires_grad_()
    scores = half.score(batch, ["a red car"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact.score(batch, ["a red car"]), rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad(scores.sum(), batch)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", LOADERS)
def test_everything_is_on_one_device_and_nothing_waits_for_it(folder, name):
    """Meta tensors refuse both a mix of devices and a look at their values."""
    reward = LOADERS[name](folder, device="meta", dtype=torch.float16)
    scores = reward.score(torch.rand(2, 4, 3, 64, 64), ["a cat", "a red car"])
    assert (scores.device.type, scores.dtype) == ("meta", torch.float32)


def test_size_of_the_network_decides_not_the_images(folder):
    model = load_clip(folder)
    small = pictures(0, size=SIZES[0])
    large = torch.nn.functional.interpolate(small, scale_factor=4.0, mode="bicubic", antialias=True)
    cosine = (image_features(model, small) * image_features(model, large)).sum(-1)
    assert cosine.item() > 0.999


# --- files -----------------------------------------------------------------------------------------------------------


def test_old_layouts_load_to_the_same_model(folder, oracle, tmp_path):
    tensors = random_state(oracle["tiny_keys"])
    wrapped = {f"module.{k}": v for k, v in tensors.items()} | {"module.attn_mask": torch.zeros(LENGTH, LENGTH)}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "HPS.pt")
    torch.save(tensors, tmp_path / "plain.pth")
    save_file({k: v.contiguous() for k, v in from_open_clip(tensors).items()}, tmp_path / "mapped.safetensors")
    models = [
        load_clip(tmp_path / name, config=clip_config()) for name in ("HPS.pt", "plain.pth", "mapped.safetensors")
    ]
    for model in models[1:]:
        for (name, a), b in zip(models[0].state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_hps_takes_only_its_own_architecture(folder, oracle, tmp_path):
    torch.save(random_state(oracle["tiny_keys"]), tmp_path / "HPS.pt")
    with pytest.raises(ModelError, match=r"hpsv2\.1: expected 910 tensors, received 62|hpsv2\.1: expected 910 tensors"):
        load_hps_v2(tmp_path / "HPS.pt", tokenizer=folder)
    with pytest.raises(ModelError, match="hpsv1: expected 590 tensors"):
        load_hps_v1(tmp_path / "HPS.pt", tokenizer=folder)


def test_mismatched_keys_are_named(folder):
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    lost = sorted(key for key in tensors if key.startswith("vision_model.encoder"))
    save_file({k: v for k, v in tensors.items() if k not in lost} | {"extra.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError) as error:
        load_clip(folder)
    message = str(error.value)
    assert f"{len(lost)} missing: vision_model.encoder.layers.0" in message
    assert message.count("vision_model.encoder") == 5
    assert "1 unknown: extra.weight" in message
    tensors["logit_scale"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"1 of another shape: logit_scale \[3\] instead of \[\]"):
        load_clip(folder)


def test_bad_files_are_one_line(folder, tmp_path):
    with pytest.raises(ModelError, match="received nothing"):
        load_clip(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="a folder without them"):
        load_clip(tmp_path / "empty")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        load_clip(folder)
    path.write_bytes(whole)
    for content in (b"", b"not a checkpoint", whole[:100]):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ModelError, match="Download it again"):
            load_clip(tmp_path / "x.pt", config=clip_config())
    torch.save({"state_dict": {"a": 1}}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="other than named tensors"):
        load_clip(tmp_path / "x.pt", config=clip_config())
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="whole folder"):
        load_clip(folder)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {"a": print}}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        load_clip(tmp_path / "evil.pt", config=clip_config())


def test_wrong_tokenizer(folder, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="tokenizer"):
        load_clip_reward(folder, tokenizer=tmp_path / "other")
    (tmp_path / "other" / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer"):
        load_clip_reward(folder, tokenizer=tmp_path / "other")
