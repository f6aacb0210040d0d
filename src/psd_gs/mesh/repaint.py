"""A mesh file that gets other base colours, and is otherwise given back as it was.

A :class:`Draft` is the file with places for new textures; a :class:`Coat` is its surface as flat Gaussians, of which
those of the chosen materials may change colour, and the way from these colours to the file. The draft is read back by
the same reader as any mesh, so what the new textures are baked for is what other programs will read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs.colours import linear_to_srgb
from psd_gs.errors import FormatError, InputError
from psd_gs.files import write_atomic, writing
from psd_gs.gaussians import Gaussians, sh0_to_rgb
from psd_gs.mesh.cover import Cover, cover, flat_gaussians, normals
from psd_gs.mesh.draft import Draft
from psd_gs.mesh.draft_gltf import draft_gltf
from psd_gs.mesh.draft_obj import draft_obj
from psd_gs.mesh.glb import png_bytes
from psd_gs.mesh.picture import Wrap
from psd_gs.mesh.points import looked_up
from psd_gs.mesh.raster import Pixels
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import Part, parsing
from psd_gs.mesh.sheet import Samples, change_at, lay, ties
from psd_gs.mesh.uv import fill_gutters

SUFFIXES = (".glb", ".gltf", ".obj")

PIECES = 20_000
"""Gaussians of a mesh, unless it has more triangles."""

SIZES = (16, 4096)
"""Smallest and largest side of a texture, texels."""

_MARK = b"psd-gs sheet "
_CHUNK = 1 << 18
_REPEAT: Wrap = "repeat"


def located(path: str | os.PathLike[str]) -> Path:
    """The file that is meant.

    Raises:
        InputError: not a kind of mesh that can be given other textures.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        received, remedy = path.suffix or "another thing", "Convert it, for example with Blender"
        if path.is_dir():
            received, remedy = "a folder", "Name a mesh in it"
        raise InputError(f"{path}: expected a mesh ({', '.join(SUFFIXES)}), received {received}. {remedy}.")
    return path.resolve()


def draft(path: Path, material: str | None, size: int) -> Draft:
    """See :class:`Draft`.

    Args:
        path: of a ``.glb``, ``.gltf`` or ``.obj``.
        material: name of the one to change; None is all.
        size: of the textures, texels.

    Raises:
        BackendError: texture coordinates are missing, and xatlas is not installed.
        FormatError: a damaged file.
        InputError: there is no such material.
    """
    with parsing(path):
        if path.suffix.lower() == ".obj":
            return draft_obj(path, material, size)
        return draft_gltf(path, material, size)


# --- the surface -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """A new texture.

    Attributes:
        pieces: that it paints, as numbers in the cover.
        places: its texels, whose faces are numbers in ``pieces``.
        alpha: whether it has opacity.
    """

    pieces: Int[np.ndarray, " M"]
    places: Pixels
    alpha: bool


@dataclass(frozen=True, eq=False)
class Coat:
    """The surface of a mesh as Gaussians.

    Attributes:
        path: of the file.
        size: of its new textures, texels.
        draft: the file with places for them.
        parts: of the scene as it was, without what glows.
        cover: pieces of all its triangles.
        sheets: the new textures.
        gaussians: one for each piece that shows, in the axes, place and size of the file.
        rows: of which piece each one is.
        chosen: which of them may change.
        ties: a number for each one, the same for those that have one colour.
    """

    path: Path
    size: int
    draft: Draft
    parts: list[Part]
    cover: Cover
    sheets: list[Sheet]
    gaussians: Gaussians
    rows: Int[np.ndarray, " N"]
    chosen: Bool[Tensor, " N"]
    ties: Int[Tensor, " N"]

    @cached_property
    def _owner(self) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " F"]]:
        """The part of each triangle, and its number there."""
        return _owners(self.parts)

    def files(self, colours: Float[Tensor, "N 3"], name: str, about: Mapping[str, Any]) -> dict[str, bytes]:
        """The mesh with other colours: paths with slashes and what they hold, the mesh itself last.

        Args:
            colours: sRGB of the Gaussians.
            name: of the mesh file.
            about: where the textures come from.
        """
        change = colours.detach().cpu().double().numpy() - _colours(self.gaussians)
        pictures = [png_bytes(self.painted(sheet, change)) for sheet in self.sheets]
        return self.draft.files(pictures, name, about)

    def painted(self, sheet: Sheet, change: Float[np.ndarray, "N 3"]) -> np.ndarray:
        """A texture: what was there and what was added to it, with gutters around the charts.

        Args:
            sheet: which one.
            change: of the Gaussians' sRGB colours.

        Returns:
            Bytes, ``[S, S, 3]``, or ``[S, S, 4]`` with opacity.
        """
        owner, face = self._owner
        mine = np.isin(self.rows, sheet.pieces)
        picked = self.gaussians.select(torch.from_numpy(mine))
        triangles = _triangles(self.parts)
        facing = _unit(normals(triangles))
        triangle = self.cover.face[self.rows[mine]]
        samples = Samples(
            picked.means.double().numpy(),
            picked.scales[:, :2].mean(1).exp().double().numpy(),
            facing[triangle],
            owner[triangle],
            _colours(picked),
            change[mine],
        )
        image = np.zeros((self.size, self.size, 4), np.float32)
        covered = np.zeros((self.size, self.size), bool)
        for first in range(0, len(sheet.places.faces), _CHUNK):
            part = slice(first, first + _CHUNK)
            piece = sheet.pieces[sheet.places.faces[part]]
            weights = np.einsum("pk,pkj->pj", sheet.places.weights[part], self.cover.corners[piece])
            at = self.cover.face[piece]
            points, rgba, _ = looked_up(self.parts, owner[at], face[at], weights)
            srgb = linear_to_srgb(rgba[:, :3])
            if len(samples.centres):
                srgb = srgb + change_at(points, facing[at], owner[at], srgb, samples)
            texel = sheet.places.rows[part], sheet.places.columns[part]
            image[texel] = np.concatenate([srgb, rgba[:, 3:]], axis=1).clip(0, 1)
            covered[texel] = True
        image = fill_gutters(image, covered)
        return np.round(image * 255).astype(np.uint8)[..., : 4 if sheet.alpha else 3]

    def write(self, colours: Float[Tensor, "N 3"], path: Path, about: Mapping[str, Any]) -> None:
        """Write the mesh and what it names into the folder of ``path``, each file in one step and the mesh last.

        Raises:
            OutputError: the folder cannot be written.
        """
        for name, data in self.files(colours, path.name, about).items():
            target = path.parent.joinpath(*PurePosixPath(name).parts)
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)


@lru_cache(maxsize=1)
def coat(path: Path, size: int, material: str | None = None, most: int = PIECES, digest: str = "") -> Coat:
    """The surface of a mesh, and the places of its new textures.

    Args:
        path: of a ``.glb``, ``.gltf`` or ``.obj``.
        size: of the textures, texels.
        material: name of the one to change; None is all.
        most: Gaussians, unless there are more triangles.
        digest: of the file, so that another one is read again.

    Raises:
        BackendError: texture coordinates are missing, and xatlas is not installed.
        FormatError: a damaged file.
        InputError: there is no such material, or the file has no faces.
    """
    plan = draft(path, material, size)
    parts = _matte(read_scene(path).meshes)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in plan.files([_MARK + str(i).encode() for i in range(plan.sheets)], path.name, {}).items():
            target = Path(folder).joinpath(*PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        try:
            drafted = read_scene(Path(folder) / path.name).meshes
        except FormatError:
            drafted = []
    if [part.faces.shape for part in parts] != [part.faces.shape for part in drafted]:
        raise FormatError(f"{path}: expected a mesh that can be written again, received a damaged one. Export it anew.")
    with parsing(path):
        return _coat(path, size, plan, parts, drafted, most)


def _coat(path: Path, size: int, plan: Draft, parts: list[Part], drafted: list[Part], most: int) -> Coat:
    triangles = _triangles(parts)
    pieces = cover(triangles, most)
    owner, face = _owners(parts)
    part = owner[pieces.face]
    number = np.array([_sheet_of(one) for one in drafted])[part]
    _, rgba, visible = looked_up(parts, part, face[pieces.face], pieces.centres)
    if not visible.any():
        visible[:] = True
    corners = pieces.of(triangles)
    tied = np.arange(len(pieces))
    sheets = []
    for i in range(plan.sheets):
        mine = np.flatnonzero(number == i)
        uv, wraps = np.zeros((len(mine), 3, 2)), (_REPEAT, _REPEAT)
        for k in np.unique(part[mine]):
            texture = drafted[k].material.texture
            assert texture is not None
            here = part[mine] == k
            own, matrix = mine[here], np.array(texture.matrix, np.float64)
            at = pieces.corners[own] @ drafted[k].uv[texture.channel][face[pieces.face[own]]]
            uv[here], wraps = np.nan_to_num(at @ matrix[:, :2].T + matrix[:, 2]), texture.wrap
        places = lay(uv, size, wraps)
        alpha = plan.alpha and any(parts[k].material.cutoff > 0 for k in np.unique(part[mine]))
        sheets.append(Sheet(mine, places, alpha))
        tied[mine] = len(pieces) * (i + 1) + ties(places, size, uv, wraps, corners[mine])
    rows = np.flatnonzero(visible)
    return Coat(
        path,
        size,
        plan,
        parts,
        pieces,
        sheets,
        flat_gaussians(corners[rows], linear_to_srgb(rgba[rows, :3])),
        rows,
        torch.from_numpy(number[rows] >= 0),
        torch.from_numpy(np.unique(tied[rows], return_inverse=True)[1]),
    )


def _matte(parts: list[Part]) -> list[Part]:
    """Without what glows: it is no base colour, and stays."""
    return [replace(part, material=replace(part.material, emission=(0, 0, 0))) for part in parts]


def _sheet_of(part: Part) -> int:
    """Which new texture a part of a draft has, -1 for none."""
    data = b"" if part.material.texture is None else part.material.texture.picture.data
    return int(data.removeprefix(_MARK)) if data.startswith(_MARK) else -1


def _owners(parts: Sequence[Part]) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " F"]]:
    counts = [len(part.faces) for part in parts]
    owner = np.repeat(np.arange(len(parts)), counts)
    return owner, np.concatenate([np.arange(count) for count in counts])


def _triangles(parts: Sequence[Part]) -> Float[np.ndarray, "F 3 3"]:
    return np.concatenate([part.positions[part.faces] for part in parts])


def _colours(gaussians: Gaussians) -> Float[np.ndarray, "N 3"]:
    return sh0_to_rgb(gaussians.sh0[:, 0]).double().numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)
