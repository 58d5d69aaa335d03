"""How long a run will take, told from the last one like it that finished on this machine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.tracking.run import Run, all_runs

RECENT = 40
"""Past runs looked at."""
LIKE = (
    "model_name_or_path",
    "stage",
    "finetuning_type",
    "engine",
    "engine_preset",
    "quantization_bit",
    "use_cpu",
)
"""Knobs in which a run is like another."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a finished run: for each example it learned from, and beside the training."""

    kind: tuple[object, ...]
    each: float
    beside: float


def expected_seconds(config: Config, examples: int) -> float | None:
    """Seconds from start to end of a run that learns from so many examples; None where none like it has finished."""
    for run in all_runs()[:RECENT]:
        pace = _pace(run)
        if pace and pace.kind == _kind(config):
            return pace.beside + pace.each * examples
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
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    examples = (status.step - status.first_step) * per_step
    seconds = status.seconds  # questions are asked at each save, within the training
    training = seconds.get("training", 0.0) - seconds.get("asking held-out questions", 0.0)
    # A resumed run tells of its last worker's steps, but of the seconds of all.
    if examples <= 0 or training <= 0 or status.extra.get("resumes"):
        return None
    return Pace(_kind(config), training / examples, max(0.0, (status.elapsed or 0.0) - training))
