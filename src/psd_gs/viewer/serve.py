"""One page over HTTP, for a browser on another machine: on 127.0.0.1 only, and only with the token."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from psd_gs.errors import OutputError

HOST = "127.0.0.1"


def page_server(page: str, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server of ``page`` that is bound but not running, and its address.

    Only GET of ``/?token=...`` with the right token is answered with the page; everything else gets 403.

    Args:
        page: HTML.
        port: 0 for any free one.

    Raises:
        OutputError: the port is taken, reserved or no port.
    """
    token = secrets.token_urlsafe(24)
    body = page.encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a client may say nothing

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            given = parse_qs(address.query).get("token", [""])[0]
            if address.path != "/" or not secrets.compare_digest(given.encode(), token.encode()):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The token stays out of logs."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise OutputError(f"cannot serve on port {port}: {error}. Choose another --port, or 0 for any.") from error
    server.daemon_threads = True
    return server, f"http://{HOST}:{server.server_address[1]}/?token={token}"
