"""Train the prior on a GPU machine that is lent for minutes: what to take there, the training, what comes back.

    cd tools
    python -m mini.gpu_run pack --pack PACK --out ../.mini                               # here: 21 MB
    python -m mini.gpu_run train --packed ../.mini --out ../runs/gpu --back ../runs/back  # there, as often as needed
    python -m mini.gpu_run join ../runs/back ../runs/prior                                # here: what came back

``train`` starts from ``checkpoints/prior`` and hands everything behind ``--`` on to ``mini.train_prior``. Every call
goes on from the last one's checkpoint as long as ``--out`` stays where it is, and gives back the running mean of the
weights (fp16), so that nothing is lost with the machine.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
from pathlib import Path

import numpy as np

from mini import train_prior
from mini.names import read_meshes, read_table
from mini.pack import write_table

CHECKPOINT = Path(__file__).with_name("checkpoints") / "prior"
PIECE = 15 * 2**20
"""Bytes of a file that comes back."""
CUDA = ("--channels", "48", "48", "64", "128", "192", "--outer", "500",
        "--device", "cuda", "--batch", "64", "--lr", "8e-4", "--workers", "15", "--reuse", "2", "--threads", "1",
        "--minutes", "25", "--call", "8", "--decay", "0.3", "--ema", "0.999",
        "--save-every", "1000", "--sheet-every", "100000")  # fmt: skip
"""Of a training that goes in three calls of ten minutes, start and end included."""


def pack(args: argparse.Namespace) -> None:
    """``pack.tar.xz``: meshes and emoji of good quality, stored plainly so that xz sees them."""
    args.out.mkdir(parents=True, exist_ok=True)
    slim = args.out / "pack"
    shutil.rmtree(slim, ignore_errors=True)
    slim.mkdir()
    good = {row["id"] for row in read_meshes(args.pack) if row["quality"] == "1"}
    for path in sorted(args.pack.glob("meshes-*.npz")):
        np.savez(slim / path.name, **chosen(dict(np.load(path)), good))
    for path in sorted(args.pack.glob("*.tsv")):
        rows = [row for row in read_table(path) if row["quality"] == "1"]
        write_table(slim / path.name, rows)
    shutil.copy(args.pack / "emoji.zip", slim)
    packed = args.out / "pack.tar.xz"
    with tarfile.open(packed, "w:xz", preset=6) as archive:
        archive.add(slim, "pack")
    shutil.rmtree(slim)
    print(f"{packed}  {packed.stat().st_size / 1e6:.1f} MB")


def chosen(arrays: dict[str, np.ndarray], good: set[str]) -> dict[str, np.ndarray]:
    """The meshes of a file of the pack whose ids are in ``good``."""
    keep = [i for i, name in enumerate(arrays["ids"]) if str(name) in good]
    vertices, faces = arrays["vertex_start"], arrays["face_start"]

    def cut(name: str, start: np.ndarray) -> np.ndarray:
        parts = [arrays[name][start[i] : start[i + 1]] for i in keep]
        return np.concatenate(parts) if parts else arrays[name][:0]

    return {
        "ids": arrays["ids"][keep],
        "vertex_start": np.cumsum([0, *np.diff(vertices)[keep]]),
        "face_start": np.cumsum([0, *np.diff(faces)[keep]]),
        "vertices": cut("vertices", vertices),
        "triangles": cut("triangles", faces),
        "colours": cut("colours", faces),
    }


def unpack(args: argparse.Namespace) -> None:
    """``pack.tar.xz`` into ``--out``, where ``train`` finds it: a call of its own if all is too much for one."""
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.packed / "pack.tar.xz") as archive:
        archive.extractall(args.out, filter="data")


def train(args: argparse.Namespace) -> None:
    """Unpack what is not there yet, train, and put the result into ``--back`` in pieces."""
    if not (args.out / "pack").exists():
        unpack(args)
    given = ["--pack", args.out / "pack", "--init", args.init, "--out", args.out]
    train_prior.main([*map(str, given), *CUDA, *args.rest])
    args.back.mkdir(parents=True, exist_ok=True)
    give_back(args.out, args.back)


def give_back(out: Path, back: Path) -> None:
    """The pipeline in pieces of ``PIECE`` bytes, the curve and the last sheet."""
    whole = out / "pipeline.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(out / "pipeline", "pipeline")
    data = whole.read_bytes()
    for i, start in enumerate(range(0, len(data), PIECE)):
        (back / f"pipeline.tar.{i}").write_bytes(data[start : start + PIECE])
    whole.unlink()
    shutil.copy(out / "curve.jsonl", back)
    shutil.copy(max(out.glob("samples-*.png")), back)


def join(args: argparse.Namespace) -> None:
    """The pieces in ``args.folder`` as ``args.out``/pipeline, beside the curve and the sheet."""
    args.out.mkdir(parents=True, exist_ok=True)
    whole = args.out / "pipeline.tar"
    with whole.open("wb") as file:
        for path in sorted(args.folder.glob("pipeline.tar.*"), key=lambda path: int(path.suffix[1:])):
            file.write(path.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(args.out, filter="data")
    whole.unlink()
    for path in (*args.folder.glob("curve.jsonl"), *args.folder.glob("samples-*.png")):
        shutil.copy(path, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help=pack.__doc__)
    packing.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    packing.add_argument("--out", type=Path, required=True)
    packing.set_defaults(run=pack)
    unpacking = commands.add_parser("unpack", help=unpack.__doc__)
    unpacking.add_argument("--packed", type=Path, required=True, help="folder that pack wrote")
    unpacking.add_argument("--out", type=Path, required=True, help="stays there between calls")
    unpacking.set_defaults(run=unpack)
    training = commands.add_parser("train", help=train.__doc__)
    training.add_argument("--packed", type=Path, required=True, help="folder that pack wrote")
    training.add_argument("--init", type=Path, default=CHECKPOINT, help="start from this")
    training.add_argument("--out", type=Path, required=True, help="stays there between calls")
    training.add_argument("--back", type=Path, required=True, help="gets at most eight files of 16 MiB")
    training.add_argument("rest", nargs="*", help="further options of mini.train_prior, behind --")
    training.set_defaults(run=train)
    joining = commands.add_parser("join", help=join.__doc__)
    joining.add_argument("folder", type=Path, help="with what came back")
    joining.add_argument("out", type=Path)
    joining.set_defaults(run=join)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
