"""Reads MLflow's SQLite file directly and read-only: 10,000 runs in tens of milliseconds, where its API takes half a
minute, and without importing MLflow. A test holds that both say the same; where the tables are not as known here,
`fits` says so and the API is asked instead.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.tracking.rows import Details, Head
from tuner.tracking.store import EXPERIMENT, TrackerError, sentence

INFINITE = 1.7976931348623157e308  # what MLflow stores for an infinity


# What is read here, table by table; MLflow may change its tables with any version.
KNOWN = {
    "runs": "run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id",
    "experiments": "experiment_id, name",
    "params": "run_uuid, key, value",
    "tags": "run_uuid, key, value",
    "latest_metrics": "run_uuid, key, value, is_nan",
    "metrics": "run_uuid, key, value, is_nan, step, timestamp",
    "model_versions": "name, version, creation_time, run_id, storage_location, source, description, current_stage",
    "model_version_tags": "name, version, key, value",
    "registered_model_aliases": "name, version, alias",
}


class SqliteReader:
    """One short-lived read-only connection for each question. Raises TrackerError where the file cannot be read."""

    def __init__(self, file: Path):
        self._file = file

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True, timeout=5)
            ) as db:
                yield db
        except sqlite3.Error as error:
            raise TrackerError(sentence(error)) from error

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._open() as db:
            return db.execute(sql, values).fetchall()

    def fits(self) -> bool:
        """Whether this file has the tables and columns that are read here. Raises TrackerError if it is no database."""
        with self._open() as db:
            for table, columns in KNOWN.items():
                try:
                    db.execute(f"SELECT {columns} FROM {table} LIMIT 0")  # noqa: S608  constants of this file
                except sqlite3.OperationalError as error:
                    if "no such" not in str(error):
                        raise
                    return False
        return True

    def heads(self) -> list[Head]:
        """Every run of the studio's experiment, the deleted ones too, in no order."""
        found = self._all(
            "SELECT run_uuid, r.name, status, start_time, end_time, r.lifecycle_stage FROM runs r "
            "JOIN experiments e USING (experiment_id) WHERE e.name = ?",
            (EXPERIMENT,),
        )
        return [
            Head(id, name or "", status, (start or 0) / 1000, (end or 0) / 1000, stage == "deleted")
            for id, name, status, start, end, stage in found
        ]

    def column(self, kind: str, key: str) -> dict[str, Any]:
        """The value of one param, tag or metric of every run that has it; kind is params, tags or metrics."""
        if kind == "metrics":
            found = self._all("SELECT run_uuid, value, is_nan FROM latest_metrics WHERE key = ?", (key,))
            return {run: number(value, nan) for run, value, nan in found}
        table = {"params": "params", "tags": "tags"}[kind]
        return dict(self._all(f"SELECT run_uuid, value FROM {table} WHERE key = ?", (key,)))  # noqa: S608  a constant

    def details(self, ids: Iterable[str]) -> dict[str, Details]:
        """Params, last metrics and tags of some runs."""
        found = {id: Details() for id in ids}
        marks = ",".join("?" * len(found))
        wanted = list(found)
        with self._open() as db:
            ask = "SELECT run_uuid, key, value FROM {} WHERE run_uuid IN (" + marks + ")"  # noqa: S608
            for run, key, value in db.execute(ask.format("params"), wanted):
                found[run].params[key] = value
            for run, key, value in db.execute(ask.format("tags"), wanted):
                found[run].tags[key] = value
            ask = ask.replace("value FROM", "value, is_nan FROM")
            for run, key, value, nan in db.execute(ask.format("latest_metrics"), wanted):
                found[run].metrics[key] = number(value, nan)
        return found

    def tag_keys(self) -> list[str]:
        """Every tag there is."""
        return [key for (key,) in self._all("SELECT DISTINCT key FROM tags")]

    def metric_names(self, ids: Iterable[str]) -> list[str]:
        """The metrics that any of these runs has."""
        wanted = list(ids)
        marks = ",".join("?" * len(wanted))
        found = self._all(
            f"SELECT DISTINCT key FROM latest_metrics WHERE run_uuid IN ({marks})",  # noqa: S608  only question marks
            wanted,
        )
        return sorted(key for (key,) in found)

    def history(self, id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, rising, and values of one metric; of a step logged twice the later one."""
        found = self._all(
            "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp",
            (id, metric),
        )
        if not found:
            return np.empty(0, np.int64), np.empty(0)
        steps, values, nans = zip(*found, strict=True)
        return last_of_each(np.array(steps, np.int64), numbers(np.array(values, float), np.array(nans, bool)))

    def adapters(self) -> list[dict[str, Any]]:
        """Registered versions: name, version, created, run_id, location, description, tags, aliases."""
        with self._open() as db:
            rows = db.execute(
                "SELECT name, version, creation_time, run_id, coalesce(storage_location, source), description "
                "FROM model_versions WHERE current_stage != 'Deleted_Internal'"
            ).fetchall()
            keys = ("name", "version", "created", "run_id", "location", "description")
            found = {
                (r[0], r[1]): dict(zip(keys, r, strict=True)) | {"tags": {}, "aliases": []} for r in rows
            }
            for name, version, key, value in db.execute(
                "SELECT name, version, key, value FROM model_version_tags"
            ):
                if (name, version) in found:
                    found[name, version]["tags"][key] = value
            for name, version, alias in db.execute(
                "SELECT name, version, alias FROM registered_model_aliases"
            ):
                if (name, version) in found:
                    found[name, version]["aliases"].append(alias)
        return list(found.values())


def number(value: float, nan: bool) -> float:
    """A stored value as it was measured: MLflow keeps NaN as a flag and an infinity as the largest number."""
    if nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= INFINITE else value


def numbers(values: NDArray[np.float64], nans: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`number` for arrays."""
    huge = np.abs(values) >= INFINITE
    values[huge] = np.copysign(np.inf, values[huge])
    values[nans] = np.nan
    return values


def last_of_each(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Drop all but the last of equal neighbours."""
    last = np.append(steps[1:] != steps[:-1], True)
    return steps[last], values[last]
