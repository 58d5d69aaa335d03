"""What a run will do, decided once, before launch: the form shows it, the queue takes its devices, the worker obeys it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from tuner.config.config import Config
from tuner.config.run_config import RunConfig
from tuner.data.encode import packs
from tuner.data.report import steps as optimizer_steps
from tuner.plan import engine as engines
from tuner.plan import schedule
from tuner.plan import steps as counting
from tuner.plan.disk import run_disk
from tuner.plan.facts import Data, Machine, Model
from tuner.plan.memory import (
    asked_to_recompute,
    frozen_bytes,
    layers_of,
    recomputes,
    run_memory,
    weights,
    written,
)
from tuner.plan.rows import Layers, RowBudget, row_budget
from tuner.plan.shape import Lengths, Memory
from tuner.text.message import Message, of, to_plain

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """`devices` are GPUs, one process each; on a machine without, processes that share the CPU. A figure is None where the model's or the data's size is not known yet,
    and where a run of this kind has none.

    `rows` are those of the files, before any is dropped, and `steps` count them; `roughly` where several examples share
    a row. `why` says why it is not the packed engine, whose rows are in `budget`. `memory` and `free` are bytes of one
    device, `disk` bytes, `seconds` those from start to end; `writing` and `learning` are those of a step of a run that learns
    from answers of its own.
    """

    devices: int = 1
    on_gpu: bool = False
    free: int = 0
    data: Data = field(default_factory=Data)
    examples_per_step: int = 0
    steps: int | None = None
    roughly: bool = False
    saves: int | None = None
    engine: str = ""
    why: Message = field(default_factory=Message)
    layers: int | None = None
    recompute: int | None = None
    budget: RowBudget | None = None
    memory: Memory | None = None
    seconds: float | None = None
    writing: float | None = None
    learning: float | None = None
    disk: int | None = None

    @property
    def rows(self) -> int | None:
        return self.data.rows

    @property
    def token_budget(self) -> int | None:
        """Tokens of a packed row."""
        return self.budget.token_budget if self.budget else None


@dataclass(frozen=True)
class Truth:
    """What came true of a plan, by the same names; None where it was not measured. `recompute` layers of all,
    `memory` and `disk` in bytes."""

    steps: int | None = None
    engine: str | None = None
    why: Message = field(default_factory=Message)
    recompute: int | None = None
    token_budget: int | None = None
    memory: int | None = None
    seconds: float | None = None
    disk: int | None = None


def plan(config: RunConfig, machine: Machine, data: Data, model: Model) -> Plan:
    """The plan of a run. One that does not train has its devices and no more."""
    devices = config.processes if isinstance(config, Config) else config.kind.devices
    whole = Plan(devices, machine.on_gpu, machine.free)
    return _training(config, whole, machine, data, model) if isinstance(config, Config) else whole


def _training(config: Config, whole: Plan, machine: Machine, data: Data, model: Model) -> Plan:
    steps = _steps(config, data)
    saves = counting.saves(config.save_strategy, config.save_steps, config.num_train_epochs, steps or 0)
    whole = replace(
        whole,
        data=data,
        examples_per_step=config.examples_per_step,
        steps=steps,
        roughly=packs(config) and config.max_steps <= 0,
        saves=saves if steps else None,
        layers=model.layers or None,
    )
    return _sized(config, _with_engine(config, whole, data, model), machine, model)


def _steps(config: Config, data: Data) -> int | None:
    rows = data.rows
    if rows is None or config.streaming:
        return max(0, config.max_steps) or None
    if config.kind.rewarded:
        return schedule.steps(config, rows)
    if packs(config) and data.lengths:
        full = min(data.lengths.mean, config.cutoff_len) / config.cutoff_len
        rows = max(1, math.ceil(rows * full))
    return optimizer_steps(config, rows)


def _with_engine(config: Config, whole: Plan, data: Data, model: Model) -> Plan:
    """Which engine, and why, once the model is known."""
    why = engines.refusal(config, model.config, model.adapter)
    other = engines.PADDED if config.kind.rewarded else engines.TRL
    return replace(whole, engine=other if why else engines.PACKED, why=why)


def _sized(config: Config, whole: Plan, machine: Machine, model: Model) -> Plan:
    """Recomputed layers, the rows of the packed engine, memory and disk."""
    shape, rank = model.shape, model.rank(config)

    def held(again: bool) -> Memory | None:
        if shape is None or whole.data.lengths is None:
            return None
        run_by = _run_by(config, machine, model)
        return run_memory(config, shape, whole.data.lengths, again, whole.budget, rank, run_by)

    if whole.engine == engines.PACKED:
        budget = packed_budget(config, machine, model)
        whole = replace(whole, budget=budget, recompute=budget.recompute)
        memory = held(False)
    else:
        # answers that a model writes itself come in rows that are sized by what is free
        kept = held(False) if whole.engine == engines.TRL else None
        again = recomputes(config, machine.on_gpu, kept.total if kept else None, machine.free)
        whole = replace(whole, recompute=whole.layers if again else 0)
        memory = held(again)
    if shape is None:
        return whole
    if memory and config.kind.rewarded and whole.data.lengths:
        room = max(0, machine.free - weights(config, shape)) // 4  # what the writing of answers takes at most
        memory = replace(memory, cache=min(written(config, shape, whole.data.lengths, machine.on_gpu), room))
    disk = run_disk(config, shape, whole.saves, rank) if whole.saves is not None else None
    return replace(whole, memory=memory, disk=disk)


def packed_budget(config: Config, machine: Machine, model: Model) -> RowBudget:
    """The packed engine's rows on a machine before anything is loaded there."""
    shape = model.shape
    loaded = weights(config, shape) if shape else 0
    return row_budget(
        shape,
        model.layers,
        on_gpu=machine.on_gpu,
        free=machine.free - loaded,
        preset=config.engine_preset,
        token_budget=config.engine_token_budget,
        recompute=layers_to_recompute(config, model.layers),
        rank=model.rank(config),
        weight_bytes=frozen_bytes(config),
        run_by=_run_by(config, machine, model),
    )


def _run_by(config: Config, machine: Machine, model: Model) -> Layers:
    written_out = engines.written_out(config, model.config, machine.on_gpu, model.adapter)
    return layers_of(config, model.shape, model.rank(config), written_out)


def layers_to_recompute(config: Config, layers: int) -> int | None:
    """The layers that the packed engine must recompute, as asked; None leaves it to the memory."""
    asked = asked_to_recompute(config)
    return None if asked is None else layers * asked


# --- on disk -------------------------------------------------------------------------------------------------------


def as_plain(made: Plan | Truth) -> dict[str, Any]:
    """For JSON; `plan_of` and `truth_of` read it back."""
    return {**asdict(made), "why": to_plain(made.why)}


def plan_of(raw: Any) -> Plan | None:
    """A plan as `as_plain` wrote it; None where it is none."""
    with suppress(TypeError, AttributeError):
        known = _known(Plan, raw) | {"why": of(raw.get("why"))}
        data = _known(Data, raw["data"])
        data["lengths"] = _maybe(Lengths, data.get("lengths"))
        nested = {"budget": _maybe(RowBudget, raw.get("budget")), "memory": _maybe(Memory, raw.get("memory"))}
        return Plan(**known | nested | {"data": Data(**data)})
    return None


def truth_of(raw: Any) -> Truth:
    """What came true, as `as_plain` wrote it; nothing where it is none."""
    with suppress(TypeError, AttributeError):
        return Truth(**_known(Truth, raw) | {"why": of(raw.get("why"))})
    return Truth()


def _known(kind: type[Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: raw[f.name] for f in fields(kind) if f.name in raw}


def _maybe(kind: type[T], raw: Any) -> T | None:
    return kind(**_known(kind, raw)) if raw else None
