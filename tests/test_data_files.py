"""Rows out of files of every type, whatever stands in them, and any page of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.knobs import ConfigError
from tuner.data import files
from tuner.data.files import Broken, records
from tuner.data.pages import Pages
from tuner.data.spans import Objects

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=12)


@settings(max_examples=120, deadline=None)
@given(RECORDS, st.integers(1, 40), st.sampled_from([None, 1, 4]), st.booleans())
def test_a_json_list_is_read_row_by_row_at_any_chunk(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    chunk: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    path = tmp_path_factory.mktemp("json") / "set.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    scan = Objects(1)
    raw = path.read_bytes()
    found = [scan.feed(raw[i : i + chunk]) for i in range(0, len(raw), chunk)]
    spans = [(s, e) for block in found for s, e in zip(block.starts, block.ends, strict=True)]
    assert [json.loads(raw[s:e].decode("utf-8", "surrogatepass")) for s, e in spans] == rows
    lines = [line for block in found for line in block.lines.tolist()]
    assert lines == [raw[:s].count(b"\n") + 1 for s, _ in spans]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(max_size=5), st.text(st.characters(exclude_categories=("Cs",)), max_size=9), min_size=1
        ),
        max_size=9,
    )
)
def test_no_row_is_lost_or_changed_in_json_or_jsonl(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8"
    )
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    for name in ("a.jsonl", "a.json"):
        assert [r for _, r in records(folder / name)] == rows


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ROWS = [{"a": "x", "b": "1"}, {"a": 'y "z",\nnew', "b": "2"}, {"a": "ü", "b": ""}]


def test_every_type_gives_the_same_rows(tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    from pyarrow import ipc, parquet

    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    with (
        pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink,
        ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with (tmp_path / "set.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["a", "b"])
        out.writeheader()
        out.writerows(ROWS)
    (tmp_path / "set.json").write_text(json.dumps(ROWS))
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name in ("set.parquet", "stream.arrow", "file.arrow", "set.csv", "set.json", "set.jsonl"):
        path = tmp_path / name
        assert [r for _, r in records(path)] == ROWS, name
        pages = Pages(path)
        assert [row.record for row in pages.page(0, 2)] == ROWS[:2], name
        assert [row.record for row in pages.page(1, 2)] == ROWS[2:], name
        assert pages.count() == pages.rows == 3 and pages.page(9, 2) == []


def test_txt_gives_a_row_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "one\r\n\ntwo\n")
    assert list(records(path)) == [(1, {"text": "one"}), (3, {"text": "two"})]


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("a.jsonl", '{"a":1}\n{"a":\n{"a":2}', 2, "not JSON"),
        ("a.jsonl", b'{"a":1}\n{"a":"\xff"}\n', 2, "not UTF-8"),
        ("a.jsonl", '{"a":1}\n[1]\n', 2, "a row is an object"),
        ("a.json", '[{"a":1}\n, {"a" 1}]', 2, "not JSON"),
        ("a.json", '[{"a":1}, 7,\n{"a":2}]', 2, "no row"),
        ("a.json", '[{"a":1},\n{"a":2}', 0, "the file ends inside"),
        ("a.json", '[{"a":1},\n{"a": "x', 2, "not JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", 3, "3 fields"),
        ("a.jsonl", '{"a":1}\n' + "[" * 100_000 + "]" * 100_000, 2, "nested too deeply"),
    ],
)
def test_what_is_broken_is_told_by_its_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, said: str
) -> None:
    broken = [(at, r) for at, r in records(written(tmp_path, name, content)) if isinstance(r, Broken)]
    assert broken and broken[0][0] == line
    assert said in broken[0][1].reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"a":1}]'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", '{"a":1}'.encode("utf-16-le"), "UTF-16"),
        ("a.csv", b"a,b\n\x00,1\n", "NUL bytes"),
        ("a.json", b"\x1f\x8b\x08 gzip", "compressed"),
        ("a.exe", b"x", "is not one of json"),
        ("a.parquet", b"PAR1 not really", "not readable as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        list(records(written(tmp_path, name, content)))


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path) -> None:
    for name, content in (("a.json", '[{"a": 1}]'), ("a.jsonl", '{"a": 1}\n'), ("a.csv", "a\n1\n")):
        path = written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
        assert [str(r["a"]) for _, r in records(path)] == ["1"], name


def test_a_row_that_is_too_long_is_told_and_never_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps({"a": "x" * 5000}) + "\n" + json.dumps({"a": 1}))
    with patch.object(files, "LONGEST_ROW", 1000):
        found = [r for _, r in records(path)]
    assert isinstance(found[0], Broken) and "longer than" in found[0].reason
    assert found[1] == {"a": 1}


def test_jsonl_under_the_name_json_is_read(tmp_path: Path) -> None:
    assert len(list(records(written(tmp_path, "a.json", '{"a":1}\n{"a":2}\n')))) == 2


def test_pretty_objects_behind_each_other_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.json", json.dumps({"a": "}{"}, indent=2) + "\n" + json.dumps({"a": 2}, indent=2)
    )
    assert [r for _, r in records(path)] == [{"a": "}{"}, {"a": 2}]


def test_pages_of_several_files_follow_each_other(tmp_path: Path) -> None:
    paths = [
        written(tmp_path, f"{i}.jsonl", "".join(f'{{"n": {10 * i + k}}}\n' for k in range(4)))
        for i in range(3)
    ]
    pages = Pages(paths)
    rows = [row for number in range(4) for row in pages.page(number, 3)]
    assert [r.record["n"] for r in rows if isinstance(r.record, dict)] == [
        0,
        1,
        2,
        3,
        10,
        11,
        12,
        13,
        20,
        21,
        22,
        23,
    ]
    assert (rows[4].file, rows[4].line) == ("1.jsonl", 1)
    with pytest.raises(ConfigError, match="There is no row 12"):
        pages.row(12)
