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
    """What the steps of a window took of a training process: seconds by the clock, and of its own work."""

    wall: float
    cpu: float


def step_time(home: Path, tree: Path, sessions: int, pairs: int, seconds: float) -> dict[str, float]:
    """A real run's step beside so many live browsers, as ratios to its step beside as many that hold still.

    Windows with and without follow each other by turns, each pair the other way round than the one before, so that a
    machine that gets slower meanwhile counts in both. Of the pairs' ratios the median, and where it lies with 95%
    (bootstrap over the pairs).
    """
    with training(home, tree) as (run, process), Server(home, tree) as server, ExitStack() as open_ones:
        visitors = [
            open_ones.enter_context(Visitor(server.port, "runs", f"run={run.id}")) for _ in range(sessions)
        ]
        for visitor in visitors:
            visitor.draw()
        server.settle(20)
        ratios: list[Steps] = []
        for number in range(pairs):
            order = (True, False) if number % 2 else (False, True)
            found = {live: _window(run, process, visitors if live else [], seconds) for live in order}
            ratios.append(Steps(found[True].wall / found[False].wall, found[True].cpu / found[False].cpu))
        told = {"pairs": float(pairs), "sessions": float(sessions)}
        for name, values in (("wall", [r.wall for r in ratios]), ("cpu", [r.cpu for r in ratios])):
            low, high = interval(values)
            told |= {f"{name}_ratio": float(np.median(values)), f"{name}_low": low, f"{name}_high": high}
        return told


def _window(run: Run, process: psutil.Process, visitors: list[Visitor], seconds: float) -> Steps:
    """A while of training: the median step by the clock, and the work of its process for each step, parts of steps at the
    edges counted as parts."""
    began, before = time.time(), process.cpu_times()
    if visitors:
        _all_at_once(visitors, seconds)
    else:
        time.sleep(seconds)
    after, ended = process.cpu_times(), time.time()
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    times = [row["time"] for row in lines if "loss" in row]
    steps = np.interp([began, ended], times, range(len(times)))
    taken = float(steps[1] - steps[0])
    work = after.user + after.system - before.user - before.system
    inside = np.array([t for t in times if began <= t <= ended])
    return Steps(float(np.median(np.diff(inside))), work / taken)


def interval(values: list[float], draws: int = 10_000) -> tuple[float, float]:
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
    words = ("max_steps=1000000", "logging_steps=1", "save_steps=1000000", "probe=", "use_cpu=true")
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
