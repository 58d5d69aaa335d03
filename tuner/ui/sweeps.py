"""What parameters did to an outcome over several runs: a point a run, or a line a run through all parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import plotly.graph_objects as go
import streamlit as st

from tuner.config.writing import differing
from tuner.text.lookup import tr
from tuner.tracking.rows import RunFilter, RunRow
from tuner.tracking.runs import first_runs
from tuner.ui import charts, tables
from tuner.ui.chart import Chart
from tuner.ui.chart_table import of_metric
from tuner.ui.words import label, number

LONGEST, AXES = 24, 6
"""Letters of a value that fits beside an axis, and parameters that are drawn."""
LEAST, MOST = 3, 64
"""Runs from which on there is something to see, and runs of a sweep that are drawn."""


@dataclass(frozen=True)
class Varied:
    """A parameter in which runs differ: its number for each run, and what the numbers stand for where they are words."""

    name: str
    values: tuple[float, ...]
    words: tuple[str, ...] = ()


def family(rows: Sequence[RunRow]) -> list[RunRow]:
    """The whole sweep where all runs are of one, else the runs themselves."""
    parents = {row.parent for row in rows}
    if len(parents) != 1 or not (parent := parents.pop()):
        return list(rows)
    return first_runs(MOST, RunFilter(parent=parent))


def varied(rows: Sequence[RunRow]) -> list[Varied]:
    """The parameters in which runs differ, as numbers; words are counted in the order of the alphabet."""
    params = [dict(row.params) for row in rows]
    found = []
    for name in differing(params):
        if name in ("run_name", "output_dir"):
            continue
        texts = [one.get(name, "") for one in params]
        with suppress(ValueError):
            found.append(Varied(name, tuple(float(text) for text in texts)))
            continue
        words = sorted(set(texts))
        if max(map(len, words)) > LONGEST:
            continue
        found.append(Varied(name, tuple(float(words.index(text)) for text in texts), tuple(words)))
    return found


def draw(rows: Sequence[RunRow], metrics: Sequence[str]) -> None:
    """Both pictures of the last value of a metric, for runs that have it."""
    together = family(rows)
    if not varied(together):
        return
    chosen = [m for m in metrics if sum(m in row.metrics for row in together) >= LEAST]
    if len(together) < LEAST or not chosen:
        return
    st.subheader(tr("Parameters and outcome"), anchor=False)
    metric = chosen[0]
    if len(chosen) > 1:
        metric = st.segmented_control(
            tr("Outcome"),
            chosen,
            default=chosen[0],
            required=True,
            key="sweep-outcome",
            format_func=lambda m: of_metric(m).title,
        )
    with_it = [row for row in together if metric in row.metrics]
    by = varied(with_it)[:AXES]
    if not by:
        return
    chart = of_metric(metric)
    told = ", ".join(f"{row.name} {number(row.metrics[metric] * chart.scale)}" for row in with_it)
    charts.draw(parallel(by, with_it, metric, chart), "sweep-parallel", f"{chart.title}: {told}")
    with st.grid(3, min_column_width=265, gap="small") as grid:
        for one in by:
            with grid.cell(), st.container(border=True, key=f"card-chart-by-{one.name}", gap="xsmall"):
                st.markdown(f"**{label(one.name)}**")
                charts.draw(
                    scatter(one, with_it, metric, chart), f"sweep-{one.name}", f"{chart.title}: {told}"
                )


def scatter(one: Varied, rows: Sequence[RunRow], metric: str, chart: Chart) -> go.Figure:
    """A point a run: the parameter along x, the outcome along y."""
    drawn = charts.empty(chart)
    hover = "%{customdata}: %{x:.4~g}, %{y:.4~g}<extra></extra>"
    drawn.add_trace(
        go.Scatter(
            x=list(one.values),
            y=[row.metrics[metric] * chart.scale for row in rows],
            mode="markers",
            marker={"size": 9, "color": charts.colours().series[0]},
            customdata=[charts.plain(row.name) for row in rows],
            hovertemplate=hover,
        )
    )
    spread = [value for value in one.values if value > 0]
    wide = len(spread) == len(one.values) and not one.words and max(spread) >= 20 * min(spread)
    drawn.update_xaxes(title=None, rangemode="normal", type="log" if wide else "linear", hoverformat=None)
    if one.words:
        drawn.update_xaxes(
            tickvals=list(range(len(one.words))), ticktext=[charts.plain(w) for w in one.words]
        )
    drawn.update_layout(hovermode="closest", showlegend=False)
    return drawn


def parallel(by: Sequence[Varied], rows: Sequence[RunRow], metric: str, chart: Chart) -> go.Figure:
    """A line a run through its parameters to the outcome; drag along an axis to keep some of them."""
    outcome = [row.metrics[metric] * chart.scale for row in rows]
    good, bad = charts.colours().good, charts.colours().bad
    low = tables.lower_is_better(metric)
    drawn = go.Figure(layout=charts.empty(chart).layout)
    drawn.add_trace(
        go.Parcoords(
            line={"color": outcome, "colorscale": [[0, good if low else bad], [1, bad if low else good]]},
            dimensions=[*map(_dimension, by), {"label": chart.title, "values": outcome}],
            labelfont={"size": 12},
        )
    )
    drawn.update_layout(height=340, margin={"l": 60, "r": 60, "t": 44, "b": 16})
    return drawn


def _dimension(one: Varied) -> Mapping[str, object]:
    words = {"tickvals": list(range(len(one.words))), "ticktext": list(one.words)} if one.words else {}
    return {"label": label(one.name), "values": list(one.values), **words}
