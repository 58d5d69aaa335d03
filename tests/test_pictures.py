"""Pictures on the data side: ids as the models' own processors make them, no picture cut, and every bad file named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import seeing

from tuner.config import config as c
from tuner.data.encode import MASKED
from tuner.data.pictures.opening import load
from tuner.data.prepare import prepare
from tuner.data.tokens import load_tokenizer


def config(at: Path, model: Path, name: str = "seen", **knobs: Any) -> c.Config:
    base = {"model_name_or_path": str(model), "dataset": name, "dataset_dir": str(at), "stage": "sft"}
    return c.make({**base, "cutoff_len": 100_000, "do_train": True, **knobs})


def prepared(at: Path, model: Path, name: str = "seen", **knobs: Any) -> Any:
    return prepare(config(at, model, name, **knobs), load_tokenizer(model))


def parts(content: str) -> list[dict[str, Any]]:
    """A content as processors of pictures take it."""
    first, *rest = content.split("<image>")
    made: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
    for text in rest:
        made += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
    return made


FEW = {"gemma3": 12, "idefics3": 5, "smolvlm": 3}
"""Rows of the fast test where a processor takes long over a picture: it makes millions of pixels of each."""


@pytest.mark.parametrize("family", seeing.FAMILIES)
def test_ids_are_those_of_the_processor(family: str, tmp_path: Path) -> None:
    as_the_processor(family, tmp_path, FEW.get(family, 50))


@pytest.mark.slow
@pytest.mark.parametrize("family", FEW)
def test_ids_are_those_of_the_processor_on_fifty_rows(family: str, tmp_path: Path) -> None:
    as_the_processor(family, tmp_path, 50)


def as_the_processor(family: str, tmp_path: Path, count: int) -> None:
    model = seeing.folder(tmp_path / "model", family)
    rows = seeing.chats(tmp_path, count, longest=600)
    knobs = {"image_max_pixels": 500 * 500}
    got = prepared(seeing.catalog(tmp_path, seen=rows), model, **knobs).train
    theirs = seeing.processor(model, family)
    assert len(got) == len(rows)
    for row, mine in zip(rows, got, strict=True):
        chat = [{**m, "content": parts(m["content"])} for m in row["messages"]]
        text = theirs.apply_chat_template(chat, tokenize=False)
        shown = [load(path, 500 * 500, 32 * 32) for path in mine["images"]]
        wanted = theirs(text=[text], images=[shown] if shown else None)["input_ids"][0]
        assert mine["input_ids"] == wanted, row
        learnt = [i for i, label in zip(mine["input_ids"], mine["labels"], strict=True) if label != MASKED]
        said = theirs.tokenizer.decode(learnt)
        assert all(m["content"] in said for m in row["messages"] if m["role"] == "assistant")
        assert not any(m["content"] in said for m in row["messages"] if m["role"] == "system")
        assert [Path(p).name for p in mine["images"]] == [Path(p).name for p in row["images"]]
