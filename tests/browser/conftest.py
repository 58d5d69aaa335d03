"""A real studio in a folder of its own, served to a real browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
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
        self.heard = 0

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
        """What it said since the file that asks began."""
        return (self.home / "dashboard.log").read_bytes()[self.heard :].decode(errors="replace")


@pytest.fixture(scope="session")
def common_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny model and sets that it learns by heart, in a folder with a space and Chinese characters."""
    made = tmp_path_factory.mktemp("我的 工作室")
    tiny.model(made / "models" / "tiny")
    tiny.data(made / "data", rows=64)
    return made


@pytest.fixture(scope="session")
def common_studio(common_home: Path) -> Iterator[Studio]:
    """One dashboard for all files that bring nothing of their own: a page takes seconds where it is the first."""
    with serving(Studio(common_home, TUNER_WORKER_MODULE=WORKER)) as served:
        yield served


WORKER = "tests.browser.common_worker"
"""The real one, but for runs whose name begins with "paced"."""


@contextmanager
def serving(made: Studio) -> Iterator[Studio]:
    made.start()
    yield made
    made.kill()
    _end_workers(made.home)


@pytest.fixture(scope="module")
def home(common_home: Path) -> Path:
    """A test file may bring another, or put something into this one."""
    return common_home


@pytest.fixture(scope="module")
def worker() -> str:
    """The module whose process a run is; a test file that needs no training may bring another."""
    return WORKER


@pytest.fixture(scope="module")
def studio(home: Path, worker: str, request: pytest.FixtureRequest) -> Iterator[Studio]:
    """The dashboard over that home. Runs of earlier files are at rest and not in its lists."""
    if home == request.getfixturevalue("common_home") and worker == WORKER:
        made = request.getfixturevalue("common_studio")
        made.heard = (made.home / "dashboard.log").stat().st_size
        yield made
        _end_workers(home, but=made.process)
        _put_away(home)
    else:
        with serving(Studio(home, TUNER_WORKER_MODULE=worker)) as made:
            yield made


def _put_away(home: Path) -> None:
    """Delete every run, as a person does."""
    from tuner.jobs import control, queue, supervisor
    from tuner.runs import locks
    from tuner.runs.run import all_runs
    from tuner.runs.status import ENDED
    from tuner.tracking.runs import delete_run, get_row

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        supervisor.leader_path().parent.mkdir(exist_ok=True)
        leader = locks.lock(supervisor.leader_path())  # no other one is started
        for run in all_runs():
            if run.status().state not in ENDED:
                control.stop(run)
            if (row := get_row(run.id)) and not row.deleted:
                delete_run(run.id)
        queue.pause(False)
        if leader is not None:
            os.close(leader)


def still(page: sync_api.Page) -> None:
    """Until the script of the page has run to its end."""
    app = page.get_by_test_id("stApp")
    sync_api.expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=120_000)


def field(page: sync_api.Page, name: str) -> sync_api.Locator:
    """The form's field of a knob."""
    return page.locator(f".st-key-field-{name}")


PATIENCE = (5_000, 10_000, 20_000, 60_000)
"""Milliseconds that each try to pick, type or open something waits for what comes of it."""
Then = Callable[[int], None] | None
"""Says what has come of something within so many milliseconds."""


def pick(
    page: sync_api.Page, box: sync_api.Locator, option: str, *, exact: bool = True, then: Then = None
) -> None:
    """Take an option of the list in `box`; once more where the page was drawn anew meanwhile, which closes the list.

    It ends by saying that the field shows the option, or what `then` says of a field that shows none.
    """
    shown = then or partial(shows, box, option if exact else re.compile(re.escape(option)))

    def take(patience: int) -> None:
        typed = box.locator("input")
        once(typed, patience)
        if typed.get_attribute("aria-expanded", timeout=patience) != "true":
            typed.click(timeout=patience)
        page.get_by_role("option", name=option, exact=exact).first.click(timeout=patience)
        _close_list(page)

    do_until(page, take, shown)


def once(drawn: sync_api.Locator, timeout: int = PATIENCE[-1]) -> None:
    """Until it is there once: what is replaced is drawn twice for a moment."""
    sync_api.expect(drawn).to_have_count(1, timeout=timeout)


def _close_list(page: sync_api.Page) -> None:
    """A list of which several can be taken stays open, and hides what lies below it."""
    if page.get_by_role("listbox").count():
        page.keyboard.press("Escape")


def shows(box: sync_api.Locator, option: str | re.Pattern[str], timeout: int) -> None:
    """The field in `box` shows the option as taken."""
    several = box.get_by_test_id("stMultiSelectTagsContainer")
    if several.count():
        sync_api.expect(several).to_contain_text(option, timeout=timeout)
    else:
        # The one that was replaced may stand behind it for as long as it has the focus.
        sync_api.expect(box.locator("input").first).to_have_value(option, timeout=timeout)


def value_of(page: sync_api.Page, typed: sync_api.Locator) -> str:
    """What stands in a field; looked at once more where the page was drawn anew meanwhile."""
    for patience in PATIENCE:
        still(page)
        with suppress(AssertionError, sync_api.Error):
            once(typed, patience)
            return typed.input_value(timeout=patience)
    return typed.input_value()


def type_text(page: sync_api.Page, typed: sync_api.Locator, text: str, then: Then = None) -> None:
    """Type into a field and press Enter; once more where the field was replaced meanwhile.

    It ends by saying that the field has another value than it had, for one is often written in another way than it was
    typed, or what `then` says.
    """
    before = value_of(page, typed)

    def enter(patience: int) -> None:
        once(typed, patience)
        typed.fill(text, timeout=patience)
        typed.press("Enter", timeout=patience)

    def changed(timeout: int) -> None:
        if text != before:
            sync_api.expect(typed).not_to_have_value(before, timeout=timeout)

    do_until(page, enter, then or changed)


def type_into(page: sync_api.Page, name: str, text: str, then: Then = None) -> None:
    """Type a knob's value in the form."""
    type_text(page, field(page, name).locator("input"), text, then)


def open_up(page: sync_api.Page, opener: sync_api.Locator, inside: sync_api.Locator) -> None:
    """Open a popover, a dialog or a part of the page; once more where the click was lost to a page drawn anew."""

    def press(patience: int) -> None:
        if not inside.is_visible():
            opener.click(timeout=patience)

    do_until(page, press, lambda timeout: sync_api.expect(inside).to_be_visible(timeout=timeout))


def do_until(page: sync_api.Page, do: Callable[[int], None], come: Callable[[int], None]) -> None:
    """Do something on a page at rest until something has come of it and stands once the page is at rest again."""
    for tries, patience in enumerate(PATIENCE):
        still(page)
        with suppress(AssertionError, sync_api.Error):
            if tries:
                _close_list(page)
                come(500)
                return
        with suppress(AssertionError, sync_api.Error):
            do(patience)
            come(patience)
            still(page)
            come(500)
            return
    come(PATIENCE[-1])


def _end_workers(home: Path, but: subprocess.Popen[bytes] | None = None) -> None:
    """Whatever the test left at work in this home: by the environment it was started with, never by a name."""
    import psutil

    killed = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (but is None or process.pid != but.pid) and process.environ().get("TUNER_HOME") == str(home):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=30)  # their locks are held until they are gone


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
    """A page that fails the test if anything outside this machine is asked for, or its own policy hindered something."""
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
    hindered = [said for said in opened.said if "Content Security Policy" in said]
    assert not hindered, hindered[:3]


def _own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "about:"))
