"""The resolver on a hub that is a folder; names, sizes and shapes of the published models on the meta device."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny_models
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from program import psd_gs
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from psd_gs import pipeline, weights
from psd_gs.cli import main
from psd_gs.config import Config
from psd_gs.entries import PRIORS
from psd_gs.errors import ConfigError, ModelError
from psd_gs.models import choose_prior, digests_of, downloads, resolve, shortage
from psd_gs.priors import load_prior, prior_family
from psd_gs.priors.mvdream import SD21_4VIEW, original_names, unet_config
from psd_gs.published import WEIGHTS

PINNED, MIRROR = (repo for repo, _ in WEIGHTS["sd21"].repos)


class FakeHub:
    """Repositories are folders; everything else is not found. Downloads are counted."""

    def __init__(self, root: Path) -> None:
        self.repos: dict[str, Path] = {}
        self.cache = root / "cache"
        self.fetched: list[str] = []
        self.error: Exception | None = None

    def snapshot_download(self, repo, *, revision=None, local_files_only=False, allow_patterns=None):
        target = self.cache / repo.replace("/", "--") / (revision or "main")
        if local_files_only:
            if not target.is_dir():
                raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
            return str(target)
        self.fetched.append(repo)
        for name in allow_patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repos[repo] / name, target / name)
        return str(target)

    def model_info(self, repo, *, revision=None, timeout=None):
        if self.error:
            raise self.error
        if repo not in self.repos:
            response = SimpleNamespace(status_code=404, headers={}, request=None, url="")
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)
        files = [p.relative_to(self.repos[repo]).as_posix() for p in self.repos[repo].rglob("*") if p.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return fake


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "sd"
    tiny_models.sd().save_pretrained(folder)
    (folder / "README.md").write_text("not fetched")
    return folder


# --- finding and fetching --------------------------------------------------------------------------------------------


def test_without_a_home_nothing_is_cached(monkeypatch):
    def nowhere(*arguments, **options):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nowhere)
    assert not weights.is_here(WEIGHTS["sd15"])


def test_pinned_then_cached(hub, saved):
    hub.repos[PINNED] = saved
    folder = weights.locate("sd21")
    assert not (folder / "README.md").exists()
    assert hub.fetched == [PINNED]
    assert weights.locate("sd21") == folder == weights.locate("sd21", download=False)
    assert hub.fetched == [PINNED], "the second time comes from the cache"
    assert weights.is_here(WEIGHTS["sd21"])
    prior = load_prior("sd21")
    assert (prior.name, prior.views) == ("sd21", 1)


def test_mirrors_when_the_owner_has_removed_it(hub, saved):
    hub.repos[MIRROR] = saved
    assert MIRROR.replace("/", "--") in str(weights.locate("sd21"))
    assert hub.fetched == [MIRROR]


def test_an_explicit_path_comes_first(hub, saved):
    assert weights.locate(str(saved)) == saved
    assert hub.fetched == []


def test_a_hub_id(hub, saved):
    hub.repos["someone/finetune"] = saved
    prior = load_prior("someone/finetune")
    assert prior.embed(["a cat"]).sequence.shape[0] == 1
    assert hub.fetched == ["someone/finetune"]


def test_the_family_of_a_hub_id_is_known_by_its_index_and_its_name_stays(hub, saved):
    hub.repos["someone/finetune"] = saved
    assert prior_family("someone/finetune") == "sd"
    assert resolve("someone/finetune", "auto", "auto") == ("someone/finetune", "hpsv2.1", "pickscore")
    assert [path.name for path in hub.cache.rglob("*") if path.is_file()] == ["model_index.json"]
    assert load_prior("someone/finetune").name == "someone/finetune"
    facts = weights.provenance("someone/finetune")
    assert facts == {
        "name": "someone/finetune",
        "repository": "someone/finetune",
        "revision": "main",
        "licence": "see its page",
    }


def test_only_what_is_embedded_is_recorded_as_embedded(hub):
    embedded = {"repository": "embedded", "licence": "Apache-2.0"}
    for name in ("mini", "mini-judge"):
        assert weights.provenance(name) == {"name": name, **embedded}
    for name in ("mini-likes", "./mini", "minidream"):
        assert weights.provenance(name) == {"name": name, "licence": "unknown"}


def test_a_half_downloaded_snapshot_is_fetched_again(hub, saved):
    hub.repos[PINNED] = saved
    folder = weights.locate("sd21")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert not weights.is_here(WEIGHTS["sd21"])
    assert weights.locate("sd21") == folder
    assert weights.is_here(WEIGHTS["sd21"])


def test_nothing_to_be_had_is_one_line_that_names_everything(hub):
    with pytest.raises(ModelError) as caught:
        weights.locate("sd21")
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        *("2.6 GB", "CreativeML OpenRAIL++-M", f"{PINNED}@4e63672c: no such repository", f"{MIRROR}@0094d483"),
        *("the cache", "`psd-gs models pull sd21`", "--prior PATH", "--prior mini"),
    ):
        assert part in text
    with pytest.raises(ModelError, match=r"no weights for no/body .*no/body: no such repository"):
        load_prior("no/body")
    with pytest.raises(ModelError, match=r"accepting the licence at https://huggingface.co/stabilityai/"):
        weights.locate("sd3")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("[Errno -2] Name or service not known"), "no connection"),
        (huggingface_hub.errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (OSError(28, "No space left on device"), "No space left"),
        (ValueError("odd\nsecond line"), "odd"),
    ],
)
def test_why_a_repository_did_not_answer(hub, error, reason):
    hub.error = error
    with pytest.raises(ModelError) as caught:
        weights.locate("sd15")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_mode_asks_nobody(hub, monkeypatch, saved):
    hub.repos[PINNED] = saved
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        weights.locate("sd21")
    assert hub.fetched == []


@pytest.mark.parametrize("name", ["sd15000", "a/b/c", "../nowhere", "-x/y"])
def test_neither_name_nor_path(hub, name):
    with pytest.raises(ConfigError, match="expected mini, sd15, sd21, mvdream, imagedream, sdxl, sd3"):
        weights.locate(name)


def test_what_is_chosen_of_a_repository():
    listing = [
        *("model_index.json", "README.md", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", ".gitattributes"),
        *("unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"),
        *("unet/mv_unet.py", "unet/openvino_model.bin", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        *(
            "vae/diffusion_pytorch_model.non_ema.safetensors",
            "text_encoder/config.json",
            "text_encoder/pytorch_model.bin",
        ),
        *("text_encoder_3/model.safetensors.index.json", "text_encoder_3/model-00001-of-00002.safetensors"),
        *("text_encoder_3/model-00002-of-00002.safetensors", "text_encoder_3/model.fp16-00001-of-00002.safetensors"),
        *("text_encoder_3/model.fp16-00002-of-00002.safetensors", "text_encoder_3/model.safetensors.index.fp16.json"),
        *("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json", "tokenizer/vocab.json"),
        *("tokenizer/merges.txt", "tokenizer_3/spiece.model", "onnx/deep/model.bin", "pipeline.py"),
    ]
    assert weights.choose_files(listing) == sorted(
        [
            *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"),
            *("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json"),
            *("text_encoder/pytorch_model.bin", "text_encoder_3/model.fp16-00001-of-00002.safetensors"),
            "text_encoder_3/model.fp16-00002-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.fp16.json",
            *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_3/spiece.model"),
        ]
    )


def test_half_precision_variants_load(tmp_path, hub):
    """As published: fp16 files beside plain ones; only the fp16 ones are fetched, and what has none stays plain."""
    source = tmp_path / "source"
    tiny_models.sd().save_pretrained(source)
    tiny_models.sd().save_pretrained(source, variant="fp16")
    (source / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    hub.repos["a/b"] = source
    prior = load_prior("a/b", dtype="float16")
    folder = weights.locate("a/b")
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
    assert names == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert prior.dtype == torch.float16


# --- are they whole? -------------------------------------------------------------------------------------------------


def test_headers(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2, 3), "y": torch.zeros(4, dtype=torch.float16)}, file, {"format": "pt"})
    assert weights.read_header(file) == {"x": (2, 3), "y": (4,)}
    whole = file.read_bytes()
    for data, part in (
        (whole[:-5], rf"is truncated: expected {len(whole)} bytes, received {len(whole) - 5}"),
        (whole[:50], "expected a safetensors file, received 50 bytes"),
        (b"", "received 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "of something else"),
        ((5).to_bytes(8, "little") + b"[1,2]", "of something else"),
    ):
        file.write_bytes(data)
        with pytest.raises(ModelError, match=part):
            weights.read_header(file)


def test_the_first_five_keys_are_named():
    expected = {f"layer.{i}": (2,) for i in range(9)}
    with pytest.raises(ModelError) as caught:
        weights.compare_shapes(expected, {"layer.0": (3,), "other": (1,)}, "unet")
    assert str(caught.value) == (
        "unet: expected 9 tensors, received 2: 8 missing: layer.1, layer.2, layer.3, layer.4, layer.5, ...; "
        "1 unknown: other; 1 of another shape: layer.0 [3] instead of [2]. "
        "The weights are of another architecture; check which model this is."
    )
    weights.compare_shapes(expected, dict(expected), "unet")


def test_checksums_and_verification(tmp_path, hub, saved):
    hub.repos[PINNED] = saved
    folder = weights.locate("sd21")
    sums = weights.checksums(folder)
    assert set(sums) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    name = "unet/diffusion_pytorch_model.safetensors"
    assert sums[name] == hashlib.sha256((saved / name).read_bytes()).hexdigest()
    assert digests_of("sd21") == {f"sd21/{file}": digest for file, digest in sums.items()}
    assert digests_of("mini", "mini", "mini-judge") == {}
    assert len(weights.verify("sd21")) == 3, "tiny files are not those whose digests are known"
    assert weights.verify(str(saved)) == []
    with pytest.raises(ModelError, match="no weights for sd15"):
        weights.verify("sd15")


def test_the_caches_blobs_carry_their_digest(tmp_path):
    """Hugging Face's cache links ``snapshots/REV/file`` to ``blobs/SHA256``."""
    data = save_bytes(tmp_path)
    digest = hashlib.sha256(data).hexdigest()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(data)
    link = tmp_path / "snapshot" / "model.safetensors"
    link.parent.mkdir()
    try:
        link.symlink_to(blob)
    except OSError:
        pytest.xfail("this system has no links")
    assert weights.checksums(link.parent) == {"model.safetensors": digest}
    assert weights.verify(str(link.parent)) == []
    blob.write_bytes(data[:-1] + b"\x01")
    (problem,) = weights.verify(str(link.parent))
    assert "expected SHA-256" in problem


def save_bytes(folder: Path) -> bytes:
    save_file({"x": torch.zeros(3)}, folder / "x.safetensors")
    return (folder / "x.safetensors").read_bytes()


# --- auto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gigabytes", "name", "why"),
    [
        (141, "mvdream", "141 GB"),
        (10, "mvdream", "10 GB"),
        (8.2, "mini", "the GPU has 8 GB .* `--prior mvdream --vram 8` should fit"),
        (6, "mini", "the GPU has 6 GB .* `--prior mvdream --vram 8` should fit"),
        (4, "mini", "the GPU has 4 GB and mvdream with its reward takes 10$"),
    ],
)
def test_auto_on_a_gpu(monkeypatch, gigabytes, name, why):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(pipeline.torch.cuda, "get_device_properties", lambda device: properties)
    found, reason = choose_prior(torch.device("cuda"))
    assert found == name
    assert re.search(why, reason)
    rest = ("hpsv2.1", "pickscore") if name == "mvdream" else ("mini", "mini-judge")
    assert resolve("auto", "auto", "auto", torch.device("cuda")) == (name, *rest)


@pytest.mark.parametrize(
    ("gigabytes", "prior", "vram", "says"),
    [
        (24, "sd3", 0, ""),
        (10, "mvdream", 0, ""),
        (6, "mvdream", 0, "mvdream takes 6.3 GB and up to half of that again, the GPU has 6 GB; with --vram 8 3.6"),
        (6, "mvdream", 8, ""),
        (4, "mvdream", 8, "mvdream takes 3.6 GB .* the GPU has 4 GB; --prior mini fits anywhere"),
        (2, "mini", 0, ""),
    ],
)
def test_a_gpu_that_is_too_small_is_said_beforehand(monkeypatch, gigabytes, prior, vram, says):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    config = Config(prior=prior, vram=vram)
    assert re.fullmatch(says, shortage(config, torch.device("cuda")))
    assert [shortage(config, torch.device(kind)) for kind in ("cpu", "mps")] == ["", ""]


def test_auto_without_a_gpu():
    assert choose_prior(torch.device("cpu")) == ("mini", "without a CUDA GPU")
    assert resolve("sd15", "auto", "auto") == ("sd15", "hpsv2.1", "pickscore")


def test_what_has_to_be_downloaded(hub, saved):
    assert downloads("mini", "mini", "mini-judge") == []
    assert [entry.name for entry in downloads("sd21", "mini", "mini-judge")] == ["sd21"]
    hub.repos[PINNED] = saved
    weights.locate("sd21")
    assert downloads("sd21", "mini") == []


# --- the published configurations, on the meta device ----------------------------------------------------------------


def file_size(tensors: dict[str, torch.Tensor], bytes_each: int, metadata: dict[str, str] | None) -> int:
    """Of a safetensors file: 8 bytes, the JSON header padded to 8, the data; widest types first, then by name."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    kind = {2: "F16", 4: "F32"}[bytes_each]
    offset = 0
    for name in sorted(tensors):
        length = bytes_each * tensors[name].numel()
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset


SD = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD15 = SD | {"attention_head_dim": 8, "cross_attention_dim": 768}
SD21 = SD | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
FORMAT = {"format": "pt"}


@pytest.mark.parametrize(
    ("make", "tensors", "published", "tolerance", "old_vae"),
    [
        (lambda: UNet2DConditionModel(**SD15), 686, (4, 3_438_167_540), 8, False),
        (lambda: UNet2DConditionModel(**SD21), 686, (4, 3_463_726_498), 8, False),
        (lambda: UNet2DConditionModel(**SDXL), 1680, (2, 5_135_149_760), 0, False),
        (lambda: AutoencoderKL(**VAE), 248, (4, 334_643_276), 8, True),
        (lambda: UNet2DConditionModel(**unet_config(SD21_4VIEW)), 690, (2, 1_735_228_080), 0, False),
    ],
    ids=["sd15", "sd21", "sdxl", "vae", "mvdream"],
)
def test_file_sizes_are_the_published_ones(make, tensors, published, tolerance, old_vae):
    """A renamed, added or reshaped tensor would change the size; those of 2022 were written without padding."""
    with torch.device("meta"):
        state = make().state_dict()
    assert len(state) == tensors
    if old_vae:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, before in old.items():
            state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): t for name, t in state.items()}
    width, size = published
    assert abs(file_size(state, width, FORMAT) - size) <= tolerance


def test_original_names_of_mvdream_predict_its_files_size():
    """The figure that the published half-precision file has to have; unchecked, for no copy could be measured."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(SD21_4VIEW))
    names = original_names(unet)
    assert file_size({names[n]: t for n, t in unet.state_dict().items()}, 2, FORMAT) == 1_735_224_544


def test_text_encoders_and_sd3_have_the_published_numbers():
    with torch.device("meta"):
        text = CLIPTextConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
        )
        sd21 = CLIPTextModel(text)
        two = CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
        second = CLIPTextModelWithProjection(two)
        large = SD3Transformer2DModel(
            num_layers=38,
            num_attention_heads=38,
            joint_attention_dim=4096,
            caption_projection_dim=2432,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        )
    assert sum(p.numel() for p in sd21.parameters()) == 340_387_840  # 1 361 MB in float32 with position_ids
    assert len(second.state_dict()) == 517
    assert len(large.state_dict()) == 1227
    assert sum(2 * t.numel() for t in large.state_dict().values()) == 16_292_561_536  # its index's total_size


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(hub, monkeypatch, capsys):
    """Calls the program in this process, without a network: ``(exit code, stdout, stderr)``."""
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_doctor(command):
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for what in ("python", "torch", "disk", "hub", "weights", "renderer", "prior"):
        assert any(f" {what}: " in line for line in lines), what
    assert "HF_HUB_OFFLINE is set" in out
    if not torch.cuda.is_available():
        assert "auto is prior mini, reward mini, judge mini-judge: without a CUDA GPU" in out


def test_models_commands(command, saved):
    code, listed, _ = command("models", "list")
    assert code == 0
    names = {line.split()[0] for line in listed.splitlines()[1:]}
    assert names == {"mini", *WEIGHTS}
    assert set(PRIORS) <= names
    for arguments, part in (
        (("pull", "sd21"), f"{MIRROR}@0094d483: HF_HUB_OFFLINE is set"),
        (("pull",), "expected the name of a model"),
        (("pull", "nope"), "unknown model 'nope'"),
        (("verify", "sd15"), "no weights for sd15"),
    ):
        code, _, error = command("models", *arguments)
        assert code == 1
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert part in error
    assert command("models", "verify", str(saved)) == (0, f"{saved}: whole\n", "")


def test_a_real_process_hears_that_it_is_offline(tmp_path):
    done = psd_gs("models", "pull", "sd21", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"{MIRROR}@0094d483: HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize(
    ("nvcc", "torch_cuda", "state", "says"),
    [
        ("13.0", "13.0", "ok", "13.0, as torch"),
        ("13.2", "13.0", "ok", "13.2, torch was built for 13.0; the same major version is enough"),
        ("12.8", "13.0", "note", "12.8, but torch was built for 13.0; gsplat needs 13.x"),
        (None, "13.0", "note", "not found"),
        (None, "12.8", "note", "not found"),
    ],
)
def test_doctor_compares_nvcc_with_torch(monkeypatch, nvcc, torch_cuda, state, says):
    from psd_gs.cli import doctor
    from psd_gs.render import gsplat

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(gsplat, "is_built", lambda: False)
    answer = f"Cuda compilation tools, release {nvcc}, V{nvcc}.48" if nvcc else None
    monkeypatch.setattr(doctor, "_output", lambda command: answer)
    found = {finding.what: finding for finding in doctor.build_tools()}
    assert found["nvcc"].state == state
    assert found["nvcc"].text.startswith(says)
    # NVIDIA's wheels hold nvcc since CUDA 13.
    assert ("cuda-toolkit[nvcc,cccl,cudart]==13.0.*" in found["nvcc"].remedy) == (state == "note" and torch_cuda > "13")
    assert (f"CUDA toolkit {torch_cuda}" in found["nvcc"].remedy) == (state == "note")
    assert not any(finding.state == "problem" for finding in found.values())


def test_doctor_says_what_draws_and_drives(monkeypatch):
    from psd_gs.cli import doctor
    from psd_gs.render import choose

    choose.choose_renderer.cache_clear()
    trouble = {"cuda": "Failed to find C compiler", "xpu": ""}
    monkeypatch.setattr(choose, "trouble_with_triton", lambda device: trouble[device.type])
    monkeypatch.setattr(choose, "trouble_with_gsplat", lambda device: "no gsplat")
    monkeypatch.setattr("psd_gs.models.count", lambda kind: int(kind == "xpu"))
    intel = next(iter(doctor.torch_and_gpu()))
    assert (intel.what, intel.state) == ("xpu", "note")
    assert "beside renderer triton (no gsplat)" in intel.text
    monkeypatch.setattr("psd_gs.models.count", lambda kind: int(kind == "cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=6e9))
    drawn = next(iter(doctor.choices()))
    assert (drawn.state, drawn.text) == ("note", "auto is cpu on cpu: no gsplat; Failed to find C compiler")
    assert "apt install gcc python3-dev" in drawn.remedy
    choose.choose_renderer.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = SimpleNamespace(name="Radeon", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = [(finding.what, finding.text) for finding in doctor.torch_and_gpu()]
    assert found == [("torch", f"{torch.__version__}, ROCm 6.4"), ("cuda:0", "Radeon, 24 GB")]


def test_doctor_asks_for_no_compiler_where_gsplat_is_built(monkeypatch):
    from psd_gs.cli import doctor
    from psd_gs.render import gsplat

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gsplat, "is_built", lambda: True)
    assert [finding.what for finding in doctor.build_tools()] == ["gsplat"]
