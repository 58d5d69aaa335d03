"""The process that tells MLflow of a run while its worker lives: what it brings, and what is left when it dies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuner.config.config import make
from tuner.jobs import reconcile, watch
from tuner.runs.metrics import MetricsLog
from tuner.runs.run import Run
from tuner.tracking import mirror, outcome
from tuner.tracking.mirror_process import MirrorProcess
from tuner.tracking.runs import create_run
from tuner.tracking.store import TrackerError, open_store


@pytest.fixture
def run(home: Path) -> Run:
    made = create_run(make({"model_name_or_path": "model", "dataset": "pairs", "stage": "dpo"}), "a run")
    log = MetricsLog(made)
    log.log(1, {"loss": 0.5}, time.time())
    log.close()
    return made


def test_it_brings_what_a_run_measured_and_how_it_ended(run: Run) -> None:
    with MirrorProcess(run) as telling:
        outcome.conclude(run, "finished")
        assert telling.settle()
    row = open_store().get_run(run.id)
    assert (row.info.status, row.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert outcome.is_settled(run) and not run.status().tracking
    watch.finalize(run, exit_code=None)  # of a terminal's worker nobody else sees the exit code
    assert reconcile.pending() == []  # and no process is started that has nothing to tell


def test_what_it_did_not_tell_before_it_was_killed_is_told_later(run: Run) -> None:
    with MirrorProcess(run) as telling:
        telling._process.kill()
        with pytest.raises(TrackerError, match="writes to MLflow ended"):
            telling.register()
        outcome.conclude(run, "finished")
        assert not telling.settle()
    assert not outcome.is_settled(run) and "MLflow" in run.status().tracking
    watch.finalize(run, exit_code=None)
    assert reconcile.pending() == [run.id]
    assert mirror.sync(run) is not None
    assert outcome.is_settled(run) and not run.status().tracking


def test_it_goes_with_its_worker(run: Run) -> None:
    telling = MirrorProcess(run)
    telling._socket.shutdown(2)  # as the kernel does when a worker is killed
    assert telling._process.wait(60) == 0
    telling.__exit__(None, None, None)
