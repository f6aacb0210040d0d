"""Published weights: where they are, how they are fetched, and whether they are whole.

A name is looked up in this order: an explicit path, the Hugging Face cache, the pinned repository, its
mirrors. Repositories move: runwayml took Stable Diffusion 1.5 away in 2024, Stability AI 2.x in November 2025.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from psd_gs.entries import PRIORS, REWARDS
from psd_gs.errors import ConfigError, ModelError
from psd_gs.files import loads
from psd_gs.published import EMBEDDED, WEIGHTS, Weights

SHOWN = 5
"""Most keys that an error names."""

Shapes = Mapping[str, tuple[int, ...]]


_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SKIPPED = ("safety_checker", "feature_extractor", "renderer")
"""Components that no prior uses; the last is Shap-E's former renderer, which no version of diffusers here reads."""


# --- finding and fetching --------------------------------------------------------------------------------------------


def locate(name: str, *, download: bool = True, only: tuple[str, ...] = ()) -> Path:
    """The local folder (or file) of a name that :func:`find` knows, a path, or a hub id ``owner/name``.

    Args:
        name: of what; a folder called like a known model is written ``./sd15``.
        download: fetch it if it is not in the cache; progress is shown, and broken downloads go on.
        only: files that are enough, instead of all that is used.

    Raises:
        ConfigError: neither a name, a path nor the form of a hub id.
        ModelError: it is nowhere to be had; names everything that was tried and what can be done.
    """
    path = Path(name).expanduser()
    if not find(name) and path.exists():
        return path
    entry = describe(name)
    entry = replace(entry, files=only) if only else entry
    for repo, revision in entry.repos:
        found = cached(entry, repo, revision)
        if found:
            return found
    if not download:
        raise _missing(entry, [])
    tried = []
    for repo, revision in entry.repos:
        try:
            return fetch(entry, repo, revision)
        except Exception as error:  # the hub's client, its HTTP library and the disk each raise their own
            tried.append(f"{repo}{f'@{revision[:8]}' if revision else ''}: {_reason(error)}")
    raise _missing(entry, tried)


def describe(name: str) -> Weights:
    """What is published under a name or a hub id.

    Raises:
        ConfigError: the name has neither form.
    """
    if entry := find(name) or _of_hub(name):
        return entry
    raise ConfigError(
        f"unknown model {name!r}: expected {', '.join(PRIORS)}, another name that `psd-gs models list` shows, a hub id "
        "such as owner/name, or an existing folder."
    )


def find(name: str) -> Weights | None:
    """What is published under a name: of ours, or of a prior or reward of another package.

    Raises:
        PluginError: the package is broken.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    offered = (table[name].weights for table in (PRIORS, REWARDS) if name in table.plugins)
    return next((entry for entry in offered if entry), None)


def _of_hub(name: str) -> Weights | None:
    """An entry for a hub id; None if ``name`` has not the form of one."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return None
    return Weights(name, "prior", ((name, None),), 0.0, "see its page")


def cached(entry: Weights, repo: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, if it is complete; needs no network."""
    from huggingface_hub import snapshot_download

    folder: str | None
    try:
        folder = snapshot_download(repo, revision=revision, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:  # not there, without the files that nobody uses, or no home
        folder = getattr(error, "snapshot_path", None)
    return Path(folder) if folder and is_complete(Path(folder), entry.files) else None


def provenance(name: str) -> dict[str, str]:
    """Licence of a model by name or hub id; repository and revision of the copy on this machine, or its package."""
    if name in EMBEDDED:  # the prior mini too
        return {"name": name, "repository": "embedded", "licence": "Apache-2.0"}
    entry = find(name) or (_of_hub(name) if not Path(name).expanduser().exists() else None)
    if entry is None:
        table = next((table for table in (PRIORS, REWARDS) if name in table.plugins), None)
        package = {"repository": f"package {table.package(name)}"} if table else {}
        return {"name": name, **package, "licence": table.licence(name) if table else "unknown"}
    copies = ((repo, revision, cached(entry, repo, revision)) for repo, revision in entry.repos)
    repo, revision, folder = next((copy for copy in copies if copy[2]), (*entry.repos[0], None))
    revision = revision or (folder.name if folder else "newest")
    return {"name": name, "repository": repo, "revision": revision[:12], "licence": entry.licence}


def is_here(entry: Weights) -> bool:
    """Whether the cache has a complete copy, of whichever repository."""
    return any(cached(entry, *repo) for repo in entry.repos)


def fetch(entry: Weights, repo: str, revision: str | None) -> Path:
    """Download what is used of a repository into the cache; whole files that are there already are kept."""
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    if is_offline_mode():
        raise ModelError("HF_HUB_OFFLINE is set")
    wanted = list(entry.files)
    if not wanted:
        wanted = choose_files(
            file.rfilename for file in HfApi().model_info(repo, revision=revision, timeout=20).siblings or []
        )
    return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


def choose_files(listing: Iterable[str]) -> list[str]:
    """What is needed of a diffusers repository: no remote code, one precision, safetensors where there are any.

    Per component the fp16 variant is taken where there is one, else the plain files; pickled ``.bin`` only
    without safetensors (they are read with ``weights_only``). Those of :data:`SKIPPED` are left out.
    """
    kept: list[str] = []
    weights: dict[str, list[str]] = {}
    for name in sorted(listing):
        path = PurePosixPath(name)
        component = path.parent.as_posix()
        if len(path.parts) > 2 or component in SKIPPED:
            continue
        if path.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")):
            if component != ".":
                weights.setdefault(component, []).append(name)
        elif path.suffix in (".json", ".txt", ".model"):
            kept.append(name)
    for names in weights.values():
        safe = [name for name in names if ".safetensors" in name] or names
        half = [name for name in safe if "fp16" in name.split("/")[1]]
        plain = [name for name in safe if name.split("/")[1].split(".")[1] in ("safetensors", "bin")]
        kept += half or plain
    return sorted(kept)


def is_complete(folder: Path, files: Iterable[str] = ()) -> bool:
    """Whether a snapshot has all ``files``, or else every component that its ``model_index.json`` names."""
    if files:
        return all((folder / name).is_file() for name in files)
    try:
        components = components_of(folder)
    except ModelError:
        return False
    return all(_has_weights(folder / name) for name, (_, kind) in components.items() if _is_network(kind))


def components_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Component to (library, class) of a diffusers pipeline, without those that are absent or skipped.

    Raises:
        ModelError: no ``model_index.json``, or not one.
    """
    index = read_json(folder / "model_index.json", f"{folder}: expected a diffusers pipeline with model_index.json")
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] and not name.startswith("_")
        if name not in SKIPPED
    }


def pipeline_class(folder: Path) -> str:
    """The class that a ``model_index.json`` names.

    Raises:
        ModelError: no ``model_index.json``, or not one.
    """
    index = read_json(folder / "model_index.json", f"{folder}: expected a diffusers pipeline with model_index.json")
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list) and name else name)


def read_json(path: Path, expected: str) -> dict:
    """A JSON object.

    Raises:
        ModelError: says what was ``expected``.
    """
    try:
        return loads(path.read_bytes(), dict[str, Any])
    except OSError as error:
        raise ModelError(f"{expected}, received {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise ModelError(f"{expected}, received invalid JSON ({error}). Download it again.") from error


def _is_network(kind: str) -> bool:
    return not any(word in kind for word in ("Tokenizer", "Scheduler", "Processor", "Extractor"))


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except ModelError:
        return False


def _missing(entry: Weights, tried: list[str]) -> ModelError:
    from huggingface_hub.constants import HF_HUB_CACHE

    places = "; ".join([f"the cache {HF_HUB_CACHE}: not there", *tried])
    size = f"{entry.gigabytes:.1f} GB, " if entry.gigabytes else ""
    gate = (
        f" after accepting the licence at https://huggingface.co/{entry.repos[0][0]} and `hf auth login`"
        if entry.gated
        else ""
    )
    mini = "--reward mini --judge mini-judge"
    without = {"prior": "--prior mini", "reward": mini, "part": mini, "init": "--init ball"}[entry.kind]
    own = {
        "prior": "name a local copy with --prior PATH",
        "reward": f"name a local copy with --reward {entry.name}=PATH",
        "part": f"put {' and '.join(entry.files)} beside the weights and name their folder, --reward NAME=FOLDER",
        "init": "start from a file with --init FILE",
    }[entry.kind]
    return ModelError(
        f"no weights for {entry.name} ({size}licence {entry.licence}). Tried {places}. "
        f"With a connection: `psd-gs models pull {entry.name}`{gate}; or {own}; or {without}, "
        "which needs no download."
    )


def _reason(error: Exception) -> str:
    """What went wrong with a repository, in a few words."""
    words = {
        "GatedRepoError": "its licence has to be accepted first",
        "RepositoryNotFoundError": "no such repository, or a private one",
        "RevisionNotFoundError": "the pinned revision is gone",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
        "ConnectError": "no connection",
        "ConnectTimeout": "no connection",
        "ConnectionError": "no connection",
        "LocalEntryNotFoundError": "no connection",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in words:
            return words[kind.__name__]
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


# --- are they whole? -------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The weights of one component: a single file, or the shards that its index names; fp16 first.

    Raises:
        ModelError: there are none, or shards are missing.
    """
    names = sorted(p.name for p in folder.glob("*") if ".safetensors" in p.name or ".bin" in p.name)
    names = [name for name in names if ".safetensors" in name] or names
    names = [name for name in names if "fp16" in name] or [
        n for n in names if n.split(".")[1] in ("safetensors", "bin")
    ]
    for index in (name for name in names if name.endswith(".json")):
        table = read_json(folder / index, f"{folder / index}: expected an index of shards").get("weight_map", {})
        shards = sorted(set(table.values()))
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            raise ModelError(f"{folder}: {len(absent)} shards are missing, first {absent[0]}. Download it again.")
        return [folder / name for name in shards]
    if names:
        return [folder / names[0]]
    state = "no safetensors file in it" if folder.is_dir() else "no such folder"
    raise ModelError(f"{folder}: expected the weights of a network, received {state}. Download it again.")


def read_header(path: Path) -> Shapes:
    """Names and shapes of a safetensors file, without its data.

    Raises:
        ModelError: it is truncated, or something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if 8 <= length + 8 <= size else b""
    try:
        header = loads(raw, dict[str, Any])
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path}: expected a safetensors file, received {size:,} bytes of something else. Download it again."
        ) from error
    if 8 + length + end != size:
        raise ModelError(
            f"{path} is truncated: expected {8 + length + end:,} bytes, received {size:,}. "
            "Delete it and download it again."
        )
    return shapes


def compare_shapes(expected: Shapes, received: Shapes, what: str) -> None:
    """Names and shapes must be the same.

    Raises:
        ModelError: names the first that are missing, too many or of another shape.
    """
    differing = [
        f"{name} {list(received[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in received and tuple(received[name]) != tuple(shape)
    ]
    groups = {
        "missing": [name for name in expected if name not in received],
        "unknown": [name for name in received if name not in expected],
        "of another shape": differing,
    }
    told = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in groups.items()
        if names
    )
    if told:
        raise ModelError(
            f"{what}: expected {len(expected)} tensors, received {len(received)}: {told}. "
            "The weights are of another architecture; check which model this is."
        )


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 of every file of weights under ``path``, by its name relative to it.

    In the Hugging Face cache a file's digest is the name of the blob it points to, so nothing is read there.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _WEIGHT_SUFFIXES)
    root = path.parent if path.is_file() else path
    return {file.relative_to(root).as_posix(): recorded_sha256(file) or sha256(file) for file in files}


def recorded_sha256(path: Path) -> str | None:
    """The digest that the cache keeps as the name of the blob, if ``path`` is in it."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(name: str) -> list[str]:
    """Read every byte of a local model and compare sizes and digests; returns what is wrong.

    Raises:
        ModelError: it is not on this machine.
    """
    folder = locate(name, download=False)
    entry = find(name)
    known = entry.sha256 if entry else {}
    wrong = []
    for file in sorted(p for p in folder.rglob("*") if p.suffix in _WEIGHT_SUFFIXES):
        relative = file.relative_to(folder).as_posix()
        if file.suffix == ".safetensors":
            try:
                read_header(file)
            except ModelError as error:
                wrong.append(str(error))
                continue
        expected = known.get(relative) or recorded_sha256(file)
        found = sha256(file) if expected else None
        if found != expected:
            wrong.append(f"{file}: expected SHA-256 {expected}, received {found}. Delete it and download it again.")
    return wrong
