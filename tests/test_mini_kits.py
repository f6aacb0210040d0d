"""The pack from the published pictures: captions, colours, and files that the pack's own reader reads."""

from __future__ import annotations

import numpy as np
import pytest
from mini.kits import emoji
from mini.kits.phrases import article, head
from mini.kits.tones import main_colours, nearest_names
from mini.names import read_table
from mini.pack import Pack, write_table
from mini.scenes import COLOURS
from PIL import Image


@pytest.mark.parametrize(
    ("caption", "noun", "before"),
    [
        ("corgi", "corgi", "a"),
        ("slice of pizza", "pizza", "a"),
        ("cup with a straw", "cup", "a"),
        ("pair of cherries", "cherries", "a"),
        ("grapes", "grapes", ""),
        ("cactus", "cactus", "a"),
        ("bread", "bread", ""),
        ("loaf of bread", "bread", "a"),
        ("two beer mugs", "mugs", ""),
        ("skull and crossbones", "skull", "a"),
        ("strips of bacon", "bacon", ""),
        ("number seven", "number", "a"),
    ],
)
def test_the_noun_and_the_article_of_a_caption(caption, noun, before):
    assert head(caption) == noun
    assert article(caption, noun) == before


def test_colours_are_named_by_share():
    assert nearest_names(np.array(list(COLOURS.values()))) == list(COLOURS)
    colours = np.array([COLOURS["red"], COLOURS["blue"], COLOURS["white"]])
    assert main_colours(colours, np.array([2.0, 7.0, 1.0])) == ["blue", "red"]


def test_lists_of_captions():
    text = "@animal\n1f400 rat;1f401-fe0f mouse|small mouse!;1f402 skip\n@dinosaur\n1f996 t-rex;1f400 again\n"
    found = list(emoji.entries(text))
    assert [(e.code, e.captions, e.category, e.quality) for e in found] == [
        ("1f400", ["rat"], "animal", 1),
        ("1f401", ["mouse", "small mouse"], "animal", 2),
        ("1f996", ["t-rex"], "creature", 1),
    ]
    committed = list(emoji.entries(emoji.CAPTIONS.read_text(encoding="utf-8")))
    assert len(committed) > 800
    assert all(int(point, 16) for entry in committed for point in entry.code.split("-"))


def test_pictures_become_a_pack_that_the_reader_reads(tmp_path, capsys):
    """Twice the size, a red square whose empty surroundings must not darken its rim."""
    assets, out = tmp_path / "assets", tmp_path / "pack"
    assets.mkdir()
    picture = np.zeros((256, 256, 4), np.uint8)
    picture[65:191, 65:191] = (220, 30, 30, 255)
    Image.fromarray(picture).save(assets / "1f34e-fe0f.webp", lossless=True)
    rows = emoji.convert(assets, out, "@produce\n1f34e red apple|apple;1f34f green apple\n")
    assert "no picture of green apple (1f34f)" in capsys.readouterr().out
    assert [row["id"] for row in rows] == ["emoji-1f34e"]
    (read,) = read_table(out / "emoji.tsv")
    assert read == {k: str(v) for k, v in rows[0].items()}
    assert (read["colours"], read["head"], read["source"]) == ("red", "apple", "red apple")
    write_table(out / "assets.tsv", [{"id": "none", "caption": "x", "quality": "2"}])
    seen = Pack(out).emoji["emoji-1f34e"]
    assert seen.shape == (128, 128, 4)
    assert np.abs(seen[64, 64].astype(int) - (220, 30, 30, 255)).max() < 12  # lossy
    small = emoji.reduced(Image.fromarray(picture), 128)
    assert np.abs(small[32, 64].astype(int) - (220, 30, 30, 128)).max() <= 1  # half covered, full colour
    assert (small[0, 0] == 0).all()
