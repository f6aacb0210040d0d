"""The embedded prior: where its files are, and which words it knows."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

_FILLER = {
    "some",
    "one",
    "very",
    "and",
    "in",
    "at",
    "by",
    "its",
    "this",
    "that",
    "my",
    "small",
    "little",
    "cute",
    "nice",
}
"""Words that change nothing of note, and are not worth a warning."""


def folder(part: str) -> Path:
    """``prior``, ``reward`` or ``judge`` inside the package."""
    return Path(str(resources.files("psd_gs"))) / "assets" / "mini" / part


@cache
def nouns() -> tuple[str, ...]:
    """The objects that the model was trained on, synonyms included."""
    return tuple((folder("prior") / "nouns.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def words() -> frozenset[str]:
    """Every word of the captions that the model was trained on."""
    return frozenset((folder("prior") / "words.txt").read_text(encoding="utf-8").split())


@dataclass(frozen=True)
class PromptCheck:
    """What the embedded prior makes of a prompt.

    Attributes:
        unknown: words it was never shown, in order.
        near: known words that look like them.
        knows_object: whether any known object is named.
    """

    unknown: tuple[str, ...]
    near: tuple[str, ...]
    knows_object: bool

    @property
    def message(self) -> str:
        """One warning, or empty if there is nothing to warn about."""
        if not self.unknown and self.knows_object:
            return ""
        parts = []
        if self.unknown:
            parts.append(f"the embedded model does not know {', '.join(map(repr, self.unknown))}")
            if self.near:
                parts.append(f"close words that it knows: {', '.join(self.near)}")
        if not self.knows_object:
            sample = [n for n in nouns() if " " not in n][::6]
            parts.append(f"the prompt names no object that it knows, such as {', '.join(sample[:10])}")
        parts.append("`psd-gs words` lists all; larger priors need a GPU and the Hugging Face hub (see the README)")
        return "; ".join(parts)


def check_prompt(prompt: str) -> PromptCheck:
    """Compare a prompt with the vocabulary of the embedded prior."""
    tokens = re.findall(r"[\w']+", prompt.lower())
    unknown = tuple(dict.fromkeys(t for t in tokens if t not in words() and t not in _FILLER))
    near = (word for t in unknown for word in difflib.get_close_matches(t, sorted(words()), n=2, cutoff=0.7))
    text = f" {' '.join(tokens)} "
    return PromptCheck(unknown, tuple(dict.fromkeys(near)), any(f" {noun} " in text for noun in nouns()))
