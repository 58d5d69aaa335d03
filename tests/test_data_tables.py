"""Tables: what their types add to rows is taken away again, and what is no text is written as text or told."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from tuner.data.catalog import entry
from tuner.data.entries import Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, convert
from tuner.data.hub import hub_records
from tuner.data.pages import Pages
from tuner.data.tables import NotText, table_rows

OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages", "tools": "tools"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def made(attributes: dict[str, Any]) -> Entry:
    return entry("set", {"file_name": "set.parquet", **attributes}, Path())


def saved(folder: Path, table: Any) -> list[Path]:
    """The table as parquet, as an arrow file and as an arrow stream."""
    paths = [folder / "set.parquet", folder / "file.arrow", folder / "stream.arrow"]
    parquet.write_table(table, paths[0])
    for path, new in zip(paths[1:], (ipc.new_file, ipc.new_stream), strict=True):
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    return paths


def call_row(name: str, arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": name},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [{"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}],
    }


ROWS = [
    call_row("weather", {"city": "Rome"}, {"city": {"type": "string"}}),
    call_row("add", {"a": 1, "b": {"c": 2}}, {"a": {"type": "integer"}, "b": {"type": "object"}}),
]


def test_the_nulls_that_pad_a_table_are_no_data(tmp_path: Path) -> None:
    as_json = [convert(row, made(OPENAI)) for row in ROWS]
    for path in saved(tmp_path, pa.Table.from_pylist(ROWS)):
        read = [record for _, record in records(path)]
        assert [convert(record, made(OPENAI)) for record in read] == as_json
        assert read == [row.record for row in Pages(path).page(0, 2)]
        assert "null" not in json.dumps(read)


TREES = st.recursive(
    st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=examples(100))
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), TREES, max_size=3), min_size=1, max_size=4))
def test_objects_come_out_of_a_struct_column_as_they_went_in(rows: list[dict[str, Any]]) -> None:
    try:
        table = pa.Table.from_pylist([{"held": row} for row in rows])
    except pa.ArrowException:
        return  # one key with values of two types cannot be a column at all
    assert [row["held"] for row in table_rows(table)] == rows


def test_nulls_of_json_text_and_of_maps_stay(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(['{"a": null}']),
            "json": pa.array(['{"a": null}'], pa.json_()),
            "map": pa.array([[("a", None), ("b", 1)]], pa.map_(pa.string(), pa.int64())),
            "list": pa.array([["x", None]]),
        }
    )
    for path in saved(tmp_path, table):
        (row,) = (record for _, record in records(path))
        assert row == {"text": '{"a": null}', "json": {"a": None}, "map": {"a": None, "b": 1}, "list": ["x", None]}  # fmt: skip


MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5)
COLUMNS: dict[str, tuple[Any, Any]] = {
    "binary": (pa.array(["grün".encode()], pa.binary()), "grün"),
    "large binary": (pa.array([b"x"], pa.large_binary()), "x"),
    "bytes of one size": (pa.array([b"ab"], pa.binary(2)), "ab"),
    "large string": (pa.array(["x"], pa.large_string()), "x"),
    "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    "dictionary of bytes": (pa.array([b"x"]).dictionary_encode(), "x"),
    "decimal": (pa.array([Decimal("1.50")]), "1.50"),
    "tiny decimal": (pa.array([Decimal("0.00000001")]), "0.00000001"),
    "moment": (pa.array([MOMENT]), "2024-01-02T03:04:05"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    "moment somewhere": (pa.array([MOMENT], pa.timestamp("us", "UTC")), "2024-01-02T03:04:05+00:00"),
    "date": (pa.array([MOMENT.date()]), "2024-01-02"),
    "time": (pa.array([MOMENT.time()]), "03:04:05"),
    "zero": (pa.array([0], pa.int8()), "0"),
    "half": (pa.array([0.5], pa.float32()), "0.5"),
    "false": (pa.array([False]), "False"),
}
ODD: dict[str, tuple[Any, str]] = {
    "no text": (pa.array([b"\xff\xfe"]), "2 bytes that are no UTF-8 text"),
    "no utf-8": (
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")),
        "cannot be read: 'utf-8' codec",
    ),
    "year 148000": (pa.array([2**62], pa.timestamp("us")), "timestamp[us]"),
    "duration": (pa.array([datetime.timedelta(1)]), "a value of type timedelta"),
    "interval": (pa.array([pa.MonthDayNano([1, 2, 3])]), "a value of type MonthDayNano"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_no_json_is_written_as_text(tmp_path: Path, name: str) -> None:
    column, said = COLUMNS[name]
    struct = pa.StructArray.from_arrays([column, pa.array(["user"])], ["value", "from"])
    answer = pa.array([{"value": "a", "from": "gpt"}])
    alpaca = {"columns": {"prompt": "q", "response": "a"}}
    for path in saved(tmp_path, pa.table({"q": column, "a": column, "turn": struct, "more": answer})):
        (record,) = (r for _, r in records(path))
        row = convert(record, made(alpaca))
        assert isinstance(row, dict) and [m["content"] for m in row["messages"]] == [said, said]
        chat = convert({"conversations": [record["turn"], record["more"]]}, made({"formatting": "sharegpt"}))
        assert isinstance(chat, dict) and chat["messages"][0]["content"] == said
        json.dumps(record)


@pytest.mark.parametrize("name", ODD)
def test_a_row_is_dropped_only_where_it_uses_what_cannot_be_text(name: str) -> None:
    column, said = ODD[name]
    used = {"columns": {"prompt": "q", "response": "a"}}
    for value in (column, pa.StructArray.from_arrays([column], ["text"])):
        (record,) = table_rows(pa.table({"q": ["q"], "a": value, "b": ["b"]}))
        assert isinstance(record["a"], NotText) and said in str(record["a"])
        found = convert(record, made(used))
        assert found == Dropped("not text", f"a: {record['a']}")
        unused = convert(record, made({"columns": {"prompt": "q", "response": "b"}}))
        assert isinstance(unused, dict)


def test_rows_of_datasets_are_the_rows_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `datasets`, whole and streamed, from json and parquet, also where it makes JSON text of mixed types."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mixed = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": None}]}]
    plain = [{"role": "user", "content": "hi"}]
    answer = [{"role": "assistant", "content": "0"}]
    rows = [*ROWS, {"messages": plain + answer, "tools": []}, {"messages": mixed + answer, "tools": None}]
    expected = [convert(row, made(OPENAI)) for row in rows]
    for name in ("json", "padded"):
        (tmp_path / name).mkdir()
    (tmp_path / "json" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "padded" / "train.parquet")
    (tmp_path / "again").mkdir()
    whole = datasets.load_dataset("json", data_dir=str(tmp_path / "json"), split="train")
    whole.to_parquet(str(tmp_path / "again" / "train.parquet"))
    for name, count in (("json", 4), ("padded", 2), ("again", 4)):
        there = entry(name, {**OPENAI, "hf_hub_url": str(tmp_path / name)}, tmp_path)
        for streaming in (False, True):
            found = list(hub_records(there, streaming))
            assert [number for number, _ in found] == list(range(1, count + 1))
            assert [convert(record, there) for _, record in found] == expected[:count], (name, streaming)
    file = [convert(r, made(OPENAI)) for _, r in records(tmp_path / "again" / "train.parquet")]
    assert file == expected
