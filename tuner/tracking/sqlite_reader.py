"""Reads MLflow's SQLite file directly and read-only: 10,000 runs in tens of milliseconds, where its API takes half a
minute, and without importing MLflow. A test holds that both say the same; where the tables are not as known here,
`fits` says so and the API is asked instead.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.runs.curve import Series
from tuner.tracking.rows import VOTE, Details, Head, RunFilter
from tuner.tracking.search import OURS, mentions, versions_where, where
from tuner.tracking.store import TrackerError, sentence
from tuner.tracking.unchanged import kept

INFINITE = 1.7976931348623157e308  # what MLflow stores for an infinity


# What is read here, and written of a new run, table by table; MLflow may change its tables with any version.
KNOWN = {
    "runs": "run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, artifact_uri, user_id, "
    "source_type, source_name, entry_point_name, source_version",
    "experiments": "experiment_id, name, artifact_location",
    "params": "run_uuid, key, value",
    "tags": "run_uuid, key, value",
    "latest_metrics": "run_uuid, key, value, is_nan, step, timestamp",
    "metrics": "run_uuid, key, value, is_nan, step, timestamp",
    "model_versions": "name, version, creation_time, run_id, storage_location, source, description, current_stage",
    "model_version_tags": "name, version, key, value",
    "registered_model_aliases": "name, version, alias",
}


HEAD = "r.run_uuid, r.name, r.status, r.start_time, r.end_time, r.lifecycle_stage"
SOME = "(SELECT value FROM json_each(?))"
"""Ids as one value: SQLite takes a limited number of question marks."""
THESE = "(name, version) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))"
"""Versions of models as one value."""
PIECE = 2**14
"""Points that are in memory at once."""
MANY = 1000
"""Runs of which one is quicker with everything than with these alone."""
_kept: dict[tuple[str, str], dict[str, str]] = {}
_kept_of: dict[tuple[str, str], frozenset[str]] = {}
"""Of which runs a kept param is."""
_every: dict[str, tuple[tuple[object, ...], frozenset[str]]] = {}
LEAPING = """
WITH RECURSIVE keys(key) AS (
    SELECT min(key) FROM tags UNION ALL SELECT (SELECT min(key) FROM tags WHERE key > keys.key) FROM keys WHERE key IS NOT NULL
) SELECT key FROM keys WHERE key IS NOT NULL
"""


class SqliteReader:
    """One short-lived read-only connection for each question, which is not asked again of an unchanged file. Raises
    TrackerError where the file cannot be read.

    Make one for each look: what it was told of the runs there are serves it to its end.
    """

    def __init__(self, file: Path):
        self._file = file
        self._now: frozenset[str] = frozenset()
        self._fresh: set[str] = set()  # params that are known of every run of now

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True, timeout=5)
            ) as db:
                db.create_function("mentions", 2, mentions, deterministic=True)
                yield db
        except sqlite3.Error as error:
            raise TrackerError(sentence(error)) from error

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return kept(self._file, (sql, *values), lambda: self._ask(sql, values))

    def _ask(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._open() as db:
            return db.execute(sql, values).fetchall()

    def inode(self) -> int:
        """Which file it is; 0 while there is none."""
        with contextlib.suppress(OSError):
            return self._file.stat().st_ino
        return 0

    def fits(self) -> bool:
        """Whether this file has the tables and columns that are read here. Raises TrackerError if it is no database."""
        return not kept(self._file, "fits", self._lacking)

    def _lacking(self) -> list[tuple[str]]:
        """The first table that is not as it is known here."""
        with self._open() as db:
            for table, columns in KNOWN.items():
                try:
                    db.execute(f"SELECT {columns} FROM {table} LIMIT 0")  # noqa: S608  constants of this file
                except sqlite3.OperationalError as error:
                    if "no such" not in str(error):
                        raise
                    return [(table,)]
        return []

    # --- which runs there are

    def heads(self, ids: Collection[str] | None = None) -> list[Head]:
        """Runs of the studio's experiment, the deleted ones too, in no order: all, or those of these ids."""
        if ids is None:
            return self._heads(OURS)
        return self._heads(f"{OURS} AND r.run_uuid IN {SOME}", [json.dumps(list(ids))])

    def _heads(self, condition: str, values: Sequence[Any] = ()) -> list[Head]:
        found = self._all(f"SELECT {HEAD} FROM runs r WHERE {condition}", values)  # noqa: S608  built of constants
        return [
            Head(id, name or "", status, (start or 0) / 1000, (end or 0) / 1000, stage == "deleted")
            for id, name, status, start, end, stage in found
        ]

    def search(
        self, filter: RunFilter, but: Collection[str], most: int | None = None
    ) -> list[tuple[float, str]]:
        """The runs that pass a filter, without those of these ids: when each was made, in seconds, and its id.

        With `most` only so many: those that come first by when they were made, or any where the filter has no order.
        """
        condition, values = where(filter, but, self._params)
        ask = f"SELECT start_time, run_uuid FROM runs r WHERE {condition}"  # noqa: S608  built of constants
        if most is not None:
            way = "DESC" if filter.descending else "ASC"
            ask += f" ORDER BY coalesce(start_time, 0) {way}, run_uuid {way}" if filter.sort else ""
            ask += f" LIMIT {int(most)}"
        found = self._all(ask, values)
        return [((start or 0) / 1000, id) for start, id in found]

    def count(self, filter: RunFilter, but: Collection[str]) -> int:
        """How many runs pass a filter, without those of these ids."""
        condition, values = where(filter, but, self._params)
        ((count,),) = self._all(f"SELECT count(*) FROM runs r WHERE {condition}", values)  # noqa: S608  of constants
        return int(count)

    def _params(self, key: str) -> dict[str, str]:
        """A param of every run that has it, kept from question to question: MLflow never changes one."""
        kept = _kept.setdefault((str(self._file), key), {})
        if key not in self._fresh:
            self._now = self._now or self.ids()
            if _kept_of.get((str(self._file), key)) is not self._now:
                self._renew(key, kept)
                if len(kept) == len(self._now):  # one that lacks it may get it yet
                    _kept_of[str(self._file), key] = self._now
            self._fresh.add(key)
        return kept

    def _renew(self, key: str, kept: dict[str, str]) -> None:
        """Make what is kept of a param that of the runs there are now."""
        if missing := self._now - kept.keys():
            column = self.column("params", key, missing if len(missing) < MANY else None)
            kept |= {run: sys.intern(value) for run, value in column.items()}
        for gone in kept.keys() - self._now:
            kept.pop(gone, None)

    def called(self, text: str) -> list[Head]:
        """The runs, deleted ones left out, whose id begins with a text; where there are none those of that name."""
        kept, end = f"{OURS} AND r.lifecycle_stage != 'deleted'", text + "\U0010ffff"
        by_id = self._heads(f"{kept} AND r.run_uuid >= ? AND r.run_uuid < ?", [text, end])
        return by_id or self._heads(f"{kept} AND r.name = ?", [text])

    def names(self) -> set[str]:
        """What runs are called, the deleted ones too."""
        return {name or "" for (name,) in self._all(f"SELECT r.name FROM runs r WHERE {OURS}")}  # noqa: S608

    def ids(self) -> frozenset[str]:
        """Every run in the file, whatever its experiment; the same object until that changes."""
        # With a run more there is another last one, and with a run less another number: else they are the same ones.
        last = "(SELECT run_uuid FROM runs ORDER BY rowid DESC LIMIT 1)"
        stamp = (self.inode(), *self._all(f"SELECT count(*), {last} FROM runs")[0])  # noqa: S608  a constant
        known = _every.get(str(self._file))
        if known is None or known[0] != stamp:
            known = _every[str(self._file)] = (
                stamp,
                frozenset(id for (id,) in self._all("SELECT run_uuid FROM runs")),
            )
        return known[1]

    # --- what they have

    def column(self, kind: str, key: str, ids: Collection[str] | None = None) -> dict[str, Any]:
        """The value of one param, tag or metric of every run that has it, or of these; kind is params, tags or metrics."""
        table = {"params": "params", "tags": "tags", "metrics": "latest_metrics"}[kind]
        some, values = (
            ("", [key]) if ids is None else (f" AND run_uuid IN {SOME}", [key, json.dumps(list(ids))])
        )
        nan = "is_nan" if kind == "metrics" else "NULL"
        found = self._all(f"SELECT run_uuid, value, {nan} FROM {table} WHERE key = ?{some}", values)  # noqa: S608
        if kind == "metrics":
            return {run: number(value, nan) for run, value, nan in found}
        return {run: value for run, value, _ in found}

    def choices(self, kind: str, key: str) -> set[str]:
        """The values that a param or tag has."""
        if kind == "params":
            return set(self._params(key).values())
        found = self._all("SELECT DISTINCT value FROM tags WHERE key = ? AND value IS NOT NULL", (key,))
        return {value for (value,) in found}

    def details(self, ids: Iterable[str]) -> dict[str, Details]:
        """Params, last metrics and tags of some runs."""
        found = {id: Details() for id in ids}
        wanted = (json.dumps(list(found)),)
        with self._open() as db:
            ask = f"SELECT run_uuid, key, value, {{}} FROM {{}} WHERE run_uuid IN {SOME}"  # noqa: S608
            for run, key, value, _ in db.execute(ask.format("NULL", "params"), wanted):
                found[run].params[key] = value
            for run, key, value, _ in db.execute(ask.format("NULL", "tags"), wanted):
                found[run].tags[key] = value
            for run, key, value, nan in db.execute(ask.format("is_nan", "latest_metrics"), wanted):
                found[run].metrics[key] = number(value, nan)
        return found

    def tag_keys(self) -> list[str]:
        """Every tag there is, found by leaping from one to the next: of most there are as many as runs."""
        return [key for (key,) in self._all(LEAPING)]

    def metric_names(self, ids: Iterable[str]) -> list[str]:
        """The metrics that any of these runs has."""
        found = self._all(
            f"SELECT DISTINCT key FROM latest_metrics WHERE run_uuid IN {SOME}",  # noqa: S608  a constant
            (json.dumps(list(ids)),),
        )
        return sorted(key for (key,) in found)

    # --- curves

    def history(self, id: str, metric: str) -> Iterator[Series]:
        """Steps, rising, and values of one metric, a piece at a time; of a step logged twice the later one comes last."""
        ask = (
            "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
        )
        with self._open() as db:
            found = db.execute(ask, (id, metric))
            while rows := found.fetchmany(PIECE):
                steps, values, nans = zip(*rows, strict=True)
                yield np.array(steps, np.int64), numbers(np.array(values, float), np.array(nans, bool))

    def stamp(self, id: str, metric: str) -> str:
        """Another one whenever the run has another point."""
        newest = self._all("SELECT max(rowid) FROM metrics WHERE run_uuid = ?", (id,))
        last = self._all(
            "SELECT step, value, timestamp FROM latest_metrics WHERE run_uuid = ? AND key = ?", (id, metric)
        )
        return f"{self.inode()} {newest} {last}"

    def has_adapters(self) -> bool:
        """Whether there is any registered version."""
        return bool(
            self._all("SELECT 1 FROM model_versions WHERE current_stage != 'Deleted_Internal' LIMIT 1")
        )

    def find_adapters(self, words: Sequence[str] = ()) -> list[tuple[str, int]]:
        """Names and versions of what has every word, each in lower case: by base, by adapter, by version, in each the one
        with the newest version first."""
        condition, values = versions_where(words)
        return self._all(
            "SELECT name, version FROM (SELECT v.name, v.version, coalesce(v.creation_time, 0) made, "  # noqa: S608
            "coalesce(t.value, '') base FROM model_versions v LEFT JOIN model_version_tags t "
            "ON t.key = 'base' AND t.name = v.name AND t.version = v.version AND t.workspace = v.workspace "
            f"WHERE {condition}) ORDER BY max(made) OVER (PARTITION BY base) DESC, base, "
            "max(made) OVER (PARTITION BY base, name) DESC, name, version DESC",
            values,
        )

    def adapters_of(self, runs: Collection[str]) -> list[tuple[str, int]]:
        """Names and versions of what these runs left."""
        of = "IN (SELECT value FROM json_each(?))"
        return self._all(
            f"SELECT name, version FROM model_versions WHERE run_id {of} UNION "  # noqa: S608
            f"SELECT name, version FROM model_version_tags WHERE key = 'run_id' AND value {of}",
            [json.dumps(list(runs))] * 2,
        )

    def adapters(
        self, ids: Collection[tuple[str, int]] | None = None, name: str = ""
    ) -> list[dict[str, Any]]:
        """Registered versions: name, version, created, run_id, location, description, tags, aliases.

        All of them, these, or those of one name.
        """
        some, values = ("", []) if ids is None else (f" AND {THESE}", [json.dumps(list(ids))])
        if name:
            some, values = f"{some} AND name = ?", [*values, name]
        rows = self._all(
            "SELECT name, version, creation_time, run_id, coalesce(storage_location, source), description "  # noqa: S608
            f"FROM model_versions WHERE current_stage != 'Deleted_Internal'{some}",
            values,
        )
        keys = ("name", "version", "created", "run_id", "location", "description")
        found = {(r[0], r[1]): dict(zip(keys, r, strict=True)) | {"tags": {}, "aliases": []} for r in rows}
        tags = self._all(
            f"SELECT name, version, key, value FROM model_version_tags WHERE key NOT GLOB ?{some}",  # noqa: S608
            [f"{VOTE}*", *values],
        )
        for of, version, key, value in tags:
            if (of, version) in found:
                found[of, version]["tags"][key] = value
        aliases = self._all(
            f"SELECT name, version, alias FROM registered_model_aliases WHERE TRUE{some}",  # noqa: S608
            values,
        )
        for of, version, alias in aliases:
            if (of, version) in found:
                found[of, version]["aliases"].append(alias)
        return list(found.values())

    def votes(self) -> list[str]:
        """The votes that stand at versions, as they were written; one between two versions twice."""
        with self._open() as db:
            ask = (
                "SELECT value FROM model_version_tags JOIN model_versions v USING (name, version) "
                "WHERE key GLOB ? AND v.current_stage != 'Deleted_Internal'"
            )
            return [value for (value,) in db.execute(ask, (f"{VOTE}*",))]


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
