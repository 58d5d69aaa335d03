"""The guard around the studio's servers: which Host and Origin it takes, over real sockets and as a rule of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from tuner import hosts

ALLOWED = ("studio.lan", "gpu7.lan:8443", "localhost:9000")


class Served:
    """A small ASGI app behind the guard, on a real port; `asked` counts what got through."""

    def __init__(self) -> None:
        self.asked = 0
        guard = hosts.HostGuard(self.app, hosts.configured(ALLOWED))
        self.server = uvicorn.Server(uvicorn.Config(guard, host="127.0.0.1", port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    async def app(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.asked += 1
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1000})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the studio"})

    def status(self, *headers: str, method: str = "GET", path: str = "/") -> int:
        return status(self.port, *headers, method=method, path=path)


def status(port: int, *headers: str, method: str = "GET", path: str = "/") -> int:
    """The status of one raw request with exactly these headers; {port} in them is the server's."""
    lines = [f"{method} {path} HTTP/1.1", *(h.format(port=port) for h in headers), "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall("\r\n".join(lines).encode())
        return int(raw.recv(4096).split()[1])


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
OWN = "Host: 127.0.0.1:{port}"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.should_exit = True
    made.thread.join(10)


MINE = [
    "127.0.0.1:{port}",
    "localhost:{port}",
    "LocalHost:{port}",
    "[::1]:{port}",
    "studio.lan",
    "studio.lan:1",
]
MINE += ["gpu7.lan:8443", "localhost:9000"]
FOREIGN = [
    "evil.test:{port}",
    "127.0.0.1:1",
    "127.0.0.1",
    "localhost:9001",
    "localhost.evil.test:{port}",
    "gpu7.lan",
]
FOREIGN += [
    "127.0.0.1.evil.test:{port}",
    "evil.test@127.0.0.1:{port}",
    "127.0.0.1:{port}@evil.test",
    "0.0.0.0:{port}",
]
FOREIGN += [
    "2130706433:{port}",
    "127.1:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "localhost.:{port}",
    "127.0.0.1:{port}/x",
]
FOREIGN += ["127.0.0.1:0{port}", "evil-studio.lan", "studio.lan.evil.test", "", "127.0.0.1:{port}, evil.test"]


@pytest.mark.parametrize("host", MINE)
def test_its_own_names_are_answered(served: Served, host: str) -> None:
    assert served.status(f"Host: {host}") == 200
    scheme = "https" if "gpu7" in host else "http"
    own = (f"Host: {host}", f"Origin: {scheme}://{host}")
    assert served.status(*own, *UPGRADE) == 101
    assert served.status(*own, "Content-Length: 0", method="PUT", path="/_stcore/upload_file/a/b") == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_hosts_and_origins_are_refused_before_anything_is_served(served: Served, host: str) -> None:
    before = served.asked
    for path in ("/", "/_stcore/metrics", "/media/x", "/_stcore/upload_file/a/b"):
        assert served.status(f"Host: {host}", path=path) in (
            400,
            403,
        )  # 400: uvicorn did not take it for a header
    assert served.status(f"Host: {host}", f"Origin: http://{host}", *UPGRADE) in (400, 403)
    for extra in ((), UPGRADE):
        assert served.status(OWN, f"Origin: http://{host}", *extra) == 403
    assert served.asked == before


@pytest.mark.parametrize(
    "origin", ["null", "file://", "chrome-extension://abc", "http://127.0.0.1:{port}/x", "x"]
)
def test_pages_of_no_host_are_refused(served: Served, origin: str) -> None:
    before = served.asked
    assert served.status(OWN, f"Origin: {origin}") == 403
    assert served.status(OWN, f"Origin: {origin}", *UPGRADE) == 403
    assert served.asked == before


def test_a_websocket_without_origin_two_hosts_and_none_are_refused(served: Served) -> None:
    before = served.asked
    assert served.status(OWN, *UPGRADE) == 403
    assert served.status(OWN, "Host: evil.test") in (400, 403)
    assert served.status("Accept: */*") in (400, 403)
    assert served.status(OWN, "Origin: http://127.0.0.1:{port}", "Origin: http://evil.test") == 403
    assert served.asked == before
    assert served.status(OWN) == 200  # curl and the health check say no origin


def test_no_other_page_may_frame_it(served: Served) -> None:
    frame = ("Sec-Fetch-Dest: iframe", "Sec-Fetch-Mode: navigate")
    assert served.status(OWN, *frame, "Sec-Fetch-Site: cross-site") == 403
    assert served.status(OWN, *frame, "Sec-Fetch-Site: same-site") == 403  # another port of this machine
    assert served.status(OWN, *frame, "Sec-Fetch-Site: same-origin") == 200
    link = ("Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: cross-site")
    assert served.status(OWN, *link) == 200  # a link that somebody clicks


@pytest.mark.parametrize(
    "name", ["http://a.b", "*", "*.lan", "a b", "a:x", "a:0", "a:65536", "localhost", "[::1]", "a/b"]
)
def test_a_name_that_is_none_is_said(name: str) -> None:
    with pytest.raises(ValueError, match="no host name|needs the port"):
        hosts.configured([name])


def test_names_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hosts.VARIABLE, " studio.lan , localhost:9000,")
    assert hosts.configured(["a.b"]) == (
        hosts.Authority("a.b", None),
        hosts.Authority("studio.lan", None),
        hosts.Authority("localhost", 9000),
    )


def scope(host: str, origin: str | None, kind: str = "http") -> dict[str, object]:
    headers = [(b"host", host.encode("latin-1"))]
    headers += [(b"origin", origin.encode("latin-1"))] if origin is not None else []
    return {"type": kind, "scheme": "http", "server": ("127.0.0.1", 8501), "headers": headers}


LATIN = st.text(st.characters(codec="latin-1"))


@given(
    st.one_of(LATIN, st.from_regex(r"[a-z0-9.:@\[\]-]{1,20}", fullmatch=True)).flatmap(
        lambda t: st.sampled_from(
            [t, f"{t}:8501", f"127.0.0.1{t}", f"localhost:8501{t}", f"{t}localhost:8501"]
        )
    )
)
def test_nothing_but_the_listed_names_passes(text: str) -> None:
    mine = {f"{name}:8501" for name in hosts.LOOPBACK}
    assert (not hosts.refusal(scope(text, None))) == (text.lower() in mine)
    own = {f"{scheme}://{name}" for name in mine for scheme in ("http", "https")}
    asked = f"http://{text}"
    assert (not hosts.refusal(scope("localhost:8501", asked, "websocket"))) == (asked.lower() in own)
