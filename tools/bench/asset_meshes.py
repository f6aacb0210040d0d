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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from bench.common import ROOT, Progress, Row, digest, kept
from bench.mesh_views import against_splat
from psd_gs.asset import open_asset
from psd_gs.cli.run_options import parse_shard
from psd_gs.mesh.build import BuildOptions, build
from psd_gs.mesh.extract import MeshOptions

IOU, PSNR = 0.95, 22.0


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
