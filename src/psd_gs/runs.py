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


def find_run(root: Path, prompt: str, seed: int, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Where a run belongs; nothing is created or deleted.

    A finished run of the same name is left alone and the next free name taken (``a-corgi-0-2``), unless

    * ``overwrite`` is set: the unfinished run if there is one, else the first one of the name;
    * ``resume`` is set: the unfinished run if there is one, else the last finished one.

    Args:
        root: of all runs.
        prompt: becomes the name.
        seed: of the run.
        resume: it is to be taken up.
        overwrite: it is to be replaced.

    Raises:
        OutputError: an unfinished run is there and neither switch is given.
    """
    base = root / f"{slug(prompt)}-{seed}"
    folder, last, number = base, base, 1
    while is_finished(folder):
        number += 1
        folder, last = base.with_name(f"{base.name}-{number}"), folder
    if not has_begun(folder):
        return base if overwrite else last if resume else folder
    if not (resume or overwrite):
        raise OutputError(f"{folder} holds an unfinished run. Go on with --resume, or start anew with --overwrite.")
    return folder


def make_folder(folder: Path, *, empty: bool = False) -> None:
    """Create the folder of a run, delete what is in it if it is to be ``empty``, and see that it can be written.

    Raises:
        OutputError: it cannot be.
    """
    try:
        if empty and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_bytes(b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Choose another place with --output-dir."
        ) from error


def progress_frame(folder: Path, step: int) -> Path:
    """Where the picture of a run after so many steps belongs."""
    return folder / "progress" / f"{step:06d}.png"


def progress_frames(folder: Path, last: int) -> list[Path]:
    """The pictures of a run up to the step ``last``, in order."""
    return [path for path in sorted(folder.glob("progress/[0-9]*.png")) if int(path.stem) <= last]


def has_begun(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def is_finished(folder: Path) -> bool:
    return (folder / DONE).exists()


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """A YAML file, replaced in one step; keys keep their order."""
    import yaml

    write_atomic(path, yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(data, indent=2) + "\n")
