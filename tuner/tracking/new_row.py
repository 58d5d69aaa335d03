"""A run's row in MLflow, made once, whoever of its mirrors comes first and whoever dies on the way."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import paths
from tuner.runs import locks
from tuner.runs.run import Run
from tuner.tracking import store
from tuner.tracking.rows import PARENT, SWEEP, SWEEP_NAME
from tuner.tracking.sqlite_reader import SqliteReader

if TYPE_CHECKING:
    from mlflow import MlflowClient


def create(client: MlflowClient, run: Run) -> str:
    """The run itself, without anything in it; MLflow's id of it."""
    status = run.status()
    tags = {"state": "queued", **status.tags}
    if title := tags.get(SWEEP_NAME):
        with locks.locking(paths.mlruns() / "sweep.lock", wait=30):  # whichever of its runs comes first
            own = {"state": "finished", SWEEP: "1"}
            tags[PARENT] = _row(client, tags[PARENT], title, "FINISHED", status.created, own)
    return _row(client, run.id, run.name, "SCHEDULED", status.created, tags)


def _row(
    client: MlflowClient, run_id: str, name: str, status: str, created: float, tags: dict[str, str]
) -> str:
    """MLflow's id of a run that is made where it is not there yet.

    In a file here that is `run_id`. MLflow's own API lets nobody choose: there a tag tells which run it is, and is
    looked for first, for whoever made it may have died before it was noted.
    """
    experiment, start = store.experiment_id(client), int((created or time.time()) * 1000)
    tags |= {"tuner.home": store.here(), "mlflow.source.name": "tuner"}
    file = store.database()
    if file and SqliteReader(file).fits():
        insert(file, experiment, run_id, name, status, start, tags)
        return run_id
    known = client.search_runs([experiment], f"tags.`tuner.run` = '{run_id}'", max_results=1)
    tags["tuner.run"] = run_id
    row = known[0] if known else client.create_run(experiment, start, tags, name)
    if row.info.status == "RUNNING":  # as MLflow makes it
        client.update_run(row.info.run_id, status=status)
    return str(row.info.run_id)


def insert(
    file: Path, experiment: str, run_id: str, name: str, status: str, start: int, tags: dict[str, str]
) -> None:
    """A run with an id of our own, as MLflow makes one with an id of its own; one that is there stays. `start` in ms."""
    tags = {"mlflow.runName": name, **tags}
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20)) as db, db:
        made = db.execute(_NEW_RUN, (run_id, name, status, start, run_id, experiment))
        if made.rowcount:
            rows = [(run_id, key, value) for key, value in tags.items()]
            db.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", rows)


_NEW_RUN = """
INSERT INTO runs (run_uuid, name, status, start_time, artifact_uri, experiment_id, lifecycle_stage, user_id,
    source_type, source_name, entry_point_name, source_version)
SELECT ?, ?, ?, ?, rtrim(artifact_location, '/') || '/' || ? || '/artifacts', experiment_id, 'active', 'unknown',
    'UNKNOWN', '', '', ''
FROM experiments WHERE experiment_id = ?
ON CONFLICT (run_uuid) DO NOTHING
"""
