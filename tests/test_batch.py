"""Many prompts on workers that die: nothing lost, nothing done twice, failures told at the end."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import batch_workers
import pytest
import torch
from painted import PaintedPrior, RedReward, tiny_config
from PIL import Image

from psd_gs import cli, models, runs
from psd_gs.batch import index
from psd_gs.batch.index import Index, write_index
from psd_gs.batch.local import LocalPool
from psd_gs.batch.queue import TRIES, Journal, run_all
from psd_gs.batch.tasks import (
    EMBEDDINGS,
    Outcome,
    Task,
    Worker,
    make_tasks,
    read_prompts,
    run_task,
    share_embeddings,
    steps_done,
    unfinished,
)
from psd_gs.cli.batch import Batch
from psd_gs.cli.run_options import parse_shard
from psd_gs.config import Config, make_config, to_dict
from psd_gs.errors import BackendError, ConfigError, InputError, OutputError
from psd_gs.export.formats import load
from psd_gs.files import read_picture
from psd_gs.job import LOCK, Job
from psd_gs.pipeline import TextTo3DPipeline


@pytest.fixture
def painted() -> TextTo3DPipeline:
    return TextTo3DPipeline(PaintedPrior(), RedReward())


def tasks_in(folder: Path, *prompts: str, **options) -> list[Task]:
    return make_tasks(tiny_config(steps=4, **options), prompts, folder)


# --- prompts and tasks -----------------------------------------------------------------------------------------------


def test_prompts(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa corgi\n# not this\n\n  a  red\tcube \na corgi\nein Bär\n", encoding="utf-8")
    assert read_prompts(path) == ["a corgi", "a red cube", "ein Bär"]
    path.write_text("# nothing\n\n")
    with pytest.raises(InputError, match="received no prompts"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="one prompt per line"):
        read_prompts(path)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "none.txt")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"# nothing")))
    with pytest.raises(InputError, match=r"^standard input: expected one prompt"):
        read_prompts("-")


def test_every_prompt_has_its_own_folder(tmp_path):
    tasks = tasks_in(tmp_path, "a dog", "a dog!", "A dog", "日本", "犬")
    assert len({task.folder for task in tasks}) == 5
    assert tasks[0].folder == tmp_path.resolve() / "a-dog-0"


def test_shards_divide_the_work():
    work = list(range(11))
    parts = [work[i::n] for i, n in (parse_shard(f"{i}/3") for i in range(3))]
    assert sorted(number for part in parts for number in part) == work
    for bad in ("3/3", "1", "a/b", "-1/3", "0/0", "1/2/3"):
        with pytest.raises(ConfigError, match="--shard: expected i/n"):
            parse_shard(bad)


def test_a_run_goes_on_and_is_left_when_finished(tmp_path, painted, quick_files):
    (task,) = tasks_in(tmp_path, "a red ball")
    trainer = painted.trainer(task.config, task.folder)
    trainer.save_checkpoint()
    runs.write_yaml(task.folder / "config.yaml", to_dict(task.config))
    steps = trainer.run()
    next(steps)
    trainer.save_checkpoint()
    next(steps)  # after the checkpoint: comes again
    assert steps_done(task.folder) == 2
    scores = run_task(painted, task)
    assert steps_done(task.folder) == 4
    calls = painted.prior.calls
    assert run_task(painted, task) == pytest.approx(scores, abs=1e-4)
    assert painted.prior.calls == calls
    straight = replace(task, folder=tmp_path / "straight")
    run_task(painted, straight)
    assert torch.equal(load(task.folder / "splat.ply").means, load(straight.folder / "splat.ply").means)
    with pytest.raises(OutputError, match=r"holds a run that differs in seed\. Choose another"):
        run_task(painted, replace(task, config=replace(task.config, seed=1)))


def test_a_worker_tells_what_is_wrong(tmp_path, painted, caplog):
    good, bad = tasks_in(tmp_path, "a red ball", "123")
    worker = Worker("cpu")
    worker.pipeline = painted
    assert "expected a prompt in words" in (worker.run(bad).error or "")
    worker.pipeline = TextTo3DPipeline(None, RedReward())  # a bug
    assert (worker.run(good).error or "").startswith("AttributeError")
    assert not worker.run(good).fatal
    unknown = replace(good, config=replace(good.config, prior="no such prior"))
    assert Worker("cpu").run(unknown).fatal


def test_embeddings_are_computed_once_for_all_workers(tmp_path):
    asked: list[str] = []

    class Counting(PaintedPrior):
        def embed(self, prompts):
            asked.extend(prompts)
            return super().embed(prompts)

    one, other, foreign = Counting(), Counting(), Counting()
    share_embeddings(one, "models", tmp_path / EMBEDDINGS)
    share_embeddings(other, "models", tmp_path / EMBEDDINGS)
    share_embeddings(foreign, "other models", tmp_path / EMBEDDINGS)
    first = one.embed(["a", "bb", "a"])
    assert torch.equal(other.embed(["a", "bb", "a"]).sequence, first.sequence)
    assert torch.equal(first.sequence, PaintedPrior().embed(["a", "bb", "a"]).sequence)
    assert asked == ["a", "bb"]
    foreign.embed(["a"])
    assert asked == ["a", "bb", "a"]


def test_what_a_process_killed_at_its_end_left_is_cleared_away(tmp_path):
    done, begun, left = tasks_in(tmp_path, "a done ball", "a begun ball", "a left ball")
    for task in (done, left):
        task.folder.mkdir()
        (task.folder / runs.ASSET).touch()
        (task.folder / runs.RECORD).write_text("{}")
    (left.folder / LOCK).touch()
    assert unfinished([done, begun, left]) == [begun]
    assert sorted(path.name for path in left.folder.iterdir()) == [runs.RECORD, runs.ASSET]
    with Job(left.folder, left.config):
        assert unfinished([left]) == []
        assert (left.folder / LOCK).exists()


# --- the queue -------------------------------------------------------------------------------------------------------


class Scripted:
    """A pool in which tasks end as told, ``lost`` and ``busy`` as often as given."""

    def __init__(
        self,
        size: int,
        lost: dict[str, int],
        failing: tuple[str, ...] = (),
        fatal: bool = False,
        busy: dict[str, int] | None = None,
    ) -> None:
        self.size, self.lost, self.failing, self.fatal = size, Counter(lost), failing, fatal
        self.busy = Counter(busy or {})
        self.started: list[str] = []
        self.running: dict[int, Task] = {}

    def start(self, slot: int, task: Task) -> None:
        assert slot not in self.running
        self.running[slot] = task
        self.started.append(task.config.prompt)

    def wait(self, seconds: float) -> list[tuple[int, Outcome | None]]:
        slot = max(self.running)
        prompt = self.running.pop(slot).config.prompt
        if self.lost[prompt] > 0:
            self.lost[prompt] -= 1
            return [(slot, None)]
        if self.busy[prompt] > 0:
            self.busy[prompt] -= 1
            return [(slot, Outcome(busy=True))]
        error = "no" if prompt in self.failing or self.fatal else None
        return [(slot, Outcome(None if error else {"mini": 1.0}, error, self.fatal))]

    def close(self) -> None: ...


def test_lost_tasks_are_done_again_and_failures_stop_nobody(tmp_path):
    names = [f"prompt {c}" for c in "abcdefg"]
    tasks = tasks_in(tmp_path, *names)
    pool = Scripted(3, {"prompt b": 1, "prompt e": TRIES}, failing=("prompt c",))
    ended = []
    done = run_all(tasks, pool, Journal(tmp_path / "batch.jsonl"), lambda task, outcome: ended.append(task.folder))
    assert [task.config.prompt for task, _ in done] == names
    assert Counter(pool.started) == Counter(names) + Counter({"prompt b": 1, "prompt e": TRIES - 1})
    errors = {task.config.prompt: outcome.error for task, outcome in done if outcome.error}
    assert errors == {
        "prompt c": "no",
        "prompt e": "its worker died 3 times; out of memory? Try fewer --workers.",
    }
    assert len(ended) == len(set(ended)) == 7
    events = Counter(json.loads(line)["event"] for line in (tmp_path / "batch.jsonl").read_text().splitlines())
    assert events == {"started": 10, "lost": 4, "finished": 5, "failed": 2}


def test_what_another_process_works_on_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("psd_gs.batch.queue.BUSY", 0.05)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    tasks = tasks_in(tmp_path, "a held ball", "a free ball")
    pool = Scripted(1, {}, busy={"a held ball": 2})
    done = run_all(tasks, pool, Journal(tmp_path / "batch.jsonl"))
    assert [outcome.error for _, outcome in done] == [None, None]
    assert pool.started == ["a held ball", "a free ball", "a held ball", "a held ball"]
    assert caplog.text.count("another process works on it: waiting") == 1
    with Job(tasks[0].folder, tasks[0].config):
        worker = Worker("cpu")
        worker.pipeline = object()
        assert worker.run(tasks[0]) == Outcome(busy=True)


def test_models_that_cannot_be_loaded_end_it(tmp_path):
    with pytest.raises(BackendError, match="no worker can begin: no"):
        run_all(tasks_in(tmp_path, "a b", "c d"), Scripted(2, {}, fatal=True), lambda *event: None)


# --- the page --------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name == "href"]
        self.sources += [value for name, value in attrs if name == "src"]


def test_the_index(tmp_path, painted, quick_files):
    tasks = tasks_in(tmp_path, "a <b>bold</b> ball", "a cube", "a cone")
    run_task(painted, tasks[0])
    path = write_index(tmp_path, tasks, {tasks[1].folder: "<script>"})
    text = path.read_text(encoding="utf-8")
    assert "1 of 3 prompts" in text
    assert "a &lt;b&gt;bold" in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "a cone: waiting" in text
    found = Links(text)
    assert len(found.links) >= 4
    assert all((tmp_path / link).is_file() for link in found.links)
    assert found.sources
    assert all(source.startswith("data:image/jpeg") for source in found.sources)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def many(root: Path, count: int) -> list[Task]:
    """Finished runs as far as the page looks."""
    picture = png(Image.effect_noise((256, 64), 80))
    tasks = [Task(tiny_config(prompt=f"ball {i}"), root / f"ball-{i}") for i in range(count)]
    for task in tasks:
        task.folder.mkdir(parents=True)
        (task.folder / "preview.png").write_bytes(picture)
        (task.folder / "psd_gs.json").write_text('{"scores": {"mini": 0.25}}')
        (task.folder / "splat.ply").touch()
    return tasks


def test_what_the_index_shows_is_kept(tmp_path, monkeypatch):
    tasks = many(tmp_path, 100)
    page = Index(tmp_path, tasks)
    text = page.write({}).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == text.count("mini 0.250") == 100
    assert len(list((tmp_path / ".thumbnails").iterdir())) == 100
    decoded = []
    monkeypatch.setattr(index, "read_picture", lambda path: decoded.append(path) or read_picture(path))
    assert Index(tmp_path, tasks).write({}).read_text(encoding="utf-8") == text
    assert decoded == []
    monkeypatch.setattr(runs, "read_record", None)  # nothing of what is unchanged is read again
    assert page.write({}).read_text(encoding="utf-8") == text
    monkeypatch.undo()
    (tasks[7].folder / "psd_gs.json").write_text("[" * 100_000)
    (tasks[7].folder / "mesh.glb").touch()
    text = page.write({}).read_text(encoding="utf-8")
    assert text.count("mini 0.250") == 99
    assert "its scores cannot be read" in text
    (tasks[8].folder / "psd_gs.json").write_text('{"scores": {"mini": NaN}}')  # no verdict
    (tasks[8].folder / "mesh.glb").touch()
    assert "mini -<" in page.write({}).read_text(encoding="utf-8")
    assert "ball-7/mesh.glb" in text


@pytest.mark.full
def test_the_index_of_ten_thousand_runs_costs_seconds(tmp_path):
    """Of the processor; each thumbnail is made once, when its run is done."""
    tasks = many(tmp_path, 10_000)
    Index(tmp_path, tasks).write({})

    def seconds(page: Index) -> float:
        start = time.process_time()
        text = page.write({}).read_text(encoding="utf-8")
        assert text.count("mini 0.250") == 10_000
        return time.process_time() - start

    page = Index(tmp_path, tasks)
    assert seconds(page) < 15  # after a restart: all records and thumbnails are read
    assert seconds(page) < 5  # while the batch runs


@pytest.mark.parametrize("data", ["bomb", b"", b"\x89PNG", b"<svg/>", None])
def test_a_picture_that_cannot_be_shown_is_a_grey_tile(data, tmp_path):
    (task,) = many(tmp_path, 1)
    preview = task.folder / "preview.png"
    if data is None:
        preview.unlink()
    else:
        preview.write_bytes(png(Image.new("1", (12_000, 12_000))) if data == "bomb" else data)
    source = Links(write_index(tmp_path, [task], {}).read_text(encoding="utf-8")).sources[0]
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as tile:
        assert tile.convert("RGB").getcolors() == [(400 * 100, (128, 128, 128))]


def test_the_index_is_written_beside_the_queue(tmp_path, monkeypatch):
    page, go = Index(tmp_path, many(tmp_path, 2)), threading.Event()
    monkeypatch.setattr(index, "read_picture", lambda path: go.wait() and read_picture(path))
    page.refresh({})
    assert page._thread is None  # too soon
    monkeypatch.setattr(index, "SECONDS", 0.0)
    page.refresh({})
    thread = page._thread
    page.refresh({})
    assert page._thread is thread  # still at it
    assert not (tmp_path / "index.html").exists()
    go.set()
    thread.join()
    assert "2 of 2 prompts" in (tmp_path / "index.html").read_text(encoding="utf-8")
    page.root = tmp_path / "nowhere"
    page._try({})  # is told, and ends nothing


# --- for real --------------------------------------------------------------------------------------------------------


def check_results(root: Path, tasks: list[Task]) -> None:
    """Every run is finished, once, with each step once."""
    for task in tasks:
        assert runs.is_finished(task.folder), task.folder
        rows = [json.loads(line)["step"] for line in (task.folder / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(1, task.config.steps + 1))
    events = [json.loads(line) for line in (root / "batch.jsonl").read_text().splitlines()]
    finished = Counter(event["run"] for event in events if event["event"] == "finished")
    assert finished == Counter(task.folder.name for task in tasks)


def kill_one(running, killed: list[int], process_of) -> None:
    """End the first worker whose run has begun, without warning, once."""
    for slot, task in running.items():
        if not killed and steps_done(task.folder):
            killed.append(process_of(slot))
            os.kill(killed[0], getattr(signal, "SIGKILL", signal.SIGTERM))


@pytest.mark.full
def test_a_killed_process_loses_nothing(tmp_path, painted, quick_files):
    tasks = make_tasks(tiny_config(steps=8), ["a red ball", "a ball", "a round ball"], tmp_path)
    pool = LocalPool(["cpu", "cpu"], threads=1, prepare=batch_workers.paint)
    killed: list[int] = []
    try:
        done = run_all(
            tasks,
            pool,
            Journal(tmp_path / "batch.jsonl"),
            on_wait=lambda running: kill_one(running, killed, lambda slot: pool.workers[slot][0].pid),
        )
    finally:
        pool.close()
    assert killed
    assert not [outcome.error for _, outcome in done if outcome.error]
    check_results(tmp_path, tasks)
    events = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    (lost,) = (event["run"] for event in events if event["event"] == "lost")
    task = next(task for task in tasks if task.folder.name == lost)
    run_task(painted, replace(task, folder=tmp_path / "straight"))
    assert torch.equal(load(task.folder / "splat.ply").means, load(tmp_path / "straight" / "splat.ply").means)


@pytest.mark.parametrize(
    ("kind", "there", "prior", "device", "workers"),
    [
        ("cuda", 3, "mvdream", "auto", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", 3, "mvdream", "cuda:1", ("cuda:1",)),
        ("xpu", 2, "mvdream", "auto", ("xpu:0", "xpu:1")),
        ("mps", 1, "mvdream", "auto", ("mps",)),
        ("mps", 1, "mini", "auto", ("cpu",)),
    ],
)
def test_a_worker_for_each_gpu(monkeypatch, kind, there, prior, device, workers):
    monkeypatch.setattr(models, "count", lambda of: there * (of == kind))
    pool = Batch(prompts=Path("prompts.txt"))._pool(Config(prior=prior, device=device), 9)
    assert pool.devices == workers


@pytest.mark.full
def test_the_command(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(["a red cube", "123", "a corgi"]))
    arguments = ["batch", str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path / "out"), "--preset", "draft"]
    arguments += ["--steps", "2", "--device", "cpu", "--prior", "mini", "--workers", "2"]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("failed: 123: expected a prompt in words")
    assert lines[-2].endswith("index.html")
    config = make_config("draft", "mini", {"steps": 2})
    check_results(tmp_path / "out", make_tasks(config, ["a red cube", "a corgi"], tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("splat.ply")}
    (tmp_path / "prompts.txt").write_text("\n".join(["a red cube", "a corgi"]))
    cli.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("splat.ply")} == before
    assert "2 of 2 prompts" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.full
def test_ray_with_a_killed_worker(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where its workers find batch_workers
    from psd_gs.batch.cluster import RayPool

    tasks = make_tasks(tiny_config(steps=8), ["a red ball", "a ball", "a round ball"], tmp_path)
    pool = RayPool("local", workers=2, device="cpu", threads=1, prepare=batch_workers.paint)
    killed: list[int] = []

    def process_of(slot: int) -> int:
        import psutil

        started = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("ray::Worker") or "ray::Worker" in " ".join(child.cmdline())
        ]
        return started[0].pid

    try:
        done = run_all(
            tasks,
            pool,
            Journal(tmp_path / "batch.jsonl"),
            on_wait=lambda running: kill_one(running, killed, process_of),
        )
    finally:
        pool.close()
    assert not ray.is_initialized()
    assert killed
    assert not [outcome.error for _, outcome in done if outcome.error]
    check_results(tmp_path, tasks)
    events = Counter(json.loads(line)["event"] for line in (tmp_path / "batch.jsonl").read_text().splitlines())
    assert events["lost"] >= 1
    assert events["finished"] == 3
