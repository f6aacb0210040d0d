"""``psd-gs generate``: a sentence in, a run folder with splats, a mesh and pictures out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.config import Config
    from psd_gs.pipeline import Result, TextTo3DPipeline
    from psd_gs.trainer import Trainer

PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""


@dataclass
class Generate:
    """Make a 3D asset from a sentence.

    Optimizes 3D Gaussians under a diffusion prior with preference score distillation, and writes
    splat.ply, mesh.glb, turntable.mp4 and preview.png into outputs/PROMPT-SEED/. Without a GPU and
    without a model hub it uses the small embedded model of toy-like objects (see `psd-gs words`).
    """

    prompt: Positional[str]
    """What to make, for instance "a corgi wearing a red hat"."""
    preset: str = "default"
    """Tier of quality against time: draft, default or quality (configs/*.yaml)."""
    prior: str = "auto"
    """Diffusion model: mini (embedded) or a local folder."""
    reward: str = "auto"
    """Reward model that ranks the noise pairs."""
    judge: str = "auto"
    """Reward model that scores the result and is never optimized."""
    method: str | None = None
    """Base score: recon or sds. Default: the preset's."""
    preference: str | None = None
    """Preference score added to it: psd or none. Default: the preset's."""
    negative_prompt: str | None = None
    """What the asset should not look like; where the refinement of the negative embedding starts."""
    negative_embedding: Path | None = None
    """Start from a refined negative embedding (negative.safetensors of an earlier run)."""
    steps: int | None = None
    """Optimization steps. Default: the preset's; the schedule stretches with it."""
    seed: int = 0
    """Seed of everything random."""
    best_of: Annotated[int, arg(metavar="N")] = 1
    """Run N seeds (SEED, SEED+1, ...), rank them by the reward, keep all."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    init: str | None = None
    """Start from a 3DGS PLY, a point cloud (.ply) or a mesh (.glb, .obj, .stl) instead of a ball."""
    config: Path | None = None
    """YAML file of options that goes over the preset; a run's config.yaml repeats the run."""
    output_dir: Path = Path("outputs")
    """Folder of all runs."""
    resume: bool = False
    """Go on with an interrupted run of this prompt and seed."""
    overwrite: bool = False
    """Delete a run of this prompt and seed and start anew."""
    quiet: bool = False
    """Print only the results and errors."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from rich.console import Console

        from psd_gs.errors import ConfigError
        from psd_gs.pipeline import TextTo3DPipeline, check_prompt_text, resolve_device

        console = Console(highlight=False, quiet=self.quiet)
        check_prompt_text(self.prompt)
        if self.best_of < 1:
            raise ConfigError(f"--best-of: expected 1 or more, received {self.best_of}.")
        configs = [self._config(self.seed + i) for i in range(self.best_of)]
        first = configs[0]
        device = resolve_device(first.device)
        prior, reward, judge = first.prior, first.reward, first.judge
        console.print(
            f"prior {prior} · reward {reward} · judge {judge} · {device} · preset {first.preset}, {first.steps} steps"
        )
        if prior == "mini":
            self._warn(console)
        folders = [self._open(config.seed) for config in configs]
        silence_libraries()
        with console.status("loading models") if console.is_terminal else _nothing():
            pipeline = TextTo3DPipeline.from_pretrained(prior, reward=reward, judge=judge, device=str(device))
        done = [
            (folder, self._run_one(console, pipeline, config, folder))
            for config, folder in zip(configs, folders, strict=True)
        ]
        ranked = sorted(done, key=lambda pair: -pair[1].get(reward, 0.0))
        plain = Console(highlight=False)
        for folder, scores in ranked:
            text = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
            plain.print(f"{folder}  ({text})", soft_wrap=True)

    def _config(self, seed: int) -> Config:
        """Preset, then the file, then the command line; the models by their resolved names."""
        from psd_gs.config import make_config, read_yaml
        from psd_gs.pipeline import resolve
        from psd_gs.priors import FAMILY

        file = read_yaml(self.config) if self.config else {}
        wanted = {"prior": self.prior, "reward": self.reward, "judge": self.judge}
        models = [str(file.get(name, "auto")) if flag == "auto" else flag for name, flag in wanted.items()]
        given = {
            "preset": self.preset if self.preset != "default" else str(file.get("preset", "default")),
            "device": None if self.device == "auto" else self.device,
            "steps": self.steps,
            "negative_embedding": str(self.negative_embedding) if self.negative_embedding else None,
            "init": {"source": self.init} if self.init else None,
        }
        guidance = {"method": self.method, "preference": self.preference, "negative_prompt": self.negative_prompt}
        flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        flags |= dict(zip(wanted, resolve(*models), strict=True)) | {"prompt": self.prompt, "seed": seed}
        flags["guidance"] = {name: value for name, value in guidance.items() if value is not None}
        where = str(self.config) if self.config else "command line"
        return make_config(flags["preset"], FAMILY.get(flags["prior"], "mini"), file, flags, where=where)

    def _warn(self, console: Console) -> None:
        from psd_gs.priors.mini import check_prompt

        message = check_prompt(self.prompt).message
        if message:
            console.print(f"[yellow]warning:[/yellow] {message}", soft_wrap=True)

    def _open(self, seed: int) -> Path:
        from psd_gs.runs import open_run

        return open_run(self.output_dir, self.prompt, seed, resume=self.resume, overwrite=self.overwrite)

    def _run_one(self, console: Console, pipeline: TextTo3DPipeline, config: Config, folder: Path) -> dict[str, float]:
        """One seed, from its first step or its checkpoint to the files; returns the scores."""
        from psd_gs import runs
        from psd_gs.config import from_dict, read_yaml, to_dict

        if runs.is_finished(folder):
            console.print(f"{folder} is finished already")
            return dict(read_yaml(folder / "psd_gs.json")["scores"])
        if self.resume:
            from psd_gs.config import Config

            config = from_dict(Config, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
        trainer = pipeline.trainer(config, folder)
        if self.resume:
            trainer.load_checkpoint()
            console.print(f"going on from step {trainer.step}")
        else:
            runs.write_yaml(folder / "config.yaml", to_dict(config))
        try:
            self._optimize(console, trainer, pipeline)
        except KeyboardInterrupt:
            trainer.save_checkpoint()
            console.print(f"\nstopped at step {trainer.step}; go on with the same command and --resume")
            raise SystemExit(130) from None
        trainer.save_checkpoint()
        result = pipeline.result(trainer)
        with console.status("writing") if console.is_terminal else _nothing() as status:
            result.save(folder, lambda name: status.update(f"writing {name}") if status else None)
        self._report(console, result, trainer)
        return result.scores

    def _optimize(self, console: Console, trainer: Trainer, pipeline: TextTo3DPipeline) -> None:
        if console.is_terminal:
            self._progress_bar(console, trainer)
            return
        last = time.monotonic()
        for event in trainer.run():
            if time.monotonic() - last > PLAIN_SECONDS or event.step == event.steps:
                last = time.monotonic()
                console.print(f"step {event.step}/{event.steps}  {_live(event.logs)}", soft_wrap=True)

    def _progress_bar(self, console: Console, trainer: Trainer) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("optimizing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[live]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=trainer.config.steps, completed=trainer.step, live="")
            live: dict[str, float] = {}
            for event in trainer.run():
                live |= event.logs
                progress.update(task, completed=event.step, live=_live(live))

    def _report(self, console: Console, result: Result, trainer: Trainer) -> None:
        skipped = f", {trainer.skipped} steps skipped for non-finite gradients" if trainer.skipped else ""
        console.print(f"{len(result.gaussians)} Gaussians{skipped}")


def _live(logs: dict[str, float]) -> str:
    """The numbers that are worth watching."""
    shown = [f"{int(logs['gaussians'])} Gaussians"]
    if "reward_win" in logs:
        shown.append(f"reward {logs['reward_win']:+.2f} / {logs['reward_lose']:+.2f}")
    return "  ".join(shown)


def silence_libraries() -> None:
    """Keep the advisory messages of diffusers and transformers out of the output; errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class _nothing:  # noqa: N801 - reads as a statement where it is used
    """Stands in for a status line when there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None
