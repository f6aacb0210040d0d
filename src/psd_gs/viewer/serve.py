"""Pages over HTTP for the browser of this machine: one server, and what protects it from all other pages and programs.

It listens on 127.0.0.1 only. A request is answered if

* its Host is this machine, for another site's name may be made to lead here (DNS rebinding);
* its Origin, if it has one, is the page itself, for other sites may send requests, though not read the replies;
* it has the token, as the first part of its path or as ``?token=``, for other users of this machine may ask too.

Requests are small and have little time, and only so many are served at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from psd_gs.errors import ConfigError, OutputError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
SECONDS = 10.0
"""Time for a whole request to arrive, or for the next one on the same connection."""
CONNECTIONS = 32
"""Most connections at a time; further ones are closed at once."""
MOST_BODY = 10_000
"""Most bytes of a request's body."""
_CHUNK = 1 << 20
_HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Request:
    """What a page asks.

    Attributes:
        method: GET or POST.
        path: below the token, without query; the page itself is ``""``.
        headers: by name.
        body: of a POST, at most :data:`MOST_BODY` bytes.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What the page gets in return."""

    data: bytes
    kind: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


NOT_FOUND = Reply(b'{"error": "no such page"}', status=HTTPStatus.NOT_FOUND)
REFUSED = Reply(b'{"error": "open the address that was printed"}', status=HTTPStatus.FORBIDDEN)


class PageServer(ThreadingHTTPServer):
    """A server that is bound but not running: ``serve_forever`` in any thread, ``shutdown`` ends it.

    Args:
        respond: answers what is allowed to ask; called from several threads.
        port: 0 for any free one.
        tries: how many ports are tried, from this one on.
        option: what asks for another port, for messages.

    Attributes:
        token: that every request must have.

    Raises:
        ConfigError: ``port`` is no port number.
        OutputError: the port is taken or reserved.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS
    allow_reuse_address = os.name != "nt"  # elsewhere it only means not to wait after the last server

    def __init__(
        self, respond: Callable[[Request], Reply], port: int = 0, *, tries: int = 1, option: str = "--port"
    ) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"{option}: expected 0 (any free one) to 65535, received {port}.")
        self.token = secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._open: set[socket.socket] = set()
        for place in range(port, min(port + tries, 65536)):
            try:
                super().__init__((HOST, place), partial(_Handler, respond, self.token))
                return
            except OSError as error:
                reason = error.strerror or str(error)
        raise OutputError(f"cannot serve on port {port}: {reason}. Choose another {option}, or 0 for any.")

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Of the page, with the token in its path."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            self._open.add(request)
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._free.release()

    def server_close(self) -> None:
        """Also ends the connections that are open."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers drop connections of what they have seen enough of; nothing is wrong then."""
        if not isinstance(sys.exception(), OSError):
            logger.error("a request failed", exc_info=True)


class _Incoming(io.RawIOBase):
    """What a client sends, until the deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(max(1e-3, self.deadline - time.monotonic()))
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(SECONDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, respond: Callable[[Request], Reply], token: str, *connection: Any) -> None:
        self.respond, self.token = respond, token
        super().__init__(*connection)

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self.incoming)

    def handle_one_request(self) -> None:
        self.incoming.deadline = time.monotonic() + SECONDS
        super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """The token stays out of logs."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 8 and int(length) <= MOST_BODY):
            self._refuse(Reply(b'{"error": "expected a small body"}', status=HTTPStatus.BAD_REQUEST))
        elif len(body := self.rfile.read(int(length))) == int(length):
            self._answer(body)

    def _answer(self, body: bytes = b"") -> None:
        if (path := self._allowed()) is None:
            self._refuse(REFUSED)
            return
        request = Request(self.command, path, {name.title(): value for name, value in self.headers.items()}, body)
        try:
            reply = self.respond(request)
        except Exception:  # a bug must not end the page
            logger.exception("a request failed")
            reply = Reply(b'{"error": "the server failed"}', status=HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(reply)

    def _allowed(self) -> str | None:
        """The path below the token; None if this request is not to be answered."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or not _HOSTS.fullmatch(hosts[0]) or self.headers.get("Transfer-Encoding"):
            return None
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return None
        path, _, query = self.path.partition("?")
        _, first, *rest = [*path.split("/", 2), ""][:3]
        for given, below in (
            (first, "".join(rest)),
            *((token, path[1:]) for token in parse_qs(query).get("token", [])),
        ):
            if path[:1] == "/" and secrets.compare_digest(given.encode(), self.token.encode()):
                return below
        return None

    def _refuse(self, reply: Reply) -> None:
        self.close_connection = True  # a body may follow, which is not read
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        own = {"Content-Type": reply.kind, "Content-Length": str(len(reply.data))}
        own |= {"Connection": "close"} if self.close_connection else {}
        for name, value in (_HEADERS | own | dict(reply.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        for begin in range(0, len(reply.data), _CHUNK):  # each may take its time
            self.wfile.write(reply.data[begin : begin + _CHUNK])


def page_server(page: str, port: int = 0) -> tuple[PageServer, str]:
    """A server of one page, bound but not running, and its address.

    Args:
        page: HTML.
        port: 0 for any free one.

    Raises:
        ConfigError: ``port`` is no port number.
        OutputError: the port is taken or reserved.
    """
    reply = Reply(page.encode(), "text/html; charset=utf-8")
    server = PageServer(lambda request: reply if (request.method, request.path) == ("GET", "") else NOT_FOUND, port)
    return server, f"http://{HOST}:{server.port}/?token={server.token}"
