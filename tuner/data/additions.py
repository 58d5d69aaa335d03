"""One more row for a data set of chats: what a person keeps of a talk with a model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner import private
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import catalog_folder, read_catalog
from tuner.data.entries import CATALOG, Entry
from tuner.data.formats import Dropped, convert
from tuner.data.upload import UPLOADS, safe_name, save
from tuner.runs import locks
from tuner.text.lookup import tr

SHAPE: Mapping[str, Any] = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "tools": "tools"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "system_tag": "system",
    },
}
"""OpenAI's messages, as the catalog says it; LLaMA-Factory reads it too."""


def takes(entry: Entry) -> bool:
    """Whether a set grows by such rows: one JSON object a line, in OpenAI's messages, in the catalog's own folder."""
    return (
        entry.origin == "file"
        and entry.location.endswith(".jsonl")
        and not Path(entry.location).is_absolute()
        and not entry.ranking
        and entry.columns["messages"] == "messages"
        and entry.turn_keys == ("role", "content")
    )


def add(name: str, row: Mapping[str, Any], dataset_dir: str | Path) -> Entry:
    """Add a row with "messages" to a set, which is made and put into the catalog where there is none of that name.

    Raises ConfigError where the name or the row cannot be used, or the set of that name holds other rows.
    """
    folder = catalog_folder(dataset_dir)
    known = read_catalog(folder) if (folder / CATALOG).exists() else {}
    entry = known.get(safe_name(name))
    if entry is not None and not takes(entry):
        raise _refused(tr("{name} holds rows of another form; choose another name.", name=name))
    file = entry.path if entry is not None else unused(folder / UPLOADS / f"{name}.jsonl")
    _append(file, row)
    made = entry or save(name, file, SHAPE, folder)
    if isinstance(read := convert(row, made), Dropped):  # it stays in the file, as the report will tell too
        raise _refused(
            tr("The row was added, but cannot be trained on: {detail}.", detail=read.detail or read.reason)
        )
    return made


def unused(file: Path) -> Path:
    """A file that is not there yet: the rows of a set that was taken out of the catalog are no part of a new one."""
    number, found = 2, file
    while found.exists():
        found, number = file.with_stem(f"{file.stem}-{number}"), number + 1
    return found


def _append(file: Path, row: Mapping[str, Any]) -> None:
    """Add one whole line, on a line of its own whatever the file ends with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locks.locking(file.parent, wait=math.inf, how=os.O_RDONLY):
        fresh = not file.exists()
        with file.open("a+b") as opened:
            text = json.dumps(row, ensure_ascii=False) + "\n"
            opened.write((b"" if fresh or _ends_a_line(file) else b"\n") + text.encode())
            opened.flush()
            os.fsync(opened.fileno())
        if fresh:
            private.share(file)  # it lies in the person's own folder


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as opened:
        if not opened.seek(0, os.SEEK_END):
            return True
        opened.seek(-1, os.SEEK_END)
        return opened.read() == b"\n"


def _refused(sentence: str) -> ConfigError:
    return ConfigError([Problem("dataset", sentence)])
