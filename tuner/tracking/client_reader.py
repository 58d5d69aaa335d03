"""Reads runs through MLflow's API, for trackers that are not a SQLite file here. Answers as SqliteReader does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tuner.runs.curve import Series
from tuner.tracking.rows import VOTE, Details, Head
from tuner.tracking.search import mentions
from tuner.tracking.sqlite_reader import number, numbers
from tuner.tracking.store import changes, experiment_id, explained, open_store, tracking_uri

FRESH = 5.0  # seconds for which one answer of a server serves every question of a page
PATIENCE = 10  # an answer that took long serves that many times as long
PAGE = 1000
FEW = 6
"""Runs that are asked for one by one rather than with all others."""


class Answer(NamedTuple):
    """All runs or versions as a server told them, till when that serves, and after how many changes of ours it was asked."""

    rows: list[Any]
    till: float
    changes: int


_seen: dict[str, Answer] = {}


class ClientReader:
    """All runs, fetched whole: a server has no quicker way to tell a column of them. Raises TrackerError."""

    def _runs(self) -> list[Any]:
        return _kept(tracking_uri(), self._fetch)

    def _fetch(self) -> list[Any]:
        with explained():
            client = open_store(create=False)
            experiment = experiment_id(client)

            def page(max_results: int, page_token: str | None) -> Any:
                return client.search_runs(
                    [experiment],
                    run_view_type=3,  # ViewType.ALL
                    max_results=max_results,
                    order_by=["attributes.start_time DESC"],
                    page_token=page_token,
                )

            return list(_pages(page))

    def heads(self, ids: Collection[str] | None = None) -> list[Head]:
        found = self._runs() if ids is None else self._some(ids)
        return [
            Head(
                run.info.run_id,
                run.info.run_name or "",
                run.info.status,
                (run.info.start_time or 0) / 1000,
                (run.info.end_time or 0) / 1000,
                run.info.lifecycle_stage == "deleted",
            )
            for run in found
        ]

    def _some(self, ids: Collection[str]) -> list[Any]:
        """These runs as far as the server has them; a few are asked for by themselves, if they were not told just now."""
        wanted = set(ids)
        known = _seen.get(tracking_uri())
        fresh = known and known.changes == changes() and time.monotonic() <= known.till
        every = known.rows if known and fresh else self._runs() if len(wanted) > FEW else []
        found = {run.info.run_id: run for run in every if run.info.run_id in wanted}
        for id in wanted - set(found):
            if run := _run(id):
                found[id] = run
        return list(found.values())

    def column(self, kind: str, key: str, ids: Collection[str] | None = None) -> dict[str, Any]:
        runs = self._runs() if ids is None else self._some(ids)
        found = {run.info.run_id: getattr(run.data, kind).get(key) for run in runs}
        return {run: _measured(v) for run, v in found.items() if v is not None}

    def details(self, ids: Iterable[str]) -> dict[str, Details]:
        return {
            run.info.run_id: Details(
                dict(run.data.params),
                {name: _measured(v) for name, v in run.data.metrics.items()},
                dict(run.data.tags),
            )
            for run in self._some(list(ids))
        }

    def tag_keys(self) -> list[str]:
        return sorted({tag for run in self._runs() for tag in run.data.tags})

    def metric_names(self, ids: Iterable[str]) -> list[str]:
        return sorted({name for details in self.details(ids).values() for name in details.metrics})

    def history(self, id: str, metric: str) -> Iterator[Series]:
        with explained():
            points = open_store(create=False).get_metric_history(id, metric)
        points.sort(key=lambda point: (point.step, point.timestamp))
        if points:
            values = np.array([p.value for p in points], float)
            yield np.array([p.step for p in points], np.int64), numbers(values, np.isnan(values))

    def stamp(self, id: str, metric: str) -> str:
        """Of an ended run; empty while it goes on, for a further point may be like the last one."""
        for run in self._some([id]):
            if run.info.end_time:
                return f"{run.info.status} {run.info.end_time} {run.data.metrics.get(metric)}"
        return ""

    def has_adapters(self) -> bool:
        with explained():
            return bool(open_store(create=False).search_model_versions(max_results=1))

    def find_adapters(self, words: Sequence[str] = ()) -> list[tuple[str, int]]:
        # A registry's search has no "or", and a word may stand in any of several places.
        found = [row for row in self._versions() if _has_all(row, words)]
        newest: dict[tuple[str, ...], int] = {}
        for row in found:
            base, made = row["tags"].get("base", ""), row["created"] or 0
            for group in ((base,), (base, row["name"])):
                newest[group] = max(newest.get(group, 0), made)

        def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
            base, name = row["tags"].get("base", ""), row["name"]
            return -newest[base,], base, -newest[base, name], name, -row["version"]

        return [(row["name"], row["version"]) for row in sorted(found, key=place)]

    def adapters_of(self, runs: Collection[str]) -> list[tuple[str, int]]:
        found = [row for row in self._versions() if (row["tags"].get("run_id") or row["run_id"]) in runs]
        return [(row["name"], row["version"]) for row in found]

    def adapters(
        self, ids: Collection[tuple[str, int]] | None = None, name: str = ""
    ) -> list[dict[str, Any]]:
        if ids is None:  # who asks for all has to know what is there at this moment
            return self._fetch_versions(name)
        wanted = set(ids)
        return [row for row in self._versions() if (row["name"], row["version"]) in wanted]

    def votes(self) -> list[str]:
        with explained():
            found = _pages(open_store(create=False).search_model_versions)
            return [text for v in found for key, text in v.tags.items() if key.startswith(VOTE)]

    def _versions(self) -> list[dict[str, Any]]:
        return _kept(f"versions of {tracking_uri()}", self._fetch_versions)

    def _fetch_versions(self, name: str = "") -> list[dict[str, Any]]:
        some = f"name = '{name}'" if name else None
        with explained():
            client = open_store(create=False)
            # The versions of a search lack their aliases; the model knows them.
            aliases = {
                m.name: dict(m.aliases) for m in _pages(partial(client.search_registered_models, some))
            }
            return [
                {
                    "name": v.name,
                    "version": int(v.version),
                    "created": v.creation_timestamp,
                    "run_id": v.run_id,
                    "location": v.source,
                    "description": v.description,
                    "tags": {key: value for key, value in v.tags.items() if not key.startswith(VOTE)},
                    "aliases": [a for a, n in aliases.get(v.name, {}).items() if str(n) == str(v.version)],
                }
                for v in _pages(partial(client.search_model_versions, some))
            ]


def _kept(key: str, fetch: Callable[[], list[Any]]) -> list[Any]:
    """What a server told lately, if nothing was changed since; else what it tells now."""
    count = changes()
    known = _seen.get(key)
    if known is None or known.changes != count or time.monotonic() > known.till:
        began = time.monotonic()
        found = fetch()
        took = time.monotonic() - began
        known = _seen[key] = Answer(found, time.monotonic() + max(FRESH, PATIENCE * took), count)
    return known.rows


def _has_all(row: Mapping[str, Any], words: Sequence[str]) -> bool:
    """Whether each word, in lower case, stands in one of the places where it is searched for."""
    told = [row["name"], *row["aliases"], *(row["tags"].get(key) for key in ("base", "stage", "datasets"))]
    return all(any(mentions(text, word) for text in told) for word in words)


def _run(id: str) -> Any | None:
    """One run of the studio's experiment, None where there is none of that id."""
    with explained():
        from mlflow.exceptions import MlflowException

        client = open_store(create=False)
        try:
            run = client.get_run(id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.experiment_id == experiment_id(client) else None


def _measured(value: Any) -> Any:
    return number(value, value != value) if isinstance(value, float) else value


def _pages(search: Any) -> Iterable[Any]:
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
