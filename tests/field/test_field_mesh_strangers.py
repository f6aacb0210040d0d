"""Meshes from strangers: they stay in their folder, cost no more than their size, and say nothing to the terminal."""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from mesh_builders import (
    QUAD,
    QUAD_UV,
    Glb,
    assert_color,
    assert_quadrants,
    encoded,
    quad_glb,
    quadrants,
    sampled,
)
from PIL import Image
from test_field_mesh_formats import CORNERS, FACE, QUAD_OBJ, XYZ, ply

from psd_gs.cli import main
from psd_gs.errors import FormatError, InputError, PsdGsError
from psd_gs.export import gltf_file
from psd_gs.export.gltf_file import objects
from psd_gs.export.gltf_plain import plain_glb
from psd_gs.mesh.describe import describe_mesh
from psd_gs.mesh.read import read_scene
from psd_gs.viewer.open import panes

# --- inside its folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder for an asset; the secret lies beside it, and is reached from inside by links."""
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (4, 4), (1, 2, 3))))
    (tmp_path / "secret.bin").write_bytes(QUAD.tobytes())
    (tmp_path / "secret.mtl").write_text("newmtl m\nKd 1 0 0\n")
    folder = tmp_path / "asset"
    (folder / "sub").mkdir(parents=True)
    for kind in ("png", "bin", "mtl"):
        (folder / f"link.{kind}").symlink_to(tmp_path / f"secret.{kind}")
        (folder / f"folder.{kind}").mkdir()
        os.mkfifo(folder / f"pipe.{kind}")
        (folder / f"loop.{kind}").symlink_to(folder / f"loop.{kind}")
    (folder / "up").symlink_to(tmp_path)
    return folder


OUTSIDE = [
    "../secret.{}",
    "sub/../../secret.{}",
    "..\\secret.{}",
    "sub\\..\\..\\secret.{}",
    "{tmp}/secret.{}",
    "file://{tmp}/secret.{}",
    "FILE:{tmp}/secret.{}",
    "https://localhost:9/secret.{}",
    "\\\\localhost\\share\\secret.{}",
    "//localhost/share/secret.{}",
    "C:\\secret.{}",
    "link.{}",
    "up/secret.{}",
    "folder.{}",
    "pipe.{}",
    "loop.{}",
    "/dev/zero",
    "/proc/self/environ",
    ".",
]
"""Paths that leave the folder or name no regular file."""


def names(home: Path, kind: str) -> list[str]:
    return [name.format(kind, tmp=home.parent) for name in OUTSIDE]


def refused(path: Path) -> None:
    begin = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        sampled(path)
    assert "\n" not in str(caught.value)
    assert "its own folder" in str(caught.value)
    assert time.perf_counter() - begin < 2


def gltf(home: Path, buffer: str | None = None, image: str | None = None) -> Path:
    glb = Glb()
    about: dict = {}
    if image is not None:
        glb.document |= {"images": [{"uri": image}], "textures": [{"source": 0}]}
        about = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    quad_glb(home / "a.glb", about, glb)
    uri = "data:application/octet-stream;base64," + base64.b64encode(glb.blob).decode() if buffer is None else buffer
    glb.document["buffers"] = [{"uri": uri, "byteLength": len(glb.blob)}]
    (home / "b.bin").write_bytes(glb.blob)
    return glb.save(home / "a.gltf")


@pytest.mark.parametrize("i", range(len(OUTSIDE)))
def test_gltf_reads_nothing_outside(home, i):
    for kind in ("buffer", "image"):
        name = names(home, "bin" if kind == "buffer" else "png")[i]
        refused(gltf(home, **{kind: name}))
        refused(gltf(home, **{kind: "".join(f"%{byte:02X}" for byte in name.encode())}))


@pytest.mark.parametrize("i", range(len(OUTSIDE)))
def test_obj_and_ply_read_nothing_outside(home, i):
    (home / "a.obj").write_text(f"mtllib {names(home, 'mtl')[i]}\n{QUAD_OBJ}\n{FACE}\n")
    refused(home / "a.obj")
    picture = names(home, "png")[i]
    (home / "a.mtl").write_text(f"newmtl m\nmap_Kd -clamp on {picture}\n")
    (home / "a.obj").write_text(f"mtllib a.mtl\n{QUAD_OBJ}\n{FACE}\n")
    refused(home / "a.obj")
    uv = [("s", "float"), ("t", "float")]
    rows = [(*place, 0.0, 0.0) for place in QUAD.tolist()]
    elements = {"vertex": ([*XYZ, *uv], rows), "face": ([CORNERS], [((0, 1, 2),)])}
    refused(ply(home / "a.ply", elements, comments=[f"TextureFile {picture}"]))


@pytest.mark.parametrize(
    "name", ["b.bin", "sub/b.bin", "./sub//b.bin", "sub%2Fb.bin", "s%75b/b.bin", "b%20c.bin", "inner.bin"]
)
def test_what_lies_in_the_folder_is_read(home, name):
    path = gltf(home, buffer=name)
    data = (home / "b.bin").read_bytes()
    (home / "sub" / "b.bin").write_bytes(data)
    (home / "b c.bin").write_bytes(data)
    (home / "inner.bin").symlink_to(home / "sub" / "b.bin")
    assert_color(path, (255, 255, 255))


def test_a_folder_that_is_itself_a_link(home, monkeypatch):
    gltf(home, buffer="b.bin")
    (home.parent / "link").symlink_to(home)
    assert_color(home.parent / "link" / "a.gltf", (255, 255, 255))
    monkeypatch.chdir(home)
    assert_color(Path("a.gltf"), (255, 255, 255))


def test_pictures_by_uri(home):
    picture = encoded(quadrants())
    (home / "a b.png").write_bytes(picture)
    for uri in ("a%20b.png", "data:image/png;base64," + base64.b64encode(picture).decode()):
        assert_quadrants(gltf(home, image=uri))


def test_a_page_gets_one_file(home):
    """Buffer and picture of a .gltf are within; a GLB that is whole stays as it is, and nothing outside is read."""
    (home / "t.png").write_bytes(encoded(quadrants()))
    path = gltf(home, buffer="b.bin", image="t.png")
    (pane,) = panes([path])
    alone = write(home.parent / "alone.glb", pane.mesh)
    assert_quadrants(alone)
    assert plain_glb(alone) == alone.read_bytes()
    with pytest.raises(FormatError, match="its own folder"):
        panes([gltf(home, buffer="../secret.bin")])
    with pytest.raises(FormatError, match="no sound glTF"):
        panes([write(home / "a.gltf", b"{")])


def test_missing_pictures_are_said_and_missing_buffers_refused(home, caplog):
    assert_color(gltf(home, image="gone.png"), (255, 255, 255))
    assert "there is no 'gone.png' beside it" in caplog.text
    with pytest.raises(FormatError, match=r"there is no 'gone\.bin' beside it"):
        read_scene(gltf(home, buffer="gone.bin"))


# --- bounded ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """Black, of that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + width * 3)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def header_only(width: int, height: int) -> bytes:
    return png(1, 1)[:16] + struct.pack(">II", width, height) + png(1, 1)[24:]


def accessor_without_bytes(path: Path) -> Path:
    glb = Glb()
    quad_glb(path, {}, glb)
    del glb.document["accessors"][0]["bufferView"]
    glb.document["accessors"][0]["count"] = 50_000_000
    return glb.save(path)


def instances(path: Path) -> Path:
    """A thousand nodes of five thousand instances, whose places take no byte."""
    glb = Glb()
    quad_glb(path, {}, glb)
    places = glb.accessor(np.zeros((1, 3), "f4"), count=1)
    glb.document["accessors"][places] |= {"count": 5000}
    del glb.document["accessors"][places]["bufferView"]
    many = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    glb.document["nodes"] = [{"mesh": 0, "extensions": many} for _ in range(1000)]
    glb.document["scenes"] = [{"nodes": list(range(1000))}]
    return glb.save(path)


def same_primitive(path: Path) -> Path:
    glb = Glb()
    quad_glb(path, {}, glb)
    strip = glb.accessor(np.zeros(20_000, "u1"))
    primitive = {"attributes": {"POSITION": 0}, "indices": strip, "mode": 6}
    glb.document["meshes"] = [{"primitives": [primitive] * 3000}]
    return glb.save(path)


def many_pictures(path: Path) -> Path:
    """One picture of 64 million pixels that fifty materials name, each through an image of its own."""
    glb = Glb()
    view = glb.view(header_only(8000, 8000))
    glb.document |= {
        "images": [{"bufferView": view, "mimeType": "image/png"} for _ in range(50)],
        "textures": [{"source": i} for i in range(50)],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": i}}} for i in range(50)],
    }
    primitive = glb.primitive(POSITION=QUAD, TEXCOORD_0=QUAD_UV)
    glb.document["meshes"] = [{"primitives": [{**primitive, "material": i} for i in range(50)]}]
    return glb.save(path)


def pictured(path: Path, picture: bytes) -> Path:
    glb = Glb()
    return quad_glb(path, {"pbrMetallicRoughness": {"baseColorTexture": glb.texture(picture)}}, glb)


def deep_json(path: Path) -> Path:
    glb = Glb(extras=None)
    quad_glb(path, {}, glb)
    text = json.dumps({**glb.document, "buffers": []}).replace(
        '"extras": null', '"extras": ' + "[" * 10**5 + "]" * 10**5
    )
    path.with_suffix(".gltf").write_text(text)
    return path.with_suffix(".gltf")


def ply_head(path: Path, *lines: str, body: bytes = b"") -> Path:
    path = path.with_suffix(".ply")
    path.write_bytes("\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header", ""]).encode() + body)
    return path


XYZ_LINES = [f"property float {name}" for name in "xyz"]
VERTEX = ["element vertex 3", *XYZ_LINES]


BOMBS = {
    "accessor without bytes": accessor_without_bytes,
    "instances without bytes": instances,
    "one primitive again and again": same_primitive,
    "many pictures": many_pictures,
    "picture of 100 k squared": lambda path: pictured(path, header_only(100_000, 100_000)),
    "picture of 10 k squared": lambda path: pictured(path, header_only(10_000, 10_000)),
    "picture that ends early": lambda path: pictured(path, png(1000, 1000)[:200]),
    "nested JSON": deep_json,
    "PLY of 4 billion points": lambda path: ply_head(path, "element vertex 4294967295", *XYZ_LINES),
    "PLY list of 4 billion": lambda path: ply_head(
        path, *VERTEX, "element face 1", "property list uint int vertex_indices", body=bytes(36) + b"\xff" * 8
    ),
    "PLY list of negative length": lambda path: ply_head(
        path, *VERTEX, "element face 1", "property list int int vertex_indices", body=bytes(36) + b"\xff" * 8
    ),
    "STL of 4 billion facets": lambda path: write(path.with_suffix(".stl"), bytes(80) + b"\xff" * 4 + bytes(50)),
    "OBJ corner of a billion": lambda path: write(path.with_suffix(".obj"), b"v 0 0 0\n" * 3 + b"f 1 2 999999999\n"),
    "OBJ number without end": lambda path: write(path.with_suffix(".obj"), b"v 0 0 0\nf 1 2 " + b"9" * 5000),
}  # fmt: skip


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def peak() -> float:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_the_time_of_a_scene_grows_with_its_nodes_alone(tmp_path, monkeypatch):
    """A list is checked once, not for every entry: twenty thousand nodes took minutes."""
    checked = []
    monkeypatch.setattr(gltf_file, "objects", lambda holder, key: checked.append(key) or objects(holder, key))
    for count in (3, 60):
        glb = Glb()
        quad_glb(tmp_path / "a.glb", {}, glb)
        glb.document["nodes"] = [{"mesh": 0, "children": [i + 1]} for i in range(count - 1)] + [{"mesh": 0}]
        glb.save(tmp_path / "a.glb")
        assert len(read_scene(tmp_path / "a.glb").parts) == count
        assert checked.count("nodes") <= 2
        checked.clear()


def test_deep_json_in_the_comment_of_a_mesh_is_no_metadata(tmp_path):
    comment = 'comment psd-gs {"a": ' + "[" * 10**5 + "]" * 10**5 + "}"
    path = ply_head(tmp_path / "a.ply", comment, *VERTEX, body=bytes(24) + b"\0\0\x80?" * 3)
    assert describe_mesh(path)["metadata"] == {}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_one_line(tmp_path, name):
    quad_glb(tmp_path / "warm.glb", {})
    sampled(tmp_path / "warm.glb")
    path = BOMBS[name](tmp_path / "a.glb")
    before, begin = peak(), time.perf_counter()
    with pytest.raises(FormatError) as caught:
        sampled(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))
    assert time.perf_counter() - begin < 5
    assert peak() - before < 200


def test_a_large_picture_that_is_one_is_halved_until_it_fits(tmp_path):
    """16 million pixels of few bytes are no bomb."""
    wide = Image.new("RGB", (8192, 2), (10, 200, 30))
    assert_color(pictured(tmp_path / "a.glb", encoded(wide)), (10, 200, 30))


@pytest.mark.parametrize("kind", ["I;16", "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])
def test_every_mode_of_a_picture(tmp_path, kind):
    if kind in ("CMYK", "F"):
        image, container = Image.new(kind, (4, 4), 0), "TIFF" if kind == "F" else "JPEG"
    elif kind == "I;16":
        image, container = Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"
    else:
        image, container = Image.new("RGBA", (4, 4), (0, 0, 0, 255)).convert(kind), "PNG"
    color = (255, 255, 255) if kind == "CMYK" else (0, 0, 0)
    assert_color(pictured(tmp_path / "a.glb", encoded(image, container)), color, 2)


def test_escape_sequences_are_shown(tmp_path, capfd):
    bad = "\x1b]0;owned\x07\x1b[31m\x9b31mred"
    (tmp_path / "a.mtl").write_text(f"newmtl {bad}\nKd 1 0 0\nmap_Kd {bad}.png\n")
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\no {bad}\n{QUAD_OBJ.replace('usemtl m', f'usemtl {bad}')}\n{FACE}\n")
    main(["info", str(tmp_path / "a.obj")])
    glb = Glb(extensionsUsed=[bad])
    quad_glb(tmp_path / "a.glb", {"name": bad, "pbrMetallicRoughness": {}}, glb)
    main(["info", str(tmp_path / "a.glb")])
    sampled(tmp_path / "a.obj")
    out, err = capfd.readouterr()
    assert r"\x1b]0;owned\x07\x1b[31m\x9b31mred" in out
    assert not set(out + err) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl"])
def test_a_folder_or_nothing_is_no_asset(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("folder", "nothing"):
        with pytest.raises(InputError, match="cannot read"):
            read_scene(tmp_path / f"{name}{suffix}")


# --- fuzz ------------------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[Path]:
    """One small file of each kind with much in it."""
    glb = Glb(extensionsUsed=["KHR_texture_transform"])
    reference = {**glb.texture(encoded(quadrants(8))), "extensions": {"KHR_texture_transform": {"scale": [2, 2]}}}
    color = np.full((4, 4), 200, "u1")
    attributes = {"JOINTS_0": np.zeros((4, 4), "u1"), "WEIGHTS_0": np.ones((4, 4), "f4")}
    glb.document |= {"skins": [{"joints": [1]}], "nodes": [{"mesh": 0, "skin": 0, "children": [1]}, {"mesh": 0}]}
    material = {"alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorTexture": reference}}
    files = [quad_glb(folder / "a.glb", material, glb, COLOR_0=(color, {"normalized": True}), **attributes)]
    glb.document["buffers"] = [
        {"uri": "data:;base64," + base64.b64encode(glb.blob).decode(), "byteLength": len(glb.blob)}
    ]
    files.append(glb.save(folder / "b.gltf"))
    (folder / "t.png").write_bytes(encoded(quadrants(8)))
    (folder / "m.mtl").write_text("newmtl m\nKd 1 1 1\nd 0.5\nKe 0.1 0 0\nmap_Kd -s 2 2 -clamp on t.png\n")
    (folder / "c.obj").write_text(f"mtllib m.mtl\n{QUAD_OBJ}\n{FACE}\nf -1/-1 -2/-2 -3/-3\n")
    files += [folder / "c.obj", folder / "m.mtl"]
    for form in ("ascii", "binary_big_endian"):
        rows = [(*place, 1, 2, 3) for place in QUAD.tolist()]
        colors = [(name, "uchar") for name in ("red", "green", "blue")]
        faces = [((0, 1, 2, 3), 0.5), ((0, 1, 2), 0.5)]
        elements = {"vertex": ([*XYZ, *colors], rows), "face": ([CORNERS, ("q", "float")], faces)}
        files.append(ply(folder / f"{form}.ply", elements, form))
    facet = struct.pack("<12fH", 0, 0, 1, *QUAD[:3].ravel(), 0x8123)
    files.append(write(folder / "d.stl", b"COLOR=abcd".ljust(80) + struct.pack("<I", 3) + facet * 3))
    text = (
        "solid a\n"
        + "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n" * 2
    )
    files.append(write(folder / "e.stl", f"{text}endsolid\n".encode()))
    return files


NUMBERS = ["0", "-1", "1e9", "4294967296", "NaN", "Infinity", "true", "null", '"x"', "[]", "{}", "[[]]", "1e400", "0.5"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, or one number or word of text replaced."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        kind, at = rng.randrange(6), rng.randrange(len(out) or 1)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.choice([1, 4, 100, len(out)])]
        elif kind == 2:
            out[at:at] = out[at : at + rng.choice([1, 4, 64])] * rng.choice([1, 20])
        elif kind == 3:
            out[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x00\x00\xc0\x7f", b"\xff\xff\xff\x7f"])
        else:
            words = [(i, j) for i, j in zip(range(len(out)), range(1, len(out) + 1), strict=True) if out[i:j].isdigit()]
            if words:
                i, j = rng.choice(words)
                out[i:j] = rng.choice(NUMBERS).encode()
    if out[:4] == b"glTF" and len(out) > 20 and rng.random() < 0.8:  # so that the lengths do not betray it
        size = out.find(b"BIN\0") - 4 - 20
        if size > 0:
            out[8:12], out[12:16] = struct.pack("<I", len(out)), struct.pack("<I", size)
            out[20 + size : 24 + size] = struct.pack("<I", max(len(out) - size - 28, 0))
    return bytes(out)


def fuzz(folder: Path, count: int) -> int:
    """How many of so many broken files were refused; anything but our errors goes through."""
    rng, files, said = random.Random(0), seeds(folder), []
    originals = {path: path.read_bytes() for path in files}
    for i in range(count):
        path = files[i % len(files)]
        path.write_bytes(mutated(originals[path], rng))
        begin = time.perf_counter()
        try:
            target = folder / "c.obj" if path.suffix == ".mtl" else path
            points, rgb = sampled(target, 50)
            assert np.isfinite(points).all()
            assert 0 <= rgb.min() <= rgb.max() <= 255
            describe_mesh(target)
        except PsdGsError as error:
            said.append(str(error))
        assert time.perf_counter() - begin < 5, path
        path.write_bytes(originals[path])
    assert all(text.isprintable() for text in said)
    return len(said)


def test_broken_files_give_our_errors_only(tmp_path, caplog):
    caplog.set_level("CRITICAL")
    assert 20 < fuzz(tmp_path, 200) < 190


@pytest.mark.full
def test_many_broken_files_give_our_errors_only(tmp_path, caplog):
    caplog.set_level("CRITICAL")
    sampled(seeds(tmp_path)[0])
    before = peak()
    assert 500 < fuzz(tmp_path, 5000) < 4900
    assert peak() - before < 500
