"""Tool calls are read from every form in which they are written, however the answer is cut into pieces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.calls import Call, CallReader
from tuner.data.tools import FORMATS

NAMES = ("get_weather", "add", "noop")
VALUES = st.one_of(st.text(max_size=12), st.integers(), st.booleans(), st.lists(st.integers(), max_size=3))
KEYS = st.one_of(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.sampled_from(["in", "from", "class"]))
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)
# What has no quotes cannot tell 5 from "5", and strips what stands around it.
BARE = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.from_regex(r"[a-z]{1,9}", fullmatch=True)
)
UNQUOTED = ("qwen3_5", "glm4_moe")


def read(
    text: str, seed: int, names: tuple[str, ...] = NAMES
) -> tuple[str, list[Call], list[dict[str, Any]]]:
    """The answer in random pieces: what a client puts together of the deltas, and the deltas."""
    chance, reader, deltas, at = random.Random(seed), CallReader(names), [], 0
    while at < len(text):
        size = chance.choice((1, 1, 2, 3, 7, 40))
        deltas += reader.deltas(text[at : at + size])
        at += size
    deltas += reader.deltas("", ended=True)
    calls: list[Call] = []
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                assert part["id"] and part["type"] == "function"
                calls.append(Call(part["function"]["name"], id=part["id"]))
            calls[part["index"]].arguments += part["function"]["arguments"]
    assert calls == reader.calls
    return "".join(d.get("content", "") for d in deltas), calls, deltas


def whole(text: str) -> tuple[str, list[tuple[str, Any]]]:
    words, calls = CallReader(NAMES).all(text)
    return words, [(c.name, json.loads(c.arguments)) for c in calls]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=examples(40))
@given(data=st.data(), seed=st.integers(0, 9999))
def test_what_is_written_is_read(name: str, data: Any, seed: int) -> None:
    arguments = BARE if name in UNQUOTED else ARGUMENTS
    calls = data.draw(st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=2))
    text = FORMATS[name].call([{"name": n, "arguments": a} for n, a in calls])
    if any(mark in json.dumps(a, ensure_ascii=False) for _, a in calls for mark in ("<|", "Action", "</")):
        return
    words, found, _ = read(text, seed)
    assert words.strip() == "" and [(c.name, json.loads(c.arguments)) for c in found] == calls
    assert whole(text) == ("", calls)


def test_arguments_may_be_called_as_words_of_python() -> None:
    calls = [
        ("add", {"in": "Saltbay", "from": "it's\n\0 \\n", "class": [1, {"a": "'"}], "is": True, "if": None})
    ]
    text = FORMATS["lfm2"].call([{"name": n, "arguments": a} for n, a in calls])
    assert whole(text) == ("", calls)
    assert whole("[add(a=True, b = None,)]")[1] == [("add", {"a": True, "b": None})]


@pytest.mark.parametrize("name", ["qwen", "qwen3_5", "default", "lfm2"])
def test_words_before_a_call_are_words(name: str) -> None:
    call = FORMATS[name].call([{"name": "add", "arguments": {"a": "x"}}])
    for seed in range(20):
        words, found, _ = read(f"Let me see.\n{call}", seed)
        assert (words, [c.name for c in found]) == ("Let me see.", ["add"])


def test_arguments_come_while_they_are_written() -> None:
    text = (
        '<tool_call>\n{"name": "add", "arguments": {"text": "a } \\" { b", "n": [1, {"m": 2}]}}\n</tool_call>'
    )
    reader, seen = CallReader(NAMES), []
    for letter in text:
        seen += reader.deltas(letter)
    seen += reader.deltas("", ended=True)
    assert seen[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": ""}
    assert len(seen) > 20 and all("tool_calls" in d for d in seen)
    assert json.loads(reader.calls[0].arguments) == {"text": 'a } " { b', "n": [1, {"m": 2}]}


@pytest.mark.parametrize(
    "text",
    [
        "No calls < here, nor [there].",
        "<tool_call>nonsense without an end",
        "<tool_call>\nnot json\n</tool_call> and more",
        "Action: but no input",
        '{"answer": 42}',
        "[1, 2]",
        "add is a word",
        "  spaces around  ",
        "ends in <tool",
    ],
)
def test_what_is_no_call_stays_words(text: str) -> None:
    for seed in range(10):
        words, found, _ = read(text, seed)
        assert (words, found) == (text, [])
    assert "".join(d["content"] for d in CallReader().deltas(text)) == text
