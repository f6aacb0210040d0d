"""What there is to know of a mesh file that gets other base colours, whatever its format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from psd_gs.errors import InputError
from psd_gs.mesh.cover import normals
from psd_gs.mesh.scene import label


class Draft(Protocol):
    """A mesh file whose chosen materials take their base colour from ``sheets`` new textures.

    Attributes:
        alpha: whether opacity is in the textures.
    """

    alpha: bool

    @property
    def sheets(self) -> int:
        """How many new textures there are."""

    def files(self, textures: Sequence[bytes], name: str, about: Mapping[str, Any]) -> dict[str, bytes]:
        """Paths with slashes, of the file and what it names, and what they hold; the file itself comes last.

        Args:
            textures: picture files, PNG.
            name: of the mesh file.
            about: for what the format calls extras of the textures.
        """


def chosen_names(names: Sequence[str], material: str | None, path: Path) -> list[bool]:
    """Which of the materials are meant.

    Args:
        names: of all that faces have.
        material: the one to change; None is all.
        path: of the mesh, for messages.

    Raises:
        InputError: there is no such one, or there are no faces.
    """
    if not names:
        raise InputError(f"{path}: expected a mesh with faces, received none. Export it as triangles.")
    chosen = [material is None or name == material for name in names]
    if not any(chosen) and not any(names):
        raise InputError(f"--material: expected no name, as no material of {path} has one, received {material!r}.")
    if not any(chosen):
        known = ", ".join(repr(label(name)) for name in list(dict.fromkeys(names))[:8])
        more = len(set(names)) - 8
        raise InputError(
            f"--material: expected one of {known}{f' and {more} more' if more > 0 else ''}, received {material!r}."
        )
    return chosen


def fresh_prefix(stem: str, taken: Collection[str]) -> str:
    """How the names of new files begin, so that none is one of ``taken``: of a mesh that was painted before, say."""
    names = (f"{stem}-color{n or ''}" for n in range(len(taken) + 1))
    return next(name for name in names if not any(other.startswith((f"{name}-", f"{name}.")) for other in taken))


def usable(uv: Float[np.ndarray, "F 3 2"], triangles: Float[np.ndarray, "F 3 3"]) -> bool:
    """Whether texture coordinates that nothing uses yet give most of a surface an extent in a texture."""
    edges = np.nan_to_num(uv[:, 1:] - uv[:, :1])
    extent = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    area = np.linalg.norm(normals(triangles), axis=1)
    return bool(area[extent > 1e-10].sum() >= 0.5 * area.sum())
