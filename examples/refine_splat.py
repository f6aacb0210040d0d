"""A splat of any origin, changed as a sentence says: only what lies in the upper half of its box."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline
from psd_gs.export.formats import load


def main(
    splat: Positional[Path] = Path("outputs/a-corgi-0/splat.ply"),
    prompt: Positional[str] = "a corgi wearing a red hat",
    *,
    strength: float = 0.7,
    folder: Path = Path("outputs/refined"),
    preset: str = "default",
    steps: int | None = None,
) -> None:
    """Refine the upper half of SPLAT, a 3DGS PLY, and write it with pictures of before and after into FOLDER."""
    low, high = (load(splat).means.quantile(q, dim=0) for q in (0.0, 1.0))
    (x0, y0, z0), (x1, y1, z1) = (low - 0.2).tolist(), (high + 0.2).tolist()
    # The axes of a PLY are x right, y down, z forward, so the upper half has the smaller y.
    box = [x0, -y1, -z1, x1, -(y0 + y1) / 2, -z0]
    pipeline = TextTo3DPipeline.from_pretrained("mini")
    options = {"refine": {"box": box}} | ({} if steps is None else {"steps": steps})
    result = pipeline.refine(splat, prompt, strength=strength, preset=preset, overrides=options)
    print(result.refined)
    result.save(folder)


if __name__ == "__main__":
    tyro.cli(main)
