"""``psd-gs bench``: how fast this machine is, as a table to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Bench:
    """Time the renderers of this machine, and the steps of a prior whose weights are here.

    Prints a Markdown table that can be pasted into an issue. Nothing is downloaded and nothing is written. Close other
    programs that compute; it takes about a minute on a GPU, more on a CPU.
    """

    prior: str = "auto"
    """Whose steps are timed: a name, a hub id or a folder; auto is what `psd-gs generate` takes here."""
    gaussians: tuple[int, ...] = (20_000, 100_000)
    """Numbers of Gaussians that are rendered; the steps have the first."""
    size: int = 256
    """Side of the rendered views, pixels."""
    repeats: int = 10
    """Timed calls, of which the median is shown."""
    device: str = "auto"
    """auto, cuda, cuda:N, xpu, mps or cpu; auto is what `psd-gs generate` takes here."""
    vram: int = 0
    """GPU memory to fit into, GB: 8, 12 or 24; 0 is as much as there is."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.benchmark import Timing, render_times, step_times, table
        from psd_gs.cli.console import console
        from psd_gs.cli.terminal import silence_libraries
        from psd_gs.config import check_range
        from psd_gs.models import downloads, resolve, resolve_device
        from psd_gs.pipeline import TextTo3DPipeline
        from psd_gs.priors import load_prior
        from psd_gs.rewards import load_reward

        silence_libraries()
        check_range(self, 1, 10_000_000, "gaussians")
        check_range(self, 8, 4096, "size")
        check_range(self, 1, 10_000, "repeats")
        device = resolve_device(self.device, self.prior)
        prior, reward, _ = resolve(self.prior, "auto", "auto", device)
        show = console()
        show.print("\n".join(machine(device)) + "\n")
        timings: list[Timing] = list(render_times(device, self.gaussians, self.size, self.repeats))
        if missing := downloads(prior, reward):
            names = " and ".join(f"`psd-gs models pull {entry.name}`" for entry in missing)
            timings.append(Timing(f"{prior}: step", "", self.gaussians[0], None, f"its weights are not here: {names}"))
        else:
            models = load_prior(prior, device, vram=self.vram), load_reward(reward, device)
            timings += step_times(TextTo3DPipeline(*models), self.gaussians[0], self.repeats)
        show.print(table(timings))


def machine(device: torch.device) -> list[str]:
    """What the numbers depend on, as a Markdown list."""
    import torch

    from psd_gs import __version__
    from psd_gs.cli.doctor import driver
    from psd_gs.evaluation.sweep import processor
    from psd_gs.models import gpu_memory
    from psd_gs.render import choose_renderer

    versions = [f"psd-gs {__version__}", f"torch {torch.__version__}"]
    for name in ("triton", "gsplat", "diffusers"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    lines = [
        f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}, {', '.join(versions)}",
        f"- {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    ]
    if memory := gpu_memory(device):
        name = torch.get_device_module(device).get_device_properties(device).name
        lines.append(f"- {name}, {memory:.0f} GB{f', {driver()}' if device.type == 'cuda' else ''}")
    renderer, reason = choose_renderer(device)
    return [*lines, f"- device {device}, renderer {renderer}: {reason}"]
