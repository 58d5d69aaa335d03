"""What one studio answers, in CPU seconds of this process: `python -m scale.ask WHAT`, with TUNER_HOME and a tree's tuner
on the path. One line of JSON; what that tree cannot be asked is null.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from scale import world

TIMES = 3
LONG = 5.0
ROWS = 15
"""As many as a hundred runs have of each question: a fuller page costs more, whatever it was chosen from."""


def cost(ask: Callable[[], object], times: int = TIMES, before: Callable[[], object] = lambda: None) -> float:
    """CPU seconds, the least of a few; of what takes long, of fewer. What is done before each is not counted."""
    took: list[float] = []
    while len(took) < times and sum(took) < LONG:
        before()
        began = time.process_time()
        ask()
        took.append(time.process_time() - began)
    return min(took)


def fill(runs: int, adapters: int) -> dict[str, Any]:
    world.fill_runs(runs)
    world.fill_adapters(adapters)
    return {"runs": runs}


def fill_curves(runs: int, points: int, most: int) -> dict[str, Any]:
    for id in world.fill_runs(runs):
        world.fill_curve(id, points)
    fill_long(most)
    return {"runs": runs}


def fill_long(points: int) -> None:
    """A run of so many points, in its folder only: a tracker takes an hour to fill."""
    from tuner import paths

    (id,) = world.fill_runs(1, begin=500)
    with (paths.runs() / id / "metrics.jsonl").open("w") as file:
        file.writelines(
            f'{{"step": {s}, "time": {world.BEGAN + s}, "loss": {s * 7919 % 10007 / 10007}}}\n'
            for s in range(points)
        )


def lists() -> dict[str, Any]:
    """Questions that lists ask, and MLflow's own calls on the same store."""
    from tuner.jobs import queue
    from tuner.tracking import runs, store
    from tuner.tracking.runs import RunFilter

    asked: dict[str, Callable[[], object]] = {
        "newest": lambda: runs.list_runs(size=ROWS),
        "search": lambda: runs.list_runs(RunFilter(text="beta"), size=ROWS),
        "failed": lambda: runs.list_runs(RunFilter(states=("failed",)), size=ROWS),
        "one": lambda: runs.get_row(world.run_id(40)),
        "choices": runs.choices,
        "queue": queue.queue,
    }
    found = {name: cost(ask) for name, ask in asked.items()}
    found |= {f"{name}_changed": cost(ask, 5, _changed) for name, ask in asked.items()}
    client = store.open_store()
    where = [store.experiment_id(client)]
    order = ["attributes.start_time DESC"]
    beta = "attributes.run_name LIKE '%beta%'"
    found["newest_mlflow"] = cost(lambda: client.search_runs(where, max_results=ROWS, order_by=order))
    found["search_mlflow"] = cost(lambda: client.search_runs(where, beta, max_results=ROWS, order_by=order))
    return found


def _changed() -> None:
    """A commit by somebody else, after which nothing that was kept of the file is good. One that changes no value is none."""
    from tuner.tracking import store

    with closing(sqlite3.connect(store.database())) as db, db:  # type: ignore[arg-type]
        db.execute("UPDATE runs SET end_time = end_time + 1 WHERE rowid = 1")


def page(name: str) -> dict[str, Any]:
    """A page drawn again by Streamlit's own tester."""
    from streamlit.testing.v1 import AppTest

    tester = AppTest.from_file(str(Path.cwd() / "app.py"), default_timeout=300)
    tester.run()
    if name != "home":
        if name == "compare":
            tester.query_params["run"] = [world.run_id(n) for n in (40, 41, 42)]
        tester.switch_page(f"pages/{name}.py")
        tester.run()
    time.sleep(6)  # what is got ready beside the first page is no page's cost
    took = cost(tester.run)
    said = [str(e.value) for e in tester.exception]
    return {"seconds": None if said else took, "exception": said[:1]}


def curves(count: int) -> dict[str, Any]:
    """The first draw of so many long curves, and the next one."""
    from tuner.tracking import history

    ids = [world.run_id(n) for n in range(count)]
    return _drawn(lambda: history.history(ids, "loss"))


def long_curve() -> dict[str, Any]:
    """A run's own page of ten times as many points."""
    from tuner.runs import points
    from tuner.runs.run import Run

    return _drawn(lambda: points.tail(Run(world.run_id(500))).series("loss"))


def _drawn(ask: Callable[[], object]) -> dict[str, Any]:
    first, again = cost(ask, 1), cost(ask)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": first, "again": again, "peak_mib": peak}


def waiting(count: int) -> dict[str, Any]:
    """`tuner queue`, and an idle look of the supervisor, where so many wait."""
    from tuner.jobs import queue
    from tuner.jobs.supervisor import Supervisor
    from tuner.runs.run import Run

    for id in world.fill_runs(count):
        Run(id).update(state="queued", ended=0.0)
        os.utime(Run(id).folder, (1e9, 1e9))
    queue.pause()
    supervisor = Supervisor()
    supervisor._settle = lambda *_: False  # type: ignore[method-assign]  # telling MLflow is another process's work
    supervisor.tick()
    return {"queue": cost(queue.queue), "look": cost(supervisor.tick)}


ASKED: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (fill, fill_curves, lists, page, curves, long_curve, waiting)
}


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    print(json.dumps(ASKED[what](*(int(w) if w.isdigit() else w for w in words))), flush=True)
