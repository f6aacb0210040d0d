"""Retexturing a mesh: Gaussians on its surface, textures baked from them, and all else as it was."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import meshes
import numpy as np
import pytest
import torch
from painted import PaintedPrior, RedReward, assert_same, tiny_config
from PIL import Image

from psd_gs import cli
from psd_gs.cameras import turntable
from psd_gs.colours import linear_to_srgb
from psd_gs.config import Config, RefineConfig
from psd_gs.errors import BackendError, FormatError, InputError
from psd_gs.export.formats import sha256_of
from psd_gs.export.gltf_file import GltfFile
from psd_gs.gaussians import rotation_matrices, sh0_to_rgb
from psd_gs.job import Job
from psd_gs.mesh.cover import THICKNESS, WIDTH, cover, flat_gaussians
from psd_gs.mesh.points import looked_up
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.repaint import Coat, coat
from psd_gs.mesh.sheet import lay, ties
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.refine import Original, Refinement, shared
from psd_gs.render import render
from psd_gs.result import Result, products_of

pytestmark = pytest.mark.usefixtures("quick_files")


def colours_of(surface: Coat) -> torch.Tensor:
    return sh0_to_rgb(surface.gaussians.sh0[:, 0])


def given_back(surface: Coat, folder: Path, colours: torch.Tensor | None = None) -> Path:
    """The mesh with the colours, by default its own, in a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / surface.path.name
    surface.write(colours_of(surface) if colours is None else colours, path, {"prompt": "a"})
    return path


def picture(path: Path, name: str = "color") -> np.ndarray:
    """The colour texture of the first part that has one."""
    parts = [part for part in read_scene(path).meshes if part.material.texture is not None]
    return parts[0].material.texture.picture.pixels


# --- the surface -----------------------------------------------------------------------------------------------------


def test_pieces_cover_triangles_without_overlap():
    triangles = np.random.default_rng(0).normal(size=(7, 3, 3))
    triangles[3, 2] = triangles[3, 1]  # without area
    pieces = cover(triangles, 500)
    assert len(pieces) == 500
    assert 3 not in pieces.face
    corners = pieces.of(triangles)

    def area(t: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1) / 2

    np.testing.assert_allclose(np.bincount(pieces.face, area(corners), 7), area(triangles), rtol=1e-9)
    mean = np.stack([np.bincount(pieces.face, area(corners) * corners.mean(1)[:, k], 7) for k in range(3)], 1)
    np.testing.assert_allclose(mean, area(triangles)[:, None] * triangles.mean(1), atol=1e-9)
    np.testing.assert_allclose(pieces.corners.sum(-1), 1)
    longest = np.linalg.norm(np.roll(corners, -1, 1) - corners, axis=2).max(1)
    assert longest.max() < 3 * np.median(longest)
    assert len(cover(triangles, 2)) == 6  # whole ones are not left out


def test_a_gaussian_has_the_shape_of_its_piece():
    legs = np.array([[[0.0, 0, 0], [0.6, 0, 0], [0, 0, -0.2]]]) + np.array([1, 2, 3])
    g = flat_gaussians(legs, np.array([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(g.means[0], torch.tensor([1.2, 2.0, 3 - 0.2 / 3]))
    torch.testing.assert_close(sh0_to_rgb(g.sh0[0, 0]), torch.tensor([0.1, 0.2, 0.3]))
    axes = rotation_matrices(g.quats)[0] * g.scales[0].exp()
    # uniform on a triangle with legs a and b along axes: variances a^2/18 and b^2/18, covariance -ab/36
    wide, deep, mixed = 0.6**2 / 18, 0.2**2 / 18, 0.6 * 0.2 / 36
    flat = torch.tensor([[wide, 0, mixed], [0, 0, 0], [mixed, 0, deep]]) * WIDTH**2
    found = axes @ axes.T
    normal = float(g.scales[0].exp()[2])
    assert normal == pytest.approx(THICKNESS * float(g.scales[0].exp()[1]), rel=1e-4)
    flat[1, 1] = normal**2
    torch.testing.assert_close(found, flat, atol=1e-6, rtol=1e-4)


def test_a_covered_surface_is_closed_and_hides_what_is_behind(tmp_path):
    out = meshes.Writer()
    out.document["materials"] = [{"name": n, "pbrMetallicRoughness": {"baseColorFactor": [*c, 1]}} for n, c in PAIR]
    out.document["meshes"] = [{"primitives": [out.primitive(*meshes.box(1.0), 0), out.primitive(*meshes.box(0.7), 1)]}]
    out.document |= {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 0}
    surface = coat(out.glb(tmp_path / "boxes.glb"), 64, None, 3000)
    shown = render(surface.gaussians, turntable(4, elevation=20.0, radius=0.9, size=48), torch.zeros(3))
    solid = torch.nn.functional.avg_pool2d(shown.alpha[..., 0], 5, 1, 2) > 0.999  # away from the outline
    assert solid.float().mean() > 0.15
    # of the green box inside, nothing but a trace at the edges of the red one
    assert shown.rgb[..., 1][solid].mean() < 0.006
    assert shown.rgb[..., 1][solid].max() < 0.06
    assert shown.rgb[..., 0][solid].min() > 0.94


PAIR = (("outer", (1.0, 0.0, 0.0)), ("inner", (0.0, 1.0, 0.0)))


# --- textures --------------------------------------------------------------------------------------------------------


def test_what_shares_texels_is_tied_and_nothing_else():
    square = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], float)
    flat = square[..., :2]
    both = np.concatenate([square, square + np.array([5, 0, 0])])
    pieces = cover(both, 256)
    corners = pieces.of(both)
    alone = pieces.of(np.concatenate([0.45 * flat, 0.45 * flat + [0.5, 0]]))
    size, wraps = 64, ("repeat", "repeat")
    number = ties(lay(alone, size, wraps), size, alone, wraps, corners)
    assert len(np.unique(number)) == len(pieces)
    for shift in ([0.0, 0.0], [3.0, -1.0]):  # the second one lies in another repeat
        twice = pieces.of(np.concatenate([0.9 * flat, 0.9 * flat + shift]))
        number = ties(lay(twice, size, wraps), size, twice, wraps, corners)
        centre = corners.mean(1)
        near = np.linalg.norm(centre[:, None] + [5, 0, 0] - centre[None], axis=-1)
        left = np.flatnonzero(centre[:, 0] < 2)
        assert (number[left] == number[near[left].argmin(1)]).mean() > 0.95
        assert len(np.unique(number)) > 20
    dots = np.full((len(pieces), 3, 2), 0.25)
    dots[pieces.face >= 2] += 0.5  # a palette: two colours
    number = ties(lay(dots, size, wraps), size, dots, wraps, corners)
    assert len(np.unique(number)) == 2
    values = torch.arange(4.0).view(4, 1, 1).expand(4, 1, 3)
    assert shared(values, torch.tensor([1, 0, 1, 2]))[:, 0, 1].tolist() == [1, 1, 1, 3]


@pytest.mark.parametrize("wrap", ["repeat", "mirror"])
def test_a_piece_lies_where_a_graphics_card_looks_for_it(wrap):
    uv = np.array([[[1.1, 0.1], [1.4, 0.1], [1.1, 0.4]], [[-0.2, 0.6], [0.2, 0.6], [0.2, 0.9]]])
    places = lay(uv, 100, (wrap, "repeat"))
    at = np.einsum("pk,pkc->pc", places.weights, uv[places.faces])
    u = at[:, 0] % 1 if wrap == "repeat" else 1 - np.abs(at[:, 0] % 2 - 1)
    np.testing.assert_allclose(100 * u, places.columns + 0.5, atol=0.02)
    np.testing.assert_allclose(100 * at[:, 1], places.rows + 0.5, atol=0.02)
    assert set(places.faces) == {0, 1}


def test_a_known_field_comes_back_in_the_texture(tmp_path):
    writer = meshes.arm()
    surface = coat(writer.glb(tmp_path / "arm.glb"), 128, "skin", 4000)

    def field(points: np.ndarray) -> np.ndarray:
        return 0.5 + 0.4 * np.sin(np.asarray(points) * [4, 2, 5])

    wanted = torch.from_numpy(field(surface.gaussians.means.numpy())).float()
    wanted[~surface.chosen] = colours_of(surface)[~surface.chosen]
    part = read_scene(given_back(surface, tmp_path / "out", wanted)).meshes[0]
    generator = np.random.default_rng(0)
    face = generator.integers(0, len(part.faces), 4000)
    weights = generator.dirichlet((1, 1, 1), 4000)
    found = linear_to_srgb(part.shade(face, weights)[:, :3])
    points = np.einsum("nk,nkd->nd", weights, part.positions[part.faces[face]])
    wrong = np.abs(found - field(points))
    # what was there has a pattern of +-5 of 255 that is finer than the Gaussians, and stays
    assert wrong.max() < 0.12
    assert wrong.mean() < 0.02


def test_gutters_hold_the_colour_of_the_chart(tmp_path):
    vertices, faces, _ = meshes.tube()
    out = meshes.Writer()
    out.document["materials"] = [{"name": "red", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}]
    out.document["meshes"] = [{"primitives": [out.primitive(vertices, faces, 0)]}]
    out.document |= {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}
    surface = coat(out.glb(tmp_path / "tube.glb"), 64, None, 500)
    assert len(surface.sheets[0].places.faces) < 64 * 64
    image = picture(given_back(surface, tmp_path / "out"))
    assert (image == [255, 0, 0, 255]).all()


def test_without_a_change_the_texture_stays(tmp_path):
    surface = coat(meshes.arm().glb(tmp_path / "arm.glb"), 64, "skin", 1500)
    new, old = picture(given_back(surface, tmp_path / "out")), picture(tmp_path / "arm.glb")
    places = surface.sheets[0].places
    assert np.abs(new[places.rows, places.columns].astype(int) - old[places.rows, places.columns]).max() <= 1


def test_opacity_stays(tmp_path):
    writer = meshes.arm()
    writer.document["materials"][0]["alphaMode"] = "MASK"
    image = np.full((64, 64, 4), 255, np.uint8)
    image[:, 32:, 3] = 0
    writer.document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"] = {"index": writer.texture(image)}
    surface = coat(writer.glb(tmp_path / "arm.glb"), 64, "skin", 1500)
    whole = coat(meshes.arm().glb(tmp_path / "whole.glb"), 64, "skin", 1500)
    assert 0.4 < surface.chosen.sum() / whole.chosen.sum() < 0.6  # the other half is not there
    new = picture(given_back(surface, tmp_path / "out"))
    assert (new[:, :31, 3] == 255).all()
    assert (new[:, 33:, 3] == 0).all()


# --- what stays ------------------------------------------------------------------------------------------------------


def test_glb_keeps_every_byte_but_the_colour(tmp_path):
    path = meshes.arm().glb(tmp_path / "arm.glb")
    old, new = GltfFile(path), GltfFile(given_back(coat(path, 32, "skin", 300), tmp_path / "out"))
    assert bytes(new.blob).startswith(bytes(old.blob))
    before, after = old.document, json.loads(json.dumps(new.document))
    for name in ("accessors", "meshes", "nodes", "skins", "animations", "scenes", "scene", "asset"):
        assert after.pop(name) == before.pop(name), name
    for name in ("bufferViews", "images", "textures"):
        own, first = after.pop(name), before.pop(name)
        assert own[: len(first)] == first
        assert len(own) == len(first) + 1
    assert after.pop("buffers")[0]["byteLength"] == len(new.blob)
    before.pop("buffers")
    surface = after["materials"][0]["pbrMetallicRoughness"]
    assert surface["baseColorTexture"] == {"index": 2}
    surface["baseColorTexture"] = {"index": 0}
    assert after == before
    assert new.document["images"][-1]["extras"]["psd_gs"] == {"prompt": "a"}


def test_gltf_comes_back_with_what_it_names(tmp_path):
    writer = meshes.arm()
    (tmp_path / "in" / "skins").mkdir(parents=True)
    image = meshes.png(np.full((8, 8, 3), 200, np.uint8))
    (tmp_path / "in" / "skins" / "a b.png").write_bytes(image)
    writer.document["images"][0] = {"uri": "skins/a%20b.png"}
    path = writer.gltf(tmp_path / "in" / "arm.gltf")
    new = given_back(coat(path, 32, None, 300), tmp_path / "out")
    assert (tmp_path / "out" / "arm.bin").read_bytes() == path.with_suffix(".bin").read_bytes()
    assert (tmp_path / "out" / "skins" / "a b.png").read_bytes() == image
    document = json.loads(new.read_text())
    assert document["images"][2]["uri"] == "arm-color-0.png"
    assert document["animations"] == writer.document["animations"]
    assert [part.faces.shape for part in read_scene(new).meshes] == [
        part.faces.shape for part in read_scene(path).meshes
    ]


def test_without_texture_coordinates_vertices_are_cut_and_stay_where_they_are(tmp_path):
    writer = meshes.arm(uv=False)
    count = len(meshes.tube()[0])
    color = writer.accessor(np.random.default_rng(0).random((count, 3)), "VEC3")
    writer.document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = color
    path = writer.glb(tmp_path / "arm.glb")
    old, new = GltfFile(path), GltfFile(given_back(coat(path, 128, "skin", 600), tmp_path / "out"))
    assert bytes(new.blob).startswith(bytes(old.blob))
    for name in ("nodes", "skins", "animations", "scenes"):
        assert new.document[name] == old.document[name]
    assert new.document["accessors"][: len(old.document["accessors"])] == old.document["accessors"]
    one, other = (file.document["meshes"][0]["primitives"][0] for file in (old, new))
    assert set(other["attributes"]) == {"POSITION", "JOINTS_0", "WEIGHTS_0", "TEXCOORD_0"}
    corners = [file.raw(p["indices"])[:, 0] for file, p in ((old, one), (new, other))]
    for name in ("POSITION", "JOINTS_0", "WEIGHTS_0"):
        values = [file.raw(p["attributes"][name]) for file, p in ((old, one), (new, other))]
        assert values[0].dtype == values[1].dtype
        np.testing.assert_array_equal(values[0][corners[0]], values[1][corners[1]])
    assert new.document["meshes"][1] == old.document["meshes"][1]
    uv = new.values(other["attributes"]["TEXCOORD_0"], 2)
    assert uv.min() >= 0
    assert uv.max() <= 1
    # the vertex colours are in the texture now
    face = np.random.default_rng(1).integers(0, len(corners[0]) // 3, 500)
    weights, part = np.full((500, 3), 1 / 3), np.zeros(500, int)
    a, b = (looked_up(read_scene(file.path).meshes, part, face, weights)[1] for file in (old, new))
    assert np.abs(a - b)[:, :3].mean() < 0.02


def test_a_transform_of_the_texture_stays(tmp_path):
    writer = meshes.arm()
    moved = {"offset": [0.25, 0.5], "scale": [0.5, -0.5], "rotation": 0.3}
    info = writer.document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    info["extensions"] = {"KHR_texture_transform": moved}
    writer.document["extensionsUsed"] = ["KHR_texture_transform"]
    path = writer.glb(tmp_path / "arm.glb")
    surface = coat(path, 128, "skin", 2000)
    colours = colours_of(surface).clone()
    colours[surface.chosen] = surface.gaussians.means[surface.chosen][:, 1:2] / 2
    new = given_back(surface, tmp_path / "out", colours)
    info = GltfFile(new).document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    assert info["extensions"] == {"KHR_texture_transform": moved}
    part = read_scene(new).meshes[0]
    face, weights = np.arange(len(part.faces)), np.full((len(part.faces), 3), 1 / 3)
    grey = linear_to_srgb(part.shade(face, weights)[:, :3]).mean(1)
    np.testing.assert_allclose(grey, part.positions[part.faces].mean(1)[:, 1] / 2, atol=0.03)


def test_obj_stays_to_the_byte_and_its_library_names_another_texture(tmp_path):
    path = meshes.write_obj(tmp_path)
    surface = coat(path, 64, "painted", 400)
    colours = torch.where(surface.chosen[:, None], torch.tensor([0.2, 0.4, 0.6]), colours_of(surface))
    new = given_back(surface, tmp_path / "out", colours)
    assert new.read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "bumps.png").read_bytes() == (tmp_path / "bumps.png").read_bytes()
    library = (tmp_path / "out" / "thing.mtl").read_text()
    assert library == meshes.MTL.replace("Kd 0.5 0.5 0.5", "Kd 1 1 1").replace("colours.png", "thing-color-0.png")
    image = np.asarray(Image.open(tmp_path / "out" / "thing-color-0.png"))
    assert np.abs(image.astype(int) - [51, 102, 153]).max() <= 1


@pytest.mark.parametrize("change", ["plain", "colours", "no library", "no material", "counted back"])
def test_obj_gets_what_it_lacks_and_keeps_its_places(change, tmp_path):
    text = meshes.OBJ
    if change == "colours":
        text = text.replace("v 1 1 0", "v 1 1 0 0.2 0.9 0.1")
    elif change == "no library":
        text = text.replace("mtllib thing.mtl\n", "")
    elif change == "no material":
        text = "\n".join(line for line in text.splitlines() if not line.startswith(("mtllib", "usemtl")))
    elif change == "counted back":
        text = text.replace("f 5/5 6/6 7/7 8/8", "f -4/-4 -3/-3 -2/-2 -1/-1")
    path = meshes.write_obj(tmp_path, text)
    surface = coat(path, 64, None, 400)
    assert surface.chosen.all()
    wanted = torch.tensor([0.8, 0.3, 0.5]).expand(len(surface.chosen), 3)
    new = given_back(surface, tmp_path / "out", wanted)
    parts, others = read_scene(path).meshes, read_scene(new).meshes
    for part, other in zip(parts, others, strict=True):
        np.testing.assert_array_equal(part.positions[part.faces], other.positions[other.faces])
        middle = other.shade(np.arange(len(other.faces)), np.full((len(other.faces), 3), 1 / 3))
        np.testing.assert_allclose(linear_to_srgb(middle[:, :3]), np.tile([0.8, 0.3, 0.5], (len(middle), 1)), atol=0.02)
    numbers = [[line.split()[:4] for line in t.splitlines() if line.startswith("v ")] for t in (text, new.read_text())]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("kind", ["obj", "gltf"])
def test_a_mesh_that_was_painted_before_keeps_that_texture(kind, tmp_path):
    (tmp_path / "first").mkdir()
    if kind == "obj":
        path, names = meshes.write_obj(tmp_path / "first"), ("painted", "plain")
    else:
        path, names = meshes.arm().gltf(tmp_path / "first" / "arm.gltf"), ("skin", "plain")
    for i, name in enumerate(names):
        surface = coat(path, 32, name, 200)
        wanted = torch.where(surface.chosen[:, None], torch.eye(3)[i], colours_of(surface))
        path = given_back(surface, tmp_path / f"out{i}", wanted)
    parts = {part.material.name: part for part in read_scene(path).meshes}
    for i, name in enumerate(names):
        rgba = parts[name].shade(np.zeros(1, int), np.full((1, 3), 1 / 3))
        np.testing.assert_allclose(rgba[0, :3], np.eye(3)[i], atol=0.02)


# --- the run ---------------------------------------------------------------------------------------------------------


def retexturing(path: Path, steps: int = 12, **refine) -> Config:
    own = {"asset": str(path), "sha256": sha256_of(path), "texture_size": 64, "max_splats": 400, "only": "colour"}
    return tiny_config(steps=steps, refine=RefineConfig(**own | refine))


def retextured(config: Config, folder: Path) -> Result:
    name = Path(config.refine.asset).name
    with Job.open(folder, config) as job:
        job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        assert job.run()
        return job.finish(products={name: products_of(config)[name]})


def test_only_what_is_chosen_and_seen_changes(tmp_path):
    config = retexturing(meshes.arm().glb(tmp_path / "arm.glb"), material="skin")
    result = retextured(config, tmp_path / "run")
    original = Original.of(config.refine)
    before, after = original.gaussians, result.gaussians
    changed = (before.sh0 != after.sh0).any(2)[:, 0]
    assert changed[original.chosen].float().mean() > 0.5
    assert not changed[~original.chosen].any()
    for name in ("means", "quats", "scales", "opacities"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert result.scores["red"] > result.refined["scores_before"]["red"] + 0.005
    image = picture(tmp_path / "run" / "arm.glb").astype(int)
    blue = picture(tmp_path / "arm.glb").astype(int)
    assert (image[..., 0] - image[..., 2]).mean() > (blue[..., 0] - blue[..., 2]).mean() + 10
    facts = json.loads((tmp_path / "run" / "arm.glb.json").read_text())
    assert facts["sha256"] == sha256_of(tmp_path / "run" / "arm.glb")
    assert facts["ai_generated"] is True


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = retexturing(meshes.write_obj(tmp_path), steps=6)
    retextured(config, tmp_path / "whole")
    with Job.open(tmp_path / "parts", config) as job:
        trainer = job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        for event in trainer.run():
            if event.step == 4:
                trainer.save_checkpoint()
                break
    result = retextured(config, tmp_path / "parts")
    for name in ("thing.obj", "thing.mtl", "thing-color-0.png", "thing-color-1.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert_same(Result.load(tmp_path / "whole").gaussians.params(), result.gaussians.params())


def test_keep_holds_the_colours(tmp_path):
    path = meshes.arm().glb(tmp_path / "arm.glb")

    def change(keep: float) -> float:
        config = retexturing(path, keep=keep)
        result = retextured(config, tmp_path / f"run{keep}")
        return float((result.gaussians.sh0 - Original.of(config.refine).gaussians.sh0).abs().mean())

    assert change(100.0) < 0.5 * change(0.0)


def test_what_one_texel_paints_has_one_colour(tmp_path):
    writer = meshes.arm()
    uv = np.full((len(meshes.tube()[0]), 2), 0.3)
    writer.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = writer.accessor(uv, "VEC2")
    config = retexturing(writer.glb(tmp_path / "arm.glb"), steps=4, material="skin")
    original = Original.of(config.refine)
    result = retextured(config, tmp_path / "run")
    colours = result.gaussians.sh0[original.chosen][:, 0]
    assert (colours - colours[:1]).abs().max() < 1e-4
    image = picture(tmp_path / "run" / "arm.glb")
    assert (image == image[:1, :1]).all()
    assert Refinement(original, config).densify.enabled is False


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_command(tmp_path, capsys):
    path = meshes.arm(uv=False).glb(tmp_path / "arm.glb")
    options = ["--preset", "draft", "--texture-size", "64", "--max-splats", "300", "--quiet"]
    folder = tmp_path / "out" / "a-red-cylinder-0"
    arguments = ["retexture", str(path), "a red cylinder", "--steps", "2", *options]
    cli.main([*arguments, "--output-dir", str(tmp_path / "out")])
    assert "a-red-cylinder-0  (mini" in capsys.readouterr().out
    there = {item.name for item in folder.iterdir()}
    assert {"arm.glb", "before-after.html", "report.html", "splat.ply", "preview.png"} <= there
    assert not {"moved.png", "mesh.glb"} & there
    record = json.loads((folder / "psd_gs.json").read_text())
    assert not record.get("failed")
    assert set(record["refined"]["scores_before"]) == set(record["scores"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("arm.glb", ["--material", "cloth"], "--material: expected one of 'skin', 'plain', received 'cloth'"),
        ("arm.glb", ["--texture-size", "8"], "--texture-size: expected 16 to 4096, received 8"),
        ("arm.glb", ["--strength", "2"], "--strength: expected 0 to 1"),
        ("arm.glb", ["--keep", "-1"], "keep: expected a value from 0"),
        ("points.obj", [], "expected a mesh with faces, received none"),
        ("points.glb", [], "expected a mesh with faces, received none"),
        ("line.obj", [], "expected triangles with an area, received none"),
        ("line.obj", ["--material", "cloth"], "--material: expected no name, as no material of"),
        ("ball.ply", [], "expected a mesh (.glb, .gltf, .obj), received .ply"),
        ("nowhere.glb", [], "nowhere.glb"),
        ("broken.glb", [], "broken.glb"),
    ],
)
def test_bad_input_is_one_line(name, arguments, message, tmp_path, capsys):
    whole = meshes.arm().glb(tmp_path / "arm.glb").read_bytes()
    (tmp_path / "broken.glb").write_bytes(whole[:400])
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (tmp_path / "ball.ply").write_bytes(b"ply\n")
    out = meshes.Writer()
    points = {"attributes": {"POSITION": out.accessor(np.eye(3), "VEC3")}, "mode": 0}
    out.document |= {"meshes": [{"primitives": [points]}], "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}
    out.glb(tmp_path / "points.glb")
    command = ["retexture", str(tmp_path / name), "a red ball", "--quiet", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, *arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_xatlas_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(BackendError, match="xatlas, which is not installed"):
        coat(meshes.arm(uv=False).glb(tmp_path / "arm.glb"), 64, None, 300)
    assert coat(meshes.arm().glb(tmp_path / "other.glb"), 64, "skin", 300).chosen.any()


def test_files_out_of_the_folder_are_refused(tmp_path):
    writer = meshes.arm()
    writer.document["images"][0] = {"uri": "../secret.png"}
    with pytest.raises(FormatError, match="in its own folder"):
        coat(writer.glb(tmp_path / "arm.glb"), 64, "skin", 300)


def test_another_file_is_another_run(tmp_path):
    config = retexturing(meshes.arm().glb(tmp_path / "arm.glb"))
    Original.of(config.refine)
    meshes.arm(uv=False).glb(tmp_path / "arm.glb")
    with pytest.raises(InputError, match="is another file than when the run began"):
        Original.of(config.refine)
    fresh = replace(config.refine, sha256=sha256_of(tmp_path / "arm.glb"))
    assert Original.of(fresh).coat is not None
