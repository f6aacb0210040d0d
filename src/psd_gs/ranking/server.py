"""The page that asks: an HTTP server on this machine alone, behind a random token.

| method | path | answer, or what is sent |
|---|---|---|
| GET | ``/TOKEN/`` | the page |
| GET | ``/TOKEN/pair`` | JSON: the next pair, progress, agreement |
| GET | ``/TOKEN/film/KEY/left``, ``right`` | a turntable, whole or the range that is asked for |
| POST | ``/TOKEN/answer`` | ``{"key": ..., "verdict": "1" to "5" or "skip", "seconds": ...}`` |
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from psd_gs.errors import ConfigError, InputError, OutputError
from psd_gs.files import loads, read_bounded
from psd_gs.ranking.answers import VERDICTS, Answer, AnswerFile, agreement, append_answer
from psd_gs.ranking.pairs import FILM, Pair, find_runs, folder_of, name_of, plan
from psd_gs.viewer.serve import NOT_FOUND, PageServer, Reply, Request

FILM_BYTES = 256 << 20
"""Largest turntable."""


class Session:
    """What one annotator is asked, and where the answers go.

    Args:
        folders: run folders, or folders of them.
        path: JSON lines; those that are there already count.
        annotator: who answers.
        repeats: how many pairs are asked a second time.
        seed: of order and sides.

    Raises:
        InputError: no prompt has two finished runs, or ``path`` cannot be read.
    """

    def __init__(
        self, folders: Sequence[str | Path], path: str | Path, annotator: str, *, repeats: int = 0, seed: int = 0
    ) -> None:
        if not annotator.strip():
            raise ConfigError("expected a name of the annotator, received an empty one. Give one with --annotator.")
        self.path, self.annotator = Path(path), annotator
        self.file = AnswerFile(self.path)
        found = find_runs(folders)
        names = {prompt: [name_of(run, self.path) for run in some] for prompt, some in found.items() if len(some) > 1}
        if not names:
            raise InputError(
                f"expected two finished runs of a prompt, received {sum(map(len, found.values()))} runs of "
                f"{len(found)} prompts. Make more with other seeds or options."
            )
        everything = plan(names, [], annotator, repeats=repeats, seed=seed)
        self.pairs = {pair.key: pair for pair in everything}
        left = plan(names, self.file.answers, annotator, repeats=repeats, seed=seed)
        self.left = {pair.key: pair for pair in left}
        self.lock = threading.Lock()

    def _look(self) -> None:
        """What was answered since the last look need not be asked, whichever server of this file asked it."""
        for answer in self.file.look():
            if answer.annotator == self.annotator:
                asked = (Pair(answer.prompt, *answer.pair, repeat) for repeat in (0, 1))
                if key := next((pair.key for pair in asked if pair.key in self.left), None):
                    del self.left[key]

    def state(self) -> dict[str, Any]:
        """The next pair, or null, and how far this is.

        Raises:
            InputError: the file of answers cannot be read any more.
        """
        with self.lock:
            self._look()
            pair = next(iter(self.left.values()), None)
            return {
                "pair": {"key": pair.key, "prompt": pair.prompt, "repeat": pair.repeat} if pair else None,
                "annotator": self.annotator,
                "done": len(self.pairs) - len(self.left),
                "total": len(self.pairs),
                "agreement": {name: value._asdict() for name, value in agreement(self.file.answers).items()},
            }

    def film(self, key: str, side: str) -> Path | None:
        """The turntable of one side of a pair."""
        pair: Pair | None = self.pairs.get(key)
        return folder_of(getattr(pair, side), self.path) / FILM if pair and side in ("left", "right") else None

    def answer(self, key: str, verdict: str, seconds: float) -> bool:
        """Write an answer down; False if the pair is unknown or was answered before, here or by another server.

        Raises:
            InputError: not a verdict, or the file of answers cannot be read any more.
            OutputError: the file cannot be written; the pair stays to be asked.
        """
        if verdict not in VERDICTS:
            raise InputError(f"expected a verdict of {', '.join(VERDICTS)}, received {verdict!r}.")
        with self.lock:
            if (pair := self.left.get(key)) is None:
                return False
            now = datetime.now(UTC).isoformat(timespec="seconds")
            answer = Answer(
                pair.prompt, pair.left, pair.right, VERDICTS[verdict], self.annotator, pair.repeat, seconds, now
            )

            def answered() -> bool:
                self._look()
                return key not in self.left

            added = append_answer(self.path, answer, unless=answered)
            self._look()
            return added


@dataclass(frozen=True)
class _Given:
    """The body of an answer."""

    key: str
    verdict: Literal["1", "2", "3", "4", "5", "skip"]
    seconds: float | None = 0.0


class Server(PageServer):
    """Serves a session; ``serve_forever`` in any thread, ``shutdown`` ends it.

    Args:
        session: what is asked.
        port: 0 takes a free one.

    Raises:
        ConfigError: ``port`` is no port number.
        OutputError: the port is taken.
    """

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        super().__init__(self.reply, port)

    def reply(self, request: Request) -> Reply:
        """To what the page asks, see the module."""
        try:
            match request.method, request.path.split("/"):
                case "GET", [""]:
                    return _page()
                case "GET", ["pair"]:
                    return _json(self.session.state())
                case "GET", ["film", key, side]:
                    return _film(self.session.film(key, side), request.headers)
                case "POST", ["answer"]:
                    return self._answer(request.body)
        except InputError as error:
            return _json({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        return NOT_FOUND

    def _answer(self, body: bytes) -> Reply:
        try:
            given = loads(body, _Given)
        except ValueError as error:
            return _json({"error": f"expected key, verdict and seconds: {error}"}, HTTPStatus.BAD_REQUEST)
        try:
            seconds = round(min(max(given.seconds or 0.0, 0.0), 1e6), 2)
            taken = self.session.answer(given.key, given.verdict, seconds)
        except OutputError as error:
            return _json({"error": str(error)}, HTTPStatus.INSUFFICIENT_STORAGE)
        return _json(self.session.state(), HTTPStatus.OK if taken else HTTPStatus.CONFLICT)


def _json(data: object, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(json.dumps(data).encode(), status=status)


def _page() -> Reply:
    nonce = secrets.token_urlsafe(16)
    page = (files("psd_gs") / "assets" / "rank" / "page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = page.replace("NONCE", nonce).encode()
    return Reply(content, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


def _film(path: Path | None, headers: Mapping[str, str]) -> Reply:
    """The file, or the range that was asked for: Safari plays nothing that is not sent by ranges."""
    try:
        data = read_bounded(path, FILM_BYTES) if path else b""
    except InputError:
        data = b""
    if not data:
        return _json({"error": "no such film"}, HTTPStatus.NOT_FOUND)
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", headers.get("Range", ""), re.ASCII)
    if not match or not (match[1] or match[2]):
        return Reply(data, "video/mp4", headers={"Accept-Ranges": "bytes"})
    first = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
    last = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
    if first > last:
        wrong = {"Content-Range": f"bytes */{len(data)}"}
        return Reply(b"", "video/mp4", HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, wrong)
    found = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(data[first : last + 1], "video/mp4", HTTPStatus.PARTIAL_CONTENT, found)
