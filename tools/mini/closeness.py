"""The threshold of ``psd_gs.priors.mini.CLOSE``: how close a word must be to a known thing to be taken for it.

    cd tools
    python -m mini.closeness --pack PACK --text ../runs/text

``closeness.txt`` lists words that mean about what something known does, and words that mean nothing of the kind. Names,
synonyms and what is held out are not among those counted. The rule: the threshold that gets the same share of both
lists right, in steps of 0.01.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from transformers import CLIPTextModel

from mini.names import HELD, HERE, Name, spoken
from mini.pack import Pack
from mini.words import SPECIAL, known_words, phrase_vectors


def listed(names: dict[str, Name]) -> dict[str, list[str]]:
    """The words of ``closeness.txt`` that have a vector and are in no caption, name or list of what is held out."""
    said = {word for name in names.values() for phrase in (name.caption, *name.synonyms) for word in phrase.split()}
    said |= {word for phrase in HELD["synonyms"] for word in phrase.split()}
    known = set(known_words())
    out: dict[str, list[str]] = {"near": [], "far": []}
    for line in (HERE / "closeness.txt").read_text(encoding="utf-8").splitlines():
        kind, *words = line.split()
        if kind in out:
            out[kind] += [word for word in words if word in known and word not in said]
    return out


def balanced(near: np.ndarray, far: np.ndarray) -> tuple[float, float, float]:
    """The threshold that treats both lists alike, and the shares of them that it gets right."""
    steps = np.arange(0, 101) / 100
    passed, warned = (near[:, None] >= steps).mean(0), (far[:, None] < steps).mean(0)
    best = np.abs(passed - warned).argmin()
    return float(steps[best]), float(passed[best]), float(warned[best])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--text", type=Path, required=True, help="folder that mini.train_text wrote")
    args = parser.parse_args()
    names, words = Pack(args.pack).names, known_words()
    encoder = CLIPTextModel.from_pretrained(args.text / "text_encoder")
    table = encoder.get_input_embeddings().weight.detach().float()[len(SPECIAL) :]
    phrases = list(dict.fromkeys(phrase for name in names.values() for phrase in spoken(name)))
    vectors = phrase_vectors(phrases, words, table)
    closeness: dict[str, np.ndarray] = {}
    for kind, chosen in listed(names).items():
        rows = table[[words.index(word) for word in chosen]]
        cosines, nearest = (rows / rows.norm(dim=1, keepdim=True) @ vectors.T).max(1)
        closeness[kind] = cosines.numpy()
        for word, cosine, i in sorted(zip(chosen, cosines.tolist(), nearest.tolist(), strict=True), key=lambda r: r[1]):
            print(f"{kind:5} {cosine:5.2f}  {word:16} {phrases[i]}")
    threshold, passed, warned = balanced(closeness["near"], closeness["far"])
    counts = f"{len(closeness['near'])} near, {len(closeness['far'])} far"
    print(f"{counts}: {threshold:.2f} passes {passed:.0%}, warns {warned:.0%}")


if __name__ == "__main__":
    main()
