"""What of a run MLflow has, noted beside the run; and who may send for it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, fields

from tuner.runs import locks
from tuner.runs.files import replace_text
from tuner.runs.run import Run


@dataclass
class SyncState:
    """tracking.json: what of a run MLflow has. `steps` holds each metric's last step sent."""

    mlflow_id: str = ""
    described: bool = False
    offset: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    state: str = ""
    inputs: int = 0
    facts: bool = False
    artifacts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run) -> SyncState:
        known = {f.name for f in fields(cls)}
        with suppress(OSError, ValueError):
            raw = json.loads((run.folder / "tracking.json").read_text(encoding="utf-8"))
            return cls(**{k: v for k, v in raw.items() if k in known})
        return cls()

    def write(self, run: Run) -> None:
        replace_text(run.folder / "tracking.json", json.dumps(asdict(self)))


def mlflow_id(run_id: str) -> str:
    """MLflow's id of a run: the run's own, but of one here that a server has, for a server lets nobody choose."""
    return SyncState.of(Run(run_id)).mlflow_id or run_id


def is_mirrored(run: Run) -> bool:
    """Whether MLflow has every point that is in metrics.jsonl."""
    with suppress(FileNotFoundError):
        return SyncState.of(run).offset >= run.metrics_path.stat().st_size
    return True


def held(run: Run, wait: float = 0.0) -> AbstractContextManager[bool]:
    """Whether this process is the one that sends for the run; two at once would double a resumed run's steps."""
    return locks.trying(run.folder / "tracking.lock", wait)
