"""What commands that optimize share: where the run goes, how it is shown, and its life from folder to files."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from psd_gs.cli.run_options import RunOptions
from psd_gs.cli.terminal import SlowSteps, silence_libraries, step_progress, stop_after_step

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.config import Config
    from psd_gs.job import Job
    from psd_gs.live import LiveView
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.published import Weights
    from psd_gs.result import Result
    from psd_gs.trainer import StepEvent


@dataclass(kw_only=True)
class Making(RunOptions):
    """Options of a run and of the folder it lives in; subclasses say what is made of what."""

    best_of: Annotated[int, arg(metavar="N")] = 1
    """Run N seeds (SEED, SEED+1, ...), rank them by the reward, keep all."""
    output_dir: Annotated[Path, arg(metavar="DIR")] = Path("outputs")
    """Folder of all runs."""
    resume: bool = False
    """Go on with an interrupted run of this prompt and seed, or make the files that a finished one lacks."""
    overwrite: bool = False
    """Delete a run of this prompt and seed and start anew."""
    dry_run: bool = False
    """Print the resolved options, where everything would run and what would be downloaded; write nothing."""
    live: bool = False
    """Show the asset in a browser while it is made, with pause and stop-and-keep; prints the address."""
    live_port: Annotated[int, arg(metavar="N")] = 8080
    """Port of --live on this machine; the next free one if it is taken, 0 for any."""
    quiet: bool = False
    """Print only the results and errors."""
    debug: bool = False
    """Show tracebacks."""

    def make(self, prompt: str) -> None:
        """One asset per seed."""
        if self.quiet:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from psd_gs.cli.console import work_console
        from psd_gs.errors import ConfigError

        console = work_console(quiet=self.quiet)
        if self.resume and self.overwrite:
            raise ConfigError("expected --resume or --overwrite, received both. Leave one of them out.")
        if self.best_of < 1:
            raise ConfigError(f"--best-of: expected 1 or more, received {self.best_of}.")
        first = self.resolve(prompt)
        if self.dry_run:
            return _describe(console, first)
        configs = [replace(first, seed=first.seed + i) for i in range(self.best_of)]
        with ExitStack() as stack:
            jobs = self._open(stack, configs)
            first = jobs[0].config
            console.print(_headline(first), soft_wrap=True)
            self._advise(console, jobs)
            view = self._live(console)
            if view:
                stack.callback(view.close)
            pipeline = self._pipeline(console, first)
            done = [(job.folder, self._make(console, pipeline, job, view)) for job in jobs]
        plain = work_console()
        for folder, result in sorted(done, key=lambda pair: -pair[1].scores.get(first.reward, 0.0)):
            scores = ", ".join(f"{name} {score:.3f}" for name, score in result.metadata["scores"].items())
            plain.print(f"{folder}  ({scores})", soft_wrap=True)

    def _open(self, stack: ExitStack, configs: list[Config]) -> list[Job]:
        """A folder per seed. With --resume, a seed that has not begun does so, if another one has."""
        from psd_gs.errors import OutputError
        from psd_gs.job import Job

        options: dict[str, Any] = {"resume": self.resume, "overwrite": self.overwrite, "named": self.named}
        jobs = [stack.enter_context(Job.find(self.output_dir, config, **options)) for config in configs]
        if self.resume and not any(job.has_begun for job in jobs):
            raise OutputError(
                f"nothing to resume in {jobs[0].folder}: expected a run of this prompt and seed, received none. "
                "Leave --resume out."
            )
        return jobs

    def _advise(self, console: Console, jobs: list[Job]) -> None:
        """What the user should know before any work is done."""
        from psd_gs.models import choose_prior, resolve_device
        from psd_gs.priors.mini import check_prompt
        from psd_gs.runs import OPTIONS

        for job in jobs:
            if job.differs:
                what = f"{job.folder / OPTIONS} differs from this command in {', '.join(job.differs)}, and holds"
                console.print(f"warning: {what}", soft_wrap=True)
        first = jobs[0].config
        if first.prior == "mini" and (message := check_prompt(first.prompt).message):
            console.print(f"warning: {message}", style="yellow", soft_wrap=True)
        chosen, why = choose_prior(resolve_device(first.device, first.prior))
        if self.prior in (None, "auto") and first.prior == chosen:
            console.print(f"auto is {chosen}: {why}", soft_wrap=True)

    def _pipeline(self, console: Console, config: Config) -> TextTo3DPipeline:
        """The models, after what is missing was fetched."""
        from psd_gs.models import fetch
        from psd_gs.pipeline import TextTo3DPipeline

        self.check_code(config)
        silence_libraries()
        fetch(config, lambda entry: console.print(f"fetching {_download(entry)}", soft_wrap=True))
        with console.status("loading models") if console.is_terminal else nullcontext():
            return TextTo3DPipeline.of(config, allow_code=True)

    def _live(self, console: Console) -> LiveView | None:
        """The live view, if it is wanted; its address is printed even with --quiet."""
        if not self.live:
            return None
        from psd_gs.cli.console import work_console
        from psd_gs.live import LiveView

        view = LiveView(self.live_port)
        loud = work_console() if self.quiet else console
        loud.print(f"live view: {view.address}", soft_wrap=True)
        return view

    def _make(self, console: Console, pipeline: TextTo3DPipeline, job: Job, view: LiveView | None) -> Result:
        """One seed, from its first step or its checkpoint to the files."""
        if job.is_finished:
            console.print(f"{job.folder} is finished already", soft_wrap=True)
            return self._written(console, job, partial(job.complete, pipeline))
        trainer = job.begin(pipeline)
        if job.changed_weights:
            what = ", ".join(job.changed_weights)
            console.print(f"warning: other weights than in the given config: {what}", soft_wrap=True)
        if trainer.step:
            console.print(f"going on from step {trainer.step}")
        steps = job.config.steps
        with stop_after_step() as stop, step_progress(console, steps, trainer.step) as show:
            slow = SlowSteps()

            def step(event: StepEvent) -> None:
                show(event)
                if message := slow(event.logs.get("seconds", 0.0)):
                    console.print(message, style="yellow", soft_wrap=True)

            whole = job.run(step, events=view.follow(trainer, stop) if view else None, stop=stop)
        if not whole:
            console.print(f"stopped at step {trainer.step}; go on with the same command and --resume")
            raise SystemExit(130)
        if trainer.step < steps:
            console.print(f"kept as of step {trainer.step} of {steps}")
        result = self._written(console, job, job.finish)
        skipped = f", {trainer.skipped} steps skipped for non-finite gradients" if trainer.skipped else ""
        console.print(f"{len(result.gaussians)} Gaussians{skipped}")
        return result

    def _written(self, console: Console, job: Job, write: Callable[..., Result]) -> Result:
        """The result of ``write``, which is shown at work; what it could not make is a line each."""
        with console.status("writing") if console.is_terminal else nullcontext() as status:
            result = write(lambda name: status.update(f"writing {name}") if status else None)
        for name, reason in result.failed.items():
            console.print(f"no {name}: {reason}", style="yellow", soft_wrap=True)
        if result.failed:
            console.print(f"{job.folder} has the asset; --resume tries the rest again", soft_wrap=True)
        return result


def _headline(config: Config) -> str:
    """The models, where they run, and whether they fit, before anything is downloaded.

    Raises:
        BackendError: the renderer that was asked for cannot run.
    """
    from psd_gs.models import resolve_device, shortage
    from psd_gs.render import choose_renderer

    device = resolve_device(config.device, config.prior)
    renderer, reason = choose_renderer(device, config.renderer)
    drawn = "" if device.type == "cpu" else f"\nrenderer {renderer}: {reason}"
    short = f"\nwarning: {message}" if (message := shortage(config, device)) else ""
    return (
        f"prior {config.prior} · reward {config.reward} · judge {config.judge} · {device} · "
        f"preset {config.preset}, {config.steps} steps{drawn}{short}"
    )


def _download(entry: Weights) -> str:
    return f"{entry.name}: {entry.gigabytes:.1f} GB, licence {entry.licence}"


def _describe(console: Console, config: Config) -> None:
    """All that is known of a run before it is made."""
    import yaml

    from psd_gs.config import to_dict
    from psd_gs.models import choose_prior, memory_of, missing, resolve_device

    device = resolve_device(config.device, config.prior)
    console.print(_headline(config), soft_wrap=True)
    if gigabytes := memory_of(config):
        console.print(
            f"the networks of the loop take {gigabytes:.1f} GB of GPU memory, activations aside", soft_wrap=True
        )
    if config.prior == choose_prior(device)[0]:
        console.print(f"auto is {config.prior}: {choose_prior(device)[1]}", soft_wrap=True)
    for entry in missing(config):
        console.print(f"would fetch {_download(entry)}", soft_wrap=True)
    console.print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True).rstrip(), soft_wrap=True)
