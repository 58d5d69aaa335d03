"""Rows out of files of every type, whatever stands in them, and any page of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.config.knobs import ConfigError
from tuner.data import files
from tuner.data.files import Broken, records
from tuner.data.pages import Pages
from tuner.data.spans import Csv, Lines, Objects, Scanner, delimiter_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=12)


@settings(max_examples=examples(120))
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


@settings(max_examples=examples(60))
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
        ("a.json", gzip.compress(b"[]", mtime=0), "compressed"),  # its fourth byte is 0, as in UTF-16
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


# --- csv as python reads it ----------------------------------------------------------------------------------------

CSV_TEXT = st.text(st.sampled_from('",\n\r aé;\u2028\x85') | st.just('"') | st.just(","), max_size=60)


def as_python(path: Path) -> list[tuple[int, list[str]]]:
    """Every record that is not blank, as python's csv module reads it, with the line it begins in."""
    found, begun = [], 1
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter_of(path))
        for fields in reader:
            if fields:
                found.append((begun, fields))
            begun = reader.line_num + 1
    return found


def cut(raw: bytes, scan: Scanner, chunk: int) -> list[tuple[bytes, int]]:
    """Rows and their lines, from text fed in chunks of a size."""
    found = [scan.feed(raw[i : i + chunk]) for i in range(0, len(raw), chunk)] + [scan.finish()]
    return [
        (raw[s:e], line)
        for b in found
        for s, e, line in zip(b.starts.tolist(), b.ends.tolist(), b.lines.tolist(), strict=True)
    ]


@settings(max_examples=examples(500))
@given(CSV_TEXT, st.integers(1, 9), st.booleans())
def test_csv_is_read_as_pythons_csv_module_reads_it_whatever_its_quotes(
    tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / "set.csv"
    path.write_bytes(b"\xef\xbb\xbf" * mark + ("a,b\n" + text).encode())
    expected = as_python(path)
    (_, header), *rest = expected
    found = list(records(path))
    assert [line for line, _ in found] == [line for line, _ in rest]
    for (_, record), (_, fields) in zip(found, rest, strict=True):
        if len(fields) == len(header):
            assert record == dict(zip(header, fields, strict=True))
        else:
            assert isinstance(record, Broken) and f"{len(fields)} fields" in record.reason
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    rows = cut(raw, Csv(","), chunk)
    assert [line for _, line in rows] == [line for line, _ in expected]
    assert [next(csv.reader([row.decode()])) for row, _ in rows] == [fields for _, fields in expected]
    assert Pages(path).count() == len(rest)


WRITABLE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=9)


@settings(max_examples=examples(60))
@given(
    st.lists(st.tuples(WRITABLE, WRITABLE), min_size=1, max_size=9),
    st.sampled_from(",;\t"),
    # The module itself quotes a field for the characters of its own line end only.
    st.sampled_from([("\r", csv.QUOTE_ALL), ("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
@example([("", ";")], "\t", ("\n", csv.QUOTE_MINIMAL))
def test_what_pythons_csv_module_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    written_with: tuple[str, Any],
) -> None:
    line_end, quoting = written_with
    path = tmp_path_factory.mktemp("csv") / "set.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
        out.writerow(["question", "answer; or, if you like, none"])
        out.writerows(rows)
    assert [tuple(r.values()) for _, r in records(path)] == rows


def test_a_quote_within_a_field_opens_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'a,b\nsize,5" pipe\ncolour,red\nshape,6" "round"\nlast,"a ""b"" c"\n')
    assert [r["b"] for _, r in records(path)] == ['5" pipe', "red", '6" "round"', 'a "b" c']


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [('"question";"answer, in full, please"', ";"), ("a,b", ","), ("a\tb", "\t"), ('"say ""a;b;c"", d",e', ","),
     ("one", ","), ('"x\n;;;",y', ","), ("question, in full, please;answer", ";")],
)  # fmt: skip
def test_fields_are_parted_by_what_stands_outside_of_quotes(
    tmp_path: Path, header: str, delimiter: str
) -> None:
    assert delimiter_of(written(tmp_path, "a.csv", f"\n{header}\n1;2, or so\n")) == delimiter


def test_a_tsv_is_parted_by_tabs(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "one, two\tb\n1\t2, 3\n")
    assert [r for _, r in records(path)] == [{"one, two": "1", "b": "2, 3"}]


def test_a_quote_that_never_closes_is_told(tmp_path: Path) -> None:
    read = records(written(tmp_path, "a.csv", 'a,b\n1,2\n3,"4\n5,6\n'))
    assert [r for _, r in read] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4\n5,6\n"}]
    assert [(line, what) for line, what, _ in read.findings] == [(3, "quote that never closes")]


# --- lines of json -------------------------------------------------------------------------------------------------


@settings(max_examples=examples(200))
@given(st.text(st.sampled_from("\n\r \tx\u2028\x85\x0b"), max_size=40), st.integers(1, 9))
def test_lines_end_as_in_pythons_own_files_and_blank_ones_are_no_rows(text: str, chunk: int) -> None:
    raw = text.encode()
    lines = list(enumerate(raw.splitlines(), start=1))
    assert cut(raw, Lines(), chunk) == [(line, number) for number, line in lines if line]
    assert cut(raw, Lines(blank=True), chunk) == [
        (line, number) for number, line in lines if line.strip(b" \t")
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_line_end_and_no_other_character_parts_rows(tmp_path: Path, end: str, mark: str) -> None:
    rows = [{"a": "x\u2028y\x85z\x0b"}, {"a": '{ [ " \\ {'}, {"b": "\r\n"}]
    text = (end + " " + end).join(json.dumps(r, ensure_ascii=False) for r in rows)
    path = written(tmp_path, "a.jsonl", mark + end + text + end * 2 + "  ")
    assert [(r, line) for line, r in records(path)] == [(rows[0], 2), (rows[1], 4), (rows[2], 6)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"a": "{ { ["}\n{"a": 2}\n', 2),
        ('{"a": "["}\n', 1),
        ('{"a": "{"\n}\n{\n"a": 1}', 2),
        ('{"a": [\n{"b": 1}\n]}\n', 1),
        ('{"a": {\n{"a": 1}\n{"a": 2}\n', 3),  # the first is broken
        ('{"a": "no end\n{"a": 1}\n{"a": 2}\n', 3),
        ('{"a": 1},\n{"a": 2},\n', 2),
        ('{"a": "' + "x" * 70_000 + '{",\n "b": 1}\n{\n"a": 2}', 2),
    ],
)
def test_how_json_lies_in_a_file_is_told_without_looking_into_texts(
    tmp_path: Path, text: str, rows: int
) -> None:
    assert len(list(records(written(tmp_path, "a.json", text)))) == rows


def test_text_between_objects_is_told(tmp_path: Path) -> None:
    found = list(records(written(tmp_path, "a.json", '{\n"a": 1}\nlost\n{\n"a": 2}\nalso lost')))
    assert [type(r).__name__ for _, r in found] == ["dict", "Broken", "dict", "Broken"]
