"""The form in a real browser: what stands against a launch can be taken away, and every tab keeps a draft of its own."""

from __future__ import annotations

import json
import re

import pytest
import tiny

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import field, open_up, pick, type_into, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser


def change(page, name: str, text: str) -> None:
    """Type a knob's value and wait until the form counts it as a change."""
    reset = page.locator(f"[class*='st-key-reset-{name}']")
    type_into(page, name, text, then=lambda timeout: expect(reset).to_be_visible(timeout=timeout))


@pytest.mark.slow  # the form's own way, from a recipe to a launch, is in test_way.py
def test_probe_is_checked_emptied_and_drafts_stay_apart(studio, page, record) -> None:
    launch = page.get_by_role("button", name="Launch")
    own = tiny.data(studio.home / "own", rows=16)
    catalog = json.loads((own / "dataset_info.json").read_text())
    del catalog["chat"]
    (own / "dataset_info.json").write_text(json.dumps(catalog))
    values = {"model_name_or_path": "models/tiny", "dataset": "pairs", "probe": "chat"}
    page.goto(f"{studio.url}/new_run?clone={record('origin', **values)}")
    expect(launch).to_be_enabled()

    # A recipe pointed at one's own data: the held-out questions are not there.
    page.get_by_text("Advanced", exact=True).click()
    open_up(page, page.locator(".st-key-open-Data").get_by_role("button"), field(page, "dataset_dir"))
    change(page, "dataset_dir", "own")
    expect(field(page, "probe")).to_contain_text("The data set chat is not in dataset_info.json")
    expect(launch).to_be_disabled()
    expect(page.locator(".st-key-card-run").get_by_role("button", name="Empty Probe")).to_be_visible()
    empty = page.locator(".st-key-clear-probe").get_by_role("button")
    expect(empty).to_have_count(1)  # a field that is replaced is drawn twice for a moment
    empty.click()
    expect(field(page, "probe").locator("input").first).to_have_value("")
    expect(launch).to_be_enabled()
    expect(page.get_by_test_id("stCode").first).not_to_contain_text("--probe")

    # Each tab keeps its own; a new one starts from the newest.
    other = page.context.new_page()
    other.goto(f"{studio.url}/new_run")
    expect(field(other, "probe").locator("input").first).to_have_value("")
    change(other, "seed", "99")
    change(page, "num_train_epochs", "7")
    for tab, name, wanted in ((page, "num_train_epochs", "7"), (other, "seed", "99")):
        tab.reload()
        expect(field(tab, name).locator("input").first).to_have_value(re.compile(wanted))
    expect(field(page, "seed").locator("input").first).to_have_value("42")
    expect(field(other, "num_train_epochs").locator("input").first).to_have_value(re.compile("^3"))
    other.close()

    # Two runs of one name from one copied command: the command has no name that nobody chose.
    expect(page.get_by_test_id("stCode").first).not_to_contain_text("--run_name")

    # A run that failed for this is not resumed into the same failure, and its copy can be mended.
    broken = record("broken", state="failed", **values | {"dataset_dir": "own"})
    page.goto(f"{studio.url}/runs?run={broken}")
    expect(page.get_by_role("button", name="Resume")).to_be_disabled()
    page.locator(".st-key-card-remedies").get_by_role("button", name="Empty Probe in a copy").click()
    expect(page.get_by_role("heading", name="New run", level=1)).to_be_visible()
    expect(launch).to_be_enabled()
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


@pytest.mark.slow  # what a page makes of rewards is in test_trying.py and test_rewards.py
def test_rewards_are_added_set_and_taken_out(studio, page, record) -> None:
    values = {"model_name_or_path": "models/tiny", "dataset": "chat", "stage": "grpo", "num_generations": 4}
    page.goto(f"{studio.url}/new_run?clone={record('rewarded', reward_funcs=['json_valid'], **values)}")
    rewards, command = field(page, "reward_funcs"), page.get_by_test_id("stCode").first
    expect(command).to_contain_text("--reward_funcs json_valid")
    needs = expect(page.locator(".st-key-card-run"))
    pick(
        page, rewards.locator("[class*='st-key-knob-'][class*=add]"), "Contains a text", exact=False,
        then=lambda timeout: needs.to_contain_text("contains needs text", timeout=timeout),
    )  # fmt: skip
    expect(page.get_by_role("button", name="What would be rewarded")).to_be_disabled()
    type_text(page, rewards.get_by_label("Text", exact=True), "thank you, sir")
    expect(command).to_contain_text('"contains": {"text": "thank you, sir"}')
    expect(page.get_by_role("button", name="Launch")).to_be_enabled()
    rewards.get_by_role("button", name="Remove").first.click()
    expect(command).not_to_contain_text("json_valid")
    expect(command).to_contain_text("thank you, sir")
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
