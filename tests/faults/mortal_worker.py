"""The real worker, killed at an exact place in its training loop: a file `fault` in the run's folder names it once.

`substep@5` after the first micro-batch of step 5, `step@5` after step 5, `save@6` after the checkpoint of step 6 is
sealed, `saved@6` before it is: the trainer's own files are there and nothing vouches for them. `phase@loading_model` as
that phase begins. `1:step@5` names the process of the run that dies, where it has several; else it is the first.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from tuner import worker
from tuner.engine import live
from tuner.jobs import ranks
from tuner.runs.run import Run


def arm(run: Run) -> None:
    """Make the callback of this process deadly, if the run's folder says so; only once."""
    file = run.folder / "fault"
    if not file.exists():
        return
    rank, _, fault = file.read_text().rpartition(":")
    if int(rank or 0) != ranks.rank():
        return
    event, _, at = fault.partition("@")
    file.unlink()
    if event == "phase":
        live.LiveRun.phase = _deadly_at(at, live.LiveRun.phase)
        return
    make = live._callback

    def mortal(alive: live.LiveRun) -> Any:
        callback = make(alive)
        name = {"substep": "on_substep_end", "step": "on_step_end"}.get(event, "on_save")
        real = getattr(callback, name)

        def deadly(args: Any, state: Any, control: Any, **more: Any) -> Any:
            # Inside an accumulation the step that is being made is not counted yet.
            if state.global_step + (event == "substep") != int(at):
                return real(args, state, control, **more)
            if event != "saved":
                real(args, state, control, **more)
            os.kill(os.getpid(), signal.SIGKILL)
            return control

        setattr(callback, name, deadly)
        return callback

    live._callback = mortal


def _deadly_at(name: str, phase: Any) -> Any:
    def begin(self: Any, which: str) -> Any:
        if which == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return phase(self, which)

    return begin


if __name__ == "__main__":
    arm(Run(sys.argv[1]))
    sys.exit(worker.main(sys.argv[1]))
