"""The whole job as a Python API: a sentence in, Gaussians, a mesh and scores out.

from psd_gs import TextTo3DPipeline

result = TextTo3DPipeline.from_pretrained("mini")("a corgi", seed=0)
result.save("outputs/corgi")
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psd_gs import __version__, runs, weights
from psd_gs.cameras import Cameras, turntable
from psd_gs.config import Config, make_config, suggestion, to_dict
from psd_gs.errors import BackendError, ConfigError, InputError
from psd_gs.files import writing
from psd_gs.gaussians import Gaussians, from_points, random_ball
from psd_gs.guidance.guide import Guidance
from psd_gs.priors import FAMILY, NAMES, DType, TextEmbedding, load_prior
from psd_gs.priors.base import Prior
from psd_gs.published import WEIGHTS, Weights
from psd_gs.render import render
from psd_gs.rewards import check_judge, load_reward, local_copies, names_of, needed
from psd_gs.rewards.base import Reward, group_score
from psd_gs.trainer import StepEvent, Trainer, read_tensors, stream_seeds, write_tensors

logger = logging.getLogger(__name__)

MAX_PROMPT = 500
"""Characters."""

COMPANIONS = dict.fromkeys(NAMES, ("hpsv2.1", "pickscore")) | {"mini": ("mini", "mini-judge")}
"""What ``--reward auto`` and ``--judge auto`` mean for each prior: two models, so that one is never optimized."""

AUTO_MEMORY = 16
"""GPU memory in GB with which ``--prior auto`` is mvdream."""


@dataclass
class Result:
    """A finished asset.

    Attributes:
        gaussians: the asset, world frame (+Y up, the front faces +Z).
        config: everything that decided the run.
        scores: mean score over eight evaluation views by model name: the reward that was optimized and
            the judge that was not.
        negative: the refined negative embedding.
        logs: of the last step.
        steps_done: optimization steps; fewer than the configuration's if the run was stopped and kept.
    """

    gaussians: Gaussians
    config: Config
    scores: dict[str, float]
    negative: TextEmbedding
    logs: dict[str, float] = field(default_factory=dict)
    steps_done: int | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into every file: prompt, seed, options, models with their licences, scores."""
        return {
            "schema": 1,
            "psd_gs_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "prompt": self.config.prompt,
            "seed": self.config.seed,
            "preset": self.config.preset,
            "steps": self.config.steps,
            "steps_done": self.config.steps if self.steps_done is None else self.steps_done,
            "config_sha256": config_sha256(self.config),
            "prior": self.config.prior,
            "reward": self.config.reward,
            "judge": self.config.judge,
            "models": models_of(self.config),
            "scores": {name: round(score, 4) for name, score in self.scores.items()},
            "n_splats": len(self.gaussians),
            "sh_degree": self.gaussians.sh_degree,
            "ai_generated": True,
        }

    def save(self, folder: str | Path, on_file: Callable[[str], None] = lambda name: None) -> Path:
        """Write ``preview.png``, ``turntable.mp4``, ``mesh.glb``, ``negative.safetensors``, ``config.yaml``,
        ``psd_gs.json``, ``report.html`` and ``splat.ply``, each replaced in one step; no mesh if nothing is opaque.
        If the run was watched there, ``progress.png`` too.

        Args:
            folder: created if it is missing.
            on_file: called with the name of each file before it is made.

        Raises:
            OutputError: the folder cannot be written.
        """
        from psd_gs.export.pictures import preview_png, progress_strip, turntable_video
        from psd_gs.export.ply import write_ply
        from psd_gs.mesh.extract import extract_mesh
        from psd_gs.mesh.glb import write_glb
        from psd_gs.run_report import write_report

        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        metadata, asset = self.metadata, self.gaussians
        runs.write_yaml(folder / "config.yaml", to_dict(self.config))
        negative = {"sequence": self.negative.sequence, "pooled": self.negative.pooled}
        write_tensors(
            folder / "negative.safetensors",
            {name: tensor for name, tensor in negative.items() if tensor is not None},
            {"prior": self.config.prior},
        )
        on_file("preview.png")
        preview_png(asset, folder / "preview.png", metadata=metadata)
        on_file("turntable.mp4")
        turntable_video(asset, folder / "turntable.mp4", metadata=metadata)
        if frames := runs.progress_frames(folder, self.metadata["steps_done"]):
            progress_strip(frames, folder / "progress.png")
        on_file("mesh.glb")
        try:
            write_glb(extract_mesh(asset), folder / "mesh.glb", metadata=metadata)
        except InputError as error:  # a cloud without a surface is an asset still
            logger.warning("no mesh.glb: %s", error)
        runs.write_json(folder / "psd_gs.json", metadata)
        on_file("report.html")
        write_report(folder)
        on_file(runs.DONE)
        write_ply(asset, folder / runs.DONE, metadata=metadata)  # last: it marks the run as finished
        return folder


class TextTo3DPipeline:
    """Text to 3D Gaussians under score distillation with preferences.

    Args:
        prior: the diffusion model that is distilled.
        reward: ranks win and lose noises; None if only preference "none" will be used.
        judge: scores the result and is never optimized.
        digests: SHA-256 of the files that they were loaded from, for the record.
    """

    def __init__(
        self,
        prior: Prior,
        reward: Reward | None = None,
        judge: Reward | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.prior, self.reward, self.judge, self.digests = prior, reward, judge, dict(digests or {})

    @classmethod
    def from_pretrained(
        cls,
        prior: str = "auto",
        *,
        reward: str = "auto",
        judge: str = "auto",
        device: str = "auto",
        dtype: DType = "auto",
        vram: int = 0,
        prior_size: int = 0,
    ) -> TextTo3DPipeline:
        """Load the models by name, downloading what is not in the cache.

        Args:
            prior: a name, a hub id or a folder, see :func:`psd_gs.priors.load_prior`; auto is :func:`choose_prior`.
            reward: a reward's name; auto is the one that belongs to the prior.
            judge: a reward's name; auto is the one that belongs to the prior.
            device: ``cpu``, ``cuda`` or ``cuda:N``; auto is CUDA where there is one.
            dtype: of the prior's weights.
            vram: GPU memory to fit into, GB: 8, 12 or 24; 0 is as much as there is.
            prior_size: side of the images that the prior sees, pixels; 0 is what it was trained for.

        Raises:
            BackendError: a device that is not there.
            ConfigError: unknown names.
            ModelError: weights that cannot be had, or damaged files.
        """
        where = resolve_device(device)
        prior, reward, judge = resolve(prior, reward, judge, where)
        model = load_prior(prior, where, dtype=dtype, vram=vram, image_size=prior_size)
        return cls(model, load_reward(reward, where), load_reward(judge, where), digests_of(prior, reward, judge))

    def __call__(
        self,
        prompt: str,
        *,
        seed: int = 0,
        preset: str = "default",
        steps: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        on_step: Callable[[StepEvent], None] = lambda event: None,
    ) -> Result:
        """Make one asset in memory.

        Args:
            prompt: what it is.
            seed: of everything random.
            preset: draft, default or quality.
            steps: instead of the preset's.
            overrides: nested options, as in a ``--config`` file.
            on_step: called after each step.
        """
        names: dict[str, Any] = {"prompt": prompt, "seed": seed} | ({} if steps is None else {"steps": steps})
        trainer = self.trainer(self.config(preset, overrides or {}, names))
        for event in trainer.run():
            on_step(event)
        return self.result(trainer)

    def config(
        self,
        preset: str,
        *overrides: Mapping[str, Any],
        weights: Mapping[str, str] | None = None,
        where: str = "config",
    ) -> Config:
        """A complete configuration: preset, ``overrides`` in order, and the models of this pipeline.

        Args:
            preset: draft, default or quality.
            overrides: nested options; what they say of the models does not count.
            weights: SHA-256 of the files that decide the run; None: :attr:`digests`.
            where: the options come from, for errors.

        Raises:
            ConfigError: an unknown preset, key or value.
        """
        models = {
            "prior": self.prior.name,
            "device": str(self.prior.device),
            "reward": self.reward.name if self.reward else "none",
            "judge": self.judge.name if self.judge else "none",
            "weights": self.digests if weights is None else weights,
        }
        family = FAMILY.get(self.prior.name) or str(getattr(self.prior, "family", "mini"))
        return make_config(preset, family, *overrides, models, where=where)

    def trainer(self, config: Config, folder: Path | None = None) -> Trainer:
        """The optimization of ``config``, ready to run; with a ``folder`` it can be resumed.

        Raises:
            InputError: an unusable prompt or file.
        """
        check_prompt_text(config.prompt)
        seeds = stream_seeds(config.seed)
        negative = read_negative(config.negative_embedding) if config.negative_embedding else None
        guidance = Guidance(
            self.prior, config.prompt, config.guidance, reward=self.reward, negative=negative, seed=seeds["guidance"]
        )
        start = initial_gaussians(config, torch.Generator().manual_seed(seeds["init"]), self.prior.device)
        trainer = Trainer(config, guidance, start.to(self.prior.device), folder)
        trainer.observe = self._observer(config.prompt, folder) if folder else None
        return trainer

    def _observer(self, prompt: str, folder: Path) -> Callable[[int, Gaussians], dict[str, float]]:
        """Keeps a picture of the asset while it is made, and lets the log know what reward and judge say of it."""
        from psd_gs.export.pictures import picture_png

        models = [model for model in (self.reward, self.judge) if model is not None]

        def observe(step: int, asset: Gaussians) -> dict[str, float]:
            path = runs.progress_frame(folder, step)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            picture_png(asset, path)
            return {f"score_{model.name}": score_asset(asset, prompt, model) for model in models}

        return observe

    def result(self, trainer: Trainer) -> Result:
        """The finished asset of a trainer, scored."""
        asset = trainer.finish()
        if not len(asset):
            raise InputError(
                "the finished asset is empty: every Gaussian became transparent. "
                "Try another --seed or a plainer prompt."
            )
        given = [model for model in (self.reward, self.judge) if model is not None]
        parts = [part.reward for model in given for part in getattr(model, "parts", ())]  # of weighted sums
        models = {model.name: model for model in (*given, *parts)}
        scores = {name: score_asset(asset, trainer.config.prompt, model) for name, model in models.items()}
        return Result(asset, trainer.config, scores, trainer.guidance.negative.embedding, steps_done=trainer.step)


def config_sha256(config: Config) -> str:
    """Names everything that decides a run: equal runs have equal ones."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def models_of(config: Config) -> dict[str, list[dict[str, str]]]:
    """Models by what they were for, each with its licence, repository and revision."""
    names = {"prior": [config.prior]}
    names |= {role: names_of(name) for role in ("reward", "judge") if (name := getattr(config, role)) != "none"}
    names |= {"init": ["shap-e"]} if config.init.source == "shap-e" else {}
    return {role: [weights.provenance(name) for name in some] for role, some in names.items()}


def choose_prior(device: torch.device) -> tuple[str, str]:
    """What ``--prior auto`` means on a device, and why."""
    if device.type != "cuda":
        return "mini", "without a CUDA GPU"
    total = torch.cuda.get_device_properties(device).total_memory / 1e9
    if total < AUTO_MEMORY:
        smaller = max((size for size in (8, 12) if size <= total), default=0)
        hint = f"; `--prior mvdream --vram {smaller}` should fit" if smaller else ""
        return "mini", f"the GPU has {total:.0f} GB and mvdream with its reward takes {AUTO_MEMORY}{hint}"
    return "mvdream", f"the GPU has {total:.0f} GB"


def published(prior: str, *rewards: str) -> list[str]:
    """What a run loads besides the embedded models: published names, a hub id or a folder."""
    names = ([] if prior == "mini" else [prior]) + [name for reward in rewards for name in needed(reward)]
    return list(dict.fromkeys(names))


def downloads(prior: str, *rewards: str) -> list[Weights]:
    """Which published weights are not on this machine yet."""
    entries = [WEIGHTS[name] for name in published(prior, *rewards) if name in WEIGHTS]
    return [entry for entry in entries if not weights.is_here(entry)]


def digests_of(prior: str, *rewards: str) -> dict[str, str]:
    """SHA-256 of every file of weights that was fetched or named; the embedded ones belong to the version."""
    paths = {name: weights.locate(name) for name in published(prior, *rewards)}
    for reward in rewards:
        paths |= local_copies(reward)
    return {
        f"{name}/{file}": digest for name, path in paths.items() for file, digest in weights.checksums(path).items()
    }


def resolve(prior: str, reward: str, judge: str, device: torch.device | None = None) -> tuple[str, str, str]:
    """``auto`` to names; the three belong together.

    Raises:
        ConfigError: the judge is a model that is optimized.
    """
    prior = choose_prior(device or torch.device("cpu"))[0] if prior == "auto" else prior
    companions = COMPANIONS.get(prior, COMPANIONS["mini"])
    reward = companions[0] if reward == "auto" else reward
    if judge == "auto":
        judge = next((name for name in reversed(companions) if name not in names_of(reward)), companions[1])
    check_judge(reward, judge)
    return prior, reward, judge


def resolve_device(name: str) -> torch.device:
    """``auto`` to CUDA where there is one, else the CPU.

    Raises:
        BackendError: CUDA was asked for and is not there.
        ConfigError: not a device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise ConfigError(f"unknown device {name!r}.{suggestion(name, ('auto', 'cpu', 'cuda', 'cuda:0'))}")
    if name != "cpu" and (not torch.cuda.is_available() or int(match[1] or 0) >= torch.cuda.device_count()):
        raise BackendError(
            f"device {name} is not available: this torch ({torch.__version__}) sees {torch.cuda.device_count()} CUDA "
            "devices. Leave --device out to run on the CPU, or install a CUDA build of torch and the NVIDIA driver."
        )
    return torch.device(name)


def check_prompt_text(prompt: str) -> None:
    """Refuse what cannot be a prompt.

    Raises:
        InputError: empty, without any letter, not Unicode, or longer than :data:`MAX_PROMPT` characters.
    """
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise InputError(f"expected a prompt in UTF-8, received {prompt!a}. Check the terminal's encoding.")
    if not any(c.isalpha() for c in prompt):
        raise InputError(f'expected a prompt in words, such as "a corgi", received {prompt!r}.')
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"expected a prompt of at most {MAX_PROMPT} characters, received {len(prompt)}. Shorten it.")


def initial_gaussians(
    config: Config,
    generator: torch.Generator,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Gaussians:
    """The Gaussians before the first step: a ball, a splat file, points of a cloud or mesh, or of a Shap-E sample.

    Args:
        config: prompt and options.
        generator: source of randomness, on the CPU.
        device: where Shap-E runs.

    Raises:
        FormatError: a damaged or foreign file.
        InputError: the file cannot be opened.
    """
    init = config.init
    if init.source == "ball":
        return random_ball(init.count, init.radius, scale=init.scale, opacity=init.opacity, generator=generator)
    from psd_gs.export.ply import is_gaussian_ply, read_ply
    from psd_gs.mesh.points import read_points

    if init.source == "shap-e":
        points, rgb = shap_e_points(config.prompt, init.count, generator, device)
        return from_points(points, rgb, scale=init.scale, opacity=init.opacity)
    if init.source.lower().endswith(".ply") and is_gaussian_ply(init.source):
        asset = read_ply(init.source)
        return replace(asset, shN=asset.shN[:, :0])
    points, rgb = read_points(init.source, init.count, generator)
    return from_points(points, rgb, scale=init.scale, opacity=init.opacity)


def shap_e_points(prompt: str, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points and colours on the surface of a Shap-E sample, which is forgotten with its networks."""
    import tempfile

    import trimesh

    from psd_gs.colours import linear_to_srgb
    from psd_gs.mesh.points import read_points
    from psd_gs.priors.shap_e import load_shap_e, text_to_mesh

    vertices, faces, linear = text_to_mesh(load_shap_e(weights.locate("shap-e"), device), prompt, generator)
    colours = (255 * linear_to_srgb(linear.numpy())).round().astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shap-e.ply"
        trimesh.Trimesh(vertices.numpy(), faces, vertex_colors=colours, process=False).export(file)
        return read_points(file, count, generator)


def read_negative(path: str) -> TextEmbedding:
    """A negative embedding that a run saved.

    Raises:
        FormatError: another kind of file.
    """
    tensors = read_tensors(Path(path))
    if "sequence" not in tensors:
        raise InputError(
            f"{path}: expected a negative embedding (negative.safetensors of a run), received {sorted(tensors)}."
        )
    return TextEmbedding(tensors["sequence"], tensors.get("pooled"))


def evaluation_cameras(size: int = 128) -> Cameras:
    """Eight views, as two sets of four orthogonal ones: from 15 degrees above, and 45 degrees on from 30 above."""
    low = turntable(4, elevation=15.0, radius=0.69, size=size)
    high = turntable(4, elevation=30.0, radius=0.69, size=size, start=45.0)
    return Cameras(torch.cat([low.viewmats, high.viewmats]), torch.cat([low.Ks, high.Ks]), size, size)


@torch.no_grad()
def evaluation_images(asset: Gaussians, size: int = 128) -> Tensor:
    """``[2, 4, 3, H, W]``: the views of :func:`evaluation_cameras` on white, sRGB in [0, 1]."""
    cameras = evaluation_cameras(size).to(asset.device)
    rgb = render(asset, cameras, torch.ones(3, device=asset.device)).rgb.clamp(0, 1)
    return rgb.permute(0, 3, 1, 2).unflatten(0, (2, 4))


@torch.no_grad()
def score_asset(asset: Gaussians, prompt: str, model: Reward) -> float:
    """Mean score over the evaluation views."""
    images = evaluation_images(asset)
    cameras = evaluation_cameras().to(asset.device)
    return float(group_score(model.score(images, [prompt] * len(images), cameras)).mean())
