"""The disk under the studio: small files replaced whole, with room kept for them, so that a full disk can be told of.

A checkpoint that does not fit fills a disk to its last byte. What must still be written then is little: why the run
ended, and what people do to the queue. A file of random bytes holds that room and is given up for it.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tuner import paths

T = TypeVar("T")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
RESERVE = 2 * 2**20  # bytes: a thousand small files
LEAST_FREE = 50 * 2**20
"""Bytes that must be free for a run to be started: less than that does not hold its first checkpoint."""


def reserve() -> Path:
    """The file whose room is given up on a full disk."""
    return paths.mlruns() / "reserve"


def keep_room() -> None:
    """Set the reserve aside, where there is none and some room."""
    with suppress(OSError):
        if reserve().exists() or free() < 4 * RESERVE:
            return
        with replacing(reserve()) as fresh:
            fresh.write_bytes(os.urandom(RESERVE))  # zeros would take no room where files are compressed


def insist(write: Callable[[], T]) -> T:
    """Do a small write; on a full disk once more, with the room of the reserve. Raises OSError.

    What is left of that room is taken back at once: checkpoints small enough would fill it, and the end needs it.
    """
    try:
        return write()
    except OSError as error:
        if error.errno not in FULL:
            raise
    reserve().unlink(missing_ok=True)
    try:
        return write()
    finally:
        _take_back()


def _take_back() -> None:
    piece = os.urandom(2**16)
    with suppress(OSError), reserve().open("xb", buffering=0) as file:  # another process may have been faster
        for _ in range(RESERVE // len(piece)):
            file.write(piece)


def replace_text(path: Path, text: str) -> None:
    """Replace a small file whole, so that a reader never sees half of one. Raises OSError."""
    insist(lambda: _replace(path, text))


def _replace(path: Path, text: str) -> None:
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path`, not there yet, which takes its place when the block ends well; else nothing of it stays."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with suppress(OSError):
        fresh.unlink()  # of a dead process of that number
    try:
        yield fresh
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def free() -> int:
    """Bytes free under the studio; without end where the system does not tell."""
    with suppress(OSError):
        return shutil.disk_usage(paths.mlruns()).free
    return 2**63


def must_be_writable(folder: Path) -> None:
    """Make a folder if it is missing. Raises OSError, naming it, where nothing can be written there."""
    insist(lambda: folder.mkdir(0o700, parents=True, exist_ok=True))
    if not os.access(folder, os.W_OK | os.X_OK):
        why = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(why, os.strerror(why), str(folder))
