"""``psd-gs fit-reward``: a reward from answers of ``psd-gs rank``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from psd_gs.ranking.fit import Accuracy


@dataclass
class FitReward:
    """Fit a small head on another reward's features to people's answers.

    The folder OUT is a reward's name from then on: `psd-gs generate ... --reward OUT`. Prints how many winners
    it names on prompts that it was not fitted on, beside the reward that it started from.
    """

    pairs: Annotated[Positional[Path], arg(metavar="PAIRS.jsonl")]
    """Answers of `psd-gs rank`."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder of the new reward."""
    base: Annotated[str, arg(name="from", metavar="NAME")] = "mini"
    """Reward whose features are read: mini, hpsv2.1, pickscore, imagereward, clip, aesthetic, ..."""
    loss: Annotated[Literal["bt", "ipo"], arg(help_behavior_hint="")] = "bt"
    """bt: Bradley-Terry with a margin that grows with the degree; ipo: squared distance to a bounded target."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.models import resolve_device
        from psd_gs.ranking.answers import read_answers
        from psd_gs.ranking.fit import check_enough, fit_reward
        from psd_gs.rewards import load_reward

        check_enough(read_answers(self.pairs))  # before anything is loaded
        fit = fit_reward(
            self.pairs,
            load_reward(self.base, resolve_device(self.device), allow_code=True),
            self.base,
            self.out,
            self.loss,
        )
        console = Console(highlight=False, markup=False)
        console.print(f"{self.base}: {_text(fit.base)}", soft_wrap=True)
        console.print(f"{self.out}: {_text(fit.held_out)} on prompts that were left out", soft_wrap=True)
        mean, low, high = (100 * value for value in fit.gain)
        console.print(f"gain {mean:+.1f} points ({low:+.1f} to {high:+.1f})")
        if low <= 0:
            console.print("warning: it is not shown to be better than what it started from; answer more pairs")


def _text(accuracy: Accuracy) -> str:
    return (
        f"{100 * accuracy.share:.1f} % of {accuracy.count} winners "
        f"(95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"
    )
