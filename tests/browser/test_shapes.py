"""The sample that sees, by clicking: a recipe launched, held-out pictures sorted before and after, and one shown in the chat."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import pick, still  # noqa: E402

expect = sync_api.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]
STARTER = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone has."""
    made = tmp_path_factory.mktemp("shapes")
    shutil.copytree(STARTER, made / "data", ignore=shutil.ignore_patterns("uploads"))
    return made


def test_a_model_that_sees_learns_and_is_asked(studio, page) -> None:
    page.goto(f"{studio.url}/new_run")
    box = page.locator(".st-key-start-from")
    named = partial(expect(box.locator("input")).to_have_attribute, "placeholder", "starter-vision")
    pick(page, box, "starter-vision", then=lambda timeout: named(timeout=timeout))
    still(page)
    page.get_by_role("button", name="Launch").click()
    page.wait_for_url(re.compile(r"/runs\?run=\w+"))
    expect(page.locator(".st-key-card-standing").get_by_text("Finished after")).to_be_visible(timeout=240_000)

    page.get_by_role("tab", name="Samples").click()
    score = page.get_by_test_id("stMetric").filter(has_text="Exact match")
    expect(score).to_contain_text("100%")
    expect(score).to_contain_text("50% before")
    cards = page.locator("[class*=st-key-card-row-sample-]")
    expect(cards).to_have_count(12)
    expect(cards.first.locator("img")).to_have_count(1)

    page.get_by_role("button", name="Chat", exact=True).click()
    said = page.get_by_placeholder("Write a message, or add a picture")
    expect(said).to_be_visible()
    still(page)
    page.locator("input[type=file]").set_input_files(studio.home / "data" / "starter_shapes" / "held-000.png")
    expect(page.get_by_text("held-000.png")).to_be_visible()
    said.fill("Which box is this for?")
    said.press("Enter")
    expect(page.get_by_text("The left box.")).to_be_visible(timeout=120_000)
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
