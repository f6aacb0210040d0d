"""Files that are made to hurt: small ones that would become large, hostile headers, text that steers the terminal."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from foreign_splats import ball, glb, glb_of, spz, write_ply
from PIL import Image
from splats import asset

from psd_gs.errors import FormatError, InputError
from psd_gs.export.formats import load, read_metadata, save
from psd_gs.export.open import open_splats


def spz_bomb(count: int, degree: int = 3) -> bytes:
    """Of zeros, which deflate packs a thousandfold."""
    body = struct.pack("<4sIIBBBB", b"NGSP", 3, count, degree, 12, 0, 0)
    return gzip.compress(body + bytes(count * (20 + 3 * ((degree + 1) ** 2 - 1))))


def sog_bomb(count: int) -> bytes:
    """Pictures of one colour."""
    side = 4 * int(np.ceil(np.sqrt(count) / 4))
    Image.new("RGBA", (side, side), (1, 2, 3, 253)).save(out := io.BytesIO(), "WEBP", lossless=True, exact=True)
    meta = {
        "version": 2,
        "count": count,
        "means": {"mins": [0] * 3, "maxs": [1] * 3, "files": ["a.webp", "a.webp"]},
        "quats": {"files": ["a.webp"]},
        **{name: {"codebook": [0.0] * 256, "files": ["a.webp"]} for name in ("scales", "sh0")},
    }
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as files:
        files.writestr("meta.json", json.dumps(meta))
        files.writestr("a.webp", out.getvalue())
    return archive.getvalue()


def splats_glb(document: dict) -> bytes:
    primitive = {"mode": 0, "attributes": {"POSITION": 0}, "extensions": {"KHR_gaussian_splatting": {}}}
    return glb({"nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}], **document}, bytes(16))


BOMBS = {
    "a.spz": spz_bomb(300_000),
    "b.spz": spz_bomb(900_000, 0),
    "c.spz": struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 2**31, 3, 12, 0, 6, 32) + bytes(200),
    "a.sog": sog_bomb(900_000),
    "a.glb": splats_glb({"accessors": [{"componentType": 5126, "count": 5_000_000, "type": "VEC3"}]}),
    "b.glb": splats_glb(
        {
            "accessors": [{"bufferView": 0, "componentType": 5126, "count": 2**40, "type": "VEC3"}],
            "bufferViews": [{"buffer": 0, "byteLength": 16}],
        }
    ),
    "a.ply": b"ply\nformat ascii 1.0\nelement vertex 999999999999999999\nproperty float scale_0\nend_header\n1\n",
    "b.ply": b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"property float x\n" * 99_999 + b"end_header\n",
    "c.ply": b"ply\ncomment " + b"x" * (5 << 20),
    "d.ply": b"ply\nformat binary_little_endian 1.0\nelement a 9\nproperty list uint double l\nelement vertex 1\n"
    b"property float scale_0\nend_header\n" + b"\xff" * 40,
    "e.ply": b"ply\n" + b"\r" * (3 << 20) + b"\nend_header\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_soon_and_in_little_memory(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(FormatError) as caught:
        load(tmp_path / name, lenient=True)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_the_ceiling_can_be_lifted(tmp_path):
    (tmp_path / "a.spz").write_bytes(spz_bomb(200_000, 3))
    with pytest.raises(FormatError, match="if you trust it, pass --large"):
        load(tmp_path / "a.spz")
    assert len(load(tmp_path / "a.spz", large=True)) == 200_000


def test_real_assets_stay_below_the_ceiling(tmp_path):
    """Also coincident splats of one colour, which pack best of all."""
    columns = {name: np.full(40_000, values[0]) for name, values in ball(1).items()}
    (tmp_path / "a.spz").write_bytes(spz(columns))
    assert len(load(tmp_path / "a.spz")) == 40_000


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [40, 900, 100_000])
def test_deep_json_is_no_metadata(tmp_path, levels):
    text = f'{{"prompt": {deep(levels)}}}'
    write_ply(tmp_path / "a.ply", ball(5), before=[f"comment psd-gs {text}".encode()])
    save(asset(5, 0), tmp_path / "b.spz", metadata={})
    (tmp_path / "b.spz.json").write_text(text)
    extras = {"version": "2.0", "extras": {"psd_gs": json.loads(f'{{"a": {deep(min(levels, 900))}}}')}}
    (tmp_path / "c.glb").write_bytes(
        glb_of({"POSITION": np.zeros((1, 3))}, {"KHR_gaussian_splatting": {}}, asset=extras)
    )
    save(asset(5, 0), tmp_path / "d.sog")
    with zipfile.ZipFile(tmp_path / "d.sog") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = members["meta.json"].decode().replace('"asset":{', f'"asset":{{"psd_gs":{text},', 1)
    with zipfile.ZipFile(tmp_path / "d.sog", "w") as archive:
        for name, data in {**members, "meta.json": meta.encode()}.items():
            archive.writestr(name, data)
    for name in ("a.ply", "b.spz", "c.glb", "d.sog"):
        assert read_metadata(tmp_path / name) == {}
    assert len(open_splats(tmp_path / "a.ply").gaussians) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": "x", "offset": "abc", "render_mode": 7, "frame": 9},
        {"scale": -1, "offset": [1, 2], "render_mode": "soft", "frame": "up"},
        {"scale": 1e300, "offset": [None, "a", {}], "render_mode": [], "frame": []},
        {"scale": 0, "offset": [[1], 2, 3]},
    ],
)
def test_odd_metadata_change_nothing(tmp_path, fields):
    save(asset(20, 0), tmp_path / "a.ply", metadata=fields)
    given = load(tmp_path / "a.ply")
    path = tmp_path / "b.ply"
    text = json.dumps(fields)
    data = (tmp_path / "a.ply").read_bytes()
    begin, end = data.index(b"comment psd-gs"), data.index(b"element vertex")
    path.write_bytes(data[:begin] + f"comment psd-gs {text}\n".encode() + data[end:])
    found = open_splats(path)
    assert found.gaussians.means.equal(given.means)
    assert (found.gaussians.mode, found.gaussians.origin, found.frame) == ("default", (0.0, 0.0, 0.0), "rdf")


@pytest.mark.parametrize("element", ["chunk", "vertex", "sh"])
def test_packed_properties_in_the_wrong_element(tmp_path, element):
    save(asset(300, 1), tmp_path / "a.compressed.ply")
    data = (tmp_path / "a.compressed.ply").read_bytes()
    end = data.index(b"end_header")
    head = data[:end].replace(f"element {element} ".encode(), b"element other ").replace(b"element face", b"element f")
    (tmp_path / "a.compressed.ply").write_bytes(head + data[end:])
    if element == "sh":
        assert load(tmp_path / "a.compressed.ply").sh_degree == 0
        return
    with pytest.raises(FormatError, match=r"a\.compressed\.ply"):
        load(tmp_path / "a.compressed.ply")


def test_a_pipe_is_not_read_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.ply")
    with pytest.raises(InputError, match="received a device or pipe"):
        load(tmp_path / "a.ply")


def test_notes_name_the_file(tmp_path, caplog):
    write_ply(tmp_path / "a.ply", {**ball(5), "label": np.zeros(5)})
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "a.ply")
    assert str(tmp_path / "a.ply") in caplog.text


# --- streams and terminals --------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(monkeypatch, capsysbinary):
    """The command line with the given bytes as standard input: exit code, output, errors."""
    from psd_gs import cli

    def run(data: bytes, *arguments: str) -> tuple[int, bytes, bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = 0
        try:
            cli.main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        done = capsysbinary.readouterr()
        return code, done.out, done.err

    return run


def test_from_standard_input_to_standard_output(tmp_path, streamed):
    write_ply(tmp_path / "a.ply", ball(50))
    code, out, err = streamed((tmp_path / "a.ply").read_bytes(), "export", "-", "-", "--to", ".spz")
    assert (code, err) == (0, b"50 Gaussians, SH degree 0\n")
    (tmp_path / "b.spz").write_bytes(out)
    assert len(load(tmp_path / "b.spz")) == 50
    assert json.loads(streamed(out, "info", "-", "--json")[1])["n_splats"] == 50
    code, out, err = streamed(b"hello", "info", "-")
    assert (code, out, err.count(b"\n")) == (1, b"", 1)
    assert b"standard input: expected a splat file" in err
    write_ply(tmp_path / "a.ply", ball(50) | {"label": np.zeros(50)})
    err = streamed((tmp_path / "a.ply").read_bytes(), "export", "-", str(tmp_path / "b.spz"))[2]
    assert err == b"standard input: 1 further properties are not kept (label)\n"


def test_a_file_that_is_not_there(tmp_path, streamed):
    for name in ("nowhere", "nowhere.spz"):
        code, _, err = streamed(b"", "export", str(tmp_path / name), str(tmp_path / "b.ply"))
        assert code == 1
        assert f"cannot read {tmp_path / name}: No such file or directory".encode() in err


def test_from_a_pipe_with_a_name(tmp_path, streamed):
    write_ply(tmp_path / "a.ply", ball(50))
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", str(tmp_path / "a.ply"), str(tmp_path / "pipe")]) as writer:
        assert json.loads(streamed(b"", "info", str(tmp_path / "pipe"), "--json")[1])["n_splats"] == 50
        assert writer.wait(30) == 0


def test_a_reader_that_has_seen_enough():
    process = subprocess.Popen(
        [sys.executable, "-m", "psd_gs", "export", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
    process.stderr.close()


def test_the_help_of_a_narrow_terminal_is_readable(monkeypatch, streamed):
    monkeypatch.setenv("COLUMNS", "20")
    text = streamed(b"", "export", "--help")[1].decode()
    assert "Splat file to read" in text
    assert sum(len(line.split()) > 2 for line in text.splitlines()) > 20


def test_links_are_followed(tmp_path):
    save(asset(20, 0), tmp_path / "real.spz")
    (tmp_path / "link.spz").symlink_to("real.spz")
    (tmp_path / "in.spz").symlink_to("link.spz")
    assert len(load(tmp_path / "in.spz")) == 20
    save(asset(30, 0), tmp_path / "link.spz")
    assert (tmp_path / "link.spz").is_symlink()
    assert len(load(tmp_path / "real.spz")) == 30


def test_a_device_stays_what_it_is(tmp_path):
    from psd_gs.files import write_atomic

    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_atomic(tmp_path / "pipe", b"bytes")
    assert reader.communicate(timeout=30)[0] == b"bytes"
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("where", ["metadata", "name", "property"])
def test_escape_sequences_are_shown_and_not_sent(tmp_path, capsys, where):
    from psd_gs import cli

    evil = "\x1b]0;owned\x07\x1b[31m\u202ered\x9b2J"
    path = tmp_path / ("a" + (evil if where == "name" else "") + ".ply")
    columns = ball(9)
    if where == "property":
        columns[evil.lower()] = np.zeros(9)
    write_ply(path, columns)
    if where == "metadata":
        save(load(path), path, metadata={"prompt": evil, "models": {evil: evil}, evil: 1})
    for arguments in (["info", path], ["export", path, tmp_path / "b.spz"], ["info", tmp_path / f"missing{evil}"]):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit:
            assert "missing" in str(arguments[1])
        done = capsys.readouterr()
        assert not set(done.out + done.err) & set("\x1b\x07\x9b\u202e"), arguments
        assert done.out + done.err
