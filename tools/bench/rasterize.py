"""Time the rasterizers: forward and backward, projection included.

    python tools/bench/rasterize.py            # everything
    python tools/bench/rasterize.py --quick    # fewer repetitions
    python tools/bench/rasterize.py --limit    # pairs, operations and bytes of the CPU kernels, and their share of the
                                               # rate of multiply-adds that one thread of this machine reaches
    python tools/bench/rasterize.py --aot      # what the Triton kernels ask of a GPU, which need not be there

Every case takes the fastest of its repetitions. Columns that are compared with each other are timed in
turns, so that another program's load falls on both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.evaluation.sweep import processor
from psd_gs.gaussians import Gaussians, random_ball
from psd_gs.render import Backend, render
from psd_gs.render.choose import trouble_with_gsplat, trouble_with_triton

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from reference import render_dense

CASES = {
    "4 000 Gaussians, 4 views of 64²": (4_000, 4, 64, 0.03),
    "20 000 Gaussians, 256²": (20_000, 1, 256, 0.012),
    "100 000 Gaussians, 512²": (100_000, 1, 512, 0.006),
}
"""Number of Gaussians, views, pixels along the side, and the size of a Gaussian (the ball's radius is 0.6)."""

Image = Callable[[Gaussians, Cameras], Tensor]


def scene(n: int, views: int, size: int, scale: float, device: str = "cpu") -> tuple[Gaussians, Cameras]:
    """Half-transparent, slightly anisotropic Gaussians in a ball, seen from around."""
    generator = torch.Generator().manual_seed(0)
    gaussians = random_ball(n, 0.6, scale=scale, opacity=0.5, generator=generator)
    gaussians.quats = torch.randn(n, 4, generator=generator)
    gaussians.scales += 0.3 * torch.randn(n, 3, generator=generator)
    gaussians = gaussians.to(device).map(lambda parameter: parameter.requires_grad_())
    return gaussians, turntable(views, size=size).to(device)


def step(image: Image, gaussians: Gaussians, cameras: Cameras) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    synchronize = torch.cuda.synchronize if gaussians.device.type == "cuda" else lambda: None
    for parameter in gaussians.params().values():
        parameter.grad = None
    start = time.perf_counter()
    rgb = image(gaussians, cameras)
    synchronize()
    forward = time.perf_counter() - start
    gradient = rgb.new_ones(()).expand_as(rgb)  # without waking torch's threads, which would then spin beside ours
    synchronize()
    middle = time.perf_counter()
    rgb.backward(gradient)
    synchronize()
    return forward, time.perf_counter() - middle


def dense(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    return render_dense(gaussians, cameras).rgb


def usable_backends() -> list[Backend]:
    """Of the GPU."""
    device = torch.device("cuda")
    trouble: dict[Backend, str] = {"gsplat": trouble_with_gsplat(device), "triton": trouble_with_triton(device)}
    for backend, reason in trouble.items():
        if reason:
            print(f"without {backend}: {reason}", file=sys.stderr)
    return [backend for backend, reason in trouble.items() if not reason]


def with_threads(threads: int) -> Image:
    def image(gaussians: Gaussians, cameras: Cameras) -> Tensor:
        torch.set_num_threads(threads)
        return render(gaussians, cameras, backend="cpu").rgb

    return image


def fastest(images: list[Image], scenes: list[tuple[Gaussians, Cameras]], repetitions: int) -> list[tuple[float, ...]]:
    """Best forward, backward and total time of each, after one call to warm up."""
    times: list[list[tuple[float, float]]] = [[] for _ in images]
    for repetition in range(repetitions + 1):
        for record, image, arguments in zip(times, images, scenes, strict=True):
            seconds = step(image, *arguments)
            if repetition:
                record.append(seconds)
    return [(min(f for f, _ in r), min(b for _, b in r), min(f + b for f, b in r)) for r in times]


def titled(title: str, columns: tuple[str, ...], left: tuple[str, ...]) -> Table:
    """A table whose columns hold numbers, but those on the left."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def print_usage(console: Console) -> None:
    """Registers and shared memory of the Triton kernels built for sm_90."""
    from bench import aot

    columns = ("kernel", "warps", "registers", "spilled bytes", "shared bytes")
    table = titled(f"sm_90, Triton {aot.triton.__version__}", columns, ("kernel",))
    for launch in aot.launches(sh_degree=3, median_depth=False):
        used = aot.usage(aot.compile_for(aot.TARGETS["sm_90"], launch))
        table.add_row(launch.kernel.fn.__name__, str(launch.options.get("num_warps", 4)), *map(str, used))
    console.print(table)


def print_limit(console: Console, repetitions: int) -> None:
    """How near the compositing kernels are to what one thread can do."""
    from bench import limit

    rate = limit.fma_rate()
    columns = ("case", "pairs visited", "contributing", "", "ms", "GFLOP", "GFLOP/s", "share", "GB/s")
    table = titled(f"{processor()}, one thread: {rate / 1e9:.1f} GFLOP/s", columns, ("case", ""))
    for title, (n, views, size, scale) in CASES.items():
        gaussians, cameras = scene(n, views, size, scale)
        pairs, *works = limit.measure(gaussians, cameras, repetitions)
        row = [title, f"{pairs.visited / 1e6:.2f} M", f"{pairs.contributing / pairs.visited:.0%}"]
        for name, work in zip(("forward", "backward"), works, strict=True):
            speed = work.operations / work.seconds
            numbers = f"{1e3 * work.seconds:.1f}", f"{work.operations / 1e9:.3f}", f"{speed / 1e9:.1f}"
            table.add_row(*row, name, *numbers, f"{speed / rate:.0%}", f"{work.bytes / work.seconds / 1e9:.2f}")
            row = ["", "", ""]
        table.add_section()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 20")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for the threaded columns")
    parser.add_argument("--no-dense", action="store_true", help="skip the dense baseline")
    parser.add_argument("--limit", action="store_true", help="print the share of the machine's rate of multiply-adds")
    parser.add_argument("--aot", action="store_true", help="print what the Triton kernels take when built for sm_90")
    arguments = parser.parse_args()
    if arguments.aot:
        print_usage(Console(width=120))
        return
    repetitions = 3 if arguments.quick else 20
    if arguments.limit:
        print_limit(Console(width=120), repetitions)
        return
    gpu_backends = usable_backends() if torch.cuda.is_available() else []

    columns = ("case", "renderer", "forward ms", "backward ms", "total ms", "ratio")
    table = titled(f"{processor()}, torch {torch.__version__}", columns, ("case", "renderer"))
    for title, (n, views, size, scale) in CASES.items():
        names = ["cpu, 1 thread"]
        images, scenes = [with_threads(1)], [scene(n, views, size, scale)]
        if arguments.threads > 1:
            names.append(f"cpu, {arguments.threads} threads")
            images.append(with_threads(arguments.threads))
            scenes.append(scenes[0])
        for backend in gpu_backends:
            names.append(f"{backend}, {torch.cuda.get_device_name()}")
            images.append(lambda g, c, backend=backend: render(g, c, backend=backend).rgb)
            scenes.append(scene(n, views, size, scale, "cuda"))
        rows = list(zip(names, fastest(images, scenes, repetitions), strict=True))
        if size == 64 and not arguments.no_dense:
            torch.set_num_threads(arguments.threads)
            baseline = fastest([dense], scenes[:1], 2)
            rows.insert(0, (f"dense torch float32, {arguments.threads} threads", baseline[0]))
        for name, (forward, backward, total) in rows:
            ratio = rows[0][1][2] / total
            table.add_row(title, name, *(f"{1e3 * t:.1f}" for t in (forward, backward, total)), f"{ratio:.2f}x")
            title = ""
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
