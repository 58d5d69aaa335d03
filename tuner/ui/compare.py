"""The compare page's mechanism: which runs, which baseline, which metrics; all of it in the URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from tuner.tracking.rows import RunFilter, RunRow
from tuner.tracking.runs import get_row, list_runs
from tuner.ui import chart_table, state
from tuner.ui.history import MOST
from tuner.ui.words import ago

FIRST_METRICS = (
    "loss",
    "eval_loss",
    "score",
    "rewards/margins",
    "rewards/accuracies",
    "mean_token_accuracy",
    "accuracy",
)


def pick() -> list[RunRow]:
    """The runs in the URL, and a field to change them."""
    asked = state.asked_all("run")[:MOST]
    known = {row.id: row for row in list_runs(RunFilter(), size=200).items}
    for run_id in asked:
        if run_id not in known and (row := get_row(run_id)):
            known[run_id] = row
    chosen = [run_id for run_id in asked if run_id in known]
    told = st.multiselect(
        "Runs",
        list(known),
        default=chosen,
        format_func=lambda i: f"{known[i].name}  ·  {known[i].stage}, {ago(known[i].created)}",
        max_selections=MOST,
        placeholder="Choose two to six runs",
        key="compare-runs",
    )
    state.tell(run=told)
    return [known[run_id] for run_id in told]


def names(rows: Sequence[RunRow]) -> dict[str, str]:
    """What each run is called here: its name, with the start of its id where two share one."""
    taken = [row.name for row in rows]
    return {row.id: row.name if taken.count(row.name) == 1 else f"{row.name} {row.id[:4]}" for row in rows}


def baseline(names: Mapping[str, str]) -> str:
    """The run that the others are held against; the first one unless the URL says otherwise."""
    ids = list(names)
    asked = state.asked("baseline")
    with st.container(horizontal=True, key="baseline"):
        told = st.segmented_control(
            "Baseline",
            ids,
            default=asked if asked in ids else ids[0],
            format_func=lambda i: names[i],
            required=True,
            help="The run that the others are held against.",
        )
    chosen = str(told or ids[0])
    state.tell(baseline=chosen if chosen != ids[0] else None)
    return chosen


def metrics(found: Sequence[str]) -> list[str]:
    """The metrics to draw, chosen out of all that these runs have."""
    first = [m for m in FIRST_METRICS if m in found][:4] or list(found)[:2]
    asked = [m for m in state.asked_all("metric") if m in found]
    told = st.multiselect("Metrics", found, default=asked or first, key="compare-metrics", format_func=_title)
    state.tell(metric=told if told != first else None)
    return told


def _title(metric: str) -> str:
    return chart_table.of_metric(metric).title
