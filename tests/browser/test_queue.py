"""The queue in a real browser: runs submitted, one more launched from a page, their order changed, the dashboard killed
while one goes on, that one stopped from its page and resumed; nothing is lost and nothing is launched twice."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import open_up, pick, still, type_text  # noqa: E402

from tests.browser import paced_worker  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser

LONG = 150
"""Steps of the run that is at work while the dashboard is killed."""
WORDS = (
    *("--stage", "sft", "--do_train", "True", "--model_name_or_path", "models/tiny", "--dataset", "chat"),
    # One slot, wherever this test runs: what is queued then waits for what is at work.
    *("--use_cpu", "True"),
    *("--per_device_train_batch_size", "8", "--cutoff_len", "64", "--logging_steps", "50"),
)


@pytest.fixture(scope="module")
def worker() -> str:
    """What is queued, stopped and resumed here is a run, whatever it learns."""
    return paced_worker.NAME


def submit(studio, name: str, *words: str) -> list[str]:
    """Queue a run, or a sweep of runs, from the shell; the ids that it prints."""
    return studio.tuner("submit", *WORDS, "--run_name", name, *words).split()


def waiting(page, *names: str) -> None:
    """Wait until the queue's card lists these runs in this order, and no others."""
    rows = page.locator(".st-key-card-queue [class*=st-key-row-]")
    expect(rows).to_have_count(len(names))
    expect(rows).to_contain_text(list(names))


def until(page, true: Callable[[], bool], again: Callable[[], None] | None = None) -> None:
    """Wait for something outside the browser; `again` is done once more where nothing comes of it for 20 seconds.

    The page does the waiting: what goes over its wire goes through this process.
    """
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + 180
        if again and time.monotonic() > began + 20:
            again, _ = None, again()
        page.wait_for_timeout(50)


def press(page, act: str, run_id: str) -> None:
    """One of the small buttons in a run's row of the queue; a row that moves is drawn twice for a moment."""
    button = page.locator(f".st-key-{act}-{run_id}").get_by_role("button")
    page.mouse.move(0, 0)  # or the last button's tooltip lies over the one above it
    expect(button).to_have_count(1)
    button.click()


def open_run(page, name: str) -> None:
    still(page)  # a click on a row that is just drawn anew is lost
    page.get_by_test_id("stMain").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    still(page)


class Wire:
    """What goes between the browser and the dashboard; what the browser hears can be held up for a while."""

    def __init__(self, page):
        self.page, self.sent = page, 0
        self.kept: list[object] | None = None
        page.route_web_socket(re.compile("/_stcore/stream"), self._connect)

    def _connect(self, browser) -> None:
        server = browser.connect_to_server()
        self.browser = browser
        browser.on_message(lambda message: self._say(server, message))
        server.on_message(lambda message: self._hear(browser, message))

    def _say(self, server, message) -> None:
        self.sent += 1
        server.send(message)

    def _hear(self, browser, message) -> None:
        if self.kept is None:
            browser.send(message)
        else:
            self.kept.append(message)

    @contextmanager
    def slow(self, asked: int) -> Iterator[None]:
        """The browser hears nothing until it has asked so often for something."""
        self.kept, before = [], self.sent
        yield
        while self.sent < before + asked:
            self.page.wait_for_timeout(50)
        while self.kept:  # what comes meanwhile waits behind what came before
            self.browser.send(self.kept.pop(0))
        self.kept = None


def clone(page, wire: Wire, name: str) -> str:
    """From a run's page through the form into the queue; the new run's id.

    The browser learns late that it is on another page, and meanwhile asks for pieces of the one it was on.
    """
    with wire.slow(asked=3):
        page.get_by_role("button", name="Clone").click()
    head = page.get_by_role("heading", name="New run", level=1).element_handle()
    still(page)
    launch = page.get_by_role("button", name="Launch")
    expect(launch).to_be_enabled(timeout=120_000)
    assert head.evaluate("e => e.isConnected"), "the page was wiped out and drawn again"
    type_text(page, page.locator("[class*=st-key-run-name] input"), name)
    expect(page.get_by_test_id("stCode").first).to_contain_text(f"--run_name {name}")
    launch.click()
    page.wait_for_url(re.compile(r"/runs\?run=\w+"))
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    return str(re.search(r"run=(\w+)", page.url).group(1))


@pytest.mark.slow  # its order by clicking is in test_lists.py, a dashboard killed beside a run in test_way.py
def test_a_queue_outlives_the_dashboard(studio, page, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.jobs import control
    from tuner.runs import checkpoints
    from tuner.runs.run import Run

    monkeypatch.setenv("TUNER_HOME", str(studio.home))
    pace = studio.home / "pace"
    pace.write_text("0.3")  # it is not over before it was looked at
    studio.tuner("queue", "--pause")
    (long,) = submit(studio, "long", "--max_steps", str(LONG), "--save_steps", str(LONG))
    first, second = submit(studio, "short", "--max_steps", "3", "--seed", "1,2")

    # One more from the page, a copy of one that waits.
    wire = Wire(page)
    page.goto(f"{studio.url}/runs")
    waiting(page, "long", "short seed=1", "short seed=2")
    open_run(page, "short seed=2")
    copied = clone(page, wire, "copied")

    # Their order, changed by clicking; one is taken out.
    page.get_by_role("button", name="Runs and queue").click()
    waiting(page, "long", "short seed=1", "short seed=2", "copied")
    press(page, "keyboard_arrow_up", copied)
    waiting(page, "long", "short seed=1", "copied", "short seed=2")
    press(page, "keyboard_arrow_up", copied)
    waiting(page, "long", "copied", "short seed=1", "short seed=2")
    press(page, "close", second)
    waiting(page, "long", "copied", "short seed=1")

    # The queue goes on; the dashboard is killed while a run is in training.
    page.locator(".st-key-queue-paused label").click()
    waiting(page, "copied", "short seed=1")
    expect(page.locator(f".st-key-card-work-{long}")).to_contain_text(f"of {LONG:,}", timeout=60_000)
    worker, step = control.pid_of(Run(long)), Run(long).status().step
    assert worker is not None
    studio.kill()
    until(page, lambda: Run(long).status().step > step)
    os.kill(worker, signal.SIGSTOP)  # it went on; now it may take its time, however slow this machine is
    studio.start()
    page.goto(f"{studio.url}/runs")
    waiting(page, "copied", "short seed=1")
    assert control.pid_of(Run(long)) == worker

    press(page, "pause", first)
    waiting(page, "copied", "On hold.")

    # It is stopped from its page: a checkpoint is there, with the adapter in it.
    open_run(page, "long")
    stop = page.get_by_role("button", name="Stop")
    stop.click()
    until(
        page, lambda: Run(long).requested("stop"), again=stop.click
    )  # a page still being drawn may miss a click
    os.kill(worker, signal.SIGCONT)
    standing = page.locator(".st-key-card-standing")
    expect(standing).to_contain_text("Stopped at step")
    pace.write_text("0")
    kept = checkpoints.latest(Run(long))
    assert kept is not None and (kept / "adapter_model.safetensors").is_file()
    page.get_by_role("tab", name="Checkpoints").click()
    expect(page.get_by_text(f"Step {checkpoints.step_of(kept):,}", exact=True)).to_be_visible()

    # It is resumed by its button, waits for the one that was moved up, and finishes; what is on hold stays.
    resume = page.locator(".st-key-run-actions").get_by_role("button", name="Resume")
    still(page)
    resume.click()
    until(page, lambda: Run(long).status().resumes == 1, again=resume.click)
    expect(standing).to_contain_text("Finished after", timeout=300_000)
    assert Run(long).status().first_step == checkpoints.step_of(kept)
    assert Run(long).status().step == LONG
    page.get_by_role("button", name="Runs and queue").click()
    waiting(page, "short seed=1")
    press(page, "close", first)
    expect(page.locator(".st-key-card-queue")).to_have_count(0)

    ended = {i: Run(i).status().state for i in (long, copied, first, second)}
    assert ended == {long: "finished", copied: "finished", first: "stopped", second: "stopped"}
    assert launches(studio.home) == [long, copied, long]
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


@pytest.mark.slow
def test_several_values_make_as_many_runs(studio, page) -> None:
    studio.tuner("queue", "--pause")
    (one,) = submit(studio, "one", "--max_steps", "3")
    page.goto(f"{studio.url}/new_run?clone={one}")
    expect(page.get_by_role("button", name="Launch")).to_be_enabled()

    sweep = page.get_by_role("dialog")
    open_up(page, page.get_by_role("button", name="Sweep"), sweep)
    pick(page, sweep.locator(".st-key-sweep-knobs"), "Learning rate")
    typed = sweep.locator(".st-key-sweep-learning_rate input")
    type_text(page, typed, "1e-4, high")
    expect(sweep.get_by_text("should be a number")).to_be_visible()
    expect(sweep.get_by_role("button", name="Queue")).to_be_disabled()
    type_text(page, typed, "1e-4, 3e-4")
    sweep.get_by_role("button", name="Queue 2 runs").click()

    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    waiting(page, "one", "learning_rate=1e-4", "learning_rate=3e-4")
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


def launches(home: Path) -> list[str]:
    """The runs whose worker was started, each time, by the supervisor's own log."""
    said = (home / "mlruns" / "supervisor.log").read_text()
    assert "Traceback" not in said, said[-3000:]
    return re.findall(r"(\w+): started as process", said)
