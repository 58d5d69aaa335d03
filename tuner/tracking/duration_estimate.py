"""How long a run will take, told from the last one like it that finished on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.plan.steps import every as steps_between
from tuner.runs.points import tail
from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.text.lookup import tr
from tuner.tracking.runs import finished

RECENT = 40
"""Past runs looked at."""
LIKE = (
    "model_name_or_path",
    "stage",
    "finetuning_type",
    "engine",
    "engine_preset",
    "fp8",
    "quantization_bit",
    "use_cpu",
    "processes",
)
"""In which a run is like another."""

ASKING = "answering"
"""The phase in which a run answers the questions of its probe; within the training, as far as the clock goes."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a finished run: for each example it learned from, and beside the training; `writing` and `learning` are
    parts of the first where it wrote answers."""

    kind: tuple[object, ...]
    each: float
    beside: float
    writing: float = 0.0
    learning: float = 0.0


def expected_seconds(config: Config, examples: int) -> float | None:
    """Seconds from start to end of a run that learns from so many examples; None where none like it has finished."""
    for run_id in finished(RECENT):
        pace = _pace(Run(run_id))
        if pace and pace.kind == _kind(config):
            return pace.beside + pace.each * examples
    return None


def expected_step(config: Config) -> tuple[float, float] | None:
    """Seconds of a step for the writing of answers and for learning from them, as the last run like it took for each
    answer; None where answers are not its own, and where none like it has finished."""
    if not config.kind.rewarded:
        return None
    for run_id in finished(RECENT):
        pace = _pace(Run(run_id))
        if pace and pace.kind == _kind(config) and pace.writing:
            return pace.writing * config.examples_per_step, pace.learning * config.examples_per_step
    return None


def _kind(config: Config) -> tuple[object, ...]:
    return tuple(getattr(config, name) for name in LIKE)


def _pace(run: Run) -> Pace | None:
    with suppress(ConfigError, OSError, ValueError):
        status = run.status()
        return _of_finished(run.id, status.ended) if status.state == "finished" else None
    return None


@lru_cache(maxsize=4 * RECENT)
def _of_finished(run_id: str, ended: float) -> Pace | None:
    status, config = Run(run_id).status(), Run(run_id).config()
    if not isinstance(config, Config):
        return None
    examples = (status.step - status.first_step) * config.examples_per_step
    seconds = status.seconds  # questions are asked at each save, within the training
    training = seconds.get("training", 0.0) - seconds.get(ASKING, 0.0)
    # A resumed run tells of its last worker's steps, but of the seconds of all.
    if examples <= 0 or training <= 0 or status.resumes:
        return None
    beside = max(0.0, (status.elapsed or 0.0) - training)
    return Pace(_kind(config), training / examples, beside, *_parts(Run(run_id), config.examples_per_step))


def _parts(run: Run, examples: int) -> tuple[float, float]:
    """Seconds of a step that were logged for writing and for learning, by its examples; 0 where none were."""
    found = tail(run)
    writing, learning = (found.series(f"step_time/{name}")[1] for name in ("rollout", "learning"))
    if not len(writing) or not len(learning):
        return 0.0, 0.0
    return float(writing.mean()) / examples, float(learning.mean()) / examples


def answered(status: Status) -> tuple[float, str]:
    """How much of the questions is answered, 0 to 1, and "34 of 100"; (0, "") while there is no word of it yet."""
    told = status.doing
    # The last word of the round before stands there until the first answers of this one.
    if told.code != "doing.questions" or status.part >= 1:
        return 0.0, ""
    return status.part, tr("{done} of {total}", done=told.values["done"], total=told.values["total"])


def time_left(run: Run, status: Status) -> float | None:
    """Seconds until training ends, with the rounds of held-out questions that are still to be answered; None before
    there is a pace."""
    if status.eta is None:
        return None
    steps_left, done = status.total_steps - status.step, status.step - status.first_step
    rounds = len(tail(run).series("score")[0])
    spent = status.seconds.get(ASKING, 0.0)
    if not rounds or not spent or status.resumes:  # of a resumed run the seconds are those of all workers
        return status.eta
    left: float = _rounds_left(run.values(), status, rounds)
    if status.phase == ASKING:
        left = max(left, 1) - answered(status)[0]
    each_step = max(0.0, status.trained_seconds - spent) / done
    return steps_left * each_step + left * spent / rounds


def _rounds_left(values: Mapping[str, Any], status: Status, rounds: int) -> int:
    """Rounds still to come: one before training, one at each save before the last step, one after it."""
    every = float(values.get("save_steps") or 0)
    steady = values.get("save_strategy") == "steps" and every
    saves = (status.total_steps - 1) // steps_between(every, status.total_steps) if steady else 0
    return max(0, saves + 2 - rounds)
