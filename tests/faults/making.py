"""A program that dies at a named point while it makes a run: `TUNER_FAULT=point python -m tests.faults.making`.

What lies in the run's folder and in MLflow then is what the next one has to make sense of.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tuner.config.config import make
from tuner.runs import run
from tuner.tracking import mirror, new_row, runs, sync_state


def points() -> dict[str, tuple[Any, str]]:
    """The call before which it dies, by the name of what is not done then."""
    from mlflow import MlflowClient

    return {
        "config-unwritten": (run, "replace_text"),
        "secret-unwritten": (run.Run, "keep_secrets"),
        "unnamed": (Path, "rename"),
        "row-unmade": (new_row, "insert"),
        "note-unwritten": (sync_state.SyncState, "write"),
        "undescribed": (MlflowClient, "log_batch"),
        "server-untold": (MlflowClient, "create_run"),
        "server-unscheduled": (MlflowClient, "update_run"),
    }


HALF = ["config-unwritten", "secret-unwritten", "unnamed"]
WHOLE = ["row-unmade", "note-unwritten", "undescribed"]
AT_A_SERVER = ["server-untold", "server-unscheduled", "note-unwritten"]


def arm(point: str) -> None:
    """Let this process be killed at a point."""

    def deadly(*words: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(*points()[point], deadly)


if __name__ == "__main__":
    point = os.environ.pop("TUNER_FAULT")
    arm(point)
    made = runs.create_run(
        make({"model_name_or_path": "m", "max_steps": 2}), "unlucky", tags=runs.sweep_tags("all")
    )
    mirror.sync(made)
    sys.exit("it lives")
