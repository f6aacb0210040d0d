"""What a refinement leaves beside the asset: the asset in its own format, before and after, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs import selection
from psd_gs.cameras import turntable
from psd_gs.config import RefineConfig
from psd_gs.export.formats import format_of, save, write_sidecar
from psd_gs.export.page import Pane, make_page
from psd_gs.export.pictures import contact_sheet
from psd_gs.export.ply import write_ply
from psd_gs.export.ply_rows import Rows
from psd_gs.files import write_atomic
from psd_gs.gaussians import Gaussians, rgb_to_sh0, sh0_to_rgb
from psd_gs.refine import Original
from psd_gs.render import render
from psd_gs.runs import ASSET
from psd_gs.scoring import evaluation_cameras

if TYPE_CHECKING:
    from psd_gs.result import Product, Result

CHANGED = 0.02
"""Of the blending weight in a pixel: below it, what may change does not show there."""

STILL, MOVED, NEW = (0.82, 0.82, 0.82), (0.85, 0.2, 0.1), (0.1, 0.35, 0.9)
"""Colours in ``moved.png``: what stayed, what moved by :data:`FAR` or more, and what is new and as far from all that
was there."""

FAR = 0.1
"""World units."""


def products(config: RefineConfig) -> dict[str, Product]:
    """File name to what makes it."""
    assert config.asset is not None
    path = Path(config.asset)
    if config.texture_size:
        return {path.name: _repainted, "before-after.html": _before_after}
    name = f"{path.parent.name}.sog" if path.suffix == ".json" else path.name  # a SOG in several files
    own: dict[str, Product] = {} if name == ASSET else {name: _own_format}
    return own | {"before-after.html": _before_after, "moved.png": _moved}


def _own_format(result: Result, path: Path) -> None:
    assert result.rows is not None
    original = Original.of(result.config.refine)
    options: dict[str, Any] = {}
    if format_of(path).write is write_ply and original.unit == 1:
        rows = result.rows
        same = (rows >= 0) & ~original.chosen[rows.clamp_min(0)]
        options["like"] = Rows(original.path, rows.numpy(), same.numpy())
    save(result.gaussians, path, frame=original.frame, metadata=result.metadata, **options)


def _repainted(result: Result, path: Path) -> None:
    coat = Original.of(result.config.refine).coat
    assert coat is not None
    coat.write(sh0_to_rgb(result.gaussians.sh0[:, 0]), path, result.metadata)
    write_sidecar(path, result.metadata)


def _before_after(result: Result, path: Path) -> None:
    original = Original.of(result.config.refine)
    scores = result.refined.get("scores_before", {})
    panes = [
        Pane("before", original.fitted(original.gaussians), facts={"asset": original.path.name, "scores": scores}),
        Pane("after", original.fitted(result.gaussians), facts=result.metadata),
    ]
    write_atomic(path, make_page(panes, result.config.prompt))


def _moved(result: Result, path: Path) -> None:
    assert result.rows is not None
    original = Original.of(result.config.refine)
    before, after = original.fitted(original.gaussians), original.fitted(result.gaussians)
    cameras, white = turntable(4, elevation=15.0, radius=0.69, size=192), torch.ones(3)
    rows = [before, after, painted(before, after, result.rows)]
    with torch.no_grad():
        pictures = [picture for asset in rows for picture in render(asset, cameras, white).rgb]
    captions = ["before", "", "", "", "after", "", "", "", "grey stayed, red moved, blue is new", "", "", ""]
    contact_sheet(pictures, path, captions=captions, columns=4, size=192, metadata=result.metadata)


def painted(before: Gaussians, after: Gaussians, rows: Int[Tensor, " N"]) -> Gaussians:
    """``after`` in colours of what happened to each Gaussian: from :data:`STILL` to :data:`MOVED` or :data:`NEW`."""
    still, moved, new = (torch.tensor(colour) for colour in (STILL, MOVED, NEW))
    far = (after.means - before.means[rows.clamp_min(0)]).norm(dim=1)
    grown = rows < 0
    far[grown] = selection.neighbours(selection.tree_of(before.means), after.means[grown])[0].float()
    colours = still.lerp(torch.where(grown[:, None], new, moved), (far[:, None] / FAR).clamp_max(1))
    return replace(after, sh0=rgb_to_sh0(colours)[:, None], shN=after.shN[:, :0])


@torch.no_grad()
def facts(original: Original, before: Gaussians, after: Gaussians, rows: Int[Tensor, " N"]) -> dict[str, Any]:
    """What changed, for the record.

    Args:
        original: the asset.
        before: the same, in the world.
        after: what became of it, in the world.
        rows: which Gaussian of the original each one was, -1 for new ones.

    Returns:
        ``asset`` and ``frame``; numbers of Gaussians: ``chosen`` that might change, ``grown``, ``dropped``;
        ``psnr_kept``, in dB over the evaluation views: where neither what might change nor what is new shows, or over
        all of them if everything might change (left out if nothing differs); ``silhouette_iou``, of where the asset
        covers more than half.
    """
    cameras = evaluation_cameras().to(before.device)
    white = torch.ones(3, device=before.device)
    views = [render(asset, cameras, white) for asset in (before, after)]
    solid = [view.alpha > 0.5 for view in views]
    kept = torch.ones_like(solid[0])
    if not original.chosen.all():
        changed = (rows < 0) | original.chosen[rows.clamp_min(0)]
        kept = (_share(original.chosen, before) < CHANGED) & (_share(changed, after) < CHANGED)
    error = (views[0].rgb - views[1].rgb).square()[kept.expand_as(views[0].rgb)].mean()
    known = rows[rows >= 0]
    numbers: Mapping[str, Any] = {
        "asset": original.path.name,
        "frame": original.frame,
        "chosen": int(original.chosen.sum()),
        "grown": int((rows < 0).sum()),
        "dropped": len(original.gaussians) - len(known),
        "silhouette_iou": round(float((solid[0] & solid[1]).sum() / (solid[0] | solid[1]).sum().clamp_min(1)), 4),
    }
    return dict(numbers) | ({"psnr_kept": round(float(-10 * error.log10()), 2)} if error > 0 else {})


def _share(chosen: Bool[Tensor, " N"], asset: Gaussians) -> Float[Tensor, "V H W 1"]:
    """How much of each pixel of the evaluation views the chosen Gaussians make up."""
    white = chosen.to(asset.device).float()[:, None, None].expand(-1, 1, 3)
    probe = replace(asset, sh0=rgb_to_sh0(white), shN=asset.shN[:, :0])
    return render(probe, evaluation_cameras().to(asset.device)).rgb[..., :1]
