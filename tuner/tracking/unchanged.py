"""Answers of a SQLite file, kept for as long as nobody changed it: a page that is drawn again asks what it asked before.

SQLite tells a connection that stays open whether any other one, of whatever process, has committed since
(https://sqlite.org/pragma.html#pragma_data_version). Such a connection is held for each file and asked nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

Rows = list[tuple[Any, ...]]
Version = tuple[int, ...]
MOST_ROWS = 2**17
"""Of all answers together."""
MOST_FILES = 4


class Watch(NamedTuple):
    """The connection that is told of changes, the process and file that it is of, and its own number: each connection
    counts changes from its own beginning."""

    of: Version
    db: sqlite3.Connection
    number: int


class Answer(NamedTuple):
    version: Version
    rows: Rows


_lock = threading.Lock()
_numbers = itertools.count()
_watches: OrderedDict[str, Watch] = OrderedDict()
_answers: OrderedDict[tuple[str, Hashable], Answer] = OrderedDict()


def kept(file: Path, question: Hashable, ask: Callable[[], Rows]) -> Rows:
    """The answer to a question, which is asked only if the file is another one than when it was last. Not to be
    changed by whoever gets it."""
    key = (str(file), question)
    with _lock:
        now = _version(str(file))  # before asking: what changes meanwhile makes the answer an old one
        known = _answers.get(key)
        if known and now and known.version == now:
            _answers.move_to_end(key)
            return known.rows
    rows = ask()
    if now:
        with _lock:
            _keep(key, Answer(now, rows))
    return rows


def _keep(key: tuple[str, Hashable], answer: Answer) -> None:
    _answers[key] = answer
    _answers.move_to_end(key)
    weight = sum(len(one.rows) + 1 for one in _answers.values())
    while weight > MOST_ROWS and _answers:
        weight -= len(_answers.popitem(last=False)[1].rows) + 1


def _version(file: str) -> Version:
    """Another one with every change; empty where that cannot be told."""
    with contextlib.suppress(OSError, sqlite3.Error):
        stat = os.stat(file)  # noqa: PTH116  a third of the time
        of = (os.getpid(), stat.st_dev, stat.st_ino)
        watch = _watches.get(file)
        if watch is None or watch.of != of:
            watch = _watches[file] = Watch(of, _connection(file), next(_numbers))
            while len(_watches) > MOST_FILES:
                _watches.popitem(last=False)[1].db.close()
        ((version,),) = watch.db.execute("PRAGMA data_version").fetchall()
        # A backup that is copied over the file is no commit, but another size or time.
        return (*of, stat.st_size, stat.st_mtime_ns, watch.number, version)
    return ()


def _connection(file: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{Path(file).as_uri()}?mode=ro", uri=True, timeout=0, check_same_thread=False, isolation_level=None
    )
