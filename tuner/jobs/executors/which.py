"""Where runs live: on this machine or on a cluster's nodes. Queue, pages and shell ask here and know no more of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from tuner.config.knobs import ConfigError
from tuner.config.settings import FILE, settings
from tuner.jobs import launch
from tuner.jobs.executors import ray
from tuner.jobs.troubles import logged
from tuner.jobs.watch import Watch
from tuner.runs.run import Run
from tuner.runs.status import Status


class Executor(Protocol):
    """How runs are started at one place, and watched there. What a run does and says is read from its folder, which
    every place writes in the same way: status, metrics, log, checkpoints, output."""

    def start_next(self, ids: Sequence[str], runs: Mapping[str, Status]) -> Iterator[Watch]:
        """Start what can be started of the queued runs `ids`, in that order: a watch over each that has begun."""

    def watch(self, run: Run) -> Watch:
        """A watch over a run that an earlier supervisor started."""


def parted(ids: Sequence[str], runs: Mapping[str, Status]) -> tuple[list[str], list[str] | None]:
    """Queued runs in order: those that live on this machine and those of the cluster, None where settings.yaml is damaged.
    The file is read once: thousands may wait."""
    stay = [i for i in ids if runs[i].stays]
    with logged(FILE):
        if not settings().elsewhere:
            return list(ids), []
        return stay, [i for i in ids if not runs[i].stays]
    return stay, None


def for_slots(ids: Sequence[str], runs: Mapping[str, Status]) -> list[str]:
    """The queued runs that want slots of this machine, in order; all where settings.yaml, damaged, does not tell."""
    here, there = parted(ids, runs)
    return list(ids) if there is None else here


def waits_for(run: Run, status: Status) -> str | None:
    """What a run that is first in the queue waits for, as a sentence; None where that is a slot of this machine."""
    try:
        return None if status.stays or not settings().elsewhere else ray.waits_for(run)
    except ConfigError as error:
        return str(error)


def take_back(run: Run) -> None:
    """Let a cluster forget a run that it has not begun with."""
    if launch.elsewhere(run) is not None:
        with suppress(ConfigError):
            ray.take_back(run)
