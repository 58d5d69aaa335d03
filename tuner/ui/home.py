"""The first page's mechanism: a newcomer's next step, and what wants attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import streamlit as st

from tuner import hardware, paths
from tuner.jobs import queue, room, watch
from tuner.runs import diverging
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.tracking.adapters import are_there_any
from tuner.tracking.rows import RunFilter, RunRow
from tuner.tracking.runs import are_there, by_metric, finished, first_runs
from tuner.tracking.store import TrackerError
from tuner.ui import draft, live, run_list, theme, visits
from tuner.ui.chart_table import is_scored
from tuner.ui.words import ago, count, look, safe, share, size

LOW_DISK = 5 * hardware.GIB


MANY, FEW = 500, 3
"""Runs that are looked through, and failures that are named."""


@dataclass(frozen=True)
class Step:
    """One thing a newcomer does, where, and whether it was done."""

    title: str
    why: str
    page: str
    link: str
    done: bool
    query: Mapping[str, str] = field(default_factory=dict)


def steps() -> list[Step]:
    """The way from an empty studio to an adapter; what was done is read from the runs themselves."""
    total = are_there(1)
    finished = are_there(2, RunFilter(states=("finished",)))
    adapters = False
    with suppress(TrackerError):
        adapters = are_there_any()
    first = draft.first()
    return [
        Step(
            tr("Look at your data"),
            tr("See what a model would read, row by row."),
            "datasets",
            tr("Data sets"),
            total > 0,
        ),
        Step(
            tr("Launch a first run"),
            tr("The form opens with {first}: press Launch.", first=first)
            if first == draft.STARTER
            else tr("Choose a model and data."),
            "new_run",
            tr("New run"),
            total > 0,
            {"start": first},
        ),
        Step(
            tr("Compare two runs"),
            tr("Change one parameter, run again, and compare the two."),
            "compare",
            tr("Compare"),
            finished > 1,
        ),
        Step(
            tr("Find your adapter"),
            tr("Every finished run registers its adapter with data, config and checksum."),
            "adapters",
            tr("Adapters"),
            adapters,
        ),
    ]


def checklist(steps: list[Step]) -> None:
    """The steps as cards; the next one is the one that stands out."""
    st.subheader(tr("First steps"), anchor=False)
    following = next((s for s in steps if not s.done), None)
    with st.grid(4, min_column_width=220, gap="small"):
        for number, step in enumerate(steps, start=1):
            with theme.card(
                f"{'next' if step is following else 'step'}-{number}", gap="xsmall", height="stretch"
            ):
                icon = ":green[:material/check_circle:]" if step.done else f":gray[{number}]"
                st.markdown(f"{icon} **{step.title}**")
                st.caption(step.why)
                st.page_link(
                    f"pages/{step.page}.py",
                    label=step.link,
                    icon=":material/arrow_forward:",
                    icon_position="right",
                    query_params=dict(step.query),
                )


def since() -> None:
    """What happened while this person was away: how many runs ended, and how; each that failed by its name."""
    last = visits.before()
    if not visits.away(last):
        return
    ended = [r for r in first_runs(MANY, RunFilter(states=tuple(ENDED))) if r.ended > last]
    if not ended:
        return
    states = Counter(row.state for row in ended)
    told = ", ".join(f"{number} {look(state).word.lower()}" for state, number in states.items())
    with theme.card("since", gap="xsmall"):
        st.markdown(f":material/history: **{tr('Since your last visit, {ago}', ago=ago(last))}:** {told}")
        for row in [r for r in ended if r.state == "failed"][:FEW]:
            run_list.link(row.id, row.name)
            st.caption(safe(row.reason))


def figures() -> None:
    """The studio in four figures: runs, the best score, adapters' disk and what is free."""
    ended = finished(MANY)
    best = best_score(by_metric(ended, "score/after"))
    with st.container(key="figures-home"), st.grid("auto", min_column_width=150, gap="small") as grid:
        grid.metric(tr("Finished runs"), f"{count(len(ended))}{'+' if len(ended) == MANY else ''}")
        if best is not None:
            grid.metric(
                tr("Best score"),
                share(best.metrics["score/after"]),
                help=tr("On held-out questions, after training: {name}.", name=safe(best.name)),
            )
        grid.metric(tr("Disk used"), size(_used()), help=tr("Settings shows what takes it."))
        grid.metric(tr("Disk free"), size(hardware.usage(paths.home()).disk_free))


def best_score(rows: Iterable[RunRow]) -> RunRow | None:
    """The first of these runs, the highest score first, whose score is one on held-out questions; exact match is none."""
    return next((row for row in rows if is_scored(row.metrics)), None)


@st.cache_data(ttl=60, show_spinner=False)
def _used() -> int:
    return sum(room.of_studio(room.of_runs()).values())


def attention() -> None:
    """What a person should know without asking: a disk that fills, a run that makes no progress or diverges."""
    for row in queue.queue():
        if row.position == 0 and (said := watch.stalled(Run(row.id)) or _diverges(Run(row.id))):
            st.warning(f"**{safe(row.name)}:** {safe(said)}", icon=":material/warning:")
    free = hardware.usage(paths.home()).disk_free
    if free < LOW_DISK:
        st.warning(
            tr(
                "Only {free} of disk space left. Free up space under Disk in History.",
                free=size(free),
            ),
            icon=":material/hard_drive:",
        )


def _diverges(run: Run) -> str:
    return tr(live.DIVERGING) if diverging.noted(run) else ""
