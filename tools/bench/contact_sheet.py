"""Make the contact sheet that the README opens with.

python tools/bench/contact_sheet.py [--preset draft] ["a prompt" ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from psd_gs.export.pictures import contact_sheet
from psd_gs.runs import slug

PROMPTS = (
    "a corgi",
    "a red cube",
    "a yellow banana",
    "a burger",
    "a blue sphere",
    "a green cone",
    "a tree",
    "a blue cube on a yellow cylinder",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/contact_sheet"))
    args = parser.parse_args()
    pictures = []
    for prompt in args.prompts:
        picture = args.output_dir / f"{slug(prompt)}-0" / "preview.png"
        if not picture.exists():
            command = [sys.executable, "-m", "psd_gs", "generate", prompt, "--preset", args.preset, "--overwrite"]
            subprocess.run([*command, "--output-dir", str(args.output_dir)], check=True)
        strip = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))) / 255
        pictures.append(strip[:, : strip.shape[0]])  # the front view
    contact_sheet(pictures, "docs/contact_sheet.png", captions=list(args.prompts), columns=4, size=200)


if __name__ == "__main__":
    main()
