"""Browsers beside a run: what the dashboard takes for them, and whether its memory stands still."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from scale import world
from scale.server import ROOT, Server
from scale.visitor import Visitor

if TYPE_CHECKING:
    from tuner.runs.run import Run

MIB = 2**20


@contextmanager
def at_work(home: Path, tree: Path, seconds: float) -> Iterator[str]:
    """A studio with a few runs and one that seems to train; its id. Needs TUNER_HOME."""
    from tuner.config.config import make
    from tuner.runs.run import Run

    world.fill_runs(12)
    run = Run("live-one")
    run.create(make({"stage": "dpo", "model_name_or_path": "m", "dataset": "d"}), "live one")
    own = {"PYTHONPATH": f"{tree}:{ROOT / 'tests'}", "TUNER_SUPERVISOR_IDLE": "1"}
    live = subprocess.Popen(
        [sys.executable, "-m", "scale.live_run", run.id, str(seconds)], env={**os.environ, **own}, cwd=tree
    )
    try:
        yield run.id
        assert live.poll() is None, "the run that was to be looked at ended before"
    finally:
        live.kill()
        live.wait()


def beside(home: Path, tree: Path, sessions: int, seconds: float) -> dict[str, Any]:
    """CPU seconds of the dashboard for each session and minute, its share of this machine's cores, and its memory."""
    with at_work(home, tree, seconds + 300) as run, Server(home, tree) as server, ExitStack() as open_ones:
        visitors = [
            open_ones.enter_context(Visitor(server.port, "runs", f"run={run}")) for _ in range(sessions + 1)
        ]
        visitors[0].draw()
        assert "live one" in visitors[0].words
        server.settle(20)
        before = server.memory()
        for visitor in visitors[1:]:
            visitor.draw()
        drawn, cpu, began = sum(v.draws for v in visitors), server.cpu(), time.monotonic()
        _all_at_once(visitors[1:], seconds)
        took, wall = server.cpu() - cpu, time.monotonic() - began
        return {
            "per_session_minute": took * 60 / wall / sessions,
            "share": took / wall / (os.cpu_count() or 1),
            "redraws": sum(v.draws for v in visitors) - drawn,
            "mib_a_session": (server.memory() - before) / MIB / sessions,
        }


def _all_at_once(visitors: list[Visitor], seconds: float) -> None:
    tabs = [threading.Thread(target=visitor.live, args=(seconds,)) for visitor in visitors]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()


def soak(home: Path, tree: Path, warm: int, redraws: int) -> dict[str, Any]:
    """A live page left open: what the dashboard's memory grows by over so many redraws, after some to get warm."""
    with (
        at_work(home, tree, 3600) as run,
        Server(home, tree) as server,
        Visitor(server.port, "runs", f"run={run}") as visitor,
    ):
        visitor.draw()
        server.settle(20)
        _redraw(visitor, warm)
        before = server.memory()
        _redraw(visitor, redraws)
        return {"redraws": redraws, "grown_mib": (server.memory() - before) / MIB}


def _redraw(visitor: Visitor, times: int) -> None:
    for number in range(times):
        pieces = visitor.pieces
        visitor.draw(fragment=pieces[number % len(pieces)])


class Steps(NamedTuple):
    """What a step of a window took: seconds by the clock and of the process's own work, and its main thread's share of
    the clock in which it could have worked and had no core."""

    wall: float
    cpu: float
    waited: float


def step_time(home: Path, tree: Path, sessions: int, pairs: int, seconds: float) -> dict[str, float]:
    """A real run's step beside so many live browsers, held against its step beside as many that hold still.

    Windows with and without follow each other by turns, each pair the other way round than the one before, so that a
    machine that gets slower meanwhile counts in both. Of the pairs' ratios (of what was waited, differences) the median,
    and where it lies with 95% (bootstrap over the pairs).
    """
    with training(home, tree) as (run, process), Server(home, tree) as server, ExitStack() as open_ones:
        visitors = [
            open_ones.enter_context(Visitor(server.port, "runs", f"run={run.id}")) for _ in range(sessions)
        ]
        for visitor in visitors:
            visitor.draw()
        server.settle(20)
        beside, alone = list[Steps](), list[Steps]()
        for number in range(pairs):
            for live in (True, False) if number % 2 else (False, True):
                found = _window(run, process, visitors if live else [], seconds)
                (beside if live else alone).append(found)
    with_them, without = np.array(beside), np.array(alone)
    told = {"pairs": float(pairs)}
    for name, values in (
        ("wall_ratio", with_them[:, 0] / without[:, 0]),
        ("cpu_ratio", with_them[:, 1] / without[:, 1]),
        ("waited_more", with_them[:, 2] - without[:, 2]),
    ):
        low, high = interval(values)
        told |= {name: float(np.median(values)), f"{name}_low": low, f"{name}_high": high}
    return told


def _window(run: Run, process: psutil.Process, visitors: list[Visitor], seconds: float) -> Steps:
    """A while of training, parts of steps at its edges counted as parts."""
    began, worked, waited = time.time(), _worked(process), _waited(process)
    if visitors:
        _all_at_once(visitors, seconds)
    else:
        time.sleep(seconds)
    worked, waited, ended = _worked(process) - worked, _waited(process) - waited, time.time()
    times = [json.loads(line)["time"] for line in run.metrics_path.read_text().splitlines() if "loss" in line]
    edges = np.interp([began, ended], times, range(len(times)))
    steps = float(edges[1] - edges[0])
    return Steps((ended - began) / steps, worked / steps, waited / (ended - began))


def _worked(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _waited(process: psutil.Process) -> float:
    """Seconds that its main thread stood in the queue for a core (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9


def interval(values: NDArray[np.float64], draws: int = 10_000) -> tuple[float, float]:
    """Where the median of such values lies, in 95 of 100 times."""
    drawn = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


@contextmanager
def training(home: Path, tree: Path) -> Iterator[tuple[Run, psutil.Process]]:
    """A run of the starter model that goes on for longer than anybody looks at it, and its worker. Needs TUNER_HOME."""
    from tuner import paths
    from tuner.runs.run import Run

    known = {path.name for path in paths.runs().glob("*")}
    words = (
        "max_steps=1000000",
        "logging_steps=1",
        "save_steps=1000000",
        "probe=",
        "use_cpu=true",
        "per_device_train_batch_size=4",
    )
    own = {"PYTHONPATH": f"{tree}:{ROOT / 'tests'}", "TUNER_SUPERVISOR_IDLE": "1", "HF_HUB_OFFLINE": "1"}
    with (home / "training.log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "tuner", "train", "starter-sft", *words],
            env={**os.environ, **own},
            cwd=tree,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    worker: psutil.Process | None = None
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and started.poll() is None:
            made = [Run(path.name) for path in paths.runs().glob("*") if path.name not in known]
            if made and made[0].exists and made[0].status().step > 20:
                worker = psutil.Process(made[0].status().pid)
                break
            time.sleep(0.5)
        assert worker is not None, (home / "training.log").read_text()[-2000:]
        yield made[0], worker
    finally:
        if worker is not None:
            worker.kill()
        started.terminate()
        started.wait(60)
