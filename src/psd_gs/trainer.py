"""The optimization loop: Gaussians, their optimizers, and everything that a resumed run must remember."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.adam import Adam
from psd_gs.cameras import Cameras, joined, orbit
from psd_gs.config import CameraConfig, Config
from psd_gs.densify import Densifier, sweep
from psd_gs.errors import LESS_MEMORY, BackendError, FormatError, OutputError, PsdGsError, is_out_of_memory
from psd_gs.files import append, atomic_path, write_atomic, writing
from psd_gs.gaussians import Gaussians
from psd_gs.guidance.guide import Guidance
from psd_gs.render import Backend, render

if TYPE_CHECKING:
    from psd_gs.reference import Reference
    from psd_gs.refine import Refinement

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0
"""Longest time between two checkpoints."""

MILESTONES = (0.0, 0.04, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Fractions of the run at which the asset is observed; early ones lie closer, for there most changes."""

CHECKPOINTS = ("latest.safetensors", "previous.safetensors")
"""The last state and the one before it, in case the last one is damaged."""

STREAMS = ("cameras", "background", "densify", "guidance", "init")
"""Consumers of randomness, each of which has a generator of its own."""


@dataclass(frozen=True)
class StepEvent:
    """What one finished step reports.

    Attributes:
        step: number of finished steps.
        steps: of the whole run.
        logs: scalars by name.
    """

    step: int
    steps: int
    logs: dict[str, float]


class Trainer:
    """Optimizes Gaussians under a guidance; iterate over :meth:`run`.

    ``observe`` may be set to a function, called with the number of finished steps and the Gaussians at
    :data:`MILESTONES` of the run; the numbers that it returns go into the log of that step.

    Args:
        config: options.
        guidance: the gradient on the views.
        gaussians: where to start; they, their optimizers and their statistics stay on their device, which need not be
            that of the guidance's networks.
        folder: gets ``checkpoints/latest.safetensors`` and ``metrics.jsonl``; None keeps everything in memory.
        renderer: of that device.
        refinement: of an asset of which ``gaussians`` are those that may change.
        reference: views that are known.
    """

    def __init__(
        self,
        config: Config,
        guidance: Guidance,
        gaussians: Gaussians,
        folder: Path | None = None,
        renderer: Backend = "auto",
        refinement: Refinement | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.config, self.guidance, self.folder, self.renderer = config, guidance, folder, renderer
        self.refinement, self.reference = refinement, reference
        seeds = stream_seeds(config.seed)
        self.generators = {
            name: torch.Generator().manual_seed(seeds[name]) for name in ("cameras", "background", "densify")
        }
        self.densifier = Densifier(refinement.densify if refinement else config.densify, self.generators["densify"])
        self.step = 0
        self.skipped = 0
        self._logs = folder is not None  # until the disk is full
        self._unchanged = True  # since the last finished step: Gaussians, moments and densifier
        self.observe: Callable[[int, Gaussians], dict[str, float]] | None = None
        self._adopt(gaussians)

    def _adopt(self, gaussians: Gaussians, moments: dict[str, dict[str, Tensor]] | None = None) -> None:
        """Make ``gaussians`` the ones being optimized, with fresh or given Adam moments."""
        self.gaussians = gaussians.detach().map(torch.Tensor.contiguous)
        options = self.config.optimizer
        self.optimizers = {}
        for name, parameter in self.gaussians.params().items():
            parameter.requires_grad_(self.refinement is None or self.refinement.optimizes(name))
            optimizer = Adam([parameter], [0.0], betas=options.betas, eps=options.eps)
            if moments:
                optimizer.state[0] = moments[name]
            self.optimizers[name] = optimizer

    def _moments(self, name: str) -> dict[str, Tensor]:
        return self.optimizers[name].state[0]

    @property
    def scene(self) -> Gaussians:
        """Everything that is rendered: what is optimized and what stands around it."""
        return self.refinement.scene(self.gaussians) if self.refinement else self.gaussians

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[StepEvent]:
        """Step until the end, yielding after each step; checkpoints from step 0 on and at the end.

        A run can be left at any time and taken up again by :meth:`load_checkpoint`.

        Raises:
            BackendError: out of memory. The checkpoint is of the last finished step, unless memory ran out while the
                Gaussians were being changed: then it is the last one before.
        """
        saved, saved_step = time.monotonic(), self.step
        milestones = {round(fraction * self.config.steps) for fraction in MILESTONES} if self.observe else set()
        if self.folder and self.step == 0:
            self.save_checkpoint()
        if self.observe and self.step == 0:
            self.observe(0, self.scene.detach())
        while self.step < self.config.steps:
            before = self.state_dict() if self.folder else {}
            try:
                logs = self._step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.folder and self._unchanged:
                    self.save_checkpoint(before)
                    saved_step = self.step
                kept = f" The run is saved as of step {saved_step}; --resume goes on there." if self.folder else ""
                raise BackendError(
                    f"out of memory in step {self.step + 1} with {len(self.gaussians)} Gaussians.{kept} {LESS_MEMORY}"
                ) from error
            if self.observe and self.step in milestones:
                logs |= self.observe(self.step, self.scene.detach())
            if self._logs:
                self._log(logs)
            if self.folder and time.monotonic() - saved > CHECKPOINT_SECONDS:
                saved, saved_step = time.monotonic(), self.step if self._try_to_save() else saved_step
            yield StepEvent(self.step, self.config.steps, logs)
        if self.folder:
            self._try_to_save()

    def _try_to_save(self) -> bool:
        """Whether there is a checkpoint of now: a full disk must not cost the steps, nor the asset after the last."""
        try:
            self.save_checkpoint()
        except OutputError as error:
            logger.warning("%s Going on without a checkpoint of step %d.", error, self.step)
            return False
        return True

    def finish(self) -> Gaussians:
        """The finished asset, detached: what shows and hangs together, made solid if the run asks for it; of a
        refinement all that is there, in its own place.

        The state of the run stays as it is.
        """
        if self.refinement:
            return self.refinement.finished(self.gaussians)[0]
        from psd_gs.solidify import solidify

        done = self._swept(self.gaussians.detach())
        if self.config.solid_steps:  # smaller Gaussians may no longer touch
            hold = self.reference.error if self.reference else None
            done = self._swept(solidify(done, self.config.solid_steps, hold))
        return done

    def _swept(self, asset: Gaussians) -> Gaussians:
        return asset.select(sweep(asset, self.config.densify)) if self.config.densify.enabled else asset

    def _step(self) -> dict[str, float]:
        config, progress = self.config, self.step / self.config.steps
        refinement, reference = self.refinement, self.reference
        self._unchanged = True
        here, there = self.gaussians.device, self.guidance.prior.device
        watch = Stopwatch(there)
        self._set_rates(progress)
        size = config.cameras.size[progress >= config.cameras.size_at] * (refinement.zoom if refinement else 1)
        views = self.guidance.prior.views
        groups = config.cameras.groups
        cameras = joined(
            [sample_cameras(config.cameras, views, size, self.generators["cameras"]) for _ in range(groups)]
        )
        background = sample_background(config.backgrounds, self.generators["background"]).to(here)
        shown = joined([cameras.to(here), reference.cameras(size)]) if reference else cameras.to(here)
        out = render(self.scene, shown, background, absgrad=True, backend=self.renderer)
        rgb = out.rgb[: len(cameras)]
        # Here, and nowhere else, the pictures cross to the networks; the backward pass brings their gradient home.
        images = rgb.permute(0, 3, 1, 2).unflatten(0, (groups, views)).to(there)
        watch.lap("render")
        guided = self.guidance(images, cameras.to(there), progress, self.step)
        watch.lap("guidance")
        loss = guided.loss + self._regularizer().to(there)
        if refinement:
            loss = loss + refinement.anchor(self.gaussians, rgb, cameras.to(here), background).to(there)
        if reference:
            known = out.rgb[len(cameras) :], out.alpha[len(cameras) :]
            held, psnr = reference.loss(*known, background, progress, guided.elements)
            loss = loss + held.to(there)
        loss.backward()
        watch.lap("backward")
        # A prior that answers NaN would otherwise leave a step of the regularizers alone.
        finite = math.isfinite(guided.logs["base_norm"]) and all(
            p.grad is None or bool(p.grad.isfinite().all()) for p in self.gaussians.params().values()
        )
        self._unchanged = False
        if finite:
            if self.densifier.config.enabled:
                self.densifier.observe(out.meta, len(self.gaussians))
            before = refinement.pool(self.gaussians, self.step, self.guidance.prior.image_size) if refinement else None
            for optimizer in self.optimizers.values():
                optimizer.step()
            if refinement and before is not None:
                refinement.confine(before, self.gaussians)
        else:
            self.skipped += 1
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.step += 1
        logs = guided.logs | (self._densify() if finite else {})
        logs |= {"image_psnr": float(psnr)} if reference else {}
        logs |= {"gaussians": float(len(self.gaussians)), "skipped": float(self.skipped)}
        return logs | watch.seconds()

    def _regularizer(self) -> Tensor:
        """Penalties on the parameters themselves, so that they leave no trace in the screen-space gradients."""
        options = self.config.optimizer
        haze = torch.sigmoid(self.gaussians.opacities).mean()
        fluff = self.gaussians.scales.exp().mean()
        return options.opacity_weight * haze + options.scale_weight * fluff

    def _set_rates(self, progress: float) -> None:
        for name, optimizer in self.optimizers.items():
            first, last = getattr(self.config.optimizer, "sh0" if name == "shN" else name)
            rate = first * (last / first) ** progress
            optimizer.rates[0] = rate / 20 if name == "shN" else rate  # 3DGS: higher bands learn slowly

    def _densify(self) -> dict[str, float]:
        """One round of growing and pruning, if this step ends one; keeps the moments of the survivors."""
        options, steps, refinement = self.densifier.config, self.config.steps, self.refinement
        every = max(1, round(options.every * steps))
        progress = self.step / steps
        if not options.enabled or self.step % every or not options.start <= progress < 1:
            return {}
        before = len(self.gaussians)
        spared = refinement.spared() if refinement else None
        index, new = self.densifier.plan(self.gaussians.detach(), grow=progress <= options.stop, spared=spared)
        if not len(index):
            raise PsdGsError(
                f"every Gaussian became transparent by step {self.step}: nothing is left to optimize. "
                "Try another --seed, a plainer prompt, or lower densify.prune_opacity in a --config file."
            )
        moments = {}
        for name in self.gaussians.params():
            state = self._moments(name)
            fresh = new.view(-1, *[1] * (state["exp_avg"].ndim - 1))
            moments[name] = {
                "step": state["step"],
                **{key: torch.where(fresh, 0, state[key][index]) for key in ("exp_avg", "exp_avg_sq")},
            }
        grown = int(new.sum())
        grew = self.densifier.apply(self.gaussians.detach(), index, new)
        if refinement:
            refinement.hold(self.gaussians.detach().means[index], grew)
            refinement.follow(index, new)
        self._adopt(grew, moments)
        return {"grown": float(grown), "pruned": float(before + grown - len(index))}

    # --- what is remembered -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Flat, tensors only; the Gaussians, their moments and the densifier's sums are no copies."""
        state: dict[str, Tensor] = {"step": torch.tensor(self.step), "skipped": torch.tensor(self.skipped)}
        for name, parameter in self.gaussians.params().items():
            state[f"gaussians.{name}"] = parameter.detach()
            state |= {f"adam.{name}.{key}": value for key, value in self._moments(name).items()}
        state |= {f"generator.{name}": g.get_state() for name, g in self.generators.items()}
        state |= {f"densifier.{name}": value for name, value in self.densifier.state_dict().items()}
        if self.refinement:
            state |= {f"refinement.{name}": value for name, value in self.refinement.state_dict().items()}
        return state | {f"guidance.{name}": value for name, value in self.guidance.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        device = self.gaussians.device
        gaussians = Gaussians(**part("gaussians.")).to(device)  # type: ignore[arg-type]  # tensors alone
        moments = {
            name: {k: v if k == "step" else v.to(device) for k, v in part(f"adam.{name}.").items()}
            for name in gaussians.params()
        }
        self._adopt(gaussians, moments)
        for name, generator in self.generators.items():
            generator.set_state(state[f"generator.{name}"])
        self.densifier.load_state_dict(part("densifier."))
        if self.refinement:
            self.refinement.load_state_dict(part("refinement."))
        self.guidance.load_state_dict(part("guidance."))
        self.step, self.skipped = int(state["step"]), int(state["skipped"])

    def save_checkpoint(self, state: dict[str, Tensor] | None = None) -> None:
        """Replace the checkpoint in one step, by the present state or another; the one before is kept beside it."""
        assert self.folder is not None
        state = state or self.state_dict()
        latest, previous = (self.folder / "checkpoints" / name for name in CHECKPOINTS)
        write_tensors(latest, state, {"sha256": digest_of(state)}, keep=previous)

    def drop_previous_checkpoint(self) -> None:
        """Delete it: only a run that goes on has a use for it."""
        assert self.folder is not None
        (self.folder / "checkpoints" / CHECKPOINTS[1]).unlink(missing_ok=True)

    def load_checkpoint(self) -> None:
        """Take up the run in ``folder``; log lines after the checkpoint are dropped, for those steps come again.

        Where the last checkpoint is damaged, the one before serves, with a warning.

        Raises:
            FormatError: neither can be read, or they are of another version.
        """
        assert self.folder is not None
        errors = []
        for path in (self.folder / "checkpoints" / name for name in CHECKPOINTS):
            try:
                self.load_state_dict(read_checkpoint(path))
            except (KeyError, TypeError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                errors.append(f"{path}: expected a checkpoint of this version and of this run's options ({reason}).")
            except FormatError as error:
                errors.append(str(error))
            else:
                break
        else:
            raise FormatError(f"{errors[0]} Start anew with --overwrite.")
        for message in errors:
            logger.warning("%s Going on from the checkpoint before it, of step %d.", message, self.step)
        log = self.folder / "metrics.jsonl"
        if log.exists():
            write_atomic(log, b"".join(log.read_bytes().splitlines(keepends=True)[: self.step]))

    def _log(self, logs: dict[str, float]) -> None:
        assert self.folder is not None
        row = {"step": self.step, **{name: value if math.isfinite(value) else None for name, value in logs.items()}}
        try:
            append(self.folder / "metrics.jsonl", json.dumps(row).encode() + b"\n")
        except OutputError as error:
            self._logs = False
            logger.warning("%s Going on without a log from step %d on.", error, self.step)


class Stopwatch:
    """Where the time of a step goes; on CUDA by events, so that the host does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.start = time.perf_counter()
        self.laps: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def lap(self, name: str) -> None:
        """Name what happened since the last lap, or since the start."""
        self.laps.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """``seconds`` since the start and ``seconds_NAME`` of each lap; waits until the device is done with them."""
        if self.cuda:
            self.laps[-1][1].synchronize()
        out = {"seconds": time.perf_counter() - self.start}
        for (_, before), (name, now) in itertools.pairwise(self.laps):
            out[f"seconds_{name}"] = before.elapsed_time(now) / 1000 if self.cuda else now - before
        return out


def stream_seeds(seed: int) -> dict[str, int]:
    """One seed for each of :data:`STREAMS`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: int(torch.randint(2**62, (), generator=generator)) for name in STREAMS}


def sample_cameras(config: CameraConfig, views: int, size: int, generator: torch.Generator) -> Cameras:
    """``views`` cameras evenly around the object, at one random elevation, distance and field of view."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    azimuth, elevation, fov = between(0.0, 360.0), between(*config.elevation), between(*config.fov)
    distance = between(*config.distance) * config.radius / math.sin(math.radians(fov) / 2)
    ones = torch.ones(views)
    turn = torch.arange(views) * (360.0 / views)
    return orbit(azimuth + turn, elevation * ones, distance * ones, fov * ones, size, size)


def sample_background(kind: str, generator: torch.Generator) -> Float[Tensor, " 3"]:
    """One for all views of a step: white, mid or dark grey, or a colour in one step of ten (``augment``); or white."""
    which = float(torch.rand((), generator=generator))
    colour = torch.rand(3, generator=generator)
    if kind == "white" or which < 0.35:
        return torch.ones(3)
    return torch.full((3,), 0.5 if which < 0.7 else 0.2) if which < 0.9 else colour


def digest_of(state: dict[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and contents of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, checked to be those that were written.

    Raises:
        FormatError: the file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    state = read_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} is not a complete safetensors file ({error}).") from error
    if digest is not None and json.loads(digest) != digest_of(state):
        raise FormatError(f"{path} is damaged: expected the checksum that was written with it, received another.")
    return state


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None, keep: Path | None = None
) -> None:
    """A safetensors file, replaced in one step; what it replaces becomes ``keep``, if that is given.

    Raises:
        OutputError: the folder is read-only or full.
    """
    from safetensors.torch import save

    data = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        {name: json.dumps(value) for name, value in (metadata or {}).items()},
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        if keep and path.exists():
            os.replace(path, keep)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FormatError: the file is missing, truncated or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"{path} is not a complete safetensors file ({error}).") from error
