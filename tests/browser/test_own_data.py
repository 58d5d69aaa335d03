"""A file of one's own: uploaded with columns nobody knows, mapped by hand, looked at as tokens, trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import pick, still, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser


# What is drawn anew misses a click: none is made before the page is still.


def choose(page, key: str, option: str) -> None:
    pick(page, page.locator(f".st-key-{key}"), option, exact=False)


@pytest.mark.slow  # the page and its ways are in the upload below; this is about another folder than the usual one
def test_the_folder_is_chosen_and_a_set_that_is_not_there_is_said(studio, page) -> None:
    own = tiny.data(studio.home / "own", rows=4)
    (own / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "chat.json"}}))
    folder = page.locator(".st-key-catalog-folder")

    page.goto(f"{studio.url}/datasets?dataset=mine")
    expect(page.get_by_text(f"The data set mine is not in {studio.home / 'data'}")).to_be_visible()
    page.get_by_role("link", name="pairs").press(
        "Enter"
    )  # a row is opened by its name, with the keyboard too
    expect(page.get_by_role("heading", name="pairs")).to_be_visible()
    expect(page).to_have_url(re.compile("dataset=pairs"))

    type_text(page, folder.locator("input"), "own")
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    expect(folder).to_contain_text(str(own))
    still(page)
    page.get_by_text("Add a data set").click()
    expect(page.get_by_text(f"is copied into {own / 'uploads'}")).to_be_visible()

    # A link says the folder; where another one has the set, the way there is one click.
    page.goto(f"{studio.url}/datasets?dataset=pairs&folder=own")
    expect(page.get_by_text(f"The data set pairs is not in {own}")).to_be_visible()
    still(page)
    page.get_by_role("button", name="Show pairs of data").click()
    expect(page.get_by_role("heading", name="pairs")).to_be_visible()
    still(page)
    page.get_by_test_id("stMain").get_by_role("link", name="chat", exact=True).click()
    expect(page.get_by_role("heading", name="chat")).to_be_visible()
    expect(page.locator("[class*=st-key-use-chat]")).to_be_visible()
    still(page)
    page.get_by_role("button", name="Use in a new run").click()
    expect(page.locator(".st-key-field-dataset")).to_contain_text("chat")
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


def test_upload_map_look_and_train(studio, page, tmp_path: Path) -> None:
    rows = [{"frage": f"warm sun {i} <b>&amp;</b>", "antwort": f"cold moon {i}"} for i in range(12)]
    own = tmp_path / "meine.json"
    own.write_text(json.dumps(rows))

    page.goto(f"{studio.url}/datasets")
    expect(page.get_by_role("heading", name="Datasets", level=1)).to_be_visible()
    still(page)
    page.get_by_text("Add a data set").click()
    page.locator(".st-key-bring input[type=file]").set_input_files(own)
    expect(page.get_by_text("No column name was recognised")).to_be_visible()
    expect(page.get_by_text("meine.json", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Add to the catalog")).to_be_disabled()
    choose(page, "map-prompt", "frage")
    choose(page, "map-response", "antwort")
    expect(page.get_by_text("usable: 3")).to_be_visible()
    expect(page.get_by_text("warm sun 0 <b>&amp;</b>").first).to_be_visible()
    type_text(page, page.locator(".st-key-map-name input"), "meine")
    page.get_by_role("button", name="Add to the catalog").click()
    expect(page.get_by_role("heading", name="meine")).to_be_visible()

    page.get_by_role("tab", name="What the model sees").click()
    expect(page.locator(".tokens .trained").first).to_be_visible()
    assert "cold moon 0" in "".join(page.locator(".tokens .trained").all_text_contents())
    assert "warm sun 0" in "".join(page.locator(".tokens .masked").all_text_contents())

    page.get_by_role("tab", name="Report").click()
    still(page)
    page.get_by_role("button", name="Create the report").click()
    expect(page.get_by_text("Rows read", exact=True)).to_be_visible()

    still(page)
    page.get_by_role("button", name="Use in a new run").click()
    expect(page.get_by_role("heading", name="New run", level=1)).to_be_visible()
    choose(page, "field-model_name_or_path", "models/tiny")
    steps = page.locator(".st-key-card-run").get_by_test_id("stMetric").filter(has_text="Steps")
    expect(steps).to_contain_text("3")  # 12 rows, 16 examples a step, 3 epochs
    still(page)
    page.get_by_role("button", name="Launch").click()

    standing = page.locator(".st-key-card-standing")
    expect(standing).to_contain_text("Finished after", timeout=300_000)
    expect(standing.get_by_role("link", name="Adapter tiny-meine-sft")).to_be_visible()
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
