"""Who did what: the person in whose name this thread acts, the tag of a run they made, and an audit trail in files.

What is done to a run lies in its folder, events.jsonl; what concerns no run, or one whose folder is gone, in the file of
that name in mlruns/. Nobody is named where nobody logs in, and then nothing is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from tuner import paths
from tuner.redact import redact
from tuner.runs.run import Run

BY = "tuner.by"
"""The tag that names who launched a run."""
LONGEST = 300
_person: ContextVar[str] = ContextVar("person", default="")


@dataclass(frozen=True)
class Event:
    """One thing done: `time` in seconds since the epoch, `what` in a word, `about` what else is to be said."""

    time: float
    by: str
    what: str
    about: str = ""


@contextmanager
def acting(name: str) -> Iterator[None]:
    """Do what this block does in somebody's name."""
    token = _person.set(name)
    try:
        yield
    finally:
        _person.reset(token)


def by() -> str:
    """In whose name this thread acts; empty for nobody's."""
    return _person.get()


def record(what: str, run_id: str = "", about: str = "") -> None:
    """Write down that this person did something. Raises OSError where it cannot be written."""
    event = Event(time.time(), by(), what, redact(about)[:LONGEST])
    where = _file(Run(run_id)) if run_id and Run(run_id).exists else paths.mlruns() / "events.jsonl"
    if run_id and where.parent == paths.mlruns():
        event = Event(event.time, event.by, what, f"{run_id} {event.about}".strip())
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.open("a", encoding="utf-8") as file:  # one short write at the end of a file is whole
        file.write(json.dumps(asdict(event)) + "\n")


def of(run: Run) -> list[Event]:
    """What was done to a run, in order."""
    return list(_read(_file(run)))


def _file(run: Run) -> Path:
    return run.folder / "events.jsonl"


def _read(path: Path) -> Iterator[Event]:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, TypeError):
                yield Event(**json.loads(line))
