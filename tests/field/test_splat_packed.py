"""Packed as strangers pack: gzip of several members, zstd of several frames, zips of every kind, lossy pictures; and
what is behind the last row, which is counted and said."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_splat_headers
from foreign_splats import ball, glb_of, spz, write_ply
from mesh_builders import QUAD, Glb
from PIL import Image
from splats import asset
from test_field_members import KHR, WHOLE, attributes
from test_splat_headers import record
from zstandard import ZstdCompressor, ZstdDecompressor

from psd_gs.errors import FormatError, InputError, UnsupportedError
from psd_gs.export.formats import load, save
from psd_gs.export.open import open_splats
from psd_gs.export.packed import Gunzip, Zip, gzipped
from psd_gs.mesh.read import read_scene

# --- gzip of our own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 70_000])
def test_pieces_are_one_member(monkeypatch, size):
    monkeypatch.setattr("psd_gs.export.packed._PACKED_PIECE", 1000)
    data = np.random.default_rng(0).integers(0, 9, size).astype(np.uint8).tobytes()
    found = b"".join(gzipped(data, 6))
    member = zlib.decompressobj(wbits=31)
    assert member.decompress(found) == data
    assert member.eof
    assert not member.unused_data


# --- gzip of several members ------------------------------------------------------------------------------------------


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def bgzip(data: bytes) -> bytes:
    """Blocks of 1000 bytes that tell their own length, and an empty one (SAM specification, 4.1)."""

    def block(part: bytes) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(part) + packer.flush()
        extra = struct.pack("<2sHH", b"BC", 2, len(body) + 25)
        return (
            b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra + body
            + struct.pack("<II", zlib.crc32(part), len(part))
        )  # fmt: skip

    return b"".join(map(block, [*cut(data, 1000), b""]))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "two members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "a member a byte": lambda data: b"".join(gzip.compress(part) for part in cut(data, 1)),
    "empty members": lambda data: gzip.compress(b"") + gzip.compress(data) + gzip.compress(b""),
    "bgzip": bgzip,
    "zeros behind": lambda data: gzip.compress(data) + bytes(512),
    "zeros between": lambda data: gzip.compress(data[:9]) + bytes(9) + gzip.compress(data[9:]),
    "not packed": lambda data: data,
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_gzip_of_several_members(tmp_path, pack, monkeypatch, caplog):
    """In an SPZ of its own and in a GLB."""
    whole = spz(ball(90))
    (tmp_path / "a.spz").write_bytes(whole)
    expected = load(tmp_path / "a.spz")
    (tmp_path / "b.spz").write_bytes(pack(gzip.decompress(whole)))
    assert load(tmp_path / "b.spz").means.equal(expected.means)
    monkeypatch.setattr(test_splat_headers, "spz", lambda columns: pack(gzip.decompress(whole)))
    (tmp_path / "c.glb").write_bytes(test_splat_headers.with_spz(ball(90), f"{KHR}_compression_spz_2", True))
    assert len(load(tmp_path / "c.glb")) == 90
    assert not caplog.text


@pytest.mark.parametrize(
    "second",
    [gzip.compress(b"x")[:12], b"\x1f\x8b\x08broken", gzip.compress(b"xyz")[:-8] + bytes(8)],
    ids=["cut", "broken", "another sum"],  # the bytes hold the time
)
def test_a_damaged_member_is_damage(tmp_path, second):
    (tmp_path / "a.spz").write_bytes(spz(ball(9)) + second)
    with pytest.raises(FormatError, match=r"a\.spz: damaged gzip data"):
        load(tmp_path / "a.spz")


def test_the_sum_of_all_members_is_bounded():
    bomb = gzip.compress(bytes(10 << 20))
    stream = Gunzip(bomb * 50)
    assert len(stream.read(1 << 20)) == 1 << 20
    assert not stream.ended
    assert Gunzip(gzip.compress(b"") * 50_000).read(1) == b""


def test_zstd_of_several_frames(tmp_path, caplog):
    """And with a skippable one, such as the table of a seekable stream."""
    save(asset(300, 1), tmp_path / "a.spz", version=4)
    data = (tmp_path / "a.spz").read_bytes()
    streams = struct.unpack_from("<B", data, 15)[0]
    entries = [struct.unpack_from("<QQ", data, 32 + 16 * i) for i in range(streams)]
    at, packed = 32 + 16 * streams, []
    for squeezed, _ in entries:
        raw = ZstdDecompressor().decompress(data[at : at + squeezed])
        at += squeezed
        parts = [ZstdCompressor().compress(part) for part in cut(raw, len(raw) // 3 + 1)]
        packed.append(b"".join(parts) + struct.pack("<II", 0x184D2A5E, 9) + b"a table  ")
    table = b"".join(struct.pack("<QQ", len(part), size) for part, (_, size) in zip(packed, entries, strict=True))
    (tmp_path / "b.spz").write_bytes(data[:32] + table + b"".join(packed))
    assert load(tmp_path / "b.spz").means.equal(load(tmp_path / "a.spz").means)
    assert not caplog.text


# --- what is behind the last row --------------------------------------------------------------------------------------


def behind_glb(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", len(data)) + data[12:] + b"?" * 40


def longer_chunk(data: bytes) -> bytes:
    text = struct.unpack_from("<I", data, 12)[0]
    size = len(data) - 28 - text
    head = data[: 20 + text] + struct.pack("<I", size + 40) + data[24 + text :]
    return head[:8] + struct.pack("<I", len(head) + 40) + head[12:] + b"?" * 40


def further_chunk(data: bytes) -> bytes:
    out = data + struct.pack("<I4s", 40, b"more") + b"?" * 40
    return out[:8] + struct.pack("<I", len(out)) + out[12:]


def made(kind: str, path: Path) -> None:
    if kind.startswith("glb"):
        path.write_bytes(glb_of(attributes(ball(20)), {KHR: WHOLE}))
    elif kind == "spz":
        path.write_bytes(gzip.decompress(spz(ball(20))))
    elif kind == "spz records":
        path.write_bytes(gzip.decompress(spz(ball(20), flags=2, records=record(0xADBE0003, struct.pack("<I", 6)))))
    else:
        save(asset(20, 1), path, metadata=None, **({"version": 4} if kind == "spz 4" else {}))


SURPLUS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "ply": ("a.ply", lambda data: data + b"?" * 40, "40 bytes behind the last row"),
    "compressed ply": ("a.compressed.ply", lambda data: data + b"?" * 40, "40 bytes behind the last row"),
    "gzip": ("a.spz", lambda data: data + b"?" * 40, "40 bytes behind the gzip stream"),
    "spz": ("a.spz", lambda data: gzip.compress(data + b"?" * 40), "40 bytes behind 20 Gaussians"),
    "spz records": ("a.spz", lambda data: gzip.compress(data + b"?" * 7), "7 bytes behind 20 Gaussians"),
    "spz 4": ("a.spz", lambda data: data + b"?" * 40, "40 bytes behind the last stream"),
    "glb": ("a.glb", behind_glb, "40 bytes behind the last chunk"),
    "glb buffer": ("a.glb", longer_chunk, "40 bytes behind the buffer of the binary chunk"),
    "glb chunk": ("a.glb", further_chunk, "40 bytes in 1 further chunks"),
}


@pytest.mark.parametrize("kind", SURPLUS)
def test_what_is_behind_the_last_row_is_counted(tmp_path, kind, caplog):
    name, longer, said = SURPLUS[kind]
    made(kind, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(longer(data))
    assert len(open_splats(tmp_path / name).gaussians) == 20
    assert caplog.text.count(f"{said} are not kept") == 1


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_rows_beyond_those_that_a_ply_promises(tmp_path, form, caplog):
    columns = ball(20)
    write_ply(tmp_path / "a.ply", columns, form=form)
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"vertex 20", b"vertex 15"))
    assert len(load(tmp_path / "a.ply")) == 15
    said = "5 lines" if form == "ascii" else f"{5 * 4 * len(columns)} bytes"
    assert f"a.ply: {said} behind the last row are not kept" in caplog.text
    caplog.clear()
    (tmp_path / "a.ply").write_bytes(data + (b"\n\n" if form == "ascii" else b""))
    assert len(load(tmp_path / "a.ply")) == 20
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "of"), [("a.ply", "row"), ("b.ply", "row"), ("a.stl", "triangle"), ("a.glb", "chunk")]
)
def test_meshes_say_it_too(tmp_path, name, of):
    path, facet = tmp_path / name, np.zeros(50, np.uint8).tobytes()
    head = "ply\nformat {} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    if name == "a.ply":
        path.write_bytes(head.format("binary_little_endian").encode() + bytes(36) + b"?" * 50)
    elif name == "b.ply":
        path.write_bytes(head.format("ascii").encode() + b"0 0 0\n1 0 0\n0 1 0\n9 9 9\n")
    elif name == "a.stl":
        path.write_bytes(b"made by hand".ljust(80) + struct.pack("<I", 1) + facet + b"?" * 50)
    else:
        glb = Glb(meshes=[{"primitives": []}])
        glb.document["meshes"][0]["primitives"] = [glb.primitive(POSITION=QUAD)]
        glb.save(path)
        path.write_bytes(path.read_bytes() + b"?" * 50)
    said = "3 numbers" if name == "b.ply" else "50 bytes"
    assert any(
        re.fullmatch(f"{said} behind the last (row|triangle|chunk) are ignored", n) for n in read_scene(path).notes
    )


# --- zips -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    save(asset(200, 1), path := tmp_path_factory.mktemp("zips") / "whole.sog")
    return path


@pytest.fixture
def members(whole) -> dict[str, bytes]:
    with zipfile.ZipFile(whole) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED, *, large: bool = False) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as archive:
        for name, data in files.items():
            with archive.open(zipfile.ZipInfo(name) if large else name, "w", force_zip64=large) as file:
                file.write(data)
    return out.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("change", [bytes, lambda data: b"#!self-extracting\n" + data])
def test_zips_of_every_method_that_python_knows(tmp_path, members, method, change):
    (tmp_path / "a.sog").write_bytes(zipped(members, method))
    assert len(load(tmp_path / "a.sog")) == 200


def test_zip64_and_a_comment(tmp_path, members):
    data = zipped(members, large=True)
    (tmp_path / "a.sog").write_bytes(data[:-2] + struct.pack("<H", 5) + b"hello")
    assert len(load(tmp_path / "a.sog")) == 200


def flagged(data: bytes, flags: int, method: int | None = None) -> bytes:
    """The zip with other flags, and another method, in the heads of all members."""
    out = bytearray(data)
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for found in re.finditer(re.escape(mark), data):
            struct.pack_into("<H", out, found.start() + at, flags)
            if method is not None:
                struct.pack_into("<H", out, found.start() + at + 2, method)
    return bytes(out)


ODD_ZIPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "encrypted": (lambda data: flagged(data, 1), "an encrypted zip.*password"),
    "AES": (lambda data: flagged(data, 1, 99), "an encrypted zip.*password"),
    "strong encryption": (lambda data: flagged(data, 0x41), "an encrypted zip.*password"),
    "Deflate64": (lambda data: flagged(data, 0, 9), "packed with Deflate64.*zip -0"),
    "PPMd": (lambda data: flagged(data, 0, 98), "packed with PPMd.*zip -0"),
    "an unknown method": (lambda data: flagged(data, 0, 77), "packed with method 77.*zip -0"),
    "first volume": (lambda data: b"PK\7\x08" + data[: len(data) // 2], "one volume of a split zip. Join them"),
    "last volume": (lambda data: data[99:-18] + struct.pack("<HH", 2, 2) + data[-14:], "one volume of a split zip"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_ZIPS)
def test_zips_that_are_known_but_not_read(tmp_path, members, kind):
    change, said = ODD_ZIPS[kind]
    (tmp_path / "a.sog").write_bytes(change(zipped(members)))
    with pytest.raises(UnsupportedError, match=rf"a\.sog: {said}|a\.sog: a zip that is not read \({said}"):
        open_splats(tmp_path / "a.sog")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_are_bounded_whatever_packed_them(tmp_path, method):
    data = zipped({"a": bytes(20 << 20)}, method)
    with pytest.raises(ValueError, match="absurd size"):
        Zip(data, "a.sog").read("a", 1 << 20)


@pytest.mark.parametrize("change", [lambda data: repacked(data), lambda data: flagged(data, 1)])
def test_a_usdz_that_is_packed_is_named(tmp_path, change):
    pytest.importorskip("pxr.UsdVol")
    save(asset(9, 0), tmp_path / "a.usdz")
    (tmp_path / "a.usdz").write_bytes(change((tmp_path / "a.usdz").read_bytes()))
    with pytest.raises(UnsupportedError, match="its files are packed or encrypted"):
        load(tmp_path / "a.usdz")


def repacked(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


OTHERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "7z": (lambda data: b"7z\xbc\xaf\x27\x1c" + bytes(100), "7-Zip"),
    "rar": (lambda data: b"Rar!\x1a\x07\x01\0" + bytes(100), "RAR"),
    "tar.gz": (lambda data: gzip.compress(tarred(data)), "gzip"),
    "tar.xz": (lambda data: lzma.compress(tarred(data)), "xz"),
    "tar": (lambda data: tarred(data), "tar"),
    "lz4": (lambda data: b"\x04\x22\x4d\x18" + bytes(100), "LZ4"),
}


def tarred(data: bytes) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
        info = tarfile.TarInfo("asset.sog")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.sog", "a.{kind}", "a"])
def test_other_archives_are_named(tmp_path, members, kind, name):
    pack, called = OTHERS[kind]
    path = tmp_path / name.format(kind=kind)
    path.write_bytes(pack(zipped(members)))
    with pytest.raises(UnsupportedError, match=f"packed with {called}. Unpack it first"):
        open_splats(path)


# --- pictures of numbers ----------------------------------------------------------------------------------------------


def redrawn(data: bytes, kind: str = "WEBP", **options) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        picture.convert(options.pop("mode", "RGBA")).save(out := io.BytesIO(), kind, **options)
    return out.getvalue()


LOSSY: dict[str, dict] = {"lossy": {"quality": 90}, "extended": {"quality": 90, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}}


@pytest.mark.parametrize("how", LOSSY)
@pytest.mark.parametrize("name", ["means_l", "means_u", "quats", "scales", "sh0", "shN_centroids", "shN_labels"])
def test_lossy_pictures(tmp_path, whole, members, name, how, caplog):
    picture = redrawn(members[f"{name}.webp"], **LOSSY[how])
    (tmp_path / "a.sog").write_bytes(zipped({**members, f"{name}.webp": picture}))
    if name not in ("sh0", "shN_centroids"):
        with pytest.raises(UnsupportedError, match=rf"'{name}\.webp' is lossy, so its numbers are others; exp"):
            load(tmp_path / "a.sog")
        return
    found, expected = load(tmp_path / "a.sog"), load(whole)
    assert f"'{name}.webp' is lossy: its colours are not quite" in caplog.text
    assert found.means.equal(expected.means)
    assert not found.sh.equal(expected.sh)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF"])
def test_other_pictures_are_named(tmp_path, members, kind):
    picture = redrawn(members["quats.webp"], kind, mode="RGB")
    (tmp_path / "a.sog").write_bytes(zipped({**members, "quats.webp": picture}))
    with pytest.raises(UnsupportedError, match=rf"'quats\.webp' is a {kind} picture, which is not read; expected"):
        load(tmp_path / "a.sog")


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_what_is_for_the_eye_is_passed_over(tmp_path, whole, members, kind):
    """A colour profile, gamma, an orientation and interlacing change no byte."""
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    files = {
        name: redrawn(data, kind, icc_profile=profile, exif=exif, **lossless) if name.endswith(".webp") else data
        for name, data in members.items()
    }
    (tmp_path / "a.sog").write_bytes(zipped(files))
    found, expected = load(tmp_path / "a.sog"), load(whole)
    assert all(getattr(found, name).equal(tensor) for name, tensor in expected.params().items())


def test_colours_that_were_reduced_to_a_palette_are_said(tmp_path, members, caplog):
    with Image.open(io.BytesIO(members["means_l.webp"])) as picture:
        picture.convert("RGB").quantize(64).save(out := io.BytesIO(), "PNG")
    (tmp_path / "a.sog").write_bytes(zipped({**members, "means_l.webp": out.getvalue()}))
    assert len(load(tmp_path / "a.sog")) == 200
    assert "'means_l.webp' has a palette: if its colours were reduced to that, Gaussians are misplaced" in caplog.text


def test_a_streamed_sog_in_a_zip_is_named(tmp_path, members):
    files = {"lod-meta.json": json.dumps({"lodLevels": 2, "tree": {}}).encode()}
    (tmp_path / "a.sog").write_bytes(zipped(files | {f"0_0/{name}": data for name, data in members.items()}))
    with pytest.raises(InputError, match="a streamed SOG of several levels"):
        load(tmp_path / "a.sog")
