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
from tuner.jobs import watch
from tuner.runs import locks, reasons
from tuner.runs.run import Run, all_runs
from tuner.runs.status import ENDED
from tuner.tracking import creation

AGAIN, LONGEST = 60.0, 3600.0
"""Seconds to the next attempt after a first that failed, doubled with each further one up to the longest."""


def pending() -> list[str]:
    """The ids of the runs MLflow has yet to be told about."""
    with suppress(FileNotFoundError):
        return sorted(p.name for p in watch.unsettled().iterdir())
    return []


def tracked() -> bool:
    """Whether there is a tracker to tell: nothing was ever tracked in a fresh home."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (paths.mlruns() / "mlflow.db").exists()


def due() -> bool:
    """Whether a run ended since the last attempt, or that one failed long enough ago; and none is under way."""
    if locks.locked(_lock()):
        return False
    marks = [*(watch.unsettled() / name for name in pending()), *creation.abandoned()]
    if not tracked() or not marks:
        return False
    with suppress(FileNotFoundError):
        tried = _stamp().stat().st_mtime
        newest = max(mark.stat().st_mtime for mark in marks)
        return newest >= tried or abs(time.time() - tried) > pause()
    return True


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
    """Tell MLflow how one run ended, with all it measured; False where another process is at it. Raises TrackerError."""
    from tuner.tracking.mirror import sync as send

    mark, run = watch.unsettled() / run_id, Run(run_id)
    made = mark.stat().st_mtime_ns
    if run.exists and run.status().state in ENDED and send(run, wait=30) is None:
        return False
    with suppress(FileNotFoundError):
        if mark.stat().st_mtime_ns == made:  # it may have been resumed and have ended again meanwhile
            mark.unlink()
    return True


def sync() -> tuple[int, list[str]]:
    """Send MLflow everything it lacks, of every run of this studio: the points sent and what went wrong. `tuner sync`."""
    from tuner.runs.weights import BrokenWeights
    from tuner.tracking.mirror import sync as send
    from tuner.tracking.outcome import is_settled
    from tuner.tracking.store import TrackerError
    from tuner.tracking.sync_state import is_mirrored

    sent, troubles = 0, []
    try:
        creation.sweep()
    except TrackerError as error:
        troubles.append(str(error))
    for run in all_runs():
        status = run.status()
        known = is_mirrored(run) and not status.tracking
        if known and (status.state not in ENDED or is_settled(run)):
            continue
        try:
            points = send(run, wait=5)
            if points is None:
                troubles.append(f"Run {run.id} is being sent by another process; ask again in a minute.")
                continue
            sent += points
            (watch.unsettled() / run.id).unlink(missing_ok=True)
        except (TrackerError, BrokenWeights) as error:
            troubles.append(f"Run {run.id}: {error}")
    return sent, troubles


def _sweep() -> int:
    """End what was never made to the end; 1 when that could not be done now."""
    try:
        for run_id in creation.sweep():
            print(f"Run {run_id} was never made to the end.", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001  the others must not wait for it
        print(f"Half made runs are not ended in MLflow yet: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


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
    left = _sweep()
    for run_id in pending():
        try:
            left += not settle(run_id)
        except Exception as error:  # noqa: BLE001  one run's trouble must not keep the others waiting
            left += 1
            print(f"Run {run_id} is not settled in MLflow yet: {error}", file=sys.stderr, flush=True)
    _count(bool(left))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
