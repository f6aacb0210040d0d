"""Broken and hostile inputs of everything that is read: one clear error or a sound result, soon, in little memory."""

from __future__ import annotations

import io
import json
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from random import Random
from socket import create_connection

import numpy as np
import pytest
import torch
import trimesh
from fuzzing import (
    BYTES,
    JSON,
    LINES,
    TEXT,
    YAML,
    Mutator,
    Target,
    attempt,
    bounded,
    embedded,
    flipped,
    glb_twisted,
    gzipped,
    headed,
    json_twisted,
    tensors_twisted,
    worded,
    zipped,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ranked import make_runs
from safetensors.torch import save as save_tensors
from splats import asset
from test_eval_runs import ROWS

from psd_gs.asset import open_asset
from psd_gs.batch.tasks import read_prompts
from psd_gs.config import Config, from_dict, make_config, read_yaml, to_dict
from psd_gs.errors import FormatError
from psd_gs.evaluation.compare import results
from psd_gs.evaluation.report import write_report
from psd_gs.evaluation.suites import load_suite
from psd_gs.evaluation.sweep import collect
from psd_gs.export.formats import FORMATS, load, read_metadata, save
from psd_gs.export.open import open_splats
from psd_gs.files import read_picture
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.describe import describe_mesh
from psd_gs.ranking.answers import Answer, AnswerFile, append_answer
from psd_gs.ranking.server import Server, Session
from psd_gs.rewards.checkpoints import read_tensors as read_checkpoint
from psd_gs.rewards.fitted import KIND, load_head, read_base
from psd_gs.run_report import run_report
from psd_gs.trainer import read_tensors
from psd_gs.weights import components_of, read_header

QUICK, FULL = 1_000, 20_000
"""Inputs of all kinds together."""
LEAST = 24
"""Of each kind: of fewer, too few may be refused for what a test says of their share."""


# --- splats ----------------------------------------------------------------------------------------------------------

EXTENSIONS = [extension for extension in FORMATS if not extension.startswith((".usd", ".html"))]
"""See test_export_usd.py for .usd, whose reader is a process of its own; .html is not read."""


def sound(g: Gaussians) -> None:
    assert len(g) > 0
    assert all(bool(p.isfinite().all()) for p in g.params().values())
    assert (g.quats.norm(dim=1) > 0).all()


def read_splats(path: Path) -> None:
    sound(load(path))
    assert isinstance(read_metadata(path), dict)
    open_splats(path).describe()


def splat_files(folder: Path, extension: str) -> list[bytes]:
    out = []
    for i, (n, degree, options) in enumerate([(30, 1, {}), (300, 0, {}), (5, 3, {"version": 4})]):
        path = folder / f"original{i}{extension}"
        save(asset(n, degree), path, metadata={"prompt": "a cat"}, **(options if extension == ".spz" else {}))
        out.append(path.read_bytes())
    return out


INNER: dict[str, Sequence[Mutator]] = {
    ".spz": (gzipped(BYTES),),
    ".sog": (zipped({".json": JSON}),),
    ".glb": (glb_twisted,),
    ".ply": (headed(b"end_header"), headed(b"element"), embedded),
    ".compressed.ply": (headed(b"end_header"), headed(b"element"), embedded),
}
"""Damage that knows the format; half of all."""


def splat_target(extension: str) -> Target:
    inner = INNER.get(extension, BYTES)
    mutators = (*BYTES, *inner * (len(BYTES) // len(inner)))
    return Target(
        f"splats{extension}", f"a{extension}", partial(splat_files, extension=extension), read_splats, mutators
    )


# --- meshes ----------------------------------------------------------------------------------------------------------

MESHES = {
    ".ply": (headed(b"end_header"), *BYTES),
    ".glb": (glb_twisted, glb_twisted, *BYTES),
    ".gltf": (json_twisted, json_twisted, worded, flipped),
    ".obj": TEXT,
    ".stl": BYTES,
}


def boxes() -> list[trimesh.Trimesh]:
    plain = trimesh.creation.box((1, 2, 3))
    coloured = trimesh.creation.box((1, 2, 3))
    coloured.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (8, 4), np.uint8)
    textured = trimesh.creation.box((1, 2, 3))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4), "red"))
    textured.visual = trimesh.visual.TextureVisuals(uv=textured.vertices[:, :2], material=material)
    return [plain, coloured, textured]


def mesh_files(folder: Path, extension: str) -> list[bytes]:
    out = []
    for mesh in boxes():
        data = mesh.export(file_type=extension[1:])
        if extension == ".gltf":
            for name, content in data.items():
                (folder / name).write_bytes(content)
            data = data["model.gltf"]
        out.append(data.encode() if isinstance(data, str) else data)
    return out


def read_mesh(path: Path) -> None:
    sound(open_asset(path))
    describe_mesh(path)


def mesh_target(extension: str) -> Target:
    make = partial(mesh_files, extension=extension)
    return Target(f"mesh{extension}", f"a{extension}", make, read_mesh, MESHES[extension], 0.3)


# --- what runs and evaluations leave ----------------------------------------------------------------------------------

RECORD = {
    "prompt": "a cat",
    "seed": 3,
    "steps": 300,
    "steps_done": 300,
    "prior": "mini",
    "reward": "mini",
    "judge": "mini-judge",
    "models": {"prior": [{"name": "mini", "licence": "Apache-2.0"}]},
    "scores": {"mini": 0.5, "mini-judge": -1.25},
    "n_splats": 300,
    "bounds": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.5]],
}
STEPS = [
    {"step": i, "reward_win": 0.1 * i, "reward_lose": -0.1, "gap": 0.2, "base_norm": 2.0**i, "pair_norm": None}
    | {"seconds": 0.25, "seconds_render": 0.1, "gaussians": 100.0 + i, "score_mini": 0.5}
    for i in range(1, 40)
]
LOG = b"".join(json.dumps(row).encode() + b"\n" for row in STEPS)
BUDGET = {"kind": "equal-steps", "steps": {"psd": 5, "none": 5}, "seconds_per_step": {}, "measured_on": {"gpu": None}}


def dumped(document: object) -> bytes:
    return json.dumps(document).encode()


def a_run(folder: Path) -> None:
    """A folder of a run as far as its report looks."""
    (folder / "config.yaml").write_text("prompt: a cat\n")
    (folder / "psd_gs.json").write_bytes(dumped(RECORD))
    (folder / "metrics.jsonl").write_bytes(LOG)
    Image.new("RGB", (40, 10)).save(folder / "preview.png")


def an_evaluation(folder: Path) -> None:
    """A folder with the rows of an evaluation."""
    (folder / "budget.json").write_bytes(dumped(BUDGET))
    for i, row in enumerate(ROWS):
        place = folder / row["arm"] / str(i)
        place.mkdir(parents=True, exist_ok=True)
        (place / "eval.json").write_bytes(dumped(row))


def report_evaluation(path: Path) -> None:
    folder = path.parent if path.name == "budget.json" else path.parents[2]
    write_report(folder, results(collect(folder)))


def config_of(path: Path) -> None:
    from_dict(Config, read_yaml(path), str(path))


def head_of(path: Path) -> None:
    read_base(path.parent)
    load_head(path.parent)


def fitted(folder: Path) -> None:
    (folder / "config.json").write_bytes(dumped(FITTED))


def answers(folder: Path) -> list[bytes]:
    path = folder / "made.jsonl"
    for i in range(6):
        append_answer(path, Answer("a cat", f"a{i}", f"b{i}", (None, 1, 0, -2)[i % 4], "ada", 0, 1.5, "now"))
    return [path.read_bytes()]


def read_answer_file(path: Path) -> None:
    AnswerFile(path).look()


def picture_files(folder: Path) -> list[bytes]:
    out = []
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGBA"), ("GIF", "P")):
        stream = io.BytesIO()
        Image.effect_noise((24, 16), 90).convert(mode).save(stream, kind)
        out.append(stream.getvalue())
    return out


def pickles(folder: Path) -> list[bytes]:
    path = folder / "made.pt"
    torch.save({"state_dict": {"a.weight": torch.ones(3, 4), "b": torch.zeros(2)}}, path)
    return [path.read_bytes()]


FITTED = {"kind": KIND, "base": "mini"}
TENSORS = save_tensors({"mean": torch.zeros(5), "weight": torch.ones(5)}, {"step": "3"})
CONFIG = "".join(
    f"{name}: {json.dumps(value)}\n"
    for name, value in to_dict(make_config("draft", "mini", {"prompt": "a cat"})).items()
).encode()


def fixed(*data: bytes) -> Callable[[Path], list[bytes]]:
    return lambda folder: list(data)


def target(name: str, file: str, data: bytes, read: Callable, mutators: Sequence[Mutator], **options) -> Target:
    return Target(name, file, fixed(data), read, mutators, **options)


SAFETENSORS = (tensors_twisted, *BYTES)
PIPELINE = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
SUITE = b"[group]\na cat | a dog | a cow\na cube\n# no\n"
FILES = [
    target("record", "psd_gs.json", dumped(RECORD), lambda path: run_report(path.parent), JSON, setup=a_run),
    target("log", "metrics.jsonl", LOG, lambda path: run_report(path.parent), LINES, setup=a_run),
    target("options", "config.yaml", CONFIG, config_of, YAML, weight=0.3),  # slow to parse
    target(
        "row",
        "psd/0/eval.json",
        dumped(ROWS[0]),
        report_evaluation,
        JSON,
        setup=an_evaluation,
        refuses=False,
        weight=0.5,
    ),
    target("budget", "budget.json", dumped(BUDGET), report_evaluation, JSON, setup=an_evaluation, weight=0.3),
    Target("answers", "a.jsonl", answers, read_answer_file, LINES),
    target("fitted", "config.json", dumped(FITTED), lambda path: read_base(path.parent), JSON, refuses=False),
    target("head", "head.safetensors", TENSORS, head_of, SAFETENSORS, setup=fitted),
    target("checkpoint", "a.safetensors", TENSORS, read_tensors, SAFETENSORS),
    target("weights", "a.safetensors", TENSORS, lambda path: read_checkpoint(path, "x"), SAFETENSORS, weight=0.5),
    target("header", "a.safetensors", TENSORS, read_header, SAFETENSORS, weight=0.5),
    Target("pickle", "a.pt", pickles, lambda path: read_checkpoint(path, "x"), (zipped({}), *BYTES), 0.5),
    target("pipeline", "model_index.json", dumped(PIPELINE), lambda p: components_of(p.parent), JSON, weight=0.5),
    target("sidecar", "a.splat.json", dumped(RECORD), lambda p: read_metadata(p.with_suffix("")), JSON, refuses=False),
    Target("picture", "a.png", picture_files, read_picture, BYTES),
    target("suite", "a.txt", SUITE, lambda path: load_suite(str(path)), TEXT, weight=0.3),
    target("prompts", "a.txt", SUITE, read_prompts, TEXT, weight=0.3),
]


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp("ranked")
    return Session([make_runs(folder / "outputs", ["a cube"], each=3)], folder / "pairs.jsonl", "ada")


def exchanged(server: Server, data: bytes) -> tuple[int, bytes] | None:
    """Status and body of the reply to what is sent; None if the connection was closed instead."""
    with create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(data)
            with suppress(OSError):  # it may be closed already
                connection.shutdown(1)
            reply = HTTPResponse(connection)
            reply.begin()
            return reply.status, reply.read()
        except (HTTPException, ConnectionError):
            return None


def page_input(session: Session, server: Server, number: int) -> None:
    """One damaged request: never a reply that is not meant, and never a second one for what follows it."""
    rng = Random(f"page {number}")
    key = next(iter(session.pairs))
    body = json.dumps({"key": key, "verdict": "skip", "seconds": 1.5}).encode()
    path = f"/{server.token}/{rng.choice(('answer', 'pair', '', f'film/{key}/left'))}"
    if rng.random() < 0.5:
        body = rng.choice(JSON)(body, rng)
    method = "POST" if rng.random() < 0.7 else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nOrigin: http://127.0.0.1:{server.port}\r\n"
    head += f"Range: bytes=0-9\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    data = head.encode() + body
    if rng.random() < 0.5:
        data = rng.choice((*TEXT, *BYTES))(data, rng)
    answer = exchanged(server, data)
    assert answer is None or answer[0] in (200, 206, 400, 403, 404, 408, 409, 414, 416, 431, 501, 505), answer


@pytest.fixture
def server(session, caplog):
    server = Server(session)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    assert [record for record in caplog.records if record.exc_info] == []  # no request made the server stumble


# --- the campaigns ---------------------------------------------------------------------------------------------------

TARGETS = [*map(splat_target, EXTENSIONS), *map(mesh_target, MESHES), *FILES]
PAGE = 1.0
_WHOLE = sum(target.weight for target in TARGETS) + PAGE


def share(weight: float, count: int) -> int:
    return max(LEAST, round(count * weight / _WHOLE))


def campaign(target: Target, count: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All inputs of a kind; tells of every failure. Whatever is said can be shown on one line."""
    (folder / target.file).parent.mkdir(parents=True, exist_ok=True)
    refused, failures = 0, []
    for number in range(count):
        try:
            refused += attempt(target, number, folder) is not None
        except AssertionError as error:
            failures.append(ascii(error))
        failures += [ascii(said) for said in caplog.messages if not said.isprintable()]
        caplog.clear()
    assert not failures, f"{len(failures)} of {count}:\n" + "\n".join(failures[:20])
    assert not target.refuses or refused > 0.1 * count, f"the damage does no damage: {refused} of {count} refused"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_inputs(target, tmp_path, caplog):
    campaign(target, share(target.weight, QUICK), tmp_path, caplog)


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_many_damaged_inputs(target, tmp_path, caplog):
    campaign(target, share(target.weight, FULL), tmp_path, caplog)


def pages(session: Session, server: Server, count: int) -> None:
    for number in range(count):
        bounded(partial(page_input, session, server, number), f"page {number}")


def test_damaged_requests(session, server):
    pages(session, server, share(PAGE, QUICK))


@pytest.mark.full
def test_many_damaged_requests(session, server):
    pages(session, server, share(PAGE, FULL))


# --- splats: every place where a file can end, and whatever begins like one -------------------------------------------


def refused(path: Path) -> bool:
    return bounded(lambda: read_splats(path), path.name) is not None


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_truncation(tmp_path, extension):
    """Cut at the ends of all the structures, and at many places between them."""
    data, path = splat_files(tmp_path, extension)[0], tmp_path / f"cut{extension}"
    step = max(1, len(data) // 50)
    for length in sorted({*range(40), *range(40, len(data), step), *range(len(data) - 20, len(data))}):
        path.write_bytes(data[:length])
        whole = extension == ".splat" and length % 32 == 0 and length > 0  # nothing tells such a file from a whole one
        assert refused(path) != whole


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.binary(max_size=2000))
def test_arbitrary_bytes(tmp_path, extension, data):
    path = tmp_path / f"a{extension}"
    for start in FORMATS[extension].starts or (b"",):
        path.write_bytes(start + data)
        refused(path)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_describe_reports_the_same_error(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"\x00" * 7)
    with pytest.raises(FormatError):
        open_splats(path).describe()


# --- bombs: small files that would unpack to something huge -----------------------------------------------------------


def test_gzip_bomb(tmp_path):
    squeeze = zlib.compressobj(9, wbits=31)
    count = 50_000_000
    data = squeeze.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, count, 0, 12, 0, 0))
    for _ in range(20):
        data += squeeze.compress(bytes(1 << 20))
    (tmp_path / "a.spz").write_bytes(data + squeeze.flush())
    assert refused(tmp_path / "a.spz")


def test_zstd_bomb(tmp_path):
    from zstandard import ZstdCompressor

    stream = ZstdCompressor().compress(bytes(200 << 20))
    for count in (10_000_000, 10, 100):
        sizes = [count * width for width in (9, 1, 3, 3, 4)]
        head = struct.pack("<IIIBBBBI12x", 0x5053474E, 4, count, 0, 12, 0, 5, 32)
        head += b"".join(struct.pack("<QQ", len(stream), size) for size in sizes)
        (tmp_path / "a.spz").write_bytes(head + stream * 5)
        assert refused(tmp_path / "a.spz")


def test_zip_bomb(tmp_path):
    save(asset(50, 0), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        with zipfile.ZipFile(tmp_path / "b.sog", "w", zipfile.ZIP_DEFLATED) as archive:
            for other, data in members.items():
                archive.writestr(other, data + (b" " * (20 << 20) if other == name else b""))
        refused(tmp_path / "b.sog")


def test_picture_of_absurd_size(tmp_path):
    save(asset(50, 0), tmp_path / "a.sog")
    out = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(out, "WEBP", lossless=True, method=0)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive, zipfile.ZipFile(tmp_path / "b.sog", "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, out.getvalue() if name == "quats.webp" else archive.read(name))
    assert refused(tmp_path / "b.sog")


def picture(kind: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1" if kind == "PNG" else "L", (side, side)).save(out, kind, method=0)  # of WebP: the quickest
    return out.getvalue()


@pytest.mark.parametrize(("kind", "side"), [("PNG", 12_000), ("GIF", 6_000), ("WEBP", 6_000)])
def test_picture_bombs(tmp_path, kind, side):
    (tmp_path / "a.png").write_bytes(picture(kind, side))
    assert "pixels" in (bounded(lambda: read_picture(tmp_path / "a.png"), "bomb") or "")
