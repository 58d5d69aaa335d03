"""A real studio in a folder of its own, served to a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)


sync_api.expect.set_options(timeout=60_000)  # a busy machine is no fault


class Studio:
    """A dashboard process over a home folder; it can be killed and started again."""

    program: tuple[str, ...] = (sys.executable, "-m", "tuner")
    """What a person types as `tuner`."""

    def __init__(self, home: Path, **environment: str):
        self.home, self.more = home, environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.home / "dashboard.log").open("ab")
        self.process = subprocess.Popen(
            [*self.program, "webui", "--port", str(self.port)],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(self.url, timeout=2):
                return
            time.sleep(0.2)
        raise AssertionError((self.home / "dashboard.log").read_text()[-3000:])

    @property
    def folder(self) -> Path:
        """Where the person types it."""
        return ROOT

    @property
    def environment(self) -> dict[str, str]:
        """This home, this tree, and no hub nor anything cached from one: whatever a run needs must lie in the home."""
        own = {"TUNER_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.home / "empty-hub-cache")}
        return {**os.environ, **own, **hub, **self.more}

    def tuner(self, *words: str) -> str:
        """A verb of the shell in this home, as a person types it; what it prints."""
        done = subprocess.run(
            [*self.program, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return (self.home / "dashboard.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny model and sets that it learns by heart; a test file may bring another."""
    made = tmp_path_factory.mktemp("studio")
    tiny.model(made / "models" / "tiny")
    tiny.data(made / "data", rows=64)
    return made


@pytest.fixture(scope="module")
def worker() -> str:
    """The module whose process a run is; a test file that needs no training may bring another."""
    return "tuner.worker"


@pytest.fixture(scope="module")
def studio(home: Path, worker: str) -> Iterator[Studio]:
    """The dashboard over that home."""
    served = Studio(home, TUNER_WORKER_MODULE=worker)
    served.start()
    yield served
    served.kill()
    _end_workers(home)


def still(page: sync_api.Page) -> None:
    """Until the script of the page has run to its end."""
    app = page.get_by_test_id("stApp")
    sync_api.expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=120_000)


def field(page: sync_api.Page, name: str) -> sync_api.Locator:
    """The form's field of a knob."""
    return page.locator(f".st-key-field-{name}")


def type_into(page: sync_api.Page, name: str, text: str) -> None:
    """Type a knob's value, once its field is there; a field that is replaced is drawn twice for a moment."""
    still(page)
    typed = field(page, name).locator("input")
    sync_api.expect(typed).to_have_count(1)
    typed.fill(text)
    typed.press("Enter")


def _end_workers(home: Path) -> None:
    """Whatever the test left at work in this home: by the environment it was started with, never by a name."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TUNER_HOME") == str(home):
                process.kill()


@pytest.fixture
def record(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A run in the studio's home that ended, written by the same functions that a worker calls; its id."""
    monkeypatch.setenv("TUNER_HOME", str(studio.home))

    def recorded(name: str, state: str = "finished", **values: object) -> str:
        from tuner.config.config import make
        from tuner.runs.metrics import MetricsLog
        from tuner.tracking import outcome
        from tuner.tracking.runs import create_run

        run = create_run(make({"stage": "dpo", "do_train": True, **values}), name)
        log = MetricsLog(run)
        for step in range(1, 21):
            log.log(step, {"loss": 0.693 - step * 0.004, "rewards/margins": step * 0.01})
        log.close()
        run.update(state="running", started=time.time() - 60, step=20, total_steps=20)
        outcome.finish(run, state)
        return run.id

    return recorded


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    """The machine's Chromium, or Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    flags += ["--host-resolver-rules=MAP *.test 127.0.0.1"]  # what a hostile name server would answer
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=flags)
        except sync_api.Error as error:
            pytest.skip(f"no Chromium on this machine: {str(error).splitlines()[0]}")
        yield started
        started.close()


FONTS = {"Inter": "loaded", "JetBrains Mono": "loaded"}


def fonts(page: sync_api.Page) -> dict[str, str]:
    """What became of the studio's fonts, asked for as text asks for them."""
    ask = "name => document.fonts.load(`13px '${name}'`).then(found => found.map(face => face.status).join())"
    return {name: page.evaluate(ask, name) for name in FONTS}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    """A failing test leaves a picture of what the browser showed: in PICTURES, or in its own temporary folder."""
    report = yield
    page = item.funcargs.get("page")
    if report.when == "call" and report.failed and page is not None:
        folder = Path(os.environ.get("PICTURES") or item.funcargs["studio"].home)
        with suppress(sync_api.Error):
            page.screenshot(path=folder / f"{item.name}.png")
            report.sections.append(("picture", str(folder / f"{item.name}.png")))
            report.sections.append(("what the browser said", "\n".join(item.funcargs["page"].said)[-3000:]))
    return report


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A page that fails the test if anything outside this machine is asked for."""
    # No pictures are drawn of things that fade in: without a GPU each costs as much as the page itself.
    tabs = browser.new_context(viewport={"width": 1440, "height": 1000}, reduced_motion="reduce")
    opened = tabs.new_page()
    opened.set_default_timeout(60_000)  # a click waits as long as the page takes to be drawn
    opened.said = []
    opened.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
    opened.on("crash", lambda _: opened.said.append("the page crashed"))
    opened.on("console", lambda m: opened.said.append(m.text) if m.type == "error" else None)
    strangers: list[str] = []
    tabs.on("request", lambda r: None if _own(r.url) else strangers.append(r.url))
    yield opened
    tabs.close()
    assert not strangers, f"asked of the network: {strangers[:3]}"


def _own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "about:"))
