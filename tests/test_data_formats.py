"""The catalog, and raw rows in every format into the normal form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import LABELLED, RANKED, catalog, config, pair, tokenizer
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.knobs import ConfigError
from tuner.data import verbs
from tuner.data.catalog import entry, named, read_catalog
from tuner.data.encode import Encoded, encode
from tuner.data.entries import Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, Row, convert
from tuner.data.hub import hub_records
from tuner.data.template_choice import template_of

HERE = Path()
ALPACA: dict[str, Any] = {
    "columns": {"prompt": "instruction", "response": "output", "history": "history", "system": "system"}
}
SHAREGPT: dict[str, Any] = {"formatting": "sharegpt", "columns": {"system": "system", "tools": "tools"}}
OPENAI: dict[str, Any] = {
    "formatting": "openai",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def made(attributes: dict[str, Any]) -> Entry:
    return entry("set", {"file_name": "set.json", **attributes}, HERE)


def row_of(record: dict[str, Any], attributes: dict[str, Any]) -> Row:
    found = convert(record, made(attributes))
    assert isinstance(found, dict), found
    return found


def dropped(record: dict[str, Any], attributes: dict[str, Any]) -> str:
    found = convert(record, made(attributes))
    assert isinstance(found, Dropped), found
    return found.reason


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda t: bool(t.strip())
)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


@settings(max_examples=examples(80))
@given(TURNS, st.none() | TEXT)
def test_one_chat_in_three_formats_gives_the_same_tokens(
    turns: list[tuple[str, str]], system: str | None
) -> None:
    *history, (question, answer) = turns
    alpaca = {
        "instruction": question,
        "output": answer,
        "history": [list(t) for t in history],
        "system": system or "",
    }
    words = [(role, text) for q, a in turns for role, text in (("user", q), ("assistant", a))]
    sharegpt = {
        "conversations": [{"from": {"user": "human"}.get(r, "gpt"), "value": t} for r, t in words],
        "system": system,
    }
    opening = [{"role": "system", "content": system}] if system else []
    openai = {"messages": opening + [{"role": r, "content": t} for r, t in words]}
    rows = [row_of(alpaca, ALPACA), row_of(sharegpt, SHAREGPT), row_of(openai, OPENAI)]
    assert rows[0] == rows[1] == rows[2]
    assert [m["content"] for m in rows[0]["messages"]] == ([system] if system else []) + [t for _, t in words]
    wanted, tk = config(template="chatml"), tokenizer()
    ids = [encode(r, wanted, template_of(wanted, tk), tk) for r in rows]
    assert all(isinstance(i, Encoded) for i in ids) and ids[0] == ids[1] == ids[2]


def test_prompt_and_query_are_joined_and_columns_not_named_keep_their_defaults() -> None:
    row = row_of(
        {"question": "Sum up", "input": "the text", "answer": "ok"},
        {"columns": {"prompt": "question", "response": "answer"}},
    )
    assert row["messages"][0]["content"] == "Sum up\nthe text"


def test_a_default_column_that_has_another_meaning_is_not_read_twice() -> None:
    row = row_of({"input": "q", "target": "a"}, {"columns": {"prompt": "input", "response": "target"}})
    assert row["messages"][0]["content"] == "q"


def test_turns_under_the_other_usual_names_are_read() -> None:
    row = row_of(
        {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, SHAREGPT
    )
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]


def test_nothing_is_added_to_openai_rows() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert row_of({"messages": messages}, OPENAI)["messages"] == messages


CALL = {"name": "search", "arguments": {"q": 1}}


def test_tool_calls_of_both_spellings_are_one() -> None:
    openai = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {**CALL, "arguments": '{"q": 1}'}}],
            },
            {"role": "tool", "content": "r1"},
            {"role": "tool", "content": "r2"},
            {"role": "assistant", "content": "a"},
        ]
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "r1"},
            {"from": "observation", "value": "r2"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([{"name": "search"}]),
    }
    rows = row_of(openai, OPENAI), row_of(sharegpt, SHAREGPT)
    assert rows[0]["messages"] == rows[1]["messages"]
    assert rows[0]["messages"][1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert rows[1]["tools"] == [{"name": "search"}]


WHOLE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_pairs_that_hold_whole_chats_share_their_prompt() -> None:
    other = [WHOLE[0], {"role": "assistant", "content": "b"}]
    row = row_of({"chosen": WHOLE, "rejected": other}, RANKED)
    assert (row["messages"], row["chosen"]["content"], row["rejected"]["content"]) == (WHOLE[:1], "a", "b")


def test_transcripts_of_hh_rlhf_are_split_into_turns() -> None:
    head = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    row = row_of({"chosen": head + " good", "rejected": head + " bad"}, {"ranking": True})
    assert [(m["role"], m["content"]) for m in row["messages"]] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    assert (row["chosen"]["content"], row["rejected"]["content"]) == ("good", "bad")


BAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "empty answer": ({"instruction": "q", "output": " "}, {}),
    "no answer": ({"instruction": "q"}, {"columns": {"response": "output"}}),
    "no prompt": ({"instruction": "", "output": "a"}, {}),
    "unknown role": ({"conversations": [{"from": "robot", "value": "x"}]}, SHAREGPT),
    "role order": ({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}, SHAREGPT),
    "no turns": ({"conversations": []}, SHAREGPT),
    "broken turn": ({"conversations": ["x"]}, SHAREGPT),
    "identical answers": (pair("q", "a", "a"), RANKED),
    "no pair": ({"conversations": [{"from": "human", "value": "q"}]}, RANKED),
    "no label": ({"messages": WHOLE, "label": "maybe"}, LABELLED),
    "no text": ({"text": "  "}, {"columns": {"prompt": "text"}}),
    "not text": ({"instruction": {"a": 1}, "output": "a"}, {}),
    "broken tools": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "{"}, SHAREGPT),
    "broken tool call": ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "go"}]}, SHAREGPT),
    "no shared prompt": ({"chosen": WHOLE, "rejected": [{"role": "user", "content": "other"}, WHOLE[1]]}, RANKED),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_dropped_with_its_reason(reason: str) -> None:
    assert dropped(*BAD[reason]) == reason


def test_a_chosen_answer_that_is_not_the_assistants_is_not_kept() -> None:
    record = pair("q", "a", "b")
    record["chosen"]["from"] = "human"
    assert dropped(record, RANKED) == "role order"


@pytest.mark.parametrize(
    ("given_", "label"),
    [(True, True), (0, False), ("True", True), ("false", False), (1.0, True), (0.0, False), ("1.0", True), (" 0.0", False),
     (np.bool_(True), True), (np.float64(0), False), (np.int64(1), True)],
)  # fmt: skip
def test_labels_may_be_words_or_numbers(given_: Any, label: bool) -> None:
    assert row_of({"messages": WHOLE, "label": given_}, LABELLED)["label"] is label


@pytest.mark.parametrize("label", [0.5, 2, -1, "2", "", None, float("nan"), [], [True], "1.5"])
def test_what_is_neither_true_nor_false_is_no_label(label: Any) -> None:
    assert dropped({"messages": WHOLE, "label": label}, LABELLED) == "no label"


def test_every_key_of_a_catalog_is_read(tmp_path: Path) -> None:
    info = {
        "a": {
            "hf_hub_url": "org/a",
            "ms_hub_url": "x",
            "subset": "en",
            "split": "test",
            "folder": "sub",
            "num_samples": 5,
        },
        "b": {
            "file_name": "b.json",
            "formatting": "sharegpt",
            "tags": {"role_tag": "role"},
            "columns": {"messages": "m"},
        },
        "c": {"cloud_file_name": "s3://x/y.json"},
        "d": {"ms_hub_url": "org/d", "ranking": True},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    got = read_catalog(tmp_path)
    a, b = got["a"], got["b"]
    assert (a.origin, a.source, a.subset, a.split, a.folder, a.num_samples) == (
        "hub",
        "org/a",
        "en",
        "test",
        "sub",
        5,
    )
    assert (b.tags["role_tag"], b.tags["content_tag"], b.columns["messages"]) == ("role", "value", "m")
    assert got["c"].origin == "cloud" and got["d"].kind == "pairs" and got["d"].source == "modelscope:org/d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"file_name": "x"},\n "b": }', "line 2"),
        ("[]", "one object"),
        ('{"a": {}}', "names no source"),
        ('{"a": {"file_name": "x", "formatting": "alpaka"}}', "formatting 'alpaka'"),
        ('{"a": {"file_name": "x", "columns": {"promt": "y"}}}', "did you mean prompt?"),
        ('{"a": {"file_name": "x", "num_samples": 0}}', "num_samples 0"),
    ],
)
def test_a_broken_catalog_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_catalog(tmp_path)
    assert said in str(error.value)


def test_a_missing_catalog_and_an_online_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="point --dataset_dir at the folder"):
        read_catalog(tmp_path / "nowhere")
    assert named(["org/set"], "ONLINE")[0].source == "org/set"


def test_a_folder_of_files_is_one_set(tmp_path: Path) -> None:
    folder = catalog(tmp_path, set=({"file_name": "set.json"}, []))
    (folder / "many").mkdir()
    for i in range(3):
        (folder / "many" / f"{i}.jsonl").write_text(json.dumps({"instruction": "q", "output": "a"}))
    many = entry("many", {"file_name": "many"}, folder)
    assert [p.name for p in many.files()] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    (folder / "many" / "x.csv").write_text("a,b")
    with pytest.raises(ConfigError, match="mixes .csv, .jsonl"):
        many.files()


def test_text_and_chat_are_told_apart_by_the_rows(tmp_path: Path) -> None:
    columns = {"columns": {"prompt": "text"}}
    folder = catalog(tmp_path, a=(columns, [{"text": "x"}]), b=(columns, [{"text": "x", "output": "y"}]))
    got = read_catalog(folder)
    assert (got["a"].kind, got["b"].kind) == ("text", "chat")
    assert "stage dpo needs pairs" in (got["b"].fits("dpo") or "")
    assert got["a"].fits("pt") is None


PROMPTS = {"columns": {"prompt": "q", "response": "a"}}


@pytest.mark.parametrize(
    ("rows", "attributes", "kind", "reasons"),
    [
        ([{"instruction": "q"}, {"instruction": "q", "output": "a"}], {}, "chat", ["no answer", ""]),
        ([{"instruction": "q", "output": None}] * 3, {}, "chat", ["no answer"] * 3),
        ([{"instruction": "q"}] * 30, {}, "text", [""] * 30),
        ([{"q": "x"}, {"q": "x", "a": "y"}], PROMPTS, "chat", ["no answer", ""]),
        ([7, {"other": 1}, {"instruction": "q", "output": "a"}], {}, "chat", ["broken row", "no prompt", ""]),
        ([{"text": "x"}, {"text": "y"}], {}, "text", ["", ""]),
        ([{"text": "x"}, {"other": 1}], {"columns": {"prompt": "text"}}, "text", ["", "no text"]),
    ],
)
def test_what_a_set_is_is_told_by_its_columns_and_several_rows(
    tmp_path: Path, rows: list[Any], attributes: dict[str, Any], kind: str, reasons: list[str]
) -> None:
    folder = catalog(tmp_path, a=(attributes, rows))
    got = read_catalog(folder)["a"]
    assert got.kind == kind
    found = [convert(record, got) for _, record in records(got.path)]
    assert [row.reason if isinstance(row, Dropped) else "" for row in found] == reasons


def test_several_files_tell_what_a_set_is_together(tmp_path: Path) -> None:
    folder = catalog(tmp_path)
    (folder / "many").mkdir()
    (folder / "many" / "a.jsonl").write_text('{"instruction": "q"}\n')
    (folder / "many" / "b.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    assert entry("many", {"file_name": "many"}, folder).kind == "chat"
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("one\ntwo\n")
    texts = entry("texts", {"file_name": "texts"}, folder)
    assert texts.kind == "text"
    assert [convert(r, texts) for _, r in records(texts.files()[0])] == [{"text": "one"}, {"text": "two"}]


def test_an_answer_beside_plain_text_is_not_dropped_without_a_word(tmp_path: Path) -> None:
    rows = [{"instruction": "q"}] * 25 + [{"instruction": "q", "output": "a"}]
    got = read_catalog(catalog(tmp_path, a=({}, rows)))["a"]
    assert got.kind == "text"
    assert convert(rows[-1], got) == {"text": "q", "notes": {"keys not used": "output"}}


def test_videos_are_refused_in_words_and_pictures_where_a_stage_reads_none() -> None:
    talks: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": "m", "images": "images"}}
    assert made(talks).fits("sft") is None
    said = made(talks).fits("pt")
    assert said and "holds pictures, which stage pt does not read" in said and "stage sft" in said
    talks["columns"]["videos"] = "videos"
    assert "videos" in str(made(talks).fits("sft"))


def test_a_hub_set_is_loaded_and_one_that_is_away_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub = tmp_path / "hh"
    hub.mkdir()
    turns = "\n\nHuman: one\n\nAssistant:"
    (hub / "train.jsonl").write_text(
        json.dumps({"chosen": turns + " good", "rejected": turns + " bad"}) + "\n"
    )
    there = entry("hh", {"hf_hub_url": str(hub), "ranking": True}, tmp_path)
    rows = list(hub_records(there))
    assert rows[0][0] == 1
    found = convert(rows[0][1], there)
    assert isinstance(found, dict) and found["rejected"]["content"] == "bad"
    for number in (-1, 1):
        with pytest.raises(ConfigError, match=f"hh has no row {number}"):
            verbs.hub_row(there, number)
    away = entry("away", {"hf_hub_url": "nobody/nothing-here", "ranking": True}, tmp_path)
    with pytest.raises(ConfigError, match="nobody/nothing-here cannot be fetched from its hub"):
        next(iter(hub_records(away)))


TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("attributes", "record", "label", "columns"),
    [
        (ALPACA, {"instruction": "q", "output": "a", "level": 3}, "a", {"level": 3}),
        (ALPACA, {"instruction": "q", "output": ""}, None, {}),
        (ALPACA, {"instruction": "q"}, None, {}),
        (OPENAI, {"messages": [USER, ASSISTANT], "answer": "7"}, "a", {"answer": "7"}),
        (OPENAI, {"messages": [USER]}, None, {}),
        (RANKED, pair("q", "a", "b"), "a", {}),
        (LABELLED, {"messages": TALK, "label": True}, "a", {}),
        (LABELLED, {"messages": TALK, "label": False}, None, {}),
    ],
)  # fmt: skip
def test_any_row_is_a_prompt(
    attributes: dict[str, Any], record: dict[str, Any], label: str | None, columns: dict[str, Any]
) -> None:
    """The answer that a row expects is its label; one that is marked bad is none."""
    row = convert(record, made(attributes), prompts=True)
    assert not isinstance(row, Dropped), row
    assert [turn["content"] for turn in row["messages"]] == ["q"]
    assert (row["label"], row["columns"]) == (label, columns)


def test_an_answer_alone_is_no_prompt() -> None:
    assert isinstance(convert({"messages": [ASSISTANT]}, made(OPENAI), prompts=True), Dropped)
