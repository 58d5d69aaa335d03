"""A run from its first line to its last in the worker: what it leaves behind when it ends well, badly, or is stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from faults.disk import SmallDisk
from safetensors.numpy import load_file

from tuner import worker
from tuner.config.config import make
from tuner.engine.live import LiveRun
from tuner.jobs import control, queue, submit, supervisor
from tuner.runs import checkpoints, files, locks, reasons, worker_lock
from tuner.runs.run import Run, series
from tuner.tracking.adapters import list_adapters
from tuner.tracking.runs import create_run, get_row

pytestmark = pytest.mark.usefixtures("mirror_here")


def run_of(home: Path, **changes: Any) -> Run:
    if not (home / "model").exists():
        tiny.model(home / "model")
        tiny.data(home / "data")
    values = {
        "model_name_or_path": "model",
        "stage": "dpo",
        "do_train": True,
        "dataset": "pairs",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "plot_loss": True,
    }
    return create_run(make(values | changes), "a run")


def test_a_run_that_ends_well(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(home, probe="chat", probe_samples=4, probe_new_tokens=4)
    assert worker.run_here(run) == 0
    status = run.status()
    assert str(status.doing) == "4 of 4 questions answered"
    assert len(json.loads((run.folder / "samples.json").read_text())["data"]) == 2 * 4
    assert (status.state, status.step, status.total_steps, status.reason) == ("finished", 4, 4, "")
    assert set(status.seconds) >= {
        "loading_libraries",
        "preparing_data",
        "training",
        "registering",
    }
    steps, values = series(run.metrics()[0], "loss")
    assert steps == [1, 2, 4]
    assert values[0] == pytest.approx(0.6931, abs=1e-4)
    made = {p.name for p in (run.folder / "output").iterdir()}
    assert made >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "trainer_state.json",
        "all_results.json", "train_results.json", "training_loss.png",
    }  # fmt: skip
    assert not {name for name in made if name.endswith((".bin", ".pt"))}
    row = get_row(run.id)
    assert row is not None
    assert row.state == "finished"
    assert row.metrics["loss"] == pytest.approx(values[-1], abs=1e-6)
    (adapter,) = list_adapters()
    assert adapter.run_id == run.id
    assert adapter.base == str(home / "model")
    said = capsys.readouterr().out
    assert "step 1  loss 0.6931" in said
    assert said.strip().endswith(f"{run.id} finished")
    assert (
        said.strip() == run.log_path.read_text().strip() or "step 1  loss 0.6931" in run.log_path.read_text()
    )
    assert not worker_lock.alive(run)


def test_a_run_that_diverges_registers_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(home, learning_rate=1e20, max_grad_norm=0.0, engine="trl", stage="sft", dataset="chat")
    assert worker.run_here(run) == 1
    status = run.status()
    assert (status.state, status.reason_code) == ("failed", "non_finite")
    assert "lower the learning rate" in status.reason
    assert status.remedies
    assert list_adapters() == []
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "Traceback" in run.log_path.read_text()


def test_a_run_with_nothing_to_learn_says_why(home: Path) -> None:
    run = run_of(home)
    (home / "data" / "pairs.json").write_text("[]")
    assert worker.run_here(run) == 1
    assert run.status().state == "failed"
    assert run.status().reason_code in ("data_error", "refused")
    assert "hold no rows" in run.status().reason


def test_sigterm_saves_a_checkpoint_first(home: Path) -> None:
    run = run_of(home, max_steps=2000, save_strategy="no", logging_steps=1)
    alive: list[bool] = []

    def stop() -> None:
        _wait(lambda: run.status().step >= 3, 60)
        alive.append(worker_lock.alive(run))
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    assert worker.run_here(run) == 0
    stopping.join()
    assert alive == [True]
    status = run.status()
    assert status.state == "stopped"
    kept = checkpoints.latest(run)
    assert kept is not None
    assert f"Stopped at step {checkpoints.step_of(kept)}" in status.reason
    assert json.loads((kept / "trainer_state.json").read_text())["global_step"] == checkpoints.step_of(kept)


def _wait(done: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture(params=["mounted", pytest.param("limited", marks=pytest.mark.faults)])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "disk", mounted=request.param == "mounted")
    if request.param == "mounted" and not small.real:
        pytest.skip("no file system may be mounted here")
    yield small
    small.close()


def test_a_disk_that_fills_while_a_run_saves(
    home: Path, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(small_disk.path))
    (small_disk.path / "mlruns").mkdir()
    leader = locks.lock(supervisor.leader_path())  # no other one is started
    files.keep_room()
    places = {"model_name_or_path": str(home / "model"), "dataset_dir": str(home / "data")}
    run = run_of(home, **places, max_steps=60, save_steps=5)
    fill_after_a_checkpoint(small_disk, monkeypatch)
    assert worker.run_here(run) == 1
    status = run.status()
    assert (status.state, status.reason_code) == ("failed", "disk_full"), status.reason
    assert "free some space" in status.reason and status.remedies == [reasons.RESUME]
    kept = checkpoints.latest(run)
    assert kept is not None and load_file(kept / "adapter_model.safetensors")
    assert set(run.checkpoints.iterdir()) == set(checkpoints.of(run))  # and no half of one

    other = Run("f" * 32)
    other.create(run.config(), "queued on a full disk")
    submit.place(other)
    queue.pause()
    assert queue.waiting() == [other.id] and queue.order().paused
    assert not small_disk.real or "Waits for room" in queue.short_of_room()

    small_disk.empty()
    control.resume(run)
    assert worker.run_here(run) == 0
    assert run.status().first_step == checkpoints.step_of(kept)
    steps, _ = series(run.metrics()[0], "loss")
    assert get_row(run.id).metrics["loss"] and steps[-1] == 60  # type: ignore[union-attr]
    os.close(leader or 0)


def fill_after_a_checkpoint(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the disk in the run's own thread, once: one that raced with it would eat the room that is kept for the end."""
    sealed, filled = LiveRun.sealed, []

    def then_fill(self: LiveRun, step: int, best: str | None) -> None:
        sealed(self, step, best)
        if not filled:
            filled.append(step)
            small_disk.fill()

    monkeypatch.setattr(LiveRun, "sealed", then_fill)


def test_a_studio_that_is_deleted_under_a_run_ends_it_in_one_sentence(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(home, max_steps=2000, save_steps=5)

    def delete() -> None:
        _wait(lambda: run.status().step >= 3, 60)
        (home / "mlruns").rename(home / "bin")

    deleting = threading.Thread(target=delete)
    deleting.start()
    assert worker.main(run.id) == 2
    deleting.join()
    assert "is gone; put it back" in capfd.readouterr().err.strip().splitlines()[-1]
    assert not (home / "mlruns" / "runs").exists()  # nothing was brought back, so nothing looks like a run


def test_the_time_left_is_right_whatever_the_clock_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = run_of(home), time.time
    live = LiveRun(run, run.config())
    live.began(0, 100)
    for step, hours in enumerate((-1, 1, 0), start=1):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        time.sleep(0.4)
        live.stepped(step, 100, 0.0, 0, 0.0)
        eta = run.status().eta
        assert eta is not None and 30 < eta < 600
    live.log.close()


def test_a_run_nobody_made_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main("nothing") == 2
    assert "There is no run nothing" in capsys.readouterr().err
