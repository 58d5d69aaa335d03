"""A program that dies at a named point while it makes a run: `TUNER_FAULT=point python -m tests.faults.making`.

What lies in MLflow and in the run's folder then is what the next one has to make sense of.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from tuner.config.config import make
from tuner.runs import run
from tuner.tracking import runs, sync_state


def points() -> dict[str, tuple[Any, str]]:
    """The call before which it dies, by the name of what is not done then."""
    from mlflow import MlflowClient

    return {
        "row-unmade": (MlflowClient, "create_run"),
        "row-unscheduled": (MlflowClient, "update_run"),
        "folder-unmade": (run.Run, "create"),
        "status-unwritten": (run.Run, "write"),
        "note-unwritten": (sync_state.SyncState, "write"),
        "undescribed": (MlflowClient, "log_batch"),
        "parent-unended": (MlflowClient, "set_terminated"),
    }


NAMES = [
    "row-unmade", "row-unscheduled", "folder-unmade", "status-unwritten", "note-unwritten", "undescribed", "parent-unended",
]  # fmt: skip


def arm(point: str) -> None:
    """Let this process be killed at a point."""

    def deadly(*words: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(*points()[point], deadly)


if __name__ == "__main__":
    point = os.environ.pop("TUNER_FAULT")
    arm(point)
    if point == "parent-unended":
        runs.create_parent("a sweep")
    runs.create_run(make({"model_name_or_path": "m", "max_steps": 2}), "unlucky")
    sys.exit("it lives")
