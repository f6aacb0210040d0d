"""``psd-gs words``: what the embedded prior knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Words:
    """List the objects that the embedded mini prior knows, and the other words of its captions."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.priors import mini

        console = Console(highlight=False)
        console.print(f"[bold]objects[/bold]  {', '.join(mini.nouns())}")
        spoken = {word for noun in mini.nouns() for word in noun.split()}
        console.print(f"[bold]others[/bold]   {', '.join(sorted(mini.words() - spoken))}")
