"""All splat formats by the extension of their files: one table, and reading and writing through it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from psd_gs.errors import FormatError, InputError
from psd_gs.export import compressed_ply, gltf, page, ply, sog, splat, spz, usd
from psd_gs.export.blocks import open_file, usable_mask
from psd_gs.export.frames import Frame, robust_box
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.files import write_atomic
from psd_gs.gaussians import Gaussians

MetadataReader = Callable[[str | os.PathLike[str]], dict[str, Any] | None]


@dataclass(frozen=True)
class Format:
    """A splat format.

    Attributes:
        name: for people.
        read: ``read(path, *, frame, lenient) -> Gaussians``; None if it is only written.
        write: ``write(gaussians, path, *, frame, metadata)``.
        frame: axes of its files unless someone asks for others.
        starts: how its files begin; empty if they may begin with anything.
        metadata: reads what ``write`` embedded; None if the format has no place for it.
        sh_degree: the highest that the format holds.
    """

    name: str
    read: Callable[..., Gaussians] | None
    write: Callable[..., None]
    frame: Frame
    starts: tuple[bytes, ...] = ()
    metadata: MetadataReader | None = None
    sh_degree: int = 3


def _read_any_ply(path: str | os.PathLike[str], *, frame: Frame = "rdf", lenient: bool = False) -> Gaussians:
    """A PLY of either kind: compressed ones are often called just ``.ply``."""
    packed = "chunk" in ply.read_ply_header(path).elements
    return (compressed_ply.read_compressed_ply if packed else ply.read_ply)(path, frame=frame, lenient=lenient)


_PLY = (b"ply\n", b"ply\r")

FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(
        "compressed PLY", _read_any_ply, compressed_ply.write_compressed_ply, "rdf", _PLY, ply.read_ply_metadata
    ),
    ".ply": Format("3DGS PLY", _read_any_ply, ply.write_ply, "rdf", _PLY, ply.read_ply_metadata),
    ".splat": Format("splat", splat.read_splat, splat.write_splat, "rdf", sh_degree=0),
    ".spz": Format("SPZ", spz.read_spz, spz.write_spz, "rdf", (b"\x1f\x8b", b"NGSP")),
    ".sog": Format("SOG", sog.read_sog, sog.write_sog, "rdf", (b"PK\x03\x04",), sog.read_sog_metadata),
    ".glb": Format(
        "glTF KHR_gaussian_splatting", gltf.read_gltf, gltf.write_gltf, "gltf", (b"glTF",), gltf.read_gltf_metadata
    ),
    ".usdc": Format("OpenUSD", usd.read_usd, usd.write_usd, "gltf", (b"PXR-USDC",), usd.read_usd_metadata),
    ".usdz": Format("OpenUSD archive", usd.read_usd, usd.write_usd, "gltf", (b"PK\x03\x04",), usd.read_usd_metadata),
    ".html": Format("page", None, page.write_page, "gltf"),
}
"""Extension to format; the first that fits the end of a file's name counts."""


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that a file's name asks for.

    Raises:
        InputError: an extension that is not in the table.
    """
    name = Path(path).name.lower()
    for extension, found in FORMATS.items():
        if name.endswith(extension):
            return found
    raise InputError(f"{path}: expected a splat file, one of {', '.join(FORMATS)}, received {Path(path).suffix!r}.")


def load(path: str | os.PathLike[str], *, frame: Frame | None = None, lenient: bool = False) -> Gaussians:
    """Read a splat file of any format, in the world frame.

    Args:
        path: of the file; its extension decides.
        frame: axes of the file; by default those that are usual for the format.
        lenient: leave out rows that are not finite or have no rotation, instead of refusing the file.

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
        for extension in sorted(FORMATS, key=len):
            other = FORMATS[extension]
            if other.starts and start.startswith(other.starts):
                raise FormatError(f"{path} begins like a {other.name} file. Give it the extension {extension}.")
    return expected.read(path, frame=frame or expected.frame, lenient=lenient)


def save(
    gaussians: Gaussians,
    path: str | os.PathLike[str],
    *,
    frame: Frame | None = None,
    metadata: Metadata | None = None,
    **options: Any,
) -> None:
    """Write a splat file of any format, and its metadata into it where it has room and into ``PATH.json``.

    Args:
        gaussians: what to write, in the world frame. What the format cannot hold is lost.
        path: of the file, replaced in one step; its extension decides the format.
        frame: axes of the file; by default those that are usual for the format.
        metadata: where the asset comes from. None writes no metadata at all, not even that of the geometry.
        options: of the format's own ``write``.

    Raises:
        InputError: an unknown extension, or no usable Gaussian.
        OutputError: the file cannot be written.
    """
    target = format_of(path)
    frame = frame or target.frame
    facts = None
    if metadata is not None:
        facts = {**metadata, **geometry(gaussians), "format": target.name, "frame": frame, "units": "metres"}
        facts["sh_degree"] = min(gaussians.sh_degree, target.sh_degree)
    target.write(gaussians, path, frame=frame, metadata=facts, **options)
    if facts is not None:
        facts["sha256"] = _sha256(path)
        write_atomic(sidecar(path), json.dumps(jsonable(facts), indent=2, ensure_ascii=False) + "\n")


def _sha256(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the metadata of a file lies beside it."""
    return Path(path).with_name(Path(path).name + ".json")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is known of where a splat file comes from: embedded, else in ``PATH.json``, else the run's psd_gs.json.

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
    """The fields of ``PATH.json``, else of the run's psd_gs.json; empty if there is neither."""
    for beside in (sidecar(path), Path(path).with_name("psd_gs.json")):
        try:
            fields = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(fields, dict):
            return fields
    return {}


def stored_frame(metadata: Metadata) -> Frame | None:
    """Axes of the file according to what :func:`save` wrote; None if that is unknown."""
    frame = metadata.get("frame")
    return frame if frame in get_args(Frame) else None


def geometry(gaussians: Gaussians) -> dict[str, Any]:
    """What can be said of the usable Gaussians: their number, SH degree, and bounds in the world frame."""
    means = gaussians.means.detach()[usable_mask(gaussians)]
    if len(means) == 0:
        return {"n_splats": 0, "sh_degree": gaussians.sh_degree}
    bounds = {
        "bounds": [corner.tolist() for corner in (means.amin(0), means.amax(0))],
        "robust_bounds": robust_box(means).tolist(),
    }
    rounded = {name: [[round(value, 6) for value in corner] for corner in box] for name, box in bounds.items()}
    return {"n_splats": len(means), "sh_degree": gaussians.sh_degree, **rounded}


def describe(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Everything about a splat file: format, size in bytes, frame, number, SH degree, bounds and metadata.

    Raises:
        FormatError: as :func:`load`.
        InputError: as :func:`load`.
    """
    kind = format_of(path)
    metadata = read_metadata(path) if Path(path).exists() else {}
    frame = stored_frame(metadata) or kind.frame
    facts = geometry(load(path, frame=frame))
    return {
        "format": kind.name,
        "bytes": Path(path).stat().st_size,
        "frame": frame,
        **facts,
        "metadata": {name: value for name, value in metadata.items() if name not in {*facts, "format", "frame"}},
    }
