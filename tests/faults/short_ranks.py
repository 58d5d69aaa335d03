"""A worker of three processes in place of tuner.worker: the real lock, status and ranks, and no training.

`python -m tests.faults.short_ranks RUN_ID`. Each process writes its pid to `pids/RANK`; a file `words` in the run's
folder names the rank that fails by an error of its own.
"""

from __future__ import annotations

import os
import sys
import time

from tuner import hardware
from tuner.jobs import ranks
from tuner.runs import reasons, worker_lock
from tuner.runs.run import Run

ranks.GRACE = 0.5


def note_pid(run: Run) -> None:
    folder = run.folder / "pids"
    folder.mkdir(exist_ok=True)
    fresh = folder / f".{ranks.rank()}"
    fresh.write_text(str(os.getpid()))
    fresh.rename(folder / str(ranks.rank()))


def first(run: Run) -> None:
    worker_lock.hold(run)
    run.update(state="preparing", started=time.time(), pid=os.getpid(), boot_id=hardware.boot_id())
    with ranks.Ranks(run, 3):
        note_pid(run)
        time.sleep(600)


def other(run: Run) -> int:
    ranks.die_with_the_first()
    note_pid(run)
    words = run.folder / "words"
    while not (words.exists() and words.read_text() == str(ranks.rank())):
        time.sleep(0.02)
    ranks.leave_word(run, ranks.rank(), reasons.from_exception(MemoryError(), run.values()))
    return 1


if __name__ == "__main__":
    run = Run(sys.argv[1])
    sys.exit(other(run) if ranks.rank() else first(run))
