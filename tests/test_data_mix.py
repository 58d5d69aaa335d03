"""Several sets as one, rows kept aside, streams, rows tokenised before, and the report's counts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import REAL, catalog, config, model_folder, needs_qwen, needs_real, qwen, tokenizer
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.knobs import ConfigError
from tuner.data.mix import kept_aside, mix, sample, split
from tuner.data.prepare import prepare, report_of
from tuner.data.stream import Stream, mixed

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=4)


@settings(max_examples=examples(60))
@given(SIZES, st.booleans(), st.integers(0, 5))
def test_mixing_keeps_what_it_promises(sizes: list[int], by_share: bool, seed: int) -> None:
    shares = [1 / len(sizes)] * len(sizes) if by_share else None
    everything = list(range(sum(sizes)))
    assert mix(sizes, "concat", shares, seed).tolist() == everything
    assert sorted(mix(sizes, "interleave_once", shares, seed).tolist()) == everything
    over = mix(sizes, "interleave_over", shares, seed).tolist()
    assert set(over) == set(everything)
    under = mix(sizes, "interleave_under", shares, seed).tolist()
    assert len(under) == len(set(under)) and len(under) <= len(over)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    assert any(set(range(starts[i], starts[i + 1])) <= set(under) for i in range(len(sizes)))


def test_sets_are_drawn_in_turn() -> None:
    assert mix([3, 2], "interleave_under", None, 0).tolist() == [0, 3, 1, 4]
    assert mix([3, 2], "interleave_over", None, 0).tolist() == [0, 3, 1, 4, 2]
    assert mix([3, 1], "interleave_once", None, 0).tolist() == [0, 3, 1, 2]


@settings(max_examples=examples(60))
@given(SIZES, st.sampled_from(["concat", "interleave_under", "interleave_over", "interleave_once"]))
def test_a_stream_is_mixed_as_a_whole_set_is(sizes: list[int], strategy: str) -> None:
    starts = np.concatenate(([0], np.cumsum(sizes)))
    sets = [[{"n": int(starts[i]) + k} for k in range(size)] for i, size in enumerate(sizes)]
    streamed = [row["n"] for row in mixed(sets, strategy, None, 0)]
    whole = mix(sizes, strategy, None, 0).tolist()
    # A stream learns that a set has ended only when it asks for the next row, so it may give a few rows more.
    assert streamed[: len(whole)] == whole
    if strategy in ("concat", "interleave_once"):
        assert streamed == whole


@settings(max_examples=examples(50))
@given(st.integers(2, 60), st.integers(1, 80), st.integers(0, 3))
def test_a_shuffled_stream_loses_and_doubles_nothing(rows: int, buffer: int, skip: int) -> None:
    stream = Stream(
        lambda: [[{"n": i} for i in range(rows)]],
        strategy="concat",
        shares=None,
        buffer_size=buffer,
        seed=1,
        skip=skip,
    )
    passes = [[row["n"] for row in stream] for _ in range(2)]
    assert all(sorted(one) == list(range(min(skip, rows), rows)) for one in passes)


@settings(max_examples=examples(50))
@given(st.integers(1, 50), st.one_of(st.floats(0.001, 0.99), st.integers(1, 60)))
def test_a_split_takes_each_row_once(rows: int, val_size: float) -> None:
    wanted = math.ceil(rows * val_size) if val_size < 1 else int(val_size)
    if wanted >= rows:
        with pytest.raises(
            ConfigError, match="none is left to learn from; (give a count up to|leave it at 0)"
        ):
            split(rows, val_size, 7)
        return
    learn, aside = split(rows, val_size, 7)
    assert sorted([*learn.tolist(), *aside.tolist()]) == list(range(rows))
    assert len(aside) == kept_aside(rows, val_size) == wanted


@pytest.mark.parametrize(
    ("rows", "val_size", "aside"),
    [(12, 0.2, 3), (12, 11, 11), (10, 0.2, 2), (5, 1, 1), (3, 0.0001, 1), (0, 0.5, 0)],
)
def test_a_share_is_rounded_up_and_a_count_may_leave_one_row(rows: int, val_size: float, aside: int) -> None:
    assert kept_aside(rows, val_size) == aside


def test_a_val_size_that_leaves_nothing_or_is_no_count_is_a_sentence() -> None:
    for rows, val_size, said in (
        (
            12,
            12,
            "--val_size 12 keeps all 12 rows aside, and none is left to learn from; give a count up to 11",
        ),
        (2, 0.9, "--val_size 0.9 keeps all 2 rows aside"),
        (1, 0.1, "--val_size 0.1 keeps the only row aside"),
        (12, 1.5, "--val_size 1.5 is neither a share below 1 nor a count of rows"),
    ):
        with pytest.raises(ConfigError) as error:
            split(rows, val_size, 0)
        assert str(error.value).startswith(said) and error.value.problems[0].knob == "val_size"


def test_num_samples_fills_up_with_repeats() -> None:
    assert sorted(sample(5, 5, 0).tolist()) == [0, 1, 2, 3, 4]
    more = sample(3, 8, 0).tolist()
    assert len(more) == 8 and set(more) == {0, 1, 2}


def rows(count: int, tag: str = "") -> list[dict[str, str]]:
    return [{"instruction": f"{tag}q{i}", "output": f"{tag}a{i}"} for i in range(count)]


def texts(found: Any) -> list[str]:
    return [tokenizer().decode(r["input_ids"]) for r in found]


def base(folder: Path, **values: Any) -> Any:
    return config(dataset_dir=str(folder), template="default", stage="sft", **values)


def test_a_repeated_row_is_never_on_both_sides(tmp_path: Path) -> None:
    folder = catalog(tmp_path, a=({}, rows(20)), b=({}, rows(3, "b")))
    wanted = base(folder, dataset="a,b", mix_strategy="interleave_over", val_size=0.3)
    got = prepare(wanted, tokenizer())
    assert not set(texts(got.train)) & set(texts(got.eval[""]))
    assert set(texts(got.train)) | set(texts(got.eval[""])) == set(
        texts(prepare(base(folder, dataset="a,b"), tokenizer()).train)
    )
    assert got.report.overlap == 0


def test_max_samples_takes_the_first_rows_of_each_set(tmp_path: Path) -> None:
    folder = catalog(tmp_path, a=({}, rows(9)), b=({"num_samples": 4}, rows(2, "b")))
    got = prepare(base(folder, dataset="a,b", max_samples=3), tokenizer())
    assert [t.split("<")[0] for t in texts(got.train)[:3]] == ["Human: q0", "Human: q1", "Human: q2"]
    assert len(got.train) == 6 and got.report.datasets["b"]["read"] == 3


def test_evaluation_sets_are_one_or_each(tmp_path: Path) -> None:
    folder = catalog(tmp_path, a=({}, rows(4)), b=({}, rows(2, "b")), c=({}, [*rows(3, "c"), rows(1)[0]]))
    one = prepare(base(folder, dataset="a", eval_dataset="b,c"), tokenizer())
    assert {k: len(v) for k, v in one.eval.items()} == {"": 6}
    each = prepare(base(folder, dataset="a", eval_dataset="b,c", eval_on_each_dataset=True), tokenizer())
    assert {k: len(v) for k, v in each.eval.items()} == {"b": 2, "c": 4}
    assert each.report.overlap == 1 and each.report.eval_rows == 6
    assert [(i.name, i.rows) for i in each.inputs] == [("a", 4), ("b", 2), ("c", 4)]


def test_a_streamed_run_reads_while_it_goes(tmp_path: Path) -> None:
    folder = catalog(tmp_path, a=({}, rows(50)))
    got = prepare(
        base(folder, dataset="a", streaming=True, max_steps=5, buffer_size=8, val_size=5), tokenizer()
    )
    train = texts(got.train)
    assert len(train) == 45 and len(got.eval[""]) == 5
    assert not set(train) & set(texts(got.eval[""]))
    assert texts(islice(got.train, 45)) != train  # the next pass has another order
    with pytest.raises(ConfigError, match="None of the"):
        bad = catalog(tmp_path / "bad", a=({}, [{"instruction": "q", "output": ""}]))
        prepare(base(bad, dataset="a", streaming=True, max_steps=5), tokenizer())


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "pt"])
def test_tokenised_rows_are_kept_and_read_again(tmp_path: Path, stage: str) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [chat[0], {"role": "assistant", "content": "b"}]
    sets: dict[str, tuple[dict[str, Any], Any]] = {
        "sft": ({}, rows(6)),
        "dpo": ({"ranking": True, "formatting": "sharegpt"}, [{"chosen": chat, "rejected": other}] * 6),
        "kto": (
            {"formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "t"}},
            [{"m": chat, "t": i % 2 == 0} for i in range(6)],
        ),
        "pt": ({"columns": {"prompt": "text"}}, [{"text": f"text {i}"} for i in range(6)]),
    }
    folder = catalog(tmp_path, a=sets[stage])
    wanted = config(
        dataset_dir=str(folder), dataset="a", template="default", stage=stage, val_size=2, cutoff_len=32,
        tokenized_path=str(tmp_path / "kept"),
    )  # fmt: skip
    first = prepare(wanted, tokenizer())
    (folder / "a.json").unlink()
    again = prepare(wanted, tokenizer())
    assert list(again.train) == list(first.train) and list(again.eval[""]) == list(first.eval[""])
    assert "tokenised before" in again.report.notes[0]
    with pytest.raises(ConfigError, match="holds rows for stage"):
        prepare(wanted.with_values(stage="dpo" if stage == "kto" else "kto"), tokenizer())


def test_kept_rows_are_made_anew_when_asked_and_foreign_ones_are_left_alone(tmp_path: Path) -> None:
    folder = catalog(tmp_path, a=({}, rows(3)))
    wanted = base(folder, dataset="a", tokenized_path=str(tmp_path / "kept"))
    old = prepare(wanted, tokenizer())
    catalog(tmp_path, a=({}, rows(5)))
    assert len(prepare(wanted, tokenizer()).train) == len(old.train) == 3
    new = prepare(wanted.with_values(overwrite_cache=True), tokenizer())
    assert len(new.train) == 5 and "tokenised before" not in "".join(new.report.notes)
    assert list(prepare(wanted, tokenizer()).train) == list(new.train)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for again in (True, False):
        with pytest.raises(ConfigError, match="did not write, which are left alone"):
            prepare(wanted.with_values(tokenized_path=str(mine), overwrite_cache=again), tokenizer())
    (mine / "rows.arrow").write_text("not tokens")
    with pytest.raises(ConfigError, match=r"rows.arrow is not readable as arrow"):
        prepare(wanted.with_values(tokenized_path=str(mine), overwrite_cache=True), tokenizer())
    assert (mine / "thesis.tex").read_text() == "years of work"


THREADS = """
import os, sys
from tuner.config.config import make
from tuner.data.prepare import prepare
from tuner.data.tokens import load_tokenizer
values = {"model_name_or_path": "m", "dataset": "a", "dataset_dir": sys.argv[1], "template": "chatml"}
got = prepare(make({**values, "preprocessing_num_workers": sys.argv[3]}), load_tokenizer(sys.argv[2]))
begun = [n for n in os.listdir("/proc/self/task") if n != str(os.getpid())]
print(len(begun), hash(tuple(i for row in got.train for i in row["input_ids"])))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_as_many_threads_tokenise_as_are_asked_for(tmp_path: Path) -> None:
    folder, model = catalog(tmp_path / "data", a=({}, rows(40))), model_folder(tmp_path / "model")
    said = {
        count: subprocess.run(
            [sys.executable, "-c", THREADS, str(folder), str(model), count],
            capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout.split()
        for count in ("1", "3")
    }  # fmt: skip
    assert int(said["3"][0]) - int(said["1"][0]) == 2
    assert said["3"][1] == said["1"][1]


def test_datasets_reads_the_kept_rows_and_its_own_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = catalog(tmp_path, a=({}, rows(5)))
    wanted = base(folder, dataset="a", tokenized_path=str(tmp_path / "kept"))
    ours = prepare(wanted, tokenizer())
    theirs = datasets.load_from_disk(str(tmp_path / "kept"))
    assert theirs["train"].to_list() == list(ours.train)
    lf = {
        "chosen_input_ids": [[1, 2, 3, 4]], "chosen_labels": [[-100, -100, 3, 4]], "chosen_attention_mask": [[1] * 4],
        "rejected_input_ids": [[1, 2, 5]], "rejected_labels": [[-100, -100, 5]], "rejected_attention_mask": [[1] * 3],
    }  # fmt: skip
    datasets.DatasetDict(train=datasets.Dataset.from_dict(lf)).save_to_disk(str(tmp_path / "lf"))
    pairs = config(dataset_dir=str(folder), dataset="a", stage="dpo", tokenized_path=str(tmp_path / "lf"))
    for anew in (False, True):  # what that tool wrote is read all the same, for its files say overwrite_cache
        got = prepare(pairs.with_values(overwrite_cache=anew), tokenizer())
        assert list(got.train) == [{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}]
        assert ("leaves it as it is" in " ".join(got.report.notes)) == anew


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    found = [
        *rows(5), rows(1)[0], {"instruction": "q", "output": ""}, {"output": "a"},
        {"instruction": "FranÃ§ois", "output": "a"}, {"instruction": "half \ud83d", "output": "a"},
        {"instruction": "<|im_end|>", "output": "b"}, {"instruction": "long", "output": "word " * 100},
    ]  # fmt: skip
    folder = catalog(tmp_path, a=({}, json.dumps(found)))
    progress: list[float] = []
    wanted = config(
        dataset_dir=str(folder),
        dataset="a",
        template="chatml",
        cutoff_len=64,
        stage="sft",
        per_device_train_batch_size=2,
    )
    got = report_of(wanted, tokenizer(), lambda share, _: progress.append(share))
    assert (got.read, got.kept, got.cut, got.duplicates) == (12, 10, 1, 1)
    assert {k: v.count for k, v in got.dropped.items()} == {"empty answer": 1, "no prompt": 1}
    assert {k: v.count for k, v in got.findings.items()} == {
        "cut": 1,
        "encoding damage": 2,
        "special token in the text": 1,
    }
    assert got.steps == 15 and got.tokens["max"] > 64 and progress[-1] == 1.0
    assert 0 < got.trained_share < 1
    assert sum(got.histogram["counts"]) == got.kept
    json.dumps(got.as_dict())


@pytest.mark.parametrize(
    "values", [{}, {"packing": True}, {"train_on_prompt": True}, {"mask_history": True}, {"template": "glm4"}]
)
def test_report_and_training_see_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    chat = [{"from": w, "value": f"{w} {i} " * 5} for i in range(3) for w in ("human", "gpt")]
    records = [{"conversations": chat[: 2 + 2 * (i % 3)]} for i in range(9)]
    folder = catalog(tmp_path, a=({"formatting": "sharegpt"}, records))
    wanted = config(
        **{
            "dataset_dir": str(folder),
            "dataset": "a",
            "template": "llama3",
            "cutoff_len": 120,
            "val_size": 2,
            **values,
        }
    )
    counted, whole = report_of(wanted, tokenizer()), prepare(wanted, tokenizer())
    assert counted.as_dict() == whole.report.as_dict()
    assert counted.train_rows == len(whole.train) and counted.eval_rows == 2
    trained = sum(1 for row in (*whole.train, *whole.eval[""]) for label in row["labels"] if label >= 0)
    assert counted.trained_tokens == trained
    assert counted.epoch_tokens == sum(len(row["input_ids"]) for row in whole.train)


def test_the_report_tells_what_the_end_of_a_file_shows_of_its_rows(tmp_path: Path) -> None:
    text = 'instruction,output\nq,5" pipe\n"q2",a2\nq3,"a3\nq4,a4\n'
    folder = catalog(tmp_path, a=({"file_name": "a.csv"}, text))
    got = report_of(base(folder, dataset="a"), tokenizer())
    assert (got.read, got.kept, got.dropped) == (3, 3, {})
    (found,) = got.findings["quote that never closes"].examples
    assert (found["file"], found["line"]) == ("a.csv", 4)


REPORTED = {  # checked by hand against the files
    "hh_rlhf_en": {"read": 1000, "kept": 1000, "duplicates": 0},
    "dpo_en_demo": {"read": 300, "kept": 300, "duplicates": 5},
    "kto_en_demo": {"read": 300, "kept": 300, "duplicates": 0},
    "alpaca_en_demo": {"read": 999, "kept": 999, "duplicates": 14},
    "identity": {"read": 91, "kept": 91, "duplicates": 0},
    "glaive_toolcall_en_demo": {"read": 300, "kept": 300, "duplicates": 35},
    "c4_demo": {"read": 300, "kept": 300, "duplicates": 0},
    "wiki_demo": {"read": 30, "kept": 30, "duplicates": 0},
}


@needs_real
@needs_qwen
@pytest.mark.slow  # each of these files is read whole in test_data_prepare.py; reports of small sets are above
def test_the_report_of_each_real_file_is_right() -> None:
    tk = qwen()
    stages = {
        "hh_rlhf_en": "dpo",
        "dpo_en_demo": "dpo",
        "kto_en_demo": "kto",
        "c4_demo": "pt",
        "wiki_demo": "pt",
    }
    for name, expected in REPORTED.items():
        wanted = config(
            dataset=name,
            dataset_dir=str(REAL),
            stage=stages.get(name, "sft"),
            template="qwen",
            cutoff_len=512,
        )
        got = report_of(wanted, tk).as_dict()
        assert {k: got[k] for k in expected} == expected, name
        assert not got["dropped"], name
