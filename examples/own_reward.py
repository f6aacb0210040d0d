"""A reward of your own: any function of images and prompts. No gradient of it is needed.

It is a reward's name on the command line too: `psd-gs generate "a corgi" --reward examples/own_reward.py:redness`.
"""

from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """How much redder than green and blue ``images [B, 3, H, W]`` (sRGB in [0, 1]) are; higher is better, ``[B]``."""
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def main(
    prompt: Positional[str] = "a corgi", *, folder: Path = Path("outputs/own-reward"), steps: int | None = None
) -> None:
    """Make PROMPT under the function above, and save it into FOLDER."""
    pipeline = TextTo3DPipeline.from_pretrained("mini", reward=f"{__file__}:redness", allow_code=True)
    # Pairs of the embedded preset speak at low noise only; a taste for colours is settled at high noise.
    result = pipeline(
        prompt, preset="draft", steps=steps, overrides={"guidance": {"psd": {"start": 0.0, "t_max": 1.0}}}
    )
    print(result.scores)
    result.save(folder)


if __name__ == "__main__":
    tyro.cli(main)
