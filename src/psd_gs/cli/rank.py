"""``psd-gs rank``: which of two assets is better, asked in the browser."""

from __future__ import annotations

import getpass
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def user() -> str:
    """The user's name; a container may run as a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "anonymous"


@dataclass
class Rank:
    """Compare finished runs of the same prompt by eye, on a page that only this machine can open.

    Shows two turntables side by side without telling which is which; keys 1 (left much better) to 5 (right
    much better), s to skip. Every answer is on the disk before the next pair shows; the same command goes on
    where it was left. `psd-gs fit-reward` makes a reward of the answers.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUNS [RUNS ...]", help_behavior_hint="")]
    """Run folders, or folders of them, such as outputs."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("pairs.jsonl")
    """Answers, one JSON line each; several annotators may share the file."""
    annotator: Annotated[str, arg(metavar="NAME", help_behavior_hint="")] = field(default_factory=user)
    """Who answers. Default: the user's name."""
    repeats: Annotated[int, arg(metavar="N")] = 0
    """Ask N pairs a second time with sides exchanged, to see how steady the answers are."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the order of the pairs and of their sides."""
    port: Annotated[int, arg(metavar="N")] = 0
    """0 takes a free one."""
    no_browser: bool = False
    """Print the address only."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.ranking.server import Server, Session

        console = Console(highlight=False, markup=False)
        session = Session(self.runs, self.out, self.annotator, repeats=self.repeats, seed=self.seed)
        with Server(session, self.port) as server:
            console.print(f"{len(session.left)} of {len(session.pairs)} pairs to ask {self.annotator}", soft_wrap=True)
            console.print(f"{server.url}  (Ctrl-C ends; answers are in {self.out})", soft_wrap=True)
            if not self.no_browser:
                webbrowser.open(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                state = session.state()
                console.print(f"{state['done']} of {state['total']} answered")
