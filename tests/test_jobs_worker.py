"""The same way with the real worker: a tiny model in training is killed, explained, resumed, and ends as if nothing was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import tiny
from faults import resumed

from tuner import worker
from tuner.config.config import make
from tuner.jobs import control, queue, reconcile, resuming
from tuner.runs.run import Run
from tuner.tracking.runs import create_run

pytestmark = pytest.mark.usefixtures("mirror_here")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def studio(launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.mortal_worker")
    tiny.model(launching_home / "model")
    tiny.data(launching_home / "data")
    return launching_home


def calm(stage: str, engine: str) -> Run:
    """The same run, left alone, in this process."""
    run = create_run(resumed.config(stage, engine=engine), "calm")
    assert worker.run_here(run) == 0
    return run


@pytest.mark.parametrize(
    ("engine", "place"),
    [
        pytest.param(
            "trl", "inside an accumulation", marks=pytest.mark.slow
        ),  # make test-faults has every place
        ("packed", "in the middle of an epoch"),
    ],
)
def test_a_killed_run_goes_on_and_ends_bit_equal_to_one_that_was_not(
    studio: Path, engine: str, place: str
) -> None:
    from tuner.tracking.store import open_store

    run = resumed.killed_here(resumed.config("dpo", engine=engine), resumed.PLACES[place])
    queue.pause()  # for it goes on here, where all libraries are loaded
    resuming.queue_again(run)
    assert worker.run_here(run) == 0
    steps, losses, adapter = resumed.outcome(run)
    assert run.status().first_step == 3
    assert (steps, losses, adapter) == resumed.outcome(calm("dpo", engine))
    reconcile.sync()
    client = open_store()
    assert [p.step for p in client.get_metric_history(run.id, "loss")] == steps == list(range(1, 13))
    assert client.get_run(run.id).info.status == "FINISHED"


def test_a_stop_that_comes_as_a_word_and_as_a_signal_still_saves(home: Path) -> None:
    """`tuner stop` and the page leave a word in the run's folder and send a signal; the worker may see the word first."""
    from tuner.engine.live import LiveRun

    run = Run("asked-twice")
    run.create(make({"model_name_or_path": "model", "dataset": "chat", "stage": "sft"}), "asked twice")
    live = LiveRun(run, run.config())
    with live.listening():
        run.request("stop")
        assert live.wanted() == "stop"
        signal.raise_signal(signal.SIGTERM)
        assert live.wanted() == "stop"
        signal.raise_signal(signal.SIGTERM)
        assert live.wanted() == "cancel"


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["packed", "trl"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_every_place_of_death_ends_bit_equal(studio: Path, stage: str, engine: str) -> None:
    expected = resumed.outcome(calm(stage, engine))
    for where, place in resumed.PLACES.items():
        if engine == "packed" and place.startswith("substep"):
            continue  # whose step is one batch
        run = resumed.killed(resumed.config(stage, engine=engine), place)
        control.resume(run)
        assert resumed.outcome(run) == expected, where
        assert control.why_not_resumable(run)
