"""Lists of runs in a real browser: what is ticked is what is deleted, whatever else is made meanwhile."""

from __future__ import annotations

import re

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from test_queue import press, waiting  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
VALUES = {"model_name_or_path": "models/tiny", "dataset": "pairs"}


def listed(page):
    return page.locator(".picked-table tbody a")


def ticked(page):
    return page.locator(".picked-table tbody input:checked")


def act(page, name: str) -> None:
    page.locator(".st-key-history-actions").get_by_role("button", name=name).click()


def test_what_is_ticked_is_what_is_deleted(studio, page, record) -> None:
    from tuner.tracking.runs import get_row

    first, second, third = (record(name, **VALUES) for name in ("first", "second", "third"))
    page.goto(f"{studio.url}/history")
    expect(listed(page)).to_have_text(["third", "second", "first"])
    page.get_by_label("Choose second").check()
    expect(page.get_by_text("3 runs, 1 selected")).to_be_visible()

    # Another run is made, in a shell or a second tab; the page cannot know of it when Delete is pressed.
    record("newcomer", **VALUES)
    act(page, "Delete")
    expect(page.locator(".st-key-undo")).to_contain_text("Deleted second.")
    expect(listed(page)).to_have_text(["newcomer", "third", "first"])
    expect(ticked(page)).to_have_count(0)
    expect(page.locator(".st-key-history-actions")).to_have_count(0)
    assert [i for i in (first, second, third) if (row := get_row(i)) and row.deleted] == [second]

    page.locator(".st-key-undo").get_by_role("button", name="Undo").click()
    expect(listed(page)).to_have_text(["newcomer", "third", "second", "first"])
    expect(page.locator(".st-key-undo")).to_be_hidden()
    expect(ticked(page)).to_have_count(0)

    # A tick stays with its run when the list grows, and is not lost to a second one.
    page.get_by_label("Choose third").check()
    expect(page.get_by_text("4 runs, 1 selected")).to_be_visible()
    record("latecomer", **VALUES)
    page.get_by_label("Choose first").check()
    expect(page.get_by_text("5 runs, 2 selected")).to_be_visible()
    expect(page.get_by_label("Choose third")).to_be_checked()
    act(page, "Compare")
    page.wait_for_url(re.compile("/compare"))
    assert re.findall(r"run=(\w+)", page.url) == [third, first]

    # A row is opened by its name, with the keyboard too.
    page.goto(f"{studio.url}/history")
    page.get_by_role("link", name="second").press("Enter")
    expect(page.get_by_role("heading", name="second", level=1)).to_be_visible()
    assert second in page.url
    assert not [said for said in page.said if said.startswith("error")]
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


def test_room_is_made_only_once_somebody_agreed(studio, page, record) -> None:
    from tuner.runs import checkpoints
    from tuner.runs.run import Run

    run = Run(record("roomy", **VALUES))
    for step in (10, 20):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (run.checkpoints / f"checkpoint-{step}" / "weights").write_bytes(b"w" * 3000)
        checkpoints.seal(run.checkpoints / f"checkpoint-{step}", run)
    page.goto(f"{studio.url}/history?disk=true")
    page.get_by_text("Checkpoints of ended runs except the best and the last").click()
    page.get_by_text("1 thing that would stay").click()
    expect(
        page.get_by_text("checkpoint-20 stays, the last, and there is no measure of the best")
    ).to_be_visible()
    page.get_by_role("button", name="Remove these").click()
    expect(page.get_by_text("This cannot be undone.")).to_be_visible()
    assert [c.name for c in checkpoints.of(run)] == ["checkpoint-10", "checkpoint-20"]
    page.get_by_role("button", name="Yes, remove 1 thing").click()
    expect(page.get_by_text(re.compile("1 thing removed, 3"))).to_be_visible()
    assert [c.name for c in checkpoints.within(run.checkpoints)] == ["checkpoint-20"]
    assert checkpoints.valid(run.checkpoints / "checkpoint-20") is None


def test_what_waits_is_moved_and_taken_out_by_clicking(studio, page, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a queue does beside a run at work is in test_queue.py."""
    from tuner.config.config import make
    from tuner.jobs import queue, submit

    monkeypatch.setenv("TUNER_HOME", str(studio.home))
    queue.pause()
    values = {"stage": "sft", "do_train": True, "model_name_or_path": "models/tiny", "dataset": "chat"}
    first, second, third = (submit.create(make(values), name) for name in ("one", "two", "three"))
    for run in (first, second, third):
        submit.place(run)
    page.goto(f"{studio.url}/runs")
    waiting(page, "one", "two", "three")
    press(page, "keyboard_arrow_up", third.id)
    waiting(page, "one", "three", "two")
    press(page, "close", first.id)
    waiting(page, "three", "two")
    assert [row.id for row in queue.queue()] == [third.id, second.id]
    assert first.status().state == "stopped"
