"""The story this studio began with: a model in a folder with a space and Chinese characters, hh_rlhf_en, DPO, LoRA, bf16; launched
with at most six clicks from Home, watched, and its command copied and run in a shell. In Chinese and in English."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import do_until, once, shows, still  # noqa: E402

from tuner.text.lookup import LANGUAGES, speaking, tr  # noqa: E402

expect = sync_api.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]
MODEL = "我的 模型/tiny model"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("story")
    tiny.model(made / "models" / MODEL)
    tiny.data(made / "data", rows=64)
    catalog = json.loads((made / "data" / "dataset_info.json").read_text())
    (made / "data" / "dataset_info.json").write_text(json.dumps({"hh_rlhf_en": catalog["pairs"]}))
    return made


@pytest.mark.parametrize("language", ["zh_CN", "en"])
def test_the_story(studio, page, language: str) -> None:
    if language not in LANGUAGES:
        pytest.skip(f"{language} is not offered")
    with speaking(language):
        story(studio, page, language)


def story(studio, page, language: str) -> None:
    clicks = 0

    def click(what) -> None:
        nonlocal clicks
        clicks += 1
        what.click()

    context = page.context.browser.new_context(
        locale=language.replace("_", "-"), reduced_motion="reduce", viewport={"width": 1440, "height": 1000}
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(studio.url)
    click(page.get_by_test_id("stMain").get_by_role("link", name=tr("New run")).first)
    form = page.locator(".st-key-new-run-split")
    expect(form).to_be_visible()
    still(page)

    undo = page.locator(".st-key-new-run-bar").get_by_role("button", name=re.compile(r"\d"))

    def choose(name: str, value: str) -> None:
        """Type into a list and take what fits: a click, and the keyboard."""
        nonlocal clicks
        clicks += 1
        fits = re.compile(re.escape(value), re.IGNORECASE)
        box = page.locator(f".st-key-field-{name}")
        typed = box.locator("input")

        def take(patience: int) -> None:
            once(typed, patience)
            typed.click(timeout=patience)
            typed.fill(value, timeout=patience)
            page.get_by_role("option", name=fits).first.wait_for(timeout=patience)
            if name != "stage":  # a list that takes other words has them first
                typed.press("ArrowDown")
            typed.press("Enter")

        def taken(timeout: int) -> None:
            shows(box, fits, timeout)
            expect(undo).to_be_visible(timeout=timeout)  # the form has taken it

        do_until(page, take, taken)

    command = page.locator(".st-key-card-same").get_by_test_id("stCode").first
    choose("model_name_or_path", "tiny model")
    choose("stage", "dpo")
    choose("dataset", "hh_rlhf_en")
    page.keyboard.press("Escape")
    expect(command).to_contain_text("--dataset hh_rlhf_en")
    if "--bf16 True" not in command.inner_text():
        click(page.locator(".st-key-field-bf16 label").first)
    expect(command).to_contain_text("--bf16 True")
    text = command.inner_text()
    assert "--stage dpo" in text and MODEL in text
    launch = page.locator(".st-key-launch").get_by_role("button")
    expect(launch).to_be_enabled()
    click(launch)
    page.wait_for_url(re.compile(r"/runs\?run=\w+"))
    assert clicks <= 6, clicks
    expect(page.locator(".st-key-card-chart-loss .js-plotly-plot")).to_be_visible(timeout=240_000)
    expect(page.locator(".st-key-card-standing")).to_contain_text(
        re.compile("|".join(map(re.escape, (tr("Running"), tr("Finished"))))), timeout=240_000
    )
    context.close()

    words = [*shlex.split(text.replace("\\\n", " ")), "--max_steps", "2"]
    assert words[:2] == ["tuner", "train"]
    done = subprocess.run(
        [*studio.program, *words[1:]],
        cwd=studio.home,
        env={**studio.environment, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
