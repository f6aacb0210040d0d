"""``psd-gs options``: what can be set, and to what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Options:
    """List the options of a run with their meaning, range and defaults.

    Set them with --set NAME=VALUE or in a --config file, in generate, batch and eval run.
    """

    word: Annotated[Positional[str], arg(metavar="WORD", help_behavior_hint="")] = ""
    """Only options with this in their name or meaning."""

    def run(self) -> None:
        from rich.console import Console
        from rich.padding import Padding

        from psd_gs.config.describe import options
        from psd_gs.errors import InputError

        console = Console(highlight=False, markup=False)
        found = options(self.word)
        if not found:
            raise InputError(f"no option has {self.word!r} in its name or meaning. `psd-gs options` lists all.")
        for option in found:
            accepted = f"{option.kind}, {option.range}" if option.range else option.kind
            console.print(f"{option.name}  ({accepted})", style="bold", soft_wrap=True)
            presets = "".join(f"; {family}: {value}" for family, value in option.presets.items())
            console.print(Padding(f"{option.text} Default: {_shown(option.default)}{presets}.".strip(), (0, 0, 0, 4)))


def _shown(value: object) -> str:
    return "none" if value is None else "empty" if value == "" else str(value)
