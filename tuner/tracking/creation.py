"""A run is made in two places, MLflow and a folder here, and whoever makes it may die between the two.

So a mark is set before: a file that its maker holds locked until both halves are there, and whose name the row in
MLflow carries as a tag. A mark that nobody holds is what a dead maker left, and says which row to look for.
"""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.runs.files import insist
from tuner.runs.run import Run
from tuner.text.message import message, to_tag
from tuner.tracking import store
from tuner.tracking.rows import SWEEP
from tuner.tracking.store import explained, open_store

TAG = "tuner.creation"


def marks() -> Path:
    """The folder of the marks, one empty file each."""
    return paths.mlruns() / "creating"


@contextmanager
def creating() -> Iterator[dict[str, str]]:
    """Make a run in this block, with these tags on its row. The mark goes when the block ends well.

    Raises OSError where the studio's folder cannot be written.
    """
    token = uuid.uuid4().hex
    insist(lambda: marks().mkdir(parents=True, exist_ok=True))
    unlocked, mark = marks() / f".{token}", marks() / token
    with unlocked.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        unlocked.rename(mark)  # nobody may see it before it is held
        yield {TAG: token}
        mark.unlink(missing_ok=True)


def abandoned() -> list[Path]:
    """The marks that nobody holds any more."""
    with suppress(FileNotFoundError):
        return [mark for mark in sorted(marks().glob("[!.]*")) if not _held(mark)]
    return []


def _held(mark: Path) -> bool:
    try:
        with mark.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError:  # held, or done this moment
        return True


def sweep() -> list[str]:
    """End in MLflow what dead makers left there half made; the ids of those runs. Raises TrackerError."""
    ended: list[str] = []
    for mark in abandoned():
        with explained():
            ended += _end(mark.name)
        mark.unlink(missing_ok=True)
    return ended


def _end(token: str) -> Iterator[str]:
    client = open_store()
    for row in client.search_runs([store.experiment_id(client)], f"tags.`{TAG}` = '{token}'"):
        run, open_there = Run(row.info.run_id), row.info.status in ("SCHEDULED", "RUNNING")
        if SWEEP in row.data.tags and open_there:
            client.set_terminated(
                row.info.run_id, "FINISHED"
            )  # it holds others together, and is whole without a folder
        elif open_there and not _is_whole(run):
            _interrupt(client, run)
            yield run.id


def _is_whole(run: Run) -> bool:
    """Whether the folder was made to the end, so that the run is in the queue or beyond."""
    return run.exists and run.status().created > 0


def _interrupt(client: Any, run: Run) -> None:
    for key, value in {
        "state": "interrupted",
        "reason": to_tag(message("lost")),
        "reason_code": "lost",
    }.items():
        client.set_tag(run.id, key, value)
    client.set_terminated(run.id, "KILLED")
    shutil.rmtree(run.folder, ignore_errors=True)
