"""Evaluation: statistics against closed forms and SciPy, suites, arms, budgets, scores of known objects."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy import stats

from psd_gs.asset import RADIUS, open_asset, prompt_of
from psd_gs.cameras import turntable
from psd_gs.errors import ConfigError, FormatError, InputError
from psd_gs.evaluation.arms import Arm, parse_arm, parse_arms, parse_overrides
from psd_gs.evaluation.budget import equal_steps, equal_time
from psd_gs.evaluation.scores import (
    Viewing,
    azimuths,
    janus,
    logit_scale,
    measure_asset,
    model_scores,
    ring_images,
    turntable_webp,
)
from psd_gs.evaluation.statistics import bootstrap, cliffs_delta, cohens_d, paired, wilson
from psd_gs.evaluation.suites import SUITES, load_suite, parse_suite
from psd_gs.export.fitting import bounding_ball, fitted
from psd_gs.export.formats import save
from psd_gs.gaussians import Gaussians, from_points, random_ball, rgb_to_sh0
from psd_gs.published import EMBEDDED
from psd_gs.rewards import load_reward
from psd_gs.rewards.base import CallableReward
from psd_gs.rewards.combine import Scored, WeightedSum
from psd_gs.rewards.fitted import FittedReward, LinearHead
from psd_gs.runs import unique_run_name
from psd_gs.scoring import evaluation_images, score_asset

# --- statistics ------------------------------------------------------------------------------------------------------


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(3).normal(0.2, 1.0, 60)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert bootstrap(values) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_of_two_values_is_known_exactly():
    # means of pairs from {0, 1}: 0 and 1 with probability 1/4 each, 1/2 with probability 1/2
    assert bootstrap([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert bootstrap([0.0, 1.0], level=0.6) == (0.0, 1.0)
    assert bootstrap([0.7] * 5) == pytest.approx((0.7, 0.7))


@pytest.mark.parametrize(("wins", "n"), [(0, 8), (3, 8), (8, 8), (36, 40)])
def test_wilson_agrees_with_scipy(wins, n):
    theirs = stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert wilson(wins, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_between_counts():
    assert wilson(3, 8)[0] < wilson(3.5, 8)[0] < wilson(4, 8)[0]


def test_cohens_d_is_the_t_statistic_without_n():
    values = np.random.default_rng(4).normal(0.3, 1.0, 25)
    assert cohens_d(values) == pytest.approx(stats.ttest_1samp(values, 0).statistic / 5)
    assert math.isnan(cohens_d(np.full(4, 0.2)))
    assert math.isnan(cohens_d(np.array([1.0])))


def test_cliffs_delta_is_the_rescaled_u_statistic():
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 9, 20), rng.integers(2, 11, 30)
    u = stats.mannwhitneyu(a, b).statistic
    assert cliffs_delta(a, b) == pytest.approx(2 * u / 600 - 1)
    assert cliffs_delta(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0


def test_paired_counts_ties_as_half_and_leaves_gaps_out():
    p = paired(np.array([1.0, 2.0, 3.0, np.nan]), np.array([0.5, 2.0, 4.0, 1.0]))
    assert (p.n, p.wins) == (3, 0.5)
    assert p.mean == pytest.approx(-1 / 6)
    assert p.interval[0] <= p.mean <= p.interval[1]
    assert paired(np.array([np.nan]), np.array([1.0])) is None


# --- suites ----------------------------------------------------------------------------------------------------------


GROUPS = ("objects", "colours", "arrangements")
"""Kinds of wrong captions of the embedded models' suites, in their order."""


@pytest.mark.parametrize(("suite", "count"), list(zip(SUITES, (40, 8, 5, 40, 60), strict=True)))
def test_suites_load_from_the_package(suite, count):
    items = load_suite(suite)
    assert len(items) == count
    assert all(len(item.wrong) >= 4 and item.prompt not in item.wrong for item in items)
    names = [unique_run_name(item.prompt, 0) for item in items]
    assert len(set(names)) == count


def test_the_mini_suites_are_those_of_the_benchmarks():
    bench = Path(__file__).resolve().parents[1] / "tools" / "bench"
    for suite, file in (("mini-40", "prompts.json"), ("mini-dev-8", "dev_prompts.json")):
        rows = {row["prompt"]: row for row in json.loads((bench / file).read_text(encoding="utf-8"))}
        items = load_suite(suite)
        assert {item.prompt for item in items} == rows.keys()
        for item in items:
            groups = rows[item.prompt]["distractors"]
            assert list(item.wrong) == [text for name in GROUPS for text in groups[name]]
            assert [len(groups[name]) for name in GROUPS] == [4, 3, 3]
            assert len({item.prompt, *item.wrong}) == 11
            assert item.group == ("held out" if rows[item.prompt]["held_out"] else "seen")
    report, development = ({item.prompt for item in load_suite(suite)} for suite in ("mini-40", "mini-dev-8"))
    assert not report & development


def test_a_suite_may_begin_with_the_mark_of_windows_editors(tmp_path):
    (tmp_path / "mine.txt").write_bytes("\ufeffa red ball\r\na cone\r\n".encode())
    assert [item.prompt for item in load_suite(str(tmp_path / "mine.txt"))] == ["a red ball", "a cone"]


def test_a_suite_of_ones_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# all mine\n\na cube | a ball | a cone\n[two]\n  a red hat\na dog\n", encoding="utf-8")
    items = load_suite(str(file))
    assert [(i.prompt, i.wrong, i.group) for i in items] == [
        ("a cube", ("a ball", "a cone"), ""),
        ("a red hat", ("a cube", "a dog"), "two"),
        ("a dog", ("a cube", "a red hat"), "two"),
    ]
    assert [i.prompt for i in load_suite(str(file), 2)] == ["a cube", "a red hat"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "received none"), ("a dog\na dog", "line 2"), ("a dog\n123", "line 2")]
)
def test_unusable_suites(text, message):
    with pytest.raises(InputError, match=message):
        parse_suite(text)


def test_unknown_suites_are_told():
    with pytest.raises(InputError, match="mini-40"):
        load_suite("mini-4")
    with pytest.raises(InputError, match="cannot read"):
        load_suite("missing.txt")
    with pytest.raises(InputError, match="1 prompt"):
        load_suite("smoke-5", 0)


def test_folder_names_tell_prompts_apart():
    assert unique_run_name("a corgi", 3) == "a-corgi-3"
    assert unique_run_name("a corgi!", 3) != unique_run_name("a corgi?", 3)
    long = [f"a very long prompt about a corgi on a hill with a hat number {i}" for i in range(2)]
    assert unique_run_name(long[0], 0) != unique_run_name(long[1], 0)


# --- arms and budgets ------------------------------------------------------------------------------------------------


def test_arms_as_they_are_written(tmp_path):
    none = {"guidance": {"preference": "none"}}
    assert parse_arm("psd") == Arm("psd", {"guidance": {"preference": "psd"}})
    assert parse_arm("none*3") == Arm("none*3", none, 3)
    assert parse_arm("none*3").folder == "nonex3"
    assert parse_arm("best-of-2") == Arm("best-of-2", none, 2)
    assert parse_arm("heavy:guidance.psd.weight=3,cameras.elevation=[0, 30]").options == {
        "guidance": {"psd": {"weight": 3}},
        "cameras": {"elevation": [0, 30]},
    }
    assert parse_arm("dreamdpo:guidance.dreamdpo.threshold=0").options["guidance"] == {
        "preference": "dreamdpo",
        "dreamdpo": {"threshold": 0},
    }
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 7\nguidance: {method: sds}\n", encoding="utf-8")
    assert parse_arm(f"mine={file}") == Arm("mine", {"steps": 7, "guidance": {"method": "sds"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PSD2", "expected one of"),
        ("psd*0", "1 run"),
        ("a b", "such as NAME"),
        ("x:seed=1", "same for all"),
        ("x:seed", "key=value"),
        ("x:steps=[", "not YAML"),
        ("x:guidance=1,guidance.psd=2", "key=value"),
    ],
)
def test_arms_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_arm(text)


def test_arms_have_different_names():
    with pytest.raises(ConfigError, match="more than once"):
        parse_arms(["psd", "psd:guidance.psd.weight=2"])
    with pytest.raises(ConfigError, match="one or more"):
        parse_arms([])


def test_overrides_are_nested_and_typed():
    assert parse_overrides(["a.b=1", "a.c=x", "e=true"]) == {"a": {"b": 1, "c": "x"}, "e": True}


ARMS = [parse_arm(text) for text in ("psd", "none", "best-of-2")]
OWN = {"psd": 200, "none": 200, "best-of-2": 200}


def test_equal_steps_are_shared_by_the_runs_of_an_arm():
    assert equal_steps(ARMS, OWN).steps == {"psd": 200, "none": 200, "best-of-2": 100}


@pytest.mark.parametrize(
    ("time_of", "seconds", "steps"),
    [("slowest", 40.0, (200, 400, 200)), ("none", 20.0, (100, 200, 100)), ("best-of-2", 20.0, (100, 200, 100))],
)
def test_equal_time_gives_the_steps_that_fit(time_of, seconds, steps):
    costs = {"psd": 0.2, "none": 0.1, "best-of-2": 0.1}
    budget = equal_time(ARMS, OWN, costs, time_of, {})
    assert budget.seconds == pytest.approx(seconds)
    assert tuple(budget.steps.values()) == steps
    for arm in ARMS:
        spent = budget.steps[arm.name] * arm.runs * costs[arm.name]
        assert budget.seconds - arm.runs * costs[arm.name] < spent <= budget.seconds + 1e-6


def test_a_settled_time_stays_when_an_arm_is_added():
    budget = equal_time(ARMS, OWN, {"psd": 0.9, "none": 0.1, "best-of-2": 0.1}, "none", {}, seconds=20.0)
    assert (budget.seconds, budget.steps["psd"]) == (20.0, 22)
    with pytest.raises(ConfigError, match="slowest"):
        equal_time(ARMS, OWN, dict.fromkeys(OWN, 1.0), "other", {})


# --- scores ----------------------------------------------------------------------------------------------------------


def head(*faces: float) -> Gaussians:
    """A grey ball with a red face at each of the azimuths (degrees)."""
    ball = random_ball(500, 0.5, scale=0.06, opacity=0.9, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(ball.means, dim=1)
    rgb = torch.full((500, 3), 0.5)
    for face in faces:
        angle = math.radians(face)
        looks = direction @ torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        rgb[looks > 0.75] = torch.tensor([0.9, 0.1, 0.1])
    return replace(ball, sh0=rgb_to_sh0(rgb)[:, None])


RED = CallableReward(lambda images, prompts: (images[:, 0] - images[:, 1]).mean((1, 2)), "red")
SMALL = Viewing(views=12, size=32)


@pytest.fixture(scope="module")
def heads():
    return {name: measure_asset(head(*faces), "a head", (), {"red": RED}, SMALL) for name, faces in FACES.items()}


FACES = {"one": (0,), "two": (0, 180)}


def test_two_faces_have_a_higher_janus_proxy_than_one(heads):
    one, two = heads["one"]["janus"], heads["two"]["janus"]
    assert one["features"] == two["features"] == "pixels"
    assert one["back_share"] < 0.05
    assert two["back_share"] > 0.4
    assert one["opposite"] < 0.1
    assert two["opposite"] > 0.7


def test_the_side_that_lacks_the_face_shows_in_the_split(heads):
    one, two = (heads[name]["scores"]["red"] for name in ("one", "two"))
    assert one["front"] > one["back"] + 0.02
    assert two["front"] == pytest.approx(two["back"], abs=0.01)
    assert one["min"] == min(one["views"])
    assert one["views"][0] == max(one["views"])
    assert one["match"] is None


def test_mean_is_the_score_of_the_pipeline(heads):
    cameras_and_size = evaluation_images(head(0), 32)
    expected = RED.score(cameras_and_size, ["a head"] * 2).mean()
    assert heads["one"]["scores"]["red"]["mean"] == pytest.approx(float(expected), abs=1e-4)
    whole = measure_asset(head(0), "a head", (), {"red": RED}, Viewing(4))
    assert whole["scores"]["red"]["mean"] == pytest.approx(score_asset(head(0), "a head", RED), abs=1e-4)


class Sized:
    """Remembers the shapes of what it was shown."""

    name, differentiable = "sized", False

    def __init__(self, **wishes: int) -> None:
        self.seen: set[tuple[int, int]] = set()
        for name, value in wishes.items():
            setattr(self, name, value)

    def score(self, images, prompts, cameras):
        assert len(cameras) == len(images) * images.shape[1]
        assert (cameras.width, cameras.height) == images.shape[-2:]
        self.seen.add(tuple(images.shape[1:2] + images.shape[-1:]))
        return images.mean((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("wishes", "prior_size", "size"),
    [({}, 0, 256), ({}, 32, 256), ({}, 512, 512), ({"render_size": 128}, 512, 128), ({"views": 4}, 0, 256)],
)
def test_models_see_renders_of_the_size_that_they_want(wishes, prior_size, size):
    model = Sized(**wishes)
    measure_asset(head(0).select(torch.arange(20)), "a head", ("a foot",), {"sized": model}, Viewing(4), prior_size)
    assert model.seen == {(4, size), (wishes.get("views", 1), size)}
    model.seen.clear()
    score_asset(head(0).select(torch.arange(20)), "a head", model, prior_size)
    assert model.seen == {(4, size)}


def test_what_a_sum_and_a_fitted_reward_want():
    small, plain, four = Sized(render_size=128), Sized(), Sized(views=4)
    sums = [WeightedSum([Scored(part) for part in parts], "sum") for parts in ((small, small), (small, plain, four))]
    assert [(one.render_size, one.views) for one in sums] == [(128, 1), (None, 4)]
    fitted_ones = [
        FittedReward(base, LinearHead(torch.zeros(1), torch.zeros(1)), "fit") for base in (small, plain, four)
    ]
    assert [(one.render_size, one.views) for one in fitted_ones] == [(128, 1), (None, 1), (None, 4)]
    assert {load_reward(name).render_size for name in EMBEDDED} == {128}


def test_a_clip_is_asked_for_front_views():
    from tiny_rewards import clip_config
    from transformers import CLIPModel, CLIPTokenizer

    from psd_gs.priors.mini import folder
    from psd_gs.rewards.clip import CLIPReward, image_features

    words = CLIPTokenizer.from_pretrained(folder("prior") / "tokenizer")
    torch.manual_seed(0)
    model = CLIPReward(CLIPModel(clip_config(vocabulary=len(words), length=words.model_max_length)), words)
    ring = ring_images(head(0), 4, 32)
    found = janus(ring, "a head", {"red": RED, "clip": model})
    assert (found["features"], found["front_by"]) == ("clip", "view prompts")
    texts = model.encode_prompts([f"a head, {side} view" for side in ("front", "side", "back")])
    logits = logit_scale(model) * image_features(model.model, ring) @ texts.T
    assert found["front"] == pytest.approx(logits.softmax(1)[:, 0].tolist(), abs=1e-4)
    assert found["back_share"] == pytest.approx(found["front"][2] / (found["front"][0] + found["front"][2]), abs=1e-3)


def test_views_that_are_all_alike_prove_nothing():
    result = janus(torch.full((8, 3, 8, 8), 0.3), "a ball", {})
    assert (result["opposite"], result["back_share"]) == (0.0, 0.5)


def test_match_is_a_softmax_over_captions():
    taste = {"a dog": 2.0, "a cat": 1.0, "a cow": 0.0}
    model = CallableReward(lambda images, prompts: torch.tensor([taste[p] for p in prompts]), "taste")
    ring, sets = torch.rand(4, 3, 8, 8), torch.rand(2, 4, 3, 8, 8)
    scores = model_scores(model, ring, sets, "a dog", ("a cat", "a cow"))
    e = math.e
    assert scores["match"] == pytest.approx(e**2 / (e**2 + e + 1), abs=1e-5)
    assert scores["right"] == 1.0
    assert model_scores(model, ring, sets, "a cat", ("a dog",))["right"] == 0.0


def test_logit_scale_undoes_the_standardization():
    class Embedded:
        class network:  # noqa: N801
            class config:  # noqa: N801
                score_std = 2.5

    class Cosine:
        scale = "cosine"

        class model:  # noqa: N801
            logit_scale = torch.tensor(math.log(100.0))

    assert logit_scale(Embedded()) == 2.5
    assert logit_scale(Cosine()) == pytest.approx(100.0)
    assert logit_scale(RED) == 1.0


def test_a_vanished_asset_is_white():
    result = measure_asset(None, "a head", (), {"red": RED}, SMALL)
    assert result["scores"]["red"]["mean"] == 0.0
    assert result["janus"]["back_share"] == 0.5


def test_the_ring_begins_in_front_and_goes_around():
    assert azimuths(8) == [0, 45, 90, 135, 180, -135, -90, -45]
    ring = ring_images(head(90), 12, 32)
    red = (ring[:, 0] - ring[:, 1]).mean((1, 2))
    assert int(red.argmax()) == 3  # of 12 views, the one from +X
    assert len(turntable(12)) == len(ring)


@pytest.mark.parametrize("options", [{"views": 5}, {"views": 2}, {"size": 4}])
def test_protocols_that_cannot_be(options):
    with pytest.raises(ConfigError):
        Viewing(**options)


def test_the_film_holds_all_views():
    film = Image.open(io.BytesIO(turntable_webp(ring_images(head(0), 12, 32))))
    assert (film.format, film.n_frames, film.size) == ("WEBP", 12, (32, 32))


# --- any asset -------------------------------------------------------------------------------------------------------


def test_splats_of_any_place_and_size_are_framed_alike(tmp_path):
    asset = head(0)
    moved = replace(asset, means=7 * asset.means + 3, scales=asset.scales + math.log(7))
    save(moved, tmp_path / "far.spz", metadata={"prompt": "a head"})
    found = open_asset(tmp_path / "far.spz")
    centre, radius = bounding_ball(found)
    assert centre.abs().max() < 0.01
    assert radius == pytest.approx(RADIUS, rel=0.01)
    assert prompt_of(tmp_path / "far.spz") == "a head"
    assert open_asset(tmp_path / "far.spz", fit=False).means.mean() > 2.5
    close = ring_images(fitted(asset, RADIUS), 12, 32) - ring_images(found, 12, 32)
    assert float(close.abs().mean()) < 0.01


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".obj"])
def test_meshes_are_seen_from_the_right_side(tmp_path, suffix):
    box = trimesh.creation.box((2, 2, 2)).subdivide().subdivide()
    colours = np.full((len(box.vertices), 4), 128, np.uint8)
    colours[:, 3] = 255
    colours[box.vertices[:, 2] > 0.9, :3] = (230, 20, 20)  # the face toward +Z is the front
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=colours)
    box.export(tmp_path / f"box{suffix}")
    ring = ring_images(open_asset(tmp_path / f"box{suffix}"), 4, 32)
    red = (ring[:, 0] - ring[:, 1]).mean((1, 2))
    assert red[0] > 0.1
    assert red[2] < 0.02
    assert float(ring[:, :, 15:17, 15:17].amin(1).max()) < 0.8  # closed: no white shines through


def test_assets_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="run folder"):
        open_asset(tmp_path)
    (tmp_path / "a.glb").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        open_asset(tmp_path / "a.glb")
    points = torch.rand(20, 3)
    save(from_points(points, points, scale=0.1, opacity=0.5), tmp_path / "b.ply")
    with pytest.raises(InputError, match="--prompt"):
        prompt_of(tmp_path / "b.ply")


def test_scores_are_json(heads):
    assert json.loads(json.dumps(heads["one"], allow_nan=False)) == heads["one"]
