"""``psd-gs generate``: a sentence in, a run folder with splats, a mesh and pictures out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.config import Config
    from psd_gs.live import LiveView
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.trainer import StepEvent, Trainer

PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""

Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass
class Generate:
    """Make a 3D asset from a sentence.

    Optimizes 3D Gaussians under a diffusion prior with preference score distillation, and writes
    splat.ply, mesh.glb, turntable.mp4, preview.png and report.html into outputs/PROMPT-SEED/. Without
    a GPU and a model hub it uses the small embedded model of toy-like objects (see `psd-gs words`).
    """

    prompt: Positional[str]
    """What to make, for instance "a corgi wearing a red hat"."""
    preset: Text = None
    """Tier of quality against time: draft, default or quality (configs/*.yaml). Default: default."""
    recipe: Text = None
    """Settings of a published method instead of a preset: dreamgaussian, gaussiandreamer, luciddreamer, mvdream,
    dreamdpo, rewardsds, dreamreward or psd (configs/recipes/*.yaml), with its prior and reward."""
    prior: Text = None
    """Diffusion model: auto, mini (embedded), mvdream, sd15, sd21, sdxl, sd3, a hub id or a local folder."""
    reward: Text = None
    """What ranks the noise pairs: mini, hpsv2.1, hpsv2, hpsv1, pickscore, imagereward, clip, aesthetic,
    aesthetic-linear, reward3d or reward3d-fusion, NAME=PATH for a local copy, file.py:function for your own,
    or a weighted sum such as hpsv2.1,pickscore:0.5. Default: the one that belongs to the prior."""
    judge: Text = None
    """What scores the result, likewise, and is never optimized. Default: the one that belongs to the prior."""
    method: Text = None
    """Base score: sds, recon, csd, vsd, ism, nfsd or asd. Default: the preset's."""
    preference: Text = None
    """Preference score: psd, dreamdpo, rewardsds, dreamfl or none. Default: the preset's."""
    negative_prompt: Text = None
    """What the asset should not look like; where the refinement of the negative embedding starts."""
    negative_embedding: File = None
    """Start from a refined negative embedding (negative.safetensors of an earlier run)."""
    steps: Number = None
    """Optimization steps. Default: the preset's; the schedule stretches with it."""
    seed: Number = None
    """Seed of everything random. Default: 0."""
    best_of: Annotated[int, arg(metavar="N")] = 1
    """Run N seeds (SEED, SEED+1, ...), rank them by the reward, keep all."""
    device: Text = None
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    vram: Number = None
    """GPU memory to fit into: 8, 12 or 24 (GB). Default: as much as there is."""
    init: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from a 3DGS PLY, a point cloud (.ply), a mesh (.glb, .obj, .stl), or shap-e, instead of a ball."""
    for_mesh: bool = False
    """Make the splat itself solid at the end, as its mesh is (solid_steps: 150; the presets of mini always do)."""
    config: File = None
    """YAML file of options that goes over the preset; a run's config.yaml repeats the run."""
    output_dir: Annotated[Path, arg(metavar="DIR")] = Path("outputs")
    """Folder of all runs."""
    resume: bool = False
    """Go on with an interrupted run of this prompt and seed."""
    overwrite: bool = False
    """Delete a run of this prompt and seed and start anew."""
    live: bool = False
    """Show the asset in a browser while it is made, with pause and stop-and-keep (`pip install "psd-gs[live]"`)."""
    live_port: Annotated[int, arg(metavar="N")] = 8080
    """Port of --live on this machine; the next free one if it is taken."""
    quiet: bool = False
    """Print only the results and errors."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        if self.quiet:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from rich.console import Console

        from psd_gs import runs
        from psd_gs.errors import ConfigError
        from psd_gs.pipeline import TextTo3DPipeline, check_prompt_text, choose_prior, resolve_device

        console = Console(highlight=False, markup=False, quiet=self.quiet)
        check_prompt_text(self.prompt)
        if self.resume and self.overwrite:
            raise ConfigError("expected --resume or --overwrite, received both. Leave one of them out.")
        configs = self.configs()
        folders = [self._find(config.seed) for config in configs]
        if self.resume:
            configs = self._saved(console, configs, folders)
        first = configs[0]
        device = resolve_device(first.device)
        console.print(
            f"prior {first.prior} · reward {first.reward} · judge {first.judge} · {device} · "
            f"preset {first.preset}, {first.steps} steps",
            soft_wrap=True,
        )
        if first.prior == "mini":
            self._warn(console)
        if self.prior in (None, "auto") and first.prior == choose_prior(device)[0]:
            console.print(f"auto is {first.prior}: {choose_prior(device)[1]}", soft_wrap=True)
        view = self._live(console)
        for folder in folders:
            runs.make_folder(folder)
        silence_libraries()
        self.download(console, first)
        with console.status("loading models") if console.is_terminal else nullcontext():
            pipeline = TextTo3DPipeline.from_pretrained(
                first.prior,
                reward=first.reward,
                judge=first.judge,
                device=str(device),
                dtype=first.dtype,
                vram=first.vram,
                prior_size=first.prior_size,
            )
        configs = [self._with_weights(console, config, pipeline.digests) for config in configs]
        done = [
            (folder, self._run_one(console, pipeline, config, folder, view))
            for config, folder in zip(configs, folders, strict=True)
        ]
        if view:
            view.close()
        ranked = sorted(done, key=lambda pair: -pair[1].get(first.reward, 0.0))
        plain = Console(highlight=False, markup=False)
        for folder, scores in ranked:
            text = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
            plain.print(f"{folder}  ({text})", soft_wrap=True)

    def configs(self) -> list[Config]:
        """One per seed: preset, then the file, then the command line; models by their resolved names."""
        from psd_gs.config import make_config, preset, read_yaml
        from psd_gs.errors import ConfigError
        from psd_gs.guidance.config import check_combination
        from psd_gs.pipeline import resolve, resolve_device
        from psd_gs.priors import prior_family

        if self.best_of < 1:
            raise ConfigError(f"--best-of: expected 1 or more, received {self.best_of}.")
        file = read_yaml(self.config) if self.config else {}
        given = {
            "preset": self.recipe or self.preset,
            "device": self.device,
            "vram": self.vram,
            "steps": self.steps,
            "solid_steps": 150 if self.for_mesh else None,
            "seed": self.seed,
            "negative_embedding": str(self.negative_embedding) if self.negative_embedding else None,
        }
        guidance = {"method": self.method, "preference": self.preference, "negative_prompt": self.negative_prompt}
        flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        flags["guidance"] = {name: value for name, value in guidance.items() if value is not None}
        flags["init"] = {"source": self.init} if self.init else {}
        wanted = {"prior": self.prior, "reward": self.reward, "judge": self.judge}
        name = self._preset(file)
        device = resolve_device(self.device or str(file.get("device", "auto")))
        prior = self.prior or str(file.get("prior", preset(name, "").get("prior", "auto")))
        prior = resolve(prior, "auto", "auto", device)[0]
        family = prior_family(prior)
        own = preset(name, family) | file
        reward, judge = (wanted[kind] or str(own.get(kind, "auto")) for kind in ("reward", "judge"))
        names = resolve(prior, reward, judge, device)
        flags |= {"prompt": self.prompt, **dict(zip(wanted, names, strict=True))}
        where = str(self.config) if self.config else "command line"
        first = make_config(name, family, file, flags, where=where)
        check_combination(first.guidance)
        return [replace(first, seed=first.seed + i) for i in range(self.best_of)]

    def _preset(self, file: dict[str, Any]) -> str:
        """The name of the preset or recipe."""
        from psd_gs.config import RECIPES, suggestion
        from psd_gs.errors import ConfigError

        if self.recipe and self.preset:
            raise ConfigError("expected --recipe or --preset, received both. Leave one of them out.")
        if self.recipe and self.recipe not in RECIPES:
            raise ConfigError(f"unknown recipe {self.recipe!r}.{suggestion(self.recipe, RECIPES)}")
        return self.recipe or self.preset or str(file.get("preset", "default"))

    def _find(self, seed: int) -> Path:
        from psd_gs.runs import find_run

        return find_run(self.output_dir, self.prompt, seed, resume=self.resume, overwrite=self.overwrite)

    def _saved(self, console: Console, configs: list[Config], folders: list[Path]) -> list[Config]:
        """The options with which the runs began; those of this command for seeds that have not begun."""
        from psd_gs.config import Config, from_dict, read_yaml, to_dict
        from psd_gs.errors import OutputError
        from psd_gs.runs import has_begun

        if not any(map(has_begun, folders)):
            raise OutputError(
                f"nothing to resume in {folders[0]}: expected a run of this prompt and seed. Leave --resume out."
            )
        out = []
        for config, folder in zip(configs, folders, strict=True):
            if has_begun(folder):
                path = folder / "config.yaml"
                saved = from_dict(Config, read_yaml(path), str(path))
                if saved.prompt != self.prompt:
                    raise OutputError(
                        f"{folder} holds a run of {saved.prompt!r}. Choose another --output-dir or --seed."
                    )
                saved = replace(saved, vram=config.vram if self.vram else saved.vram)  # as an error may have advised
                mine, its = to_dict(config) | {"weights": saved.weights}, to_dict(saved)
                other = ", ".join(name for name in its if its[name] != mine[name])
                if other:
                    console.print(f"warning: {path} differs from this command in {other}, and holds", soft_wrap=True)
                config = saved
            out.append(config)
        return out

    def download(self, console: Console, config: Config) -> None:
        """Fetch what is missing, after saying how much that is."""
        from psd_gs import weights
        from psd_gs.pipeline import downloads

        starts = [weights.WEIGHTS["shap-e"]] if config.init.source == "shap-e" else []
        missing = [entry for entry in starts if not weights.is_here(entry)]
        for entry in [*downloads(config.prior, config.reward, config.judge), *missing]:
            console.print(f"fetching {entry.name}: {entry.gigabytes:.1f} GB, licence {entry.licence}", soft_wrap=True)
            weights.locate(entry.name)

    def _with_weights(self, console: Console, config: Config, digests: dict[str, str]) -> Config:
        """The configuration with the weights that were loaded, compared with those it names."""
        changed = [name for name, digest in config.weights.items() if digests.get(name) != digest]
        if changed:
            console.print(f"warning: other weights than in the given config: {', '.join(changed)}", soft_wrap=True)
        return replace(config, weights=digests)

    def _warn(self, console: Console) -> None:
        from psd_gs.priors.mini import check_prompt

        message = check_prompt(self.prompt).message
        if message:
            console.print(f"warning: {message}", style="yellow", soft_wrap=True)

    def _live(self, console: Console) -> LiveView | None:
        """The live view, if it is wanted; its address is printed even with --quiet."""
        if not self.live:
            return None
        from rich.console import Console as Loud

        from psd_gs.live import LiveView

        view = LiveView(self.live_port)
        (Loud(highlight=False, markup=False) if self.quiet else console).print(f"live view: {view.address}")
        return view

    def _run_one(
        self, console: Console, pipeline: TextTo3DPipeline, config: Config, folder: Path, view: LiveView | None
    ) -> dict[str, float]:
        """One seed, from its first step or its checkpoint to the files; returns the scores."""
        from psd_gs import runs
        from psd_gs.config import to_dict

        if self.resume and runs.is_finished(folder):
            console.print(f"{folder} is finished already", soft_wrap=True)
            return _scores(folder)
        trainer = pipeline.trainer(config, folder)
        if self.overwrite:
            runs.make_folder(folder, empty=True)  # now that nothing of the command can be wrong any more
        if runs.has_begun(folder):
            trainer.load_checkpoint()
            console.print(f"going on from step {trainer.step}")
        else:
            trainer.save_checkpoint()  # first, so that a run that has begun can always go on
            runs.write_yaml(folder / "config.yaml", to_dict(config))
        with stop_after_step() as stop:
            progress = self._progress_bar if console.is_terminal else self._progress_lines
            progress(console, trainer, view.follow(trainer, stop) if view else trainer.run(), stop)
        if stop.is_set():
            trainer.save_checkpoint()
            console.print(f"stopped at step {trainer.step}; go on with the same command and --resume")
            raise SystemExit(130)
        if trainer.step < config.steps:
            trainer.save_checkpoint()
            console.print(f"kept as of step {trainer.step} of {config.steps}")
        result = pipeline.result(trainer)
        with console.status("writing") if console.is_terminal else nullcontext() as status:
            result.save(folder, lambda name: status.update(f"writing {name}") if status else None)
        skipped = f", {trainer.skipped} steps skipped for non-finite gradients" if trainer.skipped else ""
        console.print(f"{len(result.gaussians)} Gaussians{skipped}")
        return _scores(folder)

    def _progress_lines(self, console: Console, trainer: Trainer, events: Iterator[StepEvent], stop: Event) -> None:
        last = time.monotonic()
        live: dict[str, float] = {}
        for event in events:
            live |= event.logs  # of a step without a pair the last reward stays
            if time.monotonic() - last > PLAIN_SECONDS or event.step == event.steps:
                last = time.monotonic()
                console.print(f"step {event.step}/{event.steps}  {_live(live)}", soft_wrap=True)
            if stop.is_set():
                return

    def _progress_bar(self, console: Console, trainer: Trainer, events: Iterator[StepEvent], stop: Event) -> None:
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
            for event in events:
                live |= event.logs
                progress.update(task, completed=event.step, live=_live(live))
                if stop.is_set():
                    return


def _scores(folder: Path) -> dict[str, float]:
    """As they were written: a run that is finished already says the same again, to the last digit."""
    from psd_gs.config import read_yaml

    return dict(read_yaml(folder / "psd_gs.json")["scores"])


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


@contextmanager
def stop_after_step() -> Iterator[Event]:
    """Ctrl-C sets the event instead of raising, so that a step is never left half done; a second one raises."""
    asked = Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
