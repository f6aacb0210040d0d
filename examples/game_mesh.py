"""A mesh for an engine: textured, scaled to metres, with coarser levels and a collision shape."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from psd_gs.export.formats import load
from psd_gs.mesh.build import BuildOptions, build
from psd_gs.mesh.extract import MeshOptions
from psd_gs.mesh.save import save_mesh


def main(
    splat: Positional[Path] = Path("outputs/a-corgi-0/splat.ply"),
    *,
    folder: Path = Path("outputs/game-mesh"),
    faces: int = 20_000,
    resolution: int = 256,
    texture_size: int = 1024,
) -> None:
    """Write SPLAT as mesh.glb with two coarser levels into FOLDER, half a metre high and standing on the origin."""
    options = BuildOptions(
        MeshOptions(resolution=resolution, faces=faces),
        texture_size=texture_size,
        height=0.5,
        pivot="base",
        lods=2,
        collision="hull",
    )
    built = build(load(splat), options, on_stage=print)
    folder.mkdir(parents=True, exist_ok=True)
    for level, mesh in enumerate(built.levels):
        target = folder / (f"mesh_lod{level}.glb" if level else "mesh.glb")
        save_mesh(mesh, target, metadata=built.facts(level), collision=[] if level else built.collision)
        print(f"{target}: {len(mesh.faces)} triangles")


if __name__ == "__main__":
    tyro.cli(main)
