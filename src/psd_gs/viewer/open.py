"""Files and run folders as panes of a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from psd_gs.errors import InputError
from psd_gs.export.formats import geometry
from psd_gs.export.gltf import holds_splats, read_gltf_metadata
from psd_gs.export.gltf_plain import plain_glb
from psd_gs.export.open import open_splats
from psd_gs.export.page import Pane

SPLAT, MESH = "splat.ply", "mesh.glb"
"""What a run folder holds."""


def panes(paths: Sequence[str | os.PathLike[str]], *, large: bool = False) -> list[Pane]:
    """One pane for each splat file, mesh (``.glb``, ``.gltf``) or run folder; a folder's splats and mesh share one.

    Args:
        paths: of the files and folders.
        large: read compressed files whatever they become in memory.

    Raises:
        FormatError: a file is damaged, or another kind than its name says.
        InputError: one is missing, of unknown format, or a folder without splats and mesh.
    """
    return [_folder(Path(path), large) if Path(path).is_dir() else _file(Path(path), large) for path in paths]


def _folder(path: Path, large: bool) -> Pane:
    splat, mesh = (_file(path / name, large) if (path / name).is_file() else None for name in (SPLAT, MESH))
    if splat is None and mesh is None:
        raise InputError(f"{path}: expected a run folder with {SPLAT} or {MESH}, received neither. Name a file in it.")
    facts = {**(mesh.facts if mesh else {}), **(splat.facts if splat else {})}
    return Pane(path.resolve().name, splat.gaussians if splat else None, mesh.mesh if mesh else None, facts)


def _file(path: Path, large: bool) -> Pane:
    name = f"{path.resolve().parent.name}/{path.name}" if path.name in (SPLAT, MESH) else path.name
    kind = path.suffix.lower()
    if kind in (".glb", ".gltf") and not holds_splats(path):
        return Pane(name, mesh=plain_glb(path), facts=read_gltf_metadata(path) or {})
    asset = open_splats(path, large=large)
    facts = {**asset.metadata, **geometry(asset.splats)}
    facts.pop("robust_bounds", None)  # the camera's business
    return Pane(name, asset.gaussians, facts=facts)
