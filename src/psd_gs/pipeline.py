"""The whole job as a Python API: a sentence in, Gaussians, a mesh and scores out.

```python
from psd_gs import TextTo3DPipeline

result = TextTo3DPipeline.from_pretrained("mini")("a corgi", seed=0)
result.save("outputs/corgi")
```
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from psd_gs import runs
from psd_gs.config import REPAINT_STRENGTH, STRENGTH, Config, make_config
from psd_gs.errors import InputError, enough_memory
from psd_gs.files import writing
from psd_gs.framing import framed
from psd_gs.gaussians import Gaussians
from psd_gs.guidance.guide import Guidance
from psd_gs.models import digests_of, resolve, resolve_device
from psd_gs.priors import DType, family_of, load_prior
from psd_gs.priors.base import Prior
from psd_gs.priors.memory import PRESETS
from psd_gs.reference import Reference, check_given, pinned
from psd_gs.refine import Original, Refinement, task
from psd_gs.refined import facts
from psd_gs.render import choose_renderer, renderer_device
from psd_gs.result import Result
from psd_gs.rewards import load_reward, refuse_code
from psd_gs.rewards.base import Reward
from psd_gs.rewards.parked import ParkedReward, set_aside
from psd_gs.scoring import rounded, score_models
from psd_gs.start import initial_gaussians, read_negative
from psd_gs.trainer import StepEvent, Trainer, stream_seeds

logger = logging.getLogger(__name__)


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

    @property
    def _given(self) -> list[Reward]:
        return [model for model in (self.reward, self.judge) if model is not None]

    @property
    def models(self) -> dict[str, Reward]:
        """Reward and judge by name, and the parts of weighted sums."""
        parts = [part.reward for model in self._given for part in getattr(model, "parts", ())]
        return {model.name: model for model in (*self._given, *parts)}

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
            BackendError: a device that is not there, or has too little memory.
            ConfigError: unknown names.
            ModelError: weights that cannot be had, or damaged files.
        """
        where = resolve_device(device, prior)
        if where.index is not None:  # else what torch does for itself would open a context on the first GPU, too
            torch.get_device_module(where).set_device(where)
        prior, reward, judge = resolve(prior, reward, judge, where)
        if not allow_code:
            for name in (reward, judge):
                refuse_code(name)
        with enough_memory("while the models were loaded"):
            judges: Reward = load_reward(judge, where, allow_code=allow_code)
            if where.type != "cpu":
                judges = ParkedReward(judges, where)
            model = load_prior(prior, where, dtype=dtype, vram=vram, image_size=prior_size)
            ranks = load_reward(reward, where, allow_code=allow_code)
            if where.type != "cpu" and PRESETS[vram].offload:
                ranks = ParkedReward(ranks, where)
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
            prompt: what it is; may be empty for a prior that looks at a picture.
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

    def retexture(
        self,
        mesh: str | os.PathLike[str],
        prompt: str,
        *,
        texture_size: int = 1024,
        material: str | None = None,
        keep: float = 0.0,
        strength: float = REPAINT_STRENGTH,
        seed: int = 0,
        preset: str = "default",
        overrides: Mapping[str, Any] | None = None,
        on_step: Callable[[StepEvent], None] = lambda event: None,
    ) -> Result:
        """Give a mesh other colours; :meth:`Result.save` writes it under its own name.

        Args:
            mesh: a ``.glb``, ``.gltf`` or ``.obj``.
            prompt: the whole thing as it is to look.
            texture_size: side of the new textures, texels.
            material: name of the only one that changes.
            keep: weight of the original's views and colours.
            strength: highest noise level, 0 to 1.
            seed: of everything random.
            preset: draft, default or quality.
            overrides: nested options.
            on_step: called after each step.
        """
        names: dict[str, Any] = {"prompt": prompt, "seed": seed}
        own = task(mesh, strength, only="colour", texture_size=texture_size, material=material, keep=keep)
        return self._made(self.config(preset, own, overrides or {}, names), on_step)

    def _made(self, config: Config, on_step: Callable[[StepEvent], None]) -> Result:
        trainer = self.trainer(config)
        for event in trainer.run():
            on_step(event)
        return self.result(trainer)

    def config(self, preset: str, *overrides: Mapping[str, Any], where: str = "config") -> Config:
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
        return pinned(make_config(preset, family_of(self.prior), *overrides, models, where=where))

    def trainer(self, config: Config, folder: Path | None = None) -> Trainer:
        """The optimization of ``config``, ready to run; with a ``folder`` it can be resumed.

        Raises:
            BackendError: out of memory.
            InputError: an unusable prompt or file.
        """
        pictured = getattr(self.prior, "pictured", False)
        check_given(config, pictured)
        seeds = stream_seeds(config.seed)
        negative = read_negative(config.negative_embedding) if config.negative_embedding else None
        renderer, _ = choose_renderer(self.prior.device, config.renderer)
        device = renderer_device(self.prior.device, config.renderer)
        original = Original.of(config.refine) if config.refine.asset else None
        reference = Reference(config.image, device) if config.image.files else None
        generator = torch.Generator().manual_seed(seeds["init"])
        with enough_memory("while the prompt was read"), set_aside(self.reward, self.prior.device):
            guidance = Guidance(
                self.prior,
                config.prompt,
                config.guidance,
                reward=self.reward,
                negative=negative,
                picture=reference.first().to(self.prior.device) if reference and pictured else None,
                seed=seeds["guidance"],
            )
            if original:
                config, original = framed(config, original, guidance, device)
            refinement = Refinement(original, config, device) if original else None
            start = refinement.start if refinement else initial_gaussians(config, generator, self.prior.device)
        trainer = Trainer(config, guidance, start.to(device), folder, renderer, refinement, reference)
        trainer.observe = self._observer(config.prompt, folder) if folder else None
        return trainer

    def _observer(self, prompt: str, folder: Path) -> Callable[[int, Gaussians], dict[str, float]]:
        """Keeps a picture of the asset while it is made, and lets the log know what reward and judge say of it."""
        from psd_gs.export.pictures import picture_png

        def observe(step: int, asset: Gaussians) -> dict[str, float]:
            path = runs.progress_frame(folder, step)
            try:
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                picture_png(asset, path)
                models = {f"score_{model.name}": model for model in self._given}
                return score_models(asset, prompt, models, self.prior.image_size)
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
        """The same with the scores of the :attr:`models`."""
        prompt, asset = result.config.prompt, result.gaussians

        def scores(asset: Gaussians) -> dict[str, float]:
            return score_models(asset, prompt, self.models, self.prior.image_size)

        images = Reference(result.config.image).held(asset) if result.config.image.files else []
        if result.rows is None:
            return replace(result, scores=scores(asset), images=images)
        original, device = Original.of(result.config.refine), renderer_device(self.prior.device, result.config.renderer)
        before, after = (original.fitted(g).to(device) for g in (original.gaussians, asset))
        known = facts(original, before, after, result.rows) | {"scores_before": rounded(scores(before))}
        return replace(result, scores=scores(after), refined=known)
