"""Two methods on the same prompts and seeds, scored by a judge that neither of them optimizes.

For more than a look use `psd-gs eval run`, which adds budgets, wrong captions, intervals and a report.
"""

from statistics import mean

import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline

METHODS = {
    "psd": {"guidance": {"preference": "psd"}},
    "base": {"guidance": {"preference": "none"}},
}
"""Name to options, nested as in a --config file."""


def main(
    prompts: Positional[tuple[str, ...]] = ("a corgi", "a red car"), *, seeds: int = 2, steps: int | None = None
) -> dict[str, float]:
    """Print, and return, the mean judge's score of each method over PROMPTS and SEEDS."""
    pipeline = TextTo3DPipeline.from_pretrained("mini")
    runs = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
    means = {}
    for name, options in METHODS.items():
        results = [pipeline(text, seed=seed, preset="draft", steps=steps, overrides=options) for text, seed in runs]
        means[name] = mean(result.scores["mini-judge"] for result in results)
        print(f"{name}: {means[name]:+.3f}")
    return means


if __name__ == "__main__":
    tyro.cli(main)
