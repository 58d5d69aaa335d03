"""Slots: one per GPU, and one for the CPU. A slot is a lock file that the worker's process holds, so it frees itself."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner import hardware, paths
from tuner.config.knobs import ConfigError, Problem
from tuner.config.settings import FILE, settings
from tuner.runs import locks
from tuner.runs.locks import locked
from tuner.runs.status import Status
from tuner.text.lookup import tr

CPU = "cpu"


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time may work; `run` is who has it now."""

    name: str
    run: str | None = None


def folder() -> Path:
    return paths.mlruns() / "slots"


def path(name: str) -> Path:
    return folder() / f"{name}.lock"


def names(gpus: Sequence[int]) -> tuple[str, ...]:
    """Every slot of a machine with these GPUs."""
    return (*(f"gpu{index}" for index in gpus), CPU)


def slots() -> list[Slot]:
    """The slots of this machine, with who is in them. The CPU's is a spare one where there are GPUs."""
    return [Slot(name, holder(name)) for name in names([g.index for g in hardware.gpus()])]


def holder(name: str) -> str | None:
    """The id of the run that has a slot, None while it is free."""
    if not locked(path(name)):
        return None
    with suppress(OSError):
        return path(name).read_text(encoding="utf-8").strip() or "?"
    return None


def wanted(
    gpus: Sequence[int] | None, use_cpu: bool, present: Sequence[int], devices: int = 1
) -> tuple[tuple[str, ...], int]:
    """The slots a run may have and how many of them it needs: chosen GPUs all, else any `devices` of them, else the CPU."""
    if use_cpu or not present:
        return (CPU,), 1
    if gpus:
        return tuple(f"gpu{index}" for index in gpus), len(gpus)
    return tuple(f"gpu{index}" for index in present), devices


def slots_of(status: Status, present: Sequence[int]) -> tuple[tuple[str, ...], int]:
    """The slots that a queued run may have, and how many of them it needs, on a machine with these GPUs."""
    return wanted(status.gpus or None, status.use_cpu, present, status.devices)


def check_gpus(gpus: Sequence[int] | None) -> None:
    """Raises ConfigError with one sentence when chosen GPUs are not in this machine, or one is named twice."""
    if gpus and settings().elsewhere:
        said = tr(
            "--gpus chooses among this machine's, and runs go to a cluster ({file}); say how many: --num_gpus {number}.",
            file=FILE,
            number=len(gpus),
        )
        raise ConfigError([Problem("gpus", said)])
    if len(set(gpus or ())) < len(gpus or ()):
        named = ",".join(map(str, gpus or ()))
        raise ConfigError(
            [Problem("gpus", tr("--gpus {named} names a GPU twice; name each once.", named=named))]
        )
    present = [g.index for g in hardware.gpus()]
    if missing := [str(index) for index in gpus or () if index not in present]:
        here = (
            tr("it has {map}", map=", ".join(map(str, present)))
            if present
            else tr("it has none; leave the choice out")
        )
        named = (
            tr("GPUs {missing} are", missing=", ".join(missing))
            if len(missing) > 1
            else tr("GPU {missing} is", missing=missing[0])
        )
        raise ConfigError(
            [Problem("gpus", tr("{named} not in this machine: {here}.", named=named, here=here))]
        )


def take(run_id: str, choice: Collection[str], count: int) -> dict[str, int] | None:
    """Lock `count` slots of `choice` for a run, all or none: slot name to open file, None when they are taken."""
    got: dict[str, int] = {}
    folder().mkdir(parents=True, exist_ok=True)
    for name in choice:
        handle = locks.lock(path(name))
        if handle is not None:
            got[name] = handle
            with suppress(OSError):  # a full disk: the lock is what counts, its label is for people
                os.truncate(handle, 0)
                os.pwrite(handle, run_id.encode(), 0)
        if len(got) == count:
            return got
    release(got)
    return None


def release(got: dict[str, int]) -> None:
    for handle in got.values():
        os.close(handle)


def gpus_of(got: Collection[str]) -> tuple[int, ...]:
    """The GPU numbers among slot names."""
    return tuple(sorted(int(name.removeprefix("gpu")) for name in got if name != CPU))
