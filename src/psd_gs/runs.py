"""Run folders: ``outputs/<slug>-<seed>/``, how they are named and what lies in them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psd_gs.errors import InputError
from psd_gs.files import write_atomic

ASSET = "splat.ply"
"""The first thing that a finished optimization leaves."""

RECORD = "psd_gs.json"
"""Written after all that is made of the asset: a folder that holds both is finished."""

OPTIONS = "config.yaml"
"""Written after the first checkpoint: a folder that holds it has begun, and can always go on."""

SLUG_LENGTH = 48


def slug(prompt: str) -> str:
    """A prompt as a file name: ASCII letters, digits and dashes, at most :data:`SLUG_LENGTH` characters."""
    return _dashes(prompt)[:SLUG_LENGTH].strip("-") or "asset"


def _dashes(prompt: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def run_name(prompt: str, seed: int) -> str:
    """The name of a run's folder; where letters or digits are left out or cut off, a digest of the prompt is in it."""
    unmarked = (c for c in unicodedata.normalize("NFKD", prompt) if not unicodedata.combining(c))
    whole = all(c.isascii() for c in unmarked if c.isalnum()) and len(_dashes(prompt)) <= SLUG_LENGTH
    return f"{slug(prompt)}-{seed}" if whole else unique_run_name(prompt, seed)


def unique_run_name(prompt: str, seed: int) -> str:
    """Another one for every prompt: with a digest wherever the slug is not the prompt with dashes for its spaces."""
    name = slug(prompt)
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return f"{name}-{seed}" if name.replace("-", " ") == prompt else f"{name}-{digest}-{seed}"


def progress_frame(folder: Path, step: int) -> Path:
    """Where the picture of a run after so many steps belongs."""
    return folder / "progress" / f"{step:06d}.png"


def progress_frames(folder: Path, last: int) -> list[Path]:
    """The pictures of a run up to the step ``last``, in order."""
    return [path for path in sorted(folder.glob("progress/[0-9]*.png")) if int(path.stem) <= last]


def has_begun(folder: Path) -> bool:
    return (folder / OPTIONS).exists()


def is_finished(folder: Path) -> bool:
    return (folder / ASSET).exists() and (folder / RECORD).exists()


def read_record(folder: Path) -> dict[str, Any]:
    """What ``psd_gs.json`` of a finished run says.

    Raises:
        InputError: it is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(record["scores"], dict) and isinstance(record["steps_done"], int)):
            raise ValueError("expected scores by name, and steps_done")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Delete it, and go on with --resume.") from error
    return record


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """A YAML file, replaced in one step; keys keep their order."""
    import yaml

    write_atomic(path, yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(data, indent=2) + "\n")
