"""trainer_log.jsonl, line by line as LLaMA-Factory writes it: scripts of its users read their progress from there."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tuner.engine.live import LiveRun
from tuner.jobs.live import unless_full

NAME = "trainer_log.jsonl"
# Its name for each metric of transformers and TRL.
FROM_LOGS = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "predict_loss": "predict_loss",
    "reward": "reward",
    "accuracy": "rewards/accuracies",
    "lr": "learning_rate",
    "epoch": "epoch",
}


class TrainerLog(TrainerCallback):
    """A line for each log. A resumed run goes on in the same file, behind the checkpoint: every step stands there once."""

    def __init__(self, run: LiveRun):
        self.run = run
        self.path: Path = run.output / NAME
        self.began = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        kept = [row for row in read(self.path) if row.get("current_steps", 0) <= state.global_step]
        if not state.global_step:
            kept = []
        spent = max((_seconds(row.get("elapsed_time", "")) for row in kept), default=0)
        self.began = time.time() - spent
        with unless_full():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        with unless_full(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._row(state, logs or {})) + "\n")

    def _row(self, state: Any, logs: dict[str, Any]) -> dict[str, Any]:
        step, total = state.global_step, state.max_steps
        spent = time.time() - self.began
        said = {"epoch": state.epoch, **logs}
        row = {"current_steps": step, "total_steps": total}
        row |= {name: said[key] for name, key in FROM_LOGS.items() if said.get(key) is not None}
        row["percentage"] = round(step / total * 100, 2) if total else 100
        row["elapsed_time"] = _clock(spent)
        row["remaining_time"] = _clock((total - step) * spent / step if step else 0)
        if state.num_input_tokens_seen:
            row["throughput"] = round(state.num_input_tokens_seen / max(spent, 1e-9), 2)
            row["total_tokens"] = state.num_input_tokens_seen
        return row


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a trainer log; a line that a crash cut off is none."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(max(seconds, 0))))


def _seconds(clock: str) -> int:
    """Seconds of "h:mm:ss", with "n days, " before it where there are any; 0 for anything else."""
    found = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", clock)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
