"""Hostile inputs of every kind, and one way to try them: our error or a sound result, within bounded time and memory.

A :class:`Target` is something that reads what a stranger may have written: sound inputs of it, what reads them, and how
they are damaged. Damage is structured: it is done below the checksums and containers of a format, where its decoder is
reached. Everything is decided by the target's name and the number of the input, so that a failure can be repeated:
``attempt(target, number, folder)``.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import yaml

from psd_gs.errors import PsdGsError

SECONDS = 5.0
"""Processor time of one input."""
HANG = 60
"""Seconds after which an input is given up, even one that waits."""
MEMORY = 500 << 20
"""Bytes above what the process held before."""

Mutator = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """What is tried.

    Attributes:
        name: of the kind of input.
        file: name that an input is given, in a folder of its own.
        make: sound inputs; called with a folder to work in.
        read: called with the input's path; returns what came of it.
        mutators: kinds of damage.
        weight: inputs of this kind for one of each other.
        refuses: whether damage is an error; else what is damaged counts as missing.
        setup: what must lie beside the input; called once with the folder.
    """

    name: str
    file: str
    make: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path], object]
    mutators: Sequence[Mutator]
    weight: float = 1.0
    refuses: bool = True
    setup: Callable[[Path], None] = field(default=lambda folder: None)


class Hang(BaseException):
    """An input that took too long; no ``except Exception`` swallows it."""


def attempt(target: Target, number: int, folder: Path) -> str | None:
    """One damaged input; returns the message if it was refused.

    Raises:
        AssertionError: anything but one of our errors in one line, or beyond the bounds.
    """
    path = folder / target.file
    path.write_bytes(damaged(target, number, folder))
    return bounded(lambda: target.read(path), f"{target.name} {number}")


def damaged(target: Target, number: int, folder: Path) -> bytes:
    """The input of a number."""
    rng = Random(f"{target.name} {number}")
    data = rng.choice(_made(target, folder))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with suppress(*UNSOUND):  # what an earlier damage left need not be such a container any more
            data = rng.choice(target.mutators)(data, rng)
    return data


UNSOUND = (ValueError, KeyError, IndexError, OSError, EOFError, TypeError, AttributeError)
UNSOUND += (
    zlib.error,
    struct.error,
    zipfile.BadZipFile,
    yaml.YAMLError,
    NotImplementedError,
    RecursionError,
    OverflowError,
)

_inputs: dict[tuple[str, Path], Sequence[bytes]] = {}


def _made(target: Target, folder: Path) -> Sequence[bytes]:
    key = target.name, folder
    if key not in _inputs:
        target.setup(folder)
        _inputs[key] = target.make(folder)
    return _inputs[key]


def bounded(action: Callable[[], object], name: str) -> str | None:
    """Do it; returns the message of our error, if it raised one.

    Raises:
        AssertionError: another error, more than one line, or beyond the bounds.
    """
    message, failure = None, None
    with peak_memory() as memory, deadline(HANG):
        start = time.process_time()
        try:
            action()
        except PsdGsError as error:
            message = str(error)
        except (Exception, Hang) as error:
            failure = error
        seconds = time.process_time() - start
    if failure is not None:
        raise AssertionError(f"{name}: {type(failure).__name__}: {str(failure)[:300]}") from failure
    assert seconds < SECONDS, f"{name}: {seconds:.1f} s"
    assert memory[0] < MEMORY, f"{name}: {memory[0] / 2**20:.0f} MiB"
    assert message is None or (message and "\n" not in message), f"{name}: {message!r}"
    return message


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The list gets the most bytes held above what was held before; 0 where the system does not tell."""
    out = [0]
    status, before = Path("/proc/self/status"), psutil.Process().memory_info().rss
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")
    yield out
    if status.exists():
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        out[0] = int(peak[1]) * 1024 - before if peak else 0


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises :class:`Hang` in the main thread, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- damage ----------------------------------------------------------------------------------------------------------

_INTEGERS = (0, 1, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 10**8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 3.4e38, 1e-45, 1e-30)
_NUMBERS = (
    "0 -1 1 2 3 65536 4294967295 4294967296 -2147483648 99999999999999999999 1e400 -1e400 nan inf -inf 0x10 1e-400 "
    "00 1.5 NaN Infinity 100000000 " + "9" * 5000
).split(" ")
_WORDS = (
    "",
    " ",
    "\0",
    "\x1b[2J\x1b]0;x\a",
    "../../etc/passwd",
    "/dev/zero",
    "C:\\x",
    "\u202e",
    "é",
    "\udcff",
    "%s",
    "x" * 5000,
)


def flipped(data: bytes, rng: Random) -> bytes:
    """A few other bytes; half of them where the structure usually is."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(out), 400) if rng.random() < 0.5 else len(out))
        out[place] = rng.choice((rng.randrange(256), out[place] ^ 1 << rng.randrange(8)))
    return bytes(out)


def cut(data: bytes, rng: Random) -> bytes:
    """Without its end, or without a piece."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] if rng.random() < 0.5 else data[:a] + data[min(b, a + 64) :]


def repeated(data: bytes, rng: Random) -> bytes:
    """With a piece twice, or very often."""
    a = rng.randrange(len(data) + 1)
    piece = data[a : a + rng.randint(1, 64)]
    return data[:a] + piece * rng.choice((2, 2, 2, 1000)) + data[a:]


def numbered(data: bytes, rng: Random) -> bytes:
    """With another binary number somewhere, at a place where numbers are usually put."""
    kind = rng.choice("BHIQfd")
    size = struct.calcsize(kind)
    places = max(1, (min(len(data), 400) if rng.random() < 0.5 else len(data)) // size)
    place = size * rng.randrange(places)
    value = rng.choice(_FLOATS) if kind in "fd" else rng.choice(_INTEGERS) % (1 << 8 * size)
    return data[:place] + struct.pack("<" + kind, value) + data[place + size :]


BYTES = (flipped, cut, repeated, numbered)


def worded(data: bytes, rng: Random) -> bytes:
    """Text with another word or number."""
    text = data.decode("latin-1")
    places = [match.span() for match in re.finditer(r"[-+\w.]+", text)] or [(0, 0)]
    a, b = rng.choice(places)
    other = text[slice(*rng.choice(places))]
    word = rng.choice((rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_WORDS), other))
    return (text[:a] + word + text[b:]).encode("utf-8", "surrogateescape")


def lined(data: bytes, rng: Random) -> bytes:
    """Text with lines left out, exchanged, or repeated."""
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[a]
    elif kind == 1:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 2:
        lines[a:a] = [lines[b]] * rng.choice((1, 1, 500))
    else:
        lines[a] = rng.choice(_WORDS).encode("utf-8", "surrogateescape")
    return b"\n".join(lines)


TEXT = (worded, lined, flipped, cut)


_RAW = (
    "1e999",
    "9" * 5000,
    "[" * 2000 + "]" * 2000,
    '{"a":' * 1500 + "1" + "}" * 1500,
    '{"a":1,"a":2}',
    "-0",
    "01",
    "{",
)
"""What ``json.dumps`` would not write; ``<raw I>`` stands for it meanwhile."""
_ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e300, -1e308, 5e-324, math.nan, math.inf),
    *("", "x", "1", "nan", "\0", "\ud800", "\x1b[31m", "<script>", "../../..", "/dev/zero", "y" * 100_000),
    *(
        [],
        {},
        [[]],
        {"": None},
        [None],
        [["a", 1]],
        {"a": {"b": [1.5, "c"]}},
        [0] * 3000,
        {str(i): i for i in range(300)},
    ),
    *(f"<raw {i}>" for i in range(len(_RAW))),
)


def twisted(document: Any, rng: Random) -> Any:
    """JSON with one value replaced, removed, wrapped, repeated or renamed at a random place."""
    if isinstance(document, dict | list) and document and rng.random() < 0.85:
        out = document.copy()
        place = rng.choice(list(out) if isinstance(out, dict) else range(len(out)))
        kind = rng.random()
        if kind < 0.07:
            del out[place]
        elif kind < 0.12 and isinstance(out, dict):
            out[rng.choice((*_WORDS, *out))] = out.pop(place)
        elif kind < 0.16 and isinstance(out, list):
            out += [out[place]] * rng.choice((1, 1, 2000))
        else:
            out[place] = twisted(out[place], rng)
        return out
    return rng.choice(([document], {"a": document})) if rng.random() < 0.1 else rng.choice(_ODD)


def json_twisted(data: bytes, rng: Random) -> bytes:
    """A JSON document with damage to its values."""
    return _dumped(twisted(json.loads(data), rng))


def _dumped(document: Any) -> bytes:
    text = json.dumps(document)
    return re.sub(r'"<raw (\d+)>"', lambda match: _RAW[int(match[1])], text).encode("utf-8", "surrogatepass")


def line_twisted(data: bytes, rng: Random) -> bytes:
    """The same for one of several lines of JSON."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json_twisted(lines[place], rng)
    return b"\n".join([*lines, b""])


JSON = (json_twisted, json_twisted, json_twisted, worded, *BYTES)
LINES = (line_twisted, line_twisted, line_twisted, lined, worded, flipped, cut)


def yaml_twisted(data: bytes, rng: Random) -> bytes:
    """YAML with other values, and with what YAML has and JSON has not."""
    if rng.random() < 0.5:
        return _dumped(twisted(yaml.safe_load(data), rng))  # nearly all JSON is YAML
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    name, colon, _ = lines[place].partition(b":")
    lines[place] = name + (colon or b":") + b" " + rng.choice(_YAML)
    return b"\n".join(lines)


_YAML = (
    *(b"&a [x, *a]", b"*b", b"!!python/object/apply:os.system [id]", b"!!set {a}", b"!!binary aGk=", b"!!omap [a]"),
    *(b"0x" + b"f" * 3000, b"1:" * 2000 + b"1", b"9" * 5000, b"!!int x", b"!!timestamp x", b"!!bool x", b"!!float ''"),
    *(b"[" * 2000, b"- " * 500, b"{? [a] : b}", b"<<: [{a: 1}]", b"? a\n? a", b"|\n  a", b"!<tag:x> y", b"!!str 1"),
    *(
        b".nan",
        b".inf",
        b"~",
        b"\xff",
        b"\x00",
        b"2020-01-01",
        b"%YAML 2.0",
        b"---\na: b",
        b"'",
        b"@",
        b"`",
        b"%",
        b"- a",
    ),
)

YAML = (yaml_twisted, yaml_twisted, worded, lined, flipped, cut)


def gzipped(inner: Sequence[Mutator]) -> Mutator:
    """Damage below gzip, whose checksum fits again."""
    return lambda data, rng: gzip.compress(rng.choice(inner)(gzip.decompress(data), rng), 1, mtime=0)


def zipped(inner: dict[str, Sequence[Mutator]]) -> Mutator:
    """Damage to one member of an archive; ``inner`` by the end of its name."""

    def mutate(data: bytes, rng: Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        victim = rng.choice(sorted(members))
        if rng.random() < 0.06:
            members.pop(victim)
        elif rng.random() < 0.06:
            members[rng.choice(("../x", "/x", "a" * 300, victim.upper()))] = members.pop(victim)
        elif rng.random() < 0.1:
            members[victim] = members[rng.choice(sorted(members))]
        else:
            kinds = next((kinds for end, kinds in inner.items() if victim.endswith(end)), BYTES)
            members[victim] = rng.choice(kinds)(members[victim], rng)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        return out.getvalue()

    return mutate


def glb_unpacked(data: bytes) -> tuple[bytes, bytes]:
    """JSON and binary chunk of a GLB."""
    size = struct.unpack_from("<I", data, 12)[0]
    return data[20 : 20 + size], data[28 + size :]


def glb_packed(text: bytes, binary: bytes) -> bytes:
    """The opposite."""
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def glb_twisted(data: bytes, rng: Random) -> bytes:
    """A GLB whose document or binary chunk is damaged, and whose sizes fit again."""
    text, binary = glb_unpacked(data)
    if rng.random() < 0.75:
        text = json_twisted(text, rng)
    else:
        binary = rng.choice(BYTES)(binary, rng)
    return glb_packed(text, binary)


def headed(end: bytes) -> Mutator:
    """Damage to the text at the beginning, up to ``end``."""

    def mutate(data: bytes, rng: Random) -> bytes:
        head, mark, body = data.partition(end)
        return rng.choice((worded, worded, lined))(head, rng) + mark + body

    return mutate


def embedded(data: bytes, rng: Random) -> bytes:
    """Damage to the first JSON object that stands on a line of its own or ends one, as in comments."""
    begin = data.index(b"{")
    end = data.index(b"\n", begin)
    return data[:begin] + json_twisted(data[begin:end], rng) + data[end:]


def tensors_twisted(data: bytes, rng: Random) -> bytes:
    """A safetensors file whose header is damaged, and whose length fits again."""
    size = struct.unpack_from("<Q", data)[0]
    header = json_twisted(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]
