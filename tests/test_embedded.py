"""The embedded models' own networks against the libraries whose files they read."""

import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from psd_gs.adam import Adam
from psd_gs.priors import mini
from psd_gs.priors.embedded import EmbeddedPrior, alphas_cumprod
from psd_gs.priors.multiview_pipeline import cosine_scheduler, set_views
from psd_gs.priors.unet import UNet, handles
from psd_gs.text_encoder import TextEncoder, Tokenizer

PROMPTS = ["a corgi", "", "naïve 红 PURPEL xylophone's 12", "a red cube, with 3d things! and so on " * 4]
HEAVY = (
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "peft",
    "scipy.optimize",
    "scipy.stats",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torchvision",
    "transformers",
)
"""What a run with the embedded models has no use for: most of these take longer to import than its networks to load."""


@pytest.fixture(scope="module")
def original():
    unet = UNet2DConditionModel.from_pretrained(mini.folder("prior") / "unet", dtype=torch.float32)
    set_views(unet, 4)
    return unet.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def prior():
    return EmbeddedPrior.from_pretrained(mini.folder("prior"), name="mini")


def calls(unet, rows=8):
    generator = torch.Generator().manual_seed(rows)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    times = torch.randint(0, 1000, (rows,), generator=generator)
    return draw(rows, unet.config.in_channels, size, size), times, draw(rows, 5, width), draw(rows, 16)


@pytest.mark.parametrize("part", ["prior/tokenizer", "reward", "judge"])
def test_the_same_tokens_as_transformers(part):
    ours, theirs = Tokenizer.from_pretrained(mini.folder(part)), CLIPTokenizer.from_pretrained(mini.folder(part))
    assert (len(ours), ours.model_max_length) == (len(theirs), theirs.model_max_length)
    options = {"padding": "max_length", "truncation": True, "max_length": 24, "return_tensors": "pt"}
    assert torch.equal(ours(PROMPTS, **options).input_ids, theirs(PROMPTS, **options).input_ids)
    with pytest.raises(ValueError, match="expected padding='max_length'"):
        ours(PROMPTS, max_length=24, padding="longest")


def test_the_same_states_of_words_as_transformers(prior):
    folder = mini.folder("prior")
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    ids = prior.pipeline.tokenizer(PROMPTS, max_length=24).input_ids
    with torch.no_grad():
        assert torch.equal(prior.embed(PROMPTS).sequence, theirs(ids)[0])


def test_attention_written_out_is_that_of_transformers_too():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=50, max_position_embeddings=12, attn_implementation="eager", **sizes)
    theirs = CLIPTextModel(config).eval()
    ours = TextEncoder(vocab_size=50, width=64, inner=128, layers=2, heads=2, length=12, fused=False)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(ids)[0], theirs(ids)[0])


def test_the_same_answers_as_diffusers(prior, original):
    for rows in (4, 8):
        noisy, times, text, labels = calls(original, rows)
        with torch.no_grad():
            expected = original(noisy, times, text, class_labels=labels).sample
            assert torch.equal(prior.unet(noisy, times, text, labels).sample, expected)


def test_the_same_gradient_as_diffusers(prior, original):
    noisy, times, text, labels = calls(original, 4)
    text.requires_grad_(True)
    found = [
        torch.autograd.grad(unet(noisy, times, text, class_labels=labels).sample.square().sum(), text)[0]
        for unet in (prior.unet, original)
    ]
    assert torch.equal(*found)


def test_other_sizes_of_the_same_layout(tmp_path):
    """Two blocks per level, patches, uneven widths, a side that is no multiple of the levels."""
    options = dict(original_options(), layers_per_block=2, sample_size=9, time_embedding_dim=24)
    theirs = UNet2DConditionModel(**options).requires_grad_(False).eval()
    set_views(theirs, 2)
    theirs.save_pretrained(tmp_path)
    assert handles(theirs.config)
    ours = UNet.from_pretrained(tmp_path, dict(theirs.config), views=2)
    noisy, times, text, labels = calls(theirs, 4)
    assert torch.equal(ours(noisy, times, text, labels).sample, theirs(noisy, times, text, class_labels=labels).sample)
    assert not handles(dict(theirs.config) | {"act_fn": "gelu"})


def original_options():
    return {
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": (16, 32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 48,
        "attention_head_dim": (1, 1, 2),
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
    }


@pytest.mark.parametrize("patch", [1, 2])
def test_the_same_levels_of_noise_as_diffusers(patch):
    scheduler = cosine_scheduler(patch)
    assert isinstance(scheduler, DDIMScheduler)
    assert torch.equal(alphas_cumprod(dict(scheduler.config)), scheduler.alphas_cumprod)


def test_lora_is_for_the_network_of_diffusers():
    prior = EmbeddedPrior.from_pretrained(mini.folder("prior"), name="mini")
    noisy, times, text, labels = calls(prior.unet, 4)
    with torch.no_grad():
        before = prior.unet(noisy, times, text, labels).sample
        assert hasattr(prior.adaptable(), "add_adapter")
        assert torch.equal(prior.unet(noisy, times, text, class_labels=labels).sample, before)
    assert prior.adaptable() is prior.unet


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_same_updates_as_torch(kind):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.linspace(-1, 1, n).requires_grad_() for n in (5, 3)] for _ in range(2)
    )  # fmt: skip
    options = {"betas": (0.8, 0.99), "eps": 1e-7}
    adam = Adam(ours, [0.1, 0.02], **options)
    reference = kind(
        [{"params": [p], "lr": r} for p, r in zip(theirs, (0.1, 0.02), strict=True)], weight_decay=0, **options
    )
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        if step == 3:
            ours[1].grad = theirs[1].grad = None
        adam.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    adam.zero_grad()
    assert ours[0].grad is None


@pytest.mark.full
def test_a_run_imports_what_it_uses(tmp_path):
    """And torch's compiler least of all, which hides behind many of torch's own functions."""
    program = f"""
import sys
from psd_gs.cli import main
main(["generate", "a corgi", "--prior", "mini", "--preset", "draft", "--steps", "8", "--output-dir", {str(tmp_path)!r}])
print("loaded", *sorted(sys.modules.keys() & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert (tmp_path / "a-corgi-0" / "report.html").exists()
