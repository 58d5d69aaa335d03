"""Runs on this machine: each in a process of its own that holds the locks of the slots it was given."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from tuner import hardware
from tuner.jobs import launch, slots
from tuner.jobs.troubles import logged
from tuner.jobs.watch import Watch
from tuner.runs import locks
from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.text.message import message

log = logging.getLogger("tuner.supervisor")


class Local:
    """The executor `local`."""

    def __init__(self) -> None:
        self.gpus: tuple[int, ...] = ()
        self.gpus_seen = float("-inf")

    def watch(self, run: Run) -> Watch:
        """A worker that an earlier supervisor or a terminal started."""
        return Watch(run)

    def start_next(self, ids: Sequence[str], runs: Mapping[str, Status]) -> Iterator[Watch]:
        """Start queued runs in order, as far as slots are free. A slot that an earlier one waits for is kept for it."""
        if not ids:
            return
        free = {name for name in slots.names(self._gpus()) if not locks.locked(slots.path(name))}
        for run_id in ids:
            if not free:
                return
            with logged(run_id):
                held, watch = self._start(Run(run_id), runs[run_id], free)
                free -= held
                if watch:
                    yield watch

    def _start(self, run: Run, status: Status, free: set[str]) -> tuple[set[str], Watch | None]:
        """Start one run if its slots are free. The slots that later runs must leave alone now: of one that waits for
        several, all that it may have, or smaller runs would take them one by one for ever."""
        choice, count = slots.slots_of(status, self._gpus())
        open_to_it = [name for name in choice if name in free]
        if len(open_to_it) < count:
            waits = (status.gpus or count > 1) and count <= len(choice)
            return (set(choice) if waits else set()), None
        lock = locks.lock(run.lock_path)
        if lock is None:  # a terminal waits its turn with it, or somebody cancels it
            return set(choice), None
        taken = slots.take(run.id, open_to_it, count) if run.status().state == "queued" else None
        if taken is None:
            os.close(lock)
            return set(), None
        return set(taken), self._launch(run, lock, taken)

    def _launch(self, run: Run, lock: int, taken: dict[str, int]) -> Watch | None:
        try:
            process = launch.start(run, lock, taken)
        except OSError as error:
            said = message("error.not_started", detail=str(error))
            try:
                run.update(state="failed", ended=run.status().ended_now(), cause=said)
            finally:
                slots.release(taken)
                os.close(lock)
            return None
        log.info("%s: started as process %d on %s", run.id, process.pid, ", ".join(taken))
        return Watch(run, process, process.pid)

    def _gpus(self) -> tuple[int, ...]:
        if time.monotonic() - self.gpus_seen > 60:
            self.gpus, self.gpus_seen = tuple(g.index for g in hardware.gpus()), time.monotonic()
        return self.gpus
