"""A run's charts in a real browser while it goes on: they grow under the mouse, and what a person did to them holds."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import open_up  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
LOSS = ".st-key-card-chart-loss .js-plotly-plot"
POINTS = f"(document.querySelector('{LOSS}')?._fullData?.at(-1)?.x?.length ?? 0)"


def more_points(page, than: int) -> int:
    """Wait until the loss has more points on the page; how many."""
    page.wait_for_function(f"{POINTS} > {than}", timeout=120_000)
    return page.evaluate(POINTS)


def test_zoom_hover_and_drag_hold_while_points_come(studio, page) -> None:
    # Longer than any test. Points come, whatever they say; a training would take the processor from the browser.
    words = (
        "--stage",
        "sft",
        "--do_train",
        "True",
        "--model_name_or_path",
        "models/tiny",
        "--dataset",
        "chat",
        "--run_name",
        "paced",
    )
    pace = ("--max_steps", "200000", "--save_steps", "200000", "--cutoff_len", "64", "--use_cpu", "True")
    run_id = studio.tuner("submit", *words, *pace, "--logging_steps", "5").split()[0]
    page.goto(f"{studio.url}/runs?run={run_id}")
    more_points(page, 12)
    nodes = page.locator(".js-plotly-plot").count()
    assert nodes > 4
    page.evaluate("document.querySelectorAll('.js-plotly-plot').forEach(node => node.mine = true)")
    chart = page.locator(LOSS)
    assert "Loss by step: train" in chart.get_attribute("aria-label")

    # Zoomed in by dragging, slowly: points come while the button is down.
    box = chart.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 90, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, middle, steps=3)
    expect(page.locator(".zoombox")).to_be_attached()
    points = page.evaluate(POINTS)
    page.wait_for_function(
        "before => Number(document.querySelector('.st-key-card-standing [data-testid=stProgress]')"
        ".innerText.replaceAll(',', '').match(/Step (\\d+)/)?.[1] ?? 0) > before",
        arg=5 * points + 100,
        timeout=120_000,
    )
    page.mouse.move(box["x"] + 190, middle, steps=3)
    page.mouse.up()
    page.wait_for_function(f"document.querySelector('{LOSS}').layout.xaxis.autorange === false")
    zoomed = chart.evaluate("node => node.layout.xaxis.range")
    assert 0 < zoomed[0] < zoomed[1] < 5 * points  # of the chart as it was when the button went down

    # The others follow, and keep it while they grow; a line on them is where the mouse is.
    ranges = "[...document.querySelectorAll('.js-plotly-plot')].map(n => n.layout.xaxis.range?.map(Math.round).join())"
    page.wait_for_function(f"{ranges}.filter(r => r === {ranges}[0]).length > 3")
    points = more_points(page, points)
    alike = [r for r in page.evaluate(ranges) if r == page.evaluate(ranges)[0]]
    page.mouse.move(box["x"] + 140, middle)
    expect(page.locator(".chart-crosshair:visible")).to_have_count(len(alike) - 1)

    # The label under the mouse stays too.
    page.mouse.move(box["x"] + 150, middle)
    label = page.locator(f"{LOSS} .hoverlayer .legend, {LOSS} .hoverlayer .hovertext").first
    expect(label).to_be_attached()
    for _ in range(2):
        points = more_points(page, points)
    expect(label).to_be_attached()
    assert chart.evaluate("node => node.layout.xaxis.range") == zoomed
    assert (
        page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].filter(n => n.mine).length") == nodes
    )

    # Nothing of a chart is left behind when its page is, with the mouse over it.
    page.get_by_role("button", name="Runs and queue").press("Enter")
    expect(page.locator(f".st-key-card-work-{run_id}")).to_be_visible()

    # Cancel throws away what was learned, so it asks first.
    page.goto(f"{studio.url}/runs?run={run_id}")
    asks = page.get_by_test_id("stPopoverBody")
    open_up(page, page.locator(".st-key-run-actions").get_by_role("button", name="Cancel"), asks)
    expect(asks).to_contain_text("Progress so far is lost.")
    assert not (studio.home / "mlruns" / "runs" / run_id / "requests" / "cancel").exists()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.locator(".st-key-card-standing")).to_contain_text("Stopped", timeout=60_000)
    assert not [said for said in page.said if said.startswith("error") or "_hoverlayer" in said]
    assert "Traceback" not in studio.said(), studio.said()[-3000:]
