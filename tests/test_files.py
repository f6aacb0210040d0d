"""Reading what strangers wrote: shapes, bounds, and what is no file."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from psd_gs import files
from psd_gs.config import read_yaml
from psd_gs.errors import ConfigError, FormatError, InputError
from psd_gs.files import JSON_BYTES, JSON_DEPTH, loads, locked, parse_yaml, printable, read_bounded, read_json, short


class Need(TypedDict):
    name: str


class Shape(Need, total=False):
    size: float | None
    count: int
    kind: Literal["a", "b", 3]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 2.0
    note: str | None = None


def test_what_fits_a_shape():
    text = '{"name": "é", "size": 2, "count": 3, "kind": "b", "parts": {"x": [1, 2.5]}, "more": [{"deep": null}]}'
    found = loads(text, Shape)
    assert found == {
        **{"name": "é", "size": 2.0, "count": 3, "kind": "b"},
        **{"parts": {"x": [1.0, 2.5]}, "more": [{"deep": None}]},
    }
    assert type(found["size"]) is float
    assert type(found["parts"]["x"][0]) is float
    assert loads('{"name": "", "size": null}', Shape) == {"name": "", "size": None}
    assert loads('{"name": "", "size": NaN}', Shape)["size"] is None
    assert loads('{"x": 1, "other": 5}', Point) == Point(1.0)
    assert loads('{"x": 1, "y": -1e-3, "note": "n"}', Point) == Point(1.0, -1e-3, "n")
    assert loads("[1, true, null, -9223372036854775808]", list[Any]) == [1, True, None, -(2**63)]
    assert loads(b"\xef\xbb\xbf{}", dict[str, Any]) == {}
    assert loads("[" * JSON_DEPTH + "]" * JSON_DEPTH, list[Any])


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("{}", Shape, "name is missing"),
        ("[]", Shape, r"expected fields by name, received \[\]"),
        ('{"name": 1}', Shape, "'name': expected a text, received 1"),
        ('{"name": "", "size": true}', Shape, "'size': expected a finite number or null, received True"),
        ('{"name": "", "size": "1"}', Shape, "'size': expected a finite number"),
        ('{"name": "", "size": 1e999}', Shape, "'size': expected a finite number"),
        ('{"name": "", "size": 1e101}', Shape, "'size': expected a finite number"),
        ('{"name": "", "size": ' + "9" * 400 + "}", Shape, "'size': expected a finite number"),
        ('{"name": "", "count": 1.0}', Shape, "'count': expected an integer of 64 bits, received 1.0"),
        ('{"name": "", "count": 9223372036854775808}', Shape, "'count': expected an integer of 64 bits"),
        ('{"name": "", "count": true}', Shape, "'count': expected an integer"),
        ('{"name": "", "count": ' + "9" * 5000 + "}", Shape, "4300 digits"),
        ('{"name": "", "kind": "c"}', Shape, "'kind': expected 'a' or 'b' or 3, received 'c'"),
        ('{"name": "", "kind": 3.0}', Shape, "'kind': expected 'a'"),
        ('{"name": "", "kind": []}', Shape, "'kind': expected 'a'"),
        ('{"name": "", "parts": {"x": [1, "y"]}}', Shape, "'parts': 'x': 1: expected a finite number, received 'y'"),
        ('{"name": "", "parts": {"x": {}}}', Shape, "'parts': 'x': expected a list"),
        ('{"name": "\\ud800"}', Shape, "half a surrogate pair"),
        ('{"name": "", "\\udfff": 1}', Shape, "half a surrogate pair"),
        ('{"name": "", "more": 99999999999999999999}', Shape, "'more': expected an integer of 64 bits"),
        ('{"name": "", "name": ""}', Shape, "a name that occurs twice"),
        ('{"name": "", "more": [{"a": 1, "a": 1}]}', Shape, "a name that occurs twice"),
        ("[" * 33 + "]" * 33, list[Any], "nested deeper than 32 levels"),
        ("[" * 100_000, list[Any], "nested deeper than 32 levels"),
        ('{"a":' * 50_000, dict[str, Any], "nested deeper than 32 levels"),
        ('{"y": 1}', Point, "x is missing"),
        ('{"x": 1, "note": {}}', Point, "'note': expected a text or null, received {}"),
        ("null", Point, "expected fields by name, received None"),
        ("", Point, "Expecting value"),
        ("{} {}", Point, "Extra data"),
        (b"\xff", Point, "can't decode"),
    ],
)
def test_what_does_not(text, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        loads(text, shape)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_json_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"name": 1}')
    with pytest.raises(FormatError, match=r"a\.json: 'name': expected a text, received 1\. The file is damaged"):
        read_json(path, Shape)
    path.write_bytes(b" " * JSON_BYTES + b"{}")
    with pytest.raises(FormatError, match="expected at most 4,194,304 bytes, received more"):
        read_json(path, Shape)
    with pytest.raises(InputError, match=r"cannot read .*nothing\.json: No such file"):
        read_json(tmp_path / "nothing.json", Shape)
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path / "a\0b", Shape)
    path.write_text('{"name": "x"}')
    (tmp_path / "link.json").symlink_to(path)
    assert read_json(tmp_path / "link.json", Shape) == {"name": "x"}


def test_only_regular_files_are_read(tmp_path):
    """A pipe would wait forever, and some devices never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("pipe", "link", "loop", ".", "/dev/null"):
        with pytest.raises(InputError, match="cannot read"):
            read_bounded(tmp_path / place, 10)
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "pipe")


def test_a_part_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "a", 10) == b"0123456789"
    assert read_bounded(tmp_path / "a", 3, start=7) == b"789"
    assert read_bounded(tmp_path / "a", 3, start=20) == b""
    with pytest.raises(FormatError):
        read_bounded(tmp_path / "a", 9)


BOMB = "\n".join(["a: &a0 [x, x]", *(f"b{i}: &a{i + 1} [*a{i}, *a{i}]" for i in range(40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "an alias, line 2"),
        ("a: &x [*x]", "an alias, line 1"),
        ("[" * 50_000, "(nested too deep|exceeded maximum nesting depth), line 1"),
        ("\n".join(" " * i + "a:" for i in range(100)), "nested too deep"),
        ("a: 1\nb: 2\na: 3", "a key that occurs twice, line 1"),
        ("a: {b: 1, b: 1}", "a key that occurs twice"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: " + "1:" * 5000 + "1", "a number that long"),
        ("a: 0x" + "f" * 5000, "a number that long"),
        ("a: 0x" + "f" * 40, "an integer of 64 bits"),
        ("a: 2020-01-01", "received datetime"),
        ("a: !!set {b}", "received {'b'}"),
        ("1: 2", "expected a text, received 1"),
        ("? [a]\n: b", "unhashable key"),
        ("a: !!int x", "invalid literal"),
        ("a: !!float ''", "IndexError"),
        ("a: !!bool x", "KeyError"),
        ('a: "\\ud800"', "half a surrogate pair|invalid Unicode character"),
        ("a: b: c", "not allowed (here|in this context), line 1"),
        (b"a: \xff", "invalid (start byte|leading UTF-8 octet)"),
    ],
)
def test_yaml_that_is_refused(text, message):
    """In the words of PyYAML or of libyaml."""
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_yaml_that_is_read():
    assert parse_yaml("a: [1, 1e3, .inf, x, true, ~]\nb: {c: &here 2}\n<<: {d: 4}") == {
        **{"a": [1, "1e3", float("inf"), "x", True, None]},
        **{"b": {"c": 2}, "d": 4},
    }
    assert parse_yaml("") is None
    assert parse_yaml("é: " + "x" * 5000) == {"é": "x" * 5000}


def test_locks_hold_others_off(tmp_path):
    order = []
    path = tmp_path / "a"
    with path.open("ab+") as mine, locked(mine):

        def other() -> None:
            with path.open("ab+") as its, locked(its):
                order.append("other")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("mine")
    thread.join(20)
    assert order == ["mine", "other"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks that are shared")
def test_only_who_is_alone_sweeps_a_shared_folder(tmp_path):
    part, deeper = tmp_path / ".index.0123abcd.part.html", tmp_path / "run" / ".splat.0123abcd.part.ply"
    deeper.parent.mkdir()
    deeper.touch()
    with files.sharing([tmp_path, tmp_path / "nowhere"], tmp_path / "token"):
        part.touch()
        with files.sharing([tmp_path], tmp_path / "token"):
            assert part.exists()
    with files.sharing([tmp_path], tmp_path / "token"):
        assert not part.exists()
    assert deeper.exists()


def test_messages_stay_short_and_harmless():
    assert len(short({"x" * 9000: ["y" * 9000] * 9000})) < 400
    assert short("\x1b[31m") == "'\\x1b[31m'"
    assert printable("a\x1b[2Jb\u202ec é") == "a\\x1b[2Jb\\u202ec é"


def test_text_that_utf8_lacks_is_written(tmp_path):
    files.write_atomic(tmp_path / "a", "a\udcffb")
    assert Path(tmp_path / "a").read_bytes() == b"a?b"
