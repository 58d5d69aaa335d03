"""Whoever writes into a run's folder, and in whatever language: what is kept there is codes and English."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_jobs import new_run

from tuner.jobs import resuming, slots
from tuner.jobs.foreground import take_slot
from tuner.jobs.resuming import Refused
from tuner.runs import checkpoints
from tuner.runs.reasons import ExitInfo, from_exit
from tuner.text import message
from tuner.text.lookup import speaking


def test_a_signal_is_kept_as_a_number_and_said_in_each_language() -> None:
    with speaking("zh_CN"):
        kept = json.dumps(message.to_plain(from_exit(ExitInfo(-9), {}).cause), ensure_ascii=False)
        assert kept.isascii() and "信号" in str(message.of(json.loads(kept)))
    assert str(message.of(json.loads(kept))).startswith("The worker was killed by signal 9 (SIGKILL)")
    assert "signal 63 before" in str(from_exit(ExitInfo(-63), {}).cause)


def test_why_a_terminal_did_not_wait_is_kept_in_no_language(home: Path) -> None:
    run = new_run(2, use_cpu=True)
    choice, count = slots.slots_of(run.update(use_cpu=True), [])
    held = slots.take("another", choice, count)
    assert held is not None
    with speaking("zh_CN"), pytest.raises(Refused, match="another"):
        take_slot(run, wait=False)
    slots.release(held)
    kept = (run.folder / "status.json").read_text(encoding="utf-8")
    assert run.status().state == "stopped" and kept.isascii() and "\\u" not in kept
    assert "`tuner submit` queues this run" in run.status().reason


def test_damaged_checkpoints_are_noted_in_no_language(home: Path) -> None:
    run = new_run(6)
    for step in (2, 4):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
        checkpoints.seal(folder, run)
    (run.checkpoints / "checkpoint-4" / "model.safetensors").unlink()
    with speaking("zh_CN"):
        source, damaged = resuming._source(run, None)
    assert source == run.checkpoints / "checkpoint-2"
    assert damaged.endswith("checkpoint-4 lacks its file model.safetensors.")
    (run.checkpoints / "checkpoint-2" / "model.safetensors").unlink()
    with speaking("zh_CN"), pytest.raises(Refused) as refused:
        resuming._source(run, None)
    assert "checkpoint-2" in str(refused.value) and "lacks its file" not in str(refused.value)
