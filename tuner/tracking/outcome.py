"""How a run ends: finished, failed with the reason in words, stopped, or interrupted; never left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.tracking import checkpoints
from tuner.tracking.inputs import record_inputs
from tuner.tracking.ledger import Ledger
from tuner.tracking.mirror import sync
from tuner.tracking.registration import waits
from tuner.tracking.run import ENDED, LIVE, Run, State, all_runs
from tuner.tracking.store import TrackerError

__all__ = ["finish", "record_inputs", "settle", "sweep"]

# Files of an output folder that belong to the record of a run; weights go to the registry.
RECORDS = (
    "*_results.json",
    "trainer_state.json",
    "trainer_log.jsonl",
    "*.png",
    "generated_predictions.jsonl",
)
LARGEST_RECORD = 50 * 2**20  # bytes; a log that ran wild stays in the run's folder
SECRETS_KEPT = 7 * 24 * 3600
"""Seconds after its end for which a run that may be resumed keeps the tokens it was given."""
_settled: dict[str, int] = {}
PENDING = "The run is over, but MLflow does not have all of it yet; `tuner sync` sends the rest."


def finish(
    run: Run,
    state: State,
    reason: str = "",
    *,
    code: str = "",
    output: Path | None = None,
    timeout: float = 30.0,
    **changes: Any,
) -> bool:
    """Set a run's outcome: in its folder at once, in MLflow within `timeout` seconds or by a later sync.

    `reason` is a sentence, `code` a word for programs, `output` the folder whose records are kept as artifacts;
    `changes` are further fields of the status. Returns whether MLflow has it all.
    """
    if state not in ENDED:
        raise ValueError(f"A run does not end as {state}; it ends as {', '.join(sorted(ENDED))}.")
    before = run.status()
    seconds = {**before.seconds, **changes.pop("seconds", {})}
    extra = before.extra | changes.pop("extra", {}) | {"artifacts": _records(run, output)}
    run.update(
        state=state,
        reason=reason,
        reason_code=code,
        ended=before.ended_now(),
        began=0.0,
        worked=before.worked_now(),
        seconds=seconds,
        extra=extra,
        **changes,
    )
    if state == "finished" or not checkpoints.to_go_on_from(
        run
    ):  # any other run may be resumed and need them
        run.forget_secrets()
    return settle(run, timeout)


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
        run.update(tracking=PENDING)
        return False
    return True


def is_settled(run: Run) -> bool:
    """Whether MLflow knows of the outcome in the run's folder, and has its adapter."""
    status = run.status()
    return Ledger.of(run).state.partition("@")[0] == status.state and not waits(run)


def forget_old_secrets() -> list[Run]:
    """Remove the tokens of runs that ended long ago and that nobody resumed since; those runs."""
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
    kept = [p for p in [*found, run.log_path] if p.is_file() and p.stat().st_size <= LARGEST_RECORD]
    return [str(p.absolute()) for p in kept]


def sweep(
    alive: Callable[[Run], bool],
    explain: Callable[[Run], tuple[State, str, str]] | None = None,
) -> list[Run]:
    """End every run that is said to be live here but has no worker; those ended now.

    `explain` gives state, reason and code of a dead one. Runs that ended while MLflow was away are settled too.
    """
    ended = []
    for run in _unsettled():
        status = run.status()
        if status.state in LIVE and not alive(run):
            state, reason, code = explain(run) if explain else _lost()
            finish(run, state, reason, code=code)
            ended.append(run)
        elif status.state in ENDED and not is_settled(run):
            settle(run)
    return ended


def _unsettled() -> Iterator[Run]:
    """Runs whose outcome may be open; one seen settled is not read again until its status is written again."""
    for run in all_runs():
        with suppress(FileNotFoundError):
            written = (run.folder / "status.json").stat().st_mtime_ns
            if _settled.get(run.id) == written:
                continue
            yield run
            if run.status().state in ENDED and is_settled(run):
                _settled[run.id] = written


def _lost() -> tuple[State, str, str]:
    return (
        "interrupted",
        "The worker is gone and left no word; resume goes on from the last checkpoint.",
        "lost",
    )
