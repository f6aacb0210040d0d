"""MVDream: names, equality with the authors' code on random weights, both published layouts, cameras."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from psd_gs.cameras import Cameras, mvdream_cameras, turntable
from psd_gs.errors import ModelError
from psd_gs.gaussians import Gaussians, rgb_to_sh0
from psd_gs.priors import load_prior
from psd_gs.priors.imagedream import ImageDreamPrior
from psd_gs.priors.multiview_pipeline import set_views
from psd_gs.priors.mvdream import SD21_4VIEW, MVDreamPrior, build_unet, original_names, unet_config
from psd_gs.render import render

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "oracles"))

import convert_mvdream as conversion
import tiny_models
from shared import DATA, MVDREAM_UNET, parse, weights


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    """What bytedance/MVDream's code answers; see ``tools/oracles/make_mvdream.py``."""
    with np.load(DATA / "mvdream.npz") as file:
        return {name: file[name] for name in file.files}


def tensors(listing: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in weights(parse(listing)).items()}


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.as_tensor(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


# --- the authors' code -----------------------------------------------------------------------------------------------


def test_the_unet_answers_as_the_authors_code(oracle):
    unet = build_unet(MVDREAM_UNET, tensors(oracle["unet_keys"]), "oracle").eval()
    set_views(unet, 4)
    x = seeded(1, 8, 4, 8, 8).requires_grad_()
    text, times = seeded(2, 8, 5, MVDREAM_UNET["context_dim"]), torch.tensor([37] * 4 + [803] * 4)
    labels = torch.as_tensor(oracle["cameras"])
    out = unet(x, times, encoder_hidden_states=text, class_labels=labels).sample
    assert np.abs(out.detach().numpy() - oracle["unet"]).max() < 1e-4
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert np.abs(gradient.numpy() - oracle["gradient"]).max() < 1e-4 * np.abs(oracle["gradient"]).max()
    set_views(unet, 1)
    with torch.no_grad():
        alone = unet(x, times, encoder_hidden_states=text, class_labels=labels).sample
    assert np.abs(alone.numpy() - oracle["alone"]).max() < 1e-4
    assert np.abs(oracle["alone"] - oracle["unet"]).max() > 1e-2, "the views have to be coupled"


def test_the_autoencoder_answers_as_the_authors_code(oracle):
    state = tensors(oracle["vae_keys"])
    identity = {"weight": torch.eye(4)[:, :, None, None], "bias": torch.zeros(4)}
    twice = {"weight": torch.eye(8)[:, :, None, None], "bias": torch.zeros(8)}
    state |= {f"post_quant_conv.{k}": v for k, v in identity.items()} | {f"quant_conv.{k}": v for k, v in twice.items()}
    vae = conversion.build_vae(state).eval()
    with torch.no_grad():
        encoded = vae.encode(seeded(3, 1, 3, 16, 16)).latent_dist.parameters
        decoded = vae.decode(seeded(4, 1, 4, 8, 8)).sample
    assert np.abs(encoded.numpy() - oracle["vae_encoded"]).max() < 1e-4
    assert np.abs(decoded.numpy() - oracle["vae_decoded"]).max() < 1e-4


def test_our_cameras_are_the_authors(oracle):
    """Their azimuth 0 is our azimuth 270: their front is +x, seen from -y at 0 degrees."""
    for start, rows in ((0, slice(0, 4)), (90, slice(4, 8))):
        ours = turntable(4, elevation=15.0 if start == 0 else 30.0, start=start - 90.0)
        assert np.abs(mvdream_cameras(ours).numpy() - oracle["cameras"][rows]).max() < 1e-6


def read_back(labels: np.ndarray, distance: float) -> Cameras:
    """Cameras of the authors' numbers: a z-up world with the front at +X, looking along -z, at unit distance."""
    world = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # theirs (x, y, z) -> ours (y, z, x)
    poses = np.tile(np.eye(4), (len(labels), 1, 1))
    poses[:, :3, :3] = world @ labels.reshape(-1, 4, 4)[:, :3, :3] @ np.diag([1, -1, -1])
    poses[:, :3, 3] = labels.reshape(-1, 4, 4)[:, :3, 3] @ world.T * distance
    like = turntable(len(labels), size=64)
    return replace(like, viewmats=torch.as_tensor(np.linalg.inv(poses), dtype=torch.float32))


def test_the_authors_cameras_show_the_front_first(oracle):
    """Their sampling starts at azimuth 90. Balls at the four sides and a white one on top: the nearest is the largest
    in the picture, and the white one is up."""
    sides = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0]])  # front, +X, back, -X, top
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    balls = Gaussians(
        means=0.5 * sides,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(5, 1),
        scales=torch.full((5, 3), math.log(0.08)),
        opacities=torch.full((5,), 6.0),
        sh0=rgb_to_sh0(colours)[:, None],
        shN=torch.zeros(5, 0, 3),
    )
    cameras = read_back(oracle["cameras"][4:], distance=2.2)
    pictures = render(balls, cameras, torch.full((3,), 0.5)).rgb
    near = (pictures[:, None] - colours[:, None, None]).abs().amax(-1) < 0.25  # view, ball, row, column
    assert near[:, :4].sum((2, 3)).argmax(1).tolist() == [0, 1, 2, 3]
    rows = near[:, 4].nonzero()[:, 1]
    assert len(rows) > 40
    assert rows.max() < 32


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_names_at_full_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(SD21_4VIEW))
    names = original_names(unet)
    assert len(names) == len(set(names.values())) == 690
    assert sum(p.numel() for p in unet.parameters()) == 867_572_164  # 867.57 M
    shapes = {theirs: tuple(unet.state_dict()[ours].shape) for ours, theirs in names.items()}
    assert shapes["input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert shapes["camera_embed.0.weight"] == (1280, 16)
    assert shapes["input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    assert shapes["input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"] == (1280, 1024)
    assert shapes["output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.8.2.conv.weight"] == (640, 640, 3, 3)
    assert shapes["output_blocks.11.1.proj_out.weight"] == (320, 320)
    assert shapes["out.2.weight"] == (4, 320, 3, 3)
    assert all(
        tuple(unet.config[name]) == value
        for name, value in {"attention_head_dim": (5, 10, 20, 20), "block_out_channels": (320, 640, 1280, 1280)}.items()
    )


def test_names_agree_with_diffusers_own_converter():
    """On everything but the camera, of which it knows nothing."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = UNet2DConditionModel(**unet_config(MVDREAM_UNET))
    names = original_names(unet)
    state = {f"model.diffusion_model.{names[ours]}": value for ours, value in unet.state_dict().items()}
    config = dict(unet.config) | {"class_embed_type": None, "addition_embed_type": None}
    theirs = convert_ldm_unet_checkpoint(state, config)
    assert set(unet.state_dict()) - set(theirs) == {n for n in names if n.startswith("class_embedding")}
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in theirs.items())


def test_round_trip_of_names_keeps_the_output():
    torch.manual_seed(0)
    first = UNet2DConditionModel(**unet_config(MVDREAM_UNET)).eval()
    names = original_names(first)
    second = build_unet(MVDREAM_UNET, {names[n]: t for n, t in first.state_dict().items()}, "again").eval()
    arguments = (seeded(0, 4, 4, 8, 8), torch.tensor([5]), seeded(1, 4, 3, MVDREAM_UNET["context_dim"]))
    labels = mvdream_cameras(turntable(4))
    with torch.no_grad():
        assert torch.equal(
            first(*arguments, class_labels=labels).sample, second(*arguments, class_labels=labels).sample
        )


# --- published layouts -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "mvdream"
    folder.mkdir()
    return folder, tiny_models.save_mvdream(folder)


def test_the_diffusers_format_repositories_load_without_their_code(published):
    folder, pipeline = published
    prior = load_prior(str(folder))
    assert isinstance(prior, MVDreamPrior)
    assert (prior.views, prior.image_size, prior.prediction_type, prior.family) == (4, 64, "epsilon", "mvdream")
    x, t, cameras = seeded(0, 1, 4, *prior.latent_shape), torch.tensor([0.5]), turntable(4, elevation=20)
    text, negative = prior.embed(["a corgi"]), prior.embed([""])
    found = prior.predict(x, t, text, negative, cameras)[0]
    out = pipeline.unet(
        x[0],
        torch.tensor([500]),
        encoder_hidden_states=text.sequence.expand(4, -1, -1),
        class_labels=mvdream_cameras(cameras),
    ).sample
    alpha, sigma = prior.alpha_sigma(t)
    torch.testing.assert_close(found, (x - sigma * out[None]) / alpha, atol=1e-4, rtol=1e-4)


def drop(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: drop(f, lambda s: s.pop("out.2.bias")), ["1 missing: out.2.bias"]),
        (lambda f: drop(f, lambda s: s.update(extra=torch.zeros(1))), ["1 unknown: extra"]),
        (
            lambda f: drop(f, lambda s: [s.pop(k) for k in list(s) if k.startswith("camera_embed")]),
            ["4 missing: camera_embed.0.weight, camera_embed.0.bias"],
        ),
        (lambda f: (f / "unet" / "config.json").unlink(), ["expected config.json"]),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), ["expected config.json", "received []"]),
        (lambda f: shutil.rmtree(f / "vae"), ["no such folder"]),
    ],
)
def test_damaged_repositories_are_one_clear_line(tmp_path, published, damage, parts):
    folder = tmp_path / "mvdream"
    shutil.copytree(published[0], folder)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_prior(str(folder))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


class OpenClipBlock(nn.Module):
    """A residual block of open_clip, written down from its description with torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


def open_clip_blocks(width: int, layers: int) -> nn.ModuleDict:
    return nn.ModuleDict({"resblocks": nn.ModuleList(OpenClipBlock(width, 2) for _ in range(layers))})


class OpenClipText(nn.Module):
    def __init__(self, vocabulary: int, width: int, length: int, layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = open_clip_blocks(width, layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width))
        self.logit_scale = nn.Parameter(torch.ones(()))

    def penultimate(self, ids: Tensor) -> Tensor:
        """What MVDream reads: all blocks but the last, then the final norm."""
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer["resblocks"][:-1]:
            x = block(x, mask)
        return self.ln_final(x)


class OpenClipPictures(nn.Module):
    def __init__(self, width: int, patch: int, patches: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(1 + patches, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = open_clip_blocks(width, layers)
        self.proj = nn.Parameter(torch.randn(width, width))

    def penultimate(self, images: Tensor) -> Tensor:
        """What ImageDream reads: all blocks but the last, and no norm after them."""
        x = self.conv1(images).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"][:-1]:
            x = block(x)
        return x


def vae_tensors(oracle) -> dict[str, Tensor]:
    """Of a tiny autoencoder, under latent diffusion's names."""
    state = tensors(oracle["vae_keys"])
    for name, size in (("post_quant_conv", 4), ("quant_conv", 8)):
        state |= {f"{name}.weight": seeded(size, size, size, 1, 1), f"{name}.bias": seeded(size, size)}
    return state


@pytest.mark.full
def test_the_original_checkpoint_converts(tmp_path, oracle):
    """Tiny, with all three parts and the buffers that training left; then through save and load."""
    torch.manual_seed(0)
    words = tiny_models.tokenizer()
    text = OpenClipText(len(words), 128, words.model_max_length, 3).eval()
    fields = MVDREAM_UNET | {"context_dim": 128}
    unet = UNet2DConditionModel(**unet_config(fields))
    names = original_names(unet)
    state = {f"model.diffusion_model.{names[ours]}": value for ours, value in unet.state_dict().items()}
    state |= {f"cond_stage_model.model.{name}": value for name, value in text.state_dict().items()}
    state |= {f"first_stage_model.{name}": value for name, value in vae_tensors(oracle).items()}
    state["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    torch.save({"state_dict": state}, tmp_path / "tiny.pt")

    pipeline = conversion.convert(conversion.read_checkpoint(tmp_path / "tiny.pt"), words, fields)
    ids = words(["a red cube"], padding="max_length", max_length=words.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(pipeline.text_encoder(ids)[0], text.penultimate(ids), atol=1e-5, rtol=1e-4)
    pipeline.save_pretrained(tmp_path / "folder")
    prior = load_prior(str(tmp_path / "folder"))
    assert prior.views == 4
    assert torch.equal(prior.embed(["a red cube"]).sequence, pipeline.text_encoder(ids)[0])
    for name, value in unet.state_dict().items():
        assert torch.equal(prior.unet.state_dict()[name], value)


@pytest.mark.full
def test_imagedreams_checkpoint_converts(tmp_path, oracle):
    """Its parts have other names, and there is a tower for pictures, whose layer before the last is read."""
    torch.manual_seed(0)
    words, width = tiny_models.tokenizer(), 2 * conversion.VISION_HEAD
    fields = tiny_models.LDM | {"context_dim": 128, "ip_dim": 16}
    unet = tiny_models.imagedream_tensors(fields, width)
    text = OpenClipText(len(words), 128, words.model_max_length, 2)
    pictures = OpenClipPictures(width, patch=14, patches=4, layers=3).eval()
    parts = {
        "model.diffusion_model": unet,
        "vae_model": vae_tensors(oracle),
        "clip_model.model": text.state_dict(),
        "clip_model.model.visual": pictures.state_dict(),
    }
    state = {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}
    torch.save(state, tmp_path / "tiny.pt")

    state = conversion.read_checkpoint(tmp_path / "tiny.pt")
    conversion.save_imagedream(state, words, tmp_path / "folder", torch.float32, fields)
    prior = load_prior(str(tmp_path / "folder"))
    assert isinstance(prior, ImageDreamPrior)
    image = seeded(1, 1, 3, 28, 28)
    with torch.no_grad():
        read = prior.image_encoder(image, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(read, pictures.penultimate(image), atol=1e-5, rtol=1e-4)
    assert torch.equal(prior.resampler.latents, unet["image_embed.latents"])
    assert torch.equal(prior.unet.conv_in.weight, unet["input_blocks.0.0.weight"])
    without = {name: value for name, value in state.items() if ".visual." not in name}
    with pytest.raises(ModelError, match="with an image encoder"):
        conversion.save_imagedream(without, words, tmp_path / "blind", torch.float32, fields)


def test_checkpoints_of_something_else_are_one_clear_line(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    for name, part in (
        ("text.pt", "expected a checkpoint of tensors"),
        ("other.pt", "expected a checkpoint with a U-Net"),
    ):
        with pytest.raises(SystemExit, match=part):
            conversion.main(
                [
                    str(tmp_path / name),
                    str(tmp_path / "out"),
                    "--tokenizer",
                    str(tiny_models.mini.folder("prior") / "tokenizer"),
                ]
            )
