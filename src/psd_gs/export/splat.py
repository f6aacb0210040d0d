"""The ``.splat`` format (antimatter15/splat): 32 bytes per Gaussian, no header, no harmonics.

Position and standard deviations as float32, then bytes: sRGB colour, opacity, and the quaternion wxyz as
``128 q + 128``. Large opaque Gaussians come first, so that a viewer shows something while it loads.
"""

from __future__ import annotations

import os

import numpy as np

from psd_gs.errors import FormatError
from psd_gs.export.blocks import blocks, byte_logit, exp, gather, log_scale, read_bytes, sigmoid, usable_rows
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata
from psd_gs.files import atomic_path
from psd_gs.splats import SH_C0, Splats, ranges, sh0_to_rgb

_RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgb", "u1", 3), ("alpha", "u1"), ("quat", "u1", 4)])


def write_splat(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "rdf", metadata: Metadata | None = None
) -> None:
    """Write a ``.splat``; harmonics above degree 0 and metadata are lost.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`.
    """
    rows = usable_rows(splats, path)
    weight = splats.scales[rows].sum(axis=1) - np.logaddexp(0, -splats.opacities[rows])
    rows = rows[np.argsort(-weight, kind="stable")]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for g in blocks(splats, rows, frame):
            table = np.empty(len(g), _RECORD)
            table["mean"] = g.means
            table["scale"] = exp(g.scales)
            table["rgb"] = np.clip(np.rint(sh0_to_rgb(g.sh0[:, 0]) * 255), 0, 255)
            table["alpha"] = np.rint(sigmoid(g) * 255)
            table["quat"] = np.clip(np.rint(g.quats * 128 + 128), 0, 255)
            file.write(table.tobytes())


def read_splat(
    path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read a ``.splat``.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`; ``large`` makes no difference.
    """
    data = read_bytes(path)
    if not data or len(data) % _RECORD.itemsize:
        raise FormatError(
            f"{path} is no whole .splat: expected a multiple of 32 bytes, received {len(data)}. "
            "The file is truncated or of another format; copy or export it again."
        )
    table = np.frombuffer(data, _RECORD)
    parts = (
        Splats(
            means=part["mean"],
            quats=(part["quat"] - 128.0) / 128,
            scales=log_scale(part["scale"]),
            opacities=byte_logit(part["alpha"]),
            sh0=((part["rgb"] / 255 - 0.5) / SH_C0)[:, None],
            shN=np.zeros((len(part), 0, 3)),
        )
        for part in (table[begin:end] for begin, end in ranges(len(table)))
    )
    return gather(parts, len(table), path, frame, lenient)
