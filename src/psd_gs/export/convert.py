"""One splat file into others: what ``psd-gs export`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from psd_gs.errors import InputError
from psd_gs.export.edit import Edit, apply
from psd_gs.export.formats import format_of, write_splats
from psd_gs.export.frames import Frame
from psd_gs.export.open import open_splats


@dataclass(frozen=True)
class Conversion:
    """How files are converted.

    Attributes:
        edit: what is taken out.
        frame: axes of the written files; None for those that are usual for each format.
        input_frame: axes of the file that is read; None for those that its metadata name, or are usual.
        metadata: keep what is known of the asset, in the files and beside them.
        spz_version: 3, which all viewers read, or 4.
        large: read a compressed file whatever it becomes in memory.
    """

    edit: Edit = field(default_factory=Edit)
    frame: Frame | None = None
    input_frame: Frame | None = None
    metadata: bool = True
    spz_version: Literal[3, 4] = 3
    large: bool = False


@dataclass(frozen=True)
class Converted:
    """What became of a file: Gaussians before and after the edit, and SH degree after it."""

    before: int
    after: int
    sh_degree: int


def convert(
    source: str | os.PathLike[str], targets: Sequence[str | os.PathLike[str]], how: Conversion | None = None
) -> Converted:
    """Read a splat file, edit it, and write it under each target's extension.

    Args:
        source: anything that :func:`psd_gs.export.open.open_splats` reads.
        targets: each replaced in one step; nothing is written before all of them have a known extension.
        how: defaults change nothing but the format.

    Raises:
        FormatError: ``source`` is damaged, or another kind of file than its name says.
        InputError: an unknown extension, a target that is the source, or no Gaussian is left.
        OutputError: a target cannot be written.
    """
    how = how or Conversion()
    formats = [format_of(target, write=True) for target in targets]
    if not targets:
        raise InputError(f"expected a file to write {source} to, received none. Name one, such as out.spz.")
    for target in targets:
        if Path(target).resolve() == Path(source).resolve():
            raise InputError(f"expected another file to write than the one that is read, received {target} twice.")
    asset = open_splats(source, frame=how.input_frame, lenient=how.edit.prune, large=how.large)
    splats = apply(how.edit, asset.splats)
    for target, kind in zip(targets, formats, strict=True):
        options: dict[str, Any] = {"version": how.spz_version} if kind.name == "SPZ" else {}
        write_splats(splats, target, frame=how.frame, metadata=asset.metadata if how.metadata else None, **options)
    return Converted(len(asset.splats), len(splats), splats.sh_degree)
