"""Telling MLflow how runs ended, in a process of its own: importing MLflow costs seconds and 200 MB.

`python -m tuner.jobs.reconcile` does it for every run with a mark in mlruns/unsettled and is safe to repeat.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tuner import paths, process
from tuner.jobs import queue, watch
from tuner.runs import locks, reasons, worker_lock
from tuner.runs.run import Run, all_runs
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text.lookup import tr
from tuner.tracking.sync_state import SyncState, is_mirrored

AGAIN, LONGEST = 60.0, 3600.0
"""Seconds to the next attempt after a first that failed, doubled with each further one up to the longest."""


def pending() -> list[str]:
    """The ids of the runs MLflow has yet to be told about: those that ended, and those that wait."""
    return [*_marked(), *_untold(queue.unended())]


def _marked() -> dict[str, float]:
    """The runs whose outcome it may not know, and when each was marked."""
    with suppress(FileNotFoundError):
        return {p.name: p.stat().st_mtime for p in sorted(watch.unsettled().iterdir())}
    return {}


def _untold(runs: dict[str, Status], since: float = 0.0) -> list[str]:
    """The runs that wait, made since then, that it does not have. Of one that begins its worker tells."""
    return [
        id
        for id, status in runs.items()
        if status.state == "queued" and status.created >= since
        if not (Run(id).folder / "tracking.json").exists() and not worker_lock.alive(Run(id))
    ]


def tracked() -> bool:
    """Whether there is a tracker to tell: nothing was ever tracked in a fresh home."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (paths.mlruns() / "mlflow.db").exists()


def due(runs: dict[str, Status] | None = None) -> bool:
    """Whether a run was made or ended since the last attempt, or that one failed long enough ago; and none is under way.

    `runs` are those that have not ended, if the caller knows them.
    """
    if locks.locked(_lock()) or not tracked():
        return False
    runs, tried = queue.unended() if runs is None else runs, 0.0
    with suppress(FileNotFoundError):
        tried = _stamp().stat().st_mtime
    since = 0.0 if abs(time.time() - tried) > pause() else tried
    return any(when >= since for when in _marked().values()) or bool(_untold(runs, since))


def pause() -> float:
    """Seconds between two attempts, by how many have failed in a row."""
    return min(AGAIN * 2.0 ** max(_failures() - 1, 0), LONGEST)


def _failures() -> int:
    """How many attempts in a row have failed, as the stamp notes it."""
    with suppress(OSError, ValueError):
        return int(_stamp().read_text() or 0)
    return 0


def _count(failed: bool) -> None:
    """Note in the stamp whether this attempt failed; its time stays that of the attempt's begin."""
    with suppress(OSError):
        began = _stamp().stat()
        _stamp().write_text(str(_failures() + 1) if failed else "")
        os.utime(_stamp(), ns=(began.st_atime_ns, began.st_mtime_ns))


def _stamp() -> Path:
    return paths.mlruns() / "settled.stamp"


def _lock() -> Path:
    """Held by the process that settles: it outlives a supervisor that was killed, and the next one must not start another."""
    return paths.mlruns() / "settle.lock"


def start() -> subprocess.Popen[bytes]:
    """A process that settles all that is pending."""
    _stamp().touch()
    return subprocess.Popen(
        [sys.executable, "-m", "tuner.jobs.reconcile"],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TUNER_HOME": str(paths.home())},
    )


def settle(run_id: str) -> bool:
    """Tell MLflow of one run how it ended, with all it measured, or that it waits; False where another process is at it.

    Raises TrackerError.
    """
    from tuner.tracking.mirror import sync as send

    run, made = Run(run_id), _marked().get(run_id)
    state = run.status().state
    if run.exists and state not in LIVE:
        wait = (
            30 if state in ENDED else 0
        )  # of one that waits another process tells, if it is at it, its worker
        if send(run, wait) is None and state in ENDED:
            return False
    if made == _marked().get(run_id):  # it may have been resumed and have ended again meanwhile
        (watch.unsettled() / run_id).unlink(missing_ok=True)
    return True


def sync() -> tuple[int, list[str]]:
    """Send MLflow everything it lacks, of every run of this studio: the points sent and what went wrong. `tuner sync`."""
    from tuner.runs.weights import BrokenWeights
    from tuner.tracking.mirror import sync as send
    from tuner.tracking.outcome import is_settled
    from tuner.tracking.store import TrackerError

    sent, troubles = 0, []
    for run in all_runs():
        status = run.status()
        known = SyncState.of(run).described and is_mirrored(run) and not status.tracking
        if known and (status.state not in ENDED or is_settled(run)):
            continue
        try:
            points = send(run, wait=5)
            if points is None:
                troubles.append(
                    tr("Run {id} is being sent by another process; ask again in a minute.", id=run.id)
                )
                continue
            sent += points
            (watch.unsettled() / run.id).unlink(missing_ok=True)
        except (TrackerError, BrokenWeights) as error:
            troubles.append(tr("Run {id}: {error}", id=run.id, error=error))
    return sent, troubles


def main() -> int:
    process.begin()
    return _main()


def _main() -> int:
    """Settle every pending run; 1 when some remain. Leaves it to the process that is at it already."""
    try:
        lock = locks.lock(_lock())
    except OSError as error:
        print(reasons.refused_by_system(error), file=sys.stderr, flush=True)
        return 1
    if lock is None:
        return 0
    try:
        return _settle_all()
    finally:
        os.close(lock)


def _settle_all() -> int:
    left = 0
    for run_id in pending():
        try:
            left += not settle(run_id)
        except Exception as error:  # noqa: BLE001  one run's trouble must not keep the others waiting
            left += 1
            print(
                tr("Run {run_id} is not settled in MLflow yet: {error}", run_id=run_id, error=error),
                file=sys.stderr,
                flush=True,
            )
    _count(bool(left))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
