"""The whole job as a Python API: a sentence in, Gaussians, a mesh and scores out.

from psd_gs import TextTo3DPipeline

result = TextTo3DPipeline.from_pretrained("mini")("a corgi", seed=0)
result.save("outputs/corgi")
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psd_gs import __version__, runs
from psd_gs.config import (
    STRENGTH,
    Config,
    check_prompt_text,
    config_sha256,
    make_config,
    read_config,
    to_dict,
)
from psd_gs.errors import InputError
from psd_gs.files import writing
from psd_gs.gaussians import Gaussians
from psd_gs.guidance.guide import Guidance
from psd_gs.models import digests_of, models_of, resolve, resolve_device
from psd_gs.priors import DType, TextEmbedding, family_of, load_prior
from psd_gs.priors.base import Prior
from psd_gs.refine import Original, Refinement, task
from psd_gs.refined import facts, products
from psd_gs.render import choose_renderer, renderer_device
from psd_gs.rewards import load_reward, refuse_code
from psd_gs.rewards.base import Reward
from psd_gs.scoring import rounded, score_asset
from psd_gs.start import initial_gaussians, read_negative
from psd_gs.trainer import StepEvent, Trainer, read_tensors, stream_seeds, write_tensors

logger = logging.getLogger(__name__)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
        created: when, ISO 8601 in UTC.
        failed: what could not be made of it, by name, and why.
        rows: of a refined asset: which Gaussian of the original each one was, -1 for new ones.
        refined: of a refined asset: what changed, see :func:`psd_gs.refined.facts`.
    """

    gaussians: Gaussians
    config: Config
    scores: dict[str, float]
    negative: TextEmbedding
    logs: dict[str, float] = field(default_factory=dict)
    steps_done: int | None = None
    created: str = field(default_factory=_now)
    failed: dict[str, str] = field(default_factory=dict)
    rows: Tensor | None = None
    refined: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into every file: prompt, seed, options, models with their licences, scores."""
        return {
            "schema": 1,
            "psd_gs_version": __version__,
            "created": self.created,
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
            "scores": rounded(self.scores),
            "n_splats": len(self.gaussians),
            "sh_degree": self.gaussians.sh_degree,
            "ai_generated": True,
            **({"refined": self.refined} if self.refined else {}),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """What :meth:`save` wrote, from its files.

        Raises:
            InputError: not the folder of a finished run, or a damaged file in it.
        """
        from psd_gs.export.ply import read_ply

        folder = Path(folder)
        if not runs.is_finished(folder):
            raise InputError(f"{folder}: expected the folder of a finished run, with {runs.ASSET} and {runs.RECORD}.")
        record = runs.read_record(folder, "scores", "steps_done", "created")
        return cls(
            read_ply(folder / runs.ASSET),
            read_config(folder / runs.OPTIONS),
            {name: math.nan if score is None else score for name, score in record["scores"].items()},
            read_negative(folder / NEGATIVE),
            steps_done=record["steps_done"],
            created=record["created"],
            failed=dict(record.get("failed", {})),
            rows=read_tensors(folder / ROWS)["rows"] if (folder / ROWS).exists() else None,
            refined=dict(record.get("refined", {})),
        )

    def save_asset(self, folder: str | Path) -> None:
        """Write ``splat.ply`` alone, in one step.

        Raises:
            OutputError: the folder cannot be written.
        """
        from psd_gs.export.ply import write_ply

        with writing(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        write_ply(self.gaussians, Path(folder) / runs.ASSET, metadata=self.metadata)

    def save(
        self,
        folder: str | Path,
        on_file: Callable[[str], None] = lambda name: None,
        *,
        products: Mapping[str, Product] | None = None,
    ) -> Path:
        """Write ``splat.ply``, ``config.yaml`` and ``negative.safetensors``, then the :data:`PRODUCTS`, then
        ``psd_gs.json``, each replaced in one step.

        A product that cannot be made costs nothing else: it is noted in :attr:`failed` and in ``psd_gs.json``.

        Args:
            folder: created if it is missing.
            on_file: called with the name of each file before it is made.
            products: instead of :func:`products_of` it: file name to what makes it.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        on_file(runs.ASSET)
        self.save_asset(folder)
        runs.write_yaml(folder / runs.OPTIONS, to_dict(self.config))
        negative = {"sequence": self.negative.sequence, "pooled": self.negative.pooled}
        write_tensors(
            folder / NEGATIVE,
            {name: tensor for name, tensor in negative.items() if tensor is not None},
            {"prior": self.config.prior},
        )
        if self.rows is not None:
            write_tensors(folder / ROWS, {"rows": self.rows})
        self._make(folder, products_of(self.config) if products is None else products, on_file)
        return folder

    def complete(
        self,
        folder: str | Path,
        on_file: Callable[[str], None] = lambda name: None,
        *,
        products: Mapping[str, Product] | None = None,
    ) -> Path:
        """Make those of the products that are missing beside a saved asset, and note anew what failed."""
        wanted = products_of(self.config) if products is None else products
        absent = {name: make for name, make in wanted.items() if not (Path(folder) / name).exists()}
        if absent:
            self._make(Path(folder), absent, on_file)
        return Path(folder)

    def _make(self, folder: Path, products: Mapping[str, Product], on_file: Callable[[str], None]) -> None:
        first = {name: make for name, make in products.items() if name != REPORT}
        self._attempt(folder, first, on_file)
        self._record(folder)
        last = {name: make for name, make in products.items() if name == REPORT}  # it shows the record
        if self._attempt(folder, last, on_file):
            self._record(folder)

    def _attempt(self, folder: Path, products: Mapping[str, Product], on_file: Callable[[str], None]) -> bool:
        """Make each; whether what failed is another than before."""
        before = dict(self.failed)
        for name, make in products.items():
            on_file(name)
            self.failed.pop(name, None)
            try:
                make(self, folder / name)
            except Exception as error:  # the asset is there; whatever is wrong with a picture must not hide it
                self.failed[name] = str(error) or type(error).__name__
                logger.debug("no %s", name, exc_info=True)
        return self.failed != before

    def _record(self, folder: Path) -> None:
        from psd_gs.export.formats import sha256_of

        names = (runs.ASSET, *(name for name in PRODUCTS if name != REPORT))
        files = {name: sha256_of(folder / name) for name in names if (folder / name).exists()}
        failed = {"failed": self.failed} if self.failed else {}
        runs.write_json(folder / runs.RECORD, self.metadata | {"files": files} | failed)


Product = Callable[[Result, Path], object]
"""Makes one file of a result."""


def _preview(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import preview_png

    preview_png(result.gaussians, path, metadata=result.metadata)


def _turntable(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import turntable_video

    turntable_video(result.gaussians, path, metadata=result.metadata)


def _progress(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import progress_strip

    if frames := runs.progress_frames(path.parent, result.metadata["steps_done"]):  # it was watched
        progress_strip(frames, path)


def _mesh(result: Result, path: Path) -> None:
    from psd_gs.mesh.extract import extract_mesh
    from psd_gs.mesh.glb import write_glb

    write_glb(extract_mesh(result.gaussians), path, metadata=result.metadata)


def _report(result: Result, path: Path) -> None:
    from psd_gs.run_report import write_report

    write_report(path.parent)


NEGATIVE, REPORT, ROWS = "negative.safetensors", "report.html", "rows.safetensors"

PRODUCTS: Mapping[str, Product] = {
    "preview.png": _preview,
    "turntable.mp4": _turntable,
    "progress.png": _progress,
    "mesh.glb": _mesh,
    REPORT: _report,
}
"""What is made of a finished asset, in this order: file name to what makes it."""


def products_of(config: Config) -> Mapping[str, Product]:
    """What is made of the result of a run: :data:`PRODUCTS`, or those of a refinement."""
    if config.refine.asset is None:
        return PRODUCTS
    return products(config.refine) | {name: make for name, make in PRODUCTS.items() if name != "mesh.glb"}


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
        allow_code: bool = False,
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
            allow_code: whether ``reward`` and ``judge`` may name functions, see :func:`psd_gs.rewards.refuse_code`.

        Raises:
            BackendError: a device that is not there.
            ConfigError: unknown names.
            ModelError: weights that cannot be had, or damaged files.
        """
        where = resolve_device(device)
        if where.index is not None:  # else what torch does for itself would open a context on the first GPU, too
            torch.cuda.set_device(where)
        prior, reward, judge = resolve(prior, reward, judge, where)
        if not allow_code:
            for name in (reward, judge):
                refuse_code(name)
        model = load_prior(prior, where, dtype=dtype, vram=vram, image_size=prior_size)
        ranks, judges = (load_reward(name, where, allow_code=allow_code) for name in (reward, judge))
        return cls(model, ranks, judges, digests_of(prior, reward, judge))

    @classmethod
    def of(cls, config: Config, device: str | None = None, *, allow_code: bool = False) -> TextTo3DPipeline:
        """The models of a resolved configuration, see :meth:`from_pretrained`."""
        return cls.from_pretrained(
            config.prior,
            reward=config.reward,
            judge=config.judge,
            device=device or config.device,
            dtype=config.dtype,
            vram=config.vram,
            prior_size=config.prior_size,
            allow_code=allow_code,
        )

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
        return self._made(self.config(preset, overrides or {}, names), on_step)

    def refine(
        self,
        asset: str | os.PathLike[str],
        prompt: str,
        *,
        strength: float = STRENGTH,
        seed: int = 0,
        preset: str = "default",
        overrides: Mapping[str, Any] | None = None,
        on_step: Callable[[StepEvent], None] = lambda event: None,
    ) -> Result:
        """Change an asset that is there already, in memory.

        Args:
            asset: a splat file, or a run folder.
            prompt: the whole asset as it is to be.
            strength: highest noise level, 0 to 1.
            seed: of everything random.
            preset: draft, default or quality.
            overrides: nested options; ``refine`` says what may change, see :class:`psd_gs.config.RefineConfig`.
            on_step: called after each step.
        """
        names: dict[str, Any] = {"prompt": prompt, "seed": seed}
        return self._made(self.config(preset, task(asset, strength), overrides or {}, names), on_step)

    def _made(self, config: Config, on_step: Callable[[StepEvent], None]) -> Result:
        trainer = self.trainer(config)
        for event in trainer.run():
            on_step(event)
        return self.result(trainer)

    def config(
        self,
        preset: str,
        *overrides: Mapping[str, Any],
        where: str = "config",
    ) -> Config:
        """A complete configuration: preset, ``overrides`` in order, and the models of this pipeline.

        Args:
            preset: draft, default or quality, or a recipe.
            overrides: nested options; what they say of the models does not count.
            where: the options come from, for errors.

        Raises:
            ConfigError: an unknown preset, key or value.
        """
        models = {
            "prior": self.prior.name,
            "device": str(self.prior.device),
            "reward": self.reward.name if self.reward else "none",
            "judge": self.judge.name if self.judge else "none",
            "weights": self.digests,
        }
        return make_config(preset, family_of(self.prior), *overrides, models, where=where)

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
        renderer, device = choose_renderer(self.prior.device)[0], renderer_device(self.prior.device)
        refinement = Refinement(Original.of(config.refine), config, device) if config.refine.asset else None
        generator = torch.Generator().manual_seed(seeds["init"])
        start = refinement.start if refinement else initial_gaussians(config, generator, self.prior.device)
        trainer = Trainer(config, guidance, start.to(device), folder, renderer, refinement)
        trainer.observe = self._observer(config.prompt, folder) if folder else None
        return trainer

    def _observer(self, prompt: str, folder: Path) -> Callable[[int, Gaussians], dict[str, float]]:
        """Keeps a picture of the asset while it is made, and lets the log know what reward and judge say of it."""
        from psd_gs.export.pictures import picture_png

        models = [model for model in (self.reward, self.judge) if model is not None]

        def observe(step: int, asset: Gaussians) -> dict[str, float]:
            path = runs.progress_frame(folder, step)
            try:
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                picture_png(asset, path)
                return {f"score_{model.name}": self._score(asset, prompt, model) for model in models}
            except Exception:  # the run matters more than its pictures
                logger.info("step %d was not looked at", step, exc_info=True)
                return {}

        return observe

    def result(self, trainer: Trainer) -> Result:
        """The finished asset of a trainer, scored."""
        return self.scored(self.unscored(trainer))

    def unscored(self, trainer: Trainer) -> Result:
        """The finished asset of a trainer.

        Raises:
            InputError: nothing of it is left.
        """
        refinement = trainer.refinement
        asset, rows = refinement.finished(trainer.gaussians) if refinement else (trainer.finish(), None)
        if not len(asset):
            raise InputError(
                "the finished asset is empty: every Gaussian became transparent. "
                "Try another --seed or a plainer prompt."
            )
        negative = trainer.guidance.negative.embedding
        return Result(asset, trainer.config, {}, negative, steps_done=trainer.step, rows=rows)

    def scored(self, result: Result) -> Result:
        """The same with the scores of reward and judge, and of the parts of weighted sums."""
        given = [model for model in (self.reward, self.judge) if model is not None]
        parts = [part.reward for model in given for part in getattr(model, "parts", ())]
        models = {model.name: model for model in (*given, *parts)}
        prompt, asset = result.config.prompt, result.gaussians

        def scores(asset: Gaussians) -> dict[str, float]:
            return {name: self._score(asset, prompt, model) for name, model in models.items()}

        if result.rows is None:
            return replace(result, scores=scores(asset))
        original, device = Original.of(result.config.refine), renderer_device(self.prior.device)
        before, after = (original.fitted(g).to(device) for g in (original.gaussians, asset))
        known = facts(original, before, after, result.rows) | {"scores_before": rounded(scores(before))}
        return replace(result, scores=scores(after), refined=known)

    def _score(self, asset: Gaussians, prompt: str, model: Reward) -> float:
        return score_asset(asset, prompt, model, self.prior.image_size)
