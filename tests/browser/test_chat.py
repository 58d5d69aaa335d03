"""Chat and arena by clicking, on the shipped starter model and with no hub: a talk that survives a reload and is nobody
else's, base and adapter side by side, five blind votes that make a scoreboard."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import open_up, pick, still, type_text  # noqa: E402

expect = sync_api.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]
STARTER = Path(__file__).parents[2] / "data"
NAME = "tilted"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh clone, in which one run has registered two versions of an adapter that changes what the starter says."""
    made = tmp_path_factory.mktemp("chat")
    shutil.copytree(STARTER, made / "data", ignore=shutil.ignore_patterns("uploads"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(made))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(made)
        speak_on(made / "data" / "starter" / "config.json")
        yield made


def speak_on(config: Path) -> None:
    """Let the model read more than it was made for: nonsense, but for long enough to be stopped in the middle."""
    known = json.loads(config.read_text()) | {"max_position_embeddings": 8192}
    config.write_text(json.dumps(known))


def register(home: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tuner.config.config import make
    from tuner.tracking import adapters, runs

    run = runs.create_run(
        make({"stage": "sft", "model_name_or_path": "data/starter", "dataset": "starter_chat"}), "r"
    )
    runs.sync(run)
    for seed, (name, alpha) in enumerate((("babbling", 400), (NAME, 8), (NAME, 8))):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(home / "data" / "starter", dtype=torch.float32)
        config = LoraConfig(
            r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        get_peft_model(base, config).save_pretrained(home / f"adapter{seed}")
        adapters.register(run, home / f"adapter{seed}", base="data/starter", name=name)


def say(page, text: str) -> None:
    """Send a message and wait until every answer is there."""
    still(page)
    field = page.get_by_test_id("stChatInput").locator("textarea")
    field.fill(text)
    field.press("Enter")
    expect(page.get_by_text(text, exact=True).last).to_be_visible()
    whole(page)


def whole(page) -> None:
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=120_000)
    still(page)


def open_page(page, studio, place: str) -> None:
    page.goto(f"{studio.url}/{place}")
    expect(page.get_by_role("heading", name=place.partition("?")[0].capitalize(), level=1)).to_be_visible()
    still(page)


def answers(page):
    return page.locator("[class*=st-key-bubble-assistant-] [data-testid=stText]")


def press(page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    still(page)


def test_a_talk_is_kept_branched_compared_and_nobody_else_s(studio, page, browser) -> None:
    open_page(page, studio, "chat?base=data/starter&column=base")
    expect(page.get_by_text("Not loaded")).to_be_visible()
    open_up(page, page.get_by_role("button", name="Balanced"), page.get_by_test_id("stPopoverBody"))
    page.get_by_role("radio", name="Greedy").or_(page.get_by_role("button", name="Greedy")).first.click()
    expect(page.get_by_role("button", name="Greedy").first).to_be_visible()
    page.keyboard.press("Escape")
    say(page, "Where does Mia live?")
    expect(answers(page)).to_have_text(["In Saltbay."])
    expect(page.get_by_text("Ready")).to_be_visible()

    # Another answer stands beside the first; a message in other words is a branch.
    press(page, "Regenerate")
    whole(page)
    expect(page.get_by_text("2 of 2", exact=True)).to_be_visible()
    press(page, "Edit")
    page.get_by_label("Message", exact=True).fill("What pet does Mia have?")
    page.get_by_label("Message", exact=True).press("Control+Enter")
    press(page, "Ask again")
    whole(page)
    expect(answers(page)).not_to_have_text(["In Saltbay."])
    press(page, "Earlier branch")
    expect(answers(page)).to_have_text(["In Saltbay."])

    # A reload keeps all of it; another browser has a talk of its own.
    address = page.url
    page.reload()
    still(page)
    expect(answers(page)).to_have_text(["In Saltbay."])
    expect(page.get_by_text("1 of 2", exact=True)).to_be_visible()
    other = browser.new_context().new_page()
    open_page(other, studio, "chat")
    expect(other.get_by_text("Start a chat")).to_be_visible()
    assert other.url != address and "chat=" in other.url
    say(other, "Where does Ben live?")
    expect(page.get_by_text("Where does Ben live?")).to_have_count(0)
    other.context.close()

    # What was said becomes a row of a data set.
    page.get_by_role("button", name="Add to a data set").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("Added to my_chats")).to_be_visible()
    (row,) = (studio.home / "data" / "uploads" / "my_chats.jsonl").read_text().splitlines()
    assert [m["content"] for m in json.loads(row)["messages"]] == ["Where does Mia live?", "In Saltbay."]
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


def test_base_and_adapter_answer_side_by_side_from_one_seed(studio, page) -> None:
    open_page(page, studio, "adapters")
    press(page, "Chat")
    expect(page.get_by_role("heading", name="Chat", level=1)).to_be_visible()
    say(page, "Where does Mia live?")
    expect(answers(page)).to_have_count(2)
    heads = page.locator("[class*=st-key-bubble-assistant-] [data-testid=stCaptionContainer]")
    base, version = heads.all_inner_texts()[:2]
    assert "Base model" in base and f"{NAME} v2" in version
    from tuner.tracking.adapters import get_adapter

    row = get_adapter(NAME, 2)
    assert row is not None and row.sha256[:12] in version and row.sha256[:12] not in base
    expect(page.get_by_text(re.compile(r"^seed \d+$"))).to_have_count(1)  # one for both


def begin_a_long_answer(page, studio) -> None:
    """An answer of some half a minute, of which the beginning is there."""
    open_page(page, studio, "chat?base=data/starter&column=babbling/1")
    open_up(page, page.get_by_role("button", name="Balanced"), page.get_by_test_id("stPopoverBody"))
    for label, value in (("Temperature", "2"), ("Top p", "1"), ("Top k", "0"), ("Max new tokens", "6000")):
        type_text(page, page.get_by_label(label, exact=True), value)
    page.keyboard.press("Escape")
    page.get_by_test_id("stChatInput").locator("textarea").fill("Tell me a story.")
    page.get_by_test_id("stChatInput").locator("textarea").press("Enter")
    expect(answers(page)).to_have_text(re.compile(r"\w+\s+\w+"), timeout=120_000)
    assert running(studio) == 1


def running(studio) -> int:
    """Answers that the server is writing now, by its own account."""
    from tuner.jobs import serving

    (run,) = serving.living()
    at = serving.endpoint(run)
    assert at is not None
    asked = urllib.request.Request(f"{at.url}/metrics", headers={"Authorization": f"Bearer {at.key}"})
    with urllib.request.urlopen(asked, timeout=10) as told:
        found = re.search(r"^\S*running\S* (\d+)", told.read().decode(), re.MULTILINE)
    return int(found[1])


def until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_stop_and_a_closed_tab_stop_the_engine(studio, browser) -> None:
    tab = browser.new_context().new_page()
    tab.set_default_timeout(60_000)
    begin_a_long_answer(tab, studio)
    tab.reload()
    still_writing = tab.get_by_role("button", name="Stop")
    expect(still_writing).to_be_visible()
    expect(answers(tab)).to_have_text(re.compile(r"\w+\s+\w+"))  # a reload finds the answer as far as it is
    assert running(studio) == 1
    still_writing.click()
    until(lambda: running(studio) == 0, 4)
    expect(tab.get_by_text("Stopped.")).to_be_visible()

    begin_a_long_answer(tab, studio)
    chat = re.search(r"chat=(\w+)", tab.url)[1]
    tab.context.close()
    until(lambda: running(studio) == 0, 5 + 4)
    until(lambda: "answer.left" in (studio.home / "mlruns" / "chats" / f"{chat}.json").read_text(), 4)


def test_five_blind_votes_make_a_scoreboard(studio, page) -> None:
    open_page(page, studio, "arena")
    expect(page.get_by_text("No votes yet")).to_be_visible()
    pick(page, page.locator(".st-key-arena-source"), "From starter_chat", exact=False)
    press(page, "Start a battle")
    for number in range(1, 6):
        expect(page.get_by_role("button", name="Left is better")).to_be_visible(timeout=120_000)
        still(page)
        sealed = page.get_by_test_id("stMain").evaluate("e => e.outerHTML")
        for telling in (NAME, "Base model", "version", "base-", "tokens", "seed"):
            assert telling not in sealed, f"{telling} is told before the vote"
        sides = page.locator("[class*=st-key-bubble-sealed-]")
        shapes = [
            re.sub(r"left|right|Left|Right", "", one.evaluate("e => e.className")) for one in sides.all()
        ]
        assert len(shapes) == 2 and shapes[0] == shapes[1]
        page.keyboard.press(str(min(number, 4)))
        expect(page.get_by_text("You chose").or_(page.get_by_text("You voted"))).to_be_visible()
        still(page)
        expect(page.get_by_role("button", name="Left is better")).to_have_count(0)
        expect(page.get_by_text(f"{number} vote", exact=False).last).to_be_visible()
        page.keyboard.press("1")  # a vote after the reveal is none
        if number < 5:
            press(page, "Next battle")
    from tuner.tracking.votes import votes

    cast = votes("data/starter")
    assert [vote.said for vote in cast] == ["left", "right", "tie", "bad", "bad"]
    assert all(vote.tag == "starter_chat" and vote.left != vote.right for vote in cast)
    page.reload()
    still(page)
    expect(page.get_by_text("5 votes")).to_be_visible()
    assert "Traceback" not in studio.said(), studio.said()[-3000:]


def test_a_run_that_waits_takes_the_place_and_the_open_chat_says_so(studio, page) -> None:
    open_page(page, studio, "chat?base=data/starter&column=base")
    say(page, "Where does Mia live?")
    expect(page.get_by_text("Ready")).to_be_visible()
    run = studio.tuner("submit", "starter-sft", "--run_name", "in need", "--use_cpu", "True").strip()
    try:
        expect(page.get_by_text("Server stopped")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("The run in need waited for this place")).to_be_visible()
        expect(page.get_by_role("button", name="Start it again")).to_be_enabled()
    finally:
        studio.tuner("stop", run, "--now")
