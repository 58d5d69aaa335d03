"""A studio's folder that an earlier version left behind opens, resumes and compares.

`old_studio/studio.tar.xz` was made by the version of November 2026 (commit 95bc024): a preference run that finished and
registered its adapter, the same run killed at its sixth step, one whose loss became NaN, a note, a tag and a draft.
"""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner import worker
from tuner.jobs import queue, reconcile, resuming
from tuner.runs import checkpoints
from tuner.runs.run import Run, series
from tuner.tracking.adapters import list_adapters
from tuner.tracking.history import history
from tuner.tracking.runs import get_row, list_runs
from tuner.ui import run_view, state, words

pytestmark = pytest.mark.usefixtures("mirror_here")
FILE = Path(__file__).parent / "old_studio" / "studio.tar.xz"
MADE_IN = "/tmp/oldstudio"  # noqa: S108  where it was, for it holds absolute paths
FINISHED, KILLED, DIVERGED = (
    "f9216a6250804b3a94008954dfbfe53e",
    "0c70cc6d6c6645769a6262d05d740463",
    "cd0dab8b2b1b41da8b085b79d0624535",
)


def moved(home: Path) -> None:
    """The absolute paths of the database and of the runs' own records, as whoever moves a studio has to."""
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in db.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    change = f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?"
                    db.execute(change, (MADE_IN, str(home), f"%{MADE_IN}%"))
    for name in ("status", "tracking", "inputs"):
        for path in (home / "mlruns" / "runs").glob(f"*/{name}.json"):
            path.write_text(path.read_text().replace(MADE_IN, str(home)))


@pytest.fixture
def studio(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tarfile.open(FILE) as tar:
        tar.extractall(home, filter="data")
    moved(home)
    monkeypatch.chdir(home)
    yield home


def test_its_runs_stand_as_they_stood(studio: Path) -> None:
    rows = {row.id: row for row in list_runs().items}
    assert {id: row.state for id, row in rows.items()} == {
        FINISHED: "finished", KILLED: "failed", DIVERGED: "failed",
    }  # fmt: skip
    assert (rows[FINISHED].note, rows[FINISHED].tags) == ("the first one", {"purpose": "baseline"})
    assert "checkpoint-3 is kept" in rows[KILLED].reason and "NaN" in rows[DIVERGED].reason
    status = Run(KILLED).status()
    assert (status.reason_code, status.name) == ("killed", "killed step@6")
    assert words.sentence(status) == status.reason
    assert run_view.lead(Run(FINISHED).values()) == "Preference (DPO) of model on pairs"
    steps, values = history([FINISHED], "loss")[FINISHED]
    assert len(steps) == 12 and values[0] == pytest.approx(0.6931, abs=1e-3)
    (adapter,) = list_adapters()
    assert (adapter.run_id, adapter.stage) == (FINISHED, "dpo")
    assert adapter.folder is not None and (adapter.folder / "adapter_model.safetensors").is_file()
    assert state.kept_drafts() == ["half typed"] and state.load_draft("half typed")["learning_rate"] == "1e-"


def test_its_killed_run_goes_on_and_ends_as_the_one_left_alone(studio: Path) -> None:
    run = Run(KILLED)
    assert [path.name for path in checkpoints.of(run)] == ["checkpoint-3"]
    queue.pause()
    resuming.queue_again(run)
    assert worker.run_here(run) == 0
    reconcile.sync()
    row = get_row(KILLED)
    assert row is not None and row.state == "finished" and run.status().resumes == 1
    steps, losses = series(run.metrics()[0], "loss")
    alone = series(Run(FINISHED).metrics()[0], "loss")
    assert steps == alone[0] and losses == pytest.approx(alone[1], abs=1e-4)
    assert {row.run_id for row in list_adapters()} == {FINISHED, KILLED}
    assert history([KILLED], "loss")[KILLED][1].tolist() == pytest.approx(
        history([FINISHED], "loss")[FINISHED][1].tolist(), abs=1e-4
    )
