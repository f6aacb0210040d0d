"""ImageDream: equality with the authors' code on random weights, the published layout, what a picture is for a run."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import RedReward, tiny_config
from PIL import Image
from torch import Tensor

from psd_gs.cameras import mvdream_cameras, turntable
from psd_gs.config import Config, ImageConfig, make_config, to_dict
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.guidance.guide import Guidance
from psd_gs.job import Job, Request, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.priors import load_prior, prior_entry
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.imagedream import SD21_4VIEW_IPMV, ImageDreamPrior, ImageDreamUNet, build
from psd_gs.priors.memory import PRESETS
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import scheduler
from psd_gs.reference import check_given

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "oracles"))

import tiny_models
from shared import DATA, IMAGEDREAM_UNET, parse, weights


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    """What bytedance/ImageDream's code answers; see ``tools/oracles/make_imagedream.py``."""
    with np.load(DATA / "imagedream.npz") as file:
        return {name: file[name] for name in file.files}


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.as_tensor(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def of_authors(oracle) -> ImageDreamPrior:
    """A prior over the network that the oracle's authors answered with."""
    tensors = {name: torch.as_tensor(value) for name, value in weights(parse(oracle["keys"])).items()}
    model = build(IMAGEDREAM_UNET, tensors, "oracle")
    pipeline = MultiViewPipeline(
        tiny_models.tokenizer(), tiny_models.clip(), model.unet, scheduler(), tiny_models.vae(), views=4
    )
    return ImageDreamPrior(pipeline, resampler=model.resampler, image_encoder=tiny_models.clip_vision())


@pytest.mark.parametrize("vram", [0, 12])
def test_it_answers_as_the_authors_code(oracle, vram):
    prior = of_authors(oracle)
    if vram:
        prior.memory = PRESETS[vram]
        prior._place()
    cameras = turntable(4, elevation=15.0, start=-90.0)  # their azimuth 0 is our 270
    labels = torch.cat([mvdream_cameras(cameras), torch.zeros(1, 16)]).repeat(2, 1)
    assert np.abs(labels.numpy() - oracle["cameras"]).max() < 1e-6
    shown, nothing = prior.resampler(seeded(4, 1, 10, 1280)), prior.resampler(torch.zeros(1, 10, 1280))
    assert np.abs(shown.detach().numpy() - oracle["tokens"]).max() < 1e-4
    latent = seeded(5, 1, 4, 8, 8).flatten(1)
    width = IMAGEDREAM_UNET["context_dim"]
    text = TextEmbedding(torch.cat([seeded(2, 1, 5, width), shown], 1), latent)
    negative = TextEmbedding(torch.cat([seeded(3, 1, 5, width), nothing], 1), torch.zeros_like(latent))
    x = seeded(1, 4, 4, 8, 8)[None]
    with torch.no_grad():
        cond, neg = prior.network(x, torch.tensor([803]), text, negative, cameras)
        (alone, _) = prior.network(x, torch.tensor([803]), text, text, cameras)
    answer = oracle["answer"].reshape(2, 5, 4, 8, 8)[:, :4]
    assert np.abs(cond[0].numpy() - answer[0]).max() < 1e-4
    assert np.abs(neg[0].numpy() - answer[1]).max() < 1e-4
    torch.testing.assert_close(alone, cond, atol=1e-5, rtol=1e-5)
    blind = TextEmbedding(text.sequence, torch.zeros_like(latent))
    with torch.no_grad():
        unlike = prior.network(x, torch.tensor([803]), blind, negative, cameras)[0]
    assert float((unlike - cond).abs().max()) > 1e-2, "the views have to see the picture"


def test_gradients_reach_the_negative_embedding(oracle):
    prior = of_authors(oracle)
    width = IMAGEDREAM_UNET["context_dim"]
    row = TextEmbedding(seeded(2, 1, 21, width), torch.zeros(1, 256))
    negative = TextEmbedding(seeded(3, 1, 21, width).requires_grad_(), torch.zeros(1, 256))
    x, t = seeded(1, 4, 4, 8, 8)[None], torch.tensor([0.5])
    prior.predict(x, t, row, negative, turntable(4))[1].square().sum().backward()
    assert bool((negative.sequence.grad.abs().sum(-1) > 0).all())


@pytest.mark.full
def test_names_at_full_size():
    with torch.device("meta"):
        model = ImageDreamUNet(SD21_4VIEW_IPMV)
    names, state = model.original_names(), model.state_dict()
    assert len(names) == len(state)
    assert round(2 * sum(tensor.numel() for tensor in state.values()) / 1e9, 2) == 1.88  # GB, as the published file
    theirs = {name: state[ours].shape for ours, name in names.items()}
    assert len(theirs) == len(names) - 4, "keys and values of the resampler's four layers are one tensor each"
    assert sum(name.endswith(("to_k_ip.weight", "to_v_ip.weight")) for name in theirs) == 2 * 16
    assert theirs["input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight"] == (320, 1024)
    assert theirs["middle_block.1.transformer_blocks.0.attn2.to_v_ip.weight"] == (1280, 1024)
    assert theirs["image_embed.latents"] == (1, 16, 1024)
    assert theirs["image_embed.proj_in.weight"] == (1024, 1280)
    assert theirs["image_embed.layers.3.1.1.weight"] == (4096, 1024)


# --- the published layout --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "imagedream"
    folder.mkdir()
    tiny_models.save_imagedream(folder)
    return folder


def test_the_diffusers_format_repository_loads_without_its_code(published):
    prior = load_prior(str(published))
    assert isinstance(prior, ImageDreamPrior)
    assert (prior.views, prior.image_size, prior.family, prior.pictured) == (4, 64, "imagedream", True)
    entry = prior_entry(str(published))
    assert (entry.family, entry.pictured, entry.companions) == ("imagedream", True, ("hpsv2.1", "pickscore"))
    text = prior.embed(["a corgi", ""])
    assert text.sequence.shape == (2, prior.pipeline.tokenizer.model_max_length + 16, tiny_models.WIDTH)
    assert not text.pooled.any()
    picture = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    shown = prior.with_picture(text, picture)
    assert torch.equal(shown.sequence[:, :-16], text.sequence[:, :-16])
    assert not torch.allclose(shown.sequence[:, -16:], text.sequence[:, -16:])
    small = torch.nn.functional.interpolate(picture[None], (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(shown.pooled[0], prior.encode(small[None]).flatten())


def test_the_picture_is_read_by_the_last_layer_but_one(published):
    """Against CLIP's encoder written down with torch's own attention."""
    prior = load_prior(str(published))
    picture = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    vision = prior.image_encoder.vision_model if hasattr(prior.image_encoder, "vision_model") else prior.image_encoder
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        x = (picture - mean[:, None, None]) / std[:, None, None]
        patches = torch.nn.functional.conv2d(x[None], vision.embeddings.patch_embedding.weight, stride=14)
        x = torch.cat([vision.embeddings.class_embedding[None, None], patches.flatten(2).transpose(1, 2)], 1)
        x = vision.pre_layrnorm(x + vision.embeddings.position_embedding.weight)
        for layer in vision.encoder.layers[:-1]:
            y, own = layer.layer_norm1(x), layer.self_attn
            heads = [part(y).unflatten(-1, (2, -1)).transpose(1, 2) for part in (own.q_proj, own.k_proj, own.v_proj)]
            y = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            x = x + own.out_proj(y)
            x = x + layer.mlp.fc2(torch.nn.functional.gelu(layer.mlp.fc1(layer.layer_norm2(x))))
        found = prior.with_picture(prior.embed([""]), picture).sequence[:, -16:]
        torch.testing.assert_close(found, prior.resampler(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda state: state.pop("image_embed.latents"), "1 missing: image_embed.latents"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (lambda state: state.pop("middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight"), "attn2.to_k_ip.weight"),
    ],
)
def test_damaged_repositories_are_one_clear_line(tmp_path, published, damage, part):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "imagedream"
    shutil.copytree(published, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    damage(state)
    save_file(state, file)
    with pytest.raises(ModelError, match=part) as caught:
        load_prior(str(folder))
    assert "\n" not in str(caught.value)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_the_prompt_sees_the_picture_and_what_it_leads_away_from_does_not(published):
    prior = load_prior(str(published))
    config = make_config("draft", "imagedream").guidance
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    guidance = Guidance(prior, "", replace(config, preference="none"), picture=picture)
    assert guidance.text.pooled.any()
    assert not guidance.null.pooled.any()
    assert not guidance.negative.embedding.pooled.any()
    images = torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = guidance(images, turntable(4, size=64), 0.5, 10)
    (gradient,) = torch.autograd.grad(out.loss, images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert out.elements == 4 * 8 * 8


def test_a_run_without_a_prompt(published, tmp_path):
    Image.new("RGBA", (40, 40), "tan").crop((-10, -10, 50, 50)).save(tmp_path / "shiba inu.png")
    pipeline = TextTo3DPipeline(load_prior(str(published)), RedReward(), RedReward())
    small = {name: to_dict(tiny_config())[name] for name in ("init", "cameras", "densify")}
    options = {"steps": 4, "image": {"files": [str(tmp_path / "shiba inu.png")]}, **small}
    config = resolve(Request("", options=options), pipeline)
    assert config.prompt == ""
    with Job.find(tmp_path, config) as job:
        assert job.folder.name == "shiba-inu-0"
        trainer = job.begin(pipeline)
        assert trainer.guidance.text.pooled.any()
        assert job.run()
        result = job.finish(products={})
    assert result.images[0]["file"] == "shiba inu.png"
    assert trainer.skipped == 0


def test_it_wants_a_picture_and_needs_no_prompt():
    shown = ImageConfig(files=("a.png",))
    check_given(Config(prior="imagedream", image=shown), True)
    with pytest.raises(ConfigError, match="prior imagedream: expected a picture, received none"):
        check_given(Config(prompt="a dog", prior="imagedream"), True)
    with pytest.raises(InputError, match="expected a prompt in words"):
        check_given(Config(image=shown), False)
