"""From files to rows of ids, for every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_world import (
    LABELLED,
    RANKED,
    REAL,
    catalog,
    config,
    model_folder,
    needs_qwen,
    needs_real,
    pair,
    qwen,
    tokenizer,
)
from pyarrow import parquet as pq

from tuner.config.knobs import ConfigError
from tuner.data.encode import MASKED
from tuner.data.prepare import Prepared, prepare, report_of
from tuner.data.tokens import load_tokenizer


def prepared(folder: Path, **values: Any) -> Prepared:
    return prepare(config(dataset_dir=str(folder), **values), tokenizer())


def test_alpaca_rows_learn_the_answer_and_its_end_only(tmp_path: Path) -> None:
    rows = [{"instruction": "Say hi", "input": "to Bob", "output": "Hi Bob."}]
    got = prepared(catalog(tmp_path, set=({}, rows)), stage="sft", template="default")
    row, tk = got.train[0], tokenizer()
    assert (
        tk.decode(row["input_ids"]) == "Human: Say hi\nto Bob<|endoftext|>\nAssistant:Hi Bob.<|endoftext|>\n"
    )
    assert tk.decode([i for i in row["labels"] if i != MASKED]) == "Hi Bob.<|endoftext|>\n"
    assert len(row["labels"]) == len(row["input_ids"])


def test_pairs_share_their_prompt(tmp_path: Path) -> None:
    got = prepared(
        catalog(tmp_path, set=(RANKED, [pair("Why?", "Because.", "No.")])), stage="dpo", template="chatml"
    )
    tk, row = tokenizer(), got.train[0]
    assert tk.decode(row["prompt_ids"]) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert tk.decode(row["chosen_ids"]) == "Because.<|im_end|>\n"
    assert tk.decode(row["rejected_ids"]) == "No.<|im_end|>\n"


def test_labelled_rows_keep_their_label(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "label": label,
        }
        for label in (True, False)
    ]
    got = prepared(catalog(tmp_path, set=(LABELLED, rows)), stage="kto", template="llama3")
    assert [r["label"] for r in got.train] == [True, False]
    assert tokenizer().decode(got.train[0]["completion_ids"]) == "a<|eot_id|>"


def test_text_is_packed_without_losing_a_token(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Line {i} " * (i % 5 + 1)}) for i in range(40)]
    folder = catalog(
        tmp_path, set=({"file_name": "set.jsonl", "columns": {"prompt": "text"}}, "\n".join(lines))
    )
    got = prepared(folder, stage="pt", template="default", cutoff_len=32)
    one_by_one = prepared(folder, stage="pt", template="default", packing=False)
    flat = [t for row in got.train for t in row["input_ids"]]
    assert flat == [t for row in one_by_one.train for t in row["input_ids"]]
    assert all(len(row["input_ids"]) == 32 for row in got.train[:-1])
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) for row in got.train)


def test_a_broken_row_names_file_and_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    good = json.dumps({"instruction": "q", "output": "a"})
    folder = catalog(tmp_path, set=({"file_name": "set.jsonl"}, f"{good}\n{{broken\n{good}\n"))
    got = prepared(folder, stage="sft", template="default")
    assert (got.report.read, got.report.kept) == (3, 2)
    example = got.report.dropped["broken row"].examples[0]
    assert (example["file"], example["line"]) == ("set.jsonl", 2)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_report_of_a_sample_says_so_and_reaches_the_end_of_the_set(tmp_path: Path, kind: str) -> None:
    rows = [{"instruction": f"q{n}", "output": "a" if n % 10 else ""} for n in range(300)]
    write = {
        "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "json": lambda path: path.write_text(json.dumps(rows)),
        "csv": lambda path: path.write_text(
            "instruction,output\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in rows)
        ),
        "parquet": lambda path: pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70),
    }
    write[kind](tmp_path / f"set.{kind}")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"set": {"file_name": f"set.{kind}"}}))
    asked = config(dataset_dir=str(tmp_path), stage="sft", template="default")
    some, every = report_of(asked, tokenizer(), spread=60), report_of(asked, tokenizer())
    assert (some.read, some.there) == (60, 300) and 45 < some.kept < 60  # rows 0, 10, 20 ... are empty
    assert some.sampled and some.steps == 0 and "60 of 300 rows" in some.notes[-1]
    lines = [example["line"] for example in some.dropped["empty answer"].examples]
    assert kind == "json" or (lines == sorted(set(lines)) and lines[-1] > 100)  # which has one line
    assert not every.sampled and every.read == every.there == 300
    assert report_of(asked, tokenizer(), spread=300).as_dict() == every.as_dict()
    limited = report_of(asked.with_values(max_samples=100), tokenizer(), spread=50)
    assert (limited.read, limited.there) == (50, 100)


def test_nothing_to_learn_from_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = catalog(tmp_path, set=({}, [{"instruction": "q", "output": "  "}] * 3))
    with pytest.raises(ConfigError, match=r"None of the 3 rows.*empty answer \(3\).*line 1 of set.json"):
        prepared(folder, stage="sft", template="default")


def test_a_set_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    folder = catalog(tmp_path, set=({}, [{"instruction": "q", "output": "a"}]))
    with pytest.raises(ConfigError, match="set holds prompts with answers, and stage dpo needs pairs"):
        prepared(folder, stage="dpo", template="default")


def test_an_unknown_set_gets_the_nearest_name(tmp_path: Path) -> None:
    folder = catalog(tmp_path, starter_dpo=({}, []))
    with pytest.raises(ConfigError, match="did you mean starter_dpo"):
        prepared(folder, dataset="starter_dop", stage="sft")


@pytest.mark.parametrize("val_size", [0.2, 2, 1, 0.0001])
def test_rows_kept_aside_are_not_learnt(tmp_path: Path, val_size: float) -> None:
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(10)]
    got = prepared(catalog(tmp_path, set=({}, rows)), stage="sft", template="default", val_size=val_size)
    aside = got.eval[""]
    assert len(aside) == (2 if val_size in (0.2, 2) else 1)
    texts = [tokenizer().decode(r["input_ids"]) for r in (*got.train, *aside)]
    assert len(set(texts)) == 10


EXPECTED = {
    "hh_rlhf_en": ("dpo", 1000),
    "dpo_en_demo": ("dpo", 300),
    "kto_en_demo": ("kto", 300),
    "alpaca_en_demo": ("sft", 999),
    "identity": ("sft", 91),
    "glaive_toolcall_en_demo": ("sft", 300),
    "c4_demo": ("pt", 300),
    "wiki_demo": ("pt", 30),
}


@needs_real
@needs_qwen
@pytest.mark.parametrize("name", EXPECTED)
def test_every_real_file_is_read_whole(name: str) -> None:
    stage, rows = EXPECTED[name]
    wanted = config(
        dataset=name, dataset_dir=str(REAL), stage=stage, template="qwen", packing=False, max_samples=200
    )
    got = prepare(wanted, qwen())
    assert got.report.read == got.report.kept == len(got.train) == min(rows, 200)
    assert not got.report.dropped


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = model_folder(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in ("Hello  world\n\n you", "<|im_start|>user\nhi<|im_end|>", " 你好🙂\t", ""):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
