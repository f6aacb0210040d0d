"""The page that asks: an HTTP server on this machine alone, behind a random token.

======  ==================================  ===================================================
method  path                                answer
======  ==================================  ===================================================
GET     ``/TOKEN/``                         the page
GET     ``/TOKEN/pair``                     JSON: the next pair, progress, agreement
GET     ``/TOKEN/film/KEY/left`` | right    a turntable, whole or the asked range
POST    ``/TOKEN/answer``                   ``{"key", "verdict": "1"-"5" | "skip", "seconds"}``
======  ==================================  ===================================================
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from psd_gs.errors import ConfigError, InputError, OutputError
from psd_gs.ranking.answers import VERDICTS, Answer, agreement, append_answer, read_answers
from psd_gs.ranking.pairs import FILM, Pair, find_runs, folder_of, name_of, plan

MAX_BODY = 10_000
"""Bytes of a request."""


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
        self.answers = read_answers(self.path) if self.path.exists() else []
        found = find_runs(folders)
        names = {prompt: [name_of(run, self.path) for run in some] for prompt, some in found.items() if len(some) > 1}
        if not names:
            raise InputError(
                f"expected two finished runs of a prompt, received {sum(map(len, found.values()))} runs of "
                f"{len(found)} prompts. Make more with other seeds or options."
            )
        everything = plan(names, [], annotator, repeats=repeats, seed=seed)
        self.pairs = {pair.key: pair for pair in everything}
        left = plan(names, self.answers, annotator, repeats=repeats, seed=seed)
        self.left = {pair.key: pair for pair in left}
        self.lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """The next pair, or null, and how far this is."""
        with self.lock:
            pair = next(iter(self.left.values()), None)
            return {
                "pair": {"key": pair.key, "prompt": pair.prompt, "repeat": pair.repeat} if pair else None,
                "annotator": self.annotator,
                "done": len(self.pairs) - len(self.left),
                "total": len(self.pairs),
                "agreement": {name: value._asdict() for name, value in agreement(self.answers).items()},
            }

    def film(self, key: str, side: str) -> Path | None:
        """The turntable of one side of a pair."""
        pair: Pair | None = self.pairs.get(key)
        return folder_of(getattr(pair, side), self.path) / FILM if pair and side in ("left", "right") else None

    def answer(self, key: str, verdict: str, seconds: float) -> bool:
        """Write an answer down; False if the pair is unknown or was answered before.

        Raises:
            InputError: not a verdict.
            OutputError: the file cannot be written; the pair stays to be asked.
        """
        if verdict not in VERDICTS:
            raise InputError(f"expected a verdict of {', '.join(VERDICTS)}, received {verdict!r}.")
        with self.lock:
            pair = self.left.get(key)
            if pair is None:
                return False
            now = datetime.now(UTC).isoformat(timespec="seconds")
            answer = Answer(
                pair.prompt, pair.left, pair.right, VERDICTS[verdict], self.annotator, pair.repeat, seconds, now
            )
            append_answer(self.path, answer)
            self.answers.append(answer)
            del self.left[key]
            return True


class Server(ThreadingHTTPServer):
    """Serves a session on 127.0.0.1; ``serve_forever`` in any thread, ``shutdown`` ends it.

    Args:
        session: what is asked.
        port: 0 takes a free one.

    Raises:
        OutputError: the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, session: Session, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__(("127.0.0.1", port), partial(_Handler, session, self.token))
        except OSError as error:
            raise OutputError(
                f"cannot listen on port {port}: {error.strerror or error}. Try another --port."
            ) from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers drop connections of films that they have seen enough of; nothing is wrong then."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, session: Session, token: str, *connection: Any) -> None:
        self.session, self.token = session, token
        super().__init__(*connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the token is in every path."""

    def do_GET(self) -> None:
        match self._parts():
            case [""]:
                self._page()
            case ["pair"]:
                self._json(self.session.state())
            case ["film", key, side]:
                self._film(self.session.film(key, side))
            case _:
                self._json({"error": "no such page"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._parts() != ["answer"] or not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # whatever the body is, it is not read
            self._json({"error": "expected a small JSON body for /answer"}, HTTPStatus.BAD_REQUEST)
            return
        try:
            data = json.loads(self.rfile.read(int(length)))
            seconds = float(data.get("seconds", 0))
            seconds = round(min(max(seconds, 0.0), 1e6), 2) if math.isfinite(seconds) else 0.0
            taken = self.session.answer(str(data["key"]), str(data["verdict"]), seconds)
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            self._json({"error": f"expected key, verdict and seconds: {error}"}, HTTPStatus.BAD_REQUEST)
        except OutputError as error:
            self._json({"error": str(error)}, HTTPStatus.INSUFFICIENT_STORAGE)
        else:
            self._json(self.session.state(), HTTPStatus.OK if taken else HTTPStatus.CONFLICT)

    def _parts(self) -> list[str] | None:
        """The path below the token; None without it."""
        _, token, *rest = [*self.path.partition("?")[0].split("/", 2), ""][:3]
        return "".join(rest).split("/") if secrets.compare_digest(token.encode(), self.token.encode()) else None

    def _json(self, data: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(data).encode(), "application/json", status)

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = (files("psd_gs") / "assets" / "rank" / "page.html").read_text(encoding="utf-8")
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; media-src 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        content = page.replace("NONCE", nonce).encode()
        self._send(content, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy})

    def _film(self, path: Path | None) -> None:
        """The file, or the range that was asked for: Safari plays nothing that is not sent by ranges."""
        try:
            data = path.read_bytes() if path else b""
        except OSError:
            data = b""
        if not data:
            self._json({"error": "no such film"}, HTTPStatus.NOT_FOUND)
            return
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or not (match[1] or match[2]):
            self._send(data, "video/mp4", headers={"Accept-Ranges": "bytes"})
            return
        first = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
        last = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
        if first > last:
            wrong = {"Content-Range": f"bytes */{len(data)}"}
            self._send(b"", "video/mp4", HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, wrong)
            return
        headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(data[first : last + 1], "video/mp4", HTTPStatus.PARTIAL_CONTENT, headers)

    def _send(
        self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        always = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
        for name, value in (
            {"Content-Type": kind, "Content-Length": str(len(data))} | always | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
