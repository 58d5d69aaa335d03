"""The worker's end of a training run: what the loop tells, checkpoints, callback. No torch until the callback is made."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import private
from tuner.config.config import Config
from tuner.jobs.live import Live, StoppedError
from tuner.runs import checkpoints
from tuner.runs.run import Run
from tuner.text.message import Message, message

if TYPE_CHECKING:
    from transformers import TrainerCallback


class LiveRun(Live):
    """A training run while its worker lives."""

    def __init__(self, run: Run, config: Config):
        super().__init__(run, checkpoints.output_of(run, config))
        self.config = config

    @cached_property
    def callback(self) -> TrainerCallback:
        """Made late, because transformers takes seconds to import."""
        return _callback(self)

    def sealed(self, step: int, best: str | None) -> None:
        """A checkpoint was written: make it count, then let go of the oldest."""
        if self.quiet.is_set():
            return
        folder = self.run.checkpoints / f"checkpoint-{step}"
        if folder.is_dir():
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
            checkpoints.seal(
                folder,
                self.run,
                processes=self.config.processes,
                examples_per_step=self.config.examples_per_step,
            )
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
        if not self.quiet.is_set() and not self.run.checkpoints.exists():
            self.run.checkpoints.symlink_to(self.output, target_is_directory=True)
        return self.output


def _measured(done: int, loader: Any) -> tuple[float, Message]:
    """How far a measurement is and in words; a long one must be seen to get on, for it makes no steps."""
    try:
        return done / len(loader), message("doing.batches", done=done, total=len(loader))
    except TypeError:  # streamed rows have no number
        return 0.0, message("doing.batches", done=done, total=0)


def _callback(live: LiveRun) -> TrainerCallback:
    from transformers import TrainerCallback

    from tuner.engine import group

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
            live.asked = group.agreed(live.wanted())
            if live.asked == "cancel":
                control.should_training_stop = True
            return control

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            live.stepped(
                state.global_step, state.max_steps, state.epoch or 0.0, state.num_input_tokens_seen, self.pace
            )
            live.asked = asked = group.agreed(live.wanted())
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
            group.wait()  # each process saves the state of its own random numbers
            if state.is_world_process_zero:
                live.sealed(state.global_step, state.best_model_checkpoint)

    return Reports()
