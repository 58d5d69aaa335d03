"""The whole way by clicking, on the shipped starter model and with no hub: a data set, a recipe launched and watched,
its answers before and after, history, compare, its adapter."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import field, open_up, pick, still, type_into, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
STARTER = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone has, and nothing else: the starter model and its data."""
    made = tmp_path_factory.mktemp("clone")
    shutil.copytree(STARTER, made / "data", ignore=shutil.ignore_patterns("uploads"))
    return made


def start_from(page, recipe: str) -> None:
    """A recipe is said where nothing else is: the field itself is empty again."""
    box = page.locator(".st-key-start-from")
    named = partial(expect(box.locator("input")).to_have_attribute, "placeholder", recipe)
    pick(page, box, recipe, then=lambda timeout: named(timeout=timeout))


def open_page(page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    still(page)


def first_sample(file: Path) -> tuple[str, str, str]:
    """The first held-out prompt with the first and the last answer to it."""
    table = json.loads(file.read_text(encoding="utf-8"))
    records = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    answers = [r["answer"] for r in records if r["prompt"] == records[0]["prompt"]]
    return records[0]["prompt"], answers[0], answers[-1]


def test_the_whole_way(studio, page, record) -> None:
    # A newcomer's first step leads to a form that can be launched as it is.
    page.goto(studio.url)
    page.get_by_test_id("stMain").get_by_role("link", name="New run").click()
    launch = page.get_by_role("button", name="Launch")
    expect(launch).to_be_enabled()
    expect(page.get_by_text("Ready to launch")).to_be_visible()

    # A data set, looked at.
    older = record(
        "an older run", model_name_or_path="data/starter", dataset="starter_dpo", learning_rate=1e-4
    )
    page.goto(f"{studio.url}/datasets?dataset=starter_dpo")
    expect(page.get_by_text("Chosen, the better answer").first).to_be_visible()
    expect(page.get_by_text("Rejected, the worse answer").first).to_be_visible()
    page.get_by_role("button", name="Use in a new run").click()

    # A run, configured: what is wrong is said, and Launch waits until it is mended.
    expect(page.get_by_role("heading", name="New run", level=1)).to_be_visible()
    start_from(page, "LLaMA Board defaults")
    expect(page.get_by_text("Model is missing").first).to_be_visible()
    expect(launch).to_be_disabled()
    start_from(page, "starter-dpo")
    page.get_by_text(
        "Advanced", exact=True
    ).click()  # overtakes the drawing of the recipe, which must not suffer
    still(page)
    expect(field(page, "model_name_or_path").locator("input").first).to_have_value(re.compile("data/starter"))
    type_into(page, "learning_rate", "fast")
    expect(field(page, "learning_rate").get_by_text("should be a number")).to_be_visible()
    expect(launch).to_be_disabled()
    type_into(page, "learning_rate", "1e-3")  # the recipe's way in fewer steps
    command = page.get_by_test_id("stCode").first
    expect(command).to_contain_text("--learning_rate 0.001")
    expect(field(page, "learning_rate").locator("input").first).to_have_value("0.001")
    type_into(page, "max_steps", "40")
    expect(command).to_contain_text("--max_steps 40")
    expect(command).to_contain_text("--dataset starter_dpo")

    # A reload loses nothing that was typed.
    page.reload()
    still(page)
    expect(field(page, "learning_rate").locator("input").first).to_have_value("0.001")
    expect(launch).to_be_enabled()
    launch.click()

    # The live page, through a reload and a restart of the dashboard.
    page.wait_for_url(re.compile(r"/runs\?run=\w+"))
    address = page.url
    expect(page.locator(".st-key-card-standing")).to_be_visible()
    studio.kill()
    studio.start()
    page.goto(address)
    expect(page.locator(".st-key-card-chart-loss .js-plotly-plot")).to_be_visible(timeout=60_000)
    expect(page.locator(".st-key-status-line").get_by_role("progressbar").first).to_be_visible()
    page.reload()
    expect(page.locator(".st-key-card-chart-rewards .js-plotly-plot")).to_be_visible()
    expect(page.locator(".st-key-card-standing").get_by_text("Finished after")).to_be_visible(timeout=240_000)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)

    # What it learned can be read: the same questions, answered before and after.
    page.get_by_role("tab", name="Samples").click()
    expect(page.get_by_test_id("stMetric").filter(has_text="Score")).to_contain_text("before")
    first = page.locator("[class*=st-key-card-row-sample-]").first
    expect(first.get_by_text("Before")).to_be_visible()
    newer = re.search(r"run=(\w+)", address).group(1)
    asked, before, after = first_sample(studio.home / "mlruns" / "runs" / newer / "samples.json")
    assert before != after
    for said in (asked, before, after):
        expect(first).to_contain_text(said)

    # History knows both; one of them is found by a word.
    open_page(page, "History")
    expect(page.get_by_text("2 runs", exact=True)).to_be_visible()
    type_text(page, page.locator(".st-key-q input"), "older")
    expect(page.get_by_text("1 run", exact=True)).to_be_visible()

    # Side by side, by the address alone.
    page.goto(f"{studio.url}/compare?run={older}&run={newer}")
    expect(page.locator(".st-key-card-chart-loss .js-plotly-plot")).to_be_visible()
    expect(page.get_by_role("heading", name="Different settings")).to_be_visible()

    # The adapter, with the way back to its run.
    open_page(page, "Adapters")
    expect(page.get_by_text("Files in place")).to_be_visible()
    aliases = page.get_by_test_id("stPopoverBody")
    open_up(page, page.get_by_role("button", name="Aliases"), aliases)
    pick(page, aliases, "champion")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.locator("[class*=st-key-version-]").get_by_text("champion")).to_be_visible()
    page.get_by_role("link", name="Open run").click()
    expect(page).to_have_url(re.compile(newer))
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
