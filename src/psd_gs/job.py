"""A run's life: what is asked for, the folder it lives in, its beginning, going on, and end.

``resolve(Request(...))`` says what decides the run; ``Job`` opens or refuses a folder for it, runs and finishes it.
``generate``, ``batch`` and ``eval run`` differ only in which runs they make, and in what they show meanwhile.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from psd_gs import runs
from psd_gs.config import (
    PRESETS,
    RECIPES,
    Config,
    check_prompt_text,
    make_config,
    preset,
    read_config,
    suggestion,
    to_dict,
)
from psd_gs.errors import BusyError, ConfigError, FormatError, OutputError, is_out_of_memory
from psd_gs.files import sweep_parts, writing
from psd_gs.guidance.guide import check_combination
from psd_gs.priors import prior_entry, prior_family
from psd_gs.reference import check_given, pinned, relocated, settled, title

if TYPE_CHECKING:
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.result import Product, Result
    from psd_gs.trainer import StepEvent, Trainer

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by the process that works in a folder; the system lets go of it when that process ends, however it ends."""

FREE = {
    "device": "a run may go on where another machine has room",
    "renderer": "draws the same pictures up to rounding; another machine may lack this one",
    "dtype": "rounding of the networks; needed where a device lacks the other type",
    "vram": "how the same networks fit into memory; an error advises another value",
    "judge": "only looks at the finished asset",
    "weights": "a record of the files that were loaded; that they differ is said, or refused, by the digests",
}
"""Options in which a run that goes on may differ from how it began, and why; in all others it is another run."""


# --- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A run as somebody asks for it.

    Attributes:
        prompt: what to make; may be empty for a prior that looks at a picture.
        preset: draft, default or quality; None is what ``file`` says, else default.
        recipe: settings of a published method, instead of a preset.
        file: options of a ``--config`` file, over the preset.
        options: nested options, over the file.
        where: the options come from, for errors.
        task: options that go over the preset and under the file: those of another work than making something new.
    """

    prompt: str
    preset: str | None = None
    recipe: str | None = None
    file: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "command line"
    task: Mapping[str, Any] = field(default_factory=dict)


def resolve(request: Request, pipeline: TextTo3DPipeline | None = None) -> Config:
    """Everything that decides the run: preset or recipe, then the file, then the options; models by their names.

    Args:
        request: what is asked for.
        pipeline: whose models the run will have, whatever the options say of them; None: as they say.

    Raises:
        BackendError: a device that is not there.
        ConfigError: options that do not exist, have a value out of range, or do not go together.
        InputError: not a prompt.
        ModelError: weights that are needed to tell a prior's family cannot be had.
    """
    if request.prompt:
        check_prompt_text(request.prompt)
    name = _preset(request)
    decided: dict[str, Any] = {"prompt": request.prompt, "preset": name}
    given = request.task, request.file, request.options
    if pipeline:
        config = pipeline.config(name, *given, decided, where=request.where)
    else:
        family, names = _models(request, name)
        config = pinned(make_config(name, family, *given, decided | names, where=request.where))
        check_given(config, prior_entry(config.prior).pictured)
    check_combination(config.guidance)
    return config


def _models(request: Request, name: str) -> tuple[str, dict[str, str]]:
    """The prior's family, and the names of prior, reward and judge."""
    from psd_gs.models import resolve as resolve_models
    from psd_gs.models import resolve_device

    given = dict(request.file) | dict(request.options)
    asked = str(given.get("prior", preset(name, "").get("prior", "auto")))
    device = resolve_device(str(given.get("device", "auto")), asked)
    prior = resolve_models(asked, "auto", "auto", device)[0]
    family = prior_family(prior)
    own = preset(name, family) | given
    names = resolve_models(prior, str(own.get("reward", "auto")), str(own.get("judge", "auto")), device)
    return family, dict(zip(("prior", "reward", "judge"), names, strict=True))


def _preset(request: Request) -> str:
    """The name of the preset or recipe."""
    if request.recipe and request.preset:
        raise ConfigError("expected --recipe or --preset, received both. Leave one of them out.")
    if request.recipe and request.recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {request.recipe!r}.{suggestion(request.recipe, RECIPES)}")
    if request.preset and request.preset not in PRESETS:
        raise ConfigError(f"unknown preset {request.preset!r}.{suggestion(request.preset, PRESETS)}")
    return request.recipe or request.preset or str(request.file.get("preset", "default"))


def differences(saved: Config, config: Config, strict: Collection[str] = ()) -> list[str]:
    """Names of the options that make ``config`` another run than ``saved``: all but :data:`FREE`, less ``strict``."""
    one, other = to_dict(relocated(saved, config)), to_dict(config)
    return [name for name in one if one[name] != other[name] and (name not in FREE or name in strict)]


# --- the folder ------------------------------------------------------------------------------------------------------


class Job:
    """One run and its folder, which no other process enters until :meth:`close`; a context manager.

    Attributes:
        folder: of the run.
        config: everything that decides it; of a run that has begun, as it began.
        differs: options in which the run that is there differs from what was asked for.
        changed_weights: files that the configuration names and that are others now, from :meth:`begin` on.
        trainer: the optimization, likewise.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self._made_root = not folder.parent.exists()
        self._lock = _claim(folder)
        self.differs: list[str] = []
        self.changed_weights: list[str] = []
        self._replaces = False
        self.trainer: Trainer | None = None
        self._pipeline: TextTo3DPipeline | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        config: Config,
        *,
        on_mismatch: Literal["refuse", "keep", "replace"] = "refuse",
        named: Collection[str] = (),
        strict: Collection[str] = (),
    ) -> Job:
        """Claim a folder, which may hold a run that is to go on.

        Args:
            folder: created if it is missing.
            config: of the run.
            on_mismatch: of a run of other options in the folder: refuse it, keep its own options (:attr:`differs` names
                them), or replace it. ``replace`` replaces an equal one, too.
            named: options that were asked for by name; those in :data:`FREE` change in a run that is kept.
            strict: options in :data:`FREE` in which it may not differ here.

        Raises:
            OutputError: another process works there, another run is there, or the folder cannot be written.
        """
        job = cls(folder, config)
        try:
            if on_mismatch == "replace":
                job._replaces = True
            elif runs.has_begun(folder):
                job._take_up(on_mismatch, named, strict)
        except BaseException:
            job.close()
            raise
        return job

    @classmethod
    def find(
        cls,
        root: Path,
        config: Config,
        *,
        resume: bool = False,
        overwrite: bool = False,
        named: Collection[str] = (),
    ) -> Job:
        """Claim the folder of a run by its prompt and seed: ``a-corgi-0``, ``a-corgi-0-2`` and so on.

        A finished run is left alone and the next name taken, as is the name of a run of another prompt or seed, and one
        in which another process works, unless

        * ``overwrite`` is set: the unfinished run of this prompt and seed if there is one, else the first finished one;
        * ``resume`` is set: the unfinished run if there is one, else the last finished one, else the next name.

        Args:
            root: of all runs.
            config: of the run.
            resume: it is to be taken up, with its own options.
            overwrite: it is to be replaced.
            named: see :meth:`open`.

        Raises:
            OutputError: an unfinished run is there and neither switch is given, or see :meth:`open`.
        """
        begun, free = _folders(root, config)
        unfinished = [
            folder for folder in begun if not runs.is_finished(folder) and _is_run_of(folder, config, strict=resume)
        ]
        if overwrite or resume:
            finished = (folder for folder in (begun if overwrite else reversed(begun)) if _is_run_of(folder, config))
            folder = unfinished[0] if unfinished else next(finished, None)
            return cls.open(folder or free, config, on_mismatch="replace" if overwrite else "keep", named=named)
        if left := [folder for folder in unfinished if not is_claimed(folder)]:
            raise OutputError(
                f"{left[0]} holds an unfinished run. Go on with --resume, or start anew with --overwrite."
            )
        while True:
            try:
                job = cls.open(free, config, on_mismatch="keep")
            except BusyError:
                pass
            else:
                if not runs.has_begun(free):
                    return job
                job.close()  # somebody was quicker
            free = _folders(root, config, beyond=free)[1]

    def _take_up(self, on_mismatch: str, named: Collection[str], strict: Collection[str]) -> None:
        saved = read_config(self.folder / runs.OPTIONS)
        asked = settled(self.config, saved)
        self.differs = differences(saved, asked, strict)
        if self.differs and on_mismatch == "refuse":
            raise OutputError(
                f"{self.folder} holds a run that differs in {', '.join(self.differs)}. Choose another --output-dir, or "
                "delete it."
            )
        self.config = self.config if on_mismatch == "replace" else asked
        if on_mismatch == "keep":
            changed: dict[str, Any] = {name: getattr(asked, name) for name in FREE if name in named}
            self.config = replace(relocated(saved, asked), **changed)

    @property
    def has_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return runs.has_begun(self.folder) and not self._replaces

    @property
    def is_finished(self) -> bool:
        return runs.is_finished(self.folder) and not self._replaces

    def close(self) -> None:
        """Let other processes in; nothing is left of a folder in which nothing was begun."""
        if not self._lock.is_locked:
            return
        with suppress(OSError):
            (self.folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it notices
        self._lock.release()
        with suppress(OSError):
            self.folder.rmdir()
            if self._made_root:
                self.folder.parent.rmdir()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- the run -----------------------------------------------------------------------------------------------------

    def begin(
        self, pipeline: TextTo3DPipeline, *, weights: Mapping[str, str] | None = None, anew: bool = False
    ) -> Trainer:
        """The optimization, at its last checkpoint or before its first step. What it replaces is deleted only now.

        Args:
            pipeline: with the models that the configuration names.
            weights: SHA-256 of the files that decide the run; None: those of the pipeline.
            anew: start again where no checkpoint can be read, with a warning.

        Raises:
            FormatError: no checkpoint can be read.
            PsdGsError: the options cannot be run, see :meth:`TextTo3DPipeline.trainer`.
        """
        self._pipeline = pipeline
        loaded = dict(pipeline.digests if weights is None else weights)
        self.changed_weights = [name for name, digest in self.config.weights.items() if loaded.get(name) != digest]
        self.config = replace(self.config, weights=loaded)
        self.trainer = pipeline.trainer(self.config, self.folder)
        if self.has_begun:
            try:
                self.trainer.load_checkpoint()
                return self.trainer
            except FormatError as error:
                if not anew:
                    raise
                logger.warning("starting anew: %s", error)
                self.trainer = pipeline.trainer(self.config, self.folder)
        aside = self._move_aside()
        self.trainer.save_checkpoint()  # first, so that a run that has begun can always go on
        self.config = self.trainer.config
        runs.write_yaml(self.folder / runs.OPTIONS, to_dict(self.config))
        shutil.rmtree(aside, ignore_errors=True)
        self._replaces = False
        return self.trainer

    def _move_aside(self) -> Path:
        """Everything in the folder, into a hidden folder beside it from which :func:`_claim` can bring it back."""
        aside = _aside(self.folder)
        with writing(aside):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    aside.mkdir(exist_ok=True)
                    path.rename(aside / path.name)
        return aside

    def run(
        self,
        on_step: Callable[[StepEvent], None] = lambda event: None,
        *,
        events: Iterator[StepEvent] | None = None,
        stop: Event | None = None,
    ) -> bool:
        """Optimize to the end; False if ``stop`` was set: then the run is saved as of its last step.

        Args:
            on_step: called after each step.
            events: instead of the trainer's own: an iterator over them that may end early.
            stop: looked at after each step.
        """
        assert self.trainer is not None
        for event in self.trainer.run() if events is None else events:
            on_step(event)
            if stop and stop.is_set():
                break
        if self.trainer.step < self.config.steps or (stop and stop.is_set()):
            self.trainer.save_checkpoint()  # nothing else is kept of these steps
        return not (stop and stop.is_set())

    def finish(
        self, on_file: Callable[[str], None] = lambda name: None, *, products: Mapping[str, Product] | None = None
    ) -> Result:
        """The asset, before all else; then its scores and what is made of it, none of which can cost it.

        Raises:
            InputError: nothing is left of the asset.
            OutputError: the folder cannot be written.
        """
        assert self.trainer is not None
        assert self._pipeline is not None
        result = self._pipeline.unscored(self.trainer)
        on_file(runs.ASSET)
        result.save_asset(self.folder)
        self.trainer.drop_previous_checkpoint()  # before the record, after which nobody looks here again
        return self._save_scored(self._pipeline, result, on_file, products)

    def complete(
        self,
        pipeline: TextTo3DPipeline,
        on_file: Callable[[str], None] = lambda name: None,
        *,
        products: Mapping[str, Product] | None = None,
    ) -> Result:
        """A finished run as it is on the disk, after what is missing of its scores and products was made."""
        from psd_gs.result import Result

        result = Result.load(self.folder)
        if "scores" in result.failed:
            return self._save_scored(pipeline, result, on_file, products)
        result.complete(self.folder, on_file, products=products)
        return result

    def _save_scored(
        self,
        pipeline: TextTo3DPipeline,
        result: Result,
        on_file: Callable[[str], None],
        products: Mapping[str, Product] | None,
    ) -> Result:
        on_file("scores")
        failed = {}
        try:
            result = pipeline.scored(result)
        except Exception as error:  # out of memory, most likely: a judge may be larger than the prior
            logger.debug("no scores", exc_info=True)
            failed["scores"] = "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__
        result.failed = failed
        result.save(self.folder, on_file, products=products)
        return result


def is_claimed(folder: Path) -> bool:
    """Whether another process works in ``folder``."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except OSError as error:
        return isinstance(error, Timeout)
    return False


def _claim(folder: Path) -> FileLock:
    """The lock of a folder, taken; what a killed process left half done in it is put right.

    Raises:
        BusyError: another process holds it.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"{folder}: expected a folder that nobody is working in, received one that another process holds. Wait for "
            "it, or choose another --output-dir or --seed."
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {folder}: {reason}. Choose another place with --output-dir.") from error
    sweep_parts(folder)
    aside = _aside(folder)
    if aside.is_dir():  # a process was killed while it replaced a run
        if runs.has_begun(folder):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            for path in aside.iterdir():
                path.rename(folder / path.name)
            aside.rmdir()
    return lock


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _folders(root: Path, config: Config, beyond: Path | None = None) -> tuple[list[Path], Path]:
    """The folders of a run's names in which something was begun, and the first other one (after ``beyond``)."""
    base = root / runs.run_name(title(config), config.seed)
    begun: list[Path] = []
    passed, number = beyond is None, 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if runs.has_begun(folder) or runs.has_begun(_aside(folder)):
            begun.append(folder)
        elif passed:
            return begun, folder
        passed = passed or folder == beyond
        number += 1


def _is_run_of(folder: Path, config: Config, *, strict: bool = False) -> bool:
    """Whether the run in a folder has the prompt, seed, pictures and asset, if any, of ``config``; one that cannot be
    read is somebody else's.

    Raises:
        ConfigError: it cannot be read, and ``strict`` is set.
    """
    place = folder if runs.has_begun(folder) else _aside(folder)
    try:
        saved = read_config(place / runs.OPTIONS)
    except ConfigError as error:
        if strict:
            raise
        logger.warning("%s", error)
        return False
    return _identity(saved) == _identity(config)


def _identity(config: Config) -> tuple[str, int, str, tuple[str, ...]]:
    return config.prompt, config.seed, config.refine.sha256, config.image.sha256
