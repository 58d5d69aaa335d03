"""What lists and pages of runs are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tuner.runs.run import Run
from tuner.runs.status import State

T = TypeVar("T")
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
SWEEP = "tuner.sweep"  # the tag of a run that only holds others together
SWEEP_NAME = "tuner.sweep_name"  # the tag that a run of a sweep has of it
VOTE = "vote."  # what the tags of a version begin with that hold a vote each
STATE_OF: dict[str, State] = {
    "SCHEDULED": "queued",
    "RUNNING": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "stopped",
}
OWN_TAGS = frozenset({"state", "reason", "reason_code", "tokens", "hardware", "host"})
OWN_PREFIXES = ("mlflow.", "tuner.", "seconds/", "version/")


def is_own(tag: str) -> bool:
    """Whether a tag is the studio's or MLflow's, not a person's."""
    return tag in OWN_TAGS or tag.startswith(OWN_PREFIXES)


@dataclass(frozen=True)
class RunRow:
    """A run as lists show it. Times in seconds since the epoch, 0 where it has not happened; duration in seconds.

    `tags` are a person's own, `facts` the studio's (versions, hardware, seconds per phase, tokens).
    """

    id: str
    name: str
    state: State
    reason: str = ""
    stage: str = ""
    model: str = ""
    datasets: tuple[str, ...] = ()
    method: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    worked: float | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    deleted: bool = False
    parent: str = ""
    spark: tuple[float, ...] = ()
    local: bool = False

    @property
    def duration(self) -> float | None:
        """Seconds that workers spent on it, or from its start to its end where nobody counted; None before it ended."""
        if not self.ended:
            return None
        if self.worked is not None:
            return self.worked
        return max(0.0, self.ended - (self.started or self.created))

    @property
    def run(self) -> Run:
        """Its folder, where it is of this studio (`local`)."""
        return Run(self.id)


@dataclass(frozen=True)
class RunFilter:
    """Which runs, in which order. Empty fields leave everything in; all that are given must hold.

    `text` is looked for in name, id, model, data sets, note and reason, upper or lower case; every word must be found.
    `tags` maps a tag to the value it must have, an empty one to any value. `sort` is created, name, state, duration,
    stage, model, dataset, `metrics.<name>` or `params.<name>`; runs that have none of it come last. An empty `sort` leaves
    the order open, which is the quickest.
    """

    text: str = ""
    states: tuple[State, ...] = ()
    stage: str = ""
    model: str = ""
    dataset: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    sort: str = "created"
    descending: bool = True
    deleted: bool = False


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list, `number` from 1. `notice` says in a sentence why something may be missing."""

    items: tuple[T, ...]
    total: int
    number: int
    size: int
    notice: str = ""

    @property
    def pages(self) -> int:
        return max(1, math.ceil(self.total / self.size))


@dataclass(frozen=True)
class Brief:
    """A run in a field that chooses one: id, name, stage and when it was made, in seconds since the epoch."""

    id: str
    name: str
    stage: str
    created: float


@dataclass(frozen=True)
class Choices:
    """What there is to filter by, each sorted."""

    stages: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Head(NamedTuple):
    """A run without its details, as a reader lists it. Times in seconds, 0 for none; `id` is MLflow's."""

    id: str
    name: str
    status: str
    created: float
    ended: float
    deleted: bool


@dataclass
class Details:
    """What belongs to one run: params, last value of each metric, all tags."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
