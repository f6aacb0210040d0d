"""The embedded prior: where its files are, how they are read, and which words it knows."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

if TYPE_CHECKING:
    import numpy as np
    import torch

    from psd_gs.priors.base import Prior

_WORD, _LETTERS = re.compile(r"[\w']+"), re.compile(r"\w+")
CLOSE = 0.48
"""A word that no caption had is taken for what lies nearest if the cosine between the two is at least this.

Found by ``mini.closeness`` on words that are neither names nor held out.
"""
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


def load(_: None, *, dtype: torch.dtype | None, device: torch.device | str, **options: Any) -> Prior:
    """The embedded prior; float32 on a GPU unless told otherwise: it is so small that half precision gains nothing.

    Raises:
        ModelError: the package is damaged.
    """
    import torch

    from psd_gs.priors.embedded import EmbeddedPrior

    if dtype is None and torch.device(device).type == "cpu" and computes_in_bfloat16():
        dtype = torch.bfloat16
    return EmbeddedPrior.from_pretrained(folder("prior"), dtype=dtype or torch.float32, device=device, **options)


def computes_in_bfloat16() -> bool:
    """Whether the CPU has instructions for it."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@dataclass(frozen=True)
class Known:
    """One thing that the model was trained on.

    Attributes:
        category: heading in the list of all.
        name: noun phrase without article.
        synonyms: other phrases for it in captions.
    """

    category: str
    name: str
    synonyms: tuple[str, ...] = ()


@cache
def catalogue() -> tuple[Known, ...]:
    """All things that the model was trained on."""
    table = folder("prior") / "names.tsv"
    if not table.exists():
        names = (folder("prior") / "nouns.txt").read_text(encoding="utf-8").split("\n")[:-1]
        return tuple(Known("objects", name) for name in names)
    rows = (line.split("\t") for line in table.read_text(encoding="utf-8").split("\n")[1:-1])
    return tuple(Known(category, name, tuple(filter(None, others.split("|")))) for category, name, others in rows)


@cache
def nouns() -> tuple[str, ...]:
    """The objects that the model was trained on, synonyms included."""
    return tuple(dict.fromkeys(phrase for known in catalogue() for phrase in (known.name, *known.synonyms)))


@cache
def words() -> frozenset[str]:
    """Every word of the captions that the model was trained on."""
    return frozenset((folder("prior") / "words.txt").read_text(encoding="utf-8").split())


class Meanings:
    """Vectors of English words and of the model's own names, in which like meanings lie close together.

    Args:
        prior: folder of a prior whose word vectors are those of a sentence encoder; ``names.safetensors`` beside them
            holds unit vectors of all phrases, in the order of :func:`nouns`.
    """

    def __init__(self, prior: Path) -> None:
        import numpy as np
        from safetensors import safe_open

        vocabulary = json.loads((prior / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        with safe_open(prior / "text_encoder" / "model.safetensors", "np") as file:
            name = next(key for key in file.keys() if key.endswith("token_embedding.weight"))  # noqa: SIM118
            self.vectors = file.get_tensor(name).astype(np.float32)
        with safe_open(prior / "names.safetensors", "np") as file:
            self.phrases = file.get_tensor("phrases").astype(np.float32)
        self.vocabulary: dict[str, int] = vocabulary

    def __contains__(self, word: str) -> bool:
        return word in self.vocabulary

    def vector(self, text: str) -> Float[np.ndarray, " D"] | None:
        """Unit vector of the mean of the words that have one; None if none has."""
        import numpy as np

        rows = [self.vectors[self.vocabulary[w]] for w in _LETTERS.findall(text.lower()) if w in self.vocabulary]
        if not rows:
            return None
        mean = np.mean([row / max(float(np.linalg.norm(row)), 1e-6) for row in rows], axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-6)

    def nearest(self, text: str, count: int = 3) -> list[tuple[Known, float]]:
        """Different things whose name or synonym lies closest to a text, with the cosines; empty for unknown words."""
        vector = self.vector(text)
        if vector is None:
            return []
        owners = {phrase: known for known in reversed(catalogue()) for phrase in (*known.synonyms, known.name)}
        found: dict[str, tuple[Known, float]] = {}
        cosines = self.phrases @ vector
        for i in (-cosines).argsort():
            known = owners[nouns()[i]]
            found.setdefault(known.name, (known, float(cosines[i])))
            if len(found) == count:
                break
        return list(found.values())


@cache
def meanings() -> Meanings | None:
    """Of the embedded prior, if its words have vectors."""
    return Meanings(folder("prior")) if (folder("prior") / "names.safetensors").exists() else None


@dataclass(frozen=True)
class PromptCheck:
    """What the embedded prior makes of a prompt.

    Attributes:
        unknown: words that no caption had and that mean nothing to it, in order.
        near: known words or names that look like them or lie closest.
        knows_object: whether any known object, or something close to one, is named.
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
            sample = [known.name for known in catalogue() if " " not in known.name]
            sample = sample[:: max(1, len(sample) // 10)][:10]
            parts.append(f"the prompt names no object that it knows, such as {', '.join(sample)}")
        parts.append("`psd-gs words` lists all; larger priors need a GPU and the Hugging Face hub (see the README)")
        return "; ".join(parts)


def check_prompt(prompt: str) -> PromptCheck:
    """Compare a prompt with the vocabulary of the embedded prior, and new words with what lies near them."""
    tokens = _WORD.findall(prompt.lower())
    fresh = tuple(dict.fromkeys(t for t in tokens if t not in _FILLER and not words().issuperset(_LETTERS.findall(t))))
    text = f" {' '.join(tokens)} "
    named = any(f" {' '.join(_WORD.findall(noun))} " in text for noun in nouns())
    senses = meanings()
    closest = {word: senses.nearest(word) if senses else [] for word in fresh}
    read = {word for word, found in closest.items() if found and found[0][1] >= CLOSE}
    unknown = tuple(word for word in fresh if word not in read)
    near: list[str] = []
    for word in unknown:
        near += [known.name for known, _ in closest[word]]
        near += difflib.get_close_matches(word, sorted(words()), n=2, cutoff=0.7)
    return PromptCheck(unknown, tuple(dict.fromkeys(near)), named or bool(read))
