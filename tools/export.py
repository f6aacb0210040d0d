"""Convert many splat files: the batch form of ``psd-gs export``.

    python tools/export.py outputs --to .spz .sog                     # every PLY below a folder, beside it
    python tools/export.py "outputs/*-0/splat.ply" --to .glb --output-dir web --max-splats 20000 --prune

Files keep their names; with --output-dir they also keep their folders below the common one. A file that cannot be
converted is one line on stderr, the others are converted all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from psd_gs.errors import PsdGsError
from psd_gs.export.convert import Conversion, convert
from psd_gs.export.edit import Edit
from psd_gs.export.formats import FORMATS
from psd_gs.files import writing


def find(patterns: Sequence[str], suffix: str) -> list[Path]:
    """Files that are named, match a glob (``**`` too), or end with ``suffix`` in a folder or below it; sorted."""
    found: set[Path] = set()
    for pattern in patterns:
        for name in [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True):
            path = Path(name)
            found |= {file for file in path.rglob(f"*{suffix}") if file.is_file()} if path.is_dir() else {path}
    return sorted(found)


def stem(path: Path) -> str:
    """The file's name without the extension of its format."""
    extension = next((extension for extension in FORMATS if path.name.lower().endswith(extension)), path.suffix)
    return path.name[: len(path.name) - len(extension)]


def place(source: Path, root: Path, folder: Path | None) -> Path:
    """Folder for what ``source`` becomes: its own, or the one below ``folder`` that it has below ``root``."""
    return source.parent if folder is None else folder / source.parent.resolve().relative_to(root)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="files, globs or folders")
    parser.add_argument("--to", nargs="+", required=True, choices=list(FORMATS), metavar="EXT", help="formats to write")
    parser.add_argument("--suffix", default=".ply", metavar="EXT", help="which files of a folder; default .ply")
    parser.add_argument("--output-dir", type=Path, metavar="DIR")
    parser.add_argument("--sh-degree", type=int, metavar="0-3")
    parser.add_argument("--max-splats", type=int, metavar="N")
    parser.add_argument("--prune", action="store_true", help="drop broken, nearly transparent and floating splats")
    parser.add_argument("--frame", choices=["gltf", "rdf"], help="axes of the written files")
    parser.add_argument("--input-frame", choices=["gltf", "rdf"], help="axes of the inputs")
    parser.add_argument("--no-metadata", action="store_true")
    options = parser.parse_args(arguments)
    sources = find(options.inputs, options.suffix)
    if not sources:
        raise SystemExit(f"error: no file found for {' '.join(options.inputs)}")
    failed = 0
    try:
        edit = Edit(options.sh_degree, options.max_splats, options.prune)
    except PsdGsError as error:
        raise SystemExit(f"error: {error}") from None
    how = Conversion(edit, options.frame, options.input_frame, metadata=not options.no_metadata)
    root = Path(os.path.commonpath([source.parent.resolve() for source in sources]))
    for i, source in enumerate(sources):
        folder = place(source, root, options.output_dir)
        targets = [folder / (stem(source) + extension) for extension in options.to]
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            done = convert(source, targets, how)
        except PsdGsError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"[{i + 1}/{len(sources)}] {source}  {done.after} Gaussians", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
