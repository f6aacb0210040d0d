"""Make the contact sheet that the README opens with.

python tools/bench/contact_sheet.py [--preset draft] ["a prompt" ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from psd_gs.cli import main
from psd_gs.runs import slug

PROMPTS = (
    "a corgi",
    "a red mushroom",
    "a snowman wearing a red hat",
    "a burger",
    "a giraffe",
    "a rocket with red fins",
    "a pig wearing a blue scarf",
    "a red sphere on a green cube",
)


def make() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/contact_sheet"))
    args = parser.parse_args()
    folders = [args.output_dir / f"{slug(prompt)}-0" for prompt in args.prompts]
    for prompt in args.prompts:
        command = ["generate", prompt, "--preset", args.preset, "--overwrite", "--output-dir", args.output_dir]
        subprocess.run([sys.executable, "-m", "psd_gs", *map(str, command)], check=True)
    main(["sheet", *map(str, folders), "--output", "docs/images/contact_sheet.png", "--columns", "4", "--size", "200"])


if __name__ == "__main__":
    make()
