"""Prompts kept aside: what the likeliest answers to them are worth before the run, at each save and after.

The mean reward goes to the metrics as `score`, the first answers to samples.json, as of every run with held-out questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from tuner.config.config import Config
from tuner.engine import group
from tuner.engine.live import LiveRun
from tuner.engine.online.rollouts import Rollouts, Row, Writer, shared_rollouts
from tuner.engine.samples import SHOWN, Samples
from tuner.rewards.reward import Reward
from tuner.text.message import message

if TYPE_CHECKING:
    from tuner.runs.run import Run


ALL = "all of them"
"""What the means over all sets are kept under, which is no name of one."""


class HeldOut:
    """Prompts, and how answers to them are written and scored. The answers of a step are written once. Sets that are
    measured by themselves have names; the only one has none."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Row]],
        writer: Writer,
        rewards: Sequence[Reward],
        run: LiveRun,
        config: Config,
    ):
        most = config.probe_samples
        self.sets = {name: [rows[i] for i in range(min(len(rows), most))] for name, rows in sets.items()}
        self.rows = [row for rows in self.sets.values() for row in rows]
        self.writer, self.rewards_of, self.run = writer, rewards, run
        self.samples = Samples()
        self.ready: Callable[[], object] = lambda: None
        self._last: tuple[int, dict[str, dict[str, float]]] = (-1, {})

    @cached_property
    def callback(self) -> TrainerCallback:
        """What asks at the beginning, at each save and at the end."""
        return _Asks(self)

    def rewards(self, step: int) -> dict[str, float]:
        """The mean reward of a step's answers, and of each part; of each set by its name."""
        found = self._measured(step)
        return {f"{name}_{n}" if name else n: value for name in self.sets for n, value in found[name].items()}

    def _measured(self, step: int) -> dict[str, dict[str, float]]:
        if self._last[0] != step:
            self._last = step, self._answered(step)
        return self._last[1]

    def forget(self) -> None:
        """Other weights are on the model now: what was answered at this step is no longer its answer."""
        self._last = (-1, {})

    def _answered(self, step: int) -> dict[str, dict[str, float]]:
        self.ready()
        made = shared_rollouts(self.writer, self.rows, None, self.rewards_of, self._told)
        self._show(step, made)
        found, begin = {ALL: self._means(made, slice(None))}, 0
        for name, rows in self.sets.items():
            found[name] = self._means(made, slice(begin, begin + len(rows)))
            begin += len(rows)
        return found

    def _means(self, made: Rollouts, of: slice) -> dict[str, float]:
        parts = {reward.name: made.part(reward.name)[of] for reward in self.rewards_of}
        known = {name: values for name, values in parts.items() if not np.isnan(values).all()}
        found = {"reward": _mean(made.rewards[of])}
        found |= {f"rewards/{name}/mean": _mean(values) for name, values in known.items()}
        lengths = [one.tokens for one in made.completions[of]]
        return found | {"completions/mean_length": sum(lengths) / len(lengths)}

    def ask(self, step: int, when: str = "") -> None:
        """Score a step's answers; `when` is before or after where it is the first or the last."""
        run: Run = self.run.run
        before = run.status().phase
        with self.run.phase("answering"):
            found = {"score": self._measured(step)[ALL]["reward"]}
        run.update(phase=before)
        if when:
            found[f"score/{when}"] = found["score"]
        self.run.log.log(step, found)
        self.run.say("  ".join(f"{name} {value:.3f}" for name, value in found.items()))

    def remember(self) -> None:
        """What was asked before this run was resumed."""
        path = self.run.run.folder / "samples.json"
        if path.is_file():
            self.samples.rows = json.loads(path.read_text(encoding="utf-8"))["data"]

    def _told(self, done: int) -> None:
        total = len(self.rows)
        self.run.progress(done / total, message("doing.questions", done=done, total=total))

    def _show(self, step: int, made: Rollouts) -> None:
        self.samples.rows = [row for row in self.samples.rows if row[0] != step]
        self.samples.rows += [
            [step, one.prompt, one.label or "", one.text] for one in made.completions[:SHOWN]
        ]
        table = {"columns": ["step", "prompt", "expected", "answer"], "data": self.samples.rows}
        self.run.run.put("samples.json", json.dumps(table, ensure_ascii=False))


class _Asks(TrainerCallback):
    def __init__(self, held_out: HeldOut):
        self.held_out = held_out

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            self.held_out.remember()
        else:
            self.held_out.ask(0, "before")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Someone who asked the run to stop is waiting for it.
        if state.global_step < state.max_steps and not group.agreed(self.held_out.run.asked):
            self.held_out.ask(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not group.agreed(self.held_out.run.asked):
            self.held_out.ask(state.global_step, "after")


def _mean(values: Any) -> float:
    there = values[values == values]  # noqa: PLR0124  no number is not itself
    return float(there.mean()) if len(there) else 0.0
