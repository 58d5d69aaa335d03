"""The chat and the arena page as scripts, on talks and battles that are there: what is shown, what is sealed, who may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from streamlit.testing.v1 import AppTest
from test_battles import drawn  # noqa: F401  a fixture
from test_votes import versions  # noqa: F401  a fixture
from test_writes import claims, with_login  # noqa: F401  a fixture

from tuner.chats import battle as battles
from tuner.chats import kept
from tuner.chats import talk as talks
from tuner.chats.battle import Battle
from tuner.chats.talk import Talk
from tuner.text.message import message
from tuner.tracking.votes import votes

pytestmark = pytest.mark.usefixtures("libraries_looked_through_once")
ROOT = Path(__file__).parents[1]
ID = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import streamlit as st

    monkeypatch.chdir(ROOT)
    st.cache_data.clear()
    yield
    st.cache_data.clear()


def opened(page: str, user: dict[str, Any] | None = None, **query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
    app.user = user or {}
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def everything(app: AppTest) -> str:
    """All that is drawn, with every widget's words and keys."""
    return repr(app.main) + "".join(str(one.proto) for one in app.main if hasattr(one, "proto"))


def a_talk() -> Talk:
    """Two turns: the first thought about and answered with a call, the second stopped."""
    talk = Talk(ID, base="models/tiny", columns=("base",))
    talk, first = talks.asked(talk, "**What** is <b>1+2</b>?")
    given = first.answers["base"][0]
    said = replace(
        given, state="done", text="<think>hm</think>I ask.", calls=(("add", '{"a": 1}'),), tokens=7
    )
    talk, second = talks.asked(talks.answered(talk, first.id, "base", 0, said), "3", role="tool")
    said = replace(given, state="stopped", text="Thr", why=message("answer.stopped"))
    return talks.answered(talk, second.id, "base", 0, said)


def test_a_studio_without_models_says_what_to_choose(home: Path) -> None:
    app = opened("chat")
    assert app.chat_input[0].disabled and "Choose a base model" in app.chat_input[0].placeholder
    assert kept.is_id("".join(app.query_params["chat"]))
    assert not (home / "mlruns" / "chats").exists(), "nothing is written before something is said"


def test_a_talk_is_shown_as_it_lies_on_disk(home: Path) -> None:
    kept.change_talk(a_talk(), lambda talk: talk)
    app = opened("chat", chat=ID)
    texts = [one.value for one in app.text]
    assert texts == ["**What** is <b>1+2</b>?", "hm", "I ask.", "3", "Thr"], "as text, never as Markdown"
    assert [one.label for one in app.expander] == ["Thoughts"]
    assert '{"a": 1}' in [one.value for one in app.code]
    said = " ".join(one.value for one in app.caption)
    assert "calls **add**" in said and "Stopped" in said and "7 tokens" in said
    assert not app.chat_input[0].disabled and app.selectbox[0].value == "models/tiny"


def test_branches_and_answers_are_leafed_through(home: Path) -> None:
    talk = a_talk()
    first, second = talk.turns
    talk = talks.again(talk, second, ["base"])
    talk = talks.answered(
        talk, second, "base", 1, replace(talk.turns[second].answers["base"][1], state="done", text="Three.")
    )
    talk, other = talks.asked(talk, "4", parent=first)
    talk = talks.answered(
        talk, other.id, "base", 0, replace(other.answers["base"][0], state="done", text="Four.")
    )
    kept.change_talk(talk, lambda _: talk)
    app = opened("chat", chat=ID)
    assert [one.value for one in app.text][-2:] == ["4", "Four."]
    press(app, "Earlier branch")
    assert [one.value for one in app.text][-2:] == ["3", "Three."]
    press(app, "Earlier answer")
    assert [one.value for one in app.text][-1] == "Thr"
    press(app, "Back one turn")
    assert [one.value for one in app.text][-1] == "I ask."
    assert kept.load(ID).leaf == first  # type: ignore[union-attr]


def test_an_answer_that_nobody_writes_any_more_is_told(home: Path) -> None:
    talk, _ = talks.asked(a_talk(), "And?")
    kept.change_talk(talk, lambda _: talk)
    app = opened("chat", chat=ID)
    assert "The dashboard ended while this was written" in app.caption[-1].value
    assert not app.chat_input[0].disabled


def test_presets_and_knobs_are_kept_and_shown_by_one_another(home: Path) -> None:
    kept.change_talk(a_talk(), lambda talk: talk)
    app = opened("chat", chat=ID)
    knob = {one.key.rpartition("-")[2]: one for one in app.number_input}
    assert (knob["temperature"].value, knob["top_k"].value, knob["seed"].value) == (0.7, 50, None)
    knob["temperature"].set_value(1.3).run()
    knob = {one.key.rpartition("-")[2]: one for one in app.number_input}
    knob["seed"].set_value(7).run()
    now = kept.load(ID).decoding  # type: ignore[union-attr]
    assert (now.temperature, now.seed, now.top_k) == (1.3, 7, 50)
    (preset,) = [one for one in app.get("button_group") if "preset" in one.key]
    preset.set_value("greedy").run()
    now = kept.load(ID).decoding  # type: ignore[union-attr]
    assert (now.temperature, now.top_k, now.seed) == (0.0, 0, 7)
    assert {one.key.rpartition("-")[2]: one.value for one in app.number_input}["temperature"] == 0.0


def press(app: AppTest, label: str) -> None:
    next(one for one in app.button if one.label == label).click().run()
    assert not app.exception, app.exception


def test_an_answer_becomes_a_row_of_a_data_set(home: Path) -> None:
    tiny.data(home / "data")
    kept.change_talk(a_talk(), lambda talk: talk)
    app = opened("chat", chat=ID)
    press(app, "Add")
    assert "Added to my\\_chats" in app.toast[0].value
    assert '"I ask."' in (home / "data" / "uploads" / "my_chats.jsonl").read_text()


def test_who_only_looks_can_neither_ask_nor_vote(with_login: Path, drawn: Battle) -> None:  # noqa: F811
    kept.change_talk(a_talk(), lambda talk: talk)
    app = opened("chat", claims("ron@example.org"), chat=ID)
    assert app.chat_input[0].disabled
    assert all(
        one.disabled for one in app.button if one.label in ("Regenerate", "Ask again", "Add", "Load it now")
    )
    app = opened("arena", claims("ron@example.org"), battle=drawn.id)
    assert {one.label for one in app.button if one.disabled} >= {"Left is better", "Both are bad"}


def test_a_battle_is_sealed_until_the_vote_and_open_after_it(drawn: Battle) -> None:  # noqa: F811
    app = opened("arena", battle=drawn.id)
    sealed = everything(app)
    assert "Hello?" in sealed and "Left is better" in sealed
    for telling in ("polite", "Base model", "base", "aaaa", "seed", "token"):
        assert telling not in sealed
    assert [one.value for one in app.text] == ["Hello?", "Hi 0.", "Hi 1."]
    assert [one.label for one in app.button] == ["Left is better", "Right is better", "Tie", "Both are bad"]
    press(app, "Right is better")
    assert "polite v1" in everything(app)
    told = " ".join(one.value for one in app.caption)
    assert "polite v1" in told and "Base model" in told
    assert not [one for one in app.button if one.label == "Left is better"]
    (board,) = app.dataframe
    assert sorted(board.value["Contestant"]) == ["Base model", "polite v1"]
    assert list(board.value["Battles"]) == [1, 1]
    (vote,) = votes()
    assert vote.said == "right"


def test_a_battle_that_cannot_be_judged_has_no_buttons_to_vote(drawn: Battle) -> None:  # noqa: F811
    failed = replace(drawn.answers[1], state="stopped", why=message("answer.left"))
    battles.keep_answer(drawn.id, 1, failed)
    app = opened("arena", battle=drawn.id)
    assert "does not count" in app.markdown[-1].value
    assert [one.label for one in app.button] == ["Another battle"]


def test_the_arena_says_what_is_missing(home: Path) -> None:
    app = opened("arena")
    (start,) = [one for one in app.button if one.label == "Start a battle"]
    assert start.disabled and "Choose a base model first." in start.help
