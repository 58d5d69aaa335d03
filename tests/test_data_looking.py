"""Looking into a data set: rows that hold a word, the row at a line, another cutoff, who used it, a clean copy of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tuner import private
from tuner.config.knobs import ConfigError
from tuner.data import mending
from tuner.data.catalog import read_catalog
from tuner.data.pages import Pages
from tuner.data.report import Report, _quantiles
from tuner.runs import inputs
from tuner.runs.run import Run


def lines(file: Path, *rows: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_are_found_by_a_word_and_by_their_line(tmp_path: Path) -> None:
    first = lines(
        tmp_path / "a.jsonl", *[{"text": f"row {i}"} for i in range(40)], "\n", {"text": "A Bärlauch"}
    )
    second = lines(tmp_path / "b.jsonl", {"text": "other"}, "{broken\n", {"text": "bärlauch again"})
    known = Pages([first, second])
    assert known.count() == 44
    found, looked = known.find("BÄRLAUCH", 20, 10.0)
    assert [row.file for row in found] == ["a.jsonl", "b.jsonl"] and looked == 44
    assert len(known.find("row", 5, 10.0)[0]) == 5 and known.find("nowhere", 5, 10.0) == ([], 44)
    for number in (0, 7, 40, 41, 42, 43):
        row = known.row(number)
        assert known.at(row.file, row.line) == number
    assert known.at("c.jsonl", 1) is None and known.at("b.jsonl", 1) == 41


def test_quotes_backslashes_and_line_ends_are_found(tmp_path: Path) -> None:
    texts = ['He said "hi" twice.', r"\\frac{1}{2}", "one\ntwo"]
    known = Pages([lines(tmp_path / "a.jsonl", *[{"text": text} for text in texts])])
    assert known.count() == 3
    for number, word in enumerate(('"hi"', r"\frac{1}", "one\ntwo")):
        assert [row.record for row in known.find(word, 5, 10.0)[0]] == [{"text": texts[number]}]


def test_another_cutoff_is_counted_from_what_was_measured() -> None:
    lengths = np.arange(1, 201, dtype=np.int32)
    found = Report(stage="sft", template="t", cutoff_len=100, kept=200, quantiles=_quantiles(lengths))
    assert found.longer_than(100) == pytest.approx(0.5) and found.longer_than(200) == 0.0
    assert found.longer_than(0) == 1.0
    many = np.random.default_rng(1).integers(1, 3000, 50_000).astype(np.int32)
    found.quantiles = _quantiles(many)
    assert len(found.quantiles) == 1000
    assert found.longer_than(777) == pytest.approx((many > 777).mean(), abs=0.002)


def test_a_clean_copy_lacks_what_cannot_be_used_and_what_stands_twice(home: Path) -> None:
    good = {"instruction": "Say hi.", "input": "", "output": "hi"}
    other = {"instruction": "Say ho.", "input": "", "output": "ho"}
    empty = {"instruction": "Say nothing.", "input": "", "output": ""}
    file = lines(home / "data" / "set.jsonl", good, other, dict(reversed(good.items())), empty, "{torn\n")
    (home / "data" / "dataset_info.json").write_text(json.dumps({"set": {"file_name": "set.jsonl"}}))
    before = file.read_bytes()
    entry = read_catalog(str(home / "data"))["set"]
    made = mending.mended(entry, "set_clean", str(home / "data"))
    assert (made.kept, made.unusable, made.duplicates) == (2, 2, 1)
    rows = [json.loads(line) for line in made.entry.files()[0].read_text().splitlines()]
    assert rows == [good, other] and file.read_bytes() == before
    assert set(read_catalog(str(home / "data"))) == {"set", "set_clean"}
    assert made.entry.files()[0].stat().st_mode & 0o777 == 0o666 & ~private.persons_umask()
    there = set(home.rglob("*.jsonl"))
    for name, why in (("set_clean", "already"), ("set", "already"), ("../../outside", "no name")):
        with pytest.raises(ConfigError, match=why):
            mending.mended(entry, name, str(home / "data"))
    assert set(home.rglob("*.jsonl")) == there


def test_runs_that_used_a_set_are_told_by_its_versions(home: Path) -> None:
    for run_id, digest, source in (
        ("a", "1" * 36, "/x"),
        ("b", "1" * 36, "/x"),
        ("c", "2" * 36, "/x"),
        ("d", "3" * 36, "/y"),
    ):
        run = Run(run_id * 32)
        run.folder.mkdir(parents=True)
        inputs.record_inputs(run, [inputs.InputRow("set", source, digest)])
    found = inputs.used(["set"], ["x"])
    assert {digest[:1]: sorted(i[0] for i in ids) for digest, ids in found.items()} == {
        "1": ["a", "b"],
        "2": ["c"],
    }
    assert inputs.used(["other"], ["x"]) == {}
