"""What `tuner data list`, `report` and `show` answer, plain enough for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.config.config import KNOBS, Config, make
from tuner.config.kinds import usual_for
from tuner.config.knobs import ConfigError
from tuner.data.catalog import named, read_catalog
from tuner.data.entries import CATALOG, LOOK, Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, convert
from tuner.data.hub import cached, reachable
from tuner.data.pages import Pages
from tuner.data.prepare import opened, report_of
from tuner.data.report import Progress
from tuner.data.show import show as make_shown
from tuner.data.tokens import load_tokenizer
from tuner.text.lookup import ended, tr

COUNTED = 64 << 20
"""Rows of files up to this size, in bytes, are counted for the list."""


def list_rows(dataset_dir: str | Path = "data") -> Iterator[dict[str, Any]]:
    """One object a data set: name, kind, stages, source, bytes, rows (None where counting takes long) and what is wrong."""
    hub = Hub()
    for entry in read_catalog(dataset_dir).values():
        yield list_row(entry, hub)


def list_row(entry: Entry, hub: Hub) -> dict[str, Any]:
    """One data set of the catalog; `problem` says why it cannot be trained on, empty where it can."""
    row: dict[str, Any] = {"name": entry.name, "source": entry.source, "local": entry.local, "problem": ""}
    row |= {"bytes": None, "rows": None, "formatting": entry.formatting, "ranking": entry.ranking}
    try:
        files = entry.files()
        row["bytes"] = sum(f.stat().st_size for f in files) if files else None
        if files and row["bytes"] <= COUNTED:
            row["rows"] = Pages(files).count()
        row["problem"] = entry.media or (unfit_rows(entry, files) if entry.local else hub.problem(entry))
    except (ConfigError, OSError) as error:
        row["problem"] = str(error)
    row["kind"] = entry.kind
    row["stages"] = [stage for stage in KNOBS["stage"].choices if entry.fits(stage) is None]
    return row


class Hub:
    """Whether hub sets can be had now; the network is tried once at most."""

    @cached_property
    def away(self) -> bool:
        """Whether the hub cannot be reached."""
        import huggingface_hub.constants as constants

        return constants.HF_HUB_OFFLINE or not reachable()

    def problem(self, entry: Entry) -> str:
        """Why a set of another machine cannot be had; empty where it can, or was fetched before."""
        if entry.origin == "cloud":
            return tr("{name} is in cloud storage; copy it here and give its file_name.", name=entry.name)
        if cached(entry) or not self.away:
            return ""
        return tr(
            "{name} is on a hub that cannot be reached; download it and give its file_name.", name=entry.name
        )


def unfit_rows(entry: Entry, files: Sequence[Path]) -> str:
    """Why the first rows of a set are not what its entry says; empty where they are."""
    every = (record for file in files for _, record in records(file))
    first = list(islice(every, LOOK))
    rows = [record for record in first if isinstance(record, Mapping)]
    if not rows:
        why = (
            tr("none of its first rows can be read ({reason})", reason=first[0].reason)
            if first
            else tr("it holds no rows")
        )
        return ended(f"{entry.name}: {why}")
    seen = list(dict.fromkeys(column for row in rows for column in row))
    gone = [repr(entry.columns[c]) for c in sorted(entry.named) if entry.columns[c] not in seen]
    if gone:
        has = ", ".join(map(str, seen[:8]))
        return tr(
            "{name}: no row has {gone}; fix columns in {catalog}, the rows have {has}.",
            name=entry.name,
            gone=tr(" or ").join(gone),
            catalog=CATALOG,
            has=has,
        )
    found = [convert(row, entry) for row in rows]
    dropped = [one for one in found if isinstance(one, Dropped)]
    if len(dropped) < len(rows):
        return ""
    return tr(
        "{name}: none of its first rows can be used ({reason}: {detail}).",
        name=entry.name,
        reason=dropped[0].reason,
        detail=dropped[0].detail[:120],
    )


def labelled(names: Sequence[str], folder: str, most: int = 200) -> tuple[int, int]:
    """Of the first prompts of some sets, how many there are and how many of them expect an answer. Raises ConfigError."""
    found: list[Any] = []
    for entry in named(names, folder):
        every = (record for file in entry.files() for _, record in records(file))
        found += [convert(record, entry, prompts=True) for record in islice(every, most)]
    rows = [row for row in found if not isinstance(row, Dropped)]
    return len(rows), sum(row["label"] is not None for row in rows)


def stage_of(entry: Entry) -> str:
    """The stage that a data set is usually for."""
    return usual_for(entry.kind)


def config_for(name: str, model: str, knobs: dict[str, Any]) -> Config:
    """A config for looking at one data set; the stage is the usual one where none is given. Raises ConfigError."""
    entry = named([name], knobs.get("dataset_dir", "data"))[0]
    stage = knobs.get("stage") or stage_of(entry)
    return make({**knobs, "dataset": name, "model_name_or_path": model, "stage": stage})


def report(
    name: str, model: str, progress: Progress | None = None, spread: int = 0, **knobs: Any
) -> dict[str, Any]:
    """The data report of one data set for a model, under the given knobs; of `spread` rows if given. Raises ConfigError."""
    config = config_for(name, model, knobs)
    return report_of(config, load_tokenizer(model), progress, spread).as_dict()


def show(name: str, row: int, model: str, **knobs: Any) -> dict[str, Any]:
    """What the model sees of row `row` (from 0) of a data set. Raises ConfigError."""
    config, tokenizer = config_for(name, model, knobs), load_tokenizer(model)
    encoder, (entry, *_), _ = opened(config, tokenizer)
    found = Pages(entry.files()).row(row) if entry.local else None
    record = found.record if found else hub_row(entry, row)
    shown = make_shown(config, entry, record, tokenizer, encoder.template).as_dict()
    place = {"file": found.file, "line": found.line} if found else {"file": entry.source, "line": row + 1}
    return {"dataset": name, "number": row, **place, **shown}


def hub_row(entry: Entry, row: int) -> Any:
    """Row `row` (from 0) of a set that is not on this machine. Raises ConfigError."""
    from tuner.config.knobs import Problem
    from tuner.data.hub import hub_records

    found = next(islice(hub_records(entry), row, None), None) if row >= 0 else None
    if found is None:
        raise ConfigError([Problem("row", tr("{name} has no row {row}.", name=entry.name, row=row))])
    return found[1]
