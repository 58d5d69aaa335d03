"""One of several that write at once: `python -m tests.scale.fleet_writer status|batches SECONDS`, with TUNER_HOME. Prints its rate."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable

from tuner.config.config import make
from tuner.runs.run import Run


def statuses() -> Callable[[int], object]:
    run = Run(uuid.uuid4().hex)
    run.create(make({"model_name_or_path": "m"}), "a writer")
    return lambda step: run.update(state="running", step=step)


def batches() -> Callable[[int], object]:
    from mlflow.entities import Metric

    from tuner.tracking.store import experiment_id, open_store

    client = open_store()
    row = client.create_run(experiment_id(client))

    def send(step: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(row.info.run_id, metrics=[Metric(f"m{n}", step + n, now, step) for n in range(20)])

    return send


def main(what: str, seconds: float) -> None:
    write, step = {"status": statuses, "batches": batches}[what](), 0
    write(step)
    # Several that were started together begin together: imports take seconds.
    time.sleep(max(0.0, float(os.environ.get("FLEET_BEGIN") or 0) - time.time()))
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        step += 1
        write(step)
    print(step / (time.monotonic() - began))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
