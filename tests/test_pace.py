"""The time a run will take is told from the last one like it that finished here, and not at all before there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tuner.config.config import Config, make
from tuner.jobs import planning
from tuner.runs.metrics import MetricsLog
from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.text.message import Message, message
from tuner.tracking.duration_estimate import expected_seconds, expected_step, time_left
from tuner.ui import words


def a_config(**values: object) -> Config:
    plain = {"stage": "dpo", "do_train": True, "model_name_or_path": "m", "dataset": "d"}
    return make({**plain, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **values})


def ran(name: str, state: str, training: float, config: Config) -> None:
    run = Run(name)
    run.create(config, name)
    run.update(
        state=state, step=10, started=1000.0, ended=1000.0 + training + 5, seconds={"training": training}
    )


def test_a_run_is_as_fast_as_the_last_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    assert expected_seconds(a_config(), 800) is None
    ran("failed", "failed", 1.0, a_config())
    ran("other", "finished", 1.0, a_config(stage="sft"))
    assert expected_seconds(a_config(), 800) is None
    ran("like", "finished", 40.0, a_config(learning_rate=1e-3))  # 10 steps of 8: half a second an example
    assert expected_seconds(a_config(per_device_train_batch_size=4), 800) == pytest.approx(5 + 400)


def test_a_step_that_writes_its_answers_is_told_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    config = a_config(stage="grpo", num_generations=4, reward_funcs=["json_valid"])
    assert expected_step(config) is None
    run = Run("like")
    run.create(config, "like")
    log = MetricsLog(run)
    for step, writing in ((1, 3.0), (2, 5.0)):
        log.log(step, {"step_time/rollout": writing, "step_time/learning": 1.0})
    log.close()
    run.update(state="finished", step=2, started=1000.0, ended=1020.0, seconds={"training": 12.0})
    wider = config.with_values(per_device_train_batch_size=4)
    assert expected_step(config) == pytest.approx((4.0, 1.0))
    assert expected_step(wider) == pytest.approx((8.0, 2.0))
    assert expected_step(a_config()) is None
    made = planning.planned(wider)
    assert (made.writing, made.learning) == pytest.approx((8.0, 2.0))


def at_work(run: Run, step: int, trained: float, asked: float, rounds: int, **status: object) -> float | None:
    """What is left of 60 steps with a save every 20, after so many rounds of questions."""
    log = MetricsLog(run)
    for at in range(rounds):
        log.log(20 * at, {"score": 0.5})
    log.close()
    seconds = {"answering": asked}
    told = {
        "state": "running",
        "step": step,
        "total_steps": 60,
        "trained_seconds": trained,
        "seconds": seconds,
    }
    return time_left(run, run.update(**told | status))


def answered(done: int) -> Message:
    return message("doing.questions", done=done, total=100)


def test_the_time_left_counts_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))

    def a_run(name: str) -> Run:
        Run(name).create(a_config(save_steps=20, max_steps=60), name)
        return Run(name)

    # A step takes half a second, a round four: the first comes before any step and is no part of the pace.
    assert at_work(a_run("begun"), 10, 9.0, 4.0, 1) == pytest.approx(50 * 0.5 + 3 * 4)
    assert at_work(a_run("later"), 30, 23.0, 8.0, 2) == pytest.approx(30 * 0.5 + 2 * 4)
    last = {
        "phase": "answering",
        "part": 0.25,
        "doing": answered(25),
    }
    assert at_work(a_run("last"), 60, 42.0, 12.0, 3, **last) == pytest.approx(0.75 * 4)
    stale = {
        "phase": "answering",
        "part": 1.0,
        "doing": answered(100),
    }
    assert at_work(a_run("stale"), 60, 42.0, 12.0, 3, **stale) == pytest.approx(4)
    assert at_work(a_run("over"), 60, 42.0, 16.0, 4) == 0
    assert at_work(a_run("first"), 0, 0.0, 0.0, 0) is None


def test_a_run_that_asks_says_so() -> None:
    asking = Status(
        state="running",
        phase="answering",
        step=60,
        total_steps=60,
        part=0.34,
        doing=answered(34),
    )
    assert words.sentence(asking) == "Answering held-out questions, 34 of 100, at step 60 of 60."
    assert words.sentence(replace(asking, part=1.0, doing=answered(100))) == (
        "Answering held-out questions, at step 60 of 60."
    )
    assert words.sentence(replace(asking, phase="training")) == "Training, step 60 of 60."
    assert words.sentence(replace(asking, phase="registering", total_steps=0)) == "Registering the adapter."
