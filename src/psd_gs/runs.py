"""Run folders: ``outputs/<slug>-<seed>/``, and what may be done with one that is already there."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psd_gs.errors import OutputError
from psd_gs.files import write_atomic

DONE = "splat.ply"
"""Written last: a folder that holds it is finished."""


def slug(prompt: str) -> str:
    """A prompt as a file name: ASCII letters, digits and dashes, at most 48 characters."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    text = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:48].strip("-")
    return text or "asset"


def open_run(root: Path, prompt: str, seed: int, *, resume: bool, overwrite: bool) -> Path:
    """The folder for a run, created.

    A finished run of the same name is left alone and the next free name taken (``a-corgi-0-2``).

    Args:
        root: of all runs.
        prompt: becomes the name.
        seed: of the run.
        resume: take up the unfinished run.
        overwrite: delete the unfinished or finished run and start anew.

    Raises:
        OutputError: the folder cannot be written; an unfinished run is there and neither switch is given;
            there is nothing to resume.
    """
    base = root / f"{slug(prompt)}-{seed}"
    folder, number = base, 1
    try:
        if overwrite and base.exists():
            shutil.rmtree(base)
        while (folder / DONE).exists() and not resume:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        unfinished = (folder / "config.yaml").exists() and not (folder / DONE).exists()
        if resume and not (folder / "config.yaml").exists():
            raise OutputError(
                f"nothing to resume in {folder}: expected a run of this prompt and seed. Leave --resume out."
            )
        if unfinished and not resume:
            raise OutputError(f"{folder} holds an unfinished run. Go on with --resume, or start anew with --overwrite.")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Choose another place with --output-dir."
        ) from error
    return folder


def is_finished(folder: Path) -> bool:
    return (folder / DONE).exists()


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """A YAML file, replaced in one step; keys keep their order."""
    import yaml

    write_atomic(path, yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(data, indent=2) + "\n")
