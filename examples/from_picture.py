"""A picture of a thing and its name: the view that the picture shows is held, and the rest is made."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline


def main(
    picture: Positional[Path],
    prompt: Positional[str] = "a dog",
    *,
    azimuth: float = 45.0,
    elevation: float = 0.0,
    folder: Path = Path("outputs/from-picture"),
    preset: str = "default",
    steps: int | None = None,
) -> None:
    """Make PROMPT so that it looks like PICTURE, which has transparency around the thing, from AZIMUTH and ELEVATION.

    At azimuth 0 the picture shows the front, at 90 the thing's left side.
    """
    pipeline = TextTo3DPipeline.from_pretrained("mini")
    image = {"files": [str(picture)], "azimuth": [azimuth], "elevation": [elevation]}
    result = pipeline(prompt, preset=preset, steps=steps, overrides={"image": image})
    print(result.images, result.scores)
    result.save(folder)


if __name__ == "__main__":
    tyro.cli(main)
