"""All splat formats by the extension of their files: one table, and reading and writing through it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from psd_gs.errors import FormatError, InputError, UnsupportedError
from psd_gs.export import compressed_ply, gltf, page, ply, sog, splat, spz, usd
from psd_gs.export.blocks import open_any, open_file
from psd_gs.export.frames import Frame, robust_box
from psd_gs.export.metadata import RECORD, Metadata, jsonable
from psd_gs.files import read_json, short, write_atomic
from psd_gs.plugins import Registry
from psd_gs.splats import RenderMode, Splats

if TYPE_CHECKING:
    from psd_gs.gaussians import Gaussians

logger = logging.getLogger(__name__)

MetadataReader = Callable[[str | os.PathLike[str]], dict[str, Any] | None]


@dataclass(frozen=True)
class Format:
    """A splat format.

    Attributes:
        name: for people.
        read: ``read(path, *, frame, lenient, large) -> Splats``; None if it is only written.
        write: ``write(splats, path, *, frame, metadata)``.
        frame: axes of its files unless someone asks for others.
        starts: how its files begin; empty if they may begin with anything.
        metadata: reads what ``write`` embedded; None if the format has no place for it.
        sh_degree: the highest that the format holds.
        unit: of a file that an asset is written to, in units of the asset.
        modes: of rendering that its files can name, besides the usual one.
    """

    name: str
    read: Callable[..., Splats] | None
    write: Callable[..., None]
    frame: Frame
    starts: tuple[bytes, ...] = ()
    metadata: MetadataReader | None = None
    sh_degree: int = 3
    unit: Callable[[Splats], float] = lambda splats: 1.0
    modes: tuple[RenderMode, ...] = ("antialiased", "2dgs")


def _read_any_ply(path: str | os.PathLike[str], **options: Any) -> Splats:
    """A PLY of either kind: compressed ones are often called just ``.ply``."""
    packed = ply.is_packed(ply.read_ply_header(path).scalars("vertex"))
    return (compressed_ply.read_compressed_ply if packed else ply.read_ply)(path, **options)


_PLY = (b"ply\n", b"ply\r", b"ply ")

_OWN: dict[str, Format] = {
    ".compressed.ply": Format(
        "compressed PLY", _read_any_ply, compressed_ply.write_compressed_ply, "rdf", _PLY, ply.read_ply_metadata
    ),
    ".ply": Format("3DGS PLY", _read_any_ply, ply.write_ply, "rdf", _PLY, ply.read_ply_metadata),
    ".splat": Format("splat", splat.read_splat, splat.write_splat, "rdf", sh_degree=0, modes=()),
    ".spz": Format(
        "SPZ",
        spz.read_spz,
        spz.write_spz,
        "rdf",
        (b"\x1f\x8b", b"NGSP"),
        unit=spz.spz_unit,
        modes=("antialiased",),
    ),
    ".sog": Format("SOG", sog.read_sog, sog.write_sog, "rdf", (b"PK\x03\x04",), sog.read_sog_metadata),
    ".glb": Format(
        "glTF KHR_gaussian_splatting", gltf.read_gltf, gltf.write_gltf, "gltf", (b"glTF",), gltf.read_gltf_metadata
    ),
    ".usdc": Format("OpenUSD", usd.read_usd, usd.write_usd, "gltf", (b"PXR-USDC",), usd.read_usd_metadata),
    ".usdz": Format("OpenUSD archive", usd.read_usd, usd.write_usd, "gltf", (b"PK\x03\x04",), usd.read_usd_metadata),
    ".html": Format("page", None, page.write_page, "gltf", modes=("antialiased",)),
}
FORMATS = Registry("exporter", Format, "psd_gs.exporters", _OWN, prefix=".")
"""Extension to format; the longest that a file's name ends with counts. Entry points of other packages are called
like the extension, without its dot."""

UNREAD = {
    ".ksplat": ("a KSPLAT of GaussianSplats3D", "splat-transform IN.ksplat OUT.ply"),
    ".lcc": ("an XGRIDS LCC", "splat-transform IN.lcc OUT.ply"),
    ".lcc2": ("an XGRIDS LCC", "splat-transform IN.lcc2 OUT.ply"),
    ".usda": ("OpenUSD as text", "usdcat IN.usda -o OUT.usdc"),
    ".usd": ("OpenUSD of either kind", "usdcat IN.usd -o OUT.usdc"),
    ".rad": ("a RAD of Spark", "its tools, back into the file that it was made from"),
    **dict.fromkeys((".las", ".laz", ".e57", ".pcd", ".pts", ".xyz"), ("a scan", "CloudCompare, into a .ply")),
    **dict.fromkeys((".fbx", ".dae", ".3ds", ".blend", ".abc"), ("a scene", "Blender, into a .glb")),
}
"""Known formats that are not read: what they are, and what converts them."""

READ_TOO = {".gltf": ".glb"}
"""Extensions of files that are read as those of another one, and not written."""


def format_of(path: str | os.PathLike[str], *, write: bool = False) -> Format:
    """The format that a file's name asks for.

    Args:
        path: of the file.
        write: it is to be written.

    Raises:
        InputError: an extension that is not in the table.
        UnsupportedError: one of a known format that is not read.
        PluginError: the package that offers it is broken.
    """
    return FORMATS[extension_of(path, write=write)]


def extension_of(path: str | os.PathLike[str], *, write: bool = False) -> str:
    """The extension in the table that a file's name asks for.

    Args:
        path: of the file.
        write: it is to be written.

    Raises:
        InputError: there is none.
        UnsupportedError: one of a known format that is not read.
    """
    name = Path(path).name.lower()
    if fitting := [extension for extension in FORMATS if name.endswith(extension)]:
        return max(fitting, key=len)
    if not write:
        if name == sog.STREAMED or name.endswith(sog.META):
            return ".sog"
        if (suffix := Path(name).suffix) in READ_TOO:
            return READ_TOO[suffix]
        for extension, (what, way_out) in UNREAD.items():
            if name.endswith(extension):
                raise UnsupportedError(f"{path}: {what} is not read. Convert it first with {way_out}.")
    raise InputError(
        f"{path}: expected a splat file, one of {', '.join(FORMATS)}, received {short(Path(path).suffix)}."
    )


def is_known(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends like that of a format, read or not."""
    return Path(path).name.lower().endswith((*FORMATS, *READ_TOO, *UNREAD, sog.META))


def sniff(start: bytes) -> str | None:
    """The extension of the format that begins so; None for none, or ``.splat``, which begins with anything."""
    if start.startswith(b"PK\x03\x04"):
        return ".usdz" if b".usd" in start[:256] else ".sog"
    marked = [extension for extension in sorted(FORMATS.own, key=len) if FORMATS[extension].starts]
    return next((extension for extension in marked if start.startswith(FORMATS[extension].starts)), None)


def load(
    path: str | os.PathLike[str], *, frame: Frame | None = None, lenient: bool = False, large: bool = False
) -> Gaussians:
    """:func:`read_splats` as tensors; arguments and errors are the same."""
    from psd_gs.gaussians import Gaussians

    return Gaussians.of(read_splats(path, frame=frame, lenient=lenient, large=large))


def read_splats(
    path: str | os.PathLike[str], *, frame: Frame | None = None, lenient: bool = False, large: bool = False
) -> Splats:
    """Read a splat file of any format, in the world frame; what lies beside it does not count, see
    :func:`psd_gs.asset.open_splats`.

    Args:
        path: of the file; its extension decides.
        frame: axes of the file; by default those that it names or that are usual for the format.
        lenient: leave out broken rows, and log how many, instead of refusing the file.
        large: read a compressed file whatever it becomes in memory.

    Raises:
        FormatError: another kind of file than its name says, a damaged or truncated one, or no Gaussians in it.
        InputError: an unknown extension, or the file cannot be opened.
    """
    expected = format_of(path)
    if expected.read is None:
        raise InputError(f"{path}: a {expected.name} is written, not read. Pass the file that it was made from.")
    with open_file(path) as file:
        start = file.read(8)
    if not start:
        raise FormatError(f"{path} is empty. Copy or export the file again.")
    if not (expected.starts and start.startswith(expected.starts)):
        for extension, other in sorted(FORMATS.own.items(), key=lambda item: len(item[0])):
            if other.starts and start.startswith(other.starts):
                raise FormatError(f"{path} begins like a {other.name} file. Give it the extension {extension}.")
    options: dict[str, Any] = {} if frame is None else {"frame": frame}
    with FORMATS.explained(extension_of(path)):
        return expected.read(path, lenient=lenient, large=large, **options)


def save(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    frame: Frame | None = None,
    metadata: Metadata | None = None,
    **options: Any,
) -> None:
    """:func:`write_splats` of tensors; arguments and errors are the same."""
    write_splats(gaussians.splats(), path, frame=frame, metadata=metadata, **options)


def write_splats(
    splats: Splats,
    path: str | os.PathLike[str],
    *,
    frame: Frame | None = None,
    metadata: Metadata | None = None,
    **options: Any,
) -> None:
    """Write a splat file of any format, and its metadata into it where it has room and into ``PATH.json``.

    Args:
        splats: what to write, in the world frame. What the format cannot hold is lost.
        path: of the file, replaced in one step; its extension decides the format.
        frame: axes of the file; by default those that are usual for the format.
        metadata: where the asset comes from. None writes no metadata at all, not even that of the geometry.
        options: of the format's own ``write``.

    Raises:
        InputError: an unknown extension, or no usable Gaussian.
        OutputError: the file cannot be written.
    """
    target = format_of(path, write=True)
    frame = frame or target.frame
    facts = None
    if metadata is not None:
        facts = {**metadata, **geometry(splats), "format": target.name, "frame": frame, "units": "metres"}
        facts["sh_degree"] = min(splats.sh_degree, target.sh_degree)
        facts.pop("scale", None)
        if (unit := target.unit(splats)) != 1:
            facts["scale"] = unit
    with FORMATS.explained(extension_of(path)):
        target.write(splats, path, frame=frame, metadata=facts, **options)
    if facts is None and (lost := _homeless(splats, target)):
        logger.warning("%s: only metadata would keep %s: left out", path, " and ".join(lost))
    if facts is not None and Path(path).is_file():  # and no pipe
        write_sidecar(path, facts)


def _homeless(splats: Splats, target: Format) -> list[str]:
    """What a format itself has no room for."""
    mode = [] if splats.mode in ("default", *target.modes) else [f"the render mode {splats.mode}"]
    placed = any(splats.origin) and target.write is not ply.write_ply
    return mode + ([f"the offset {' '.join(f'{value:.10g}' for value in splats.origin)}"] if placed else [])


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        InputError: it cannot be opened.
    """
    digest = hashlib.sha256()
    with open_any(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the metadata of a file lies beside it."""
    return Path(path).with_name(Path(path).name + ".json")


def write_sidecar(path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Path:
    """Write what is known of a file, and its SHA-256, beside it; where that is."""
    beside = sidecar(path)
    known = jsonable({**facts, "sha256": sha256_of(path)})
    write_atomic(beside, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
    return beside


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of where a splat file comes from: embedded, else see :func:`metadata_beside`.

    Returns:
        Fields by name; empty if there are none.

    Raises:
        FormatError: the splat file is damaged.
        InputError: it cannot be opened, or has an unknown extension.
    """
    embedded = format_of(path).metadata
    found = embedded(path) if embedded is not None else None
    return metadata_beside(path) if found is None else found


def metadata_beside(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of ``PATH.json``, else of the run's psd_gs.json, that name this very file by its ``sha256`` (or among
    ``files``, name to SHA-256); empty if neither does: another file may have taken the place of ours."""
    digest = ""
    for beside in (sidecar(path), Path(path).with_name(RECORD)):
        if not beside.is_file():
            continue
        try:
            fields = read_json(beside, dict[str, Any])
            digest = digest or sha256_of(path)
        except InputError:
            continue
        files = fields.get("files")
        if fields.get("sha256") == digest or (isinstance(files, dict) and digest in files.values()):
            return fields
    return {}


def stored_frame(metadata: Metadata) -> Frame | None:
    """Axes of the file according to what :func:`save` wrote; None if that is unknown."""
    frame = metadata.get("frame")
    return frame if frame in get_args(Frame) else None


def geometry(splats: Splats) -> dict[str, Any]:
    """What can be said of the usable Gaussians: their number, SH degree, bounds in the world frame, and, where it is
    not the usual, how they are to be rendered (``render_mode``) and where their origin lies (``offset``, which the
    bounds do not include)."""
    good = splats.usable
    means = splats.means if good.all() else splats.means[good]
    facts: dict[str, Any] = {"n_splats": len(means), "sh_degree": splats.sh_degree}
    if splats.mode != "default":
        facts["render_mode"] = splats.mode
    if any(splats.origin):
        facts["offset"] = list(splats.origin)
    if len(means) == 0:
        return facts
    bounds = {"bounds": np.stack([means.min(axis=0), means.max(axis=0)]), "robust_bounds": robust_box(means)}
    return {**facts, **{name: [[_short(v) for v in corner] for corner in box.tolist()] for name, box in bounds.items()}}


def _short(value: float) -> float:
    """Six digits, as for lengths near one: a micrometre of a metre, and a nanometre of a millimetre."""
    return float(f"{value:.6g}") if abs(value) < 0.1 else round(value, 6)
