"""Broken splat files of every format: one clear error or sound Gaussians, soon, and within bounded memory."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splats import asset
from test_export_gltf import pack, unpack
from test_export_ply import mutate

from psd_gs.errors import FormatError
from psd_gs.export.formats import FORMATS, load, read_metadata, save
from psd_gs.export.open import open_splats

# See test_export_usd.py for .usd; .html is not read.
EXTENSIONS = [extension for extension in FORMATS if not extension.startswith((".usd", ".html"))]
QUICK, FULL = 40, 900
"""Cases per format and kind of damage."""
MEMORY = 64 << 20
"""Bytes that NumPy and Python may hold while a file of a few kilobytes is read."""
SECONDS = 5.0


def inner(extension: str, data: bytes, rng: random.Random) -> bytes:
    """``data`` with damage below the checksums of its container, where the decoders themselves are reached."""
    if extension == ".spz":
        return zlib.compress(mutate(zlib.decompress(data, wbits=31), rng), wbits=31)
    if extension == ".glb":
        size = struct.unpack_from("<I", data, 12)[0]
        text = mutate(data[20 : 20 + size], rng)
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text + data[20 + size :]
        return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
    return mutate(data, rng)


def rezip(path: Path, rng: random.Random) -> None:
    """The same for archives: one member is damaged, the checksums fit again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = rng.choice(sorted(members))
    if victim == "meta.json" and rng.random() < 0.7:
        members[victim] = json.dumps(twist(json.loads(members[victim]), rng)).encode()
    else:
        members[victim] = mutate(members[victim], rng)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


ODD = [None, True, -1, 0, 1, 3, 2**31, 10**30, 0.5, 1e300, float("nan"), "", "x", [], {}, [[]], "means_l.webp"]


def twist(document, rng: random.Random):
    """JSON with one value replaced or removed at a random place."""
    if isinstance(document, dict | list) and document and rng.random() < 0.85:
        places = list(document) if isinstance(document, dict) else range(len(document))
        place = rng.choice(list(places))
        out = document.copy()
        if rng.random() < 0.05:
            del out[place]
        else:
            out[place] = twist(document[place], rng)
        return out
    return rng.choice(ODD)


def check(path: Path) -> bool:
    """Whether the file was refused. What is not refused must be finite."""
    message = ""
    tracemalloc.start()
    start = time.monotonic()
    try:
        g = load(path)
        assert len(g) > 0
        assert all(bool(p.isfinite().all()) for p in g.params().values())
        assert (g.quats.norm(dim=1) > 0).all()
        assert isinstance(read_metadata(path), dict)
    except FormatError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.monotonic() - start < SECONDS
    assert peak < MEMORY
    assert not message or str(path) in message
    assert "\n" not in message
    return bool(message)


def originals(folder: Path, extension: str) -> list[Path]:
    out = []
    for i, (n, degree, options) in enumerate([(30, 1, {}), (300, 0, {}), (5, 3, {"version": 4})]):
        path = folder / f"original{i}{extension}"
        save(asset(n, degree), path, metadata={"prompt": "a cat"}, **(options if extension == ".spz" else {}))
        out.append(path)
    return out


def damage(tmp_path: Path, extension: str, cases: int) -> float:
    """Share of the damaged files that were refused."""
    files = originals(tmp_path, extension)
    path, refused = tmp_path / f"broken{extension}", 0
    for i in range(cases):
        rng = random.Random(i)
        source = rng.choice(files)
        data = source.read_bytes()
        path.write_bytes(mutate(data, rng))
        refused += check(path)
        path.write_bytes(data)
        if extension == ".sog":
            rezip(path, rng)
        else:
            path.write_bytes(inner(extension, data, rng) if data[:4] != b"NGSP" else mutate(data, rng))
        refused += check(path)
    return refused / cases


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_damaged_files(tmp_path, extension):
    assert damage(tmp_path, extension, QUICK) > 0.25, "the damage does no damage"


@pytest.mark.full
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_many_damaged_files(tmp_path, extension):
    assert damage(tmp_path, extension, FULL) > 0.25, "the damage does no damage"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_truncation(tmp_path, extension):
    """Cut at the ends of all the structures, and at many places between them."""
    source = originals(tmp_path, extension)[0]
    data, path = source.read_bytes(), tmp_path / f"cut{extension}"
    step = max(1, len(data) // 50)
    for length in sorted({*range(40), *range(40, len(data), step), *range(len(data) - 20, len(data))}):
        path.write_bytes(data[:length])
        whole = extension == ".splat" and length % 32 == 0 and length > 0  # nothing tells such a file from a whole one
        assert check(path) != whole


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.binary(max_size=2000))
def test_arbitrary_bytes(tmp_path, extension, data):
    path = tmp_path / f"a{extension}"
    for start in FORMATS[extension].starts or (b"",):
        path.write_bytes(start + data)
        check(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(seed=st.integers(0, 2**32))
def test_twisted_gltf_documents(tmp_path, seed):
    path = tmp_path / "a.glb"
    if not path.exists():
        save(asset(10, 1), path)
    document, blob = unpack(path)
    (tmp_path / "b.glb").write_bytes(pack(twist(document, random.Random(seed)), blob))
    check(tmp_path / "b.glb")


# --- bombs: small files that would unpack to something huge -----------------------------------------------------------


def test_gzip_bomb(tmp_path):
    squeeze = zlib.compressobj(9, wbits=31)
    count = 50_000_000
    data = squeeze.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, count, 0, 12, 0, 0))
    for _ in range(20):
        data += squeeze.compress(bytes(1 << 20))
    (tmp_path / "a.spz").write_bytes(data + squeeze.flush())
    assert check(tmp_path / "a.spz")


def test_zstd_bomb(tmp_path):
    from zstandard import ZstdCompressor

    stream = ZstdCompressor().compress(bytes(200 << 20))
    for count in (10_000_000, 10, 100):
        sizes = [count * width for width in (9, 1, 3, 3, 4)]
        head = struct.pack("<IIIBBBBI12x", 0x5053474E, 4, count, 0, 12, 0, 5, 32)
        head += b"".join(struct.pack("<QQ", len(stream), size) for size in sizes)
        (tmp_path / "a.spz").write_bytes(head + stream * 5)
        assert check(tmp_path / "a.spz")


def test_zip_bomb(tmp_path):
    save(asset(50, 0), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        with zipfile.ZipFile(tmp_path / "b.sog", "w", zipfile.ZIP_DEFLATED) as archive:
            for other, data in members.items():
                archive.writestr(other, data + (b" " * (20 << 20) if other == name else b""))
        check(tmp_path / "b.sog")


def test_picture_of_absurd_size(tmp_path):
    import io

    from PIL import Image

    save(asset(50, 0), tmp_path / "a.sog")
    out = io.BytesIO()
    Image.new("RGBA", (8000, 8000)).save(out, "WEBP", lossless=True)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive, zipfile.ZipFile(tmp_path / "b.sog", "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, out.getvalue() if name == "quats.webp" else archive.read(name))
    assert check(tmp_path / "b.sog")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_describe_reports_the_same_error(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"\x00" * 7)
    with pytest.raises(FormatError):
        open_splats(path).describe()
