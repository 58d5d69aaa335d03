"""What the studio writes is for its user alone, whatever the umask; what goes to a place that the person named is as theirs.

A process of the studio works with umask 077, so that all its libraries write private files too. The person's own umask
holds for output_dir, tokenised rows, and caches that several people may share.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuner import paths

VARIABLE = "TUNER_UMASK"
"""The person's umask in octal, for the processes that a private one starts."""
PRIVATE = 0o077


def begin() -> None:
    """Let this process write private files from here on, and close the studio's folder to others if it is there."""
    before = os.umask(PRIVATE)
    os.environ.setdefault(VARIABLE, f"{before:o}")
    with suppress(OSError):
        paths.mlruns().chmod(0o700)


def persons_umask() -> int:
    """The umask of the person who started this process, or the one that started it."""
    with suppress(ValueError, KeyError):
        return int(os.environ[VARIABLE], 8) & 0o777
    before = os.umask(PRIVATE)
    os.umask(before)
    return before


@contextmanager
def as_the_person() -> Iterator[None]:
    """Write with the person's umask: for a place that is theirs, not the studio's."""
    before = os.umask(persons_umask())
    try:
        yield
    finally:
        os.umask(before)


def close(folder: Path) -> None:
    """Take from others what was copied into a folder of the studio with the permissions of where it came from."""
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            mode = path.lstat().st_mode
            if mode & PRIVATE and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~PRIVATE)


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Let what is made in a folder of the person's, in this block, have the permissions that their umask gives."""
    before = set(folder.rglob("*")) if folder.is_dir() else set()
    try:
        yield
    finally:
        share(*(set(folder.rglob("*")) - before))


def share(*made: Path) -> None:
    """Give these files and folders the permissions that the person's umask gives, where this user may set them."""
    umask = persons_umask()
    for path in made:
        with suppress(OSError):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                path.chmod(0o777 & ~umask)
            elif stat.S_ISREG(mode):
                path.chmod((0o777 if mode & 0o100 else 0o666) & ~umask)
