"""Into the queue: one run, or a sweep of runs that differ in some knobs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.config.config import KNOBS, Config, make
from tuner.config.kinds import KINDS
from tuner.config.knobs import ConfigError, Problem
from tuner.config.run_config import RunConfig
from tuner.config.spelling import word
from tuner.jobs import planning, queue, slots
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs import locks
from tuner.runs.run import Run, fresh_name
from tuner.text.lookup import tr
from tuner.tracking.runs import create_run, names, sweep_tags


def create(config: RunConfig, name: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
    """A run with its config resolved and stored, not yet in anybody's hands."""
    return create_run(config, name or config.called, tags=tags)


def submit(
    config: RunConfig,
    name: str | None = None,
    gpus: Sequence[int] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """Create a run and queue it; a supervisor starts it when its turn comes. `gpus` chooses devices, None takes any one.

    Raises ConfigError when a chosen GPU is not in this machine.
    """
    return launch(create(spread(config, gpus), name, tags), gpus)


def spread(config: RunConfig, gpus: Sequence[int] | None) -> RunConfig:
    """A config with as many processes as GPUs were chosen for it. Raises ConfigError where it asks for other ones."""
    slots.check_gpus(gpus)
    if not gpus:
        return config
    named, processes = ",".join(map(str, gpus)), config.processes if isinstance(config, Config) else 1
    if processes == len(gpus):
        return config
    if isinstance(config, Config) and processes == 1 and config.nproc_per_node is None:
        return config.with_values(num_gpus=len(gpus))
    said = tr(
        "--gpus {named} names {number}, and the run takes {processes}; name as many, or leave --gpus out.",
        named=named,
        number=len(gpus),
        processes=processes,
    )
    raise ConfigError([Problem("gpus", said)])


def launch(run: Run, gpus: Sequence[int] | None = None) -> Run:
    """Queue a run that was created, and see to it that somebody starts it."""
    place(run, gpus)
    ensure_supervisor()
    return run


def place(run: Run, gpus: Sequence[int] | None = None) -> None:
    """Write down what a run needs and put it at the end of the queue."""
    with locks.locking(run.lock_path, wait=2.0):
        write_needs(run, gpus)
        queue.enqueue(run.id)


def write_needs(run: Run, gpus: Sequence[int] | None) -> None:
    """Plan the run, and note what the queue must know of it. The caller holds the run's lock."""
    made = planning.keep(run, tuple(gpus or ()))
    use_cpu = bool(run.values().get("use_cpu"))
    run.update(gpus=list(gpus or ()), use_cpu=use_cpu, devices=made.devices, stays=stays(run))


def stays(run: Run) -> bool:
    """Whether a run lives on this machine wherever others do: it answers at its loopback."""
    kind = KINDS.get(str(run.values().get("stage")))
    return kind is not None and kind.family == "serve"


def expand(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of a sweep: every combination of the knobs that were given several values.

    Several values are a list, or words with commas between them, for a knob that holds one value; a list of lists for
    a knob that holds a list. One combination, the values unchanged, where there are none.
    """
    choices = {name: _choices(name, value) for name, value in values.items()}
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def swept(values: Mapping[str, Any]) -> list[str]:
    """The knobs with several values."""
    return [name for name, value in values.items() if len(_choices(name, value)) > 1]


def _choices(name: str, value: Any) -> list[Any]:
    knob = KNOBS.get(name)
    many = knob is not None and knob.kind in ("list", "json")
    if isinstance(value, list | tuple):
        nested = bool(value) and all(isinstance(v, list | tuple) for v in value)
        return list(value) if value and (nested or not many) else [value]
    if (
        isinstance(value, str)
        and "," in value
        and knob is not None
        and knob.kind in ("int", "float", "choice", "bool")
    ):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value]


def sweep(values: Mapping[str, Any], name: str | None = None, gpus: Sequence[int] | None = None) -> list[Run]:
    """Queue one run for every combination, as children of one parent, each named after what is its own,
    which comes first: lists cut long names at their end.

    All are checked before the first is created. Raises ConfigError.
    """
    slots.check_gpus(gpus)
    rows, knobs = expand(values), swept(values)
    configs = [make(row) for row in rows]
    title = name or configs[0].run_name or fresh_name(configs[0].plain(), names())
    tags = sweep_tags(f"{title}: {', '.join(knobs)}")
    return [
        submit(config, " ".join([*(f"{knob}={word(row[knob])}" for knob in knobs), title]), gpus, tags)
        for row, config in zip(rows, configs, strict=True)
    ]
