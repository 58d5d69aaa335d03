"""Folders that are computed once and kept: complete or absent, whoever dies or races on the way."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tuner.runs import locks


def build_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, which `make` fills on the first call: in a folder beside it that is synced, then renamed.

    A second process waits on the lock and finds the folder done; what a killed one left is cleared away.
    Whatever `make` raises goes through, and nothing of it stays.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with locks.locking(target.with_name(f".{target.name}.lock"), wait=math.inf):
        if target.is_dir():
            return target
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            for path in partial.iterdir():
                _sync(path)
            partial.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
