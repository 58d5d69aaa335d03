"""What people ask of a run once it exists: stop it, cancel it, resume it, wait for it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import hardware
from tuner.jobs import launch, liveness, queue, watch
from tuner.jobs.supervisor import STOP_GRACE, ensure_supervisor
from tuner.tracking import checkpoints
from tuner.tracking.run import ENDED, Run, Status

CANCEL_GRACE = 10.0
"""Seconds a cancelled worker, which saves nothing, has to end."""


class Refused(Exception):  # noqa: N818  said as a sentence: "Refused: ..."
    """What was asked cannot be done; the message is one sentence that says why and what to do."""


def stop(run: Run, now: bool = False, grace: float | None = None) -> str:
    """Ask a run to end: it saves a checkpoint first, unless `now`. Returns at once, with what happens in words.

    A worker that has not ended after `grace` seconds is terminated, then killed with all it started.
    """
    _must_exist(run)
    if run.status().state in ENDED:
        return f"Run {run.id} has ended already: {run.status().state}."
    lock = liveness.lock(run.lock_path)
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
    how = "without saving" if now else "once it has saved a checkpoint"
    return f"Run {run.id} ends {how}, in {seconds:.0f} s at the latest."


def _end_without_worker(run: Run) -> str:
    """A queued run is taken out; one whose worker died unseen is buried. The caller holds the run's lock."""
    status = run.status()
    if status.state in ENDED:
        return f"Run {run.id} has ended already: {status.state}."
    if status.state == "queued":
        said = "Taken out of the queue before it began."
        run.update(state="stopped", reason=said, reason_code="stopped", ended=time.time())
        watch.mark_unsettled(run)
        queue.forget(run.id)
        return said
    watch.bury(run, None)
    return f"Run {run.id} had no worker any more: {run.status().reason}"


def pid_of(run: Run) -> int | None:
    """The pid of a run's worker, proven by the lock it has open; also of one that has not yet said a word."""
    if pid := liveness.worker_pid(run):
        return pid
    record = launch.record(run)
    if record and record.pid and record.boot_id == hardware.boot_id():
        return record.pid if liveness.has_open(record.pid, run.lock_path) else None
    return None


def why_not_resumable(run: Run) -> str | None:
    """None if `resume` would take it, else one sentence. Cheap enough for a page: sizes are checked, not hashes."""
    status = run.status()
    if not run.exists:
        return f"There is no run {run.id}; `tuner runs` lists them."
    if status.state == "queued":
        return "It waits in the queue already."
    if status.state == "finished":
        return "It has finished; clone it and raise num_train_epochs to train further."
    if status.state not in ENDED and liveness.alive(run):
        return "It is still at work; stop it first."
    if status.step and not any(checkpoints.valid(c, deep=False) is None for c in checkpoints.of(run)):
        return "It ended before its first complete checkpoint, so there is nothing to go on from; clone it to start over."
    return None


def resume(run: Run, checkpoint: str | Path | None = None) -> Run:
    """Queue an ended run again, to go on from `checkpoint` (a name like checkpoint-40, or a path) or its newest sound one.

    The same run, the same MLflow run; one that never took a step begins at the beginning. Raises Refused.
    """
    if reason := why_not_resumable(run):
        raise Refused(f"Run {run.id} cannot be resumed: {reason}")
    source, note = _source(run, checkpoint)
    lock = liveness.lock(run.lock_path, wait=5.0)
    if lock is None:
        raise Refused(f"Run {run.id} is just telling MLflow how it ended; try again in half a minute.")
    try:
        _queue_again(run, source, note)
    finally:
        os.close(lock)
    ensure_supervisor()
    return run


def _queue_again(run: Run, source: Path | None, note: str) -> None:
    """The caller holds the run's lock."""
    status = run.status()
    if status.state == "queued":  # somebody else was quicker
        return
    if status.state not in ENDED:
        status = watch.bury(run, None)
    queue.enqueue(run.id)
    run.forget_requests()
    launch.forget_record(run)
    (watch.unsettled() / run.id).unlink(missing_ok=True)
    run.update(**_again(status, source, note))


def _source(run: Run, checkpoint: str | Path | None) -> tuple[Path | None, str]:
    """The checkpoint to go on from, and a note when newer ones were passed over. Raises Refused."""
    if checkpoint is not None:
        named = Path(checkpoint)
        path = named if named.is_absolute() else run.checkpoints / named
        if wrong := checkpoints.valid(path):
            raise Refused(f"Run {run.id} cannot go on from {path.name}: {wrong} Choose another one.")
        return path, ""
    damaged: list[str] = []
    for path in reversed(checkpoints.of(run)):
        wrong = checkpoints.valid(path)
        if wrong is None:
            return path, f"Passed over, damaged: {' '.join(damaged)}" if damaged else ""
        damaged.append(wrong)
    if damaged or run.status().step:
        raise Refused(f"Run {run.id} cannot be resumed: no checkpoint is whole. {' '.join(damaged)}".strip())
    return None, ""


def _again(status: Status, source: Path | None, note: str) -> dict[str, Any]:
    """The changes that make an ended run a queued one."""
    extra = {k: v for k, v in status.extra.items() if k != "resume_from"}
    if source is not None:
        extra["resume_from"] = str(source)
    return {
        "state": "queued",
        "phase": "",
        "reason": "",
        "reason_code": "",
        "remedies": [],
        "ended": 0.0,
        "pid": 0,
        "boot_id": "",
        "exit_code": None,
        "notes": [*status.notes, note] if note else status.notes,
        "extra": {**extra, "resumes": int(extra.get("resumes") or 0) + 1},
    }


def wait(run: Run, timeout: float | None = None) -> Status:
    """Until a run has ended, or `timeout` seconds: its status then. Keeps a supervisor at work meanwhile.

    Raises Refused when there is no such run.
    """
    _must_exist(run)
    end = time.monotonic() + timeout if timeout is not None else float("inf")
    look_again = 0.0
    while (status := run.status()).state not in ENDED and time.monotonic() < end:
        if time.monotonic() >= look_again:
            ensure_supervisor(only_if_needed=True)
            look_again = time.monotonic() + 2
        time.sleep(0.1)
    return status


def _must_exist(run: Run) -> None:
    if not run.exists:
        raise Refused(f"There is no run {run.id}; `tuner runs` lists them.")
