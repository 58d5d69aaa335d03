"""A run that ended goes on: from which checkpoint, why not, and by itself after a reboot where that was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.kinds import KINDS
from tuner.jobs import launch, queue, watch
from tuner.runs import checkpoints, locks
from tuner.runs.run import Run
from tuner.runs.status import ENDED, Status
from tuner.text.lookup import ENGLISH, speaking, tr
from tuner.text.message import Message, message, plain

BEGINNING = "the beginning"
"""In a status, in the place of a checkpoint: compared, and never shown."""


class Refused(Exception):  # noqa: N818  said as a sentence: "Refused: ..."
    """What was asked cannot be done; the message is one sentence that says why and what to do."""


def why_not_resumable(run: Run) -> str | None:
    """None if `resume` would take it, else one sentence. Cheap enough for a page: sizes are checked, not hashes."""
    status = run.status()
    if not run.exists:
        return tr("There is no run {id}; `tuner runs` lists them.", id=run.id)
    if status.state == "queued":
        return tr("It waits in the queue already.")
    if status.state == "finished":
        return tr("It has finished; clone it and raise num_train_epochs to train further.")
    if status.state not in ENDED and launch.alive(run):
        return tr("It is still running; stop it first.")
    if not (goes_on(run) or checkpoints.to_go_on_from(run)):
        return tr(
            "It ended before its first complete checkpoint, so there is nothing to go on from; clone it to start over."
        )
    return None


def goes_on(run: Run) -> bool:
    """Whether a run goes on from what it left behind, which is no checkpoint."""
    kind = KINDS.get(str(run.values().get("stage")))
    return kind is not None and kind.goes_on


def queue_again(
    run: Run, checkpoint: str | Path | None = None, secrets: Mapping[str, str] | None = None
) -> None:
    """Queue an ended run again, to go on from `checkpoint` (a name like checkpoint-40, or a path) or its newest sound one.

    The same run, the same MLflow run; one that never took a step begins at the beginning. `secrets` are knobs like
    hf_hub_token, in place of those it was given before. Raises Refused.
    """
    if reason := why_not_resumable(run):
        raise Refused(tr("Run {id} cannot be resumed: {reason}", id=run.id, reason=reason))
    source, damaged = _source(run, checkpoint)
    note = message("note.passed_over", damaged=damaged) if damaged else Message()
    lock = locks.lock(run.lock_path, wait=5.0)
    if lock is None:
        raise Refused(
            tr("Run {id} is still being recorded in MLflow; try again in half a minute.", id=run.id)
        )
    try:
        status = run.status()
        if status.state == "queued":  # somebody else was quicker
            return
        if status.state not in ENDED:
            status = watch.finalize(run, None)
        if source is not None and not source.is_dir():
            raise Refused(
                tr(
                    "Run {id} cannot be resumed: {name} was just removed; try again.",
                    id=run.id,
                    name=source.name,
                )
            )
        run.keep_secrets(secrets or {})
        queue.enqueue(run.id)
        _write(run, status, source, note)
    finally:
        os.close(lock)


def after_reboot(run: Run) -> Status | None:
    """Queue a run again, first of all, that a reboot ended and whose `auto_resume` asks for it: its status then.

    None where there is nothing to do, which leaves the run to be buried. Once from each checkpoint: a run that takes
    the machine down with it must not do so for ever. Raises LockHeldError.
    """
    status = run.status()
    if (
        not run.values().get("auto_resume")
        or not watch.rebooted(run, status)
        or status.phase == watch.CLOSING
    ):
        return None
    if run.requested("stop") or run.requested("cancel"):
        return None
    try:
        source, damaged = _source(run, None)
    except Refused:
        return None
    start = source.name if source else BEGINNING
    if status.auto_resumed == start:
        return None
    from_there = source.name if source else ""
    said = message("note.resumed_by_itself", step=status.step, checkpoint=from_there, damaged=damaged)
    with locks.locking(run.lock_path, wait=0.5):
        queue.enqueue(run.id, first=True)
        # One write makes a live run a queued one: whoever dies before it leaves all this to be done again.
        return _write(run, replace(status, auto_resumed=start), source, said)


def _write(run: Run, status: Status, source: Path | None, note: Message) -> Status:
    """The caller holds the run's lock."""
    run.forget_requests()
    launch.forget_record(run)
    (watch.unsettled() / run.id).unlink(missing_ok=True)
    return run.update(**_again(status, source, note))


def _source(run: Run, checkpoint: str | Path | None) -> tuple[Path | None, str]:
    """The checkpoint to go on from, and a note when newer ones were passed over. Raises Refused."""
    if goes_on(run):
        return None, ""
    if checkpoint is not None:
        named = Path(checkpoint)
        path = named if named.is_absolute() else run.checkpoints / named
        if wrong := checkpoints.valid(path):
            raise Refused(
                tr(
                    "Run {id} cannot continue from {name}: {wrong} Choose another one.",
                    id=run.id,
                    name=path.name,
                    wrong=wrong,
                )
            )
        return path, ""
    damaged: list[str] = []
    for path in reversed(checkpoints.of(run)):
        with speaking(ENGLISH):  # a note keeps it
            wrong = checkpoints.valid(path)
        if wrong is None:
            return path, " ".join(damaged)
        damaged.append(wrong)
    if damaged or run.status().step:
        raise Refused(
            tr(
                "Run {id} cannot be resumed: no checkpoint is whole. {damaged}",
                id=run.id,
                damaged=" ".join(str(plain(one)) for one in damaged),
            ).strip()
        )
    return None, ""


def _again(status: Status, source: Path | None, note: Message) -> dict[str, Any]:
    """The changes that make an ended run a queued one."""
    return {
        "state": "queued",
        "phase": "",
        "cause": Message(),
        "remedies": [],
        "ended": 0.0,
        "began": 0.0,
        "worked": status.worked_now(),
        "pid": 0,
        "boot_id": "",
        "exit_code": None,
        "said": [*status.said, note] if note else status.said,
        "auto_resumed": status.auto_resumed,
        "resume_from": str(source) if source is not None else "",
        "resumes": status.resumes + 1,
    }
