"""``psd-gs models``: the published weights, what of them is on this machine, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from psd_gs.plugins import Offer
    from psd_gs.published import Weights


@dataclass
class Models:
    """List, fetch and check the weights of priors and rewards.

    `psd-gs models list` shows all, and what installed packages offer; `psd-gs models pull sd15` fetches one
    into the Hugging Face cache (an interrupted download goes on); `psd-gs models verify` reads every byte
    of what is there.
    """

    action: Positional[Literal["list", "pull", "verify"]]
    """list, pull NAME or verify [NAME]."""
    name: Annotated[Positional[str], arg(metavar="[NAME]")] = ""
    """Of the model, a hub id or a folder; verify without one checks all that are here."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        {"list": self._list, "pull": self._pull, "verify": self._verify}[self.action](console)

    def _list(self, console) -> None:
        from psd_gs.entries import PRIORS, REWARDS
        from psd_gs.published import WEIGHTS
        from psd_gs.weights import find, is_here

        def row(name: str, kind: str, weights: Weights | None, licence: str, place: str) -> tuple[str, ...]:
            entry = PRIORS.get(name) if kind == "prior" else REWARDS.get(name) if kind == "reward" else None
            memory = f"{entry.memory:.1f} GB" if entry and entry.memory else ""
            if weights is None:
                return name, kind, "installed", "yes", memory, licence, place
            licence = weights.licence + (" (to be accepted first)" if weights.gated else "")
            here = "yes" if is_here(weights) else "no"
            return name, kind, f"{weights.gigabytes:.1f} GB", here, memory, licence, place

        rows: list[tuple[str, ...]] = [("name", "kind", "download", "here", "GPU memory", "licence", "from")]
        rows.append(row("mini", "prior", None, "Apache-2.0", "psd-gs"))
        rows += [row(entry.name, entry.kind, entry, "", entry.repos[0][0]) for entry in WEIGHTS.values()]
        offers = all_offers()
        for offer in (offer for offer in offers if not offer.problem):
            fetched = find(offer.name) if offer.kind in ("prior", "reward") else None
            rows.append(row(offer.name, offer.kind, fetched, offer.licence, offer.package))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            line = "  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True))
            console.print(line.rstrip(), soft_wrap=True)
        for offer in offers:
            if offer.problem:
                console.print(f"warning: {offer.problem}", soft_wrap=True)

    def _pull(self, console) -> None:
        from psd_gs import weights
        from psd_gs.errors import ConfigError

        if not self.name:
            raise ConfigError("models pull: expected the name of a model, received none. See `psd-gs models list`.")
        entry = weights.describe(self.name)
        size = f", {entry.gigabytes:.1f} GB" if entry.gigabytes else ""
        console.print(f"{entry.name} from {entry.repos[0][0]}{size}, licence {entry.licence}", soft_wrap=True)
        console.print(str(weights.locate(self.name)), soft_wrap=True)

    def _verify(self, console) -> None:
        from psd_gs import weights
        from psd_gs.errors import ModelError

        names = (
            [self.name] if self.name else [entry.name for entry in weights.WEIGHTS.values() if weights.is_here(entry)]
        )
        if not names:
            console.print("none of the published models is here; `psd-gs models pull NAME` fetches one")
        wrong = 0
        for name in names:
            problems = weights.verify(name)
            wrong += len(problems)
            console.print(f"{name}: {'whole' if not problems else '; '.join(problems)}", soft_wrap=True)
        if wrong:
            raise ModelError(f"{wrong} files are damaged, see above. `psd-gs models pull NAME` fetches them again.")


def all_offers() -> list[Offer]:
    """What installed packages offer, of every kind."""
    from importlib.metadata import entry_points

    from psd_gs.entries import PREFERENCES, PRIORS, REWARDS
    from psd_gs.plugins import Registry

    tables: list[Registry[Any]] = [PRIORS, REWARDS, PREFERENCES]
    if entry_points(group="psd_gs.exporters"):  # else that table, which takes torch along, says nothing new
        from psd_gs.export.formats import FORMATS

        tables.append(FORMATS)
    return [offer for table in tables for offer in table.offers()]
