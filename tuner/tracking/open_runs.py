"""The open runs: those that have not ended, or have and the tracker was not told all of it. One mark each in mlruns/open.

Ten thousand folders are too many to be asked, at every look, which of them wait or work. A mark is set before a status
is written that makes a run open, and taken away under the lock of its status once the tracker knows its end and every
point. So one too many costs a look, and one too few there never is. A studio without marks gets them by one walk through
all its folders; so does one whose supervisor starts, for a folder may have been put there by hand.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.runs.run import Run, mark_open, open_marks
from tuner.runs.status import ENDED
from tuner.tracking.sync_state import SyncState, is_mirrored


def ids() -> list[str]:
    """The open runs, in no order. An ended one may be among them. Raises OSError where the marks cannot be made."""
    if not _walked().exists():
        walk()
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(open_marks()) if not name.startswith(".")]  # noqa: PTH208
    return []


def _walked() -> Path:
    """What says that every run made before there were marks has its own."""
    return open_marks() / ".walked"


def walk() -> None:
    """Mark every run that is open, by what its folder says, and unmark those that are not."""
    root = str(paths.runs())
    with suppress(FileNotFoundError):
        for name in os.listdir(root):  # noqa: PTH208
            if not name.startswith(".") and _is_open(f"{root}/{name}"):
                mark_open(name)
    with suppress(FileNotFoundError):
        for name in os.listdir(open_marks()):  # noqa: PTH208
            close(Run(name)) if not name.startswith(".") else None
    # A studio that nobody may write to is walked through each time, and one that was deleted is not brought back.
    with suppress(OSError):
        open_marks().mkdir(exist_ok=True)
        _walked().touch()


def _is_open(folder: str) -> bool:
    """`closed`, told from the files as they are: ten thousand Run objects would take most of the time."""
    status, ledger = _read(f"{folder}/status.json"), _read(f"{folder}/tracking.json")
    unsaid = (status.get("tracker") or {}).get("code") or status.get(
        "tracking"
    )  # the second in an older studio's
    if status.get("state") not in ENDED or unsaid:
        return True
    if str(ledger.get("state", "")).partition("@")[0] != status["state"]:
        return True
    try:
        return bool(ledger.get("offset", 0) < os.stat(f"{folder}/metrics.jsonl").st_size)  # noqa: PTH116
    except OSError:
        return False


def _read(path: str) -> dict[str, Any]:
    with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        raw = json.load(file)
        return raw if isinstance(raw, dict) else {}
    return {}


def close(run: Run) -> None:
    """Take the mark away from a run that ended, if the tracker knows it all, and from one whose folder is gone."""
    with suppress(OSError, ValueError):
        if not run.folder.is_dir():
            (open_marks() / run.id).unlink(missing_ok=True)
            return
        with run.writing() as held:
            if held and closed(run):
                (open_marks() / run.id).unlink(missing_ok=True)


def closed(run: Run) -> bool:
    """Whether a run has ended and the tracker knows its end and every point."""
    status = run.status()
    if status.state not in ENDED or status.tracking:
        return False
    return SyncState.of(run).state.partition("@")[0] == status.state and is_mirrored(run)
