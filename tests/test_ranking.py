"""Pairs, answers and the page: nothing lost, nothing asked twice, nothing told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from ranked import Client, annotate, make_runs

from psd_gs.cli.rank import Rank
from psd_gs.errors import ConfigError, FormatError, InputError, OutputError
from psd_gs.ranking.answers import Answer, AnswerFile, agreement, append_answer, krippendorff_alpha, read_answers
from psd_gs.ranking.pairs import MOST, find_runs, folder_of, name_of, plan
from psd_gs.ranking.server import Server, Session


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("ranked") / "outputs", ["a cube", "a cone"], each=3)


@pytest.fixture
def session(outputs, tmp_path) -> Session:
    return Session([outputs], tmp_path / "pairs.jsonl", "ada")


def test_every_pair_of_a_prompt_once(outputs, session):
    shown = sorted((pair.prompt, *sorted((pair.left, pair.right))) for pair in session.pairs.values())
    names = {prompt: [name_of(run, session.path) for run in runs] for prompt, runs in find_runs([outputs]).items()}
    assert shown == sorted((prompt, *sorted(pair)) for prompt, some in names.items() for pair in combinations(some, 2))
    assert len(shown) == 6


def test_order_and_sides_are_drawn():
    names = {f"prompt {i}": [f"{i}/{j}" for j in range(4)] for i in range(30)}
    one, same, other = (plan(names, [], "ada", seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert {pair.key for pair in one} == {pair.key for pair in other}
    swapped = sum(pair.left > pair.right for pair in one)
    assert 65 < swapped < 115  # of 180: four standard deviations
    assert one != plan(names, [], "bob", seed=0)
    again = plan(names, [], "ada", repeats=5)[180:]
    assert [(pair.left, pair.right, pair.repeat) for pair in again] == [(p.right, p.left, 1) for p in one[:5]]


def test_answers_are_taken_once(session):
    with Client(session) as client:
        first = client.pair()["pair"]["key"]
        status, state = client.answer(first, "5")
        assert (status, state["done"], state["total"]) == (200, 1, 6)
        assert state["pair"]["key"] != first
        status, state = client.answer(first, "1")
        assert (status, state["done"]) == (409, 1)
        for key, wanted in ((state["pair"]["key"], "6"), (state["pair"]["key"], "")):
            assert client.answer(key, wanted)[0] == 400
        for body in (b"{", b"[]", b"{}", b'{"key": 1}', b"null", b"\xff"):
            assert client.raw("answer", body)[0] == 400
        assert client.raw("answer", b"x" * 20_000)[0] == 400
        assert client.pair()["done"] == 1
    (answer,) = read_answers(session.path)
    assert (answer.verdict, answer.annotator, answer.seconds, answer.repeat) == (2, "ada", 1.5, 0)
    assert folder_of(answer.left, session.path).is_dir()


def test_going_on(outputs, session):
    annotate(session, lambda run: hash(run.name) % 7, limit=4)
    before = session.path.read_bytes()
    with session.path.open("ab") as file:
        file.write(b'{"prompt": "a cu')  # as a power failure leaves it
    resumed = Session([outputs], session.path, "ada")
    assert len(resumed.left) == 2
    annotate(resumed, lambda run: 0.0)
    assert len(read_answers(session.path)) == 6
    assert session.path.read_bytes().startswith(before)
    assert len({answer.pair for answer in read_answers(session.path)}) == 6
    assert not Session([outputs], session.path, "ada").left
    assert len(Session([outputs], session.path, "bob").left) == 6
    repeated = Session([outputs], session.path, "ada", repeats=2)
    assert [pair.repeat for pair in repeated.left.values()] == [1, 1]
    annotate(repeated, lambda run: 0.0)
    assert read_answers(session.path)[-1].repeat == 1
    assert repeated.state()["agreement"]["repeats"]["total"] == 2


def test_the_page_tells_nothing_of_the_runs(outputs, session):
    with Client(session) as client:
        status, page, headers = client.raw("")
        assert status == 200
        assert b"NONCE" not in page
        assert not any(word in page for word in (b"http:", b"https:", b'src="'))
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        text = json.dumps(client.pair())
        assert not any(run.name in text for run in outputs.iterdir())
        key = client.pair()["pair"]["key"]
        film = session.film(key, "left").read_bytes()
        assert client.raw(f"film/{key}/left")[:2] == (200, film)
        status, part, headers = client.raw(f"film/{key}/left", Range="bytes=5-14")
        assert (status, part, headers["Content-Range"]) == (206, film[5:15], f"bytes 5-14/{len(film)}")
        assert client.raw(f"film/{key}/left", Range="bytes=-3")[1] == film[-3:]
        assert client.raw(f"film/{key}/left", Range="bytes=9999999-")[0] == 416
        for path in (f"film/{key}/answers", "film/x/left", "film/../../left", "pairs.jsonl", "pair/x"):
            assert client.raw(path)[0] == 404, path
        url = f"http://127.0.0.1:{client.server.server_address[1]}"
        for path in ("/", "/pair", "//pair", "/guess/pair"):
            with pytest.raises(HTTPError) as error:
                urlopen(url + path, timeout=10)
            error.value.close()
            assert error.value.code == 403
        with pytest.raises(OutputError, match="cannot serve on port"):
            Server(session, client.server.server_address[1])


def test_a_disk_that_is_full_loses_nothing(session, monkeypatch):
    with Client(session) as client:
        key = client.pair()["pair"]["key"]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            status, state = client.answer(key, "4")
        assert status == 507
        assert "No space left" in state["error"]
        assert client.pair()["pair"]["key"] == key
        assert read_answers(session.path) == []
        assert client.answer(key, "4")[0] == 200
    assert len(read_answers(session.path)) == 1


def test_what_cannot_be_ranked(tmp_path, outputs):
    with pytest.raises(InputError, match="expected finished runs"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match="two finished runs of a prompt, received 1 runs of 1 prompts"):
        Session([outputs / "0-0"], tmp_path / "pairs.jsonl", "ada")
    with pytest.raises(ConfigError, match="--annotator"):
        Session([outputs], tmp_path / "pairs.jsonl", " ")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "left": "a", "right": "b", "verdict": 7}\n')
    with pytest.raises(FormatError, match=r"line 1: expected prompt, left, right and a verdict"):
        read_answers(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("error", [KeyError(0), OSError("No username set in the environment")])
def test_a_user_without_a_name_is_anonymous(monkeypatch, error):
    def nobody() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nobody)
    assert Rank(()).annotator == "anonymous"


def test_names_move_with_the_file(tmp_path):
    answers = tmp_path / "study" / "pairs.jsonl"
    inside, outside = tmp_path / "study" / "runs" / "a", tmp_path / "other"
    assert name_of(inside, answers) == "runs/a"
    assert name_of(outside, answers) == outside.resolve().as_posix()
    assert all(folder_of(name_of(run, answers), answers) == run.resolve() for run in (inside, outside))


def test_agreement_by_hand():
    """Krippendorff's alpha of {1, 1}, {2, 3} and a unit that counts for nothing: 1 - D_o / D_e = 1 - 0.5 / (11/6)."""
    assert krippendorff_alpha([[1, 1], [2, 3], [5]]) == pytest.approx(1 - (2 / 4) / (22 / 12))
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, 1], [-2, -2]]) == 1
    said = [
        Answer("p", "a", "b", 2, "ada"),
        Answer("p", "b", "a", -1, "bob"),
        Answer("p", "b", "a", 1, "ada", 1),
        Answer("p", "a", "c", None, "ada"),
    ]
    found = agreement(said)
    assert found["annotators"][:2] == (1, 1)
    assert found["repeats"][:2] == (0, 1)


def test_a_killed_server_has_every_answer(outputs, tmp_path):
    """The real command, killed without warning after each answer was confirmed."""
    command = ["rank", str(outputs), "--out", str(tmp_path / "pairs.jsonl"), "--annotator", "eve", "--no-browser"]
    code = "import sys; from psd_gs.cli import main; main(sys.argv[1:])"
    seen = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-u", "-c", code, *command], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        url = process.stdout.readline().split()[0]
        with urlopen(url + "pair", timeout=10) as reply:
            key = json.load(reply)["pair"]["key"]
        urlopen(url + "answer", json.dumps({"key": key, "verdict": "skip"}).encode(), timeout=10).close()
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait(20)
        process.stdout.close()
        seen.append(key)
    assert len(set(seen)) == len(read_answers(tmp_path / "pairs.jsonl")) == 2


def test_appending_closes_a_torn_line(tmp_path):
    path = tmp_path / "new" / "pairs.jsonl"
    append_answer(path, Answer("p", "a", "b", 1))
    path.write_bytes(path.read_bytes()[:-9])
    append_answer(path, Answer("p", "a", "c", None))
    assert read_answers(path) == [Answer("p", "a", "c", None)]


def test_two_servers_of_one_file_share_the_work(outputs, tmp_path):
    """Nothing is asked twice, whoever answers it first; other annotators are asked all the same."""
    one, two, other = (Session([outputs], tmp_path / "pairs.jsonl", name) for name in ("ada", "ada", "bob"))
    with Client(one) as first, Client(two) as second, Client(other) as third:
        key = first.pair()["pair"]["key"]
        assert second.pair()["pair"]["key"] == key
        assert first.answer(key, "1")[0] == 200
        status, state = second.answer(key, "5")
        assert (status, state["done"]) == (409, 1)
        assert second.answer(state["pair"]["key"], "5")[0] == 200
        assert first.pair()["done"] == second.pair()["done"] == 2
        assert third.pair()["done"] == 0
        clients = [first, second]
        while pair := first.pair()["pair"]:
            clients[0].answer(pair["key"], "3")
            clients.reverse()
        assert second.pair()["pair"] is None
        assert third.answer(key, "2")[0] == 200
    answers = read_answers(tmp_path / "pairs.jsonl")
    assert [answer.verdict for answer in answers[:2]] == [-2, 2]
    assert len(answers) == 7
    assert len({answer.pair for answer in answers if answer.annotator == "ada"}) == 6


def test_servers_at_once_answer_every_pair_once(outputs, tmp_path):
    def work() -> None:
        session = Session([outputs], tmp_path / "pairs.jsonl", "ada")
        while pair := session.state()["pair"]:
            session.answer(pair["key"], "skip", 0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    answers = read_answers(tmp_path / "pairs.jsonl")
    assert len(answers) == len({answer.pair for answer in answers}) == 6


def test_many_runs_of_one_prompt_are_few_pairs_in_memory(caplog):
    names = {"a cube": [f"{i:04d}" for i in range(3000)], "a cone": ["x", "y"]}
    tracemalloc.start()
    pairs = plan(names, [], "ada", seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
    assert len(pairs) == len({pair.key for pair in pairs}) == MOST
    assert all(pair.left != pair.right for pair in pairs)
    runs = Counter(name for pair in pairs for name in (pair.left, pair.right))
    assert max(runs.values()) < 30  # spread over all: 6.7 of each on average
    assert len(runs) > 2900
    assert "of 4498501 pairs 10000 are drawn" in caplog.text
    assert {pair.key for pair in plan(names, [], "bob", seed=1)} == {
        pair.key for pair in pairs
    }  # so that they can agree


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"prompt": "x", "left": "a", "right": "b", "verdict": true}',
        '{"prompt": "x", "left": "a", "right": "b", "verdict": 1, "annotator": null}',
        '{"prompt": "x", "left": "a", "right": "b", "verdict": 1, "repeat": 1e400}',
        '{"prompt": "\\ud800", "left": "a", "right": "b", "verdict": 1}',
        '{"prompt": "x", "left": ["a"], "right": "b", "verdict": 1}',
        "[]",
        "null",
    ],
)
def test_lines_that_are_no_answers(line, tmp_path, outputs):
    path = tmp_path / "pairs.jsonl"
    append_answer(path, Answer("p", "a", "b", 1))
    with path.open("a") as file:
        file.write(line + "\n")
    for read in (read_answers, lambda path: Session([outputs], path, "ada")):
        with pytest.raises(FormatError, match=r"pairs\.jsonl, line 2: expected prompt"):
            read(path)


def test_later_looks_name_the_lines_of_the_file(tmp_path, caplog):
    path = tmp_path / "pairs.jsonl"
    append_answer(path, Answer("p", "a", "b", 1))
    answers = AnswerFile(path)
    with path.open("a") as file:
        file.write('{"prompt": "p", "left"\n')
    append_answer(path, Answer("p", "b", "c", 1))
    assert [answer.left for answer in answers.look()] == ["b"]
    with path.open("a") as file:
        file.write('{"prompt": "p"\n')
    assert not answers.look()
    assert [record.getMessage().split(", ")[1] for record in caplog.records] == [
        "line 2 is torn and left out",
        "line 4 is torn and left out",
    ]
