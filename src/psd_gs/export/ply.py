"""3D Gaussian splatting PLY, the lossless master format (Kerbl et al. 2023, 3DGS).

One ``vertex`` element of float32, little endian: x y z, nx ny nz (zeros), f_dc_0..2,
f_rest_0..(3K-1) channel-major, opacity (logit), scale_0..2 (log), rot_0..3 (wxyz). Files are turned
by 180 degrees about X with respect to our world frame (see :mod:`psd_gs.export.frames`).

Whatever has ``scale_*`` or ``rot_*`` is a splat, also where parts are missing: 2DGS has two scales, nerfstudio can
write colours as bytes, Mip-Splatting keeps the width of its 3D filter apart. How the asset is to be rendered stands in
a comment, in Brush's words or Postshot's.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from psd_gs.errors import FormatError, UnsupportedError
from psd_gs.export.blocks import MAX_LOGIT, blocks, gather, logit, open_file, usable_rows
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata, to_json
from psd_gs.export.ply_table import PLY_START, PlyHeader, columns, read_ply_blocks, read_ply_header, say_rest
from psd_gs.files import atomic_path, loads, printable, short
from psd_gs.splats import SH_C0, RenderMode, Splats

__all__ = ["is_gaussian_ply", "read_ply", "read_ply_header", "read_ply_metadata", "write_ply"]

if TYPE_CHECKING:
    from jaxtyping import Float

    from psd_gs.export.ply_rows import Rows

logger = logging.getLogger(__name__)

_COMMENT = "psd-gs "
_COMMENT_LIMIT = 1000  # some readers keep a header line in a fixed buffer of 1 kB
_PLACE = ("x", "y", "z")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_COLOURS = (_DC, ("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
"""Where colours stand, the best first; all but the first are sRGB, integers over their range or floats in [0, 1]."""
_FILTER = "filter_3d"
"""Standard deviation of the filter of Mip-Splatting, world units."""
_ANCHORS = "f_anchor_feat_0"
_FLAT = np.log(1e-6)
"""Log scale of the axis that 2DGS leaves out."""
_WORDS: dict[RenderMode, str] = {"default": "default", "antialiased": "mip", "2dgs": "2dgs"}
_MODES: dict[str, RenderMode] = {
    **dict.fromkeys(("default", "classic", "0", "false", "no", "off"), "default"),
    **dict.fromkeys(("mip", "antialiased", "1", "true", "yes", "on"), "antialiased"),
    "2dgs": "2dgs",
}
_MODE = re.compile(r"(?:splat_?render_?mode|rasterize_mode|anti_?alias(?:ed|ing)?)\s*[\s:=]\s*(\S+)", re.IGNORECASE)


def write_ply(
    splats: Splats,
    path: str | os.PathLike[str],
    *,
    frame: Frame = "rdf",
    metadata: Metadata | None = None,
    like: Rows | None = None,
) -> None:
    """Write a 3DGS PLY that every splat viewer reads.

    Quaternions are normalized, opacity logits clipped to +-15 and log scales to +-20; rows that are
    not finite or have no rotation are dropped. Positions of an asset with an ``origin`` are those of the world that it
    was measured in, in double precision.

    Args:
        splats: what to write, in the world frame.
        path: of the file; replaced in one step.
        frame: axes of the file.
        metadata: goes into the header as one comment of less than 1 kB, long texts shortened.
        like: rows that are to be those of another file.

    Raises:
        InputError: no usable Gaussian is left.
        OutputError: the file cannot be written.
    """
    rows = usable_rows(splats, path)
    harmonics = splats.shN.shape[1]
    rest = [f"f_rest_{i}" for i in range(3 * harmonics)]
    place = "double" if any(splats.origin) else "float"
    floats = ["nx", "ny", "nz", *_DC, *rest, "opacity", *_SCALES, *_QUATS]
    properties = {**dict.fromkeys(_PLACE, place), **dict.fromkeys(floats, "float")}
    header = make_ply_header({"vertex": (len(rows), properties)}, metadata, splats.mode)
    row = np.dtype(
        [
            *(("means", "<f8" if place == "double" else "<f4", 3), ("normals", "<f4", 3), ("sh0", "<f4", (1, 3))),
            *(("shN", "<f4", (3, harmonics)), ("opacities", "<f4"), ("scales", "<f4", 3), ("quats", "<f4", 4)),
        ]
    )
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(header)
            for g in blocks(splats, rows, frame):
                table = np.zeros(len(g), row)
                for name, values in g.params().items():
                    table[name] = values.swapaxes(1, 2) if name == "shN" else values
                if place == "double":
                    table["means"] += g.origin
                file.write(table.data)
        if like:
            like.copy_into(temporary)


def make_ply_header(
    elements: dict[str, tuple[int, dict[str, str]]], metadata: Metadata | None = None, mode: RenderMode = "default"
) -> bytes:
    """Header of a binary little-endian PLY.

    Args:
        elements: name to its number of rows and its properties (name to PLY type).
        metadata: goes into one comment of less than 1 kB, long texts shortened.
        mode: of rendering; a comment in Brush's words, unless it is the default.
    """
    lines = ["ply", "format binary_little_endian 1.0"]
    if mode != "default":
        lines.append(f"comment SplatRenderMode: {_WORDS[mode]}")
    if metadata is not None:
        lines.append(f"comment {_COMMENT}{to_json(metadata, limit=_COMMENT_LIMIT)}")
    for element, (count, properties) in elements.items():
        lines.append(f"element {element} {count}")
        lines += [f"property {kind} {name}" for name, kind in properties.items()]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def stored_mode(header: PlyHeader) -> RenderMode:
    """The render mode that the comments name: Brush's ``SplatRenderMode: mip``, Postshot's ``antialiased 1``, gsplat's
    ``rasterize_mode: antialiased`` and the like; the last one counts, and one that is not known is logged."""
    named = [found[1] for found in map(_MODE.fullmatch, map(str.strip, header.comments)) if found]
    if named and named[-1].lower() not in _MODES:
        logger.warning("the render mode %s is not known: it is rendered as usual", short(named[-1]))
    return _MODES.get(named[-1].lower(), "default") if named else "default"


def read_ply(
    path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read a 3DGS PLY of any writer: other property order or types, no normals, any SH degree (those above 3 are left
    out), two scales (2DGS) or one, colours as bytes, no rotation, no opacity.

    Args:
        path: of the file.
        frame: axes of the file.
        lenient: leave out broken rows, and log how many, instead of refusing the file.
        large: no difference; a PLY is not compressed.

    Raises:
        FormatError: another kind of file, a truncated one, or one with broken rows.
        InputError: the file cannot be opened.
        UnsupportedError: anchors of Scaffold-GS.
    """
    header = read_ply_header(path)
    kinds = header.scalars("vertex")
    if _ANCHORS in kinds:
        raise UnsupportedError(
            f"{path}: anchors of Scaffold-GS, from which its own networks make the Gaussians of each view. Bake them "
            "into a 3DGS PLY with the program that trained them."
        )
    scales = [name for name in _SCALES if name in kinds]
    quats = [name for name in _QUATS if name in kinds]
    needed = (*_PLACE, *_SCALES[:1], *(_QUATS if quats else ()))
    missing = [name for name in needed if name not in kinds]
    if not _is_splat(kinds):
        raise FormatError(
            f"{path} is a PLY but not a 3D Gaussian one: expected the properties of a splat, received neither rot_0 to "
            "rot_3 nor scale_0 to scale_2. Pass a splat.ply; a point cloud or mesh can start a run with --init."
        )
    if missing or scales != list(_SCALES[: len(scales)]):
        raise FormatError(
            f"{path} is a splat without what says where and how large its Gaussians are: expected x, y, z, scale_0, "
            f"scale_1 and rot_0 to rot_3, received none of {', '.join(missing or _SCALES[:2])}. Export it again."
        )
    rest, channel = _harmonics(path, kinds)
    colours = next((names for names in _COLOURS if set(names) <= kinds.keys()), None)
    lacking = [
        name
        for name, there in (("rotation", quats), ("opacity", "opacity" in kinds), ("colour", colours))
        if not there and (name != "rotation" or len(scales) > 1)
    ]
    if lacking:
        logger.warning("%s has no %s: it is shown unturned, opaque or grey", path, " and no ".join(lacking))
    mode = "2dgs" if len(scales) == 2 else stored_mode(header)
    filtered = _FILTER in kinds
    if filtered:
        mode = "antialiased"
    used = {*_PLACE, "nx", "ny", "nz", *scales, *quats, *_DC, *(colours or ()), *rest, "opacity", _FILTER}
    if others := [name for name in header.elements["vertex"][1] if name not in used]:
        names = printable(", ".join(others[:5])[:200]) + (", ..." if len(others) > 5 else "")
        logger.warning("%s: %d further properties are not kept (%s)", path, len(others), names)
    if more := [name for name, (count, _) in header.elements.items() if count and name != "vertex"]:
        logger.warning("%s: besides the splats it has %s: not kept", path, printable(", ".join(more)[:200]))

    def parts() -> Iterator[Splats]:
        for block in read_ply_blocks(path, header, "vertex"):
            n = len(block)
            shN = columns(block, rest).reshape(n, 3, len(rest) // 3).swapaxes(1, 2)[:, :channel]
            logs = columns(block, scales).astype(np.float32)
            if len(scales) == 2:
                logs = np.column_stack([logs, np.minimum(_FLAT, logs.min(axis=1) - np.log(10))])
            logs = np.repeat(logs, 3, axis=1) if len(scales) == 1 else logs
            opacities = block["opacity"] if "opacity" in kinds else np.full(n, MAX_LOGIT)
            if filtered:
                logs, opacities = _blurred(logs, opacities, block[_FILTER])
            yield Splats(
                means=columns(block, _PLACE),
                quats=columns(block, quats) if quats else np.tile([1.0, 0, 0, 0], (n, 1)),
                scales=logs,
                opacities=opacities,
                sh0=_dc(block, colours, kinds)[:, None],
                shN=shN,
            )

    found = gather(parts(), header.elements["vertex"][0], path, frame, lenient, mode)
    say_rest(path, header)
    return found


def _blurred(
    logs: Float[np.ndarray, "N 3"], logits: Float[np.ndarray, " N"], width: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, " N"]]:
    """Log scales and opacity logits after the 3D filter of Mip-Splatting (Yu et al. 2024, equation 9)."""
    width = width.astype(np.float64)[:, None]
    with np.errstate(all="ignore"):
        blurred = 0.5 * np.logaddexp(2.0 * logs, 2 * np.log(np.abs(width)))
        opacity = np.exp((logs - blurred).sum(1)) / (1 + np.exp(-logits.astype(np.float64)))
    return np.where(width == 0, logs, blurred), np.where(width[:, 0] == 0, logits, logit(opacity))


def _harmonics(path: str | os.PathLike[str], kinds: dict[str, str]) -> tuple[list[str], int]:
    """The ``f_rest`` properties in order, and how many coefficients of each channel are kept.

    Raises:
        FormatError: their number is none of a whole degree.
    """
    rest = sorted((name for name in kinds if re.fullmatch(r"f_rest_\d{1,6}", name)), key=lambda name: int(name[7:]))
    degree = round((len(rest) / 3 + 1) ** 0.5) - 1
    if len(rest) != 3 * ((degree + 1) ** 2 - 1) or rest != [f"f_rest_{i}" for i in range(len(rest))]:
        raise FormatError(
            f"{path}: expected 0, 9, 24 or 45 f_rest properties (SH degree 0 to 3), received {len(rest)}. "
            "Export it again with an SH degree of at most 3."
        )
    if degree > 3:
        logger.warning("%s: spherical harmonics of degree 4 and more are left out, of %d", path, degree)
    return rest, (min(degree, 3) + 1) ** 2 - 1


def _dc(block: np.ndarray, names: tuple[str, ...] | None, kinds: dict[str, str]) -> np.ndarray:
    """Coefficients of degree 0, [N, 3], from wherever colours stand; grey if nowhere."""
    if names is None:
        return np.zeros((len(block), 3))
    values = columns(block, names)
    if names == _DC:
        return values
    whole = np.dtype(kinds[names[0]])
    return (values / (np.iinfo(whole).max if whole.kind in "iu" else 1.0) - 0.5) / SH_C0


def read_ply_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_ply` stored; None if the file is from elsewhere.

    Raises:
        FormatError: not a PLY file, or a truncated one.
        InputError: the file cannot be opened.
    """
    for comment in read_ply_header(path).comments:
        if comment.startswith(_COMMENT):
            try:
                return loads(comment.removeprefix(_COMMENT), dict[str, Any])
            except ValueError:
                return None
    return None


def is_gaussian_ply(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a PLY of Gaussians, whole or in part: it has scales or rotations, or packed ones.

    Raises:
        FormatError: a PLY whose header is malformed or promises more than the file holds.
        InputError: the file cannot be opened.
    """
    with open_file(path) as file:
        if not PLY_START.match(file.read(1 << 10)):
            return False
    kinds = read_ply_header(path).scalars("vertex")
    return _is_splat(kinds) or is_packed(kinds)


def _is_splat(kinds: dict[str, str]) -> bool:
    return any(name in kinds for name in (*_SCALES, *_QUATS))


def is_packed(kinds: dict[str, str]) -> bool:
    """Whether these are properties of a compressed PLY, see :mod:`psd_gs.export.compressed_ply`."""
    return "packed_position" in kinds
