"""What the benchmarks over the entries of a list share: options, and rows that are kept as they come."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import Row


def add_list_arguments(parser: argparse.ArgumentParser, kits: bool = True) -> None:
    """Options of a benchmark over the entries of a list; ``kits`` says whether it needs them."""
    parser.add_argument("out", type=Path, help="folder of the lines, pictures and assets")
    parser.add_argument("--kits", type=Path, required=kits, help="folder of the meshes of the kits")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--entries", type=int, nargs="*", help="only these, counted from 0")


class Journal:
    """Rows of finished entries: lines of a file, and printed as they come.

    Args:
        path: of the file; its folder is created.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.path, self.rows = path, [json.loads(line) for line in lines]

    def wants(self, chosen: Sequence[int] | None, **entry: Any) -> bool:
        """Whether an entry is among those chosen (None: all) and has no row yet."""
        done = any(entry.items() <= row.items() for row in self.rows)
        return not done and (chosen is None or entry["entry"] in chosen)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
