"""``psd-gs doctor``: is this machine ready, and if not, what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
"""A note costs speed or a feature; a problem stops the main job."""

MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and the remedy if it is not as it should be."""

    what: str
    state: State
    text: str
    remedy: str = ""


@dataclass
class Doctor:
    """Check Python, torch, CUDA, the compiler, memory, disk, the model hub and the weights.

    One line per finding, with a remedy where one is needed. The exit code is 0 if nothing stops
    `psd-gs generate`, else 1.
    """

    offline: bool = False
    """Do not try to reach the model hub."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.cli.terminal import silence_libraries

        silence_libraries()
        console = Console(highlight=False, markup=False)
        checks: list[Callable[[], Iterator[Finding]]] = [python, torch_and_gpu, build_tools, resources]
        checks += [] if self.offline else [hub]
        failed = False
        for check in [*checks, cached_weights, packages, choices]:
            for finding in check():
                failed |= finding.state == "problem"
                console.print(f"{MARKS[finding.state]}  {finding.what}: {finding.text}", soft_wrap=True)
                if finding.remedy:
                    console.print(f"         -> {finding.remedy}", soft_wrap=True)
        raise SystemExit(1 if failed else 0)


def python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except (ImportError, RuntimeError) as error:  # the wheel that does not fit torch says so at import only
        yield Finding(
            "torchvision",
            "problem",
            f"installed, but does not import ({str(error).splitlines()[0]}), and then neither does transformers",
            "pip uninstall torchvision (psd-gs does not need it)",
        )


def torch_and_gpu() -> Iterator[Finding]:
    import torch

    from psd_gs.models import KINDS, count
    from psd_gs.render import choose_renderer

    if not torch.cuda.is_available():
        for kind in KINDS[1:]:
            if count(kind):
                renderer, reason = choose_renderer(torch.device(kind))
                text = f"networks of published priors run here, beside renderer {renderer} ({reason}); not tested yet"
                yield Finding(kind, "note", text)
        nvidia = shutil.which("nvidia-smi")
        text = f"{torch.__version__}, no CUDA GPU: the embedded model runs on the CPU"
        remedy = "install a CUDA build of torch, see https://pytorch.org/get-started" if nvidia else ""
        yield Finding("torch", "note" if nvidia else "ok", text, remedy)
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {driver()}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")


def driver() -> str:
    """What drives the GPUs that torch calls ``cuda``: NVIDIA's driver or AMD's ROCm, with its version."""
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"driver {_first_line(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']) or 'unknown'}"


def build_tools() -> Iterator[Finding]:
    """What gsplat compiles itself with when it is asked for; nothing else needs it."""
    import torch

    from psd_gs.render.gsplat import is_built

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return
    if is_built():
        yield Finding("gsplat", "ok", "its CUDA kernels are built")
        return
    yield Finding("gsplat", "note", "its CUDA kernels are not built; the first `--renderer gsplat` does it, in minutes")
    yield nvcc(torch.version.cuda)
    compiler = "cl" if os.name == "nt" else os.environ.get("CXX", "c++")
    if shutil.which(compiler):
        yield Finding("compiler", "ok", compiler)
    else:
        remedy = "install a C++20 compiler, such as g++ 11 or newer"
        yield Finding("compiler", "note", f"{compiler} is not on the PATH; gsplat needs it to compile itself", remedy)
    if shutil.which("ninja"):
        yield Finding("ninja", "ok", "found")
    else:
        yield Finding("ninja", "note", "not on the PATH; gsplat needs it to compile itself", "pip install ninja")
    if importlib.util.find_spec("packaging") is None:
        yield Finding("packaging", "note", "missing; gsplat imports it without saying so", "pip install packaging")


def nvcc(wanted: str) -> Finding:
    """The CUDA compiler that torch would take, beside the CUDA version of torch: the major versions must be equal."""
    from torch.utils.cpp_extension import CUDA_HOME

    command = os.path.join(CUDA_HOME, "bin", "nvcc") if CUDA_HOME else "nvcc"
    found = re.search(r"release (\d+)\.(\d+)", _output([command, "--version"]) or "")
    major = wanted.split(".")[0]
    remedy = f"install the CUDA toolkit {wanted} (https://developer.nvidia.com/cuda-toolkit-archive) and set CUDA_HOME"
    if int(major) >= 13:  # NVIDIA's wheels for CUDA 12 hold no nvcc
        remedy += (
            f"; or pip install 'cuda-toolkit[nvcc,cccl,cudart]=={wanted}.*', set CUDA_HOME to nvidia/cu{major} in "
            f"site-packages, and there, in lib, ln -s libcudart.so.{major} libcudart.so"
        )
    if found is None:
        return Finding("nvcc", "note", f"not found; gsplat needs that of CUDA {wanted} to compile itself", remedy)
    version = f"{found[1]}.{found[2]}"
    if found[1] != major:
        return Finding("nvcc", "note", f"{version}, but torch was built for {wanted}; gsplat needs {major}.x", remedy)
    suffix = "as torch" if version == wanted else f"torch was built for {wanted}; the same major version is enough"
    return Finding("nvcc", "ok", f"{version}, {suffix}")


def resources() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = next(
        (p for p in (HF_HUB_CACHE, os.path.dirname(HF_HUB_CACHE), os.path.expanduser("~")) if os.path.isdir(p)), "."
    )
    free = shutil.disk_usage(place).free / 1e9
    remedy = "" if free > 10 else "free some space, or point HF_HOME to another disk"
    yield Finding("disk", "ok" if free > 10 else "note", f"{free:.0f} GB free for weights in {HF_HUB_CACHE}", remedy)
    from psd_gs.render._lists import sort_by_depth

    kept = sort_by_depth.stats.cache_path
    text = f"compiled loops are kept in {kept}" if kept else "compiled loops cannot be kept: each run compiles them"
    remedy = "" if kept else "set NUMBA_CACHE_DIR to a folder that can be written"
    yield Finding("kernels", "ok" if kept else "note", text, remedy)
    memory = available_memory()
    if memory is not None:
        remedy = "" if memory > 3 else "close other programs: a run takes 2 GB"
        yield Finding("memory", "ok" if memory > 3 else "note", f"{memory:.0f} GB available", remedy)


def available_memory() -> float | None:
    """Main memory that can be had, GB; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) / 1e6 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.constants import ENDPOINT

    if is_offline_mode():
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: only what is cached", "unset it to download models")
        return
    try:
        HfApi().model_info("openai/shap-e", timeout=5)
        yield Finding("hub", "ok", f"{ENDPOINT} answers")
    except Exception as error:  # the client, its HTTP library and the system each raise their own
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        yield Finding(
            "hub",
            "note",
            f"{ENDPOINT} does not answer ({reason})",
            "set HTTPS_PROXY or HF_ENDPOINT, or copy the cache from another machine; `--prior mini` needs no hub",
        )


def cached_weights() -> Iterator[Finding]:
    from psd_gs.published import WEIGHTS
    from psd_gs.weights import is_here

    here = [entry.name for entry in WEIGHTS.values() if is_here(entry)]
    yield Finding("weights", "ok", f"mini (embedded){''.join(f', {name}' for name in here)}")


def packages() -> Iterator[Finding]:
    """What installed packages offer."""
    from psd_gs.cli.models import all_offers

    for offer in all_offers():
        text = offer.problem or f"of the package {offer.package}"
        yield Finding(f"{offer.kind} {offer.name}", "note" if offer.problem else "ok", text)


def choices() -> Iterator[Finding]:
    """What ``auto`` would take."""
    from psd_gs.models import choose_prior, downloads, resolve, resolve_device
    from psd_gs.render import choose_renderer, renderer_device
    from psd_gs.render.choose import TRITON_NEEDS

    device = resolve_device("auto")
    renderer, reason = choose_renderer(device)
    slow = renderer == "cpu" and device.type != "cpu"
    text = f"auto is {renderer} on {renderer_device(device)}: {reason}"
    remedy = f"triton, which is faster, needs {TRITON_NEEDS}" if slow else ""
    yield Finding("renderer", "note" if slow else "ok", text, remedy)
    names = resolve("auto", "auto", "auto", device)
    missing = downloads(*names)
    text = f"auto is prior {names[0]}, reward {names[1]}, judge {names[2]}: {choose_prior(device)[1]}"
    if missing:
        sizes = ", ".join(f"{entry.name} {entry.gigabytes:.1f} GB" for entry in missing)
        command = " && ".join(f"psd-gs models pull {entry.name}" for entry in missing)
        yield Finding("prior", "note", f"{text}; to be downloaded: {sizes}", f"{command}, or use --prior mini")
    else:
        yield Finding("prior", "ok", text)


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _first_line(command: list[str]) -> str | None:
    lines = (_output(command) or "").splitlines()
    return lines[0].strip() if lines else None
