"""Runs in rows: what is at work, the queue with its order, and what ended lately."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from tuner.jobs import queue
from tuner.jobs.queue import QueueRow
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.text.message import term
from tuner.tracking.duration_estimate import time_left
from tuner.tracking.rows import RunFilter, RunRow
from tuner.tracking.runs import first_runs
from tuner.ui import sparkline, theme, writes
from tuner.ui.words import ago, count, duration, look, number, safe, share, staged

AT_ONCE = 20
"""Waiting runs on a page of the queue."""


def find(run_id: str) -> Run | None:
    """The run of an id out of the URL, if it has a folder here."""
    try:
        run = Run(run_id)
        return run if run.exists else None
    except ValueError:
        return None


def link(run_id: str, name: str, icon: str | None = None) -> None:
    st.page_link("pages/runs.py", label=safe(name), icon=icon, query_params={"run": run_id})


# --- at work -------------------------------------------------------------------------------------------------------


def at_work() -> None:
    """A card for every run that is at work, redrawn as it goes on."""
    st.session_state.pop("list-seen", None)  # the whole page is being drawn as things stand now
    st.fragment(_at_work, run_every=2.0)()


def _at_work() -> None:
    every = queue.queue()
    rows = [row for row in every if row.position == 0]
    seen = [(row.id, row.position, row.held) for row in every]
    if st.session_state.setdefault("list-seen", seen) != seen:
        st.rerun()  # something started, ended or was moved, perhaps from a shell: the lists below change too
    for row in rows:
        with theme.card(f"work-{row.id}"):
            working(Run(row.id), row.gpus)
    if not rows:
        with theme.card("no-work"):
            theme.empty("bedtime", tr("Nothing is running"), _idle(every))
            with st.container(horizontal=True, horizontal_alignment="center"):
                st.page_link("pages/new_run.py", label=tr("New run"), icon=":material/add_circle:")


def _idle(waiting: Sequence[QueueRow]) -> str:
    if not waiting:
        return tr("Start a run to see its progress here.")
    following = next((row for row in waiting if not row.held), waiting[0])
    return tr("Next in the queue is {name}. {why}", name=safe(following.name), why=safe(following.why))


def working(run: Run, gpus: Sequence[int] = ()) -> None:
    """One run at work: name, state, its GPUs where it has several, progress, time left."""
    status = run.status()
    seen = look(status.state)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        link(run.id, run.name)
        st.badge(seen.word, icon=seen.icon, color=seen.colour)
        if len(gpus) > 1:
            st.markdown(f":gray[GPU {', '.join(map(str, gpus))}]", width="content")
        st.space("stretch")
        left = time_left(run, status)
        if left is not None:
            st.markdown(tr(":gray[≈ {left} left]", left=duration(left)), width="content")
    done = tr(
        "Step {step} of {total_steps}, {share}",
        step=count(status.step),
        total_steps=count(status.total_steps),
        share=share(status.share),
    )
    st.progress(
        status.share, text=done if status.total_steps else safe(term("phase", status.phase) or seen.word)
    )


# --- the queue -----------------------------------------------------------------------------------------------------


def waiting() -> None:
    """The queue: order, hold and cancel, and a switch that pauses it."""
    rows = [row for row in queue.queue() if row.position > 0]
    paused = queue.order().paused
    if not rows and not paused:
        return
    with theme.card("queue"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(tr("Queue · {runs}", runs=count(len(rows), "run")), anchor=False)
            st.space("stretch")
            st.session_state["queue-paused"] = paused  # the shell may have changed it
            st.toggle(
                tr("Paused"),
                key="queue-paused",
                on_change=_pause,
                **writes.locked(help=tr("Start no more runs. Running ones continue.")),
            )
        pages = max(1, -(-len(rows) // AT_ONCE))
        at = int(st.pagination(pages, key="queue-page")) if pages > 1 else 1
        for row in rows[(at - 1) * AT_ONCE : at * AT_ONCE]:
            _waiting_row(row, last=len(rows))


def _pause() -> None:
    _try(lambda: writes.pause(bool(st.session_state["queue-paused"])))


def _waiting_row(row: QueueRow, last: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"row-{row.id}"):
        st.markdown(f":gray[{row.position}]", width=24)
        link(row.id, row.name)
        st.caption(safe(row.why), width="stretch")
        _small(row, tr("Earlier"), "keyboard_arrow_up", lambda: _shift(row.id, -1), row.position == 1)
        _small(row, tr("Later"), "keyboard_arrow_down", lambda: _shift(row.id, 1), row.position == last)
        hold = (tr("Release"), "play_arrow") if row.held else (tr("Hold"), "pause")
        _small(row, *hold, lambda: writes.hold_back(row.id, not row.held))
        _small(row, tr("Remove"), "close", lambda: writes.stop(Run(row.id), now=True))


def _shift(run_id: str, by: int) -> None:
    """One place up or down from where it stands now, which may be another than when the page was drawn."""
    now = queue.waiting()
    if run_id in now:
        writes.move(run_id, now.index(run_id) + 1 + by)


def _small(row: QueueRow, name: str, icon: str, act: Callable[[], object], disabled: bool = False) -> None:
    st.button(
        f"{name} {safe(row.name)}",
        icon=f":material/{icon}:",
        type="tertiary",
        key=f"{icon}-{row.id}",
        on_click=_try,
        args=(act,),
        **writes.locked(help=name, disabled=disabled),
    )


def _try(act: Callable[[], object]) -> None:
    try:
        act()
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


# --- what ended ----------------------------------------------------------------------------------------------------


def lately(most: int = 6) -> None:
    """The runs that ended last, a card each, with the loss or the reward in small."""
    rows = first_runs(most, RunFilter(states=tuple(ENDED)))
    if not rows:
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(tr("Recent runs"), anchor=False)
        st.page_link("pages/history.py", label=tr("All runs"), icon=":material/history:")
    with st.grid(3, min_column_width=300, gap="small"):
        for row in rows:
            outcome(row)


def outcome(row: RunRow) -> None:
    """A run that ended: its loss or its reward as a curve, its outcome in words."""
    seen = look(row.state)
    with theme.card(f"ended-{row.id}", gap="xsmall", height="stretch"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            link(row.id, row.name)
            st.badge(seen.word, icon=seen.icon, color=seen.colour)
        st.caption(_told(row))
        if row.spark:
            sparkline.draw(row.spark, row.id)
            name = tr("Reward") if "reward" in row.metrics else tr("Loss")
            last = row.metrics.get(name.lower(), row.spark[-1])
            st.markdown(
                tr(
                    ":gray[{name}] **{spark}** :gray[to] **{last}**",
                    name=name,
                    spark=number(row.spark[0]),
                    last=number(last),
                )
            )
        if row.reason and row.state != "finished":
            st.caption(safe(row.reason))


def _told(row: RunRow) -> str:
    parts = [
        staged(row.stage),
        ", ".join(row.datasets),
        duration(row.duration),
        ago(row.ended or row.created),
    ]
    return safe(" · ".join(p for p in parts if p))
