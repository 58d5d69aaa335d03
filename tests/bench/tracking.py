"""Lists and curves against MLflow's own API on the same store, and a run whose tracker is dead for half of it.

    python tests/bench/tracking.py [RUNS]      # all of it, 10,000 runs unless said otherwise
    python tests/bench/tracking.py away        # only the run

One line of JSON a case. Lists: seconds of both and their ratio; `same` says that both gave the same answer. The run: the
median time of a training step while the tracker answers and while it takes every call and never answers, turn by turn
in one run of the real worker, and what of its points MLflow has in the end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402
from faults.proxy import Proxy  # noqa: E402
from faults.tracker import Tracker  # noqa: E402

from tuner.config.config import make  # noqa: E402
from tuner.config.writing import params  # noqa: E402
from tuner.runs.run import Run  # noqa: E402
from tuner.tracking import history, runs, store  # noqa: E402

TURNS = 8  # the tracker answers in the first, the third and so on
TURN = 10.0  # seconds
TAGS = 20
METRICS = 15
LONG = 100_000


def fill(count: int) -> str:
    """`count` runs with all params, 20 tags, 15 metrics of 20 points; the last one has a curve of 100,000. Its id."""
    store.new_database(store.database())  # type: ignore[arg-type]
    now = int(time.time() * 1000)
    ids = [f"{i:032x}" for i in range(count)]
    with closing(sqlite3.connect(store.database())) as db, db:  # type: ignore[arg-type]
        db.execute("PRAGMA synchronous=OFF")
        db.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, "
            "artifact_uri, source_type, user_id) VALUES (?, ?, 'FINISHED', ?, ?, 'active', 1, '/none', 'LOCAL', 'me')",
            ((id, f"run {i}", now + i, now + i + 60_000) for i, id in enumerate(ids)),
        )
        for i, id in enumerate(ids):
            values = params(
                make({"stage": ("sft", "dpo", "kto")[i % 3], "model_name_or_path": f"models/m{i % 7}"})
            )
            db.executemany("INSERT INTO params VALUES (?, ?, ?)", ((k, v, id) for k, v in values.items()))
            tags = {f"version/{n}": "1.2.3" for n in range(TAGS - 1)} | {"state": "finished"}
            db.executemany("INSERT INTO tags VALUES (?, ?, ?)", ((k, v, id) for k, v in tags.items()))
            names = ["loss", *(f"rewards/m{n}" for n in range(METRICS - 1))]
            value = (i * 7919) % count / count
            db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, 0)",
                ((name, value + s, now + s, id, s) for name in names for s in range(20)),
            )
            db.executemany(
                "INSERT INTO latest_metrics VALUES (?, ?, ?, 19, 0, ?)",
                ((n, value + 19, now, id) for n in names),
            )
        for name in ("long", *(f"other{n}" for n in range(4))):
            db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, 0)",
                ((name, float(s % 977), now + s, ids[-1], s) for s in range(LONG)),
            )
    return ids[-1]


def seconds(work: Callable[[], Any], times: int) -> tuple[float, Any]:
    """The median time of a call, and what it gave."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        answer = work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), answer


def cases(count: int = 10_000) -> Iterator[dict[str, Any]]:
    """Fill a store of `count` runs, then time each question both ways."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["TUNER_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        long_run = fill(count)
        client = store.open_store()

        def search(**what: Any) -> list[str]:
            return [run.info.run_id for run in client.search_runs(["1"], max_results=50, **what)]

        def listed(**what: Any) -> list[str]:
            return [row.id for row in runs.list_runs(runs.RunFilter(**what)).items]

        def whole() -> list[str]:
            found, token = [], None
            while True:
                page = client.search_runs(["1"], max_results=1000, page_token=token)
                found += [run.info.run_id for run in page]
                token = page.token
                if not token:
                    return found

        questions: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
            ("newest 50", lambda: listed(), lambda: search()),
            (
                "stage dpo, best 50 by loss",
                lambda: listed(stage="dpo", sort="metrics.loss", descending=False),
                lambda: search(filter_string="params.stage = 'dpo'", order_by=["metrics.loss ASC"]),
            ),
            (
                "every run",
                lambda: [row.id for row in runs.list_runs(size=count).items],
                whole,
            ),
            (
                "curve of 100,000 points",
                lambda: len(history.history([long_run], "long", LONG)[long_run][0]),
                lambda: len(client.get_metric_history(long_run, "long")),
            ),
        ]
        for name, ours, theirs in questions:
            our_time, our_answer = seconds(ours, 5)
            their_time, their_answer = seconds(theirs, 1)
            yield {
                "case": f"tracking: {name}",
                "runs": count,
                "seconds": round(our_time, 4),
                "mlflow_seconds": round(their_time, 4),
                "ratio_to_mlflow": round(their_time / our_time, 1),
                "same": our_answer == their_answer,
            }


def away() -> dict[str, Any]:
    """One run through a tracker that is shut every other turn; the last turn is one with it, as in a run that goes on."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ |= {"TUNER_HOME": home, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        tracker = Tracker()
        tracker.start()
        proxy = Proxy(tracker.port)
        try:
            os.environ["MLFLOW_TRACKING_URI"] = proxy.uri
            run = _trained_through(proxy, Path(home))
            os.environ["MLFLOW_TRACKING_URI"] = tracker.uri
            got = [p.step for p in store.open_store().get_metric_history(run[0].id, "loss")]
        finally:
            tracker.kill()
        return _compared(*run, got)


def _trained_through(proxy: Proxy, home: Path) -> tuple[Run, list[tuple[float, bool]]]:
    """A run that was stopped after all turns, and when each turn began and whether the tracker answered in it."""
    values = {
        "model_name_or_path": str(tiny.model(home / "model")),
        "dataset_dir": str(tiny.data(home / "data")),
        "stage": "sft",
        "do_train": True,
        "dataset": "chat",
        "max_steps": 1_000_000,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
    }
    run = runs.create_run(make(values), "half of it alone")
    worker = subprocess.Popen(
        [sys.executable, "-m", "tuner.worker", run.id], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while run.status().step < 50:
        time.sleep(0.1)
    turns = []
    for turn in range(TURNS):
        answers = turn % 2 == 0
        proxy.open.set() if answers else proxy.shut()
        turns.append((time.time(), answers))
        time.sleep(TURN)
    turns.append((time.time(), True))
    proxy.open.set()
    run.request("stop")
    if worker.wait(120):
        raise SystemExit(run.log_tail(2000))
    return run, turns


def _compared(run: Run, turns: list[tuple[float, bool]], got: list[int]) -> dict[str, Any]:
    """Step times of both kinds of turns, and the points that MLflow lacks or has twice."""
    rows = [row for row in run.metrics()[0] if "loss" in row]
    steps: dict[bool, list[float]] = {True: [], False: []}
    for row, following in pairwise(rows):
        turn = [answers for began, answers in turns[:-1] if began <= row["time"]]
        if turn and following["time"] < turns[-1][0]:
            steps[turn[-1]].append(following["time"] - row["time"])
    normal, dead = statistics.median(steps[True]), statistics.median(steps[False])
    return {
        "case": "tracking: a training step while the tracker is dead for half the run",
        "steps": len(rows),
        "step_ms": round(1000 * normal, 2),
        "step_ms_dead": round(1000 * dead, 2),
        "ratio_to_normal": round(dead / normal, 3),
        "mean_ratio_to_normal": round(statistics.fmean(steps[False]) / statistics.fmean(steps[True]), 3),
        "points_lost": len({row["step"] for row in rows} - set(got)),
        "points_doubled": len(got) - len(set(got)),
    }


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked != ["away"]:
        for case in cases(int(asked[0]) if asked else 10_000):
            print(json.dumps(case), flush=True)
    print(json.dumps(away()), flush=True)
