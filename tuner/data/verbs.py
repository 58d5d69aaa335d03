"""What `tuner data list`, `report` and `show` answer, plain enough for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.config.config import KNOBS, Config, make
from tuner.config.knobs import ConfigError
from tuner.data.catalog import STAGE_KINDS, Entry, named, read_catalog
from tuner.data.pages import Pages
from tuner.data.report import Progress
from tuner.data.report import report as make_report
from tuner.data.show import show as make_shown
from tuner.data.tokens import load_tokenizer

COUNTED = 64 << 20
"""Rows of files up to this size, in bytes, are counted for the list."""


def list_rows(dataset_dir: str | Path = "data") -> Iterator[dict[str, Any]]:
    """One object a data set: name, kind, stages, source, bytes, rows (None where counting takes long) and what is wrong."""
    for entry in read_catalog(dataset_dir).values():
        yield list_row(entry)


def list_row(entry: Entry) -> dict[str, Any]:
    """One data set of the catalog."""
    row: dict[str, Any] = {"name": entry.name, "source": entry.source, "local": entry.local, "problem": ""}
    row |= {"bytes": None, "rows": None, "formatting": entry.formatting, "ranking": entry.ranking}
    try:
        files = entry.files()
        row["bytes"] = sum(f.stat().st_size for f in files) if files else None
        if files and row["bytes"] <= COUNTED:
            row["rows"] = Pages(files).count()
    except (ConfigError, OSError) as error:
        row["problem"] = str(error)
    row["kind"] = entry.kind
    row["stages"] = [
        s for s, kinds in STAGE_KINDS.items() if entry.kind in kinds and s in KNOBS["stage"].choices
    ]
    return row


def stage_of(entry: Entry) -> str:
    """The stage that a data set is usually for."""
    return {"text": "pt", "chat": "sft", "pairs": "dpo", "labelled": "kto"}[entry.kind]


def config_for(name: str, model: str, knobs: dict[str, Any]) -> Config:
    """A config for looking at one data set; the stage is the usual one where none is given. Raises ConfigError."""
    entry = named([name], knobs.get("dataset_dir", "data"))[0]
    stage = knobs.get("stage") or stage_of(entry)
    return make({**knobs, "dataset": name, "model_name_or_path": model, "stage": stage})


def report(name: str, model: str, progress: Progress | None = None, **knobs: Any) -> dict[str, Any]:
    """The data report of one data set for a model, under the given knobs. Raises ConfigError."""
    config = config_for(name, model, knobs)
    return make_report(config, load_tokenizer(model), progress).as_dict()


def show(name: str, row: int, model: str, **knobs: Any) -> dict[str, Any]:
    """What the model sees of row `row` (from 0) of a data set. Raises ConfigError."""
    config = config_for(name, model, knobs)
    entry = named([name], config.dataset_dir)[0]
    found = Pages(entry.files()).row(row) if entry.local else None
    record = found.record if found else _hub_row(entry, row)
    shown = make_shown(config, entry, record, load_tokenizer(model)).as_dict()
    place = {"file": found.file, "line": found.line} if found else {"file": entry.source, "line": row + 1}
    return {"dataset": name, "number": row, **place, **shown}


def _hub_row(entry: Entry, row: int) -> Any:
    from itertools import islice

    from tuner.config.knobs import Problem
    from tuner.data.hub import hub_records

    found = next(islice(hub_records(entry), row, None), None)
    if found is None:
        raise ConfigError([Problem("row", f"{entry.name} has no row {row}.")])
    return found[1]
