"""The Triton kernels compiled ahead of time, for GPUs that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from psd_gs.cameras import turntable
from psd_gs.gaussians import random_ball
from psd_gs.render import triton as backend
from psd_gs.render.backend import Settings

TARGETS = {
    **{f"sm_{capability}": GPUTarget("cuda", capability, 32) for capability in (75, 80, 90, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

TYPES = {torch.float32: "*fp32", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}


class Launch(NamedTuple):
    """One call of a kernel, as the backend made it."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def launches(sh_degree: int = 0, antialiased: bool = False, median_depth: bool = True) -> list[Launch]:
    """What the backend launches in a forward and a backward pass; nothing runs."""
    calls: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        calls.append(Launch(kernel, arguments, options))
        if kernel is backend.count_tiles:  # how much memory the host asks for next
            arguments[kernel.arg_names.index("counts")].zero_()

    gaussians = random_ball(3, 0.5, scale=0.1, opacity=0.5, sh_degree=sh_degree).map(lambda p: p.requires_grad_())
    with mock.patch.object(backend, "_launch", record):
        settings = Settings(sh_degree, antialiased, median_depth, absgrad=True)
        drawn = backend.rasterize(gaussians, turntable(1, size=20), torch.zeros(1, 3), settings)
        drawn.rgb.sum().backward()
    return calls


def compile_for(target: GPUTarget, launch: Launch) -> Any:
    """Triton's compiled kernel for a launch on a GPU of the kind ``target``."""
    names = launch.kernel.arg_names
    options = {"enable_fp_fusion": True, **launch.options}
    if "PTX" in options:
        options["PTX"] = target.backend == "cuda"
    constants = {name: value for name, value in options.items() if name in names}
    types = [TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in launch.arguments]
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(launch.kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target, {name: value for name, value in options.items() if name not in names})


class Usage(NamedTuple):
    """What a kernel asks of an NVIDIA GPU: registers per thread, bytes spilled per thread, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


def usage(compiled: Any) -> Usage:
    """By Triton's own copy of cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", said)
    assert found, said
    return Usage(*map(int, found.groups()))
