"""Who answers questions about runs: the SQLite file itself, MLflow's API, or nobody before the first run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from tuner.runs.curve import Series
from tuner.text.lookup import tr
from tuner.tracking.client_reader import ClientReader
from tuner.tracking.rows import Details, Head
from tuner.tracking.sqlite_reader import SqliteReader
from tuner.tracking.store import TrackerError, database, was_used


class Reader(Protocol):
    """Ids are MLflow's. Any of these may raise TrackerError."""

    def heads(self, ids: Collection[str] | None = None) -> list[Head]: ...
    def column(self, kind: str, key: str, ids: Collection[str] | None = None) -> dict[str, Any]: ...
    def details(self, ids: Iterable[str]) -> dict[str, Details]: ...
    def tag_keys(self) -> list[str]: ...
    def metric_names(self, ids: Iterable[str]) -> list[str]: ...
    def history(self, id: str, metric: str) -> Iterator[Series]: ...
    def stamp(self, id: str, metric: str) -> str: ...
    def find_adapters(self, words: Sequence[str] = ()) -> list[tuple[str, int]]: ...
    def adapters_of(self, runs: Collection[str]) -> list[tuple[str, int]]: ...
    def adapters(
        self, ids: Collection[tuple[str, int]] | None = None, name: str = ""
    ) -> list[dict[str, Any]]: ...
    def has_adapters(self) -> bool: ...
    def votes(self) -> list[str]: ...


class EmptyReader:
    """Before the first run, or while the tracker is away: nothing is known."""

    def heads(self, ids: Collection[str] | None = None) -> list[Head]:
        return []

    def column(self, kind: str, key: str, ids: Collection[str] | None = None) -> dict[str, Any]:
        return {}

    def details(self, ids: Iterable[str]) -> dict[str, Details]:
        return {id: Details() for id in ids}

    def tag_keys(self) -> list[str]:
        return []

    def metric_names(self, ids: Iterable[str]) -> list[str]:
        return []

    def history(self, id: str, metric: str) -> Iterator[Series]:
        return iter(())

    def stamp(self, id: str, metric: str) -> str:
        return ""

    def find_adapters(self, words: Sequence[str] = ()) -> list[tuple[str, int]]:
        return []

    def adapters_of(self, runs: Collection[str]) -> list[tuple[str, int]]:
        return []

    def adapters(
        self, ids: Collection[tuple[str, int]] | None = None, name: str = ""
    ) -> list[dict[str, Any]]:
        return []

    def has_adapters(self) -> bool:
        return False

    def votes(self) -> list[str]:
        return []


def reader() -> Reader:
    """The quickest that can answer now. Raises TrackerError where a database that was used is gone."""
    file = database()
    if file is None:
        return ClientReader()
    if not file.exists():
        if was_used(file):
            raise TrackerError(
                tr("{file} is missing; put it back, then everything is here again.", file=file)
            )
        return EmptyReader()
    quick = SqliteReader(file)
    return quick if quick.fits() else ClientReader()
