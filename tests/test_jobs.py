"""The queue, the supervisor, stop, resume and what is said of a dead worker: with real processes, locks and signals."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tuner.config.config import check
from tuner.jobs import control, liveness, submit, supervisor
from tuner.tracking.run import Run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh studio whose workers are short ones; whatever was started in it is gone afterwards."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    monkeypatch.setenv("TUNER_SUPERVISOR_IDLE", "3")
    monkeypatch.delenv("TUNER_FAULT", raising=False)
    yield tmp_path
    for process in psutil.process_iter():
        with_home = False
        try:
            with_home = process.environ().get("TUNER_HOME") == str(tmp_path) and process.pid != os.getpid()
        except psutil.Error:
            continue
        if with_home:
            process.kill()


def new_run(steps: int = 5, fault: str = "", **values: object) -> Run:
    """A run in the folder only: what the queue and the supervisor know of one."""
    config, _ = check({"model_name_or_path": "m", "max_steps": steps, "save_steps": 2, **values})
    assert config is not None
    run = Run(uuid.uuid4().hex)
    run.create(config, f"run {steps}")
    if fault:
        (run.folder / "fault").write_text(fault)
    return run


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def starts(run: Run) -> int:
    file = run.folder / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


# --- one run's way


def test_a_submitted_run_is_started_watched_and_ends(home: Path) -> None:
    run = submit.launch(new_run())
    status = control.wait(run, timeout=20)
    assert status.state == "finished"
    assert starts(run) == 1
    assert (run.log_path).exists()
    assert not liveness.alive(run)
    until(lambda: not supervisor.supervised())  # gone when idle


def test_stop_saves_first_and_resume_goes_on_from_there(home: Path) -> None:
    run = submit.launch(new_run(steps=500))
    until(lambda: run.status().step > 2)
    assert "saved" in control.stop(run)
    stopped = control.wait(run, timeout=10)
    assert stopped.state == "stopped" and 2 < stopped.step < 500
    assert control.why_not_resumable(run) is None
    control.resume(run)
    until(lambda: run.status().step > stopped.step)
    assert run.status().first_step == stopped.step
    control.stop(run, now=True)
    assert control.wait(run, timeout=10).state == "stopped"
    assert starts(run) == 2
