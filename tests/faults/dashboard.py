"""What a dashboard does for runs, without a page: it submits, resumes, looks, and sees to it that a supervisor lives.

`python -m tests.faults.dashboard RUNS STEPS TRACKED SEED` goes on until RUNS ids stand in `submitted`, and longer.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

from tuner import paths
from tuner.config.config import Config, check
from tuner.jobs import control, queue, submit
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs.run import Run


def submitted() -> Path:
    return paths.mlruns() / "submitted"


def ids() -> list[str]:
    with suppress(FileNotFoundError):
        return [line for line in submitted().read_text().split("\n")[:-1] if line]
    return []


def config(steps: int) -> Config:
    made, _ = check({"model_name_or_path": "m", "max_steps": steps, "save_steps": 3})
    assert made is not None
    return made


def submit_one(steps: int, tracked: bool) -> None:
    if tracked:
        run = submit.submit(config(steps), "storm")
    else:
        run = Run(uuid.uuid4().hex)
        run.create(config(steps), "storm")
        submit.launch(run)
    with submitted().open("a") as file:
        file.write(run.id + "\n")


def main(total: int, steps: int, tracked: bool, seed: int) -> None:
    chance = random.Random(seed)
    while True:
        ensure_supervisor(only_if_needed=True)
        rows = queue.queue()
        if len(rows) < 3 and len(ids()) < total:
            submit_one(chance.randint(2, steps), tracked)
        elif ids():
            run = Run(chance.choice(ids()))
            with suppress(control.Refused):
                if chance.random() < 0.3 and run.status().resumes < 3:
                    control.resume(run)
        time.sleep(0.2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "tracked", int(sys.argv[4]))
