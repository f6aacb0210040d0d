"""``psd-gs words``: what the embedded prior knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.priors.mini import Known


@dataclass
class Words:
    """List the objects that the embedded mini prior knows by category, or those nearest to given words."""

    words: Annotated[Positional[tuple[str, ...]], arg(metavar="WORD ...")] = ()
    """A thing in your own words, such as "racing bike"; shows what the prior knows that comes closest."""
    count: Annotated[int, arg(metavar="N")] = 8
    """How many of the nearest names."""
    sheet: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Also paint each of them with the prior, as four views, into this picture."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the noise that the sheet is painted from."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from rich.console import Console

        from psd_gs.errors import InputError

        console = Console(highlight=False, markup=False, soft_wrap=True)
        if self.sheet and not self.words:
            raise InputError("--sheet: expected words beside it, received none. Name a thing: `psd-gs words dog`.")
        if self.sheet and self.sheet.suffix.lower() != ".png":
            raise InputError(f"--sheet: expected a .png, received {self.sheet}.")
        if not 1 <= self.count <= 64:
            raise InputError(f"--count: expected 1 to 64, received {self.count}.")
        if not self.words:
            return _list_all(console)
        found = nearest(" ".join(self.words), self.count)
        if not found:
            text = " ".join(self.words)
            raise InputError(f"the embedded model knows nothing like {text!r}. `psd-gs words` lists all that it knows.")
        for known, closeness in found:
            others = f"  also: {', '.join(known.synonyms)}" if known.synonyms else ""
            console.print(f"{closeness:5.2f}  {known.name}  ({known.category}){others}")
        if self.sheet:
            _paint([known.name for known, _ in found], self.sheet, self.seed)
            console.print(str(self.sheet))


def nearest(text: str, count: int) -> list[tuple[Known, float]]:
    """The things closest to a text and how close: by meaning where the prior's words have vectors, else by spelling."""
    from difflib import SequenceMatcher, get_close_matches

    from psd_gs.priors import mini

    senses = mini.meanings()
    by_meaning = senses.nearest(text, count) if senses else []
    if by_meaning:
        return by_meaning
    text = text.lower()
    owners = {phrase: known for known in reversed(mini.catalogue()) for phrase in (*known.synonyms, known.name)}
    found: dict[str, tuple[Known, float]] = {}
    for phrase in get_close_matches(text, list(owners), n=4 * count, cutoff=0.55):
        known = owners[phrase]
        found.setdefault(known.name, (known, SequenceMatcher(None, text, phrase).ratio()))
    return list(found.values())[:count]


def _list_all(console: Console) -> None:
    from psd_gs.priors import mini

    groups: dict[str, list[str]] = {}
    for known in mini.catalogue():
        groups.setdefault(known.category, []).append(known.name)
    for category, names in sorted(groups.items()):
        console.print(f"{category}  {', '.join(sorted(names) if len(groups) > 1 else names)}")
    spoken = {word for noun in mini.nouns() for word in noun.split()}
    console.print(f"other words  {', '.join(sorted(mini.words() - spoken))}")


def _paint(names: list[str], path: Path, seed: int) -> None:
    """The prior's own four views of each name, in one picture."""
    import torch

    from psd_gs.export.pictures import contact_sheet
    from psd_gs.priors import load_prior

    pipeline = load_prior("mini").pipeline  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    sets = pipeline([f"a {name}" for name in names], generator=generator, output_type="pt").images
    strips = [torch.cat([*views], dim=2).permute(1, 2, 0) for views in sets]
    contact_sheet(strips, path, captions=names, size=max(strips[0].shape))
