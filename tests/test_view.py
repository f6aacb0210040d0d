"""``psd-gs view`` and ``.html``: what goes into a page, how it is served, and that the shipped page is the built one.

What the page does in a browser is in test_view_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
import time
import webbrowser
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET, create_connection, socket
from urllib.parse import urlsplit

import pytest
import torch
import trimesh
from splats import FLOORS, assert_within, asset

from psd_gs import cli
from psd_gs.errors import ConfigError, FormatError, InputError, OutputError
from psd_gs.export.fitting import bounding_ball
from psd_gs.export.formats import load, save, sidecar
from psd_gs.export.page import MOST, Pane, make_page
from psd_gs.viewer import serve
from psd_gs.viewer.open import panes
from psd_gs.viewer.serve import HOST, page_server

ROOT = Path(__file__).resolve().parents[1]
BOX = trimesh.creation.box((0.4, 0.8, 0.2)).export(file_type="glb")


def element(page: str, name: str) -> str:
    """Text of a data element."""
    (text,) = re.findall(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    return text


# --- the page that is shipped -----------------------------------------------------------------------------------------


def test_the_shipped_page_was_built_from_the_sources():
    """``npm run build`` records the hashes; .ci/run builds anew and compares."""
    shipped = files("psd_gs") / "assets" / "viewer"
    record = json.loads((shipped / "build.json").read_text(encoding="utf-8"))
    folders = {"files": shipped, "sources": ROOT / "tools" / "viewer"}
    assert set(record["files"]) == {"page.html", "THIRD_PARTY_NOTICES.txt"}
    assert {f"src/{path.name}" for path in (folders["sources"] / "src").iterdir()} < set(record["sources"])
    for kind, folder in folders.items():
        for name, digest in record[kind].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, f"{name}: run npm run build"


def test_the_shipped_page_is_small_closed_and_credited():
    shipped = files("psd_gs") / "assets" / "viewer"
    page = (shipped / "page.html").read_text(encoding="utf-8")
    assert len(page) < 3.5e6
    assert "default-src 'none'" in page
    assert "unsafe-eval'" not in page.replace("wasm-unsafe-eval'", "")
    assert set(re.findall(r"https?://[\w./-]+", page)) == {"http://www.w3.org/1999/xhtml"}  # a namespace
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:)", page)
    notices = (shipped / "THIRD_PARTY_NOTICES.txt").read_text(encoding="utf-8")
    for name in ("@sparkjsdev/spark", "three", "fflate"):
        assert re.search(rf"^{name} \d[\d.]* \(MIT\)$", notices, re.MULTILINE)
    assert notices.count("Permission is hereby granted") == 3


# --- what goes into a page --------------------------------------------------------------------------------------------


def test_a_page_holds_the_assets(tmp_path):
    g = asset(200, degree=2)
    page = make_page([Pane("one", g, facts={"prompt": "ein Bär", "bad": float("nan")}), Pane("two", mesh=BOX)], "t")
    one, two = json.loads(element(page, "assets"))
    centre, radius = bounding_ball(g)
    assert one["name"] == "one"
    assert one["facts"] == {"prompt": "ein Bär", "bad": None}
    assert one["radius"] == pytest.approx(radius)
    torch.testing.assert_close(torch.tensor(one["centre"]), centre)
    assert two == {"name": "two", "facts": {}}
    (tmp_path / "a.spz").write_bytes(base64.b64decode(element(page, "splat-0")))
    assert_within(g, load(tmp_path / "a.spz", frame="gltf"), FLOORS[".spz"])
    assert base64.b64decode(element(page, "mesh-1")) == BOX
    assert "<title>t</title>" in page


def test_no_text_leaves_its_place():
    bad = "</script><script>alert(1)</script><!-- <b> & \" \u2028 '"
    page = make_page([Pane(bad, asset(5), facts={"prompt": bad, bad: 1})], bad)
    clean = make_page([Pane("", asset(5))], "")
    assert page.count("<script") == clean.count("<script")
    assert page.count("</script") == clean.count("</script")
    (described,) = json.loads(element(page, "assets"))
    assert described["name"] == described["facts"]["prompt"] == bad
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("number", [0, MOST + 1])
def test_number_of_assets(number):
    with pytest.raises(InputError, match=f"expected 1 to {MOST} assets on one page, received {number}"):
        make_page([Pane("a", mesh=BOX)] * number, "")


def test_an_empty_pane():
    with pytest.raises(InputError, match="a: expected splats or a mesh"):
        make_page([Pane("a")], "")


def test_export_to_html(tmp_path):
    path = tmp_path / "my bear.html"
    save(asset(50), path, metadata={"prompt": "ein Bär"})
    (described,) = json.loads(element(path.read_text(encoding="utf-8"), "assets"))
    assert described["name"] == "my bear"
    assert described["facts"]["prompt"] == "ein Bär"
    assert described["facts"]["n_splats"] == 50
    assert json.loads(sidecar(path).read_text(encoding="utf-8"))["format"] == "page"
    save(asset(50), path)
    assert json.loads(element(path.read_text(encoding="utf-8"), "assets"))[0]["facts"] == {}
    with pytest.raises(InputError, match="a page is written, not read"):
        load(path)
    with pytest.raises(OutputError):
        save(asset(5), tmp_path / "missing" / "a.html")


# --- files and folders ------------------------------------------------------------------------------------------------


def test_files_and_run_folders(tmp_path):
    run = tmp_path / "a-bear-0"
    run.mkdir()
    save(asset(20), run / "splat.ply", metadata={"prompt": "a bear"})
    (run / "mesh.glb").write_bytes(BOX)
    save(asset(30), tmp_path / "splats.glb")
    found = panes([run, run / "splat.ply", run / "mesh.glb", tmp_path / "splats.glb"])
    assert [pane.name for pane in found] == ["a-bear-0", "a-bear-0/splat.ply", "a-bear-0/mesh.glb", "splats.glb"]
    assert [len(pane.gaussians) if pane.gaussians else 0 for pane in found] == [20, 20, 0, 30]
    assert [pane.mesh for pane in found] == [BOX, None, BOX, None]
    assert found[0].facts["prompt"] == found[1].facts["prompt"] == "a bear"
    assert found[0].facts["n_splats"] == 20
    torch.testing.assert_close(found[1].gaussians.means, asset(20).means)
    (run / "splat.ply").unlink()
    assert panes([run])[0] == Pane("a-bear-0", mesh=BOX)


def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(InputError, match=r"expected a run folder with splat\.ply or mesh\.glb"):
        panes([tmp_path])
    for content in (b"", b"glTF", BOX[: len(BOX) // 2], b"ply\n"):
        (tmp_path / "a.glb").write_bytes(content)
        with pytest.raises(FormatError, match=r"a\.glb"):
            panes([tmp_path / "a.glb"])
    with pytest.raises(InputError, match=r"cannot read .*b\.glb"):
        panes([tmp_path / "b.glb"])
    (tmp_path / "a.obj").write_bytes(b"")
    with pytest.raises(InputError, match="expected a splat file"):
        panes([tmp_path / "a.obj"])


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(page: str):
    server, address = page_server(page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(address: str, target: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.request(method, target)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_server_gives_the_page_for_the_token_only():
    with serving("<p>Bär") as address:
        parts = urlsplit(address)
        assert parts.hostname == "127.0.0.1"
        assert len(parts.query) > 30
        right = f"/?{parts.query}"
        assert ask(address, right) == (200, "<p>Bär")
        for wrong in ("/", "/?token=", "/?token=%C3%A4", right[:-1], right + "x", f"/page.html?{parts.query}", "/../"):
            status, text = ask(address, wrong)
            assert status == (404 if wrong.startswith("/page") else 403)
            assert "Bär" not in text
        for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            status, text = ask(address, right, method)
            assert status == (404 if method == "POST" else 501)
            assert "Bär" not in text
        with pytest.raises(OutputError, match="cannot serve on port"):
            page_server("", parts.port)
    assert page_server("")[1].split("=")[1] != parts.query.split("=")[1]
    for port in (-1, 65536, 10**30):
        with pytest.raises(ConfigError, match=f"expected 0 .* to 65535, received {port}"):
            page_server("", port)


def talk(port: int, data: bytes, seconds: float = 20) -> bytes:
    """All that comes back for what is sent."""
    with create_connection((HOST, port), timeout=seconds) as connection:
        connection.sendall(data)
        parts = []
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


def test_the_server_answers_its_own_page_only():
    """Another site's name that leads here (DNS rebinding), another site's scripts, and requests that are two."""
    with serving("<p>Bär") as address:
        parts = urlsplit(address)
        get = f"GET /?{parts.query} HTTP/1.1\r\n"
        host = f"Host: {parts.netloc}\r\n"
        end = "Connection: close\r\n\r\n"
        right = [host, "Host: localhost\r\n", f"Host: LOCALHOST:{parts.port}\r\n", "Host: [::1]:80\r\n"]
        right += [f"{host}Origin: http://{parts.netloc}\r\n"]
        for headers in right:
            assert b"B\xc3\xa4r" in talk(parts.port, (get + headers + end).encode()), headers
        wrong = [
            "",
            "Host: evil.example\r\n",
            f"Host: evil.example:{parts.port}\r\n",
            "Host: 127.0.0.1.evil.example\r\n",
        ]
        wrong += ["Host: 127.0.0.2\r\n", "Host: 127.0.0.1@evil.example\r\n", host + host, "Host: \r\n", "Host: 0\r\n"]
        wrong += [
            f"{host}Origin: {origin}\r\n" for origin in ("null", "http://evil.example", "http://127.0.0.1:1", "x")
        ]
        wrong += [f"{host}Origin: http://{parts.netloc}\r\nOrigin: http://evil.example\r\n"]
        wrong += [f"{host}Transfer-Encoding: chunked\r\n"]
        for headers in wrong:
            reply = talk(parts.port, (get + headers + end).encode())
            assert reply.startswith(b"HTTP/1.1 403"), headers
            assert b"B\xc3\xa4r" not in reply
        for length in ("1000000000", "-1", "x", "1_0", "9" * 5000, "", "\xb2"):
            post = f"POST /{parts.query[6:]}/ HTTP/1.1\r\n{host}Content-Length: {length}\r\n\r\nGET / HTTP/1.1\r\n\r\n"
            reply = talk(parts.port, post.encode("latin-1"))
            assert reply.startswith(b"HTTP/1.1 400"), length
            assert reply.count(b"HTTP/1.1 ") == 1


def test_a_slow_client_has_little_time(monkeypatch):
    """A byte now and then does not hold a connection: a whole request must be there in time."""
    monkeypatch.setattr(serve, "SECONDS", 0.6)
    with serving("") as address, create_connection((HOST, urlsplit(address).port), timeout=20) as connection:
        start = time.monotonic()
        with suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        with suppress(ConnectionError):
            assert connection.recv(1000) == b""
        assert time.monotonic() - start < 4


def test_connections_are_bounded_and_end_with_the_server(monkeypatch, capfd):
    monkeypatch.setattr(serve, "CONNECTIONS", 3)
    with ExitStack() as stack:
        before = threading.active_count()
        address = stack.enter_context(serving("<p>Bär"))
        port = urlsplit(address).port
        idle = [stack.enter_context(create_connection((HOST, port), timeout=20)) for _ in range(30)]
        assert sum(ends(connection) for connection in idle) == 27
        assert threading.active_count() <= before + 4
        next(c for c in idle if not ends(c)).close()
        while b"B\xc3\xa4r" not in (reply := page_of(address)):
            assert reply == b""
        left = [connection for connection in idle if connection.fileno() >= 0 and not ends(connection)]
        assert len(left) == 2
    assert all(ends(connection) for connection in left if connection.fileno() >= 0)
    assert capfd.readouterr() == ("", "")


def page_of(address: str) -> bytes:
    parts = urlsplit(address)
    return talk(parts.port, f"GET /?{parts.query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())


def ends(connection: socket) -> bool:
    """Whether the other side has closed it."""
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_browser_that_leaves_is_no_fault(capfd, caplog):
    with serving("x" * (8 << 20)) as address:
        parts = urlsplit(address)
        for _ in range(5):
            connection = create_connection((HOST, parts.port))
            connection.sendall(f"GET /?{parts.query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(10)
            connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))  # leaves with a reset
            connection.close()
        time.sleep(0.2)
        assert b"200 OK" in page_of(address)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Addresses that the browser was sent to."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


def test_view_writes_a_page_and_opens_it(tmp_path, opened, capsys, monkeypatch):
    save(asset(20), tmp_path / "a.splat")
    cli.main(["view", str(tmp_path / "a.splat"), "--output", str(tmp_path / "page.html")])
    assert opened == [(tmp_path / "page.html").as_uri()]
    assert "page.html" in capsys.readouterr().out
    assert "<title>a.splat</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cli.main(["view", str(tmp_path / "a.splat"), str(tmp_path / "a.splat"), "--no-open"])
    assert len(opened) == 1
    (page,) = tmp_path.glob("psd-gs-*/view.html")
    assert str(page) in capsys.readouterr().out


def test_view_serves_until_it_is_interrupted(tmp_path, opened, capsys, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupt)
    save(asset(20), tmp_path / "a.splat")
    cli.main(["view", str(tmp_path / "a.splat"), "--serve"])
    (address,) = opened
    assert address in capsys.readouterr().out
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a splat file, a mesh or a run folder, received none"),
        (["a.splat", "--output", "page.png"], "--output: expected a name that ends with .html"),
        (["a.splat"], "cannot read a.splat"),
        (["page.html"], "a page is written, not read"),
    ],
)
def test_view_says_what_is_wrong(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["view", *arguments, "--no-open"])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
