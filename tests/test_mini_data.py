"""The procedural objects: distances, coverage, colours, captions, and what is held out of training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from mini.dataset import compose, sample_background, sample_cameras, sample_light, shade, trace_scene
from mini.objects import ACCESSORIES, BY_NAME, CATEGORIES, WEARERS
from mini.scenes import (
    COLOURS,
    HELD_COLOURS,
    HELD_RELATIONS,
    RADIUS,
    RELATION_WORDS,
    SECOND_SLOT,
    STRETCHES,
    Item,
    ItemLook,
    Look,
    Scene,
    build_scene,
    caption,
    named_slots,
    paint,
    sample_look,
    sample_scene,
    scene_of,
    swapped,
    vocabulary,
)
from mini.sdf import BOX, CONE, ELLIPSOID, SDF, TORUS, Primitive, Shape, rotation_matrix, trace
from mini.words import LENGTH
from torch import Tensor
from transformers import CLIPTokenizer

from psd_gs.cameras import turntable
from psd_gs.priors import mini as embedded

PROMPTS = Path(__file__).resolve().parents[1] / "tools" / "bench" / "prompts.json"
CORE = tuple(category for category in CATEGORIES if category.core)
NAMES = [category.name for category in CATEGORIES]


def points(n: int, reach: float = 1.0, seed: int = 0) -> Tensor:
    return reach * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1)


def primitive(kind: int, size: tuple[float, ...], center=(0.0, 0.0, 0.0), rotation=None) -> SDF:
    turn = torch.eye(3) if rotation is None else rotation
    return SDF([Primitive(kind, 1, torch.tensor(center), turn, size)], smooth=0.01)


# --- distances -------------------------------------------------------------------------------------------------------


def test_sphere():
    p = points(2000)
    expected = (p - torch.tensor([0.1, -0.2, 0.0])).norm(dim=1) - 0.4
    torch.testing.assert_close(primitive(ELLIPSOID, (0.4,) * 3, (0.1, -0.2, 0.0)).distances(p)[0], expected)


def test_torus():
    x, y, z = (p := points(2000)).unbind(-1)
    expected = torch.hypot(torch.hypot(x, z) - 0.5, y) - 0.1
    torch.testing.assert_close(primitive(TORUS, (0.5, 0.1)).distances(p)[0], expected)


def test_rounded_box():
    p, half, edge = points(2000), torch.tensor([0.4, 0.2, 0.3]), 0.05
    q = p.abs() - (half - edge)
    expected = q.clamp_min(0).norm(dim=1) + q.amax(1).clamp_max(0) - edge
    torch.testing.assert_close(primitive(BOX, (0.4, 0.2, 0.3, edge, 0.0, 0.0)).distances(p)[0], expected)


@pytest.mark.parametrize(("bottom", "top"), [(0.3, 0.3), (0.4, 0.1), (0.1, 0.4), (0.35, 0.0)])
def test_cone_against_its_profile(bottom, top):
    """Distance in the half plane to the trapezoid between the axis and the slant."""
    h, p = 0.5, points(3000)
    r, y = torch.hypot(p[:, 0], p[:, 2]), p[:, 1]
    outline = [
        ((0.0, -h), (bottom, -h)),
        ((bottom, -h), (top, h)),
        ((top, h), (0.0, h)),
    ]
    q = torch.stack([r, y], 1)
    distances = []
    for a, b in outline:
        a, b = torch.tensor(a), torch.tensor(b)
        edge = b - a
        t = ((q - a) @ edge / edge.square().sum().clamp_min(1e-12)).clamp(0, 1)
        distances.append((q - a - t[:, None] * edge).norm(dim=1))
    unsigned = torch.stack(distances).amin(0)
    inside = (y.abs() < h) & (r < bottom + (top - bottom) * (y + h) / (2 * h))
    expected = torch.where(inside, -unsigned, unsigned)
    torch.testing.assert_close(primitive(CONE, (bottom, top, h, 0.0)).distances(p)[0], expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (ELLIPSOID, (0.4, 0.3, 0.2)),
        (ELLIPSOID, (0.5, 0.1, 0.4)),
        (BOX, (0.3, 0.4, 0.2, 0.05, 0.0, 0.0)),
        (BOX, (0.3, 0.4, 0.2, 0.02, 0.6, 0.3)),
        (CONE, (0.4, 0.1, 0.5, 0.05)),
        (TORUS, (0.4, 0.1)),
    ],
)
def test_no_step_of_the_tracer_passes_the_surface(kind, size):
    """Outside, a distance must not exceed the true one: sample the zero set densely and compare."""
    sdf = primitive(kind, size)
    rays = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    low, high = torch.zeros(20_000), torch.full((20_000,), 1.5)
    if kind == TORUS:  # start on the ring instead of the centre
        x, _, z = rays.unbind(-1)
        start = torch.stack([x, torch.zeros_like(x), z], 1)
        start = 0.4 * torch.nn.functional.normalize(start, dim=1)
    else:
        start = torch.zeros_like(rays)
    for _ in range(40):
        middle = (low + high) / 2
        inside = sdf.distances(start + middle[:, None] * rays)[0] < 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    surface = start + low[:, None] * rays
    p = points(1500, 0.9)
    bound = sdf.distances(p)[0]
    true = torch.cdist(p, surface).amin(1)
    outside = bound > 0
    assert outside.sum() > 100
    assert (bound[outside] <= true[outside] + 0.01).all()


@pytest.mark.parametrize("name", ["pyramid", "house", "corgi"])
def test_a_more_cautious_tracer_sees_the_same(name):
    """Tapered boxes are only nearly bounds; it must not show."""

    class Cautious(SDF):
        def __call__(self, points):
            return 0.6 * super().__call__(points)

    primitives, smooth = build_scene(Scene((Item(name, 2),)))
    cameras = turntable(2, elevation=30, radius=0.66, size=48, start=20)
    found, _ = trace(SDF(primitives, smooth), cameras)
    careful, _ = trace(Cautious(primitives, smooth), cameras, steps=150, tolerance=0.6 * 1.5e-3)
    assert (found != careful).sum() < 0.02 * (careful > 0).sum()


@pytest.mark.parametrize("name", ["corgi", "chair", "pyramid", "castle", "teapot"])
def test_the_union_is_a_bound_too(name):
    primitives, smooth = build_scene(Scene((Item(name, 3),)))
    sdf = SDF(primitives, smooth)
    p = points(500)
    each = sdf.distances(p)
    union = sdf(p)
    assert (union <= each.amin(0) + 1e-5).all()
    assert (union >= each.amin(0) - smooth * math.log(len(primitives)) - 1e-5).all()


def test_primitives_turn_and_move():
    turn, center = rotation_matrix(20, -50, 110), (0.1, 0.2, -0.3)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-6, rtol=0)
    size = (0.4, 0.2, 0.1, 0.02, 0.3, 0.1)
    p = points(500)
    moved = primitive(BOX, size, center, turn).distances(p @ turn.T + torch.tensor(center))
    torch.testing.assert_close(moved, primitive(BOX, size).distances(p), atol=1e-5, rtol=1e-5)


def test_half_extents_hold_the_primitive():
    shape = Shape(("body",))
    turn = rotation_matrix(30, 40, 50)
    shape.ball("body", (0, 0, 0), (0.3, 0.1, 0.2), turn)
    shape.box("body", (0, 0, 0), (0.3, 0.1, 0.2), rotation=turn)
    shape.cone("body", (0, 0, 0), 0.3, 0.1, 0.2, rotation=turn)
    shape.torus("body", (0, 0, 0), 0.3, 0.05, rotation=turn)
    p = points(20_000, 0.6)
    for part in shape.primitives:
        inside = SDF([part], 0.01).distances(p)[0] < 0
        assert inside.any()
        assert (p[inside].abs() <= part.half_extent() + 1e-5).all()


# --- tracing ---------------------------------------------------------------------------------------------------------


def test_tracing_a_sphere():
    cameras = turntable(2, elevation=20, radius=0.75, size=64)
    slots, normals = trace(primitive(ELLIPSOID, (0.5,) * 3), cameras)
    distance = float(cameras.positions[0].norm())
    focal = float(cameras.Ks[0, 0, 0])
    silhouette = focal * 0.5 / math.sqrt(distance**2 - 0.25)  # pixels
    hit = slots > 0
    expected = math.pi * silhouette**2
    assert hit.sum((1, 2)).tolist() == pytest.approx([expected] * 2, rel=0.02)
    assert (normals[hit].norm(dim=1) - 1).abs().max() < 1e-4
    assert not normals[~hit].any()
    # The normal at the centre of the picture points to the camera.
    for c in range(2):
        toward = torch.nn.functional.normalize(cameras.positions[c], dim=0)
        assert torch.dot(normals[c, 31:33, 31:33].reshape(-1, 3).mean(0), toward) > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_every_category_builds_fits_and_is_painted(name):
    category = BY_NAME[name]
    for seed in (0, 1):
        stretch = [None, *STRETCHES][seed]
        accessory = list(ACCESSORIES)[seed] if name in WEARERS else None
        scene = Scene((Item(name, seed, stretch, accessory),))
        primitives, smooth = build_scene(scene)
        sdf = SDF(primitives, smooth)
        sphere = torch.nn.functional.normalize(torch.randn(3000, 3, generator=torch.Generator().manual_seed(2)), dim=1)
        # The training cameras show a ball of radius 0.66; only the corners of cubes reach beyond it.
        assert (sdf(0.70 * sphere) > 0).all()
        # It fills its ball rather than a corner of it.
        reach = torch.stack([p.center.norm() for p in primitives]).max() + smooth
        assert reach > 0.15 * RADIUS or len(primitives) <= 2
        palette = paint(Look((ItemLook(name, accessory=accessory),)), random.Random(seed))
        used = {slot for p in primitives for slot in (p.slot, p.second_slot)}
        names = (*category.slots, "accessory")
        assert used <= set(range(1, 1 + len(names)))
        assert all(sum(palette.rgb[slot]) > 0 for slot in used)
        assert all(0 <= value <= 1 for rgb in palette.rgb for value in rgb)
    slots, _ = trace(sdf, turntable(4, elevation=25, radius=0.66, size=24))
    assert ((slots > 0).sum((1, 2)) > 5).all(), "a view that shows next to nothing"


def test_both_objects_of_a_relation_show_and_stand_as_told():
    for relation in RELATION_WORDS:
        for seed in range(3):
            primitives, smooth = build_scene(Scene((Item("cube", seed), Item("cylinder", seed + 50)), relation))
            slots, _ = trace(SDF(primitives, smooth), turntable(4, elevation=10, radius=0.66, size=32))
            first, second = (slots > 0) & (slots < SECOND_SLOT), slots >= SECOND_SLOT
            assert first.sum() > 100
            assert second.sum() > 100
            height = torch.arange(32.0, 0, -1)[None, :, None]
            rise = (first * height).sum() / first.sum() - (second * height).sum() / second.sum()
            if relation == "on":
                assert rise > 4
            else:
                assert abs(rise) < 4


def test_a_corgi_is_a_corgi():
    """A fixed animal: orange body, white belly and legs, seen from the front left."""
    look = Look((ItemLook("corgi"),))
    buffers = trace_scene(Scene((Item("corgi", 7),)), turntable(4, elevation=15, radius=0.66, size=64, start=45))
    names = list(BY_NAME["corgi"].slots)
    counts = torch.bincount(buffers.slots[0].flatten().long(), minlength=32)
    share = {name: float(counts[1 + i] / counts[1:].sum()) for i, name in enumerate(names)}
    golden = {"body": 0.36, "head": 0.14, "ears": 0.13, "legs": 0.22, "belly": 0.04, "snout": 0.035, "nose": 0.03}
    assert {part: share[part] for part in golden} == pytest.approx(golden, abs=0.02)
    palette = paint(look, random.Random(0))
    colour = {name: torch.tensor(palette.rgb[1 + i]) for i, name in enumerate(names)}
    assert (colour["body"] - torch.tensor(COLOURS["orange"])).abs().max() < 0.04
    assert (colour["belly"] - torch.tensor(COLOURS["white"])).abs().max() < 0.06


# --- shading ---------------------------------------------------------------------------------------------------------


def test_shading_is_a_premultiplied_picture():
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    look = Look((ItemLook("robot", colour="red", material="metal"),))
    buffers = trace_scene(scene_of(look, rng), sample_cameras(rng, 32))
    rgba = shade(buffers, [paint(look, rng)], sample_light(1, generator))
    assert rgba.shape == (1, 4, 4, 32, 32)
    rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    assert set(alpha.unique().tolist()) == {0.0, 1.0}
    assert rgb.min() >= 0
    assert (rgb <= alpha).all()
    body = rgb.permute(0, 1, 3, 4, 2)[alpha[:, :, 0] > 0]
    assert (body[:, 0] > body[:, 1:].amax(1)).float().mean() > 0.4
    background = torch.tensor([[0.2, 0.5, 0.9]])
    picture = compose(rgba, background, 16)
    assert picture.shape == (1, 4, 3, 16, 16)
    assert picture.min() >= 0
    assert picture.max() <= 1
    empty = torch.nn.functional.adaptive_avg_pool2d(alpha.flatten(0, 1), 16).view(4, 16, 16) == 0
    assert torch.allclose(picture[0].permute(0, 2, 3, 1)[empty], background.expand(int(empty.sum()), 3))


def test_light_comes_from_above():
    rng = random.Random(0)
    look = Look((ItemLook("sphere", colour="gray"),))
    buffers = trace_scene(scene_of(look, rng), turntable(4, elevation=0, radius=0.66, size=32))
    rgba = shade(buffers, [paint(look, rng)], torch.tensor([[0.35, 0.75, 0.55]]))
    brightness, hit = rgba[0, 0, :3].mean(0), rgba[0, 0, 3] > 0
    assert brightness[:14][hit[:14]].mean() > brightness[18:][hit[18:]].mean() + 0.1


def test_backgrounds_are_those_of_the_optimization():
    from psd_gs.trainer import sample_background as trainers

    ours = sample_background(2000, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    theirs = torch.stack([trainers("augment", generator) for _ in range(2000)])

    def shares(drawn: Tensor) -> list[float]:
        white = (drawn == 1).all(1)
        grey = (drawn == drawn[:, :1]).all(1) & ~white
        return [float(white.float().mean()), float(grey.float().mean()), float(drawn[grey].mean())]

    assert shares(ours) == pytest.approx(shares(theirs), abs=0.05)


# --- captions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looks() -> list[tuple[Scene, Look, str]]:
    rng = random.Random(0)
    out = []
    for i in range(20_000):
        scene = sample_scene(rng, CORE if i % 2 else CATEGORIES)
        look = sample_look(scene, rng)
        out.append((scene, look, caption(look, rng)))
    return out


def test_held_out_pairs_and_relations_are_never_sampled(looks):
    colours = {(item.category, item.colour) for _, look, _ in looks for item in look.items}
    assert not colours & HELD_COLOURS
    relations = {(s.items[0].category, s.relation, s.items[1].category) for s, _, _ in looks if s.relation}
    assert not relations & HELD_RELATIONS
    # They are real objects in colours that other objects do come in.
    assert {name for name, _ in HELD_COLOURS} <= {category.name for category in CATEGORIES}
    assert {colour for _, colour in HELD_COLOURS} <= {colour for _, colour in colours}
    seen = {name for name, _ in colours}
    assert seen == set(NAMES)
    assert len({relation for _, relation, _ in relations}) == 2


def test_objects_without_a_named_colour_are_not_painted_in_a_held_out_one():
    for category in CATEGORIES:
        held = [COLOURS[colour] for name, colour in HELD_COLOURS if name == category.name]
        for seed in range(30):
            palette = paint(Look((ItemLook(category.name),)), random.Random(seed))
            first = 1 + list(category.slots).index(category.main[0])
            for colour in held:
                assert max(abs(a - b) for a, b in zip(palette.rgb[first], colour, strict=True)) > 0.036


def test_captions_use_known_words_and_fit_the_text_encoder(looks):
    known = set(vocabulary())
    core = {item.name for item in CORE}
    tokenizer = CLIPTokenizer.from_pretrained(embedded.folder("prior") / "tokenizer")
    captions = [text for _, _, text in looks]
    words = {word for text in captions for word in text.replace(",", " ").split()}
    assert words <= known
    spoken = {
        word
        for _, look, text in looks
        if {item.category for item in look.items} <= core
        for word in text.replace(",", " ").split()
    }
    assert spoken <= embedded.words()
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= LENGTH == tokenizer.model_max_length
    assert len(set(captions)) > 10_000


def test_captions_say_what_the_look_names(looks):
    for _, look, _ in looks[:3000]:
        text = caption(look)
        for item in look.items:
            assert item.category in text
            for word in (item.colour, item.part_colour, item.accessory, item.accessory_colour):
                assert word is None or word in text
        assert look.relation is None or look.relation in text
    assert caption(Look((ItemLook("apple", "orange"),))) == "an orange apple"
    hat = ItemLook("corgi", accessory="hat", accessory_colour="red")
    assert caption(Look((hat,))) == "a corgi wearing a red hat"
    assert caption(Look((ItemLook("cube", "blue"), ItemLook("cylinder", "yellow")), "on")) == (
        "a blue cube on a yellow cylinder"
    )


def test_named_slots_are_those_that_take_the_named_colours():
    bus = ItemLook("bus", colour="red", part="wheels", part_colour="white")
    pig = ItemLook("pig", accessory="scarf", accessory_colour="blue")
    assert named_slots(Look((ItemLook("dog", "red"),))) == []
    for look, colours in ((Look((bus,)), ["white"]), (Look((bus, pig), "next to"), ["white", "blue"])):
        palette = paint(look, random.Random(0))
        for slot, colour in zip(named_slots(look), colours, strict=True):
            assert torch.tensor(palette.rgb[slot]) == pytest.approx(torch.tensor(COLOURS[colour]), abs=0.04)


def test_scenes_follow_their_seed():
    for seed in range(50):
        rng = random.Random(seed)
        assert sample_scene(rng, CATEGORIES) == sample_scene(random.Random(seed), CATEGORIES)
    first, second = (build_scene(Scene((Item("dog", s),)))[0] for s in (1, 1))
    assert all(torch.equal(a.center, b.center) and a.size == b.size for a, b in zip(first, second, strict=True))


def test_swapping_changes_the_caption(looks):
    swaps = [(look, other) for _, look, _ in looks[:4000] if (other := swapped(look))]
    assert len(swaps) > 100
    for look, other in swaps:
        assert caption(look) != caption(other)
        assert sorted(caption(look).replace("an ", "a ").split()) == sorted(caption(other).replace("an ", "a ").split())


# --- the report's prompts --------------------------------------------------------------------------------------------


def test_the_prompts_are_forty_with_their_distractors():
    rows = json.loads(PROMPTS.read_text())
    assert len(rows) == len({row["prompt"] for row in rows}) == 40
    assert sum(row["held_out"] for row in rows) == 20
    for row in rows:
        assert {name: len(texts) for name, texts in row["distractors"].items()} == {
            "objects": 4,
            "colours": 3,
            "arrangements": 3,
        }
        look = Look.from_json(row["look"])
        assert caption(look) == row["prompt"]
        held = any((item.category, item.colour) in HELD_COLOURS for item in look.items)
        if look.relation:
            held |= (look.items[0].category, look.relation, look.items[1].category) in HELD_RELATIONS
        assert held == row["held_out"]
        texts = [row["prompt"], *(text for group in row["distractors"].values() for text in group)]
        assert len(set(texts)) == 11
        for text in texts:
            assert embedded.check_prompt(text).message == "", text


def test_cameras_are_those_of_the_optimization():
    """The trainer's defaults are what the embedded model was trained on."""
    from mini import dataset

    from psd_gs.config import CameraConfig

    config = CameraConfig()
    assert config.elevation == dataset.ELEVATION
    assert config.fov == dataset.FOV
    assert config.distance == dataset.DISTANCE
    cameras = sample_cameras(random.Random(0), 32)
    assert len(cameras) == 4
    x, _, z = cameras.positions.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(x, z))
    assert ((azimuth - azimuth[0]) % 360).tolist() == pytest.approx([0, 90, 180, 270], abs=1e-2)
    fov = 2 * math.atan(16 / float(cameras.Ks[0, 0, 0]))
    distance = float(cameras.positions[0].norm())
    assert 0.95 <= distance * math.sin(fov / 2) / config.radius <= 1.12
