"""A sentence in, a run folder with splats, a mesh and a report out."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline


def main(
    prompt: Positional[str] = "a corgi", *, folder: Path = Path("outputs/first-asset"), steps: int | None = None
) -> None:
    """Make PROMPT and save everything into FOLDER."""
    pipeline = TextTo3DPipeline.from_pretrained("mini")
    result = pipeline(prompt, seed=0, preset="draft", steps=steps)
    print(f"{len(result.gaussians)} Gaussians; {result.scores}")
    result.save(folder)


if __name__ == "__main__":
    tyro.cli(main)
