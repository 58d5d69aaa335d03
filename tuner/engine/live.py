"""The worker's end of a run: phases, progress, metrics out; stop and cancel in. No torch until the callback is made."""

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
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from tuner import private
from tuner.config.config import Config
from tuner.text.message import Message, message, render, term
from tuner.tracking import checkpoints
from tuner.tracking.disk import FULL
from tuner.tracking.inputs import DataInput, record_inputs
from tuner.tracking.metrics import MetricsLog, Mirror
from tuner.tracking.run import Run

if TYPE_CHECKING:
    from transformers import TrainerCallback

Asked = Literal["stop", "cancel"]
BREATH = 0.3  # seconds between two writes of the status: a reader polls once a second


class StoppedError(Exception):
    """Someone asked the run to end where there is nothing to save."""


class DivergedError(FloatingPointError):
    """The loss is no number any more; the message says which and where."""


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back. `weights` is the folder with the adapter or model; None where nothing was trained.

    `base` is what the adapter fits: an absolute folder or a hub name. `metrics` are the totals of all_results.json.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Path | None = None
    adapter: bool = False
    base: str = ""
    stopped: bool = False


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


class LiveRun:
    """A run while its worker lives."""

    def __init__(self, run: Run, config: Config):
        self.run, self.config = run, config
        self.output: Path = checkpoints.output_of(run, config)
        self.log = MetricsLog(run)
        self.mirror: Mirror | None = None
        self.asked: Asked | None = None
        self.training = False  # from the first step on, the loop ends itself and saves
        self.quiet = threading.Event()  # set on every rank but the first
        self._written = 0.0
        self._trains_since = 0.0
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
        if not self.run.exists:
            raise gone(self.run)
        if self.run.requested("cancel"):
            self.asked = "cancel"
        elif self.asked is None and self.run.requested("stop"):
            self.asked = "stop"
        return self.asked

    def check(self) -> None:
        """End here if somebody asked for it: there is nothing to save yet. Raises StoppedError."""
        if self.wanted() and not self.training:
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
        if self._due() or share >= 1:
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

    def _due(self) -> bool:
        if self.quiet.is_set() or time.monotonic() - self._written < BREATH:
            return False
        self._written = time.monotonic()
        return True

    # --- the training loop's side

    @cached_property
    def callback(self) -> TrainerCallback:
        """Made late, because transformers takes seconds to import."""
        return _callback(self)

    def began(self, step: int, total: int) -> None:
        """The first optimizer step is about to be made."""
        self.training = True
        self.mirror = self.mirror or Mirror(
            self.run
        )  # not before: importing mlflow would delay the first step
        if self.quiet.is_set():
            return
        self._trains_since = time.monotonic()
        self.run.update(
            state="running",
            trained_seconds=0.0,
            first_step=step,
            step=step,
            total_steps=total,
        )

    def stepped(self, step: int, total: int, epoch: float, tokens: int, pace: float) -> None:
        """An optimizer step is done. `pace` is tokens a second."""
        if self._due() or step == total:
            state = "stopping" if self.asked else "running"
            with unless_full():
                self.run.update(
                    state=state,
                    step=step,
                    total_steps=total,
                    trained_seconds=round(time.monotonic() - self._trains_since, 3),
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
                raise DivergedError(f"{name} became {value} at step {step}")

    def sealed(self, step: int, best: str | None) -> None:
        """A checkpoint was written: make it count, then let go of the oldest."""
        if self.quiet.is_set():
            return
        folder = self.run.checkpoints / f"checkpoint-{step}"
        if folder.is_dir():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
            checkpoints.seal(folder, self.run)
            if self.config.output_dir:
                private.share(folder, *folder.rglob("*"))
            checkpoints.rotate(self.run, self.config.save_total_limit, Path(best) if best else None)
            self.record(checkpoint=str(folder.resolve()), checkpoint_step=step, checkpoint_time=time.time())
            self.say(f"saved {folder.name}")

    def place_checkpoints(self) -> Path:
        """The folder checkpoints go to: inside output_dir where one is given, as users of it expect; the run links it."""
        if not self.config.output_dir:
            self.run.checkpoints.mkdir(exist_ok=True)
            return self.run.checkpoints
        with private.as_the_person():
            self.output.mkdir(parents=True, exist_ok=True)
        if not self.run.checkpoints.exists():
            self.run.checkpoints.symlink_to(self.output, target_is_directory=True)
        return self.output


_TOTALS = frozenset({"total_flos", "step"})
_CLOCKS = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")


def _measured(done: int, loader: Any) -> tuple[float, Message]:
    """How far a measurement is and in words; a long one must be seen to get on, for it makes no steps."""
    try:
        return done / len(loader), message("doing.batches", done=done, total=len(loader))
    except TypeError:  # streamed rows have no number
        return 0.0, message("doing.batches", done=done, total=0)


def _callback(live: LiveRun) -> TrainerCallback:
    from transformers import TrainerCallback

    class Reports(TrainerCallback):
        """Carries the loop's events to the run, and the run's wishes to the loop."""

        def __init__(self) -> None:
            self.tokens, self.at, self.pace = 0, time.perf_counter(), 0.0
            self.batches = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            live.quiet.clear() if state.is_world_process_zero else live.quiet.set()
            self.tokens, self.at = state.num_input_tokens_seen, time.perf_counter()
            live.began(state.global_step, state.max_steps)

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if live.wanted() == "cancel":
                control.should_training_stop = True
            return control

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            live.stepped(
                state.global_step, state.max_steps, state.epoch or 0.0, state.num_input_tokens_seen, self.pace
            )
            asked = live.wanted()
            if asked and state.global_step < state.max_steps:
                control.should_save = asked == "stop"
                control.should_evaluate = False
                control.should_training_stop = True
            return control

        def on_prediction_step(
            self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any
        ) -> None:
            if live.wanted() == "cancel":
                raise StoppedError
            self.batches += 1
            live.progress(*_measured(self.batches, eval_dataloader))

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.batches = 0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            values = dict(logs or {})
            if "loss" in values:
                self._measure_pace(state)
                values["tokens_per_second"] = self.pace
            if not state.is_world_process_zero or "train_runtime" in values and "loss" not in values:
                return
            live.measured(state.global_step, values)

        def _measure_pace(self, state: Any) -> None:
            now = time.perf_counter()
            self.pace = (state.num_input_tokens_seen - self.tokens) / max(now - self.at, 1e-9)
            self.tokens, self.at = state.num_input_tokens_seen, now

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                live.sealed(state.global_step, state.best_model_checkpoint)

    return Reports()
