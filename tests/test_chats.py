"""Talks: a tree in which nothing is lost, what each model reads of it, and answers that are written beside the page."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_completions import Place, Scripted, begin, chunk, endless, says, server  # noqa: F401  a fixture

from tuner.chats import kept, writing
from tuner.chats import talk as talks
from tuner.chats.completions import Piece, Unanswered
from tuner.chats.talk import Answer, Decoding, Talk
from tuner.data import additions
from tuner.data.formats import convert
from tuner.text.message import message

TWO = Talk(talks.fresh_id(), base="data/starter", columns=("base", "polite/1"), system="Be kind.")


def answering(talk: Talk, turn_id: str, **texts: str) -> Talk:
    """The talk with the open answers of a turn written; `_` in a name stands for a slash."""
    turn = talk.turns[turn_id]
    for column, text in texts.items():
        name = column.replace("_", "/")
        done = replace(turn.answers[name][turn.place(name)], state="done", text=text)
        talk = talks.answered(talk, turn_id, name, turn.place(name), done)
    return talk


def test_each_column_goes_on_from_what_it_said_itself() -> None:
    talk, first = talks.asked(TWO, "Hello?")
    seeds = {given[0].seed for given in first.answers.values()}
    assert len(seeds) == 1, "side by side with one seed"
    talk = answering(talk, first.id, base="Hi.", polite_1="<think>be kind</think>\nGladly!")
    talk, second = talks.asked(talk, "And?")
    assert talks.messages(talk, second.id, "base") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]
    assert talks.messages(talk, second.id, "polite/1")[2] == {"role": "assistant", "content": "Gladly!"}
    asked = talks.request(talk, second.id, "polite/1", 7)
    assert (asked["model"], asked["seed"], asked["temperature"]) == ("polite/1", 7, 0.7)
    late = replace(talk, columns=("late/1",))
    assert talks.messages(late, second.id, "late/1")[2]["content"] == "Hi.", (
        "a column that comes later reads another's"
    )


def test_nothing_is_overwritten() -> None:
    talk, first = talks.asked(TWO, "one")
    talk = answering(talk, first.id, base="A")
    talk = talks.again(talk, first.id, ["base"])
    assert [a.state for a in talk.turns[first.id].answers["base"]] == ["done", "waiting"]
    assert talk.turns[first.id].answers["base"][0].seed != talk.turns[first.id].answers["base"][1].seed
    assert talks.showing(talk, first.id, "base", 0).turns[first.id].answer("base").text == "A"
    talk, second = talks.asked(talk, "two")
    talk, edited = talks.asked(talk, "two, but better", parent=second.parent)
    assert talks.siblings(talk, edited) == [second.id, edited.id]
    assert [turn.text for turn in talks.path(talk)] == ["one", "two, but better"]
    talk, _ = talks.asked(talks.opened(talk, second.id), "three")
    assert [turn.text for turn in talks.path(talk)] == ["one", "two", "three"]
    assert [turn.text for turn in talks.path(talks.back_to(talk, first.id))] == ["one"]
    assert [turn.text for turn in talks.path(talks.opened(talk, first.id))] == ["one", "two, but better"]


def test_an_answer_that_failed_is_not_told_to_the_model() -> None:
    talk, first = talks.asked(TWO, "one")
    failed = Answer("base", state="failed", why=message("answer.stopped"))
    for column in TWO.columns:
        talk = talks.answered(talk, first.id, column, 0, failed)
    talk, second = talks.asked(talk, "two")
    assert [m["content"] for m in talks.messages(talk, second.id, "base")] == ["Be kind.", "two"]


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>a\nb</think>\n\nc", "a\nb", "c"),
        ("<think>still", "still", ""),
        ("\n<think></think>x", "", "x"),
        ("x <think>y</think>", "", "x <think>y</think>"),
        ("plain", "", "plain"),
    ],
)
def test_thoughts_are_told_from_what_is_said(text: str, thought: str, said: str) -> None:
    answer = Answer("m", text=text)
    assert (answer.thought, answer.said) == (thought, said)
    assert replace(answer, thoughts="told apart").thought.startswith("told apart")


def test_tool_calls_are_joined_and_told_again() -> None:
    answer = Answer("base", state="done")
    for piece in (Piece(calls={0: ("add", "")}), Piece(calls={0: ("", '{"a"')}), Piece(calls={0: ("", ": 1}")}), Piece(calls={1: ("sub", "{}")})):  # fmt: skip
        answer = writing.joined(answer, piece)
    assert answer.calls == (("add", '{"a": 1}'), ("sub", "{}"))
    talk, first = talks.asked(
        replace(TWO, columns=("base",), tools='{"name": "add", "parameters": {}}'), "1+1?"
    )
    talk, second = talks.asked(talks.answered(talk, first.id, "base", 0, answer), "2", role="tool")
    told = talks.request(talk, second.id, "base", 0)
    assert told["messages"][-2]["tool_calls"][1]["function"] == {"name": "sub", "arguments": "{}"}
    assert told["messages"][-1] == {"role": "tool", "content": "2"}
    assert told["tools"] == [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.mark.parametrize("text", ["{", "[1]", '"a"', "{}", '[{"function": {}}]', '[{"function": 1}]', "null"])
def test_tools_that_are_none_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"tools? .*\."):
        talks.read_tools(text)


def test_a_template_is_asked_for_where_one_is_chosen() -> None:
    talk, first = talks.asked(TWO, "Hello?")
    assert "template" not in talks.request(talk, first.id, "base", 0)
    chosen = replace(talk, template="chatml")
    assert talks.request(chosen, first.id, "base", 0)["template"] == "chatml"
    assert talks.of_json(json.loads(json.dumps(talks.to_json(chosen)))).template == "chatml"


def test_an_exchange_becomes_a_row_and_a_talk_a_file() -> None:
    talk, first = talks.asked(TWO, "Hello?")
    with pytest.raises(ValueError, match="no answer to keep yet"):
        talks.exchange(talk, first.id, "base")
    talk = answering(talk, first.id, base="Hi.", polite_1="Gladly!")
    row = talks.exchange(talk, first.id, "polite/1")
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][-1]["content"] == "Gladly!"
    assert "tools" not in row
    whole = json.loads(json.dumps(talks.exported(talk)))
    assert whole["messages"]["base"][-1] == {"role": "assistant", "content": "Hi."}
    assert talks.of_json(whole["talk"]) == talk


def test_a_row_that_only_calls_is_kept_with_its_tools(home: Path) -> None:
    talk, first = talks.asked(
        replace(TWO, columns=("base",), tools='{"name": "add", "parameters": {}}'), "1+1?"
    )
    called = Answer("base", state="done", calls=(("add", '{"a": 1}'),))
    row = talks.exchange(talks.answered(talk, first.id, "base", 0, called), first.id, "base")
    assert json.loads(row["tools"])[0]["function"]["name"] == "add"
    (home / "data").mkdir(exist_ok=True)
    entry = additions.add("calls", row, home / "data")
    kept_row = convert(json.loads(entry.path.read_text()), entry)
    assert kept_row["tools"][0]["function"]["name"] == "add"
    assert kept_row["messages"][-1]["tool_calls"]


def test_presets_are_known_again() -> None:
    for name, knobs in talks.PRESETS.items():
        assert talks.preset_of(Decoding(**knobs, max_tokens=9)) == name  # type: ignore[arg-type]
    assert talks.preset_of(Decoding(temperature=0.33)) == ""
    assert talks.preset_of(Decoding()) == "balanced"


WORDS = st.text(max_size=8)


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(st.integers(0, 5), WORDS, st.booleans()), max_size=12), WORDS)
def test_a_talk_reads_back_as_it_was(steps: list[tuple[int, str, bool]], system: str) -> None:
    talk = replace(TWO, system=system)
    for number, (at, text, new) in enumerate(steps):
        turns = list(talk.turns)
        if turns and not new:
            talk = talks.again(talk, turns[at % len(turns)], ["base"])
        else:
            talk, turn = talks.asked(talk, text, parent=turns[at % len(turns)] if turns else "")
            talk = answering(talk, turn.id, base=f"{text}{number}")
    assert talks.of_json(json.loads(json.dumps(talks.to_json(talk)))) == talk
    assert not talk.turns or talks.path(talk)[-1].id == talk.leaf


# --- on disk -------------------------------------------------------------------------------------------------------


def test_talks_lie_on_disk_each_by_its_id(home: Path) -> None:
    one, two = (replace(TWO, id=talks.fresh_id(), by=by) for by in ("mia", "ron"))
    assert kept.load(one.id) is None
    kept.change_talk(one, lambda talk: talks.asked(talk, "mine")[0])
    kept.change_talk(two, lambda talk: talks.asked(talk, "yours")[0])
    assert [turn.text for turn in kept.load(one.id).turns.values()] == ["mine"]  # type: ignore[union-attr]
    assert [talk.id for talk in kept.newest("mia")] == [one.id]
    kept.forget(one.id)
    assert kept.load(one.id) is None and kept.newest("mia") == []
    for id in ("", "../../etc/passwd", "x" * 16, f"{one.id}\n", one.id.upper() + "0"):
        assert kept.load(id) is None
        with pytest.raises(ValueError, match="not the id"):
            kept.change("chats", id, lambda _: {})


def test_a_talk_that_cannot_be_read_is_none(home: Path) -> None:
    id = talks.fresh_id()
    kept.change("chats", id, lambda _: {"turns": {"a": {"answers": 3}}})
    assert kept.load(id) is None
    kept.change("chats", id, lambda _: {**talks.to_json(replace(TWO, id=id)), "later": 1})
    assert kept.load(id) == replace(TWO, id=id)


def test_two_who_change_a_talk_at_once_lose_nothing(home: Path) -> None:
    def add(name: str) -> None:
        for number in range(20):
            kept.change_talk(TWO, lambda talk, number=number: talks.asked(talk, f"{name}{number}")[0])  # type: ignore[misc]

    both = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(kept.load(TWO.id).turns) == 40  # type: ignore[union-attr]


# --- answers on their way ------------------------------------------------------------------------------------------


def wait_for(what: Callable[[], object], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def written(place: Place | None, saved: list[Answer], **more: Any) -> writing.Writing:
    return writing.start(
        ("talk", "turn"), Answer("base", seed=3), {"model": "base"}, lambda: place, saved.append, **more
    )


def test_an_answer_is_written_beside_the_page_and_kept(server: Scripted) -> None:  # noqa: F811
    server.answer = says(chunk({"content": "Hi"}, system_fingerprint="abc"), chunk({"content": "."}, "stop"))
    saved: list[Answer] = []
    one = written(server.place, saved)
    one.thread.join(10)
    assert (one.answer.text, one.answer.state, one.answer.checksum, one.answer.seed) == (
        "Hi.",
        "done",
        "abc",
        3,
    )
    assert saved[-1] == one.answer and not writing.of("talk") and one.answer.seconds > 0


def test_one_answer_is_asked_for_once(server: Scripted) -> None:  # noqa: F811
    server.answer = endless(server)
    saved: list[Answer] = []
    one = written(server.place, saved)
    wait_for(lambda: one.answer.text)
    assert written(server.place, saved) is one and writing.of("talk") == [one] == writing.of("talk", "turn")
    writing.stop("talk")
    one.thread.join(10)
    assert one.answer.state == "stopped" and str(one.answer.why) == "Stopped." and one.answer.text
    assert server.gone.wait(2), "the server's slot is free"
    assert len(server.asked) == 1 and saved[-1] == one.answer


def test_an_answer_waits_for_its_server_and_is_told_when_there_will_be_none(server: Scripted) -> None:  # noqa: F811
    server.answer = says(chunk({"content": "Hi"}, "length"))
    place: list[Place] = []
    one = writing.start(("t",), Answer("m"), {}, lambda: place[0] if place else None, lambda _: None)
    wait_for(lambda: one.thread.is_alive())
    assert one.answer.state == "waiting"
    place.append(server.place)
    one.thread.join(10)
    assert one.answer.state == "done" and "allow more tokens to read on" in str(one.answer.why)

    def never() -> Place | None:
        raise Unanswered("The run ended: out of memory.")

    one = writing.start(("t",), Answer("m"), {}, never, lambda _: None)
    one.thread.join(10)
    assert (one.answer.state, str(one.answer.why)) == ("failed", "The run ended: out of memory.")


def test_an_answer_can_be_stopped_before_there_is_a_server(server: Scripted) -> None:  # noqa: F811
    one = writing.start(("t",), Answer("m"), {}, lambda: None, lambda _: None)
    one.stop()
    one.thread.join(10)
    assert one.answer.state == "stopped" and not server.asked


def test_an_answer_that_nobody_looks_at_is_stopped(
    server: Scripted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "LEFT", 0.6)
    server.answer = endless(server)
    there = [True]
    one = written(server.place, [], watched=lambda: there[0])
    time.sleep(1.2)
    assert one.alive, "as long as somebody looks it goes on"
    there[0] = False
    one.thread.join(10)
    assert one.answer.state == "stopped" and "the page was closed" in str(one.answer.why)
    assert server.gone.wait(2)


def test_an_unfinished_answer_is_on_disk_too(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(writing, "KEEP_EVERY", 0.05)
    server.answer = endless(server)
    saved: list[Answer] = []
    one = written(server.place, saved)
    wait_for(lambda: saved)
    assert saved[0].state == "writing" and saved[0].text
    one.stop()
    one.thread.join(10)


def test_a_turn_keeps_its_pictures_and_sends_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from io import BytesIO

    from PIL import Image

    from tuner import paths
    from tuner.data.pictures.places import Keep
    from tuner.data.pictures.places import kept as kept_picture

    monkeypatch.setattr(paths, "shown", lambda: tmp_path)
    made = BytesIO()
    Image.new("RGB", (8, 8), "red").save(made, "PNG")
    name = kept_picture(made.getvalue(), Keep(tmp_path)).name
    talk, turn = talks.asked(talks.Talk("t", "base", ("base",)), "What is this?", pictures=[name])
    again = talks.of_json(json.loads(json.dumps(talks.to_json(talk))))
    assert again.turns[turn.id].pictures == (name,)
    picture, text = talks.messages(again, turn.id, "base")[-1]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    sent = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert sent == made.getvalue()
    beside = replace(again.turns[turn.id], pictures=("../../etc/passwd",))
    away = replace(again, turns={turn.id: beside})
    assert talks.messages(away, turn.id, "base")[-1]["content"][0]["image_url"]["url"].endswith(";base64,")
