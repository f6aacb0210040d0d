"""Put a trained prior into the package, with the lists of what it knows.

cd tools && python -m mini.ship ../runs/prior/pipeline        # --all if it was trained on all categories
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mini.objects import CATEGORIES
from mini.scenes import vocabulary

ASSETS = Path(__file__).resolve().parents[2] / "src" / "psd_gs" / "assets" / "mini"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="folder that mini.train_prior wrote")
    parser.add_argument("--all", action="store_true", help="trained on all categories, not the core ones only")
    args = parser.parse_args()
    target = ASSETS / "prior"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(args.pipeline, target)
    categories = tuple(c for c in CATEGORIES if args.all or c.core)
    (target / "words.txt").write_text("\n".join(vocabulary(categories)) + "\n", encoding="utf-8")
    (target / "nouns.txt").write_text("\n".join(n for c in categories for n in c.names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
