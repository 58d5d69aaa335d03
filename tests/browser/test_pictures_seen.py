"""Rows with pictures as people see them: in their turns, at their tokens, and what is wrong with those that cannot be shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import seeing

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import still, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def home(common_home: Path) -> Path:
    """Pictures, some of them out of reach, and a model that sees."""
    made = common_home
    seeing.folder(made / "models" / "qwen", "qwen2_5_vl")
    seeing.picture(made / "seen" / "a.png", 56, 84)
    seeing.picture(made / "outside.png", 56, 56)
    rows = [
        {"messages": [{"role": "user", "content": "<image>what"}, {"role": "assistant", "content": "red"}], "images": [name]}
        for name in ("a.png", "gone.png", "http://pictures.test/a.png", "../outside.png")
    ]  # fmt: skip
    seeing.catalog(made / "seen", seen=rows)
    return made


def test_pictures_stand_in_their_turns_and_at_their_tokens(studio, page) -> None:
    page.goto(f"{studio.url}/datasets?dataset=seen&folder=seen")
    shown = page.locator(".st-key-pictures-0-0 img")
    expect(shown).to_have_count(1)
    expect(shown).to_have_attribute("alt", "a.png")
    page.wait_for_function("one => one.complete && one.naturalWidth > 0", arg=shown.element_handle())
    expect(page.get_by_text("56 × 84", exact=True)).to_be_visible()
    for said in ("picture not found: gone.png", "which is not fetched: http", "../outside.png leads out of"):
        expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_test_id("stImage")).to_have_count(1)

    page.goto(f"{studio.url}/datasets?dataset=seen&folder=seen&view=What+the+model+sees")
    still(page)
    type_text(page, page.locator(".st-key-look-model input"), "models/qwen")
    drawn = page.locator(".tokens .picture")
    expect(drawn).to_have_text("56 × 84: 6 tokens")
    assert str(drawn.locator("img").get_attribute("src")).startswith("data:image/webp;base64,")
    page.wait_for_function(
        "one => one.complete && one.naturalWidth > 0", arg=drawn.locator("img").element_handle()
    )
    expect(page.locator(".tokens .trained").first).to_be_visible()
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
