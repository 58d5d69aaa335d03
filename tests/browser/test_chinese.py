"""The studio in Chinese, in a real browser: the tutorial's story, and the language switched in the middle of a form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import field, pick, still, type_into  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
MODEL = "models/我的 模型"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder with a space and Chinese characters, and sets that it learns by heart."""
    made = tmp_path_factory.mktemp("工作室")
    tiny.model(made / MODEL)
    tiny.data(made / "data", rows=64)
    return made


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """A browser that speaks Chinese."""
    tabs = browser.new_context(
        viewport={"width": 1440, "height": 1000}, reduced_motion="reduce", locale="zh-CN"
    )
    opened = tabs.new_page()
    opened.set_default_timeout(60_000)
    opened.said = []
    opened.on("console", lambda m: opened.said.append(m.text) if m.type == "error" else None)
    yield opened
    tabs.close()


def speak(page, language: str) -> None:
    pick(page, page.locator(".st-key-language"), language)


def choose(page, name: str, option: str) -> None:
    pick(page, field(page, name), option)


@pytest.mark.slow  # the same switch without a browser is in test_languages.py
def test_a_switch_in_the_middle_of_a_form_keeps_what_was_set(studio, page, record) -> None:
    made = record("older", model_name_or_path=MODEL, dataset="pairs", learning_rate=1e-4)
    page.goto(f"{studio.url}/new_run?clone={made}")
    expect(page.get_by_role("heading", name="新建运行", level=1)).to_be_visible()
    expect(page.get_by_text("可以启动")).to_be_visible()
    page.get_by_text("高级", exact=True).click()
    type_into(page, "lora_rank", "24")
    choose(page, "lr_scheduler_type", "cosine")
    expect(page.get_by_test_id("stCode").first).to_contain_text("--lr_scheduler_type cosine")
    for language, title, ready in (
        ("English", "New run", "Ready to launch"),
        ("简体中文", "新建运行", "可以启动"),
    ):
        speak(page, language)
        expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()
        expect(page.get_by_text(ready)).to_be_visible()
        still(page)
        expect(field(page, "lora_rank").locator("input").first).to_have_value("24")
        expect(page.get_by_test_id("stCode").first).to_contain_text("--lr_scheduler_type cosine")
        expect(field(page, "weight_decay")).to_be_visible()

    # A list's order is known by its code, whatever it is called.
    page.goto(f"{studio.url}/history")
    still(page)
    pick(page, page.locator(".st-key-sort"), "损失最低")
    speak(page, "English")
    expect(page.get_by_role("heading", name="History", level=1)).to_be_visible()
    still(page)
    expect(page.locator(".st-key-sort input")).to_have_value("Lowest loss")
    page.reload()
    expect(page.locator(".st-key-sort input")).to_have_value("Lowest loss")
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
    speak(page, "简体中文")
    expect(page.get_by_role("heading", name="历史记录", level=1)).to_be_visible()


@pytest.mark.slow  # trains twice: once by a click, once by the copied command
def test_the_story_of_the_tutorial(studio, page) -> None:
    page.goto(studio.url)
    expect(page.get_by_role("heading", name="首页", level=1)).to_be_visible()
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="新建运行").click()
    expect(page.get_by_role("heading", name="新建运行", level=1)).to_be_visible()
    choose(page, "stage", "偏好对齐（DPO）")
    pick(page, field(page, "model_name_or_path"), MODEL, exact=False)
    choose(page, "dataset", "pairs")
    expect(page.get_by_test_id("stCode").first).to_contain_text(f"'{MODEL}'")
    type_into(page, "num_train_epochs", "1")
    expect(page.get_by_test_id("stCode").first).to_contain_text("--num_train_epochs 1")
    launch = page.get_by_role("button", name="启动", exact=True)
    expect(launch).to_be_enabled()
    copied = page.get_by_test_id("stCode").first.inner_text()
    launch.click()

    # Its page: where it stands, in Chinese, and curves that grow.
    page.wait_for_url(re.compile(r"/runs\?run=\w+"))
    expect(page.locator(".st-key-card-chart-loss .js-plotly-plot")).to_be_visible()
    expect(page.locator(".st-key-card-chart-loss")).to_contain_text("损失")
    expect(page.locator(".st-key-card-standing").get_by_text("已完成，用时")).to_be_visible(timeout=240_000)
    expect(page.locator(".st-key-card-chart-rewards .js-plotly-plot")).to_contain_text("优选")
    expect(page.locator(".st-key-card-chart-rewards .js-plotly-plot")).to_contain_text("步")
    page.get_by_role("tab", name="配置").click()
    expect(page.get_by_text("分组").first).to_be_attached()

    # The command that the form showed, as a shell takes it.
    own = {"TUNER_LANG": "zh_CN", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = subprocess.run(
        ["bash", "-c", copied], env={**studio.environment, **own}, cwd=studio.home, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    refused = subprocess.run(
        ["bash", "-c", copied.replace("--stage dpo", "--stage dop")],
        env={**studio.environment, **own}, cwd=studio.home, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 2 and "您是不是想输入 dpo？" in refused.stderr
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
