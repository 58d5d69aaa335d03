"""A run that seems to train: it holds its lock and measures a step every so often, at next to no cost of its own.

`python -m tests.scale.live_run ID SECONDS [EVERY]`, with TUNER_HOME and the tree's own tuner on the path.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time

from tuner import hardware
from tuner.runs import worker_lock
from tuner.runs.run import Run

TOTAL = 5000


def main() -> None:
    run, seconds = Run(sys.argv[1]), float(sys.argv[2])
    every = float(sys.argv[3]) if len(sys.argv) > 3 else 0.5
    handle = worker_lock.hold(run)
    began = time.monotonic()
    state = {"state": "running", "phase": "training", "pid": os.getpid(), "boot_id": hardware.boot_id()}
    run.update(**state, started=time.time(), began=began, total_steps=TOTAL, ended=0.0)
    with run.metrics_path.open("a") as file:
        step = 0
        while time.monotonic() < began + seconds:
            step += 1
            file.write(json.dumps(row(step)) + "\n")
            file.flush()
            run.update(step=step, trained_seconds=time.monotonic() - began)
            time.sleep(every)
    run.update(state="finished", ended=time.time())
    os.close(handle)


def row(step: int) -> dict[str, float]:
    """What a preference run measures at a step."""
    value = math.exp(-step / 300)
    names = ("loss", "grad_norm", "learning_rate", "rewards/margins", "rewards/accuracies", "rewards/chosen")
    measured = {name: value + n for n, name in enumerate((*names, "rewards/rejected", "tokens_per_second"))}
    return {"step": step, "time": time.time(), **measured}


if __name__ == "__main__":
    main()
