"""Every run as one table: MLflow's rows, and over them what the run folders here know better."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from tuner import paths
from tuner.config.spelling import word
from tuner.runs.points import spark, tail
from tuner.runs.run import Run
from tuner.runs.status import ENDED, State, Status
from tuner.text.lookup import tr
from tuner.text.message import of_tag
from tuner.tracking import open_runs
from tuner.tracking.reader import EmptyReader, Reader, reader
from tuner.tracking.rows import NOTE, PARENT, STATE_OF, SWEEP, Details, Head, RunFilter, RunRow, is_own
from tuner.tracking.search import SETTLED
from tuner.tracking.sqlite_reader import SqliteReader
from tuner.tracking.store import TrackerError

COLUMNS = {
    "stage": ("params", "stage"),
    "model": ("params", "model_name_or_path"),
    "dataset": ("params", "dataset"),
    "method": ("params", "finetuning_type"),
    "note": ("tags", NOTE),
    "reason": ("tags", "reason"),
    "worked": ("tags", "seconds/total"),
    "parent": ("tags", PARENT),
}
OPEN = frozenset({"SCHEDULED", "RUNNING"})
BY_TIME = ("created", "")
"""Sorts for which the quick reader need not tell of more runs than are wanted."""
FEW = 300
"""Up to so many runs their values are asked for by id; of more all values are fetched."""


class Table:
    """One look at all runs. A column is fetched when a filter or a sort asks for it, and once.

    A quick reader, that of the file, searches by itself. Then only the runs of which their folders know more than
    MLflow are looked at one by one: the open ones, and those that MLflow does not have. Else all of them are.
    """

    def __init__(self) -> None:
        self.notice = ""
        self._columns: dict[tuple[str, str], dict[str, Any]] = {}
        self._statuses: dict[str, Status] = {}
        self._details: dict[str, Details] = {}
        self._reader: Reader = EmptyReader()
        self._folder_of: dict[str, str] = {}
        self.heads: dict[str, Head] = {}
        try:
            self._reader = reader()
            # A run made while MLflow was away has another id there.
            self._folder_of = self._reader.column("tags", "tuner.run")
        except TrackerError as error:
            self._alone(error)

    @property
    def _quick(self) -> SqliteReader | None:
        return self._reader if isinstance(self._reader, SqliteReader) else None

    def _alone(self, error: TrackerError) -> None:
        """Go on with what the folders say."""
        self.notice = tr("Only the runs of this folder are shown. {error}", error=error)
        self._reader, self._folder_of = EmptyReader(), {}
        self.__dict__.pop("_own", None)

    @cached_property
    def _own(self) -> set[str]:
        """The runs whose folder is asked for their state."""
        if self._quick is None:
            return _folders()
        return set(open_runs.ids()) | unknown(self._quick, set(self._folder_of.values()))

    def _look(self) -> None:
        """Fetch the heads of the runs that are looked at one by one."""
        try:
            if self._quick is None:
                self._take(self._reader.heads())
            elif self._own:
                self._take(self._reader.heads(self._there(self._own)))
        except TrackerError as error:
            self._alone(error)
        for run_id in self._own - set(self.heads):
            if self._quick is None or _is_here(run_id):
                self.heads[run_id] = self._head_of_folder(run_id)

    def _take(self, heads: Iterable[Head]) -> None:
        self.heads |= {self._folder_of.get(h.id, h.id): h for h in heads}

    def _there(self, run_ids: Iterable[str]) -> list[str]:
        """MLflow's ids of runs, as far as it has them."""
        other = {run_id: id for id, run_id in self._folder_of.items()}
        return [other.get(run_id, run_id) for run_id in run_ids]

    def _head_of_folder(self, run_id: str) -> Head:
        """A run that MLflow does not have yet."""
        status = self.status(run_id)
        return Head("", status.name or run_id, "RUNNING", status.created, status.ended, False)

    def _untold(self, run_id: str) -> Details:
        """What the folder has of a run that MLflow does not have."""
        if run_id not in self._details:
            self._details[run_id] = _details_of_folder(Run(run_id))
        return self._details[run_id]

    def status(self, run_id: str) -> Status:
        if run_id not in self._statuses:
            self._statuses[run_id] = Run(run_id).status()
        return self._statuses[run_id]

    # --- columns

    def column(self, kind: str, key: str) -> dict[str, Any]:
        """One param, tag or metric of every run looked at that has it, by run id."""
        if (kind, key) not in self._columns:
            few = [h.id for h in self.heads.values() if h.id] if len(self.heads) <= FEW else None
            found = self._reader.column(kind, key, few)
            column = {self._folder_of.get(id, id): value for id, value in found.items()}
            for run_id, head in self.heads.items():
                if not head.id:
                    column[run_id] = getattr(self._untold(run_id), kind).get(key)
            self._columns[kind, key] = {id: v for id, v in column.items() if v is not None}
        return self._columns[kind, key]

    def value(self, name: str, run_id: str) -> Any:
        """What a run has in a column that a person can name; None where it has nothing."""
        head = self.heads[run_id]
        if name == "created":
            return head.created
        if name == "name":
            return head.name.lower()
        if name == "state":
            return self.state(run_id)
        if name == "duration":
            if not head.ended or head.status in OPEN:
                return None
            worked = self.column(*COLUMNS["worked"]).get(run_id)
            return float(worked) if worked else max(0.0, head.ended - head.created)
        kind, _, key = name.partition(".")
        value = self.column(*COLUMNS.get(name, (kind, key))).get(run_id)
        if name == "parent":
            return self._folder_of.get(str(value), value)
        return _as_number(value) if kind == "params" else value

    def state(self, run_id: str) -> State:
        """The folder's word, for MLflow lags; MLflow's where there is no folder, and once a run has finished.

        Any other end need not be one: such a run may wait in the queue again, of which MLflow hears when it starts.
        """
        head = self.heads[run_id]
        if head.status != "FINISHED" and run_id in self._own:
            return self.status(run_id).state
        if head.status in SETTLED:
            return SETTLED[head.status]
        state: State = self.column("tags", "state").get(run_id) or STATE_OF.get(head.status, "running")
        return state

    # --- filter and sort

    def chosen(self, filter: RunFilter, most: int | None = None) -> list[str]:
        """The ids that pass, in order; the first `most` of them, if that is given."""
        self._look()
        others = self._found(filter, most)
        ids = self._passing(filter)
        if filter.sort in BY_TIME:
            made = [(self.heads[id].created, self.heads[id].id or id) for id in ids]
            found = [id for _, id in sorted([*made, *others], reverse=filter.descending)[:most]]
            return [self._folder_of.get(id, id) for id in found] if self._folder_of else found
        found = [self._folder_of.get(id, id) for _, id in others]
        self._need(found)
        return self._sorted([*ids, *found], filter)[:most]

    def page(self, filter: RunFilter, number: int, size: int) -> tuple[list[str], int, int]:
        """One page of the ids that pass, its number, which counts from 1, and how many pass in all."""
        # What a filter costs is to be paid once; the plain list is longer than all, and quicker counted than fetched.
        if self._quick and filter == RunFilter(descending=filter.descending, deleted=filter.deleted):
            ids = self.chosen(filter, number * size)
            total = self._total(filter) if len(ids) == number * size else 0
            if total:
                return ids[-size:], number, total
        ids = self.chosen(filter)
        number = max(1, min(number, -(-len(ids) // size)))
        return ids[(number - 1) * size : number * size], number, len(ids)

    def _total(self, filter: RunFilter) -> int:
        """How many pass, once those that are looked at one by one were; 0 where the file cannot say."""
        own = [head.id for head in self.heads.values() if head.id]
        with suppress(TrackerError):
            return self._quick.count(filter, own) + len(self._passing(filter)) if self._quick else 0
        return 0

    def _passing(self, filter: RunFilter) -> list[str]:
        """Those that pass of the runs that are looked at one by one."""
        sweeps = self.column("tags", SWEEP)
        return [
            id
            for id, head in self.heads.items()
            if head.deleted == filter.deleted and id not in sweeps and self._passes(id, filter)
        ]

    def _found(self, filter: RunFilter, most: int | None) -> list[tuple[float, str]]:
        """What the quick reader finds beside the runs that are looked at one by one."""
        if self._quick is None:
            return []
        try:
            asked = [head.id for head in self.heads.values() if head.id]
            return self._quick.search(filter, asked, most if filter.sort in BY_TIME else None)
        except TrackerError as error:
            self._alone(error)
            self._look()
            return []

    def _need(self, ids: Sequence[str]) -> None:
        """Fetch the heads of runs that were found and not yet looked at."""
        missing = [id for id in ids if id not in self.heads]
        if missing:
            self._take(self._reader.heads(self._there(missing)))
            self._columns.clear()  # of other runs

    def _sorted(self, ids: list[str], filter: RunFilter) -> list[str]:
        """In the order that was asked for, those without a value last. Of equal ones MLflow's id decides, as in SQL."""
        keys = {id: self.value(filter.sort, id) for id in ids}
        last = {id: self.heads[id].id or id for id in ids}
        some = [id for id in ids if keys[id] is not None and keys[id] == keys[id]]
        words = any(isinstance(keys[id], str) for id in some)
        some.sort(key=lambda id: (str(keys[id]) if words else keys[id], last[id]), reverse=filter.descending)
        none = sorted(set(ids) - set(some), key=lambda id: (-self.heads[id].created, id))
        return some + none

    def _passes(self, run_id: str, filter: RunFilter) -> bool:
        exact = (("stage", filter.stage), ("model", filter.model), ("parent", filter.parent))
        if any(wanted and self.value(name, run_id) != wanted for name, wanted in exact):
            return False
        if filter.dataset and filter.dataset not in str(self.value("dataset", run_id) or "").split(","):
            return False
        for tag, wanted in filter.tags.items():
            value = self.column("tags", tag).get(run_id)
            if value is None or (wanted and value != wanted):
                return False
        if filter.states and self.state(run_id) not in filter.states:
            return False
        return not filter.text or self._mentions(run_id, filter.text)

    def _mentions(self, run_id: str, text: str) -> bool:
        said = [run_id, self.heads[run_id].name]
        said += [str(self.value(name, run_id) or "") for name in ("model", "dataset", "note", "reason")]
        everything = "\n".join(said).lower()
        return all(part in everything for part in text.lower().split())

    # --- single ones, and what all have

    def find(self, run_id: str) -> RunRow | None:
        """One run, at the cost of one."""
        try:
            self._take(self._reader.heads(self._there([run_id])))
        except TrackerError as error:
            self._alone(error)
        if run_id not in self.heads and _is_here(run_id):
            self.heads[run_id] = self._head_of_folder(run_id)
        return next(iter(self.rows([run_id])), None) if run_id in self.heads else None

    def called(self, text: str) -> list[tuple[str, Head]]:
        """The runs that a person may mean: of this id; else those whose id begins so; else those of this name."""
        try:
            if self._quick:
                self._take(self._quick.called(text))
                begin = [id for id in self._folder_of.values() if text and id.startswith(text)]
                self._take(self._quick.heads(self._there(begin)))
        except TrackerError as error:
            self._alone(error)
        self._look()
        kept = [(id, head) for id, head in self.heads.items() if not head.deleted]
        for meant in (
            [one for one in kept if one[0] == text],
            [one for one in kept if one[0].startswith(text)],
        ):
            if text and meant:
                return meant
        return [one for one in kept if one[1].name == text]

    def some(self, ids: Sequence[str]) -> dict[str, Head]:
        """These runs without their details, as far as there are any."""
        self._need(ids)
        return {id: self.heads[id] for id in ids if id in self.heads}

    def names(self) -> set[str]:
        """What runs are called, the deleted ones too."""
        self._look()
        known = self._quick.names() if self._quick else set()
        return known | {head.name for head in self.heads.values()}

    def choices(self, kind: str, key: str) -> set[str]:
        """The values that a param or tag has in some run."""
        self._look()
        known = self._quick.choices(kind, key) if self._quick else set()
        return known | set(self.column(kind, key).values())

    def tag_keys(self) -> list[str]:
        """Every tag that some run has. Raises TrackerError."""
        return self._reader.tag_keys()

    # --- rows

    def rows(self, ids: Sequence[str]) -> list[RunRow]:
        """These runs with all that lists show of them."""
        self._need(list(ids))
        wanted = [id for id in ids if id in self.heads]  # not those removed for good since they were found
        found = self._reader.details([self.heads[id].id for id in wanted if self.heads[id].id])
        return [self._row(id, found.get(self.heads[id].id)) for id in wanted]

    def _row(self, run_id: str, details: Details | None) -> RunRow:
        local = _is_here(run_id)
        run = Run(run_id)
        head = self.heads[run_id]
        known = details or self._untold(run_id)
        status = self.status(run_id) if local else _status_of(head, known)
        live = local and status.state not in ENDED
        parent = known.tags.get(PARENT, "")
        return RunRow(
            id=run_id,
            name=head.name,
            state=status.state,
            reason=status.reason,
            stage=known.params.get("stage", ""),
            model=known.params.get("model_name_or_path", ""),
            datasets=tuple(filter(None, known.params.get("dataset", "").split(","))),
            method=known.params.get("finetuning_type", ""),
            created=head.created,
            started=status.started,
            worked=status.elapsed,
            ended=status.ended if status.state in ENDED else 0.0,
            params=known.params,
            metrics=known.metrics | tail(run).last() if live else known.metrics,
            tags={k: v for k, v in known.tags.items() if not is_own(k)},
            facts={k: v for k, v in known.tags.items() if is_own(k)},
            note=known.tags.get(NOTE, ""),
            deleted=head.deleted,
            parent=self._folder_of.get(parent, parent),
            spark=spark(run) if live else _spark_of(known),
            local=local,
        )


def _is_here(run_id: str) -> bool:
    """Whether a run has a folder of this studio."""
    with suppress(ValueError, OSError):
        return not run_id.startswith(".") and Run(run_id).folder.is_dir()
    return False


_strays: dict[str, tuple[tuple[int, int], float, set[str]]] = {}
AGAIN = 30.0
"""Seconds after which the folders are held against the file again, if none was made or removed meanwhile."""


def unknown(reader: SqliteReader, others: set[str]) -> set[str]:
    """The folders of runs that the file does not have: of another database, or of a backup from before they were made.

    `others` are those that it has by another id.
    """
    root = str(paths.runs())
    with suppress(FileNotFoundError):
        stamp = (os.stat(root).st_mtime_ns, reader.inode())  # noqa: PTH116
        known = _strays.get(root)
        if known is None or known[0] != stamp or time.monotonic() > known[1]:
            found = {name for name in os.listdir(root) if not name.startswith(".")}  # noqa: PTH208
            known = _strays[root] = (stamp, time.monotonic() + AGAIN, found - reader.ids() - others)
        return known[2]
    return set()


def _folders() -> set[str]:
    with suppress(FileNotFoundError), os.scandir(paths.runs()) as entries:
        return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    return set()


def _details_of_folder(run: Run) -> Details:
    params = {name: word(value) for name, value in run.values().items()}
    return Details(params, tail(run).last(), dict(run.status().tags))


def _status_of(head: Head, details: Details) -> Status:
    """What MLflow tells of a run whose folder is not here."""
    state: Any = details.tags.get("state") or STATE_OF.get(head.status, "running")
    started, worked = (_as_number(details.tags.get(name)) for name in ("tuner.started", "seconds/total"))
    return Status(
        state=state,
        cause=of_tag(details.tags.get("reason", "")),
        started=started if isinstance(started, float) else 0.0,
        worked=worked if isinstance(worked, float) else 0.0,
        ended=head.ended,
    )


def _spark_of(details: Details) -> tuple[float, ...]:
    with suppress(KeyError, ValueError, TypeError):
        return tuple(float(v) for v in json.loads(details.tags["tuner.spark"]))
    return ()


def _as_number(value: Any) -> Any:
    with suppress(TypeError, ValueError):
        return float(value)
    return value
