"""Lists and curves against MLflow's own API on the same store: python -m tests.bench.tracking [runs]

One line of JSON a case: seconds of both and their ratio; `same` says that both gave the same answer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from tuner.config.config import make, params
from tuner.tracking import history, runs, store

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


if __name__ == "__main__":
    for case in cases(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000):
        print(json.dumps(case), flush=True)
