"""Everything that can be named on the command line: one line per prior, reward, base score and preference.

Data only, so that names can be listed and checked without loading anything: what an entry stands for is imported when
it is used. Splat formats have their table in :mod:`psd_gs.export.formats`. Installed packages add entries of their own,
see ``docs/guide/extending.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psd_gs.plugins import Registry
from psd_gs.published import EMBEDDED, WEIGHTS, Weights

Target = str | Callable[..., Any]
"""A function or class, or where it is: ``module:attribute``."""


@dataclass(frozen=True)
class PriorEntry:
    """A diffusion prior.

    Attributes:
        load: ``load(folder, *, name, device, dtype, memory, image_size) -> Prior``. ``folder`` holds the weights, None
            if there are none; ``dtype`` is None where the fastest is wanted; ``memory`` is a
            :class:`psd_gs.priors.memory.Memory`; ``image_size`` is in pixels, 0 for what the model was trained for.
        family: section of the presets that it reads.
        reward: what ``--reward auto`` stands for.
        judge: what ``--judge auto`` stands for; another model, so that one is never optimized.
        memory: GPU memory in GB that its networks take in half precision.
        peaks: most GPU memory in GB that the tensors of a run take, as it is and with ``--vram 8``, by
            ``tools/bench/memory.py``; 0 where nobody has computed it.
        weights: what is fetched; None if it brings its own.
        pictured: whether it looks at a picture, without which it makes nothing; then no prompt is needed.
        presets: options over those of the family, by preset; ``common`` holds for all.
    """

    load: Target
    family: str
    reward: str = "hpsv2.1"
    judge: str = "pickscore"
    memory: float = 0.0
    peaks: tuple[float, float] = (0.0, 0.0)
    weights: Weights | None = None
    pictured: bool = False
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def companions(self) -> tuple[str, str]:
        """Reward and judge that belong to it."""
        return self.reward, self.judge


@dataclass(frozen=True)
class RewardEntry:
    """A judge of images.

    Attributes:
        load: ``load(path, *, name, device, dtype, **parts, **options) -> Reward``, with a path per part. ``path`` is of
            the weights, None if there are none; ``dtype`` is None where the reward may choose.
        mean: typical score of a render, which sums subtract.
        std: typical standard deviation of its scores at one prompt, which sums divide by.
        memory: GPU memory in GB that its networks take in half precision.
        weights: what is fetched; None if it brings its own, or no hub has them.
        parts: what is fetched besides: argument to a name in ``psd_gs.published``.
        options: further arguments.
        source: where the weights are, if no hub has them.
    """

    load: Target
    mean: float = 0.0
    std: float = 1.0
    memory: float = 0.0
    weights: Weights | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class PreferenceEntry:
    """A preference score.

    Attributes:
        preference: a subclass of :class:`psd_gs.guidance.preference.Preference`.
        options: a frozen dataclass with defaults, the section of ``guidance`` that has the preference's name; None for
            those with a field in :class:`psd_gs.config.GuidanceConfig`, or without options.
    """

    preference: Target
    options: type | None = None


_FROM_FOLDER = "psd_gs.priors.folder:load"
PRIORS = Registry(
    "prior",
    PriorEntry,
    "psd_gs.priors",
    {
        "mini": PriorEntry("psd_gs.priors.mini:load", "mini", "mini", "mini-judge"),
        "sd15": PriorEntry(_FROM_FOLDER, "sd", memory=2.5, peaks=(6.3, 2.9), weights=WEIGHTS["sd15"]),
        "sd21": PriorEntry(_FROM_FOLDER, "sd", memory=2.5, peaks=(6.3, 2.9), weights=WEIGHTS["sd21"]),
        "mvdream": PriorEntry(_FROM_FOLDER, "mvdream", memory=3.0, peaks=(6.3, 3.6), weights=WEIGHTS["mvdream"]),
        "imagedream": PriorEntry(
            _FROM_FOLDER, "imagedream", memory=3.2, peaks=(6.5, 3.8), weights=WEIGHTS["imagedream"], pictured=True
        ),
        "sdxl": PriorEntry(_FROM_FOLDER, "sdxl", memory=8.0, peaks=(10.2, 6.7), weights=WEIGHTS["sdxl"]),
        "sd3": PriorEntry(_FROM_FOLDER, "sd3", memory=11.0, peaks=(10.0, 5.8), weights=WEIGHTS["sd3"]),
    },
)
FAMILIES = tuple(dict.fromkeys(entry.family for entry in PRIORS.own.values()))
"""Sections of the presets in ``configs/``."""
PUBLISHED = tuple(dict.fromkeys(entry.family for entry in PRIORS.own.values() if entry.weights))
"""Those that share the section ``published``."""

_MINI, _CLIP, _BLIP, _LAION = (f"psd_gs.rewards.{name}" for name in ("mini", "clip", "blip", "aesthetic"))
_WORDS, _BERT = {"tokenizer": "clip-tokenizer"}, {"tokenizer": "bert-tokenizer"}
REWARDS = Registry(
    "reward",
    RewardEntry,
    "psd_gs.rewards",
    {
        **{name: RewardEntry(f"{_MINI}:load_embedded", options={"part": part}) for name, part in EMBEDDED.items()},
        "clip": RewardEntry(f"{_CLIP}:load_clip_reward", 0.26, 0.03, 0.9, WEIGHTS["clip"], _WORDS),
        "hpsv1": RewardEntry(
            f"{_CLIP}:load_hps_v1",
            *(0.20, 0.01, 0.9),
            parts=_WORDS,
            source="hpc.pth, linked at https://github.com/tgxs002/align_sd",
        ),
        "hpsv2": RewardEntry(
            f"{_CLIP}:load_hps_v2", 0.26, 0.01, 2.1, WEIGHTS["hpsv2"], _WORDS, {"files": ("HPS_v2_compressed.pt",)}
        ),
        "hpsv2.1": RewardEntry(f"{_CLIP}:load_hps_v2", 0.25, 0.02, 2.1, WEIGHTS["hpsv2.1"], _WORDS),
        "pickscore": RewardEntry(f"{_CLIP}:load_pickscore", 20.0, 1.0, 2.1, WEIGHTS["pickscore"], _WORDS),
        "imagereward": RewardEntry(f"{_BLIP}:load_blip_reward", 0.0, 1.0, 1.0, WEIGHTS["imagereward"], _BERT),
        "reward3d": RewardEntry(
            f"{_BLIP}:load_blip_reward", 0.0, 1.0, 1.0, WEIGHTS["reward3d"], _BERT, {"head": "scorer"}
        ),
        "reward3d-fusion": RewardEntry(
            f"{_BLIP}:load_blip_reward", 0.0, 0.2, 1.0, WEIGHTS["reward3d-fusion"], _BERT, {"head": "fusion"}
        ),
        "aesthetic": RewardEntry(f"{_LAION}:load_aesthetic", 5.5, 0.5, 0.9, WEIGHTS["aesthetic"], {"clip": "clip"}),
        "aesthetic-linear": RewardEntry(
            f"{_LAION}:load_aesthetic",
            *(5.0, 0.5, 0.9),
            parts={"clip": "clip"},
            options={"files": ("sa_0_4_vit_l_14_linear.pth",)},
            source="sa_0_4_vit_l_14_linear.pth of https://github.com/LAION-AI/aesthetic-predictor",
        ),
    },
)
"""Means and deviations are read off published ranges of scores: they set units, not ranks."""

METHODS: Mapping[str, str] = {
    "sds": "psd_gs.guidance.base_scores:SDS",
    "recon": "psd_gs.guidance.base_scores:RECON",
    "csd": "psd_gs.guidance.base_scores:CSD",
    "vsd": "psd_gs.guidance.vsd:VSD",
    "ism": "psd_gs.guidance.ism:ISM",
    "nfsd": "psd_gs.guidance.base_scores:NFSD",
    "asd": "psd_gs.guidance.base_scores:ASD",
}
"""Base scores, each a :class:`psd_gs.guidance.base_scores.BaseScore`."""

PREFERENCES = Registry(
    "preference",
    PreferenceEntry,
    "psd_gs.preferences",
    {
        "none": PreferenceEntry("psd_gs.guidance.preference:NoPreference"),
        "psd": PreferenceEntry("psd_gs.guidance.psd:PSD"),
        "dreamdpo": PreferenceEntry("psd_gs.guidance.dreamdpo:DreamDPO"),
        "rewardsds": PreferenceEntry("psd_gs.guidance.rewardsds:RewardSDS"),
        "dreamfl": PreferenceEntry("psd_gs.guidance.dreamfl:DreamFL"),
    },
)
