"""Are the meshes of generated assets like their splats?

    python tools/bench/asset_meshes.py outputs/preference/psd/*-0/splat.ply

For every asset, from 16 views that nothing was made from: silhouette IoU (bar 0.95) and PSNR inside the splat's
silhouette (bar 22 dB) of the mesh against the splat, watertight, bodies. Finished rows are kept in OUT, so it can be
stopped, and shared between processes with --shard.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from bench.common import ROOT, Progress, Row, digest, kept
from psd_gs.asset import open_asset
from psd_gs.cameras import Cameras, orbit
from psd_gs.cli.run_options import parse_shard
from psd_gs.export.fitting import bounding_ball
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.build import BuildOptions, build
from psd_gs.mesh.compare import halved, render_mesh
from psd_gs.mesh.extract import MeshOptions
from psd_gs.mesh.surface import Mesh
from psd_gs.mesh.texture import TexturedMesh
from psd_gs.render import render

IOU, PSNR = 0.95, 22.0
UNSEEN = 16
"""Views that neither the surface nor its texture was made from."""
GREY = 0.5


def unseen_cameras(radius: float, size: int) -> Cameras:
    """Cameras that look at a ball around the origin from random directions, always the same ones."""
    generator = torch.Generator().manual_seed(16)
    azimuth = 360 * torch.rand(UNSEEN, generator=generator)
    elevation = torch.rad2deg(torch.asin(2 * torch.rand(UNSEEN, generator=generator) - 1))
    distance = 1.05 * radius / np.sin(np.radians(15))
    return orbit(azimuth, elevation, torch.full((UNSEEN,), distance), torch.full((UNSEEN,), 30.0), size, size)


def mesh_views(
    mesh: Mesh | TexturedMesh, cameras: Cameras
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Unlit colours on grey, sRGB, and the share of every pixel that is covered.

    Two samples per pixel and axis; the views of a splat are blurred by its projection.
    """
    images, cover = render_mesh(mesh, cameras.resized(2 * cameras.width, 2 * cameras.height))
    images[cover == 0] = GREY
    return halved(images).numpy(), halved(cover[..., None])[..., 0].numpy()


@torch.no_grad()
def splat_views(
    gaussians: Gaussians, cameras: Cameras
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Colours on grey, sRGB, and alpha."""
    out = render(gaussians.to("cpu"), cameras, torch.full((3,), GREY))
    return out.rgb.clamp(0, 1).numpy(), out.alpha[..., 0].numpy()


def against_splat(
    gaussians: Gaussians, mesh: Mesh | TexturedMesh, size: int = 256
) -> tuple[dict[str, float], Float[np.ndarray, "C H W2 3"]]:
    """How far the mesh is from its splat in :data:`UNSEEN` views, and the views, splat left, mesh right.

    Returns:
        ``iou``: intersection over union of the pixels that are at least half covered, all views together;
        ``worst_iou``: of the worst view; ``psnr``: dB over the pixels where the splat's alpha is at least one
        half, both on grey, so a pixel that the mesh misses counts with all of its colour.
    """
    centre, radius = bounding_ball(gaussians)
    cameras = unseen_cameras(radius, size)
    wanted, alpha = splat_views(replace(gaussians, means=gaussians.means - centre), cameras)
    got, cover = mesh_views(replace(mesh, vertices=mesh.vertices - centre.cpu().numpy().astype(np.float32)), cameras)
    inside, covered = alpha >= 0.5, cover >= 0.5
    both, either = (inside & covered).sum((1, 2)), (inside | covered).sum((1, 2))
    error = float(((wanted - got)[inside] ** 2).mean())
    measured = {
        "iou": float(both.sum() / either.sum()),
        "worst_iou": float((both / np.maximum(either, 1)).min()),
        "psnr": float(-10 * np.log10(max(error, 1e-10))),
    }
    return measured, np.concatenate([wanted, got], axis=2)


def measure(path: Path, texture_size: int, picture: Path) -> Row:
    """Mesh one asset and compare."""
    asset = open_asset(path, fit=False)
    start = time.process_time()
    built = build(asset, BuildOptions(MeshOptions(), texture_size=texture_size, normal_map=False))
    seconds = time.process_time() - start
    measured, views = against_splat(asset, built.placement.undo(built.levels[0]))
    Image.fromarray((np.concatenate(list(views[:3])) * 255).round().astype(np.uint8)).save(picture)
    topology = built.extraction.topology
    solid = {"watertight": topology.watertight, "bodies": topology.bodies, "genus": topology.genus}
    return {"asset": str(path), "cpu_seconds": round(seconds, 2)} | measured | solid


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="+", type=Path, help="splat files")
    parser.add_argument("--count", type=int, default=20, help="so many of them, evenly spread (default: 20)")
    parser.add_argument("--texture-size", type=int, default=0, help="default: 0, vertex colours")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th asset from the I-th only")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "asset_meshes")
    options = parser.parse_args(arguments)
    (index, of), count = parse_shard(options.shard), min(options.count, len(options.assets))
    chosen = [options.assets[i * len(options.assets) // count] for i in range(count)][index::of]
    progress, rows = Progress(len(chosen)), []
    for path in chosen:
        decides = {"asset": digest([path]), "texture": options.texture_size}
        row = kept(options.out, decides, partial(measure, path, options.texture_size))
        rows.append(row)
        text = f"IoU {row['iou']:.3f}  PSNR {row['psnr']:.1f}  bodies {row['bodies']}  genus {row['genus']}"
        progress.step(f"{path.parent.name}/{path.name[:40]}  {text}")
    met = {
        f"IoU >= {IOU}": sum(row["iou"] >= IOU for row in rows),
        f"PSNR >= {PSNR:g} dB": sum(row["psnr"] >= PSNR for row in rows),
        "watertight": sum(row["watertight"] for row in rows),
        "one body": sum(row["bodies"] == 1 for row in rows),
    }
    for name, value in met.items():
        print(f"{name}: {value} of {len(rows)}")
    print(f"mean IoU {np.mean([r['iou'] for r in rows]):.3f}, mean PSNR {np.mean([r['psnr'] for r in rows]):.1f} dB")
    return rows


if __name__ == "__main__":
    main()
