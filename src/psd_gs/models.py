"""Names to models: what ``auto`` means, which weights a name needs, and where networks run."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from psd_gs import weights
from psd_gs.config import Config, suggestion
from psd_gs.entries import REWARDS
from psd_gs.errors import BackendError, ConfigError
from psd_gs.priors import needed as needed_by_prior
from psd_gs.priors import prior_entry
from psd_gs.published import WEIGHTS, Weights
from psd_gs.rewards import check_judge, local_copies, names_of, needed

MARGIN = 1.5
"""GPU memory that a run is given, as a multiple of what its tensors take: the rest is for the CUDA context, workspaces
and gaps. A guess, until somebody measures it."""

AUTO_MEMORY = 10
"""GPU memory in GB with which ``--prior auto`` is mvdream: :data:`MARGIN` times what its tensors take."""

KINDS = "cuda", "xpu", "mps"
"""Of GPUs, in the order in which ``auto`` takes them."""


def resolve_device(name: str, prior: str = "auto") -> torch.device:
    """Where the networks run. ``auto`` is CUDA (NVIDIA's and AMD's builds of torch) where there is one. Without, a
    published prior runs on Intel's or Apple's GPU and the embedded one, which gains nothing there, on the CPU.

    Args:
        name: of a device, or ``auto``.
        prior: for which, where it is known.

    Raises:
        BackendError: the device that was asked for is not there.
        ConfigError: not a device.
    """
    if name == "auto":
        kinds = ("cuda",) if prior == "auto" or not published(prior) else KINDS
        return torch.device(next((kind for kind in kinds if count(kind)), "cpu"))
    match = re.fullmatch(r"cpu|mps|(?:cuda|xpu)(?::(\d+))?", name)
    if not match:
        raise ConfigError(f"unknown device {name!r}.{suggestion(name, ('auto', 'cpu', 'cuda:0', *KINDS))}")
    device = torch.device(name)
    if name != "cpu" and int(match[1] or 0) >= count(device.type):
        raise BackendError(
            f"device {name} is not available: this torch ({torch.__version__}) sees {count(device.type)} such devices. "
            "Leave --device out to run on what it sees, or install a build of torch for it and its driver."
        )
    return device


def count(kind: str) -> int:
    """How many devices of a kind torch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def choose_prior(device: torch.device) -> tuple[str, str]:
    """What ``--prior auto`` means on a device, and why."""
    if device.type != "cuda":
        other = next((kind for kind in KINDS[1:] if count(kind)), "")
        return "mini", "without a CUDA GPU" + (f"; `--prior mvdream` runs on {other}" if other else "")
    total = gpu_memory(device)
    assert total is not None
    if total < AUTO_MEMORY:
        hint = "; `--prior mvdream --vram 8` should fit" if total >= MARGIN * prior_entry("mvdream").peaks[1] else ""
        return "mini", f"the GPU has {total:.0f} GB and mvdream with its reward takes {AUTO_MEMORY}{hint}"
    return "mvdream", f"the GPU has {total:.0f} GB"


def gpu_memory(device: torch.device) -> float | None:
    """Of a GPU, GB; None where torch does not tell, or for the CPU."""
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).get_device_properties(device).total_memory / 1e9


def shortage(config: Config, device: torch.device) -> str:
    """Why a run will hardly fit into a GPU, and what would; empty if it will, or if nothing is known of it."""
    total, (whole, least) = gpu_memory(device), prior_entry(config.prior).peaks
    takes = least if config.vram == 8 else whole
    if total is None or total >= MARGIN * takes:
        return ""
    fits = f"with --vram 8 {least:.1f}" if total >= MARGIN * least else "--prior mini fits anywhere"
    return f"{config.prior} takes {takes:.1f} GB and up to half of that again, the GPU has {total:.0f} GB; {fits}"


def resolve(prior: str, reward: str, judge: str, device: torch.device | None = None) -> tuple[str, str, str]:
    """``auto`` to names; the three belong together.

    Raises:
        ConfigError: the judge is a model that is optimized.
        ModelError: a hub id or folder whose family cannot be told.
    """
    prior = choose_prior(device or torch.device("cpu"))[0] if prior == "auto" else prior
    if "auto" in (reward, judge):  # only then the family of a hub id has to be known
        companions = prior_entry(prior).companions
        reward = companions[0] if reward == "auto" else reward
        if judge == "auto":
            judge = next((name for name in reversed(companions) if name not in names_of(reward)), companions[1])
    check_judge(reward, judge)
    return prior, reward, judge


def published(prior: str, *rewards: str) -> list[str]:
    """What a run loads besides the embedded models: published names, a hub id or a folder."""
    names = needed_by_prior(prior) + [name for reward in rewards for name in needed(reward)]
    return list(dict.fromkeys(names))


def downloads(prior: str, *rewards: str) -> list[Weights]:
    """Which published weights are not on this machine yet."""
    entries = [weights.find(name) for name in published(prior, *rewards)]
    return [entry for entry in entries if entry and not weights.is_here(entry)]


def digests_of(prior: str, *rewards: str) -> dict[str, str]:
    """SHA-256 of every file of weights that was fetched or named; the embedded ones belong to the version."""
    paths = {name: weights.locate(name) for name in published(prior, *rewards)}
    for reward in rewards:
        paths |= local_copies(reward)
    return {
        f"{name}/{file}": digest for name, path in paths.items() for file, digest in weights.checksums(path).items()
    }


def memory_of(config: Config) -> float:
    """GPU memory in GB that the networks of the loop take in half precision, without activations, which
    ``tools/bench/memory.py`` counts too; the judge waits elsewhere until the end."""
    names = [name.partition("=")[0] for name in names_of(config.reward)] if config.reward != "none" else []
    return prior_entry(config.prior).memory + sum(REWARDS[name].memory for name in names if name in REWARDS)


def models_of(config: Config) -> dict[str, list[dict[str, str]]]:
    """Models by what they were for, each with its licence, repository and revision."""
    names = {"prior": [config.prior]}
    names |= {role: names_of(name) for role in ("reward", "judge") if (name := getattr(config, role)) != "none"}
    names |= {"init": ["shap-e"]} if config.init.source == "shap-e" else {}
    return {role: [weights.provenance(name) for name in some] for role, some in names.items()}


def fetch(config: Config, on_fetch: Callable[[Weights], None] = lambda entry: None) -> None:
    """Download what a run needs and is not on this machine.

    Args:
        config: names the models.
        on_fetch: told of each download before it begins.

    Raises:
        ModelError: it is nowhere to be had.
    """
    for entry in missing(config):
        on_fetch(entry)
        weights.locate(entry.name)


def missing(config: Config) -> list[Weights]:
    """Which published weights a run needs that are not on this machine yet."""
    starts = [WEIGHTS["shap-e"]] if config.init.source == "shap-e" else []
    return [
        *downloads(config.prior, config.reward, config.judge),
        *(entry for entry in starts if not weights.is_here(entry)),
    ]
