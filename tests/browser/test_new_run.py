"""New run in a real browser: the card follows what is touched, rare parameters are found, a sweep is queued from its dialog."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import field, open_up, pick, still, type_into, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
VALUES = {"model_name_or_path": "models/tiny", "dataset": "pairs", "stage": "dpo"}


@pytest.fixture(scope="module")
def worker() -> str:
    return "tests.browser.paced_worker"


@pytest.mark.slow
def test_a_touch_draws_its_section_and_a_sweep_is_queued(studio, page, record) -> None:
    studio.tuner("queue", "--pause")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{studio.url}/new_run?clone={record('origin', **VALUES)}")
    command = page.locator(".st-key-card-same").get_by_test_id("stCode")
    expect(command).to_contain_text("--stage dpo")
    still(page)

    # The card follows a touched section.
    type_into(page, "learning_rate", "0.002")
    expect(command).to_contain_text("--learning_rate 0.002")
    expect(page.get_by_role("button", name="Undo 1 change")).to_be_visible()
    expect(field(page, "learning_rate").get_by_role("button", name="Undo Learning rate")).to_be_visible()
    type_into(page, "learning_rate", "fast")
    expect(page.get_by_role("button", name="Launch")).to_be_disabled()
    page.get_by_role("button", name="Undo 1 change").click()
    expect(command).not_to_contain_text("--learning_rate 0.002")
    expect(page.get_by_role("button", name="Launch")).to_be_enabled()

    # A rare parameter is found among the advanced ones, and stays once it is set.
    page.get_by_text("Advanced", exact=True).click()
    type_text(page, page.get_by_label("Find a parameter"), "adam_beta1")
    type_into(page, "adam_beta1", "0.8")
    expect(command).to_contain_text("--adam_beta1 0.8")

    # YAML and Python say the same.
    page.locator(".st-key-card-same").get_by_role("tab", name="Python").click()
    expect(command).to_contain_text("'adam_beta1': 0.8")

    # A sweep, in a dialog that fits.
    dialog = page.get_by_role("dialog")
    open_up(page, page.locator(".st-key-sweep").get_by_role("button"), dialog)
    pick(page, dialog.locator(".st-key-sweep-knobs"), "Learning rate")
    type_text(page, dialog.get_by_role("textbox", name="Learning rate"), "1e-4, 3e-4, 1e-3")
    queue = dialog.get_by_role("button", name="Queue 3 runs")
    expect(queue).to_be_enabled()
    box = queue.bounding_box()
    assert box["y"] + box["height"] < 900
    queue.click()
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    expect(page.locator(".st-key-card-queue")).to_contain_text("learning_rate=1e-4")
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
