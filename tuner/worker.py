"""The process in which one run lives: holds its lock, calls its stage, settles how it ended.

`python -m tuner.worker <run_id>` from the queue, `run_here` for `tuner train`: the same code.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from tuner import hardware
from tuner.engine.live import LiveRun, Outcome, StoppedError
from tuner.jobs import liveness, reasons
from tuner.tracking import adapters, outcome
from tuner.tracking.metrics import Mirror
from tuner.tracking.run import Run, State

EXIT = {"finished": 0, "stopped": 0, "failed": 1}


def main(run_id: str) -> int:
    """Live one run. Returns the exit code: 0 finished or stopped, 1 failed, 2 refused."""
    run = Run(run_id)
    if not run.exists:
        print(f"There is no run {run_id}; `tuner runs` lists them.", file=sys.stderr)
        return 2
    try:
        return run_here(run)
    except liveness.Busy as busy:
        print(busy, file=sys.stderr)
        return 2


def run_here(run: Run) -> int:
    """Live a run in this process, its output in log.txt too. Raises liveness.Busy when another worker has it."""
    lock = liveness.hold(run)
    try:
        with logging_to(run):
            return _live(run)
    finally:
        os.close(lock)


def _live(run: Run) -> int:
    run.update(
        state="preparing", started=time.time(), pid=os.getpid(), boot_id=hardware.boot_id(), ended=0.0, exit_code=None,
        reason="", reason_code="", remedies=[],
    )  # fmt: skip
    live: LiveRun | None = None
    mirror = Mirror(run)
    result = Outcome()
    try:
        live = LiveRun(run, run.config())
        with live.listening():
            result = _stage(live)
            state, reason = _ended(live, result)
    except StoppedError:
        state, reason = (
            "stopped",
            reasons.Reason("stopped", "StoppedError before the first step; nothing was saved."),
        )
    except Exception as error:  # noqa: BLE001  whatever it was, the run must end with a reason
        traceback.print_exc(file=sys.stderr)
        state, reason = "failed", reasons.from_exception(error, run.values())
    finally:
        run.forget_requests()
    return _settle(run, mirror, state, reason)


def _stage(live: LiveRun) -> Outcome:
    """Train, then register what came out: the last step, so that what is registered is whole."""
    config = live.config
    with live.phase("loading libraries"):
        stage = importlib.import_module(f"tuner.stages.{config.stage}")
    result: Outcome = stage.train(config, live)
    outcome.note_inputs(live.run, result.inputs)
    if result.adapter and result.weights and not result.stopped:
        with live.phase("registering the adapter"):
            row = adapters.register(live.run, result.weights, base=result.base)
            live.record(adapter=row.name, adapter_version=row.version)
    return result


def _ended(live: LiveRun, result: Outcome) -> tuple[State, reasons.Reason]:
    if not result.stopped:
        return "finished", reasons.Reason("", "")
    kept = live.run.status().extra.get("checkpoint_step")
    if live.asked == "cancel" or kept is None:
        return "stopped", reasons.Reason("cancelled", "Cancelled; what was not saved before is gone.")
    return "stopped", reasons.Reason(
        "stopped", f"StoppedError at step {kept}; resume goes on from there.", [reasons.RESUME]
    )


def _settle(run: Run, mirror: Mirror, state: State, reason: reasons.Reason) -> int:
    """The last words: the reason, everything sent to MLflow, the end of the run there."""
    run.update(phase="closing", **reason.changes())
    mirror.close(timeout=30)
    outcome.finish(run, state, reason.sentence)
    run.update(state=state, phase="", ended=time.time(), exit_code=EXIT[state])
    (run.folder / "secrets.json").unlink(missing_ok=True)
    print(f"{run.id} {state}" + (f": {reason.sentence}" if reason.sentence else ""), flush=True)
    return EXIT[state]


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Everything printed goes to the run's log as well, unless that is where it goes already."""
    with run.log_path.open("a", encoding="utf-8", buffering=1) as log:
        if _same_file(sys.stdout, log):
            yield
            return
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Both(before[0], log), Both(log)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _same_file(one: Any, other: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError, AttributeError):
        return False


class Both:
    """A text stream that writes to several."""

    def __init__(self, *streams: IO[str]):
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._streams[0].fileno()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tuner.worker RUN_ID")
    sys.exit(main(sys.argv[1]))
