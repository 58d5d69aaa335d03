"""A model that answers, for pages and shell: start a serve run, find the one that lives, learn where to ask it. No torch.

The server writes endpoint.json into its run's folder once it listens: its address and a token of its own, readable by
this user only. It is asked in OpenAI's way; as `model` it takes the base's name (or "base"), a registered version
("name@alias", "name/3") or an adapter's folder, and each answer's `system_fingerprint` is the checksum of what answered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuner import hardware, paths
from tuner.config.config import made_of
from tuner.config.kinds import KINDS
from tuner.config.serving import ServeConfig
from tuner.jobs import launch, queue, slots
from tuner.jobs.executors import which
from tuner.jobs.submit import submit
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs import locks, worker_lock
from tuner.runs.run import Run, write_private
from tuner.runs.status import Status

FILE = "endpoint.json"


@dataclass(frozen=True)
class Endpoint:
    """Where a serve run answers, `url` without a slash behind it, and the bearer token it wants."""

    url: str
    key: str = field(repr=False)


def start(base: str, adapters: Sequence[str] = (), name: str | None = None, **knobs: Any) -> Run:
    """The serve run of a base: the one that lives or waits, else a new one that is queued. It takes further adapters of
    the base at any time, so those named here are only what it has from the start. `knobs` are ServeConfig's others.

    Raises ConfigError.
    """
    for run in living():
        if same_base(str(run.values().get("model_name_or_path")), base):
            ensure_supervisor(only_if_needed=True)
            return run
    given = {"model_name_or_path": base, "adapter_name_or_path": tuple(adapters), "api_port": 0, **knobs}
    return submit(made_of(ServeConfig, given), name)


def same_base(one: str, other: str) -> bool:
    """Whether two names mean the same model: a folder however it is written, or a hub name."""
    return one == other or _resolved(one) == _resolved(other)


def _resolved(name: str) -> str:
    return str((paths.home() / Path(name).expanduser()).resolve())


def living() -> list[Run]:
    """The serve runs that have not ended, those that wait too, oldest first."""
    runs = queue.unended()
    found = [Run(i) for i in sorted(runs, key=lambda i: runs[i].created)]
    return [run for run in found if serves(run)]


def serves(run: Run) -> bool:
    """Whether a run is one that serves a model."""
    kind = KINDS.get(str(run.values().get("stage")))
    return kind is not None and kind.family == "serve"


def endpoint(run: Run) -> Endpoint | None:
    """Where a serve run answers; None while it does not listen yet, and once it has ended."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        if worker_lock.alive(run):
            return Endpoint(str(raw["url"]), str(raw["key"]))
    return None


def claimant(run: Run, idle: bool) -> Run | None:
    """The run that waits for a slot that this one holds, first in the queue and free to start; None where there is none.

    Another model that is to be served waits until this one is `idle`; everything else comes before it.
    """
    given = launch.record(run)
    now, runs = queue.order(), queue.unended()
    if given is None or now.paused or queue.short_of_room():
        return None
    present = [gpu.index for gpu in hardware.gpus()]
    waiting = [i for i in queue.waiting(runs) if i not in now.held and (idle or not serves(Run(i)))]
    return next(
        (Run(i) for i in which.parted(waiting, runs)[0] if _needs(runs[i], present, given.slots)), None
    )


def _needs(status: Status, present: Sequence[int], held: Sequence[str]) -> bool:
    """Whether a queued run may have one of these slots, and has not enough others that are free."""
    choice, count = slots.slots_of(status, present)
    free = [name for name in choice if not locks.locked(slots.path(name))]
    return len(free) < count and bool(set(choice) & set(held))


def publish(run: Run, at: Endpoint) -> None:
    """Write down where a run answers."""
    write_private(run.folder / FILE, json.dumps(asdict(at)))


def withdraw(run: Run) -> None:
    """It answers no more."""
    (run.folder / FILE).unlink(missing_ok=True)
