"""The studio behind a reverse proxy with TLS, by the very examples of docs/security.md."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import ROOT, Studio, _end_workers, fonts, still  # noqa: E402

expect = sync_api.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAME = "studio.example.org"
HERE = NAME.replace("example.org", "test")
"""What the browser of the tests finds on this machine."""


def example(proxy: str) -> str:
    """A config as the page shows it."""
    text = (ROOT / "docs" / "security.md").read_text()
    block = re.search(rf"^{proxy}[^\n]*:\n\n((?:    [^\n]*\n)+)", text, re.MULTILINE)
    assert block is not None
    return re.sub("^    ", "", block[1], flags=re.MULTILINE).replace(NAME, HERE)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody but the maker vouches for, and its key."""
    made = folder / "studio.pem", folder / "studio.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HERE}"]
        + ["-addext", f"subjectAltName=DNS:{HERE}", "-out", made[0], "-keyout", made[1]],
        check=True,
        capture_output=True,
    )
    return made


def nginx(folder: Path, port: int, studio: int) -> list[str]:
    """The example on a port and with a certificate of the test's, inside what nginx needs around it."""
    cert, key = certificate(folder)
    site = example("nginx").replace("listen 443 ", f"listen 127.0.0.1:{port} ").replace("8501", str(studio))
    site = site.replace("/etc/ssl/studio.pem", str(cert)).replace("/etc/ssl/studio.key", str(key))
    own = [
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ]
    me = (
        f"user {getpass.getuser()}; " if os.geteuid() == 0 else ""
    )  # root's workers may not enter the folder else
    (folder / "nginx.conf").write_text(
        f"{me}daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {' '.join(own)}\n{site}}}\n"
    )
    return ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def caddy(folder: Path, port: int, studio: int) -> list[str]:
    cert, key = certificate(folder)
    site = (
        example("Caddy")
        .replace("8501", str(studio))
        .replace(f"{HERE} {{", f"{HERE}:{port} {{\n  tls {cert} {key}")
    )
    (folder / "Caddyfile").write_text(f"{{\n  admin off\n  auto_https disable_redirects\n}}\n{site}")
    return ["caddy", "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


PROXIES = {"nginx": nginx, "caddy": caddy}


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    """Started as the page says, for a name that it would refuse otherwise."""
    served = Studio(home, TUNER_ALLOWED_HOSTS=HERE)
    served.start()
    yield served
    served.kill()
    _end_workers(home)


@pytest.fixture(params=PROXIES)
def proxied(request: pytest.FixtureRequest, studio: Studio, tmp_path: Path) -> Iterator[int]:
    """The port of a proxy before the studio."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    port = free_port()
    command = PROXIES[request.param](tmp_path, port, studio.port)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 20
            while time.monotonic() < end and process.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield port
        finally:
            process.terminate()
            process.wait(20)


def answer(port: int, *headers: str) -> str:
    """What the proxy answers to one request with these headers."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
        trusting.wrap_socket(raw, server_hostname=HERE) as secure,
    ):
        asked = ["GET /history HTTP/1.1", *headers, "Connection: close", "", ""]
        secure.sendall("\r\n".join(asked).encode())
        return b"".join(iter(lambda: secure.recv(2**16), b"")).decode()


def test_pages_websocket_and_upload_pass_and_foreign_names_do_not(
    proxied: int, studio: Studio, browser, tmp_path: Path
) -> None:
    tabs = browser.new_context(ignore_https_errors=True, viewport={"width": 1440, "height": 1000})
    page, sockets, said = tabs.new_page(), list[str](), list[str]()
    page.set_default_timeout(60_000)
    page.on("websocket", lambda opened: sockets.append(opened.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"https://{HERE}:{proxied}/datasets")
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible()
    still(page)
    assert sockets == [f"wss://{HERE}:{proxied}/_stcore/stream"]
    assert fonts(page) == {"Inter": "loaded", "JetBrains Mono": "loaded"}
    rows = tmp_path / "mine.jsonl"  # larger than a proxy takes that was told nothing
    rows.write_text('{"instruction": "say", "output": "yes"}\n' * 60_000)
    page.get_by_text("Add a data set").click()
    page.locator(".st-key-bring input[type=file]").set_input_files(rows)
    expect(page.get_by_text("mine.jsonl", exact=True)).to_be_visible()
    still(page)
    expect(page.get_by_role("button", name="Add to the catalog")).to_be_enabled()
    assert not [text for text in said if "Content Security Policy" in text or "WebSocket" in text]
    tabs.close()
    own = (f"Host: {HERE}:{proxied}", f"Origin: https://{HERE}:{proxied}")
    assert answer(proxied, *own).startswith("HTTP/1.1 200") and "<title>" in answer(proxied, *own)
    assert answer(proxied, own[0], "Origin: https://evil.test").startswith("HTTP/1.1 403")
    assert "<title>" not in answer(proxied, "Host: evil.test")  # Caddy passes on its own names only
