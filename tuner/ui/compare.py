"""The compare page's mechanism: which runs, which baseline, which metrics; all of it in the URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from tuner.config.kinds import KINDS
from tuner.runs.curve import Series
from tuner.text.lookup import tr
from tuner.tracking.rows import Brief, RunRow
from tuner.tracking.runs import get_row, newest
from tuner.ui import axis, chart_table, state
from tuner.ui.history import MOST
from tuner.ui.words import date, distinct

FIRST_METRICS = (
    "reward",
    "loss",
    "eval_loss",
    "score",
    "rewards/margins",
    "rewards/accuracies",
    "mean_token_accuracy",
    "accuracy",
)

_SCORERS = ("reward_funcs", "reward_weights", "reward_model")
"""What decides how answers were scored."""
_QUESTIONS = ("probe", "dataset_dir", "probe_samples", "stage", *_SCORERS)
"""What decides which questions a run was asked, and how its answers were scored."""
OFFERED = 200
"""The runs made last that the field offers; any other one is named in the address."""
_FIELD, _LABELS = "compare-runs", "compare-labels"


def pick() -> list[RunRow]:
    """The runs in the URL, and a field to change them."""
    asked = state.asked_all("run")[:MOST]
    known: dict[str, Brief | RunRow] = {run.id: run for run in newest(OFFERED)}
    for run_id in asked:
        if run_id not in known and (row := get_row(run_id)):
            known[run_id] = row
    chosen = [run_id for run_id in asked if run_id in known]
    kept = st.session_state.get(_LABELS, {}) if _FIELD in st.session_state else {}
    told_as = st.session_state[_LABELS] = labels(list(known.values()), kept)
    told = st.multiselect(
        tr("Runs"),
        list(known),
        default=chosen,
        format_func=told_as.__getitem__,
        max_selections=MOST,
        placeholder=tr("Choose two to six runs"),
        key=_FIELD,
    )
    told = [run_id for run_id in told if run_id in known]
    state.tell(run=told)
    return [row for run_id in told if (row := get_row(run_id))]


def labels(rows: Sequence[Brief | RunRow], kept: Mapping[str, str]) -> dict[str, str]:
    """What each run is called in the field that chooses them; `kept` are those that the field knows already, by id.

    A field speaks of its options by what they read: no two may be alike, and none may change while it is open.
    """
    told = distinct({row.id: f"{row.name}  ·  {row.stage}, {date(row.created)}" for row in rows})
    fresh = {i: f"{text} {i}" if text in kept.values() else text for i, text in told.items() if i not in kept}
    return {**kept, **fresh}


def names(rows: Sequence[RunRow]) -> dict[str, str]:
    """What each run is called here: its name, with the start of its id where two share one."""
    return distinct({row.id: row.name for row in rows})


def baseline(names: Mapping[str, str]) -> str:
    """The run that the others are held against; the first one unless the URL says otherwise."""
    ids = list(names)
    asked = state.asked("baseline")
    with st.container(horizontal=True, key="baseline"):
        told = st.segmented_control(
            tr("Baseline"),
            ids,
            default=asked if asked in ids else ids[0],
            format_func=lambda i: names[i],
            required=True,
            help=tr("The run that the others are compared with."),
        )
    chosen = str(told or ids[0])
    state.tell(baseline=chosen if chosen != ids[0] else None)
    return chosen


def metrics(found: Sequence[str]) -> list[str]:
    """The metrics to draw, chosen out of all that these runs have."""
    first = [m for m in FIRST_METRICS if m in found][:4] or list(found)[:2]
    asked = [m for m in state.asked_all("metric") if m in found]
    score = chart_table.score_chart(found)
    titles = distinct({m: chart_table.of_metric(m, score=score).title for m in found}, least=250)
    told = st.multiselect(
        tr("Metrics"),
        found,
        default=asked or first,
        key="compare-metrics",
        format_func=lambda m: titles.get(m, m),
    )
    state.tell(metric=told if told != first else None)
    return told


def asked_alike(
    metric: str, curves: Mapping[str, Series], rows: Sequence[RunRow], baseline: str
) -> tuple[dict[str, Series], list[str]]:
    """The curves that can be held against each other, and the ids of runs that cannot: a score is one of answers to
    certain questions, and that of other questions is another thing. Curves of other metrics are all alike."""
    if not metric.startswith("score") or not curves:
        return dict(curves), []
    asked = {row.id: tuple(row.params.get(name, "") for name in _QUESTIONS) for row in rows}
    first = baseline if baseline in curves else next(iter(curves))
    kept = {run_id: curve for run_id, curve in curves.items() if asked[run_id] == asked[first]}
    return kept, [run_id for run_id in curves if run_id not in kept]


def aligned(
    curves: Mapping[str, Series], scales: Mapping[str, float | None], along: str
) -> dict[str, Series]:
    """Each run's curve along what the axis counts."""
    if along == axis.STEP:
        return dict(curves)
    return {i: axis.stretched({i: curve}, scales[i] or 1.0)[i] for i, curve in curves.items()}


def judged(metric: str, rows: Sequence[RunRow], baseline: str) -> set[str]:
    """The ids of runs whose figure can be called better or worse than the baseline's. A loss of another stage is another
    thing, that of a run which learns from rewards is about zero however well it learns, and a reward is one of its rules."""
    first = next(_measured(metric, row) for row in rows if row.id == baseline)
    return {row.id for row in rows if _measured(metric, row) == first}


def _measured(metric: str, row: RunRow) -> tuple[str, ...]:
    """What a metric's figure is one of, for this run; a spread or a length is neither better nor worse than any."""
    if metric.endswith(("reward_std", "/std", "length")):
        return (row.id,)
    if "loss" in metric:
        stage = row.params.get("stage", "")
        kind = KINDS.get(stage)
        return (stage, row.id if kind and kind.rewarded else "")
    return tuple(row.params.get(name, "") for name in _SCORERS) if metric.startswith("reward") else ()
