"""Files that a command is asked to read by name, glob or folder, and where what becomes of each goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path


def find(patterns: Sequence[str | os.PathLike[str]], suffix: str) -> list[Path]:
    """Files that are named, match a glob (``**`` too), or end with ``suffix`` in a folder or below it; sorted.

    Raises:
        InputError: there are none.
    """
    from psd_gs.errors import InputError

    found: set[Path] = set()
    for pattern in map(str, patterns):
        for name in [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True):
            path = Path(name)
            found |= {file for file in path.rglob(f"*{suffix}") if file.is_file()} if path.is_dir() else {path}
    if not found:
        raise InputError(
            f"no file found for {' '.join(map(str, patterns))}. Check the names, or --suffix for what is in folders."
        )
    return sorted(found)


def places(sources: Sequence[Path], output: Path | None) -> list[Path]:
    """What the files become, without an extension: beside them, or below ``output`` in the folders that they have below
    their common one.

    Raises:
        InputError: two of them would become one file.
    """
    from psd_gs.errors import InputError

    folders = [source.parent for source in sources]
    if output is not None:
        own = [folder.resolve() for folder in folders]
        common = os.path.commonpath(own)
        folders = [output / folder.relative_to(common) for folder in own]
    out = [folder / stem(source) for folder, source in zip(folders, sources, strict=True)]
    first: dict[Path, Path] = {}
    for place, source in zip(out, sources, strict=True):
        if first.setdefault(place, source) != source:
            raise InputError(
                f"expected files that become different ones, received {first[place]} and {source}, which would both "
                f"become {place}. Rename one, or convert them one by one."
            )
    return out


def stem(path: Path) -> str:
    """The file's name without the extension of its format."""
    from psd_gs.export.formats import FORMATS

    extension = next((extension for extension in FORMATS if path.name.lower().endswith(extension)), path.suffix)
    return path.name[: len(path.name) - len(extension)]
