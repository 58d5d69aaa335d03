"""The first page's mechanism: a newcomer's next step, and what wants attention."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import streamlit as st

from tuner import hardware, paths
from tuner.text.lookup import tr
from tuner.tracking.adapters import are_there_any
from tuner.tracking.rows import RunFilter
from tuner.tracking.runs import are_there
from tuner.tracking.store import TrackerError
from tuner.ui import draft, theme
from tuner.ui.words import size

LOW_DISK = 5 * hardware.GIB


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


def attention() -> None:
    """What a person should know without asking: a disk that fills."""
    free = hardware.usage(paths.home()).disk_free
    if free < LOW_DISK:
        st.warning(
            tr(
                "Only {free} of disk space left. Free up space under Disk in History.",
                free=size(free),
            ),
            icon=":material/hard_drive:",
        )
