"""What the text tower of the prior learns before any picture is painted."""

from __future__ import annotations

import json

import pytest
import torch
from mini import train_text
from mini.check_names import Asked
from mini.looks import components, looks_of
from mini.networks import Model, make_text_encoder, make_unet
from mini.words import make_tokenizer
from mini.world import World
from mini_pack import write_pack

from psd_gs.priors.multiview_pipeline import MultiViewPipeline

NAMES = ["low bench", "round pebble", "stone post"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_pack(folder := tmp_path_factory.mktemp("pack"))
    return folder


@pytest.fixture(scope="module")
def world(folder) -> World:
    return World(train_text.Pack(folder), 32)


def questions(world: World, synonyms: bool = False) -> list[Asked]:
    return [Asked(name, name, [other for other in NAMES if other != name]) for name in NAMES]


def test_components_weigh_by_the_root_of_their_deviation():
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    values = torch.randn(20000, 5, generator=generator) * torch.tensor([16.0, 4.0, 1.0, 0.0, 0.0]) @ turned + 3
    found = components(values)
    assert found.shape == (20000, 3)  # what does not vary tells nothing
    covariance = torch.cov(found.T)
    torch.testing.assert_close(covariance, torch.diag(torch.tensor([1.0, 4.0, 16.0])), atol=0.2, rtol=0.03)


def test_looks_are_of_the_names_and_tell_them_apart(world):
    looks = looks_of(world, renders=3)
    assert looks.names == [name.caption for name in world.solids]
    assert len(looks.captions) == len(looks.numbers) == len(looks.shown) == 3 * len(looks.names)
    said = looks.means()[[looks.names.index(name) for name in NAMES]]
    torch.testing.assert_close(said[0], looks.numbers[looks.shown == looks.names.index(NAMES[0])].mean(0))
    assert looks.right(said, questions(world)) == 1
    assert looks.right(said.roll(1, 0), questions(world)) == 0


@pytest.mark.full
def test_a_text_tower_learns_what_things_look_like(world, folder, tmp_path, monkeypatch, capsys):
    """The U-Net and the vectors of words stay what they are, but for the pooling of the text."""
    torch.manual_seed(0)
    words = ["a", "corgi", "red", "cube", *(word for name in NAMES for word in name.split())]
    vectors = torch.randn(len(words) + 8, 192, generator=torch.Generator().manual_seed(1))
    old = make_tokenizer(["a", "corgi", "red", "cube"], tmp_path / "old")
    encoder = make_text_encoder(old, vectors[: len(old)])
    unet = make_unet(16, 1, (32, 64, 64, 64))
    Model(old, encoder, unet, 1).pipeline().save_pretrained(tmp_path / "init")
    monkeypatch.setattr(train_text, "known_words", lambda: words)
    monkeypatch.setattr(train_text, "word_vectors", lambda words, width: vectors[: len(words) + len(old) - 4])
    monkeypatch.setattr(train_text, "sentence_vectors", lambda texts: torch.ones(len(texts), 384) / 384**0.5)
    monkeypatch.setattr(train_text, "asked_for", questions)
    monkeypatch.setattr(world, "solids", [world.names[name] for name in NAMES])
    looks = looks_of(world, renders=2)
    monkeypatch.setattr(train_text, "looks_of", lambda world: looks)
    out = tmp_path / "out"
    arguments = ["--pack", folder, "--init", tmp_path / "init", "--out", out, "--steps", 100, "--batch", 2]
    train_text.main([*map(str, arguments), "--lr", "1e-3"])
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert last["looks"] < 0.5 * first["looks"]
    assert last["names"] == 1
    found = MultiViewPipeline.from_pretrained(out)
    assert len(found.tokenizer) == len(words) + len(old) - 4
    torch.testing.assert_close(
        found.text_encoder.get_input_embeddings().weight.float(), vectors[: len(found.tokenizer)].half().float()
    )
    assert not found.text_encoder.get_input_embeddings()._forward_hooks
    before = unet.state_dict()
    changed = {n for n, value in found.unet.state_dict().items() if not torch.equal(value, before[n].half())}
    assert "add_embedding.proj.weight" in changed
    assert all(name.startswith("add_embedding.") for name in changed)
