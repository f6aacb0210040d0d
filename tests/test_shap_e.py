"""Starting from Shap-E: a tiny pipeline of the real classes, and the frame its samples arrive in."""

from __future__ import annotations

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
from diffusers.pipelines.shap_e import ShapERenderer
from transformers import CLIPTextModelWithProjection

from psd_gs import pipeline, weights
from psd_gs.config import Config, InitConfig
from psd_gs.errors import InputError, ModelError
from psd_gs.priors import shap_e
from psd_gs.start import initial_gaussians


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    made = ShapEPipeline(
        prior=PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            embedding_dim=32,
            num_embeddings=32,
            additional_embeddings=0,
            time_embed_act_fn="gelu",
            norm_in_type="layer",
            encoder_hid_proj_type=None,
            added_emb_type=None,
            embedding_proj_dim=16,
            time_embed_dim=64,
            clip_embed_dim=64,
        ),
        text_encoder=tiny_models.clip(CLIPTextModelWithProjection, projection_dim=16),
        tokenizer=tiny_models.tokenizer(),
        scheduler=HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample"),
        shap_e_renderer=ShapERenderer(
            param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=32, d_hidden=8, n_output=12
        ),
    )
    path = tmp_path_factory.mktemp("hub") / "shap-e"
    made.save_pretrained(path)
    return path


def test_a_saved_pipeline_runs_to_the_surface(folder, monkeypatch):
    """The tables of marching cubes are part of the published weights; without them no sample has a surface."""
    monkeypatch.setattr(shap_e, "STEPS", 2)
    monkeypatch.setattr(ShapERenderer, "decode_to_mesh", partial_grid(ShapERenderer.decode_to_mesh))
    made = shap_e.load_shap_e(folder)
    assert not made.shap_e_renderer.mesh_decoder.cases.any()
    with pytest.raises(InputError, match=r"Shap-E made nothing of 'a red cube'.*--init ball"):
        shap_e.text_to_mesh(made, "a red cube", torch.Generator().manual_seed(0))


def test_the_published_layout_loads(tmp_path, folder):
    """fp16 variants of two networks beside plain ones, the renderer pickled, a former renderer that nothing names."""
    made = ShapEPipeline.from_pretrained(folder)
    made.save_pretrained(tmp_path / "hub")
    made.save_pretrained(tmp_path / "hub", variant="fp16")
    made.shap_e_renderer.save_pretrained(tmp_path / "hub" / "renderer")
    renderer = tmp_path / "hub" / "shap_e_renderer"
    for file in renderer.glob("*.safetensors"):
        file.unlink()
    torch.save(made.shap_e_renderer.state_dict(), renderer / "diffusion_pytorch_model.bin")
    files = [p.relative_to(tmp_path / "hub").as_posix() for p in (tmp_path / "hub").rglob("*") if p.is_file()]
    for name in weights.choose_files(files):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "hub" / name, tmp_path / "cache" / name)
    large = (tmp_path / "cache").glob("*/*model.*")
    assert {p.relative_to(tmp_path / "cache").as_posix() for p in large} == {
        "prior/diffusion_pytorch_model.fp16.safetensors",
        "shap_e_renderer/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
    }
    loaded = shap_e.load_shap_e(tmp_path / "cache")
    for name in ("prior", "text_encoder", "shap_e_renderer"):
        for key, tensor in getattr(made, name).state_dict().items():
            torch.testing.assert_close(getattr(loaded, name).state_dict()[key], tensor, msg=f"{name} {key}")


def partial_grid(decode):
    return lambda self, latents, device: partial(decode, self, latents, device)(grid_size=12)


def test_the_frame_and_the_colours(monkeypatch, folder):
    """Shap-E's z is up and its front is -y; ours are +y and +z. Its colours are linear, ours sRGB."""
    corners = torch.tensor([[0.0, -1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    made = SimpleNamespace(
        verts=corners,
        faces=torch.tensor([[0, 1, 2], [0, 1, 3]]),
        vertex_channels={"R": torch.full((4,), 0.2140), "G": torch.zeros(4), "B": torch.ones(4)},
    )
    vertices, _, linear = shap_e.text_to_mesh(lambda *a, **k: SimpleNamespace(images=[made]), "x", torch.Generator())
    assert vertices.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    monkeypatch.setattr(weights, "locate", lambda name: folder)
    monkeypatch.setattr(shap_e, "text_to_mesh", lambda *a: (vertices, made.faces.numpy(), linear))
    config = Config(prompt="a cube", init=InitConfig(source="shap-e", count=200))
    asset = initial_gaussians(config, torch.Generator().manual_seed(0))
    assert len(asset) == 200
    rgb = 0.28209479 * asset.sh0[:, 0] + 0.5
    torch.testing.assert_close(rgb, torch.tensor([0.5, 0.0, 1.0]).expand(200, 3), atol=0.01, rtol=0)
    assert asset.means.norm(dim=1).max() <= 0.5 + 1e-6


def test_damage_is_one_clear_line(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "copy")
    file = next((tmp_path / "copy" / "prior").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="is truncated"):
        shap_e.load_shap_e(tmp_path / "copy")
    with pytest.raises(ModelError) as caught:
        shap_e.load_shap_e(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_without_weights_the_ball_is_the_way_on(monkeypatch):
    def nowhere(entry, repo, revision):
        raise ConnectionError

    monkeypatch.setattr(weights, "cached", lambda *a: None)
    monkeypatch.setattr(weights, "fetch", nowhere)
    config = Config(prompt="a cube", init=InitConfig(source="shap-e"))
    with pytest.raises(ModelError, match=r"no weights for shap-e .*psd-gs models pull shap-e.*--init ball"):
        pipeline.initial_gaussians(config, torch.Generator())
