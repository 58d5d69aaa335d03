"""Two people in two browsers: one may launch, one may look. Both log in at a real provider, which the test runs itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("authlib", reason="Authlib is not installed; pip install -e .[dev]")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
import oidc  # noqa: E402
from conftest import Studio, _end_workers, open_up, pick  # noqa: E402

expect = sync_api.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]

RON, EVE = "ron@example.org", "eve@example.org"
PEOPLE = {
    "mia": {"email": "Mia@example.org", "email_verified": True, "groups": ["staff", "gpu"]},
    "ron": {"email": RON, "email_verified": True, "groups": ["staff"]},
    "eve": {"email": EVE},
}
ROLES = """
[tuner]
launcher_groups = ["gpu"]
readers = ["Ron@Example.org"]
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[oidc.Provider]:
    made = oidc.Provider(PEOPLE)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def studio(home, provider) -> Iterator[Studio]:
    served = Studio(home)
    oidc.secrets_file(home, provider, served.url, ROLES)
    served.start()
    yield served
    served.kill()
    _end_workers(home)


def tab(browser, studio, provider, person: str, page=None):
    """A page of a browser of its own, whose person the provider knows."""
    page = page or browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.context.add_cookies([{"name": "person", "value": person, "url": provider.url}])
    page.set_default_timeout(20_000)
    page.goto(f"{studio.url}/history")
    return page


def log_in(browser, studio, provider, person: str, page=None):
    page = tab(browser, studio, provider, person, page)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{studio.url}/")
    return page


def settled(page) -> None:
    page.wait_for_function(
        "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
    )


def go(page, studio, path: str) -> None:
    page.goto(f"{studio.url}/{path}")
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible()
    settled(page)


def called(address: str) -> re.Pattern[str]:
    """An address as a page writes it, so that the browser makes no link of it."""
    return re.compile(re.escape(address).replace("@", "@.?"))


def locked(widget) -> None:
    """It cannot be pressed or typed into, and says why to who points at it."""
    expect(widget).to_be_disabled()


def reason(page, widget) -> None:
    widget.locator("xpath=ancestor::*[@data-testid='stTooltipHoverTarget'][1]").hover(force=True)
    expect(page.get_by_text("You may look at everything and change nothing").last).to_be_visible()
    page.mouse.move(0, 0)


class Wire:
    """What a page and the studio say to each other; something can be said in the page's name that it did not say."""

    def __init__(self, page) -> None:
        self.heard: list[bytes] = []
        self.asked: list[bytes] = []
        page.route_web_socket(re.compile("/_stcore/stream"), self._connect)

    def _connect(self, browser) -> None:
        self.server = server = browser.connect_to_server()

        def say(message: bytes) -> None:
            self.asked.append(message)
            server.send(message)

        def hear(message: bytes) -> None:
            self.heard.append(message)
            browser.send(message)

        browser.on_message(say)
        server.on_message(hear)

    def button(self, label: str) -> str:
        """The id of the button that was drawn last with this label."""
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        for raw in reversed(self.heard):
            element = ForwardMsg.FromString(raw).delta.new_element
            if element.button.label == label:
                return str(element.button.id)
        raise AssertionError(f"no button {label}")

    def press(self, label: str) -> None:
        """Say that a button was pressed, as a page would say of one that can be."""
        from streamlit.proto.BackMsg_pb2 import BackMsg

        asked = [BackMsg.FromString(raw) for raw in self.asked]
        said = next(
            one
            for one in reversed(asked)
            if one.HasField("rerun_script") and not one.rerun_script.fragment_id
        )
        state = said.rerun_script.widget_states.widgets.add()
        state.id, state.trigger_value = self.button(label), True
        self.server.send(said.SerializeToString())


def test_who_is_not_logged_in_or_not_known_sees_nothing(studio, browser, provider) -> None:
    page = tab(browser, studio, provider, "eve")
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert page.get_by_test_id("stSidebarNav").count() == 0
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("You have no access to this studio")).to_be_visible()
    expect(page.get_by_text(called(EVE))).to_be_visible()
    assert page.get_by_test_id("stSidebarNav").count() == 0
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.context.close()


def test_an_old_login_ends(studio, browser, provider) -> None:
    provider.age = 13 * 3600
    try:
        page = log_in(browser, studio, provider, "mia")
        expect(page.get_by_text("Your login has ended")).to_be_visible()
        assert page.get_by_test_id("stSidebarNav").count() == 0
    finally:
        provider.age = 0
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text(re.compile("launcher$"))).to_be_visible()
    page.context.close()


def test_a_launcher_launches_and_a_reader_looks_at_it_and_changes_nothing(
    studio, browser, provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.jobs import control
    from tuner.runs import events
    from tuner.runs.run import Run
    from tuner.tracking.adapters import list_adapters
    from tuner.tracking.runs import get_row

    monkeypatch.setenv("TUNER_HOME", str(studio.home))
    (studio.home / "configs").mkdir()
    (studio.home / "configs" / "own.yaml").write_text(
        "model_name_or_path: models/tiny\nstage: sft\ndo_train: true\ndataset: chat\nuse_cpu: true\n"
        "cutoff_len: 64\nmax_steps: 3\nsave_steps: 3\n"
    )
    mia = log_in(browser, studio, provider, "mia")
    expect(mia.get_by_text(called("Mia@example.org, launcher"))).to_be_visible()
    go(mia, studio, "new_run")
    launch = expect(mia.get_by_role("button", name="Launch"))
    pick(
        mia, mia.locator(".st-key-start-from"), "own (saved)", then=lambda timeout: launch.to_be_enabled(timeout=timeout)
    )  # fmt: skip
    mia.get_by_role("button", name="Launch").click()
    mia.wait_for_url(re.compile(r"/runs\?run=\w+"))
    expect(mia.get_by_text(called("launched by Mia@example.org"))).to_be_visible()
    run = Run(re.search(r"run=(\w+)", mia.url).group(1))
    assert [(e.by, e.what) for e in events.of(run)] == [("Mia@example.org", "launch")]
    assert control.wait(run, 120).state == "finished", run.status().reason
    mia.context.close()
    studio.tuner("queue", "--pause")
    waits = studio.tuner("submit", str(studio.home / "configs" / "own.yaml"), "--run_name", "waits").split()[
        -1
    ]

    ron = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    wire = Wire(ron)
    ron = log_in(browser, studio, provider, "ron", ron)
    expect(ron.get_by_text(called(f"{RON}, reader"))).to_be_visible()
    before = at_rest(studio.home, waits)

    go(ron, studio, f"runs?run={run.id}")
    expect(ron.get_by_text(called("launched by Mia@example.org"))).to_be_visible()
    expect(ron.get_by_role("button", name="Clone")).to_be_enabled()
    ron.get_by_role("tab", name="Checkpoints").click()
    locked(ron.get_by_role("button", name="Resume from here").first)
    ron.get_by_role("tab", name="Details").click()
    expect(ron.get_by_text("Activity")).to_be_visible()

    wire.press("Clone")  # that one he may press: what is said in the page's name is heard
    ron.wait_for_url(re.compile("/new_run"))
    go(ron, studio, f"runs?run={waits}")
    locked(ron.get_by_role("button", name="Cancel"))
    wire.press("Cancel")
    settled(ron)

    go(ron, studio, "runs")
    for act in ("keyboard_arrow_up", "keyboard_arrow_down", "pause", "close"):
        locked(ron.locator(f".st-key-{act}-{waits}").get_by_role("button"))
    locked(ron.get_by_role("switch", name="Paused"))

    go(ron, studio, "history")
    expect(ron.locator(".picked-table")).to_contain_text("Mia@example.org")
    ron.get_by_label(f"Choose {run.name}").check()
    delete = ron.locator(".st-key-history-actions").get_by_role("button", name="Delete")
    locked(delete)
    reason(ron, delete)
    locked(ron.get_by_role("textbox", name="Name"))
    locked(ron.get_by_role("textbox", name="Note"))
    locked(ron.get_by_role("combobox", name="Tags"))
    wire.press("Delete")
    settled(ron)

    go(ron, studio, "new_run")
    locked(ron.get_by_role("button", name="Launch"))
    ron.get_by_role("tab", name="YAML").click()
    locked(ron.get_by_role("button", name="Save", exact=True))
    wire.press("Launch")
    settled(ron)

    go(ron, studio, "datasets")
    ron.get_by_text("Add a data set").click()
    locked(ron.get_by_role("textbox", name="Or a path on the machine"))
    assert ron.locator("input[type=file]").first.is_disabled()

    go(ron, studio, "adapters")
    open_up(ron, ron.get_by_role("button", name="Aliases"), ron.get_by_test_id("stPopoverBody"))
    locked(ron.get_by_role("combobox", name="Alias"))
    locked(ron.get_by_role("button", name="Set"))

    go(ron, studio, "history")  # drawn to its end after what a forged word might still set off
    assert files(studio.home) == before
    row = get_row(run.id)
    assert row is not None and not row.deleted and not list_adapters()[0].aliases
    assert Run(waits).status().state == "queued"
    ron.context.close()


def at_rest(home: Path, waits: str) -> object:
    """What lies in a studio once MLflow has been told of the run that waits: nobody but a page changes it then."""
    from tuner.runs.run import Run
    from tuner.tracking.sync_state import SyncState

    end, found = time.monotonic() + 120, files(home)
    while time.monotonic() < end:
        time.sleep(3.0)
        before, found = found, files(home)
        if SyncState.of(Run(waits)).mlflow_id and found == before:
            break
    return found


def files(home: Path) -> set[str]:
    """What the studio keeps of runs, drafts and configs; an open database and logs aside."""
    kept = ("runs", "drafts", "events.jsonl")
    found = [p for name in kept for p in (home / "mlruns" / name, *(home / "mlruns" / name).rglob("*"))]
    stamps = {p: p.stat().st_mtime_ns for p in found if p.is_file() and not p.name.endswith(".lock")}
    return {f"{p} {stamp}" for p, stamp in stamps.items()} | {str(p) for p in (home / "configs").iterdir()}
