"""A run need not train: another kind is queued, given a slot, watched, stopped, explained and kept in the same way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import counting
from tuner.config.config import load
from tuner.config.kinds import KINDS, named, trains, usual_for
from tuner.config.knobs import ConfigError
from tuner.config.writing import command
from tuner.jobs import control, queue, submit, supervisor
from tuner.runs.run import Run, series
from tuner.tracking.outcome import is_settled
from tuner.tracking.runs import RunFilter, get_row, list_runs
from tuner.tracking.store import open_store
from tuner.ui import run_view
from tuner.ui.chart_table import charts_of


@pytest.fixture
def counts(launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.counting")
    monkeypatch.setitem(KINDS, "count", counting.KIND)
    yield launching_home


def launched(**values: object) -> Run:
    return submit.submit(counting.CountConfig(**values), "a count")


def test_it_is_queued_runs_and_is_kept(counts: Path) -> None:
    queue.pause()
    run = launched(upto=7)
    assert [row.id for row in queue.queue()] == [run.id] and run.status().state == "queued"
    queue.pause(False)
    supervisor.ensure_supervisor()
    status = control.wait(run, timeout=60)
    assert (status.state, status.step, status.total_steps, status.part) == ("finished", 7, 7, 1.0), status
    assert str(status.doing) == "7 of 7 batches measured" and status.seconds["evaluating"] >= 0
    assert series(run.metrics()[0], "loss")[0] == list(range(1, 8))
    assert "step 7" in run.log_tail()
    while not is_settled(run):  # MLflow follows the run's own word
        time.sleep(0.05)
    row = get_row(run.id)
    assert row is not None and (row.stage, row.state, row.name) == ("count", "finished", "a count")
    assert row.params["upto"] == "7" and row.metrics["loss"] == pytest.approx(1 / 7)
    assert [r.id for r in list_runs(RunFilter(stage="count")).items] == [run.id]
    kept = {file.path for file in open_store().list_artifacts(run.id)}
    assert {"counted.txt", "config.yaml", "log.txt"} <= kept
    assert run_view.lead(run.values()) == "Counting"
    assert "loss" in [chart.key for chart in charts_of("count", row.metrics)]


@pytest.mark.slow  # how a run is stopped, and how it failed, does not know its kind: tests/test_jobs.py
def test_it_is_stopped_and_explained(counts: Path) -> None:
    slow, failing = launched(upto=1000, pause=0.05), launched(trips_at=2)
    while slow.status().step < 1:
        assert slow.status().state in ("queued", "preparing", "running")
        time.sleep(0.02)
    told = control.stop(slow)
    assert told.startswith(f"Run {slow.id} ends"), told
    assert control.wait(slow, timeout=60).state == "stopped", slow.log_tail() + str(slow.status())
    status = control.wait(failing, timeout=60)
    assert (status.state, status.reason_code) == ("failed", "out_of_memory")


def test_its_config_is_its_own() -> None:
    KINDS["count"] = counting.KIND
    try:
        config = load({"stage": "count", "upto": 3})
        assert config.plain() == {"stage": "count", "upto": 3, "pause": 0.0, "trips_at": 0, "use_cpu": True}
        assert load(config.plain()) == config
        assert command(config) == "tuner count \\\n  --upto 3"
        with pytest.raises(ConfigError, match="--upto is 0"):
            load({"stage": "count", "upto": 0})
        assert not trains("count") and trains("dpo") and "count" in named(where=lambda kind: not kind.reads)
    finally:
        del KINDS["count"]
    with pytest.raises(ConfigError, match="--stage is 'count'"):
        load({"stage": "count", "upto": 3})


def test_every_kind_of_rows_has_a_usual_stage() -> None:
    assert [usual_for(rows) for rows in ("text", "chat", "pairs", "labelled", "decisions")] == [
        "pt",
        "sft",
        "dpo",
        "kto",
        "decide",
    ]  # type: ignore[arg-type]
