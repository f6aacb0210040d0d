"""Words of the embedded prior: vectors of meaning, what lies near, and the command that lists them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mini import words as made
from safetensors.numpy import save_file

from psd_gs.cli.words import Words, nearest
from psd_gs.errors import InputError
from psd_gs.priors import mini

WORDS = ["car", "automobile", "dog", "puppy", "racing", "a", "red", "justice"]
VECTORS = np.array(
    [[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 1, 0, 0], [0.1, 0.9, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0.1, 0], [0, 0, 1, 0],
     [0, 0, 0, 1]], np.float32,
)  # fmt: skip


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A prior that knows cars and dogs."""
    (tmp_path / "names.tsv").write_text(
        "category\tname\tsynonyms\nroad vehicle\tcar\tracing car\nanimal\tdog\t\n", encoding="utf-8"
    )
    (tmp_path / "words.txt").write_text("a\ncar\ndog\nracing\nred\n", encoding="utf-8")
    for folder in ("tokenizer", "text_encoder"):
        (tmp_path / folder).mkdir()
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    save_file({"embeddings.token_embedding.weight": VECTORS}, tmp_path / "text_encoder" / "model.safetensors")
    racing = VECTORS[0] + VECTORS[4]
    phrases = np.stack([VECTORS[0], racing / np.linalg.norm(racing), VECTORS[2]])
    save_file({"phrases": phrases.astype(np.float16)}, tmp_path / "names.safetensors")
    caches = (mini.catalogue, mini.nouns, mini.words, mini.meanings)
    monkeypatch.setattr(mini, "folder", lambda part: tmp_path)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_the_catalogue_is_read_by_category(known):
    assert mini.catalogue() == (mini.Known("road vehicle", "car", ("racing car",)), mini.Known("animal", "dog"))
    assert mini.nouns() == ("car", "racing car", "dog")


def test_the_nearest_things_come_with_their_cosines(known):
    found = mini.meanings().nearest("automobile")
    assert [known.name for known, _ in found] == ["car", "dog"]
    a = VECTORS[1] / np.linalg.norm(VECTORS[1])
    assert [c for _, c in found] == pytest.approx([a[0], a[1]], abs=1e-3)
    assert mini.meanings().nearest("xylophone") == []


def test_words_close_to_a_known_thing_pass_and_far_ones_are_warned_of(known):
    assert mini.check_prompt("a red automobile").message == ""
    assert mini.check_prompt("a puppy").knows_object
    check = mini.check_prompt("a justice")
    assert check.unknown == ("justice",)
    assert not check.knows_object
    assert check.near == ("car", "dog")
    assert "does not know 'justice'" in check.message
    assert "close words that it knows: car, dog" in check.message
    assert mini.check_prompt("a corg").unknown == ("corg",)


def listed(capsys, *arguments: str, **options) -> list[str]:
    Words(arguments, **options).run()
    return capsys.readouterr().out.splitlines()


def test_the_list_is_by_category(known, capsys):
    assert listed(capsys) == ["animal  dog", "road vehicle  car", "other words  a, red"]


def test_near_names_of_words(known, capsys):
    assert listed(capsys, "puppy", count=1) == [" 0.99  dog  (animal)"]
    assert listed(capsys, "automobile", count=1) == [" 0.99  car  (road vehicle)  also: racing car"]


def test_without_vectors_spelling_decides():
    """The prior that is shipped today."""
    assert mini.meanings() is None
    (first, closeness), *_ = nearest("corgy", 3)
    assert first.name == "corgi"
    assert closeness == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("qqqq",), {}, "knows nothing like 'qqqq'"),
        ((), {"sheet": "x.png"}, "--sheet: expected words beside it"),
        (("dog",), {"sheet": "x.jpg"}, "--sheet: expected a .png, received x.jpg"),
        (("dog",), {"count": 0}, "--count: expected 1 to 64, received 0"),
    ],
)
def test_what_the_command_refuses(arguments, options, message, tmp_path):
    from pathlib import Path

    options = {k: Path(v) if k == "sheet" else v for k, v in options.items()}
    with pytest.raises(InputError, match=message):
        Words(arguments, **options).run()


@pytest.mark.full
def test_the_sheet_shows_four_views_of_every_name(tmp_path, capsys):
    from PIL import Image

    Words(("corgi",), count=2, sheet=tmp_path / "s.png").run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "s.png")
    assert len(lines) == 3
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width >= 4 * 32


# --- making them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sentences(monkeypatch):
    """A stand-in for the sentence encoder: a fixed random vector for every text."""

    def encode(phrases: list[str]) -> torch.Tensor:
        rows = [torch.randn(24, generator=torch.Generator().manual_seed(sum(map(ord, p)))) for p in phrases]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    monkeypatch.setattr(made, "sentence_vectors", encode)
    return encode


def test_word_vectors_are_a_weakened_principal_rotation(sentences):
    words = [f"w{i}" for i in range(300)]
    vectors = made.word_vectors(words, 24)[len(made.SPECIAL) :]
    assert vectors.std() == pytest.approx(made.SPREAD, rel=1e-3)
    covariance = vectors.T @ vectors / len(vectors)
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-4
    raw = sentences(words)
    variance = torch.linalg.eigvalsh(torch.cov(raw.T, correction=0))
    shares, expected = covariance.diag() / covariance.diag()[-1], (variance / variance[-1]).sqrt()
    torch.testing.assert_close(shares, expected, rtol=1e-2, atol=1e-3)
    assert (made.word_vectors(words, 8)[made.SPECIAL.index(made.UNKNOWN)] == 0).all()


def test_phrases_find_the_space_of_given_word_vectors(sentences):
    """As another machine made them: the axes' signs are arbitrary."""
    words = [f"w{i}" for i in range(300)]
    vectors = made.word_vectors(words, 16)[len(made.SPECIAL) :] * torch.tensor([1.0, -1.0] * 8)
    found = made.phrase_vectors(words[:20], words, vectors)
    torch.testing.assert_close(found, torch.nn.functional.normalize(vectors[:20], dim=-1), atol=1e-4, rtol=1e-3)


def test_every_word_is_one_token(tmp_path):
    tokenizer = made.make_tokenizer(["corgi", "lantern", "jack", "o", "'", "-"], tmp_path)
    numbers = tokenizer(["Corgi", "jack-o'-lantern", "corgi xyz"]).input_ids
    names = [tokenizer.convert_ids_to_tokens(ids) for ids in numbers]
    assert names[0] == [made.START, "corgi", made.END]
    assert names[1] == [made.START, "jack", "-", "o", "'", "-", "lantern", made.END]
    assert names[2] == [made.START, "corgi", made.UNKNOWN, made.END]
    assert tokenizer.model_max_length == made.LENGTH


def test_the_threshold_treats_near_and_far_words_alike():
    """Three of four near words are above 0.4, three of four far ones below; any other threshold favours one list."""
    from mini.closeness import balanced, listed
    from mini.names import HELD, Name

    near, far = np.array([0.3, 0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.35, 0.55])
    threshold, passed, warned = balanced(near, far)
    assert 0.35 < threshold <= 0.5
    assert passed == warned == 0.75
    lists = listed({"spruce": Name("spruce", "tree", synonyms=["moth lamp"])})
    assert not set(lists["near"]) & set(lists["far"])
    assert not {"spruce", "moth"} & set(lists["near"])
    assert not {w for phrase in HELD["synonyms"] for w in phrase.split()} & {*lists["near"], *lists["far"]}
    assert "justice" in lists["far"]


def test_what_is_written_beside_a_prior_fits_its_catalogue(tmp_path, sentences, monkeypatch):
    from mini import ship
    from mini.names import Name

    names = {"car": Name("car", "road vehicle", synonyms=["racing car"]), "dog": Name("dog", "animal")}
    monkeypatch.setattr(ship, "known_words", lambda: ["car", "dog", "racing"])
    table = torch.randn(len(made.SPECIAL) + 3, 192)
    encoder = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=table))
    ship.write_lists(SimpleNamespace(names=names), SimpleNamespace(text_encoder=encoder), tmp_path)
    monkeypatch.setattr(mini, "folder", lambda part: tmp_path)
    mini.catalogue.cache_clear()
    mini.nouns.cache_clear()
    try:
        assert mini.nouns() == ("dog", "car", "racing car")
    finally:
        mini.catalogue.cache_clear()
        mini.nouns.cache_clear()
    assert {"a", "car", "dog", "racing", "red", "next"} <= set((tmp_path / "words.txt").read_text().split())
    from safetensors.torch import load_file

    assert load_file(tmp_path / "names.safetensors")["phrases"].shape == (3, 192)
