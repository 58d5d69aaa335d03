"""Turns of every format into messages: nothing of them is lost without a word, and nothing is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_world import LABELLED, RANKED, catalog, config, tokenizer
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.catalog import entry
from tuner.data.entries import Entry
from tuner.data.formats import Dropped, Row, convert
from tuner.data.prepare import report_of

CHAT: dict[str, Any] = {
    "formatting": "openai",
    "columns": {"messages": "messages", "tools": "tools"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
SHAREGPT: dict[str, Any] = {"formatting": "sharegpt"}
ASKED = {"role": "user", "content": "q"}


def made(attributes: dict[str, Any]) -> Entry:
    return entry("set", {"file_name": "set.json", **attributes}, Path())


def row_of(record: dict[str, Any], attributes: dict[str, Any] = CHAT) -> Row:
    found = convert(record, made(attributes))
    assert isinstance(found, dict), found
    return found


def answer(turn: dict[str, Any], notes: dict[str, str] | None = None) -> dict[str, Any]:
    """The message that an assistant's turn becomes; the row has exactly these notes."""
    row = row_of({"messages": [ASKED, {"role": "assistant", **turn}]})
    assert row.get("notes") == notes
    message: dict[str, Any] = row["messages"][1]
    return message


# --- nothing, and what is not nothing ------------------------------------------------------------------------------

VALUES: list[tuple[Any, str]] = [
    (0, "0"), (0.0, "0.0"), (False, "False"), (True, "True"), (7, "7"), (-0.5, "-0.5"), ("0", "0"), (" ", " "),
]  # fmt: skip
NOTHING: list[Any] = [None, "", float("nan"), [], [None], [{"type": "text", "text": None}]]


@pytest.mark.parametrize(("value", "said"), VALUES)
def test_zero_and_false_are_texts_wherever_they_stand(value: Any, said: str) -> None:
    alpaca = {"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history",
                          "system": "system"}}  # fmt: skip
    record = {"instruction": value, "input": "x", "output": "a", "history": [[value, "h"]], "system": value}
    assert [m["content"] for m in row_of(record, alpaca)["messages"]] == [said, said, "h", f"{said}\nx", "a"]
    assert (
        row_of({"instruction": "x", "input": value, "output": "a"}, {})["messages"][0]["content"]
        == f"x\n{said}"
    )
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "a"}]
    assert row_of({"conversations": turns}, SHAREGPT)["messages"][0]["content"] == said
    parts = [{"type": "text", "text": value}, {"type": "text", "text": "!"}]
    assert answer({"content": parts})["content"] == said + "!"
    if said.strip():
        assert row_of({"instruction": "q", "output": value}, {})["messages"][1]["content"] == said
        pair = {"conversations": turns[:1], "chosen": value, "rejected": "other"}
        assert row_of(pair, RANKED)["chosen"]["content"] == said
        assert row_of({"text": value}, {"columns": {"prompt": "text"}})["text"] == said


@pytest.mark.parametrize("value", NOTHING)
def test_nothing_is_nothing_wherever_it_stands(value: Any) -> None:
    record = {
        "instruction": "q",
        "input": value,
        "output": "a",
        "system": value if not isinstance(value, list) else "",
    }
    messages = row_of(
        record,
        {"columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}},
    )["messages"]
    assert messages == [ASKED, {"role": "assistant", "content": "a"}]
    lost = convert({"messages": [ASKED, {"role": "assistant", "content": value}]}, made(CHAT))
    assert isinstance(lost, Dropped) and lost.reason == "empty answer"


@pytest.mark.parametrize(
    "tools", ["null", None, "", " ", "\n", {}, "{}", [], "[]", [None], "[null]", [{}], float("nan")]
)
def test_no_tools_are_no_tools(tools: Any) -> None:
    assert "tools" not in row_of({"messages": [ASKED, {"role": "assistant", "content": "a"}], "tools": tools})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"a": None}}}


@pytest.mark.parametrize(
    "tools", [[TOOL], TOOL, json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(TOOL)], [None, TOOL]]
)
def test_tools_are_read_in_any_wrapping(tools: Any) -> None:
    row = row_of({"messages": [ASKED, {"role": "assistant", "content": "a"}], "tools": tools})
    assert row["tools"] == [TOOL]


@pytest.mark.parametrize("tools", ["{", "[7]", [7], ["f"], 7, "true"])
def test_tools_that_are_none_are_told(tools: Any) -> None:
    found = convert({"messages": [ASKED, {"role": "assistant", "content": "a"}], "tools": tools}, made(CHAT))
    assert isinstance(found, Dropped) and found.reason == "broken tools"


# --- what else a message holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_beside_its_answer_is_kept(key: str) -> None:
    assert answer({"content": "4", key: "add"}) == {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "add",
    }
    for nothing in (None, "", " \n"):
        assert "reasoning_content" not in answer({"content": "4", key: nothing})
    lost = convert({"messages": [ASKED, {"role": "assistant", "content": "", key: "add"}]}, made(CHAT))
    assert lost == Dropped("empty answer", "the answer is a thought and no words")


def test_two_thoughts_that_differ_are_told() -> None:
    assert (
        answer({"content": "4", "reasoning": "add", "reasoning_content": "add"})["reasoning_content"] == "add"
    )
    told = {"keys not used": "thinking"}
    assert (
        answer({"content": "4", "reasoning_content": "add", "thinking": "guess"}, told)["reasoning_content"]
        == "add"
    )


def test_ids_and_names_of_calls_and_results_are_kept() -> None:
    call = {"id": "abc123456", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    turns = [
        {"role": "system", "content": "s", "name": "house"},
        {**ASKED, "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "abc123456", "name": "get"},
        {"role": "assistant", "content": "12"},
    ]
    row = row_of({"messages": turns})
    assert row == {
        "messages": [
            turns[0],
            turns[1],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{**call, "function": {"name": "get", "arguments": {}}}],
            },
            turns[3],
            turns[4],
        ]
    }


def test_the_older_function_call_is_a_tool_call() -> None:
    call = {"name": "get", "arguments": '{"a": null}'}
    turns = [ASKED, {"role": "assistant", "content": None, "function_call": call},
             {"role": "function", "name": "get", "content": "1"}, {"role": "assistant", "content": "a"}]  # fmt: skip
    row = row_of({"messages": turns})
    assert row["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "get", "arguments": {"a": None}}}
    ]
    assert row["messages"][2] == {"role": "tool", "content": "1", "name": "get"} and "notes" not in row
    both = {
        "content": "",
        "function_call": call,
        "tool_calls": [{"function": {"name": "other", "arguments": {}}}],
    }
    assert answer(both, {"keys not used": "function_call"})["tool_calls"][0]["function"]["name"] == "other"


@pytest.mark.parametrize("given_", ["", " ", "{}", "null", {}, None])
def test_a_call_may_have_no_arguments(given_: Any) -> None:
    said = answer({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": given_}}]})
    assert said["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]


def test_what_of_a_call_is_not_used_is_told() -> None:
    calls = [{"index": 0, "id": 7, "function": {"name": "f", "parameters": {"a": 1}, "strict": None}}]
    told = {"keys not used": "tool_calls.index, tool_calls.parameters"}
    assert answer({"content": "", "tool_calls": calls}, told)["tool_calls"][0]["id"] == "7"


@pytest.mark.parametrize("calls", [None, [], "", "null", "[]", [None], {}])
def test_no_calls_are_no_calls(calls: Any) -> None:
    assert answer({"content": "a", "tool_calls": calls}) == {"role": "assistant", "content": "a"}


# --- parts ---------------------------------------------------------------------------------------------------------


def test_parts_of_openai_and_of_v1_are_one_text() -> None:
    parts = [None, {"type": "text", "text": "a"}, {"type": "text", "value": "b"}, {"type": "text", "text": None},
             {"type": "text", "text": 0}]  # fmt: skip
    assert answer({"content": parts})["content"] == "ab0"
    assert answer({"content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]},
                  {"keys not used": "content.cache_control"})["content"] == "a"  # fmt: skip


def test_v1_rows_are_read_whole() -> None:
    call = {"name": "f", "arguments": {"a": 1}}
    turns = [
        {"role": "system", "content": [{"type": "text", "value": "s"}, {"type": "tools", "value": json.dumps([TOOL])}], "loss_weight": 0.0},
        {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"},
                                          {"type": "tool_call", "value": json.dumps(call)}], "loss_weight": 1.0},
        {"role": "tool", "content": [{"type": "text", "value": "1"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "tool_calls", "value": json.dumps([call, call])}], "loss_weight": 0.0},
    ]  # fmt: skip
    made_call = {"type": "function", "function": call}
    assert row_of({"messages": turns}) == {
        "messages": [
            {"role": "system", "content": "s"},
            ASKED,
            {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [made_call]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "", "tool_calls": [made_call, made_call], "trained": False},
        ],
        "tools": [TOOL],
    }


@pytest.mark.parametrize(
    ("part", "kind"),
    [({"type": "video_url", "video_url": {"url": "x"}}, "video_url"), ({"type": "refusal", "refusal": "no"}, "refusal"),
     ({"type": "reasoning", "value": "x"}, "reasoning"), ({"text": "x"}, "None"), (7, "int"), ("x", "str")],
)  # fmt: skip
def test_a_part_that_is_no_text_is_refused_by_its_type(part: Any, kind: str) -> None:
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
    assert convert({"messages": turns}, made(CHAT)) == Dropped("not text", f"a part of type {kind}")


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["weight", "loss", "loss_weight"])
@pytest.mark.parametrize("value", [0, False, 0.0, 1, True, 1.0, None])
def test_an_answer_of_weight_zero_is_not_trained(key: str, value: Any) -> None:
    expected = {"role": "assistant", "content": "a"} | ({} if value or value is None else {"trained": False})
    assert answer({"content": "a", key: value}) == expected
    by_tags = [{"from": "human", "value": "q", key: 0}, {"from": "gpt", "value": "a", key: value}]
    assert row_of({"conversations": by_tags}, SHAREGPT) == {"messages": [ASKED, expected]}


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", [0]])
def test_any_other_weight_is_told(value: Any) -> None:
    assert answer(
        {"content": "a", "weight": value}, {"weight not obeyed": f"weight {value} of the assistant"}
    ) == {
        "role": "assistant",
        "content": "a",
    }


def test_a_weight_where_there_is_none_to_obey_is_told() -> None:
    said = [{**ASKED, "weight": 1}, {"role": "assistant", "content": "a"}]
    assert row_of({"messages": said})["notes"] == {"weight not obeyed": "weight 1 of the user"}
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "h", "weight": 0},
        {"from": "human", "value": "q"},
    ]
    better, worse = ({"from": "gpt", "value": v, "weight": w} for v, w in (("a", 1), ("b", 0)))
    row = row_of({"conversations": turns, "chosen": better, "rejected": worse}, RANKED)
    assert row["notes"] == {"weight not obeyed": "weight 0 of the rejected answer"}
    labelled = [ASKED, {"role": "assistant", "content": "a", "loss": False}]
    kto = row_of({"messages": labelled, "label": True}, LABELLED)
    assert kto["notes"] == {"weight not obeyed": "weight 0 of the answer"}
    assert "trained" not in json.dumps([row, kto])


# --- pairs ---------------------------------------------------------------------------------------------------------


def whole(answer_: dict[str, Any], id_: str = "1", **more: Any) -> list[dict[str, Any]]:
    call = {"id": id_, "type": "function", "function": {"name": "f", "arguments": {}}}
    return [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call], **more},
        {"role": "tool", "content": "1", "tool_call_id": id_},
        {"role": "assistant", **answer_},
    ]


def test_chats_of_a_pair_share_their_prompt_whatever_their_calls_are_called() -> None:
    ranked = {**CHAT, "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    better, worse = (
        whole({"content": "a"}, weight=1),
        whole({"content": "b", "reasoning_content": "t"}, id_="2", weight=0),
    )
    row = row_of({"chosen": better, "rejected": worse}, ranked)
    assert [m["role"] for m in row["messages"]] == ["user", "assistant", "tool"] and "notes" not in row
    assert row["messages"][2]["tool_call_id"] == row["messages"][1]["tool_calls"][0]["id"] == "1"
    assert row["rejected"] == {"role": "assistant", "content": "b", "reasoning_content": "t"}
    same_words = row_of(
        {"chosen": better, "rejected": whole({"content": "a", "reasoning_content": "t"})}, ranked
    )
    assert same_words["chosen"] != same_words["rejected"]
    alike = convert(
        {"chosen": better, "rejected": whole({"content": "a", "weight": 0}, id_="2")}, made(ranked)
    )
    assert isinstance(alike, Dropped) and alike.reason == "identical answers"
    apart = convert(
        {"chosen": better, "rejected": whole({"content": "b"}, reasoning_content="t")}, made(ranked)
    )
    assert isinstance(apart, Dropped) and apart.reason == "no shared prompt"


# --- keys that are not used ----------------------------------------------------------------------------------------

USED = {"role", "content", "tool_calls", "function_call", "tool_call_id", "name", "reasoning_content", "reasoning",
        "thinking", "weight", "loss", "loss_weight", "from", "value"}  # fmt: skip
KEYS = st.text(st.characters(codec="ascii", categories=("Ll", "Lu", "Nd")), min_size=1, max_size=8)


@settings(max_examples=examples(100))
@given(
    st.dictionaries(
        KEYS.filter(lambda k: k not in USED), st.sampled_from([None, "", "x", 0, False, [], [1]]), max_size=4
    )
)
def test_every_other_key_that_says_something_is_named(more: dict[str, Any]) -> None:
    said = [key for key, value in more.items() if value not in (None, "", [])]
    answer({**more, "content": "a"}, {"keys not used": ", ".join(said)} if said else None)


@pytest.mark.parametrize(
    ("turns", "key"),
    [
        (
            [{**ASKED, "tool_calls": [{"function": {"name": "f"}}]}, {"role": "assistant", "content": "a"}],
            "tool_calls",
        ),
        ([{**ASKED, "reasoning_content": "x"}, {"role": "assistant", "content": "a"}], "reasoning_content"),
        ([{**ASKED, "tool_call_id": "x"}, {"role": "assistant", "content": "a"}], "tool_call_id"),
        ([ASKED, {"role": "assistant", "content": "a", "name": {"x": 1}}], "name"),
        ([ASKED, {"role": "assistant", "content": "a", "thinking": True}], "thinking"),
        ([ASKED, {"role": "assistant", "content": "a", "value": "other words"}], "value"),
    ],
)
def test_a_key_in_the_wrong_place_is_named(turns: list[Any], key: str) -> None:
    assert row_of({"messages": turns})["notes"] == {"keys not used": key}


def test_words_under_the_other_usual_name_are_read() -> None:
    turns = [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]
    assert row_of({"conversations": turns}, SHAREGPT)["messages"] == [
        ASKED,
        {"role": "assistant", "content": "a"},
    ]


def test_the_report_counts_rows_with_something_to_know(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {**ASKED, "refusal": "x"},
                {"role": "assistant", "content": "a", "refusal": "no", "audio": 1},
            ]
        },
        {"messages": [ASKED, {"role": "assistant", "content": "b", "refusal": None, "weight": 0.5}]},
        {"messages": [ASKED, {"role": "assistant", "content": "I am {{name}} by {{ author }}."}]},
        {
            "messages": [
                {"role": "user", "content": "{{name}}"},
                {"role": "assistant", "content": "{{ other }} {{author}}"},
            ]
        },
        {"messages": [ASKED, {"role": "assistant", "content": "d", "reasoning_content": "half \ud83d"}]},
        {
            "messages": [ASKED, {"role": "assistant", "content": "{{ username }}", "id": 0}],
            "id": 7,
            "source": "x",
        },
    ]
    folder = catalog(tmp_path, a=(CHAT, json.dumps(rows)))
    got = report_of(config(dataset_dir=str(folder), dataset="a", template="chatml", stage="sft"), tokenizer())
    assert {k: (v.count, v.examples[0]["detail"]) for k, v in got.findings.items()} == {
        "keys not used": (2, "refusal, audio"),
        "weight not obeyed": (1, "weight 0.5 of the assistant"),
        "placeholder not filled in": (2, "I am {{name}} by {{ author }}."),
        "encoding damage": (1, "half \ud83d"),
        "thought left out": (1, "half \ud83d"),
    }
    assert not got.dropped
