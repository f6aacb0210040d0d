"""Meshes of many splat files: the batch form of ``psd-gs mesh``.

    python tools/extract_mesh.py outputs                                        # mesh.glb beside every splat.ply
    python tools/extract_mesh.py "outputs/*-0/splat.ply" --to .obj --output-dir meshes --preset mobile --height 1.8

Meshes are called as their splats, and ``mesh`` where that is ``splat``; with --output-dir they keep their folders
below the common one. A file without a surface is one line on stderr, the others are made all the same, and the exit
code is 1. What is made already is left alone unless --overwrite is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from export import find, place, stem

from psd_gs.cli.mesh import Mesh
from psd_gs.errors import PsdGsError
from psd_gs.files import writing


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="files, globs or folders")
    parser.add_argument("--to", default=".glb", choices=[".glb", ".obj", ".ply", ".stl"], metavar="EXT")
    parser.add_argument("--suffix", default="splat.ply", metavar="END", help="which files of a folder")
    parser.add_argument("--output-dir", type=Path, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="also what is made already")
    parser.add_argument("--preset", default="game", choices=["mobile", "game", "hero", "film"])
    parser.add_argument("--faces", type=int, metavar="N")
    parser.add_argument("--resolution", type=int, metavar="N")
    parser.add_argument("--texture-size", type=int, metavar="N")
    parser.add_argument("--height", type=float, metavar="METRES")
    parser.add_argument("--pivot", default="base", choices=["base", "center", "keep"])
    parser.add_argument("--lods", type=int, default=0, metavar="N")
    parser.add_argument("--collision", default="none", choices=["none", "hull", "coacd"])
    parser.add_argument("--no-metadata", action="store_true")
    options = vars(parser.parse_args(arguments))
    inputs, suffix, extension = options.pop("inputs"), options.pop("suffix"), options.pop("to")
    folder, overwrite = options.pop("output_dir"), options.pop("overwrite")
    sources = find(inputs, suffix)
    if not sources:
        raise SystemExit(f"error: no file found for {' '.join(inputs)}")
    root = Path(os.path.commonpath([source.parent.resolve() for source in sources]))
    failed = 0
    for i, source in enumerate(sources):
        name = stem(source)
        target = place(source, root, folder) / (("mesh" if name == "splat" else name) + extension)
        print(f"[{i + 1}/{len(sources)}] {target}", flush=True)
        if target.exists() and not overwrite:
            continue
        try:
            with writing(target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)
            Mesh(source=source, target=target, **options).run()
        except PsdGsError as error:
            failed += 1
            print(f"error: {source}: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
