"""Who is alive: told by kernel locks, never by a pid alone.

A worker holds its run's lock file from before its first line to its last breath. The supervisor takes the lock, starts
the worker with the open file inherited, and lets go of its own copy; so the lock is free the moment the worker is dead,
whoever else is dead or alive. A pid can be reused and a reboot reuses them all; a lock cannot.

The lock is also the right to write a run's status: the worker has it while it lives, and whoever cancels, requeues or
buries a run takes it first.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tuner import hardware
from tuner.runs import locks
from tuner.runs.run import Run
from tuner.text.lookup import tr

LOCK_VARIABLE = "TUNER_LOCK_FD"


def alive(run: Run) -> bool:
    """Whether the run's worker lives (or is being started, this very moment)."""
    return locks.locked(run.lock_path)


def hold(run: Run) -> int:
    """The worker's first act: hold the run's lock for its whole life. Returns an open file that is the caller's to close.

    The lock inherited from whoever started the worker is kept, and then until the process ends; without one it is
    taken. Children of the worker do not get it, so that a free lock means that the worker itself is gone. Raises LockHeldError
    when another worker has the run.
    """
    given = _inherited(run)
    handle = os.dup(given) if given is not None else locks.lock(run.lock_path, wait=1.0)
    if handle is None:
        raise locks.LockHeldError(
            tr("Run {id} already has a worker; `tuner wait {id}` waits for it.", id=run.id)
        )
    _held.update((h, run.lock_path) for h in (given, handle) if h is not None)
    return handle


_held: dict[int, Path] = {}


def _forget_in_child() -> None:
    """In a forked child: close the locks of its parent, if their numbers still stand for them."""
    for handle, path in _held.items():
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _inherited(run: Run) -> int | None:
    """The lock file that came with the process, if it is this run's."""
    with suppress(KeyError, ValueError, OSError):
        handle = int(os.environ.pop(LOCK_VARIABLE))
        if os.path.samestat(os.fstat(handle), run.lock_path.stat()):
            locks.take(handle)
            os.set_inheritable(handle, False)
            return handle
    return None


def worker_pid(run: Run) -> int | None:
    """The pid of the run's living worker, proven by the lock file it has open; None when there is none to be found."""
    status = run.status()
    if not status.pid or status.boot_id != hardware.boot_id() or not alive(run):
        return None
    return status.pid if has_open(status.pid, run.lock_path) else None


def has_open(pid: int, path: Path) -> bool:
    """Whether process `pid` has `path` open. Where the system does not tell, a live pid must do."""
    folder = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").exists():
        return _exists(pid)
    with suppress(OSError):
        wanted = path.stat()
        for entry in folder.iterdir():
            with suppress(OSError):
                if os.path.samestat(entry.stat(), wanted):
                    return True
    return False


def _exists(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False
