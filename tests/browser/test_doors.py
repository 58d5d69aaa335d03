"""What other pages can do to the studio, in a real browser: nothing. `*.test` resolves to this machine here."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import psutil
import pytest
from test_hosts import OWN, UPGRADE, status

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import FONTS, fonts, still  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser

DOORS = ("/", "/history", "/_stcore/health", "/_stcore/metrics", "/_stcore/host-config", "/media/x.png")
DOORS += ("/component/x/index.html", "/static/x.js", "/app/static/x", "/_stcore/script-health-check")
SOME = ("history",)
"""Of the others every browser test says that they ask nothing and that their policy hinders nothing (conftest.page)."""
PAGES = ("", "new_run", *SOME, "datasets", "runs", "compare", "adapters")


class Elsewhere:
    """Another server of this machine with a page of its own; it keeps what it was asked for."""

    def __init__(self) -> None:
        asked = self.asked = list[str]()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<h1>elsewhere</h1>")

            def log_message(self, *said: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://pictures.test:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.server.shutdown()


def test_it_listens_on_this_machine_only(studio) -> None:
    family = [
        psutil.Process(studio.process.pid),
        *psutil.Process(studio.process.pid).children(recursive=True),
    ]
    listening = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_every_door_is_guarded(studio) -> None:
    for path in DOORS:
        for host in ("evil.test:{port}", "127.0.0.1:1", "127.0.0.1"):
            assert status(studio.port, f"Host: {host}", path=path) == 403, path
        for origin in ("http://evil.test:{port}", "http://localhost:1", "null"):
            assert status(studio.port, OWN, f"Origin: {origin}", path=path) == 403, path
    assert status(studio.port, OWN, "Origin: null", method="PUT", path="/_stcore/upload_file/a/b") == 403
    stream = {"path": "/_stcore/stream"}
    assert status(studio.port, OWN, *UPGRADE, **stream) == 403
    for page in ("http://evil.test:{port}", "http://127.0.0.1:1", "null"):
        assert status(studio.port, OWN, f"Origin: {page}", *UPGRADE, **stream) == 403
    rebound = ("Host: evil.test:{port}", "Origin: http://evil.test:{port}")
    assert status(studio.port, *rebound, *UPGRADE, **stream) == 403
    for name in ("127.0.0.1", "localhost", "[::1]"):
        own = (f"Host: {name}:{{port}}", f"Origin: http://{name}:{{port}}")
        assert status(studio.port, *own, path="/_stcore/health") == 200
        assert status(studio.port, *own, *UPGRADE, **stream) == 101


def test_a_foreign_name_that_leads_here_shows_nothing(studio, browser) -> None:
    rebound = browser.new_page()
    answer = rebound.goto(f"http://evil.test:{studio.port}/history")
    assert answer is not None and answer.status == 403
    assert rebound.evaluate("location.origin") == f"http://evil.test:{studio.port}"  # it did lead here
    assert "History" not in rebound.content()
    assert "not a name of this server" in rebound.inner_text("body")
    rebound.close()


OPENS = """async (port) => {
    const opened = await new Promise((done) => {
        const socket = new WebSocket(`ws://127.0.0.1:${port}/_stcore/stream`, ["streamlit"]);
        socket.onopen = () => done("open");
        socket.onerror = () => done("refused");
    });
    const sent = await fetch(`http://127.0.0.1:${port}/_stcore/upload_file/a/b`, {method: "PUT", body: "x"})
        .then((answer) => answer.status, () => "refused");
    const frame = document.createElement("iframe");
    const shown = new Promise((done) => { frame.onload = done; });
    frame.src = `http://127.0.0.1:${port}/`;
    document.body.append(frame);
    await shown;
    return [opened, sent];
}"""


def test_a_page_of_another_port_opens_sends_and_frames_nothing(studio, browser, elsewhere) -> None:
    hostile = browser.new_page()
    hostile.goto(elsewhere.url.replace("pictures.test", "127.0.0.1"))
    assert hostile.evaluate(OPENS, studio.port) == ["refused", "refused"]
    framed = hostile.frames[-1]
    assert framed is not hostile.main_frame
    expect(framed.locator("body")).not_to_contain_text("tuner is")  # the page draws its status line
    assert "no frame of another page" in framed.inner_text("body") or "chrome-error" in framed.url
    hostile.close()


@pytest.mark.parametrize(
    "pages", [pytest.param(SOME, id="some"), pytest.param(PAGES, id="all", marks=pytest.mark.slow)]
)
def test_pages_ask_nothing_of_another_host_and_their_policy_hinders_nothing_of_their_own(
    studio, browser, elsewhere, pages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    from tuner.config.config import make
    from tuner.tracking.runs import create_run, set_note, set_tag

    picture = f"![x]({elsewhere.url}/from-data.png)"
    monkeypatch.setenv("TUNER_HOME", str(studio.home))
    run = create_run(make({"model_name_or_path": "models/tiny", "dataset": "tiny_sft"}), f"a run {picture}")
    set_note(run.id, picture)
    set_tag(run.id, "seen", picture)
    page, said = browser.new_page(reduced_motion="reduce"), list[str]()
    page.on("console", lambda message: said.append(message.text))
    faces: list[str] = []
    page.on("response", lambda got: faces.append(got.url) if got.url.endswith(".woff2") and got.ok else None)
    for name in (*pages, f"runs?run={run.id}", f"compare?runs={run.id}"):
        page.goto(f"{studio.url}/{name}")
        expect(page.get_by_test_id("stSidebarNav")).to_be_visible()
        still(page)
    the_fonts_are_its_own_files(studio, page, faces)
    with page.expect_console_message(lambda said: "Content Security Policy" in said.text):
        page.evaluate(
            f"document.body.append(Object.assign(new Image(), {{src: {json.dumps(elsewhere.url)} + '/p'}}))"
        )
    page.close()
    outside = [path for path in elsewhere.asked if path not in ("/", "/favicon.ico")]
    record_property("outside_requests", len(outside))
    assert not outside
    blocked = [line for line in said if "Content Security Policy" in line]
    assert any("/p" in line for line in blocked), "the policy did not stand"
    assert not [line for line in blocked if "pictures.test" not in line], blocked


def the_fonts_are_its_own_files(studio, page, asked: list[str]) -> None:
    assert fonts(page) == FONTS
    faces = [url.removeprefix(f"{studio.url}/app/static/fonts/") for url in asked]
    assert {"inter-latin-wght-normal.woff2", "jetbrains-mono-latin-wght-normal.woff2"} <= set(faces)
