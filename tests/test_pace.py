"""The time a run will take is told from the last one like it that finished here, and not at all before there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.config.config import Config, make
from tuner.tracking.pace import expected_seconds
from tuner.tracking.run import Run


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
