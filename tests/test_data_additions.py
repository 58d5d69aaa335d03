"""What is kept of a talk becomes rows that the catalog, and any stage that reads chats, takes as they are."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tiny

from tuner.config.knobs import ConfigError
from tuner.data import additions
from tuner.data.catalog import read_catalog
from tuner.data.files import records
from tuner.data.formats import convert

ROW = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Wie geht's?\n你好"},
        {"role": "assistant", "content": "Gut."},
    ]
}
CALLED = {
    "tools": '[{"name": "add"}]',
    "messages": [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
            ],
        },
    ],
}


def test_a_set_is_made_and_grows(home: Path) -> None:
    entry = additions.add("kept", ROW, "data")
    additions.add("kept", CALLED, "data")
    assert entry.path == home / "data" / "uploads" / "kept.jsonl"
    found = read_catalog("data")["kept"]
    assert found.kind == "chat" and not found.fits("sft") and additions.takes(found)
    first, second = (convert(record, found) for _, record in records(found.path))
    assert first["messages"] == ROW["messages"]  # type: ignore[index]
    assert second["messages"][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}  # type: ignore[index]


def test_another_set_of_the_catalog_stays_as_it_is(home: Path) -> None:
    tiny.data(home / "data")
    before = (home / "data" / "chat.json").read_bytes()
    for name in ("chat", "pairs"):
        with pytest.raises(ConfigError, match="another form"):
            additions.add(name, ROW, "data")
    for name in ("", "../x", "a b"):
        with pytest.raises(ConfigError, match="no name for a data set"):
            additions.add(name, ROW, "data")
    assert (home / "data" / "chat.json").read_bytes() == before and not (home / "data" / "uploads").exists()
    there = set(read_catalog("data"))
    additions.add("mine", ROW, "data")
    assert set(read_catalog("data")) == there | {"mine"} and "mine" not in there


def test_rows_added_at_once_are_all_there_and_a_broken_line_spoils_none(home: Path) -> None:
    file = additions.add("kept", ROW, "data").path
    with file.open("a") as half:
        half.write('{"messages": [')  # what a person's editor left
    several = [threading.Thread(target=additions.add, args=("kept", ROW, "data")) for _ in range(8)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10 and sum(line == json.dumps(ROW, ensure_ascii=False) for line in lines) == 9


def test_a_row_without_an_answer_is_told(home: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be trained on"):
        additions.add("kept", {"messages": ROW["messages"][:2]}, "data")
