"""The multi-view prior and the embedded model: contract, file layout, damage, vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from psd_gs.cameras import mvdream_cameras, turntable
from psd_gs.errors import ConfigError, InputError, ModelError
from psd_gs.priors import load_prior, mini
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import MultiViewAttnProcessor, MultiViewPipeline, cosine_scheduler, set_views

WIDTH = 32


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(mini.folder("prior") / "tokenizer")


def tiny_pipeline(prediction: str = "v_prediction", *, vae: bool = False, views: int = 4) -> MultiViewPipeline:
    """The smallest network of the architecture, with random weights."""
    torch.manual_seed(0)
    words = tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )
    channels = 4 if vae else 3
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    scheduler = cosine_scheduler()
    if prediction != "v_prediction":
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        scheduler.register_to_config(prediction_type=prediction)
    coder = None
    if vae:
        coder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.2,
        )
    return MultiViewPipeline(words, text_encoder, unet, scheduler, coder, views=views)


@pytest.fixture(scope="module")
def embedded() -> MultiViewPrior:
    """In float32, whatever this machine prefers."""
    return MultiViewPrior.from_pretrained(mini.folder("prior"), name="mini")


@pytest.fixture(params=["embedded", "tiny v", "tiny epsilon", "tiny latent"])
def prior(request, embedded) -> MultiViewPrior:
    if request.param == "embedded":
        return embedded
    kind = request.param.split()[1]
    return MultiViewPrior(tiny_pipeline("epsilon" if kind == "epsilon" else "v_prediction", vae=kind == "latent"))


def noise(prior: MultiViewPrior, groups: int, seed: int = 0) -> Tensor:
    return torch.randn(groups, prior.views, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))


def inputs(prior: MultiViewPrior, groups: int = 1, seed: int = 0):
    """Noisy latents, times, both embeddings and cameras."""
    t = torch.linspace(0.3, 0.8, groups)
    return (
        noise(prior, groups, seed),
        t,
        prior.embed(["a red cube"]),
        prior.embed([""]),
        turntable(groups * prior.views, elevation=20),
    )


# --- contract --------------------------------------------------------------------------------------------------------


def test_embedding(prior):
    out = prior.embed(["a corgi", "", "a red cube on a blue sphere"])
    length = prior.pipeline.tokenizer.model_max_length
    assert out.sequence.shape == (3, length, prior.unet.config.cross_attention_dim)
    assert out.sequence.dtype == torch.float32
    assert not out.sequence.requires_grad
    assert out.sequence[1].norm() > 0.1, "the trust region of the negative embedding would be a point"
    assert (out.sequence[0] - out.sequence[2]).abs().max() > 1e-3
    torch.testing.assert_close(prior.embed(["a corgi"]).sequence, out.sequence[:1], atol=1e-5, rtol=1e-5)
    long = prior.embed(["a corgi " * 200])
    assert long.sequence.shape == (1, *out.sequence.shape[1:])


def test_levels(prior):
    t = torch.linspace(0.02, 0.98, 97)
    alpha, sigma = prior.alpha_sigma(t)
    assert alpha.shape == (97, 1, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.diff(dim=0) < 0).all()
    assert (alpha > 0).all()
    assert (sigma > 0).all()
    assert (sigma < 1).all()
    # The same levels as the scheduler's, at the same integer times that the network is told.
    x0, eps = noise(prior, 97, 1), noise(prior, 97, 2)
    expected = prior.pipeline.scheduler.add_noise(x0, eps, prior.timesteps(t))
    torch.testing.assert_close(prior.add_noise(x0, eps, t), expected)
    assert prior.timesteps(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


def test_predictions_by_hand(prior):
    """Each branch and group alone through the bare network, and the textbook conversion to x0."""
    x_t, t, text, negative, cameras = inputs(prior, groups=2)
    found = prior.predict(x_t, t, text, negative, cameras)
    steps = (t * 999).round().long()
    a = prior.pipeline.scheduler.alphas_cumprod[steps]
    labels = mvdream_cameras(cameras)
    for embedding, estimate in zip((text, negative), found, strict=True):
        assert estimate.shape == x_t.shape
        for g in range(2):
            rows = slice(4 * g, 4 * g + 4)
            out = prior.unet(
                x_t[g],
                steps[g],
                encoder_hidden_states=embedding.sequence.expand(4, -1, -1),
                class_labels=labels[rows],
            ).sample
            if prior.prediction_type == "v_prediction":
                x0 = a[g].sqrt() * x_t[g] - (1 - a[g]).sqrt() * out
            else:
                x0 = (x_t[g] - (1 - a[g]).sqrt() * out) / a[g].sqrt()
            torch.testing.assert_close(estimate[g], x0, atol=2e-4, rtol=1e-3)
    assert (found[0] - found[1]).abs().max() > 1e-4, "the text has no say"


def test_gradients_reach_the_negative_embedding_and_no_weight(prior):
    x_t, t, text, negative, cameras = inputs(prior)
    negative.sequence.requires_grad_(True)
    cond, neg = prior.predict(x_t, t, text, negative, cameras)
    (gradient,) = torch.autograd.grad(neg.square().sum(), negative.sequence, retain_graph=True)
    assert gradient.abs().max() > 0
    (none,) = torch.autograd.grad(cond.square().sum(), negative.sequence)
    assert none.abs().max() < 1e-6 * gradient.abs().max()
    assert not any(p.requires_grad for p in prior.unet.parameters())
    assert not any(p.requires_grad for p in prior.pipeline.text_encoder.parameters())


def test_images_and_latents(prior):
    size = prior.image_size
    images = torch.rand(2, prior.views, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    x0 = prior.encode(images)
    assert x0.shape == (2, prior.views, *prior.latent_shape)
    assert torch.equal(x0, prior.encode(images)), "encoding must be deterministic"
    (gradient,) = torch.autograd.grad(x0.square().sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    back = prior.decode(x0)
    assert back.shape == images.shape
    assert back.min() >= 0
    assert back.max() <= 1
    if prior.vae is None:
        torch.testing.assert_close(back, images)
        assert prior.decode(3 * torch.ones_like(x0)).max() == 1
    else:
        assert size == 2 * prior.latent_size
        mean = prior.vae.encode(2 * images.flatten(0, 1) - 1).latent_dist.mean
        torch.testing.assert_close(x0.flatten(0, 1), 0.2 * mean)
        decoded = prior.vae.decode(mean).sample
        torch.testing.assert_close(back.flatten(0, 1), (0.5 * decoded + 0.5).clamp(0, 1))


def test_cameras_matter_and_their_number_is_checked(prior):
    x_t, t, text, negative, cameras = inputs(prior)
    first = prior.predict(x_t, t, text, negative, cameras)[0]
    turned = prior.predict(x_t, t, text, negative, turntable(4, elevation=20, start=90))[0]
    assert (first - turned).abs().max() > 1e-4
    with pytest.raises(InputError, match=r"expected 4 cameras .*, received 3"):
        prior.predict(x_t, t, text, negative, cameras[:3])


# --- views -----------------------------------------------------------------------------------------------------------


def change_of_first_view(prior: MultiViewPrior, *, pixels: bool) -> float:
    """How far the first view's estimate moves when another view's pixels, or text, change."""
    x_t, t, text, negative, cameras = inputs(prior)
    rows = text.expand(4)
    other = prior.embed(["a corgi", "a corgi", "a green tree", "a corgi"]) if not pixels else rows
    base = prior.embed(["a corgi"] * 4) if not pixels else rows
    changed = x_t.clone()
    if pixels:
        changed[0, 2] += 1
    before = prior.predict(x_t, t, base, negative, cameras)[0]
    after = prior.predict(changed, t, other, negative, cameras)[0]
    assert (before[0, 2] - after[0, 2]).abs().max() > 1e-4
    return float((before[0, 0] - after[0, 0]).abs().max())


def test_views_see_each_other_through_self_attention_alone():
    tiny = MultiViewPrior(tiny_pipeline())
    assert change_of_first_view(tiny, pixels=True) > 1e-4
    set_views(tiny.unet, 1)
    assert change_of_first_view(tiny, pixels=True) < 1e-6
    assert change_of_first_view(tiny, pixels=False) < 1e-6  # cross-attention is per view


def test_the_embedded_views_see_each_other(embedded):
    assert change_of_first_view(embedded, pixels=True) > 1e-3


def test_processors():
    unet = tiny_pipeline(views=3).unet
    kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}
    assert {kind for name, kind in kinds.items() if "attn1" in name} == {MultiViewAttnProcessor}
    assert {kind for name, kind in kinds.items() if "attn2" in name} == {AttnProcessor2_0}
    assert {p.views for p in unet.attn_processors.values() if isinstance(p, MultiViewAttnProcessor)} == {3}


def test_folding_by_hand():
    """Tokens of a set attend to each other whatever view they are in: softmax written out."""
    torch.manual_seed(0)
    attn = tiny_pipeline().unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = torch.randn(8, 5, 32)
    found = MultiViewAttnProcessor(4)(attn, x)
    for s in range(2):
        tokens = x[4 * s : 4 * s + 4].reshape(20, 32)
        heads = [
            linear(tokens).view(20, attn.heads, -1).transpose(0, 1) for linear in (attn.to_q, attn.to_k, attn.to_v)
        ]
        query, key, value = heads
        weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
        expected = attn.to_out[0]((weights @ value).transpose(0, 1).reshape(20, 32))
        torch.testing.assert_close(found[4 * s : 4 * s + 4].reshape(20, 32), expected)


# --- files -----------------------------------------------------------------------------------------------------------


def test_each_embedded_component_loads_alone(embedded):
    folder = mini.folder("prior")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert unet.config.class_embed_type == "projection"
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor.float(), embedded.unet.state_dict()[name])
    text_encoder, words = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32), tokenizer()
    ids = words(["a corgi"], padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
    torch.testing.assert_close(text_encoder(ids)[0].float(), embedded.embed(["a corgi"]).sequence, atol=1e-5, rtol=1e-5)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, embedded.alphas_cumprod)


def test_the_embedded_weights_are_small_half_precision_safetensors():
    folder = mini.folder("prior")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    for path in folder.rglob("*.safetensors"):
        header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
        kinds = {entry["dtype"] for name, entry in json.loads(header).items() if name != "__metadata__"}
        assert kinds <= {"F16", "I64"}


@pytest.mark.parametrize("vae", [False, True])
def test_save_and_load_are_symmetric(tmp_path, vae):
    first = MultiViewPrior(tiny_pipeline(vae=vae))
    first.pipeline.save_pretrained(tmp_path)
    second = load_prior(str(tmp_path))
    assert second.name == str(tmp_path)  # which loads it again
    assert (second.views, second.image_size, second.latent_shape) == (4, first.image_size, first.latent_shape)
    arguments = inputs(first)
    for a, b in zip(first.predict(*arguments), second.predict(*arguments), strict=True):
        assert torch.equal(a, b)
    x0 = noise(first, 1)
    assert torch.equal(first.decode(x0), second.decode(x0))
    second.pipeline.save_pretrained(tmp_path / "again")
    for path in tmp_path.glob("*/*.safetensors"):
        assert (tmp_path / "again" / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_the_number_of_views_is_part_of_the_files(tmp_path):
    tiny_pipeline(views=2).save_pretrained(tmp_path)
    prior = load_prior(str(tmp_path))
    assert prior.views == 2
    assert len(prior.pipeline("a cube", num_inference_steps=2).images[0]) == 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(folder)
    return folder


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "unet truncated": lambda f: truncate(f / "unet" / "diffusion_pytorch_model.safetensors"),
    "text encoder truncated": lambda f: truncate(f / "text_encoder" / "model.safetensors"),
    "unet empty": lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b""),
    "unet weights missing": lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "text encoder weights missing": lambda f: (f / "text_encoder" / "model.safetensors").unlink(),
    "unet missing": lambda f: shutil.rmtree(f / "unet"),
    "tokenizer missing": lambda f: shutil.rmtree(f / "tokenizer"),
    "scheduler missing": lambda f: shutil.rmtree(f / "scheduler"),
    "index missing": lambda f: (f / "model_index.json").unlink(),
    "index broken": lambda f: (f / "model_index.json").write_text("{"),
    "index of another class": lambda f: edit(f / "model_index.json", unet=["diffusers", "NoSuchModel"]),
    "unet of another width": lambda f: edit(f / "unet" / "config.json", block_out_channels=[16, 64]),
    "unet of another depth": lambda f: edit(f / "unet" / "config.json", layers_per_block=2),
    "text encoder of another depth": lambda f: edit(f / "text_encoder" / "config.json", num_hidden_layers=3),
    "text encoder of another width": lambda f: edit(f / "text_encoder" / "config.json", hidden_size=64),
    "prediction of another kind": lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_one_clear_line(tmp_path, saved, damage):
    folder = tmp_path / "prior"
    shutil.copytree(saved, folder)
    DAMAGES[damage](folder)
    with pytest.raises(ModelError) as caught:
        load_prior(str(folder))
    assert "prior" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_embedded_prior_in_this_machines_fast_type(embedded):
    """bfloat16 where the CPU has it: latents stay float32 and close."""
    fast = load_prior("mini")
    assert isinstance(fast, MultiViewPrior)
    assert fast.name == "mini"
    x_t, t, text, negative, cameras = inputs(embedded)
    assert fast.embed(["a red cube"]).sequence.dtype == torch.float32
    for a, b in zip(
        embedded.predict(x_t, t, text, negative, cameras), fast.predict(x_t, t, text, negative, cameras), strict=True
    ):
        assert b.dtype == torch.float32
        assert (a - b).square().mean() < 1e-3 * a.square().mean()


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"unknown model 'sdxl-ultra': expected mini, sd15, .* folder"):
        load_prior("sdxl-ultra")


# --- sampling --------------------------------------------------------------------------------------------------------


def test_the_embedded_pipeline_samples_four_views(embedded):
    pipeline = MultiViewPipeline.from_pretrained(mini.folder("prior"))
    pipeline.set_progress_bar_config(disable=True)
    (views,) = pipeline("a red cube", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images
    assert len(views) == 4
    size = embedded.image_size
    assert all(view.size == (size, size) and view.mode == "RGB" for view in views)
    assert len({view.tobytes() for view in views}) == 4


def test_sampling_follows_its_arguments():
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def sample(prompt="a cube", seed=0, **options) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipeline(prompt, num_inference_steps=3, generator=generator, output_type="pt", **options).images

    first = sample()
    assert first.shape == (1, 4, 3, 8, 8)
    assert torch.equal(first, sample())
    assert not torch.equal(first, sample(seed=1))
    assert not torch.equal(first, sample("a tree"))
    assert not torch.equal(first, sample(negative_prompt="a tree"))
    assert not torch.equal(first, sample(guidance_scale=1.0))
    assert not torch.equal(first, sample(guidance_rescale=0.7))
    assert not torch.equal(first, sample(cameras=turntable(4, elevation=50)))
    both = sample(["a cube", "a tree"])
    assert both.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(both[:1], first, atol=1e-4, rtol=1e-4)


def test_unconditional_scale_ignores_the_negative_prompt():
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(
            "a cube",
            negative_prompt=negative,
            guidance_scale=1.0,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        for negative in ("", "a tree")
    ]
    torch.testing.assert_close(*pictures)


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_known_words_are_single_tokens():
    words = tokenizer()
    for word in sorted(mini.words() - {"3d"}):  # CLIP's rules part digits from letters
        assert len(words(word).input_ids) == 3, word
    spoken = {part for noun in mini.nouns() for part in noun.split()}
    assert spoken <= mini.words()
    assert "corgi" in mini.nouns()
    assert len(mini.nouns()) >= 40


@pytest.mark.parametrize(
    "prompt",
    [
        "a corgi",
        "A Corgi",
        "a corgi wearing a red hat",
        "a blue cube on a yellow cylinder",
        "a cute little corgi",
        "corgi!",
    ],
)
def test_known_prompts_raise_no_warning(prompt):
    check = mini.check_prompt(prompt)
    assert check.unknown == ()
    assert check.knows_object
    assert check.message == ""


def test_unknown_words_are_named_with_close_ones():
    check = mini.check_prompt("a corgy wearing a purpel xylophone")
    assert check.unknown == ("corgy", "purpel", "xylophone")
    assert "corgi" in check.near
    assert "purple" in check.near
    assert not check.knows_object
    assert "does not know 'corgy', 'purpel', 'xylophone'" in check.message
    assert "close words that it knows: corgi" in check.message
    assert "names no object that it knows, such as corgi" in check.message
    assert "psd-gs words" in check.message
    assert "GPU" in check.message
    assert "\n" not in check.message


def test_a_known_object_among_unknown_words():
    check = mini.check_prompt("a steampunk corgi")
    assert check.unknown == ("steampunk",)
    assert check.knows_object
    assert "names no object" not in check.message


def test_colours_alone_are_no_object():
    check = mini.check_prompt("a red one")
    assert check.unknown == ()
    assert not check.knows_object
    assert "names no object" in check.message


@pytest.mark.parametrize("prompt", ["ein Löwe", "一只柯基", "[bold]corgi[/bold]", "a\ncorgi\t on \u200b a cube"])
def test_any_text_can_be_checked(prompt):
    assert isinstance(mini.check_prompt(prompt).message, str)
