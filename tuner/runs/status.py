"""Where a run stands: state, phase, progress, why it ended, and what is known of it; replaced whole at each write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from tuner import hardware
from tuner.redact import redacted
from tuner.text import message
from tuner.text.message import Message, render

State = Literal["queued", "preparing", "running", "stopping", "finished", "failed", "stopped", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
LIVE: frozenset[State] = frozenset({"preparing", "running", "stopping"})
ENDED: frozenset[State] = frozenset({"finished", "failed", "stopped", "interrupted"})


@dataclass(frozen=True)
class Status:
    """Where a run stands. Times in seconds since the epoch; `seconds` maps a phase to what it took.

    `name` and `tags` are what it was made with, `gpus` and `use_cpu` what it asked for, `devices` how many it takes,
    and whether it `stays` on this machine: one that answers at its loopback. `cause` is why it ended, `said` are
    notes for whoever reads its page, `tracker` what keeps it from MLflow. `doing` tells how far a phase is, `part` the same
    from 0 to 1. `resume_from` is the checkpoint that its next worker is to go on from, `began_from` the one that the last
    worker did, `continues` the run that this one goes on from. Memory in bytes.

    `trained_seconds` are those since `first_step`, where this process began to train, by a clock that nobody sets; by
    the same clock `began` is when the worker started, 0 while there is none, and `worked` what earlier workers took.
    """

    state: State = "queued"
    phase: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    cause: Message = field(default_factory=Message)
    remedies: list[dict[str, Any]] = field(default_factory=list)
    created: float = 0.0
    started: float = 0.0
    began: float = 0.0
    worked: float = 0.0
    first_step: int = 0
    trained_seconds: float = 0.0
    updated: float = 0.0
    ended: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    pid: int = 0
    boot_id: str = ""
    exit_code: int | None = None
    tokens: int = 0
    tokens_per_second: float = 0.0
    tracker: Message = field(default_factory=Message)
    said: list[Message] = field(default_factory=list)
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    gpus: list[int] = field(default_factory=list)
    use_cpu: bool = False
    devices: int = 1
    stays: bool = False
    doing: Message = field(default_factory=Message)
    part: float = 0.0
    checkpoint: str = ""
    checkpoint_step: int | None = None
    checkpoint_time: float = 0.0
    resume_from: str = ""
    began_from: str = ""
    continues: str = ""
    resumes: int = 0
    auto_resumed: str = ""
    artifacts: list[str] = field(default_factory=list)
    adapter: str = ""
    adapter_version: int = 0
    memory_peak: int = 0

    @property
    def reason(self) -> str:
        """Why it ended, as a sentence; empty where it finished or has not ended."""
        return render(self.cause)

    @property
    def reason_code(self) -> str:
        """The same for programs: the code's first part."""
        return self.cause.code.partition(".")[0]

    @property
    def notes(self) -> list[str]:
        """What the run's page is to tell, as sentences."""
        return [render(one) for one in self.said]

    @property
    def tracking(self) -> str:
        """What keeps MLflow from having all of it, as a sentence; empty where nothing does."""
        return render(self.tracker)

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace since this process began training; None before there is a pace."""
        done = self.step - self.first_step
        if self.state not in LIVE or done <= 0 or not self.trained_seconds:
            return None
        return max(0.0, (self.total_steps - self.step) * self.trained_seconds / done)

    def ended_now(self) -> float:
        """The time of an end that is now: never before the beginning, whatever was done to the clock meanwhile."""
        return max(time.time(), self.started, self.created)

    def worked_now(self) -> float:
        """Seconds that workers have spent on it until now, without the time it waited or the machine slept."""
        if not self.began:
            return self.worked
        if self.boot_id == hardware.boot_id():
            return self.worked + max(0.0, time.monotonic() - self.began)
        # That clock ended with the machine's reboot.
        return self.worked + max(0.0, self.updated - self.started)

    @property
    def elapsed(self) -> float | None:
        """Seconds of work on it so far; None before there was any."""
        if self.worked or self.began:
            return self.worked_now()
        return max(0.0, self.ended - self.started) if self.started and self.ended else None

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


_MESSAGES = ("cause", "tracker", "doing")
"""Fields of a status that hold a message; `said` holds several."""


def to_plain(status: Status) -> dict[str, Any]:
    """For JSON, without secrets; `of` reads it back."""
    plain = asdict(replace(status, updated=time.time()))
    # What people read may repeat an error's words; paths and names are used again and stay as they are.
    plain |= {name: redacted(message.to_plain(getattr(status, name))) for name in _MESSAGES}
    return plain | {"said": [redacted(message.to_plain(one)) for one in status.said]}


def of(raw: dict[str, Any]) -> Status:
    """A status as this version writes it, or as one did that had sentences and a bag of further facts in it."""
    known = {f.name for f in fields(Status)}
    old = raw.pop("extra", {})
    if old:
        raw |= {"cause": _old_cause(raw), "tracker": raw.get("tracking"), "said": raw.get("notes") or []}
        raw = old | {"began_from": old.get("resumed_from", "")} | raw
        raw["doing"] = None  # of the phase that it was in
    raw |= {name: message.of(raw.get(name)) for name in _MESSAGES}
    raw["said"] = [message.of(one) for one in raw.get("said") or []]
    return Status(**{k: v for k, v in raw.items() if k in known})


def _old_cause(raw: Mapping[str, Any]) -> Any:
    """The reason of an older studio: its sentence, under its code."""
    code, text = str(raw.get("reason_code") or ""), str(raw.get("reason") or "")
    return {"code": f"{code}.told", "values": {"text": text}} if code else text
