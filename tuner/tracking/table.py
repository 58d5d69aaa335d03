"""Every run as one table: MLflow's rows, and over them what the run folders here know better."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tuner import paths
from tuner.config.config import word
from tuner.tracking.points import spark, tail
from tuner.tracking.reader import NobodyYet, Reader, reader
from tuner.tracking.rows import NOTE, PARENT, STATE_OF, SWEEP, Details, Head, RunFilter, RunRow, is_own
from tuner.tracking.run import ENDED, Run, State, Status
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


class Table:
    """One look at all runs. A column is fetched when a filter or a sort asks for it, and once."""

    def __init__(self) -> None:
        self.notice = ""
        self._columns: dict[tuple[str, str], dict[str, Any]] = {}
        self._statuses: dict[str, Status] = {}
        self._folders = _folders()
        self._reader: Reader = NobodyYet()
        heads: list[Head] = []
        try:
            self._reader = reader()
            heads = self._reader.heads()
            # A run made while MLflow was away has another id there.
            self._folder_of = self._reader.column("tags", "tuner.run")
        except TrackerError as error:
            self.notice = f"Only the runs of this folder are shown. {error}"
            self._reader, self._folder_of = NobodyYet(), {}
        self.heads = {self._folder_of.get(h.id, h.id): h for h in heads}
        for run_id in self._folders - set(self.heads):
            self.heads[run_id] = self._head_of_folder(run_id)

    def _head_of_folder(self, run_id: str) -> Head:
        """A run that MLflow does not have yet."""
        status = self.status(run_id)
        return Head(
            "", str(status.extra.get("name") or run_id), "RUNNING", status.created, status.ended, False
        )

    def status(self, run_id: str) -> Status:
        if run_id not in self._statuses:
            self._statuses[run_id] = Run(run_id).status()
        return self._statuses[run_id]

    # --- columns

    def column(self, kind: str, key: str) -> dict[str, Any]:
        """One param, tag or metric of every run that has it, by run id."""
        if (kind, key) not in self._columns:
            found = self._reader.column(kind, key)
            column = {self._folder_of.get(id, id): value for id, value in found.items()}
            for run_id, head in self.heads.items():
                if not head.id:
                    column[run_id] = getattr(_details_of_folder(Run(run_id)), kind).get(key)
            self._columns[kind, key] = {id: v for id, v in column.items() if v is not None}
        return self._columns[kind, key]

    def tag_keys(self) -> list[str]:
        """Every tag that some run has. Raises TrackerError."""
        return self._reader.tag_keys()

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
        return _as_number(value) if kind == "params" else value

    def state(self, run_id: str) -> State:
        """The folder's word, for MLflow lags; MLflow's where there is no folder, and once a run has finished.

        Any other end need not be one: such a run may wait in the queue again, of which MLflow hears when it starts.
        """
        head = self.heads[run_id]
        if head.status != "FINISHED" and run_id in self._folders:
            return self.status(run_id).state
        state: State = self.column("tags", "state").get(run_id) or STATE_OF.get(head.status, "running")
        return state

    # --- filter and sort

    def chosen(self, filter: RunFilter) -> list[str]:
        """The ids that pass, in order."""
        sweeps = self.column("tags", SWEEP)
        ids = [
            id
            for id, head in self.heads.items()
            if head.deleted == filter.deleted and id not in sweeps and self._passes(id, filter)
        ]
        keys = {id: self.value(filter.sort, id) for id in ids}
        some = [id for id in ids if keys[id] is not None and keys[id] == keys[id]]
        words = any(isinstance(keys[id], str) for id in some)
        some.sort(key=lambda id: (str(keys[id]) if words else keys[id], id), reverse=filter.descending)
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

    # --- rows

    def rows(self, ids: Iterable[str]) -> list[RunRow]:
        """These runs with all that lists show of them."""
        wanted = list(ids)
        found = self._reader.details([self.heads[id].id for id in wanted if self.heads[id].id])
        return [self._row(id, found.get(self.heads[id].id)) for id in wanted]

    def _row(self, run_id: str, details: Details | None) -> RunRow:
        local = run_id in self._folders
        run = Run(run_id)
        head = self.heads[run_id]
        known = details or _details_of_folder(run)
        status = self.status(run_id) if local else _status_of(head, known)
        live = local and status.state not in ENDED
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
            parent=known.tags.get(PARENT, ""),
            spark=spark(run) if live else _spark_of(known),
            local=local,
        )


def _folders() -> set[str]:
    with suppress(FileNotFoundError), os.scandir(paths.runs()) as entries:
        return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    return set()


def _details_of_folder(run: Run) -> Details:
    params = {name: word(value) for name, value in run.values().items()}
    return Details(params, tail(run).last(), dict(run.status().extra.get("tags") or {}))


def _status_of(head: Head, details: Details) -> Status:
    """What MLflow tells of a run whose folder is not here."""
    state: Any = details.tags.get("state") or STATE_OF.get(head.status, "running")
    started, worked = (_as_number(details.tags.get(name)) for name in ("tuner.started", "seconds/total"))
    return Status(
        state=state,
        reason=details.tags.get("reason", ""),
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
