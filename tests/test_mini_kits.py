"""The pack from the published kits and pictures: captions, colours, and files that the pack's own reader reads."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from mini.kits import emoji, meshes
from mini.kits.phrases import article, head
from mini.kits.rules import Choice, choose, committed_kits, read_kits
from mini.kits.surfaces import flat_mesh
from mini.kits.tones import main_colours, nearest_names
from mini.kits.usd import read_usd_parts
from mini.names import read_table
from mini.pack import Pack, write_table
from mini.scenes import COLOURS
from PIL import Image

from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.mesh.picture import Picture, Texture
from psd_gs.mesh.scene import Material, Part


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


def picture(pixels) -> Texture:
    """A texture of these RGBA rows."""
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(file, "PNG")
    return Texture(Picture("picture", file.getvalue()))


def quad(material: Material, corners=((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0))) -> Part:
    """Two triangles; the texture lies on them as the picture is seen from the front."""
    positions, faces = np.array(corners, float), np.array([(0, 1, 2), (0, 2, 3)])
    uv = np.array([(0, 1), (1, 1), (1, 0), (0, 0)], float)[faces]
    return Part("quad", positions, faces, material, uv={0: uv})


def test_a_texture_is_cut_where_its_colours_meet():
    """Halves of red and blue: each triangle is cut once in four, the pieces are pure, and half of the area is red."""
    red, blue = (200, 10, 10, 255), (10, 10, 200, 255)
    mesh = flat_mesh([quad(Material(texture=picture([[red, blue]])))])
    assert len(mesh.triangles) == 8
    assert {tuple(c) for c in mesh.colours.tolist()} == {red[:3], blue[:3]}
    is_red = mesh.colours[:, 0] == 200
    assert mesh.areas[is_red].sum() == pytest.approx(mesh.areas[~is_red].sum(), rel=1e-3)
    assert (mesh.vertices[mesh.triangles[is_red]][..., 0] <= 0).all()
    near = (200, 10, 10, 255), (190, 10, 10, 255)
    assert len(flat_mesh([quad(Material(texture=picture([near])))]).triangles) == 2  # tones of one colour
    holes = Material(texture=picture([[red, (200, 10, 10, 0)]]), cutoff=0.5)
    assert len(flat_mesh([quad(holes)]).triangles) == 4
    assert len(flat_mesh([quad(replace(holes, cutoff=0))]).triangles) == 2  # opaque: alpha says nothing


def test_factors_are_linear_and_gain_is_of_light():
    mesh = flat_mesh([quad(Material(color=(0.5, 1, 0, 0.2)))])
    assert mesh.colours.tolist() == [[188, 255, 0]] * 2
    assert flat_mesh([quad(Material(color=(0.25, 0, 0, 1)))]).brightened(2).colours[0].tolist() == [188, 0, 0]


def test_meshes_are_centred_in_the_unit_ball_and_turned_by_quarters():
    mesh = flat_mesh([quad(Material(), ((2, 3, 5), (8, 3, 5), (8, 11, 5), (2, 11, 5)))])
    assert mesh.radius == 5
    np.testing.assert_allclose(np.abs(mesh.vertices) / 32767, np.tile((0.6, 0.8, 0), (4, 1)), atol=2e-5)
    arrow = replace(mesh, vertices=np.array([(1, 2, 3)], np.int16))
    assert arrow.turned(90, 0).vertices.tolist() == [[3, 2, -1]]
    assert arrow.turned(0, 90).vertices.tolist() == [[1, -3, 2]]
    assert arrow.turned(-90, 90).vertices.tolist() == [[-2, -3, 1]]  # the pitch comes first


def test_of_faces_on_the_same_corners_the_rarer_colour_stays():
    grey, red = Material(color=(0.2, 0.2, 0.2, 1)), Material(color=(1, 0, 0, 1))
    far = ((3, 0, 0), (4, 0, 0), (4, 1, 0), (3, 1, 0))
    mesh = flat_mesh([quad(grey), quad(grey, far), quad(red), quad(red)])
    assert sorted(map(tuple, mesh.colours.tolist())) == [(124, 124, 124)] * 2 + [(255, 0, 0)] * 2
    line = Part("line", np.array([(0, 0, 0), (1, 0, 0.0)]), np.array([(0, 1, 1)]))
    with pytest.raises(ValueError, match="nothing but lines"):
        flat_mesh([line])


LISTS = """# about
[kenney-A] turn=180 gain=1.5
@animal
Cat_*|Dog = cat|pet
Cat_Big = lion ^ turn=90
Cat_Toy = toy cat ~ !
[fbx-B]
@dinosaur
Rex = t-rex
"""


def test_rules_choose_captions_and_turns():
    kits = read_kits([LISTS, "[kenney-A]\n@road vehicle\nCar = car\n"], "kenney-A/Dog drop\nfbx-B/* turn=270 q=2\n")
    a = kits["kenney-A"]
    assert choose(a, "Cat_1") == Choice(["cat", "pet"], "animal", True, 1, 180, 0, 1.5)
    assert choose(a, "Cat_Big") == Choice(["lion"], "animal", True, 1, 90, 0, 1.5)  # the name before the pattern
    assert choose(a, "Cat_Toy") == Choice(["toy cat"], "animal", False, 2, 180, 0, 1.5)
    assert choose(a, "Car") == Choice(["car"], "road vehicle", True, 1, 180, 0, 1.5)
    assert choose(a, "Dog") is None
    assert choose(a, "Wall") is None
    assert choose(kits["fbx-B"], "Rex") == Choice(["t-rex"], "creature", True, 2, 270, 0, 1.0)
    fixed = read_kits([LISTS], "kenney-A/Cat_1 caption=big_cat|cat front=0 gain=2\n")["kenney-A"]
    assert choose(fixed, "Cat_1") == Choice(["big cat", "cat"], "animal", False, 1, 180, 0, 2.0)


def test_the_committed_lists_are_sound():
    kits = committed_kits()
    rules = [rule for kit in kits.values() for rule in kit.rules]
    assert len(kits) > 90
    assert all(rule.category and all(rule.captions) for rule in rules)
    assert {place.split("/")[0] for place in json.loads(meshes.MATERIALS.read_text())} <= set(kits)


USD = """#usda 1.0
def Xform "thing"
{
    float3 xformOp:rotateXYZ = (-90, 0, 0)
    uniform token[] xformOpOrder = ["xformOp:rotateXYZ"]
    def Mesh "plate" (prepend apiSchemas = ["MaterialBindingAPI"])
    {
        int[] faceVertexCounts = [4, 4]
        int[] faceVertexIndices = [0, 1, 2, 3, 3, 2, 5, 4]
        point3f[] points = [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0), (2, 0, 0), (2, 1, HEIGHT)]
        normal3f[] normals = [(0,0,1), (0,0,1), (0,0,1), (0,0,1), (0,0,1), (0,0,1), (0,0,1), (0,0,1)] (
            interpolation = "faceVarying"
        )
        rel material:binding = </thing/grey>
        def GeomSubset "rest" (prepend apiSchemas = ["MaterialBindingAPI"])
        {
            uniform token elementType = "face"
            uniform token familyName = "materialBind"
            int[] indices = [1]
            rel material:binding = </thing/red>
        }
    }
    def Material "grey"
    {
        token outputs:surface.connect = </thing/grey/s.outputs:surface>
        def Shader "s"
        {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor = (0.5, 0.5, 0.5)
            token outputs:surface
        }
    }
    def Material "red"
    {
        token outputs:surface.connect = </thing/red/s.outputs:surface>
        def Shader "s"
        {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor = (1, 0, 0)
            token outputs:surface
        }
    }
}
"""


def test_kits_become_a_pack_without_duplicates(tmp_path, capsys):
    """USD whose faces are wound against their normals, subsets, one shape twice, and a file that no rule names."""
    folder, out = tmp_path / "kenney-stage" / "models" / "A", tmp_path / "pack"
    folder.mkdir(parents=True)
    for name, height in (("S_Cat_1", "0"), ("S_Cat_2", "0"), ("S_Cat_Big", "1"), ("S_Wall", "2")):
        (folder / f"{name}.usda").write_text(USD.replace("HEIGHT", height))
    (folder / "S_Cat_Toy.usda").write_text("#usda 1.0\n")
    meshes.convert(tmp_path, out, read_kits([LISTS], ""))
    told = capsys.readouterr().out
    assert "no kit fbx-B" in told
    assert "S_Cat_Toy.usda is left out" in told
    rows = read_table(out / "assets.tsv")
    assert [(r["id"], r["caption"], r["synonyms"], r["has_front"], r["radius"]) for r in rows] == [
        ("kenney-a-cat-1", "cat", "pet", "1", "1.118"),
        ("kenney-a-cat-big", "lion", "", "1", "1.225"),
    ]
    assert set(rows[0]["colours"].split(",")) == {"red", "gray"}
    (out / "emoji.tsv").write_text("id\n")
    mesh = Pack(out).mesh("kenney-a-cat-1")
    a, b, c = mesh.vertices[mesh.triangles].transpose(1, 0, 2)
    assert (np.cross(b - a, c - a)[:, 1] > 0).all()  # up, as the turned normals say
    left = mesh.vertices[mesh.triangles].mean(1)[:, 0] > 0  # turned by 180 degrees
    gain = round(255 * float(linear_to_srgb(1.5 * srgb_to_linear(np.array(128 / 255)))))
    assert np.round(mesh.colours[left] * 255).astype(int).tolist() == [[gain] * 3] * 2
    assert np.round(mesh.colours[~left] * 255).astype(int).tolist() == [[255, 0, 0]] * 2


def test_linear_colours_of_usd_files(tmp_path):
    path = tmp_path / "a.usda"
    path.write_text(USD.replace("HEIGHT", "0"))
    as_said, converted = (flat_mesh(read_usd_parts(path, linear)).colours for linear in (False, True))
    assert {tuple(c) for c in as_said.tolist()} == {(128, 128, 128), (255, 0, 0)}
    assert {tuple(c) for c in converted.tolist()} == {(188, 188, 188), (255, 0, 0)}


def test_fbx_files_get_their_lost_materials_back(tmp_path):
    """Two triangles of two materials: one was a colour, one a picture that lies in another folder of the kit."""
    kit = tmp_path / "FreeAssetsByKenneyNLandQuaternius" / "FreeModels by X" / "Cats" / "Big Cats  - Oct 2016"
    (kit / "FBX").mkdir(parents=True)
    (kit / "Textures").mkdir()
    Image.new("RGB", (2, 2), (10, 20, 200)).save(kit / "Textures" / "Fur.png")
    numbers = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 0, 0), (3, 0, 0), (2, 1, 0)], "<f4")
    blob = numbers.tobytes() + np.full((3, 2), 0.3, "<f4").tobytes()
    views = [(0, 36), (36, 36), (72, 24)]
    kinds = ("VEC3", "VEC3", "VEC2")
    attributes = ({"POSITION": 0, "TEXCOORD_0": 2}, {"POSITION": 1, "TEXCOORD_0": 2})
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 96, "uri": f"data:;base64,{base64.b64encode(blob).decode()}"}],
        "bufferViews": [{"buffer": 0, "byteOffset": at, "byteLength": size} for at, size in views],
        "accessors": [{"bufferView": i, "componentType": 5126, "count": 3, "type": t} for i, t in enumerate(kinds)],
        "materials": [{"name": "Body.001"}, {"name": "Eye", "emissiveFactor": [1, 1, 1]}],
        "meshes": [{"primitives": [{"attributes": a, "material": i} for i, a in enumerate(attributes)]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    (kit / "FBX" / "Old Cat.fbx.glb").write_text(json.dumps(document))
    ((name, files),) = meshes.kit_files(tmp_path)
    assert (name, list(files)) == ("fbx-Big_Cats_Oct_2016", ["Old_Cat"])
    parts = meshes.read_parts(name, "Old_Cat", files["Old_Cat"], {"body": "Fur.png", "eye": [0.5, 0, 0]})
    assert flat_mesh(parts).colours.tolist() == [[10, 20, 200], [188, 0, 0]]
