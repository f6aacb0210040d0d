"""The new world: the z-buffer against a slow reference, scenes, captions, and what is held out of training."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from mini import check_captions, check_names, make_held
from mini.dataset import sample_cameras, shade, trace_scene
from mini.names import HELD, spoken
from mini.objects import CATEGORIES
from mini.pack import Pack, clusters
from mini.raster import Surface, crease_normals, draw, face_normals, z_buffer
from mini.scenes import COLOURS, RADIUS, Item, Scene, build_scene, named_slots, paint, sample_look
from mini.tessellate import painted
from mini.words import known_words, pieces
from mini.world import Groups, World, emphasis_of, heights, repainted
from mini_pack import cube, surface, write_pack

from psd_gs.cameras import turntable

LIGHT = np.array([0.35, 0.75, 0.55])


def random_triangles(n: int, seed: int) -> Surface:
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-0.6, 0.6, (3 * n, 3))
    return surface(vertices, np.arange(3 * n).reshape(n, 3), rng.uniform(size=(n, 3)))


# --- the z-buffer ----------------------------------------------------------------------------------------------------


def ray_hits(s: Surface, viewmat, K, size: int) -> np.ndarray:
    """The nearest face along the ray of every pixel centre, by Moeller and Trumbore's test in double precision."""
    c2w = np.linalg.inv(viewmat.astype(float))
    eye = c2w[:3, 3]
    y, x = np.mgrid[:size, :size] + 0.5
    directions = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K.astype(float)).T @ c2w[:3, :3].T
    corners = s.vertices[s.triangles].astype(float)
    a, u, v = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(directions[:, :, None], v)
    det = (u * p).sum(-1)
    t = eye - a
    b1 = (t * p).sum(-1) / det
    q = np.cross(t, u)
    b2 = (directions[:, :, None] * q).sum(-1) / det
    depth = (v * q).sum(-1) / det
    depth = np.where((b1 >= 0) & (b2 >= 0) & (b1 + b2 <= 1) & (depth > 0), depth, np.inf)
    return np.where(np.isinf(depth.min(-1)), -1, depth.argmin(-1))


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_face_is_that_of_a_ray_tracer(seed):
    s, cameras = random_triangles(40, seed), sample_cameras(random.Random(seed), 48)
    for view, K in zip(cameras.viewmats.numpy(), cameras.Ks.numpy(), strict=True):
        faces, _ = z_buffer(s.vertices, s.triangles, view, K, 48)
        expected = ray_hits(s, view, K, 48)
        assert (faces >= 0).mean() > 0.2
        assert (faces != expected).mean() < 0.002  # pixel centres on an edge


def test_weights_find_the_point_that_a_pixel_shows():
    s, cameras = random_triangles(12, 5), sample_cameras(random.Random(1), 32)
    view, K = cameras.viewmats[0].numpy(), cameras.Ks[0].numpy()
    faces, w = z_buffer(s.vertices, s.triangles, view, K, 32)
    hit = faces >= 0
    weights = np.concatenate([1 - w.sum(-1, keepdims=True), w], -1)[hit]
    points = (s.vertices[s.triangles[faces[hit]]] * weights[..., None]).sum(1)
    seen = points @ view[:3, :3].T + view[:3, 3]
    pixels = seen @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    y, x = np.nonzero(hit)
    np.testing.assert_allclose(pixels, np.stack([x, y], 1) + 0.5, atol=2e-3)


def test_triangles_behind_the_camera_are_not_drawn():
    cameras = turntable(1, elevation=0, radius=0.66, size=16)
    eye = cameras.positions[0].numpy()
    s = surface(eye + np.array([(-1, -1, 1), (1, -1, 1), (0, 1, 1)]), [[0, 1, 2]])
    assert (z_buffer(s.vertices, s.triangles, cameras.viewmats[0].numpy(), cameras.Ks[0].numpy(), 16)[0] == -1).all()


def test_shading_has_its_closed_form_on_a_square_seen_from_the_front():
    square = surface([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], [[0, 1, 2], [0, 2, 3]])
    cameras = turntable(1, elevation=0, radius=0.66, size=9)
    out = draw(square, cameras.viewmats.numpy(), cameras.Ks.numpy(), 9, LIGHT, fine=1)[0]
    light = LIGHT / np.linalg.norm(LIGHT)
    halfway = light + np.array([0, 0, 1])
    expected = 0.5 * (0.62 + 0.30 * light[2]) + 0.04 * (halfway[2] / np.linalg.norm(halfway)) ** 12
    assert out[:3, 4, 4] == pytest.approx([expected] * 3, abs=1e-5)
    assert (out[3] == 1).all()


def test_sheets_are_lit_on_the_side_that_is_seen():
    front = surface([[-9, -9, 0], [9, -9, 0], [0, 9, 0]], [[0, 1, 2]])
    back = surface([[-9, -9, 0], [9, -9, 0], [0, 9, 0]], [[0, 2, 1]])
    cameras = turntable(1, elevation=0, radius=0.66, size=8)
    a, b = (draw(s, cameras.viewmats.numpy(), cameras.Ks.numpy(), 8, LIGHT) for s in (front, back))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_supersampling_is_the_mean_of_the_finer_picture():
    s, cameras = cube(), sample_cameras(random.Random(3), 24)
    fine = replace(cameras, Ks=cameras.Ks * torch.tensor([[2.0], [2.0], [1.0]]), width=48, height=48)
    a = draw(s, cameras.viewmats.numpy(), cameras.Ks.numpy(), 24, LIGHT, fine=2)
    b = draw(s, fine.viewmats.numpy(), fine.Ks.numpy(), 48, LIGHT, fine=1)
    np.testing.assert_allclose(a, b.reshape(4, 5, 24, 2, 24, 2).mean((3, 5)), atol=1e-5)


def test_crease_normals_keep_the_edges_of_a_cube_and_round_those_of_a_ball():
    s = cube()
    flat = face_normals(s.vertices, s.triangles)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    kept = crease_normals(s.vertices, s.triangles, np.float32(np.cos(np.radians(40))))
    np.testing.assert_allclose(kept, np.repeat(flat[:, None], 3, 1), atol=1e-6)
    assert (flat * s.vertices[s.triangles].mean(1)).sum(1).min() > 0  # outwards
    ball = painted(*build_scene(Scene((Item("sphere", 0),))), paint_of("sphere"), [])
    corners = ball.vertices[ball.triangles]
    outward = corners / np.linalg.norm(corners, axis=-1, keepdims=True)
    assert (ball.normals * outward).sum(-1).min() > 0.97


@pytest.mark.full
def test_moving_mirroring_and_joining_surfaces():
    s = cube()
    stretched = s.stretched((-1, 2, 1))
    volume = lambda x: np.linalg.det(x.vertices[x.triangles].astype(float)).sum() / 6  # noqa: E731
    assert volume(s) == pytest.approx(0.7**3)
    assert volume(stretched) == pytest.approx(2 * 0.7**3)  # still wound outwards
    np.testing.assert_allclose(
        stretched.normals, crease_normals(stretched.vertices, stretched.triangles, np.float32(2)), atol=1e-6
    )
    both = s.joined(s.moved(0.5, (1, 0, 0)))
    assert both.triangles.max() == 15
    assert volume(both) == pytest.approx(0.7**3 * 1.125)
    assert np.linalg.norm(s.moved(3, (1, 2, 3)).normalized(RADIUS).vertices, axis=1).max() == pytest.approx(RADIUS)


def paint_of(category: str):
    scene = Scene((Item(category, 0),))
    return paint(sample_look(scene, random.Random(0)), random.Random(0))


@pytest.mark.parametrize("name", ["corgi", "bus", "house", "zebra", "mug", "torus", "cactus", "robot"])
def test_triangles_look_like_the_traced_object(name):
    """All primitives, tapers and patterns; the smooth joints alone differ."""
    rng = random.Random(1)
    scene = Scene((Item(name, 3),))
    look, cameras = sample_look(scene, rng, 0.5), sample_cameras(rng, 48)
    palette = paint(look, rng)
    primitives, smooth = build_scene(scene)
    traced = shade(trace_scene(scene, cameras), [palette], torch.tensor(LIGHT, dtype=torch.float32)[None])[0].numpy()
    made = painted(primitives, smooth, palette, named_slots(look))
    drawn = draw(made, cameras.viewmats.numpy(), cameras.Ks.numpy(), 48, LIGHT, fine=1)
    a, b = traced[:, 3] > 0.5, drawn[:, 3] > 0.5
    assert (a & b).sum() / (a | b).sum() > 0.87
    assert np.abs(traced[:, :3] - drawn[:, :3]).mean() < 0.02


# --- colours and clusters --------------------------------------------------------------------------------------------


def test_clusters_are_tones_by_area():
    red, dark_red, blue = (0.8, 0.1, 0.1), (0.7, 0.08, 0.08), (0.1, 0.1, 0.8)
    found = clusters(np.array([blue, red, dark_red, blue]), np.array([1.0, 2.0, 1.0, 1.0]))
    assert found.tolist() == [1, 0, 0, 1]


def test_repainting_changes_the_largest_cluster_and_keeps_its_shades(pack):
    mesh = pack.mesh("t-box")
    tone = np.array(COLOURS["blue"], np.float32)
    out = repainted(mesh, tone)
    chosen = mesh.cluster == 0
    np.testing.assert_array_equal(out[~chosen], mesh.colours[~chosen])
    before, after = mesh.colours[chosen].mean(1), out[chosen].mean(1)
    assert np.corrcoef(before, after)[0, 1] > 0.99
    assert out[chosen].mean(0) == pytest.approx(tone, abs=0.06)


def test_named_parts_count_by_the_inverse_root_of_their_share():
    named, alpha = np.zeros((4, 1, 10, 10), np.float32), np.zeros((4, 1, 10, 10), np.float32)
    alpha[:, :, :5] = 1
    named[0, 0, 0, :8] = 1  # 8 of 200 pixels of the object
    counts = emphasis_of(named, alpha)
    assert np.unique(counts).tolist() == pytest.approx([1.0, (8 / 200) ** -0.5])
    assert (emphasis_of(np.zeros_like(named), alpha) == 1).all()


def test_heights_are_those_of_the_top():
    s = cube().moved(1, (0, 0.2, 0))
    np.testing.assert_allclose(heights(s, 0.1), 0.55, atol=1e-4)
    assert np.isnan(heights(s.moved(1, (5, 0, 0)), 0.1)).all()


# --- a pack of four things -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return write_pack(tmp_path_factory.mktemp("pack"))


def test_the_pack_reads_what_was_written(pack):
    mesh = pack.mesh("t-pillar")
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1, abs=1e-3)
    assert np.ptp(mesh.vertices, 0) == pytest.approx(np.array([0.4, 1.2, 0.4]) / 1.327 * 2, abs=0.01)
    assert mesh.share == pytest.approx(10 / 12, abs=0.1)
    assert pack.emoji["e-1"][64, 64].tolist() == [250, 20, 0, 255]


def test_names_join_meshes_emoji_and_procedural_things(pack):
    found = pack.names
    assert found["low bench"].meshes == ["t-table"]
    assert found["kite"].pictures == ["e-0"]
    assert not found["kite"].solid
    assert {c.name for c in CATEGORIES} <= set(found)
    assert spoken(found["round pebble"]) == ["round pebble"]  # "spectacles" is held out
    assert "puppy" not in spoken(found["dog"])


@pytest.fixture(scope="module")
def small_world(pack) -> World:
    return World(pack, 32)


def test_groups_are_four_pictures_of_what_the_caption_says(small_world):
    solid = small_world.solid(random.Random(4))
    assert solid.images.shape == (4, 3, 32, 32)
    assert len(set(solid.captions)) == 1
    assert (solid.alpha.float().mean((1, 2, 3)) > 3).all()
    assert (solid.alpha[:, :, 0] == 0).all()  # inside the picture
    camera = solid.cameras.view(4, 4, 4)
    assert torch.allclose(camera[:, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]))
    flat = small_world.flat(random.Random(4))
    assert flat.images.shape == (4, 3, 32, 32)
    assert len(set(flat.captions)) == 4
    assert not flat.cameras.any()
    assert flat.apart
    assert not solid.apart
    share = flat.alpha.float().mean((1, 2, 3)) / 255
    assert ((share > 0.12) & (share < 0.27)).all()  # a quarter of the picture, scaled by 0.75 to 1


def test_loose_views_are_of_four_things_and_keep_their_cameras(small_world):
    loose = small_world.loose(random.Random(4))
    assert loose.apart
    assert loose.images.shape == (4, 3, 32, 32)
    assert len(set(loose.captions)) == 4
    assert len({tuple(camera.tolist()) for camera in loose.cameras}) == 4
    first = small_world.solid(random.Random(4))
    assert loose.captions[0] == first.captions[0]
    assert torch.equal(loose.images[0], first.images[0])
    assert torch.equal(loose.cameras[0], first.cameras[0])


def test_one_thing_stands_on_another(small_world):
    for seed in range(16):
        surface, text = small_world.pair(random.Random(seed))
        assert np.linalg.norm(surface.vertices, axis=1).max() == pytest.approx(RADIUS, abs=1e-4)
        first = surface.vertices[surface.triangles[surface.named > 0]].reshape(-1, 3)
        second = surface.vertices[surface.triangles[surface.named == 0]].reshape(-1, 3)
        if " on " in text or " under " in text:
            axis = (second.min(0) + second.max(0)) / 2
            below = replace(surface, triangles=surface.triangles[surface.named == 0]).moved(1, -axis * (1, 0, 1))
            assert first[:, 1].min() == pytest.approx(float(np.median(heights(below, 0.05))), abs=0.04)
        else:
            assert abs(first[:, 1].min() - second[:, 1].min()) < 1e-4
            apart = max(first[:, 0].min() - second[:, 0].max(), second[:, 0].min() - first[:, 0].max())
            assert 0.003 < apart < 0.12


def test_the_same_number_gives_the_same_group(pack):
    groups = Groups(pack.folder, 16, batch=3, flat=0.3, seed=7, loose=0.3)
    a, b = groups[5], Groups(pack.folder, 16, batch=3, flat=0.3, seed=7, loose=0.3)[5]
    assert a.captions == b.captions
    assert torch.equal(a.images, b.images)
    kinds = [(bool(groups[i].cameras.any()), groups[i].apart) for i in range(48)]
    assert all(len(set(kinds[i : i + 3])) == 1 for i in range(0, 48, 3))
    assert set(kinds) == {(True, False), (True, True), (False, True)}


# --- what is held out ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_no_caption_says_what_is_held_out(small_world):
    """Colours, relations and synonyms of ``held.json``, over many captions of the procedural and the kit things."""
    synonyms = [f" {s} " for s in HELD["synonyms"]]
    held = {(name, colour) for name, colour in HELD["colours"]}
    texts = []
    for seed in range(250):
        rng = random.Random(seed)
        name = rng.choice(small_world.solids)
        thing = small_world.thing(name, rng, coloured=0.8)
        texts.append(thing.phrase)
        phrase = thing.phrase.replace("light blue", "cyan").replace("light green", "lime")
        said = {c for c in COLOURS if c in phrase.split()}
        assert not any((name.caption, c) in held for c in said), thing.phrase
    for text in texts:
        assert not any(s in f" {text} " for s in synonyms), text


def test_a_set_is_taken_for_the_name_whose_renders_are_nearest(small_world, monkeypatch):
    """Other renders than the means are of, and a set of one look under the names of another."""
    torch.manual_seed(0)
    random_state = check_names.LiteFeatures().state_dict()
    monkeypatch.setattr(check_names, "lite0_state", lambda: random_state)
    monkeypatch.setattr(check_names, "SHOWN", 2)
    monkeypatch.setattr(check_names, "SIZE", 32)
    names = ["low bench", "round pebble", "stone post"]
    judge = check_names.Nearest(small_world, names)
    for name in names:
        views = check_names.pictures(check_names.drawn(small_world, name, 2))
        assert judge.chosen(views, names) == name
        assert judge.chosen(views, [other for other in names if other != name]) != name


class PaintsNames:
    """In place of a prior: under each caption it estimates the renders of what the caption names."""

    views = 4

    def __init__(self, world: World) -> None:
        self.world = world

    def encode(self, images):
        return 2 * images - 1

    def add_noise(self, clean, noise, t):
        return clean + noise

    def timesteps(self, t):
        return t

    def embed(self, captions):
        return captions

    def network(self, x_t, timesteps, text, negative, cameras):
        names = [caption.split(maxsplit=1)[1] for caption in text[:: self.views]]
        assert text == [caption for caption in text[:: self.views] for _ in range(self.views)]
        assert x_t.shape[:2] == (len(names), self.views)
        assert (x_t == x_t[:1]).all()
        shown = [check_names.pictures(check_names.drawn(self.world, name, 0)) for name in names]
        return self.encode(torch.stack(shown)), None

    def to_x0(self, output, x_t, t):
        return output


def test_a_prior_errs_least_under_the_right_name(small_world):
    names = ["low bench", "round pebble", "stone post"]
    for name in names:
        asked = check_names.Asked(name, name, [other for other in names if other != name])
        right, *wrong = check_captions.errors(PaintsNames(small_world), small_world, asked, number=0, seed=0)
        assert right == 0
        assert min(wrong) > 0.01


def test_the_lists_fit_each_other():
    assert len(HELD["synonyms"]) == len(HELD["synonym_tests"]) == make_held.SYNONYMS
    assert len({row["name"] for row in HELD["names"]}) == make_held.REPORT_NAMES
    assert len({row["prompt"] for row in HELD["prompts"]}) == make_held.REPORT_PROMPTS
    report = {row["prompt"] for row in HELD["prompts"]} | {row["name"] for row in HELD["names"]}
    assert not report & {row["prompt"] for row in HELD["dev_prompts"]}
    for row in (*HELD["names"], *HELD["synonym_tests"]):
        right = {row["name"]} if "name" in row else set(row["names"])
        assert len(set(row["others"])) == 19
        assert not right & set(row["others"])
    for row in (*HELD["prompts"], *HELD["dev_prompts"]):
        wrong = row["objects"] + row["colours"] + row["arrangements"]
        assert len({row["prompt"], *wrong}) == 11, row
    words = set(known_words())
    texts = [row["prompt"] for row in HELD["prompts"]] + list(HELD["synonyms"]) + [r["name"] for r in HELD["names"]]
    assert {w for text in texts for w in pieces(text)} <= words


def test_words_are_sorted_and_of_one_piece():
    words = known_words()
    assert words == sorted(set(words))
    assert len(words) > 15_000
    assert all(pieces(word) == [word] for word in random.Random(0).sample(words, 500))
