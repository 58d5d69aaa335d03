"""The real worker with a stage that learns nothing and needs no torch: it makes steps, tells of them, saves, goes on.

`python -m tests.browser.paced_worker RUN_ID`. The file `pace` in the studio's home has the seconds that a step takes; it
may be changed while a run is at work.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tuner import paths, worker
from tuner.engine.live import LiveRun
from tuner.jobs.live import Outcome
from tuner.runs import checkpoints

NAME = "tests.browser.paced_worker"


def pace(home: Path) -> float:
    file = home / "pace"
    return float(file.read_text()) if file.exists() else 0.05


def train(live: LiveRun, _mirror: object) -> Outcome:
    """Steps to the last, or until it is asked to stop."""
    total, goes_on = live.config.max_steps, live.run.status().resume_from
    begun = checkpoints.step_of(Path(goes_on)) if goes_on else 0
    with live.phase("training"):
        live.began(begun, total)
        for step in range(begun + 1, total + 1):
            time.sleep(pace(paths.home()))
            tell(live, step, total)
            if (asked := live.wanted()) and step < total:
                if asked == "stop":
                    save(live, step)
                return Outcome(stopped=True)
    return Outcome()


def tell(live: LiveRun, step: int, total: int) -> None:
    if step % live.config.logging_steps == 0:
        left = 1 / step
        live.measured(
            step, {"loss": left, "grad_norm": left, "learning_rate": left, "mean_token_accuracy": 1 - left}
        )
    live.stepped(step, total)


def save(live: LiveRun, step: int) -> None:
    folder = live.place_checkpoints() / f"checkpoint-{step}"
    folder.mkdir()
    save_file({"weights": np.zeros(4, dtype=np.float32)}, folder / "adapter_model.safetensors")
    live.sealed(step, None)


if __name__ == "__main__":
    worker._train = train
    sys.exit(worker.main(sys.argv[1]))
