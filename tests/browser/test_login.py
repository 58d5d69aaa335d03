"""Two people in two browsers: one may launch, one may look. Both log in at a real provider, which the test runs itself."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("authlib", reason="Authlib is not installed; pip install -e .[dev]")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
import oidc  # noqa: E402
from conftest import Studio, _end_workers  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser

MIA, RON, EVE = "mia@example.org", "ron@example.org", "eve@example.org"
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


def tab(browser, studio, provider, person: str):
    """A page of a browser of its own, whose person the provider knows."""
    tabs = browser.new_context(viewport={"width": 1440, "height": 1000})
    tabs.add_cookies([{"name": "person", "value": person, "url": provider.url}])
    page = tabs.new_page()
    page.set_default_timeout(20_000)
    page.goto(f"{studio.url}/history")
    return page


def log_in(browser, studio, provider, person: str):
    page = tab(browser, studio, provider, person)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{studio.url}/")
    return page


def settled(page) -> None:
    page.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'")


def go(page, studio, path: str) -> None:
    page.goto(f"{studio.url}/{path}")
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible()
    settled(page)


def test_who_is_not_logged_in_or_not_known_sees_nothing(studio, browser, provider) -> None:
    page = tab(browser, studio, provider, "eve")
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert page.get_by_test_id("stSidebarNav").count() == 0
    assert page.get_by_test_id("stDataFrame").count() == 0
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("You are not among the people of this studio")).to_be_visible()
    expect(page.get_by_text(EVE)).to_be_visible()
    assert page.get_by_test_id("stSidebarNav").count() == 0
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.context.close()


def test_a_launcher_launches_and_a_reader_only_looks(studio, browser, provider, monkeypatch) -> None:
    from tuner.jobs import control
    from tuner.tracking import events
    from tuner.tracking.run import Run
    from tuner.tracking.runs import get_row

    monkeypatch.setenv("TUNER_HOME", str(studio.home))
    (studio.home / "configs").mkdir()
    (studio.home / "configs" / "own.yaml").write_text(
        "model_name_or_path: models/tiny\nstage: sft\ndo_train: true\ndataset: chat\nuse_cpu: true\ncutoff_len: 64\nmax_steps: 3\n"
    )
    mia = log_in(browser, studio, provider, "mia")
    expect(mia.get_by_text(f"Mia@example.org, launcher")).to_be_visible()
    go(mia, studio, "new_run")
    mia.get_by_role("combobox", name="Start from").click()
    mia.get_by_role("option", name="own (saved)").click()
    expect(mia.get_by_role("button", name="Launch")).to_be_enabled()
    mia.get_by_role("button", name="Launch").click()
    mia.wait_for_url(re.compile(r"/runs\?run=\w+"))
    expect(mia.get_by_text("launched by Mia@example.org")).to_be_visible()
    run = Run(re.search(r"run=(\w+)", mia.url).group(1))
    assert [(e.by, e.what) for e in events.of(run)] == [("Mia@example.org", "launch")]
    assert control.wait(run, 60).state == "finished"

    ron = log_in(browser, studio, provider, "ron")
    expect(ron.get_by_text(f"{RON}, reader")).to_be_visible()
    go(ron, studio, "history")
    ron.context.close()
    mia.context.close()
