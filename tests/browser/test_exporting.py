"""A version leaves the studio from its card: queued, watched, and its three answers read beside those before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import Studio, open_up, pick, still  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
TRAINED = (
    "stage=sft", "do_train=true", "model_name_or_path=models/tiny", "dataset=chat", "template=default", "max_steps=4",
    "cutoff_len=64", "lora_target=all", "use_cpu=true",
)  # fmt: skip


def picture(page: sync_api.Page, name: str) -> None:
    """What the browser shows, for whoever wants to see it: in PICTURES."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.slow  # an export as a run is in tests/test_export.py; here are a training, an export and six pages
def test_a_version_is_exported_from_its_card(studio: Studio, page: sync_api.Page) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    studio.tuner("train", *TRAINED)
    page.goto(f"{studio.url}/adapters")
    still(page)
    form = page.locator("[class*=st-key-export-form]")
    open_up(page, page.get_by_role("button", name="Export", exact=False).first, form)
    pick(page, form, "GGUF, for llama.cpp and Ollama")
    expect(page.get_by_text("It will take about")).to_be_visible()
    picture(page, "export-form")
    page.locator("[class*=st-key-export-tiny] button").last.click()
    page.get_by_role("link", name="Watch the export").click()
    expect(page.get_by_text("The export is in")).to_be_visible(timeout=180_000)
    still(page)
    page.reload()
    still(page)
    expect(page.get_by_text("Answers before and after")).to_be_visible()
    expect(page.get_by_text("reads all", exact=False)).to_be_visible()
    picture(page, "export-run")
    made = list((studio.home / "exports").glob("*/*.gguf"))
    assert len(made) == 1 and made[0].stat().st_size > 10_000
