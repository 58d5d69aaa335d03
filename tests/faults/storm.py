"""SIGKILLs at random over a queue of short runs: workers, supervisors, dashboards. What must come out is all zeros."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tuner import paths
from tuner.jobs import control, reconcile, supervisor
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs.run import Run, all_runs
from tuner.runs.status import ENDED, LIVE

from . import dashboard
from .tracker import Tracker

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """Counted at the end; `explained` lists the reasons given, by code."""

    kills: int = 0
    of_supervisors: int = 0
    of_dashboards: int = 0
    launched_twice: int = 0
    lost: int = 0
    left_running: int = 0
    unexplained: int = 0
    points_lost: int = 0
    points_doubled: int = 0
    worst_detection_s: float = 0.0
    runs: int = 0
    explained: dict[str, int] = field(default_factory=dict)


@dataclass
class Storm:
    """One studio under fire. TUNER_HOME names it. With a `tracker`, MLFLOW_TRACKING_URI must name that."""

    kills: int
    seed: int
    runs: int
    steps: int = 60
    tracker: Tracker | None = None
    result: Result = field(default_factory=Result)
    waits: dict[str, tuple[float, int]] = field(default_factory=dict)

    def blow(self) -> Result:
        """Kill until it is enough, let all come to rest, count."""
        paths.mlruns().mkdir(parents=True, exist_ok=True)
        self.move_tracker()
        chance = random.Random(self.seed)
        page = self.open_dashboard(0)
        try:
            while self.result.kills < self.kills:
                time.sleep(chance.expovariate(2.5))
                self.detect()
                self.move_tracker()
                page = self.kill_something(chance, page)
            self.move_tracker()
            self.settle(page)
        finally:
            page.kill()
            page.wait()
        self.count()
        return self.result

    def open_dashboard(self, number: int) -> subprocess.Popen[bytes]:
        words = [
            str(self.runs),
            str(self.steps),
            "tracked" if self.tracker else "plain",
            str(self.seed + number),
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dashboard", *words],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(paths.mlruns() / "dashboard.log").open("ab"),
        )

    # --- harm

    def kill_something(self, chance: random.Random, page: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        what = chance.choices(["worker", "supervisor", "dashboard"], [60, 25, 15])[0]
        if what == "dashboard" and dashboard.ids():
            page.kill()
            page.wait()
            self.result.kills += 1
            self.result.of_dashboards += 1
            return self.open_dashboard(self.result.kills)
        pid = supervisor.leader() if what == "supervisor" else self.some_worker(chance)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.result.kills += 1
                self.result.of_supervisors += what == "supervisor"
            if what == "supervisor":
                self.waits.clear()  # what nobody watches is nobody's to detect at once
        return page

    def some_worker(self, chance: random.Random) -> int | None:
        at_work = [r for r in map(Run, dashboard.ids()) if r.status().state not in ENDED]
        for run in chance.sample(at_work, len(at_work)):
            if pid := control.pid_of(run):
                if (leader := supervisor.leader()) is not None:
                    self.waits[run.id] = (time.monotonic(), leader)
                return pid
        return None

    def detect(self) -> None:
        """How long the deaths took to be explained, for those whose supervisor lived to see them."""
        for run_id, (since, leader) in list(self.waits.items()):
            run, took = Run(run_id), time.monotonic() - since
            if run.status().state not in LIVE:
                del self.waits[run_id]
                ended = run.status().ended
                took = min(took, max(0.0, ended - (time.time() - took))) if ended else took
            elif leader != supervisor.leader():
                del self.waits[run_id]
                continue
            self.result.worst_detection_s = round(max(self.result.worst_detection_s, took), 2)

    def move_tracker(self) -> None:
        """Its server is dead for the middle half."""
        if self.tracker is None:
            return
        if self.kills // 4 < self.result.kills < 3 * self.kills // 4:
            self.tracker.kill()
        else:
            self.tracker.start()

    # --- rest

    def settle(self, page: subprocess.Popen[bytes]) -> None:
        """The dashboard submits what is left to submit; then no more resumes, and all comes to an end."""
        end = time.monotonic() + 60 + 3 * self.runs
        while len(dashboard.ids()) < self.runs and time.monotonic() < end:
            self.detect()
            time.sleep(0.2)
        page.kill()
        while self.unended() and time.monotonic() < end:
            ensure_supervisor(only_if_needed=True)
            self.detect()
            time.sleep(0.2)

    def unended(self) -> list[Run]:
        """Those in no list too: what was submitted the moment its dashboard died is a run all the same."""
        return [run for run in all_runs() if run.status().state not in ENDED]

    def count(self) -> None:
        result = self.result
        known = list(map(Run, dashboard.ids()))
        result.runs = len(known)
        result.lost = sum(not r.exists or r.status().state == "queued" for r in known)
        result.left_running = sum(r.status().state in LIVE for r in known)
        result.explained = dict(Counter(r.status().reason_code or r.status().state for r in known))
        result.unexplained = sum(not r.status().reason for r in known if r.status().state != "finished")
        for run in known:
            began = Counter(resumes for _, resumes, _ in starts(run))
            result.launched_twice += sum(times - 1 for times in began.values())
        if self.tracker:
            self.count_points(known)

    def count_points(self, known: list[Run]) -> None:
        """Each step of a run's own file once in MLflow, and no run left open there, known to anybody or not."""
        from tuner.tracking.store import experiment_id, open_store
        from tuner.tracking.sync_state import mlflow_id

        reconcile.sync()
        client = open_store()
        for run in known:
            rows, _ = run.metrics()
            wanted = {int(row["step"]) for row in rows if "loss" in row}
            got = [p.step for p in client.get_metric_history(mlflow_id(run.id), "loss")]
            self.result.points_lost += len(wanted - set(got))
            self.result.points_doubled += len(got) - len(set(got))
        ours = {mlflow_id(run.id) for run in all_runs() if run.status().state not in ENDED}
        for row in client.search_runs([experiment_id(client)], max_results=5000):
            if row.info.status in ("RUNNING", "SCHEDULED") and row.info.run_id not in ours:
                self.result.left_running += 1


def starts(run: Run) -> list[list[float]]:
    """[pid, resumes, time] of every worker that began."""
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in (run.folder / "starts").read_text().splitlines()]
    return []


def as_json(result: Result) -> str:
    return json.dumps(asdict(result))
