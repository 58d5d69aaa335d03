"""What people ask of a run once it exists: stop it, cancel it, resume it, wait for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tuner import hardware
from tuner.config.kinds import trains
from tuner.jobs import launch, queue, resuming, watch
from tuner.jobs.executors import which
from tuner.jobs.resuming import Refused, why_not_resumable
from tuner.jobs.supervisor import ensure_supervisor
from tuner.jobs.watch import STOP_GRACE
from tuner.runs import locks, worker_lock
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text.lookup import mark, tr
from tuner.text.message import message, render

__all__ = ["Refused", "pid_of", "resume", "stop", "wait", "why_not_resumable"]

CANCEL_GRACE = 10.0
"""Seconds a cancelled worker, which saves nothing, has to end."""


ENDS = mark("Run {id} ends, in {seconds:.0f} s at the latest.")
ENDS_SAVED = mark("Run {id} ends once it has saved a checkpoint, in {seconds:.0f} s at the latest.")
ENDS_UNSAVED = mark("Run {id} ends without saving, in {seconds:.0f} s at the latest.")


def stop(run: Run, now: bool = False, grace: float | None = None) -> str:
    """Ask a run to end: it saves a checkpoint first, unless `now`. Returns at once, with what happens in words.

    A worker that has not ended after `grace` seconds is terminated, then killed with all it started.
    """
    _must_exist(run)
    if run.status().state in ENDED:
        return tr("Run {id} has ended already: {state}.", id=run.id, state=run.status().state)
    lock = None if _at_work_elsewhere(run) else locks.lock(run.lock_path)
    if lock is not None:
        try:
            said = _end_without_worker(run)
        finally:
            os.close(lock)
        ensure_supervisor(only_if_needed=True)
        return said
    seconds = grace if grace is not None else CANCEL_GRACE if now else STOP_GRACE
    again = run.requested("stop") and not now  # a second signal would cancel it
    run.request("cancel" if now else "stop")
    (run.folder / "requests" / "grace").write_text(str(seconds))
    if not again and (pid := pid_of(run)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    ensure_supervisor()
    saves = trains(str(run.values().get("stage")))
    return tr(ENDS_UNSAVED if saves and now else ENDS_SAVED if saves else ENDS, id=run.id, seconds=seconds)


def _end_without_worker(run: Run) -> str:
    """A queued run is taken out; one whose worker died unseen is buried. The caller holds the run's lock."""
    status = run.status()
    if status.state in ENDED:
        return tr("Run {id} has ended already: {state}.", id=run.id, state=status.state)
    if status.state == "queued":
        said = message("stopped.queued")
        run.update(state="stopped", cause=said, ended=status.ended_now())
        watch.mark_unsettled(run)
        queue.forget(run.id)
        which.take_back(run)
        return render(said)
    watch.finalize(run, None)
    return tr("Run {id} has no worker: {reason}", id=run.id, reason=run.status().reason)


def _at_work_elsewhere(run: Run) -> bool:
    """Whether a run lives on another machine, whose lock this one may not see."""
    return launch.elsewhere(run) is not None and run.status().state in LIVE


def pid_of(run: Run) -> int | None:
    """The pid of a run's worker, proven by the lock it has open; also of one that has not yet said a word."""
    if pid := worker_lock.worker_pid(run):
        return pid
    record = launch.record(run)
    if record and record.pid and record.boot_id == hardware.boot_id():
        return record.pid if worker_lock.has_open(record.pid, run.lock_path) else None
    return None


def resume(run: Run, checkpoint: str | Path | None = None, secrets: Mapping[str, str] | None = None) -> Run:
    """Queue an ended run again and see to it that somebody starts it, see `resuming.queue_again`. Raises Refused."""
    resuming.queue_again(run, checkpoint, secrets)
    ensure_supervisor()
    return run


def wait(run: Run, timeout: float | None = None) -> Status:
    """Until a run has ended, or `timeout` seconds: its status then. Keeps a supervisor at work meanwhile.

    Raises Refused when there is no such run.
    """
    _must_exist(run)
    end = time.monotonic() + timeout if timeout is not None else float("inf")
    look_again = 0.0
    while (status := run.status()).state not in ENDED and time.monotonic() < end:
        if time.monotonic() >= look_again:
            _must_exist(run)  # a folder that is gone reads as queued
            ensure_supervisor(only_if_needed=True)
            look_again = time.monotonic() + 2
        time.sleep(0.1)
    return status


def _must_exist(run: Run) -> None:
    if not run.exists:
        raise Refused(tr("There is no run {id}; `tuner runs` lists them.", id=run.id))
