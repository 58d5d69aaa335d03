"""How a run ends: finished, failed with the reason in words, stopped, or interrupted; never left running."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.runs import checkpoints
from tuner.runs.inputs import record_inputs
from tuner.runs.run import Run
from tuner.runs.status import ENDED, State
from tuner.text.lookup import tr
from tuner.text.message import Message, message
from tuner.tracking.mirror import state_mark, sync
from tuner.tracking.registration import waits
from tuner.tracking.store import TrackerError
from tuner.tracking.sync_state import SyncState

__all__ = ["conclude", "finish", "record_inputs", "settle"]

# Files of an output folder that belong to the record of a run; weights go to the registry.
RECORDS = (
    "*_results.json",
    "trainer_state.json",
    "trainer_log.jsonl",
    "*.png",
    "generated_predictions.jsonl",
)
LARGEST_RECORD = 50 * 2**20  # bytes; a log that ran wild stays in the run's folder
HALF_KEPT = 3600
"""Seconds within which a folder is made to the end, by far."""
SECRETS_KEPT = 7 * 24 * 3600
"""Seconds after its end for which a run that may be resumed keeps the tokens it was given."""


def finish(
    run: Run,
    state: State,
    cause: Message = Message(),  # noqa: B008  frozen
    *,
    output: Path | None = None,
    files: Sequence[Path] = (),
    timeout: float = 30.0,
    **changes: Any,
) -> bool:
    """Set a run's outcome: in its folder at once, as `conclude` does, in MLflow within `timeout` seconds or by a later
    sync. Returns whether MLflow has it all.
    """
    conclude(run, state, cause, output=output, files=files, **changes)
    return settle(run, timeout)


def conclude(
    run: Run,
    state: State,
    cause: Message = Message(),  # noqa: B008  frozen
    *,
    output: Path | None = None,
    files: Sequence[Path] = (),
    **changes: Any,
) -> None:
    """Set a run's outcome in its folder.

    `cause` is why, empty where it finished; `output` the folder whose records are kept as artifacts, `files` others;
    `changes` are further fields of the status.
    """
    if state not in ENDED:
        raise ValueError(
            tr(
                "A run does not end as {state}; it ends as {sorted}.",
                state=state,
                sorted=", ".join(sorted(ENDED)),
            )
        )
    before = run.status()
    run.update(
        state=state,
        cause=cause,
        ended=before.ended_now(),
        began=0.0,
        worked=before.worked_now(),
        artifacts=[*_records(run, output), *(str(file.absolute()) for file in files)],
        **changes,
    )
    if state == "finished" or not checkpoints.to_go_on_from(
        run
    ):  # any other run may be resumed and need them
        run.forget_secrets()


def settle(run: Run, timeout: float = 30.0) -> bool:
    """Bring MLflow up to an ended run; whether that was done within `timeout` seconds."""
    done = threading.Event()

    def work() -> None:
        with suppress(TrackerError, OSError, ValueError):
            if sync(run, wait=timeout) is not None:
                done.set()

    # A call into a dead tracker can hang for longer than anyone waits at the end of a run.
    thread = threading.Thread(target=work, name="settle", daemon=True)
    thread.start()
    thread.join(timeout)
    if not (done.is_set() and is_settled(run)):
        run.update(tracker=message("tracker.pending"))
        return False
    return True


def is_settled(run: Run) -> bool:
    """Whether MLflow knows of the outcome in the run's folder, and has its adapter."""
    status = run.status()
    return SyncState.of(run).state == state_mark(status) and not waits(run)


def forget_old_secrets() -> list[Run]:
    """Remove the tokens of runs that ended long ago and that nobody resumed since; those runs.

    With them go folders that somebody who died never made to the end.
    """
    for half in paths.runs().glob(".*"):
        if time.time() - half.stat().st_mtime > HALF_KEPT:
            shutil.rmtree(half, ignore_errors=True)
    forgotten = []
    for path in paths.runs().glob("*/secrets.json"):
        run = Run(path.parent.name)
        status = run.status()
        if status.state in ENDED and time.time() - status.ended > SECRETS_KEPT:
            run.forget_secrets()
            forgotten.append(run)
    return forgotten


def _records(run: Run, output: Path | None) -> list[str]:
    folder = output or run.folder / "output"
    found = [p for pattern in RECORDS for p in sorted(folder.glob(pattern))] if folder.is_dir() else []
    kept = [
        p
        for p in [*found, run.log_path, run.folder / "plan.json"]
        if p.is_file() and p.stat().st_size <= LARGEST_RECORD
    ]
    return [str(p.absolute()) for p in kept]
