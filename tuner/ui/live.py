"""Small pieces that redraw themselves while something runs, and the sidebar's status line."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress

import streamlit as st

from tuner import hardware, paths
from tuner.jobs import queue
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs import diverging
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import mark, tr
from tuner.text.message import term
from tuner.tracking import store
from tuner.tracking.duration_estimate import time_left
from tuner.ui import browser, state
from tuner.ui.words import count, duration, look, safe, sentence, share, size

DIVERGING = mark("The loss is above where it began: lower the learning rate.")
_SEEN, _TOLD = "seen-running", "told-diverging"
SIDEBAR_EVERY = 3.0
WARM_AFTER = 3.0  # seconds: the first page is drawn by then


def piece(draw: Callable[[Run], None], run: Run, every: float) -> None:
    """Draw a piece of a run's page, again every few seconds until the run has ended."""
    ended = run.status().state in ENDED
    st.fragment(draw, run_every=None if ended else every)(run)


def status_line() -> None:
    """The sidebar's foot: what runs, what waits, and how loaded this machine is."""
    st.fragment(_status, run_every=SIDEBAR_EVERY)()


def _status() -> None:
    state.find_back()
    with suppress(OSError):  # a studio on a full disk is still worth looking at
        ensure_supervisor(only_if_needed=True)
    with st.container(key="status-line", gap="xsmall"):
        rows = queue.queue()
        browser.tell(_news({row.id for row in rows if row.position == 0}))
        for row in [r for r in rows if r.position == 0]:
            _running(Run(row.id))
        waiting = sum(r.position > 0 for r in rows)
        if not rows:
            st.caption(tr(":material/bedtime: Nothing is running"))
        elif waiting:
            st.caption(tr(":material/schedule: {runs} waiting", runs=count(waiting, "run")))
        _machine()


def _news(running: set[str]) -> list[browser.Notice]:
    """What happened since this session looked last: runs that ended, a loss that runs away. Told here as a toast."""
    before: set[str] = st.session_state.get(_SEEN, set())
    told: set[str] = st.session_state.setdefault(_TOLD, set())
    st.session_state[_SEEN] = running
    ended = [run for run in map(Run, before - running) if run.exists and run.status().state in ENDED]
    away = [run for run in map(Run, running - told) if diverging.noted(run)]
    told |= {run.id for run in away}
    for run in ended:
        seen = look(run.status().state)
        st.toast(f"**{safe(run.name)}** · {safe(sentence(run.status()))}", icon=seen.icon)
    for run in away:
        st.toast(f"**{safe(run.name)}** · {tr(DIVERGING)}", icon=":material/trending_up:")
    return [_notice(run, sentence(run.status())) for run in ended] + [
        _notice(run, tr(DIVERGING)) for run in away
    ]


def _notice(run: Run, said: str) -> browser.Notice:
    return browser.Notice(f"{run.id} {said}", run.name, said, f"/runs?run={run.id}")


def _running(run: Run) -> None:
    status = run.status()
    seen = look(status.state)
    st.page_link("pages/runs.py", label=safe(run.name), icon=seen.icon, query_params={"run": run.id})
    seconds = time_left(run, status)
    left = tr(", ≈ {seconds} left", seconds=duration(seconds)) if seconds else ""
    what = f"{share(status.share)}{left}" if status.total_steps else term("phase", status.phase) or seen.word
    st.progress(status.share, text=safe(what))


def _machine() -> None:
    usage = hardware.usage(paths.home())
    meters = [
        ("CPU", usage.cpu_percent / 100, f"{usage.cpu_percent:.0f}%"),
        ("RAM", usage.memory_used / usage.memory_total, _of(usage.memory_used, usage.memory_total)),
        *(
            (f"GPU {g.index}", g.memory_used / g.memory_total, _of(g.memory_used, g.memory_total))
            for g in usage.gpus
        ),
    ]
    with st.container(key="meters", gap="xsmall"):
        for name, part, said in meters:
            st.progress(min(1.0, part), text=f"{name} {said}")


def _of(used: int, total: int) -> str:
    return tr("{used:.1f} of {total}", used=used / hardware.GIB, total=size(total))


@st.cache_resource(show_spinner=False)
def warm() -> None:
    """Once a server, a little after its first page: get MLflow ready, so that no change of a run waits for its import."""
    later = threading.Timer(WARM_AFTER, _get_ready)
    later.daemon = True
    later.start()


def _get_ready() -> None:
    """What MLflow's import leaves is no garbage: Python's own collections, a fifth of a second each with it, need not look
    at it again."""
    store.warm().join()
    gc.collect()
    gc.freeze()
