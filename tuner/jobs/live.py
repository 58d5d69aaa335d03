"""The worker's end of a run of any kind: phases, progress, metrics out; stop and cancel in. No torch."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tuner.runs.files import FULL
from tuner.runs.inputs import DataInput, record_inputs
from tuner.runs.metrics import MetricsLog, SilentLog
from tuner.runs.run import Run, SilentRun
from tuner.text.lookup import tr
from tuner.text.message import Message, render, term

Asked = Literal["stop", "cancel"]
MIN_WRITE_INTERVAL = 0.3  # seconds between two writes of the status: a reader polls once a second


class StoppedError(Exception):
    """Someone asked the run to end where there is nothing to save."""


class DivergedError(FloatingPointError):
    """The loss is no number any more; the message says which and where."""


@dataclass(frozen=True)
class Outcome:
    """What a run's work hands back. `weights` is the folder with the adapter or model; None where nothing was trained.

    `cause` is why it was stopped, where that is known better here. `files` are what else it leaves behind, kept as artifacts. `base` is what the adapter fits: an absolute folder or a hub name. `metrics` are the totals of all_results.json.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Path | None = None
    adapter: bool = False
    base: str = ""
    stopped: bool = False
    cause: Message = field(default_factory=Message)
    files: tuple[Path, ...] = ()


def gone(run: Run) -> FileNotFoundError:
    """What to raise for a run whose folder was deleted."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run.folder))


@contextmanager
def unless_full() -> Iterator[None]:
    """Do without a note of progress on a full disk: only what cannot be saved ends a run there."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


class Live:
    """A run of any kind while its worker lives."""

    def __init__(self, run: Run, output: Path | None = None):
        self.run = run
        self.output = output or run.folder / "output"
        silent = isinstance(run, SilentRun)
        self.log = SilentLog() if silent else MetricsLog(run)
        self.asked: Asked | None = None
        self.at_work = False  # from the first step on, the work ends itself when asked to, and saves
        self.quiet = threading.Event()  # set on every rank but the first
        if silent:
            self.quiet.set()
        self.pids: Mapping[int, int] = {}  # of the run's other processes, by their ranks
        self._written: dict[str, float] = {}
        self._works_since = 0.0
        self._signals = 0

    # --- what others ask

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the run (a checkpoint first); a second one cancels it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._signalled) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # Counted apart from `asked`: whoever stops a run leaves a word in its folder, too, and that is the same wish.
        self._signals += 1
        self.asked = "cancel" if self._signals > 1 or self.asked == "cancel" else "stop"

    def wanted(self) -> Asked | None:
        """What was asked of this run, by a signal or by a word in its folder.

        Raises FileNotFoundError when that is gone: a save would make a new one, and it would look like a run.
        """
        if self.quiet.is_set():
            return self.asked  # the first process hears it, and tells
        if not self.run.exists:
            raise gone(self.run)
        if self.run.requested("cancel"):
            self.asked = "cancel"
        elif self.asked is None and self.run.requested("stop"):
            self.asked = "stop"
        return self.asked

    def check(self) -> None:
        """End here if somebody asked for it: there is nothing to save yet. Raises StoppedError."""
        if self.wanted() and not self.at_work:
            raise StoppedError

    # --- what it tells

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what is going on, by a code of text/, and add its seconds to the run's record."""
        self.check()
        before, began = self.run.status().phase, time.perf_counter()
        self.run.update(phase=name)
        self.say(f"{term('phase', name)} ...")
        try:
            yield
        finally:
            took = time.perf_counter() - began
            after = self.run.update(
                phase=before,
                seconds=lambda now: {**now.seconds, name: round(now.seconds.get(name, 0.0) + took, 3)},
            )
            self.say(f"{term('phase', name)}: {after.seconds[name]:.1f} s")

    def progress(self, share: float, doing: Message) -> None:
        """How far a phase is, 0 to 1; what the data room calls back. Raises StoppedError when asked to."""
        self.check()
        if self._due("progress") or share >= 1:
            with unless_full():
                self.run.update(part=round(share, 4), doing=doing)

    def note(self, said: Message) -> None:
        """Something that the person who reads the run's page should know."""
        if said not in self.run.status().said:
            self.run.update(said=lambda now: [*now.said, said])
            self.say(render(said))

    def learned_from(self, inputs: Iterable[DataInput]) -> None:
        """Note the data sets, so that the record says what the run was made of even if it fails."""
        record_inputs(self.run, inputs)

    def record(self, **facts: Any) -> None:
        """Facts about the run: fields of its status."""
        self.run.update(**facts)

    def say(self, text: str) -> None:
        """A line of the log."""
        if not self.quiet.is_set():
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def _due(self, what: str) -> bool:
        """Whether it is time to write again what is told; each by itself, or one would keep the other from its turn."""
        if self.quiet.is_set() or time.monotonic() - self._written.get(what, 0.0) < MIN_WRITE_INTERVAL:
            return False
        self._written[what] = time.monotonic()
        return True

    # --- work that goes on in steps

    def began(self, step: int, total: int) -> None:
        """The first step is about to be made; `step` are done already, of `total`."""
        self.at_work = True
        if self.quiet.is_set():
            return
        self._works_since = time.monotonic()
        self.run.update(
            state="running",
            trained_seconds=0.0,
            first_step=step,
            step=step,
            total_steps=total,
        )

    def stepped(self, step: int, total: int, epoch: float = 0.0, tokens: int = 0, pace: float = 0.0) -> None:
        """A step is done. `pace` is tokens a second."""
        if self._due("step") or step == total:
            state = "stopping" if self.asked else "running"
            with unless_full():
                self.run.update(
                    state=state,
                    step=step,
                    total_steps=total,
                    trained_seconds=round(time.monotonic() - self._works_since, 3),
                    epoch=epoch,
                    tokens=tokens,
                    tokens_per_second=round(pace, 2),
                )

    def measured(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl and one line of the log. Raises DivergedError when the loss is no number."""
        row = {n: float(v) for n, v in values.items() if isinstance(v, int | float) and n not in _TOTALS}
        row = {n: v for n, v in row.items() if not n.endswith(_CLOCKS) and not n.startswith("train_")}
        if not row or self.quiet.is_set():
            return
        self.log.log(step, row, time.time())
        self.say(f"step {step}  " + "  ".join(f"{n} {v:.4g}" for n, v in row.items()))
        for name, value in row.items():
            is_loss = name == "loss" or name.startswith("eval_") and name.endswith("_loss")
            if is_loss and not math.isfinite(value):
                raise DivergedError(
                    tr("{name} became {value} at step {step}", name=name, value=value, step=step)
                )


_TOTALS = frozenset({"total_flos", "step"})
_CLOCKS = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")
