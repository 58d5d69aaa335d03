"""Locks between processes: of a file or a folder, by flock, so that the kernel lets go for whoever dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.text.lookup import tr

MADE = os.O_RDWR | os.O_CREAT
"""How a file is opened to be locked: made where there is none. A folder that is to be locked is opened to be read."""


class LockHeldError(Exception):
    """Somebody else holds the lock; the message says who and what to do."""


def lock(path: Path, wait: float = 0.02, how: int = MADE) -> int | None:
    """The open file of an exclusive lock on `path`, or None when another process holds it for `wait` seconds.

    A reader's probe holds a lock for a moment, so one failed try proves nothing. Close the file to let go. Raises
    OSError where the file cannot be made; its folder must be there, for a folder that was deleted stays deleted.
    """
    handle = os.open(path, how | os.O_CLOEXEC, 0o666)  # less the umask, as of any other file
    end, pause = time.monotonic() + wait, 0.002
    while not take(handle):
        if time.monotonic() >= end:
            os.close(handle)
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.01)  # often enough to meet a gap where others write without a pause
    return handle


def take(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file, if nobody else has it; whether it is locked now."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def locked(path: Path) -> bool:
    """Whether a process holds an exclusive lock on `path`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not take(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


@contextmanager
def trying(path: Path, wait: float, how: int = MADE) -> Iterator[bool]:
    """Hold the lock on `path` for a block, if it can be had within `wait` seconds: whether it is held."""
    handle = lock(path, wait, how)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def locking(path: Path, wait: float = 10.0, how: int = MADE) -> Iterator[None]:
    """Hold the lock on `path` for a block. Raises LockHeldError after `wait` seconds."""
    with trying(path, wait, how) as held:
        if not held:
            raise LockHeldError(
                tr("{name} is held by another process; try again in a moment.", name=path.name)
            )
        yield
