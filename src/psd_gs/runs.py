"""Run folders: ``outputs/<slug>-<seed>/``, how they are named and what lies in them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from psd_gs.errors import FormatError, InputError
from psd_gs.files import loads, read_bounded, read_json, write_atomic

ASSET = "splat.ply"
"""The first thing that a finished optimization leaves."""

RECORD = "psd_gs.json"
"""Written after everything that is made of the asset: a folder that holds both is finished."""

OPTIONS = "config.yaml"
"""Written after the first checkpoint: a folder that holds it has begun, and can always go on."""

SLUG_LENGTH = 48
LOG_BYTES, LOG_LINES = 64 << 20, 200_000
"""Largest ``metrics.jsonl``."""


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
    frames = {path: int(path.stem) for path in sorted(folder.glob("progress/*.png")) if path.stem.isdecimal()}
    return [path for path, step in frames.items() if step <= last]


def has_begun(folder: Path) -> bool:
    return (folder / OPTIONS).exists()


def is_finished(folder: Path) -> bool:
    return (folder / ASSET).exists() and (folder / RECORD).exists()


class Record(TypedDict, total=False):
    """What is read again of ``psd_gs.json``; there are more fields."""

    prompt: str
    seed: int
    steps: int
    steps_done: int
    created: str
    prior: str
    reward: str
    judge: str
    models: dict[str, list[dict[str, str]]]
    scores: dict[str, float | None]
    failed: dict[str, str]
    refined: dict[str, Any]
    images: list[dict[str, Any]]
    n_splats: int


def read_record(folder: Path, *required: str) -> Record:
    """What ``psd_gs.json`` of a finished run says.

    Args:
        folder: of the run.
        required: fields that it must have.

    Raises:
        FormatError: it is damaged, or lacks one of them.
        InputError: it cannot be read.
    """
    record = read_json(folder / RECORD, Record)
    if missing := [name for name in required if name not in record]:
        raise FormatError(f"{folder / RECORD}: expected {', '.join(missing)}, received none. Delete it, and --resume.")
    return record


def read_log(path: Path) -> list[dict[str, float | None]]:
    """The steps of a run, ``metrics.jsonl``; a last line that was cut off is left out.

    Raises:
        InputError: a damaged line, or too many.
    """
    rows = []
    lines = read_bounded(path, LOG_BYTES).splitlines(keepends=True) if path.exists() else []
    if len(lines) > LOG_LINES:
        raise InputError(f"{path}: expected at most {LOG_LINES:,} steps, received {len(lines):,} lines.")
    for number, line in enumerate(lines, start=1):
        try:
            row = loads(line, dict[str, float | None])
            if row.get("step") is None:
                raise ValueError("expected fields by name, with the step")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise InputError(f"{path}, line {number}: {error}. Delete that line.") from error
        rows.append(row)
    return rows


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """A YAML file, replaced in one step; keys keep their order."""
    import yaml

    write_atomic(path, yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(data, indent=2) + "\n")
