"""Write ``dev_prompts.json``: eight prompts to tune options on, none of them among the forty of the report.

python tools/bench/make_dev_prompts.py
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mini.scenes import caption

from bench.make_prompts import HELD_OUT, SEEN, is_held_out, one, other_arrangements, other_colours, other_objects, two

DEV = [
    one("dog"),
    one("boat", "red"),
    one("castle"),
    one("teddy bear", accessory="scarf", accessory_colour="yellow"),
    one("pig", "blue"),
    one("cake", "cyan"),
    two(("cone", "yellow"), "on", ("cube", "red")),
    two(("cylinder", "green"), "on", ("sphere", "purple")),
]


def main() -> None:
    rows = []
    for index, look in enumerate(DEV):
        if look in SEEN + HELD_OUT:
            raise SystemExit(f"{caption(look)!r} is one of the report's prompts")
        rng = random.Random(1000 + index)
        groups = {"objects": other_objects, "colours": other_colours, "arrangements": other_arrangements}
        distractors = {name: [caption(d) for d in make(look, rng)] for name, make in groups.items()}
        rows.append(
            {"prompt": caption(look), "held_out": is_held_out(look), "look": asdict(look), "distractors": distractors}
        )
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    (Path(__file__).parent / "dev_prompts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
