"""The folder that an export makes: filled under another name beside it, and given its own when all of it is there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner import paths, private
from tuner.jobs.exporting import RECORD
from tuner.runs import locks


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends well; a process that is killed leaves nothing of that name.

    What stood there stays until then. What an export that was killed left behind is cleared away by the next one.
    """
    with private.as_the_person():
        target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    with locks.locking(_lock(target), wait=math.inf):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
            private.share(fresh, *fresh.rglob("*"))
            _sync(fresh)
            _exchange(fresh, target, old)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _lock(target: Path) -> Path:
    """The lock of a folder that is filled, among the studio's own files: taken away, it would be two for those who wait."""
    folder = paths.mlruns() / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]}.lock"


def _exchange(fresh: Path, target: Path, old: Path) -> None:
    """Put the new folder in the old one's place. Between the two renames neither has the name, and both are whole."""
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync_one(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """See to it that all of a folder is on the disk before its name says so."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files(folder: Path) -> list[dict[str, Any]]:
    """The files of an export, each with its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD)
    return [{"name": str(path.relative_to(folder)), "size": path.stat().st_size} for path in found]


def record(folder: Path, facts: Any) -> None:
    """Write down what an export is; by this file the studio knows it as its own."""
    text = json.dumps({"made_by": "tuner", **facts}, ensure_ascii=False, indent=1)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
