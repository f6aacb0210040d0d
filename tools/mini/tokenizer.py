"""A CLIP tokenizer whose merges spell out the caption grammar: every known word is one token."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

LENGTH = 24
"""Tokens per prompt with start and end; the longest caption of the grammar has 22."""


def byte_pairs(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make one piece of every word: the most frequent pair first, ties in alphabetical order.

    The trainer of the ``tokenizers`` library breaks ties differently in every process, which would
    exchange words between a checkpoint and its continuation.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def train_tokenizer(words: list[str], folder: Path) -> CLIPTokenizer:
    """Write and load a tokenizer in CLIP's file layout.

    Byte-pair encoding is trained on the words alone until each of them is a single token.

    Args:
        words: the vocabulary, lower case.
        folder: gets vocab.json, merges.txt and tokenizer_config.json.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = byte_pairs(words)
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys(a + b for a, b in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)
