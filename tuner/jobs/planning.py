"""A run's plan.json: what it was to do, written before launch, and beside it what came true."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.config.run_config import RunConfig
from tuner.plan.facts import Data, Model, data_of, machine, model_of
from tuner.plan.plan import Plan, Truth, as_plain, plan, plan_of, truth_of
from tuner.runs.run import Run, SilentRun
from tuner.tracking.duration_estimate import expected_seconds, expected_step
from tuner.tracking.store import TrackerError


def planned(config: RunConfig, gpus: tuple[int, ...] = ()) -> Plan:
    """The plan of a config on this machine as it is now."""
    if not isinstance(config, Config):
        return plan(config, machine(bool(getattr(config, "use_cpu", False)), gpus), Data(), Model({}, {}))
    here = machine(config.use_cpu, gpus, config.processes)
    made = plan(config, here, data_of(config), model_of(config))
    with suppress(TrackerError):  # without past runs there is no pace
        examples = (made.steps or 0) * made.examples_per_step
        writing, learning = expected_step(config) or (None, None)
        seconds = expected_seconds(config, examples) if examples else None
        return replace(made, seconds=seconds, writing=writing, learning=learning)
    return made


def keep(run: Run, gpus: tuple[int, ...] = ()) -> Plan:
    """Plan a run that is to be launched, and write it down. A config that makes no run any more has no figures."""
    try:
        made = planned(run.config(), gpus)
    except ConfigError:
        return Plan()
    _write(run, made, Truth())
    return made


def settled(run: Run, config: Config, base: Path) -> Plan:
    """The plan that the worker obeys: made again on the device that it was given, where its model now lies, before any
    weights are loaded. Data that was counted before is not counted again."""
    before = of(run) or Plan()
    data = before.data if before.rows is not None else data_of(config)
    if isinstance(run, SilentRun):
        return before  # the first process has made it
    made = plan(config, machine(config.use_cpu, (), config.processes), data, model_of(config, base))
    made = replace(made, seconds=before.seconds, writing=before.writing, learning=before.learning)
    _write(run, made, truth(run))
    return made


def of(run: Run) -> Plan | None:
    """The plan of a run; None for one of a studio that made none."""
    return plan_of(_read(run).get("plan"))


def truth(run: Run) -> Truth:
    """What is known of how it went."""
    return truth_of(_read(run).get("truth"))


def record(run: Run, **facts: Any) -> None:
    """Set down what came true; fields of `Truth`. A full disk, or a folder that was deleted, does without."""
    made = of(run)
    if made is not None:
        with suppress(OSError):
            _write(run, made, replace(truth(run), **facts))


def _read(run: Run) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        raw = json.loads((run.folder / "plan.json").read_text(encoding="utf-8"))
        return raw if isinstance(raw, dict) else {}
    return {}


def _write(run: Run, made: Plan, came: Truth) -> None:
    text = json.dumps({"plan": as_plain(made), "truth": as_plain(came)}, indent=1)
    run.put("plan.json", text + "\n")
