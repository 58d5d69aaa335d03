"""Runs: made, listed, named, tagged, deleted. Lists never import MLflow where its store is a SQLite file here."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuner import paths
from tuner.config.knobs import ConfigError, Problem
from tuner.config.run_config import RunConfig
from tuner.redact import refuse_secret
from tuner.runs import events
from tuner.runs.files import must_be_writable
from tuner.runs.metrics import metric_name
from tuner.runs.run import Run, fresh_name
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.tracking import open_runs
from tuner.tracking.history import history, metric_names
from tuner.tracking.mirror import sync
from tuner.tracking.rows import NOTE, PARENT, SWEEP_NAME, Brief, Choices, Page, RunFilter, RunRow, is_own
from tuner.tracking.store import TrackerError, changed, changing, database, open_store
from tuner.tracking.sync_state import SyncState, held, mlflow_id
from tuner.tracking.table import Table

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "Choices",
    "Page",
    "RunFilter",
    "RunRow",
    "choices",
    "create_run",
    "are_there",
    "delete_run",
    "delete_tag",
    "every_run",
    "find_run",
    "finished",
    "first_runs",
    "get_row",
    "history",
    "list_runs",
    "metric_names",
    "names",
    "newest",
    "purge",
    "rename_run",
    "restore_run",
    "set_note",
    "set_tag",
    "sweep_tags",
]
LONGEST_NOTE = 8000
A_FEW = 200
"""Runs whose details are in memory at a time when all are listed."""


# --- making


def create_run(config: RunConfig, name: str, *, tags: Mapping[str, str] | None = None) -> Run:
    """A queued run: its folder, whole or not at all. MLflow hears of it from its mirror, be it away now or not.

    Without a name it gets one that no other run here has.

    Raises OSError, before anything is made, where the studio's folder cannot be written, ConfigError for a name that
    holds a secret.
    """
    must_be_writable(paths.runs())
    name = name or fresh_name(config.plain(), names())
    _check_name(name)
    run = Run(uuid.uuid4().hex)
    run.create(config, name, {**(tags or {}), **({events.BY: events.by()} if events.by() else {})})
    changed()
    return run


def sweep_tags(name: str) -> dict[str, str]:
    """What makes runs the children of one sweep: tags for `create_run`. MLflow's page nests by them."""
    return {PARENT: uuid.uuid4().hex, SWEEP_NAME: name}


def _check_name(name: str) -> None:
    try:
        refuse_secret("name", name)
    except ValueError as error:
        raise ConfigError([Problem("run_name", str(error))]) from error


# --- reading


def list_runs(filter: RunFilter = RunFilter(), page: int = 1, size: int = 50) -> Page[RunRow]:  # noqa: B008  frozen
    """One page of the runs that pass the filter, in its order; `page` counts from 1."""
    table = Table()
    ids, number, total = table.page(filter, max(1, page), size)
    return Page(tuple(table.rows(ids)), total, number, size, table.notice)


def every_run(
    filter: RunFilter = RunFilter(),  # noqa: B008  frozen
    warn: Callable[[str], None] = lambda notice: None,
) -> Iterator[RunRow]:
    """All runs that pass the filter, in its order, read a few at a time: as they were listed when this began.

    `warn` is called with a sentence where some may be missing.
    """
    table = Table()
    ids = table.chosen(filter)
    if table.notice:
        warn(table.notice)
    for start in range(0, len(ids), A_FEW):
        yield from table.rows(ids[start : start + A_FEW])


def newest(most: int) -> list[Brief]:
    """The runs made last, with no more of each than a field shows that chooses one."""
    table = Table()
    heads = table.some(table.chosen(RunFilter(), most))
    stages = table.column("params", "stage")
    return [Brief(id, head.name, stages.get(id) or "", head.created) for id, head in heads.items()]


def finished(most: int) -> list[str]:
    """The runs that finished, those made last first."""
    return Table().chosen(RunFilter(states=("finished",)), most)


def by_metric(ids: Sequence[str], metric: str) -> Iterator[RunRow]:
    """Those of these runs that have a metric, the highest first; each is read when it is asked for."""
    table = Table()
    table.some(ids)
    known = table.column("metrics", metric)
    measured = [id for id in ids if isinstance(known.get(id), float) and not math.isnan(known[id])]
    for id in sorted(measured, key=lambda one: -known[one]):
        yield from table.rows([id])


def first_runs(most: int, filter: RunFilter = RunFilter()) -> list[RunRow]:  # noqa: B008  frozen
    """The first runs that pass a filter, in its order; quicker than a page, for nobody counts the others."""
    table = Table()
    return table.rows(table.chosen(filter, most))


def are_there(most: int, filter: RunFilter = RunFilter()) -> int:  # noqa: B008  frozen
    """How many runs pass a filter, as far as `most`."""
    return len(Table().chosen(replace(filter, sort=""), most))


def get_row(run_id: str) -> RunRow | None:
    """One run, deleted or not; None where there is none of that id."""
    return Table().find(run_id)


def names() -> set[str]:
    """What runs here are called, deleted ones too: they may come back."""
    return Table().names()


def find_run(text: str) -> str:
    """The id of the run that a person means: an id, the beginning of one, or a name that only one run has.

    Raises ValueError with one sentence.
    """
    found = [id for id, _ in Table().called(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            tr(
                "{text} could be any of {number} runs; give more of the id ({found}).",
                text=text,
                number=len(found),
                found=", ".join(found[:4]),
            )
        )
    raise ValueError(tr("There is no run {text}; `tuner runs` lists what there is.", text=text))


def choices() -> Choices:
    """What the runs can be filtered by."""
    table = Table()
    stages, models, sets = (table.choices("params", key) for key in _FILTERED)
    keys = []
    with suppress(TrackerError):
        keys = [key for key in table.tag_keys() if not is_own(key)]
    return Choices(
        stages=tuple(sorted(filter(None, stages))),
        models=tuple(sorted(filter(None, models))),
        datasets=tuple(sorted({part for one in sets for part in one.split(",") if part})),
        tags={key: tuple(sorted(table.choices("tags", key))) for key in sorted(keys)},
    )


_FILTERED = ("stage", "model_name_or_path", "dataset")


# --- changing; each raises TrackerError where MLflow cannot be written now


def set_note(run_id: str, text: str) -> None:
    """The run's note, markdown, as MLflow's own page shows it."""
    refuse_secret("note", text)
    if len(text) > LONGEST_NOTE:
        raise ValueError(
            tr(
                "The note has {number} characters; keep it below {longest_note}.",
                number=len(text),
                longest_note=LONGEST_NOTE,
            )
        )
    with changing():
        client, id = _recorded(run_id)
        client.set_tag(id, NOTE, text)


def set_tag(run_id: str, key: str, value: str = "") -> None:
    """Give a run a tag of one's own. Raises ValueError where the name is taken or not possible."""
    _check_tag(key)
    refuse_secret("tag", value)
    with changing():
        client, id = _recorded(run_id)
        client.set_tag(id, key, value[:LONGEST_NOTE])


def delete_tag(run_id: str, key: str) -> None:
    """Take a tag away; one that is not there is no error."""
    _check_tag(key)
    with changing():
        client, id = _recorded(run_id)
        if key in client.get_run(id).data.tags:
            client.delete_tag(id, key)


def _check_tag(key: str) -> None:
    if is_own(key):
        raise ValueError(tr("{key} is a tag that the studio keeps; choose another name.", key=key))
    if not key or metric_name(key) != key:
        raise ValueError(tr("{key!r} cannot be a tag; use letters, digits, spaces and _ - . : /", key=key))


def rename_run(run_id: str, name: str) -> None:
    """Another name for a run; ids never change."""
    name = name.strip()[:250]
    if not name:
        raise ValueError(tr("A run needs a name; type one."))
    refuse_secret("name", name)
    with changing():
        client, id = _recorded(run_id)
        client.update_run(id, name=name)
    run = Run(run_id)
    if run.exists:
        run.update(name=name)


def _recorded(run_id: str) -> tuple[MlflowClient, str]:
    """MLflow, and its id of a run, which is brought there now if it is not yet. Raises TrackerError."""
    run = Run(run_id)
    if run.exists and not SyncState.of(run).mlflow_id and sync(run, wait=5) is None:
        raise TrackerError(tr("Another process is just bringing this run to MLflow; try again in a moment."))
    return open_store(create=False), mlflow_id(run_id)


# --- deleting


def delete_run(run_id: str) -> None:
    """Put a run aside; `restore_run` brings it back, its folder stays. Raises ValueError while it is live."""
    run = Run(run_id)
    if run.exists and run.status().state not in ENDED:
        raise ValueError(
            tr("{name} is {state}; stop it before you delete it.", name=run.name, state=run.status().state)
        )
    with changing():
        client, id = _recorded(run_id)
        client.delete_run(id)
    run.forget_secrets()


def restore_run(run_id: str) -> None:
    """Bring a deleted run back."""
    with changing():
        client, id = _recorded(run_id)
        client.restore_run(id)


def purge(run_id: str) -> None:
    """Remove a deleted run for good: its folder with the checkpoints, its artifacts, and its row.

    A registered adapter keeps its own files. On a tracking server the row stays, marked deleted, until `mlflow gc`
    is run there.
    """
    row = get_row(run_id)
    if row is None or not row.deleted:
        raise ValueError(tr("Only a deleted run can be removed for good; delete it first."))
    with changing():
        client = open_store(create=False)
        info = client.get_run(mlflow_id(run_id)).info
        store: Any = client._tracking_client.store
        if database() and hasattr(store, "_hard_delete_run"):
            store._hard_delete_run(info.run_id)
            with suppress(ValueError):
                shutil.rmtree(
                    paths.inside(info.artifact_uri, paths.mlruns() / "artifacts"), ignore_errors=True
                )
    if row.local:
        with held(row.run):
            shutil.rmtree(row.run.folder, ignore_errors=True)
        open_runs.close(row.run)
