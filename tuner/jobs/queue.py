"""The queue: the runs whose state is queued, in an order that people may change.

The run folders are the truth about what is queued; mlruns/queue.json only says in which order and what is on hold. A
lost or damaged order file therefore loses no run: what is queued and not in it comes last, oldest first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuner import hardware, paths
from tuner.jobs import launch, slots
from tuner.jobs.executors import which
from tuner.runs import files, locks, worker_lock
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text.lookup import tr
from tuner.text.message import term
from tuner.tracking import open_runs

UNLISTED_GRACE = 5.0
"""Seconds in which a run that was just created may still be taken by the terminal that created it."""


@dataclass
class Order:
    """What people decided: the order of run ids, which of them wait on hold, and whether nothing is to start."""

    ids: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    paused: bool = False


@dataclass(frozen=True)
class QueueRow:
    """One run that is at work (position 0) or waits (1, 2, ...). `why` says in words what it waits for."""

    position: int
    id: str
    name: str
    state: str
    gpus: tuple[int, ...]
    created: float
    held: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gpus": list(self.gpus)}


def order() -> Order:
    """The order as it stands; an empty one where the file is missing or damaged."""
    return _read() or Order()


def _read() -> Order | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads(_path().read_text(encoding="utf-8"))
        return Order([str(i) for i in raw["ids"]], [str(i) for i in raw["held"]], bool(raw["paused"]))
    return None


@contextmanager
def changing() -> Iterator[Order]:
    """Change the order: read under a lock, replaced whole when the block ends."""
    paths.mlruns().mkdir(parents=True, exist_ok=True)
    with locks.locking(paths.mlruns() / "queue.lock"):
        # Where there is no order yet, or no more, those that wait already come first.
        now = _read() or Order(waiting())
        yield now
        files.replace_text(_path(), json.dumps(asdict(now)))


def _path() -> Path:
    return paths.mlruns() / "queue.json"


# --- what is queued ------------------------------------------------------------------------------------------------


_seen: dict[str, tuple[tuple[int, int], Status]] = {}


def unended() -> dict[str, Status]:
    """Every run that has not ended, by id. One stat a marked run; a status is parsed only when it changed."""
    found = {}
    root, ids = str(paths.runs()), open_runs.ids()
    if len(_seen) > 2 * len(ids) + 1000:
        _seen.clear()  # of runs that ended long ago
    for name in ids:
        status = _status(root, name)
        if status is not None and status.state not in ENDED:
            found[name] = status
    return found


def _status(root: str, name: str) -> Status | None:
    path = f"{root}/{name}/status.json"
    try:
        stamp = os.stat(path)  # noqa: PTH116
    except OSError:
        _seen.pop(path, None)
        return None
    key = (stamp.st_mtime_ns, stamp.st_ino)
    if path not in _seen or _seen[path][0] != key:
        status = Run(name).status()
        if not status.created:  # unreadable for now: never taken for a queued run
            return None
        _seen[path] = (key, status)
    return _seen[path][1]


def waiting(runs: dict[str, Status] | None = None) -> list[str]:
    """The ids of the queued runs, first the one to start next."""
    runs = unended() if runs is None else runs
    queued = {i: s for i, s in runs.items() if s.state == "queued"}
    listed = [i for i in dict.fromkeys(order().ids) if i in queued]
    now = time.time()
    rest = sorted(queued.keys() - set(listed), key=lambda i: queued[i].created)
    fresh = {i for i in rest if now - UNLISTED_GRACE <= queued[i].created <= now}
    return listed + [i for i in rest if i not in fresh or worker_lock.alive(Run(i))]


def queue() -> list[QueueRow]:
    """What is at work, then what waits in its order; `tuner queue`."""
    runs, now = unended(), order()
    rows = [
        _row(0, i, s, now) for i, s in sorted(runs.items(), key=lambda r: r[1].started) if s.state in LIVE
    ]
    return rows + [_row(n, i, runs[i], now) for n, i in enumerate(waiting(runs), start=1)]


def _row(position: int, run_id: str, status: Status, now: Order) -> QueueRow:
    return QueueRow(
        position=position,
        id=run_id,
        name=status.name or run_id,
        state=status.state,
        gpus=_gpus(position, run_id, status),
        created=status.created,
        held=run_id in now.held,
        why=_why(position, run_id, status, now),
    )


def _gpus(position: int, run_id: str, status: Status) -> tuple[int, ...]:
    """The GPUs a run was given, or those it was to have."""
    given = launch.record(Run(run_id)) if position == 0 else None
    return given.gpus if given else tuple(status.gpus)


def _why(position: int, run_id: str, status: Status, now: Order) -> str:
    if position == 0:
        return term("phase", status.phase)
    if now.paused:
        return tr("The queue is paused.")
    if run_id in now.held:
        return tr("On hold.")
    if position > 1:
        return tr("{position} ahead in the queue.", position=position - 1)
    if short := short_of_room():
        return short
    if (elsewhere := which.waits_for(Run(run_id), status)) is not None:
        return elsewhere
    choice, count = slots.slots_of(status, [g.index for g in hardware.gpus()])
    if count > len(choice):
        return tr("Waits for {count} GPUs, and this machine has {number}.", count=count, number=len(choice))
    taken = [Run(s.run).name for s in slots.slots() if s.run and s.run != run_id]
    return tr("Waits for {taken} to end.", taken=", ".join(taken)) if taken else tr("Starts now.")


def short_of_room() -> str:
    """Why nothing is started on a disk that is nearly full; empty while there is room.

    A run that ends for want of room is followed by the next one, which would end the same way.
    """
    free = files.free()
    return (
        tr("Waits for room: only {free} MiB of disk are free.", free=free >> 20)
        if free < files.LEAST_FREE
        else ""
    )


# --- changing it ---------------------------------------------------------------------------------------------------


def enqueue(run_id: str, first: bool = False) -> None:
    """Put a run at the end of the order (or at its head). The run's own status makes it queued, not this."""
    with changing() as now:
        queued = {i for i, status in unended().items() if status.state == "queued"} - {run_id}
        others = [i for i in now.ids if i in queued]
        now.ids = [run_id, *others] if first else [*others, run_id]
        now.held = [i for i in now.held if i in queued]


def move(run_id: str, position: int) -> None:
    """Make a queued run the `position`-th to start, counted from 1. Raises ValueError when it is not queued."""
    with changing() as now:
        ids = waiting()
        if run_id not in ids:
            raise ValueError(
                tr("Run {run_id} does not wait in the queue, so it cannot be moved.", run_id=run_id)
            )
        ids.remove(run_id)
        ids.insert(max(0, position - 1), run_id)
        now.ids = ids


def hold_back(run_id: str, held: bool = True) -> None:
    """Keep one queued run from starting, or let it go again."""
    with changing() as now:
        now.held = [i for i in now.held if i != run_id] + ([run_id] if held else [])


def pause(paused: bool = True) -> None:
    """Start nothing more, or go on. What is at work is not touched."""
    with changing() as now:
        now.paused = paused


def forget(run_id: str) -> None:
    """Take a run out of the order, once it is cancelled."""
    with changing() as now:
        now.ids = [i for i in now.ids if i != run_id]
        now.held = [i for i in now.held if i != run_id]
