"""Rows of a PLY as they were: what a file of another writer holds besides Gaussians, and its numbers to the bit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from psd_gs.export.ply_table import PlyHeader, read_ply_blocks, read_ply_header

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

_COUNT = re.compile(rb"(?m)^(element[ \t]+vertex[ \t]+)\d+")
_OURS = re.compile(rb"(?m)^comment psd-gs .*\r?\n")


@dataclass(frozen=True)
class Rows:
    """Which rows of a file are to be those of another one.

    Attributes:
        source: the other file.
        rows: of it, for each row; -1 for new ones.
        same: which rows are its own to the bit; of the others only what is no part of a Gaussian.
    """

    source: Path
    rows: Int[np.ndarray, " N"]
    same: Bool[np.ndarray, " N"]

    def copy_into(self, path: Path) -> None:
        """Give a file that was written from Gaussians the properties, comments and unchanged rows of the source.

        Nothing is done where the source is no plain table of little-endian numbers, or its rows are not all read.
        """
        header, written = read_ply_header(self.source), read_ply_header(path)
        if not (_plain(header) and _plain(written)):
            return
        old, new = _table(self.source, header), _table(path, written)
        if len(new) != len(self.rows) or self.rows.max() >= len(old):
            return
        out = np.zeros(len(new), old.dtype)
        known = self.rows >= 0
        out[known] = old[self.rows[known]]
        for name in set(old.dtype.names or ()) & set(new.dtype.names or ()) - {"nx", "ny", "nz"}:
            out[name][~self.same] = new[name][~self.same]
        start = self.source.read_bytes()[: header.size]
        ours = _OURS.search(path.read_bytes()[: written.size])
        start = _COUNT.sub(rb"\g<1>%d" % len(out), _OURS.sub(b"", start))
        if ours:
            start = _COUNT.sub(lambda found: ours[0] + found[0], start)
        path.write_bytes(start + out.tobytes())


def _plain(header: PlyHeader) -> bool:
    if header.format != "binary_little_endian" or list(header.elements) != ["vertex"]:
        return False
    kinds = header.elements["vertex"][1]
    return not any(kind.startswith("list") or "#" in name for name, kind in kinds.items()) and kinds["x"] == "f4"


def _table(path: Path, header: PlyHeader) -> np.ndarray:
    return np.concatenate(list(read_ply_blocks(path, header, "vertex")))
