"""OBJ, PLY and STL as people write them: polygons, colours under every name, options of materials."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from mesh_builders import (
    BLUE,
    GREEN,
    QUAD,
    RED,
    YELLOW,
    assert_color,
    assert_quadrants,
    encoded,
    quadrants,
    sampled,
    srgb,
)
from PIL import Image

from psd_gs.errors import FormatError
from psd_gs.mesh.describe import describe_mesh
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import triangulated

QUAD_OBJ = "\n".join(
    [*(f"v {x:g} {y:g} {z:g}" for x, y, z in QUAD), "vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1", "usemtl m"]
)
FACE = "f 1/1 2/2 3/3 4/4"


# --- OBJ -------------------------------------------------------------------------------------------------------------


def obj(tmp_path, text, mtl=None, name="a.mtl"):
    if mtl is not None:
        (tmp_path / name).write_text(mtl)
        text = f"mtllib {name}\n{text}"
    (tmp_path / "a.obj").write_text(text)
    return tmp_path / "a.obj"


def textured(tmp_path, line, face=FACE, picture="a b.png", more=""):
    (tmp_path / picture).parent.mkdir(exist_ok=True)
    (tmp_path / picture).write_bytes(encoded(quadrants()))
    return obj(tmp_path, f"{QUAD_OBJ}\n{face}\n", f"newmtl m\nKd 1 1 1\n{more}\nmap_Kd {line}\n")


@pytest.mark.parametrize(
    "face",
    [
        FACE,
        "f -4/-4 -3/-3 -2/-2 -1/-1",
        "f 1/1 2/2 3/3\nf 1/1 3/3 4/4",
        "f 1/1/1 2/2/2 3/3/3 4/4/4",
        "f 1/1 2/2 \\\n 3/3 4/4",
        "f 1/1 2/2 3/3\nf -4/1 -2/3 -1/-1",
    ],
)
def test_faces(tmp_path, face):
    assert_quadrants(textured(tmp_path, "a b.png", face))


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("a b.png", (RED, GREEN, BLUE, YELLOW)),
        ('"a b.png"', (RED, GREEN, BLUE, YELLOW)),
        ("-clamp off -bm 1 -imfchan l -mm 0 1 a b.png", (RED, GREEN, BLUE, YELLOW)),
        ("-o 0.5 0.5 0 a b.png", (YELLOW, BLUE, GREEN, RED)),
        ("-o 0.5 a b.png", (GREEN, RED, YELLOW, BLUE)),
        ("-s 0.5 0.5 1 a b.png", (BLUE,) * 4),
        ("-s 0.5 0.5 -o 0.5 0.5 a b.png", (GREEN,) * 4),
        ("-o 3 -2 -s 1 1 a b.png", (RED, GREEN, BLUE, YELLOW)),
        ("-clamp on -o 3 -2 a b.png", (YELLOW,) * 4),
    ],
)
def test_options_of_textures(tmp_path, line, order):
    assert_quadrants(textured(tmp_path, line), order)


@pytest.mark.parametrize("name", [r"tex\a.png", "tex/a.png", r".\tex\a.png", "./tex//a.png"])
def test_textures_in_folders_below(tmp_path, name):
    assert_quadrants(textured(tmp_path, name, picture="tex/a.png"))


def test_several_libraries_and_one_with_spaces(tmp_path):
    (tmp_path / "x y.mtl").write_text("newmtl m\nKd 1 0 0\n")
    (tmp_path / "z.mtl").write_text("newmtl n\nKd 0 1 0\n")
    for line, color in (("mtllib x y.mtl", (255, 0, 0)), ("mtllib z.mtl z.mtl", (0, 255, 0))):
        used = QUAD_OBJ.replace("usemtl m", "usemtl n" if "z" in line else "usemtl m")
        assert_color(obj(tmp_path, f"{line}\n{used}\n{FACE}\n"), color)


@pytest.mark.parametrize(
    ("lines", "color"),
    [
        ("Kd 0.5 0.25 1", (127.5, 63.75, 255)),
        ("Kd 0.5", (127.5,) * 3),
        ("Kd 0 0 0\nKe 1 0.5 0", (255, 127.5, 0)),
        ("kd 1 0 0\nillum 2\nNs 10\nKs 1 1 1", (255, 0, 0)),
        ("Kd 1 0 0\nTr 1\nd 1", (255, 0, 0)),
        ("Kd 1 0 0\nd -halo 1", (255, 0, 0)),
        ("Kd spectral a.rfl 1", (255, 255, 255)),
    ],
)
def test_colours_of_materials(tmp_path, lines, color):
    assert_color(obj(tmp_path, f"{QUAD_OBJ}\n{FACE}\n", f"newmtl m\n{lines}\n"), color)


def test_colour_times_texture_but_black_does_not_count(tmp_path):
    assert_quadrants(textured(tmp_path, "a b.png", more="Kd 0 0 0"))
    half = 0.21404  # 0.5 as light
    tinted = [tuple(srgb(half * (((c / 255 + 0.055) / 1.055) ** 2.4)) for c in RED)]
    _, rgb = sampled(textured(tmp_path, "-s 0.1 0.1 -o 0.1 0.8 a b.png", more="Kd 0.5 0.5 0.5"))
    np.testing.assert_allclose(rgb, np.broadcast_to(tinted, rgb.shape), atol=1.5)


@pytest.mark.parametrize(("line", "left"), [("d 0", 1), ("Tr 1", 1), ("d 0.5", 2), ("Tr 0.4", 2)])
def test_what_is_dissolved_is_not_there(tmp_path, line, left):
    twice = f"{QUAD_OBJ}\nf 1 2 3\nusemtl n\nf 1 3 4\n"
    points, _ = sampled(obj(tmp_path, twice, f"newmtl m\nKd 1 1 1\nnewmtl n\nKd 1 1 1\n{line}\n"))
    above = points[:, 1] > points[:, 0] + 1e-6
    assert (above.mean() > 0.1) == (left == 2)


def test_a_texture_that_is_missing_is_said(tmp_path, caplog):
    path = obj(tmp_path, f"{QUAD_OBJ}\n{FACE}\n", "newmtl m\nKd 0 1 0\nmap_Kd gone.png\nmap_d also.png\n")
    assert_color(path, (0, 255, 0))
    assert "the texture gone.png is not beside it" in caplog.text
    assert "opacity map" in caplog.text


def test_a_library_or_material_that_is_missing_is_said(tmp_path):
    notes = read_scene(obj(tmp_path, f"mtllib gone.mtl\n{QUAD_OBJ}\n{FACE}\n")).notes
    assert notes == [
        "the library gone.mtl is not beside it: ignored",
        "the material m is in no library beside it: ignored",
    ]


@pytest.mark.parametrize(
    "rows",
    [
        ["1 0 0 0.2 0.4 0.6", "0 1 0 0.2 0.4 0.6", "0 0 1 0.2 0.4 0.6"],
        ["1 0 0 0.2 0.4 0.6 1", "0 1 0 0.2 0.4 0.6 1", "0 0 1 0.2 0.4 0.6 1"],
        ["1 0 0 51 102 153", "0 1 0 51 102 153", "0 0 1 51 102 153"],
    ],
)
@pytest.mark.parametrize("face", ["f 1 2 3", ""])
def test_colours_of_vertices(tmp_path, rows, face):
    assert_color(obj(tmp_path, "\n".join([*(f"v {row}" for row in rows), face])), (51, 102, 153))


def test_painting_of_zbrush(tmp_path):
    lines = ["v 1 0 0", "v 0 1 0", "v 0 0 1", "#MRGB ff336699ff336699", "#MRGB ff336699", "f 1 2 3"]
    assert_color(obj(tmp_path, "\n".join(lines)), (51, 102, 153))


def test_objects_groups_windows_lines_and_weights(tmp_path):
    text = "o first\r\nv 0 0 0 1\r\nv 1 0 0 1\r\nv 0 1 0 1\r\nf\t1 2 3\r\ng left right\r\nf 3 2 1\r\n"
    text += "o UCX_box\r\nf 1 2 3\r\n"
    scene = read_scene(obj(tmp_path, text))
    assert [part.name for part in scene.parts] == ["first", "UCX_box"]
    assert [len(part.faces) for part in scene.parts] == [2, 1]
    assert describe_mesh(tmp_path / "a.obj")["collision_shapes"] == 1


def test_letters_of_other_alphabets(tmp_path):
    (tmp_path / "bär.png").write_bytes(encoded(quadrants()))
    assert_quadrants(obj(tmp_path, f"{QUAD_OBJ}\n{FACE}\n", "newmtl m\nmap_Kd bär.png\n", "büro.mtl"))


# --- polygons --------------------------------------------------------------------------------------------------------


def star(n=7):
    """Not convex: radii of 1 and 0.4 in turn, in a tilted plane."""
    angle = np.arange(2 * n) * np.pi / n
    radius = np.where(np.arange(2 * n) % 2, 0.4, 1)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return np.stack([x, y, 0.5 * x + 0.2 * y], axis=1), n * 0.4 * np.sin(np.pi / n) * np.hypot(1, np.hypot(0.5, 0.2))


@pytest.mark.parametrize(
    ("polygon", "area"),
    [
        star(),
        (np.array([[0, 0, 0], [4, 0, 0], [1, 1, 0], [0, 4, 0]], float), 4.0),  # the reflex corner is the third
        (np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0], [4, 0, 0]], float), 4.0),
        (np.array([[4, 0, 0], [1, 1, 0], [0, 4, 0], [0, 0, 0]], float), 4.0),
        (np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]], float), 4.0),  # a corner on an edge
    ],
    ids=["star", "arrow", "arrow turned", "arrow turned again", "straight corner"],
)
def test_polygons_cover_themselves_once(polygon, area):
    """Areas add up to the polygon's, and no triangle is turned over."""
    for scale, shift in ((1, 0), (1e-3, 0), (1, 5e5)):
        places = polygon * scale + shift
        entries, owner = triangulated(np.arange(len(places)), np.array([len(places)]), places)
        a, b, c = places[entries].transpose(1, 0, 2)
        cross = np.cross(b - a, c - a)
        normal = np.cross(places, np.roll(places, -1, axis=0)).sum(0) if not shift else cross.sum(0)
        assert np.linalg.norm(cross, axis=1).sum() / 2 == pytest.approx(area * scale**2, rel=1e-6)
        assert (cross @ normal > -1e-9 * scale**4).all()
        assert (owner == 0).all()


def test_polygons_of_all_sizes_keep_their_order():
    places = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6)), np.zeros(6)], axis=1)
    corners = np.array([0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 2, 3, 4])
    entries, owner = triangulated(corners, np.array([4, 2, 5, 3]), places)
    assert owner.tolist() == [0, 0, 2, 2, 2, 3]
    assert corners[entries].tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 2, 3], [0, 3, 4], [2, 3, 4]]


# --- PLY -------------------------------------------------------------------------------------------------------------

TYPES = {"uchar": "B", "char": "b", "ushort": "H", "short": "h", "int": "i", "uint": "I", "float": "f", "double": "d"}


def ply(path, elements, form="binary_little_endian", comments=()):
    """Elements: name to its properties ((name, type) or (name, count type, type)) and its rows."""
    head = ["ply", f"format {form} 1.0", *(f"comment {one}" for one in comments)]
    body = b""
    order = ">" if form == "binary_big_endian" else "<"
    for name, (properties, rows) in elements.items():
        head.append(f"element {name} {len(rows)}")
        head += [f"property {'list ' * (len(p) == 3)}{' '.join(p[1:])} {p[0]}" for p in properties]
        for row in rows:
            line = []
            for (_, *kinds), value in zip(properties, row, strict=True):
                values = value if len(kinds) == 2 else [value]
                if len(kinds) == 2:
                    line.append((kinds[0], len(value)))
                line += [(kinds[-1], one) for one in values]
            if form == "ascii":
                body += (" ".join(repr(value) for _, value in line) + "\n").encode()
            else:
                body += b"".join(struct.pack(order + TYPES[kind], value) for kind, value in line)
    path.write_bytes("\n".join([*head, "end_header", ""]).encode() + body)
    return path


XYZ = [("x", "float"), ("y", "float"), ("z", "float")]
CORNERS = ("vertex_indices", "uchar", "int")
FORMS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("corners", [CORNERS, ("vertex_index", "uint", "uint"), ("vertex_indices", "ushort", "ushort")])
def test_mixed_polygons(tmp_path, form, corners):
    """A prism of three squares and two triangles, with a scalar after the list."""
    triangle = [(0, 0), (1, 0), (0, 1)]
    places = [(x, y, z) for z in (0, 1) for x, y in triangle]
    faces = [(0, 2, 1), (3, 4, 5), (0, 1, 4, 3), (1, 2, 5, 4), (2, 0, 3, 5)]
    path = ply(
        tmp_path / "a.ply",
        {
            "vertex": (XYZ, places),
            "face": ([corners, ("quality", "double")], [(face, 0.5) for face in faces]),
            "edge": ([("vertex1", "int"), ("vertex2", "int")], [(0, 1)]),
        },
        form,
    )
    facts = describe_mesh(path)
    assert (facts["vertices"], facts["faces"], facts["watertight"], facts["bodies"]) == (6, 8, True, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [
        ("red", "green", "blue"),
        ("r", "g", "b"),
        ("diffuse_red", "diffuse_green", "diffuse_blue"),
        ("Red", "Green", "Blue"),
        ("red_diffuse", "green_diffuse", "blue_diffuse"),
        ("color_r", "color_g", "color_b"),
        ("scalar_Red", "scalar_Green", "scalar_Blue"),
        ("ambient_red", "ambient_green", "ambient_blue"),
    ],
)
def test_names_of_colours(tmp_path, form, names):
    rows = [(*place, 51, 102, 153, 255) for place in QUAD.tolist()]
    properties = [*XYZ, *((name, "uchar") for name in names), ("alpha", "uchar")]
    assert_color(ply(tmp_path / "a.ply", {"vertex": (properties, rows)}, form), (51, 102, 153))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("uchar", (51, 102, 153)),
        ("ushort", (51 * 257, 102 * 257, 153 * 257)),
        ("ushort", (51, 102, 153)),
        ("int", (51, 102, 153)),
        ("uint", (51 * 257, 102 * 257, 153 * 257)),
        ("float", (0.2, 0.4, 0.6)),
        ("double", (0.2, 0.4, 0.6)),
        ("float", (51.0, 102.0, 153.0)),
    ],
)
@pytest.mark.parametrize("of", ["vertex", "face", "cloud"])
def test_types_of_colours(tmp_path, kind, values, of):
    colors = [(name, kind) for name in ("red", "green", "blue")]
    places, faces = QUAD.tolist(), [((0, 1, 2, 3),)]
    elements = {"vertex": (XYZ, places), "face": ([CORNERS], faces)}
    if of == "face":
        elements["face"] = ([*colors, CORNERS], [(*values, *faces[0])])
    else:
        elements["vertex"] = ([*XYZ, *colors], [(*place, *values) for place in places])
    if of == "cloud":
        del elements["face"]
    for form in ("ascii", "binary_little_endian"):
        assert_color(ply(tmp_path / "a.ply", elements, form), (51, 102, 153))


@pytest.mark.parametrize("kind", ["vertex", "face"])
@pytest.mark.parametrize("names", [("s", "t"), ("u", "v"), ("texture_u", "texture_v")])
def test_textures_of_ply(tmp_path, kind, names):
    """As MeshLab writes them: v goes up, the picture is named in a comment."""
    (tmp_path / "my tex.png").write_bytes(encoded(quadrants()))
    uv = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    corners = (0, 1, 2, 3)
    if kind == "vertex":
        rows = [(*place, *at) for place, at in zip(QUAD.tolist(), uv, strict=True)]
        elements = {
            "vertex": ([*XYZ, *((name, "float") for name in names)], rows),
            "face": ([CORNERS], [(corners,)]),
        }
    else:
        flat = [x for at in uv for x in at]
        elements = {
            "vertex": (XYZ, QUAD.tolist()),
            "face": ([CORNERS, ("texcoord", "uchar", "float")], [(corners, flat)]),
        }
    assert_quadrants(ply(tmp_path / "a.ply", elements, comments=["TextureFile my tex.png"]))


@pytest.mark.parametrize("word", ["TextureFile", "texturefile", "TextureFile:"])
@pytest.mark.parametrize(("more", "said"), [((), "has no coordinates here"), (("s", "t"), "is not beside it")])
def test_textures_of_ply_that_do_not_show_are_said(tmp_path, word, more, said):
    rows = [(*place, *place[:2])[: 3 + len(more)] for place in QUAD.tolist()]
    elements = {"vertex": ([*XYZ, *((name, "float") for name in more)], rows), "face": ([CORNERS], [((0, 1, 2, 3),)])}
    scene = read_scene(ply(tmp_path / "a.ply", elements, comments=[f"{word} gone.png"]))
    assert scene.notes == [f"the texture gone.png {said}: ignored"]


def test_two_textures_of_ply(tmp_path):
    for name, color in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (4, 4), color)))
    flat = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    properties = [CORNERS, ("texcoord", "uchar", "float"), ("texnumber", "int")]
    faces = [((0, 1, 2), flat, 1), ((0, 2, 3), flat, 0)]
    path = ply(
        tmp_path / "a.ply",
        {"vertex": (XYZ, QUAD.tolist()), "face": (properties, faces)},
        comments=["TextureFile a.png", "TextureFile b.png"],
    )
    points, rgb = sampled(path)
    height = points[:, 1] - points[:, 0]
    assert (rgb[height < -1e-3] == [0, 0, 255]).all()
    assert (rgb[height > 1e-3] == [255, 0, 0]).all()


def test_strips_of_ply(tmp_path):
    elements = {
        "vertex": (XYZ, QUAD.tolist()),
        "tristrips": ([("vertex_indices", "int", "int")], [([0, 1, 3, 2, -1, 0, 1, 2],)]),
    }
    (part,) = read_scene(ply(tmp_path / "a.ply", elements)).parts
    assert part.faces.tolist() == [[0, 1, 3], [3, 1, 2], [0, 1, 2]]


def test_lines_and_points_among_the_faces_are_said(tmp_path):
    elements = {"vertex": (XYZ, QUAD.tolist()), "face": ([CORNERS], [((0, 1),), ((0, 1, 2),), ((),)])}
    scene = read_scene(ply(tmp_path / "a.ply", elements))
    assert len(scene.parts[0].faces) == 1
    assert scene.notes == ["2 of 3 faces have fewer than three corners: left out"]


def test_harmonics_are_colours_of_a_cloud_but_splats_are_no_cloud(tmp_path):
    dc = [("f_dc_0", "float"), ("f_dc_1", "float"), ("f_dc_2", "float")]
    values = [(c / 255 - 0.5) / 0.28209479177387814 for c in (51, 102, 153)]
    rows = [(*place, *values) for place in QUAD.tolist()]
    assert_color(ply(tmp_path / "a.ply", {"vertex": ([*XYZ, *dc], rows)}), (51, 102, 153))
    for extra in ("rot_0", "scale_0"):
        path = ply(tmp_path / "a.ply", {"vertex": ([*XYZ, (extra, "float")], [(*QUAD[0].tolist(), 1.0)] * 3)})
        with pytest.raises(FormatError, match="received splats"):
            read_scene(path)


# --- STL -------------------------------------------------------------------------------------------------------------


def stl(path, colors, head=b"made by hand", after=b""):
    """The quad as two facets with their attributes."""
    facets = b"".join(
        struct.pack("<12fH", 0, 0, 1, *QUAD[list(corners)].ravel(), color)
        for corners, color in zip(((0, 1, 2), (0, 2, 3)), colors, strict=True)
    )
    path.write_bytes(head.ljust(80) + struct.pack("<I", 2) + facets + after)
    return path


def bits(high, middle, low, top):
    return top << 15 | high << 10 | middle << 5 | low


@pytest.mark.parametrize(
    ("head", "colors", "expected"),
    [
        (b"", (0, 0), [(127.5,) * 3] * 2),
        (b"", (bits(31, 0, 0, 1), bits(0, 0, 31, 1)), [(255, 0, 0), (0, 0, 255)]),
        (b"", (bits(31, 0, 0, 1), bits(0, 0, 31, 0)), [(255, 0, 0), (127.5,) * 3]),
        (b"COLOR=\x33\x66\x99\xff", (0x8000, 0x8000), [(51, 102, 153)] * 2),
        (b"x COLOR=\x33\x66\x99\xff", (0x8000, bits(31, 0, 0, 0)), [(51, 102, 153), (0, 0, 255)]),
        (b"COLOR=\x00\x00\x00\xff,MATERIAL=\x33\x66\x99\xff", (0x8000, 0x8000), [(51, 102, 153)] * 2),
    ],
    ids=["none", "VisCAM", "VisCAM, one without", "Magics, whole", "Magics, one facet", "Magics, material"],
)
def test_colours_of_stl(tmp_path, head, colors, expected):
    points, rgb = sampled(stl(tmp_path / "a.stl", colors, head))
    height = points[:, 1] - points[:, 0]
    for rows, color in ((height < -1e-3, expected[0]), (height > 1e-3, expected[1])):
        np.testing.assert_allclose(rgb[rows], np.broadcast_to(color, (rows.sum(), 3)), atol=0.1)


def test_binary_stl_that_begins_as_text_or_goes_on(tmp_path):
    for head, after in ((b"solid model", b""), (b"made by hand", b"padding")):
        assert len(read_scene(stl(tmp_path / "a.stl", (0, 0), head, after)).parts[0].faces) == 2


def test_ascii_stl(tmp_path):
    facet = "facet normal 0 0 1\n outer loop\n  vertex 0 0 0\n  VERTEX 1e0 0 0\n\tvertex 0 1.0 0\n endloop\nendfacet\n"
    text = f"solid one\n{facet}endsolid one\nsolid two\n{facet.replace('1e0', '2')}endsolid\n"
    for content in (text, text.replace("\n", "\r\n")):
        (tmp_path / "a.stl").write_text(content)
        facts = describe_mesh(tmp_path / "a.stl")
        assert (facts["faces"], facts["bounds"]) == (2, [[0, 0, 0], [2, 1, 0]])
