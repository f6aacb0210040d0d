"""One-file HTML pages that show assets in any browser, offline.

The page itself (``assets/viewer/page.html``: three.js and the splat renderer Spark, both MIT) is built from
``tools/viewer/``. Here the assets go into it: splats as SPZ and meshes as GLB, in base64, beside a JSON of what is
known of them.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd_gs.errors import InputError
from psd_gs.export.frames import Frame
from psd_gs.export.metadata import Metadata, jsonable
from psd_gs.export.spz import spz_parts, spz_unit
from psd_gs.files import write_atomic
from psd_gs.splats import Splats

if TYPE_CHECKING:
    from psd_gs.gaussians import Gaussians

MOST = 8
"""Assets on one page; browsers draw on at most 8 to 16 canvases at a time."""
LIVE_RADIUS = 0.7
"""Radius of the ball that a live page shows, world units."""
_OUT = 16.0  # radii from the origin, beyond which an asset is moved before it becomes an SPZ


@dataclass(frozen=True)
class Pane:
    """One asset of a page.

    Attributes:
        name: its caption.
        gaussians: in the world frame; None if there is only a mesh.
        mesh: a ``.glb``; None if there are only splats.
        facts: what the info panel says of it.
    """

    name: str
    gaussians: Gaussians | None = None
    mesh: bytes | None = None
    facts: Metadata = field(default_factory=dict)


def make_page(panes: Sequence[Pane], title: str) -> str:
    """The page as text: no network request, upright, all assets under one camera.

    Splats become SPZ of version 3, with all their harmonics.

    Args:
        panes: 1 to :data:`MOST` assets, left to right.
        title: of the page, and file name of its screenshots.

    Raises:
        InputError: too many panes or none, one with neither splats nor mesh, or no usable Gaussian in one.
    """
    from psd_gs.export.fitting import bounding_ball, fitted

    if not 1 <= len(panes) <= MOST:
        raise InputError(f"expected 1 to {MOST} assets on one page, received {len(panes)}. Make several pages.")
    described: list[dict[str, Any]] = []
    scripts: list[str] = []
    for i, pane in enumerate(panes):
        ball: Mapping[str, Any] = {}
        if pane.gaussians is not None:
            asset = pane.gaussians.detach()
            centre, radius = bounding_ball(asset)
            if pane.mesh is None and (spz_unit(asset.splats()) != 1 or float(centre.norm()) > _OUT * radius):
                asset = fitted(asset, 1.0)  # what the browser does with it, here with all its digits
                centre, radius = bounding_ball(asset)
            scripts.append(_script(f"splat-{i}", b"".join(spz_parts(asset.splats(), pane.name, frame="gltf"))))
            ball = {"centre": centre.tolist(), "radius": radius, "antialiased": asset.mode == "antialiased"}
        elif pane.mesh is None:
            raise InputError(f"{pane.name}: expected splats or a mesh, received neither.")
        if pane.mesh is not None:
            scripts.append(_script(f"mesh-{i}", pane.mesh))
        described.append({"name": pane.name, "facts": pane.facts, **ball})
    return _page(described, title, scripts)


def live_page() -> str:
    """The page of a training: one pane, whose splats and words it asks its server for, see ``psd_gs.live``."""
    described = {"name": "", "facts": {}, "centre": [0.0, 0.0, 0.0], "radius": LIVE_RADIUS, "live": True}
    return _page([described], "psd-gs", []).replace("connect-src data:", "connect-src 'self' data:", 1)


def _page(described: list[dict[str, Any]], title: str, scripts: list[str]) -> str:
    """The template with everything in its place."""
    # No text of an asset can end the script element or begin a comment in it.
    text = json.dumps(jsonable(described), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    data = "\n".join([f'<script type="application/json" id="assets">{text}</script>', *scripts])
    template = files("psd_gs").joinpath("assets", "viewer", "page.html").read_text(encoding="utf-8")
    start, rest = template.split("<!--title-->", 1)
    middle, end = rest.split("<!--data-->", 1)
    return "".join([start, html.escape(title), middle, data, end])


def write_page(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "gltf", metadata: Metadata | None = None
) -> None:
    """Write a page that shows one asset, upright whatever the ``frame``, and its metadata in the info panel.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`.
    """
    from psd_gs.gaussians import Gaussians

    name = Path(path).stem
    write_atomic(path, make_page([Pane(name, Gaussians.of(splats), facts=metadata or {})], name))


def _script(name: str, data: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode("ascii")}</script>'
