"""What one studio carries of a cluster, in figures: `python -m tests.scale.fleet [--slots 64] [--waiting 1000]`.

Ends with one line of JSON. CPU seconds of the process that is asked, the least of a few; rates by the clock. The cluster is a
stand-in (tests/jobs_api.py) in a process of its own, whose jobs sleep: what the studio spends on asking is real. docs/scale.md
says what the figures mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slots", type=int, default=64, help="runs at work, each on a node")
    options.add_argument("--waiting", type=int, default=1000, help="runs that wait")
    options.add_argument("--writers", type=int, default=4, help="processes that write at once")
    options.add_argument("--only-looks", action="store_true", help="not what disk and tracker take")
    options.add_argument(
        "--ray", action="store_true", help="only how fast real Ray starts runs, on this machine"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet") as folder:
        os.environ["TUNER_HOME"] = folder
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        said = door() if given.ray else fleet(given.slots, given.waiting)
        if not given.ray and not given.only_looks:
            said |= disk(given.writers) | tracker(given.writers)
    said["load"] = os.getloadavg()[0]
    print(json.dumps({name: round(value, 5) for name, value in said.items()}), flush=True)
    return 0


# --- the supervisor and those who look


def fleet(slots: int, waiting: int) -> dict[str, float]:
    """A look of the supervisor and a look at the queue, with so many runs at work on nodes and so many that wait."""
    from scale import world
    from scale.ask import cost
    from tuner import paths
    from tuner.jobs import launch, queue
    from tuner.jobs.executors import node
    from tuner.jobs.executors.cluster import Cluster
    from tuner.jobs.supervisor import Supervisor
    from tuner.runs.run import Run

    with Server() as server:
        (paths.home() / "settings.yaml").write_text(f"executor: ray\nray_address: {server.address}\n")
        runs = [Run(id) for id in world.fill_runs(slots + waiting)]
        for run in runs[slots:]:
            run.update(state="queued", ended=0.0)
            os.utime(run.folder, (1e9, 1e9))
        cluster = Cluster(server.address)
        for run in runs[:slots]:
            job = f"{run.id}-0"
            cluster.submit(job, "sleep 600", 0, 0, {})
            run.update(state="running", phase="training", ended=0.0)
            launch.write_record(run, launch.Launch(time.time(), "", 1, pid=1, job=job, node="n"))
            run.put(node.FILE, f"{job} 1")
        supervisor = Supervisor()
        supervisor.ray._let_in = lambda *_: False  # type: ignore[method-assign]  # the cluster's work
        supervisor._settle = lambda *_: False  # type: ignore[method-assign]  # another process's work
        supervisor.tick()
        assert len(supervisor.watches) == slots
        found = {"look_s": cost(supervisor.tick, 5), "queue_s": cost(queue.queue, 5)}
        found["own_processes_mib"] = _mib()
        names = [f"{run.id}-0" for run in runs[:slots]]
        began = time.process_time(), time.monotonic()
        for name in names * 3:
            cluster.job(name)
        asked = 3 * len(names)
        found["ask_a_job_cpu_s"] = (time.process_time() - began[0]) / asked
        found["ask_a_job_s"] = (time.monotonic() - began[1]) / asked
    return found


def _mib() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 2**20)


class Server:
    """The stand-in for a cluster."""

    def __enter__(self) -> Server:
        code = "import jobs_api, sys; jobs_api.CPUS = 10**6; j = jobs_api.Jobs(); print(j.address, flush=True); sys.stdin.read(); j.close()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT / "tests",
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def door(count: int = 8) -> dict[str, float]:
    """Seconds from one run at the door of a real cluster to the next, where there is room for all."""
    from test_executors import TOKEN, new_run, settle_on, until

    os.environ |= {"RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT), "TUNER_SUPERVISOR_IDLE": "1"}
    os.environ["TUNER_WORKER_MODULE"] = "tests.faults.short_worker"
    from ray_cluster import TwoNodes

    from tuner import paths
    from tuner.jobs import control, launch, queue, submit, supervisor

    cluster = TwoNodes()
    try:
        cluster.add(cpus=count)
        settle_on(paths.home(), cluster.address)
        queue.pause()
        runs = [submit.launch(new_run(steps=100_000)) for _ in range(count)]
        queue.pause(False)
        supervisor.ensure_supervisor()
        until(lambda: all(run.status().step for run in runs), 300)
        times = sorted(found.time for run in runs if (found := launch.record(run)))
        apart = [after - before for before, after in itertools.pairwise(times)]
        for run in runs:
            control.stop(run, now=True)
        for run in runs:
            control.wait(run, timeout=60)
        return {"door_s_least": min(apart), "door_s": sum(apart) / len(apart), "door_s_most": max(apart)}
    finally:
        cluster.close()


# --- what the disk and the tracker take


def disk(writers: int) -> dict[str, float]:
    """Status files replaced in a second, by one process and by several: two locks, one whole file, one rename each."""
    return {
        "status_writes_per_s": _rate("status", 1),
        f"status_writes_per_s_by_{writers}": _rate("status", writers),
    }


def tracker(writers: int) -> dict[str, float]:
    """Batches of 20 metrics a second that MLflow takes, from one process and from several at once: into its SQLite file,
    and into PostgreSQL (without fsync) where that is installed."""
    from servers import postgres

    found = _batches("sqlite", writers)
    with suppress(Exception, pytest.skip.Exception), postgres() as uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        found |= _batches("postgres", writers)
    return found


def _batches(name: str, writers: int) -> dict[str, float]:
    from tuner.tracking.store import open_store

    open_store()
    one, several = _rate("batches", 1), _rate("batches", writers)
    return {f"{name}_batches_per_s": one, f"{name}_batches_per_s_by_{writers}": several}


def _rate(what: str, writers: int, seconds: float = 8.0) -> float:
    command = [sys.executable, "-m", "tests.scale.fleet_writer", what, str(seconds)]
    begin = {"FLEET_BEGIN": str(time.time() + 20)}
    with ThreadPoolExecutor(writers) as pool:
        done = list(pool.map(lambda _: _told(command, begin), range(writers)))
    return sum(done)


def _told(command: list[str], more: dict[str, str]) -> float:
    out = subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, check=True)
    found: Any = json.loads(out.stdout.splitlines()[-1])
    return float(found)


if __name__ == "__main__":
    sys.exit(main())
