"""Browsers beside a run: what the dashboard takes for them, and whether its memory stands still."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scale import world
from scale.server import ROOT, Server
from scale.visitor import Visitor

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
