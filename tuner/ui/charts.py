"""Figures of the charts: they grow in place and keep their zoom. They are drawn in light colours; the browser, which
knows the mode it is in, puts the dark ones in their places."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas  # type: ignore[import-untyped,unused-ignore]  # noqa: F401  see below
import plotly
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray
from streamlit.components.v1 import declare_component

from tuner.runs.curve import Series, thinned
from tuner.text.lookup import tr
from tuner.ui.chart import Chart, Line, Measured, Tone
from tuner.ui.theme import DASHES, FONTS, PALETTES, Palette, dark
from tuner.ui.words import number

# pandas is imported whole before a figure is made: Plotly would take it half imported from the thread that warms MLflow.
Floats = NDArray[np.float64]
NONE: Mapping[str, Series] = MappingProxyType({})
ENOUGH_TO_CLIP = 10
"""Points from which on a percent of them says something."""
POINTS = 900
"""Points of a line on the screen: more than there are pixels, few enough to redraw every two seconds."""


def smooth(values: Floats, weight: float) -> Floats:
    """An exponential moving average without a pull to its start; `weight` is 0 (none) to below 1, gaps (NaN) stay gaps."""
    if weight <= 0 or len(values) < 4:
        return values
    smoothed = np.full_like(values, np.nan)
    mean = seen = 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            seen = weight * seen + (1 - weight)
            smoothed[i] = mean / seen
    return smoothed


# --- figures -------------------------------------------------------------------------------------------------------


def figure(
    chart: Chart,
    measured: Measured,
    means: Measured = NONE,
    *,
    smoothing: float = 0.0,
    log: bool = False,
    clip: bool = False,
) -> go.Figure:
    """One run's chart: raw lines pale, smoothed ones over them. Of long curves `means` has what is smoothed: the points
    of `measured` are each stretch's lowest and highest."""
    colours = PALETTES["light"]
    drawn = go.Figure(layout=_layout(colours, chart, log))
    present = [line for line in chart.lines if line.metric in measured]
    for line in present:
        weight = smoothing if chart.smoothed else 0.0
        points, middle = _scaled(chart, line.metric, measured, means)
        dash = DASHES[line.place % len(DASHES)]
        if line.spread in measured:
            _band(drawn, chart, line, measured, means, _tone(colours, line.tone))
        _add(drawn, points, middle, line.label, _tone(colours, line.tone), weight=weight, dash=dash)
    drawn.update_layout(showlegend=len(present) > 1)
    if clip:
        _clip(drawn, [measured[line.metric][1] * chart.scale for line in present], log=log and chart.log)
    if not present:
        _wait(drawn, colours)
    return drawn


def _clip(drawn: go.Figure, values: Sequence[Floats], *, log: bool) -> None:
    """A y axis from the lowest to the highest percent of the points: a spike does not flatten the rest."""
    every = np.concatenate(values) if values else np.empty(0)
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    if len(every) < ENOUGH_TO_CLIP:
        return
    low, high = np.percentile(np.log10(every) if log else every, (1, 99))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    drawn.update_yaxes(range=[float(low - room), float(high + room)])


def _band(
    drawn: go.Figure, chart: Chart, line: Line, measured: Measured, means: Measured, colour: str
) -> None:
    """How far single values lie from a line's, as a pale ground on both sides of it."""
    _, (steps, middle) = _scaled(chart, line.metric, measured, means)
    _, (at, off) = _scaled(chart, line.spread, measured, means)
    if len(steps) < 2 or not len(at):
        return
    off = np.interp(steps, at, off)
    x, low = thinned((steps, middle - off), POINTS)
    back, high = thinned((steps, middle + off), POINTS)
    drawn.add_trace(
        go.Scatter(
            x=np.concatenate([back, x[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor=colour,
            line={"width": 0, "color": colour},
            mode="lines",
            opacity=0.13,
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _scaled(
    chart: Chart, name: str, curves: Mapping[str, Series], means: Mapping[str, Series]
) -> tuple[Series, Series]:
    """A curve and what of it is smoothed, in the chart's unit."""
    (steps, values), (at, middle) = curves[name], means.get(name, curves[name])
    return (steps, values * chart.scale), (at, middle * chart.scale)


def _wait(drawn: go.Figure, colours: Palette) -> None:
    """An empty frame with a word in it: the same element then grows, so that nothing jumps at the first point."""
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    said = {
        "text": tr("no data yet"),
        "showarrow": False,
        "font": {"size": 12, "color": colours.quiet},
    }
    drawn.add_annotation(xref="paper", yref="paper", x=0.5, y=0.5, **said)


def overlay(
    chart: Chart,
    curves: Mapping[str, Series],
    names: Mapping[str, str],
    means: Mapping[str, Series] = NONE,
    *,
    smoothing: float,
    log: bool,
    clip: bool = False,
) -> go.Figure:
    """One metric of several runs: a colour and a dash each. `curves`, `names` and `means` (see `figure`) go by run id; a
    run's place in `names` is its colour, so that it keeps it from metric to metric."""
    colours = PALETTES["light"]
    drawn = go.Figure(layout=_layout(colours, replace(chart, span=None), log))
    weight = smoothing if chart.smoothed else 0.0
    for place, (run_id, name) in enumerate(names.items()):
        if run_id in curves:
            colour, dash = colours.series[place % 6], DASHES[place % 6]
            points, middle = _scaled(chart, run_id, curves, means)
            _add(drawn, points, middle, name, colour, weight=weight, dash=dash)
    drawn.update_layout(height=320, showlegend=len(curves) > 1)
    if clip:
        _clip(drawn, [curves[i][1] * chart.scale for i in names if i in curves], log=log and chart.log)
    return drawn


def colours() -> Palette:
    """What figures are drawn in: the browser puts the dark ones in their places."""
    return PALETTES["light"]


def empty(chart: Chart) -> go.Figure:
    """A figure with nothing in it, laid out as a chart's."""
    return go.Figure(layout=_layout(colours(), replace(chart, span=None), False))


def as_csv(curves: Mapping[str, Series], names: Mapping[str, str], metric: str) -> str:
    """The points as a table: run, step, value. A name that a spreadsheet would take for a formula is quoted."""
    made = io.StringIO()
    table = csv.writer(made)
    table.writerow(["run", "step", metric])
    for run_id, (steps, values) in curves.items():
        name = names.get(run_id, run_id)
        safe = f"'{name}" if name[:1] in "=+-@" else name
        table.writerows([safe, int(step), float(value)] for step, value in zip(steps, values, strict=True))
    return made.getvalue()


def shows(edges: Floats, cutoff: int) -> bool:
    """Whether the cutoff, in tokens, is near enough to the longest row for a line in the chart of lengths."""
    return cutoff <= float(edges[-1]) * 1.3


def lengths(edges: Floats, counts: Floats, cutoff: int) -> go.Figure:
    """How many rows have each length in tokens, and where the cutoff falls; what lies beyond it has the other colour."""
    colours = PALETTES["light"]
    drawn = go.Figure(layout=_layout(colours, Chart("lengths", "", (), "", axis=tr("tokens")), False))
    fill = [colours.bad if edge >= cutoff else colours.good for edge in edges[:-1]]
    ranges = [tr("{a:.0f} to {b:.0f}", a=a, b=b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    drawn.add_trace(
        go.Bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges) * 0.92,
            marker={"color": fill, "line": {"width": 0}},
            customdata=ranges,
            hovertemplate=tr("%{customdata} tokens: %{y:,} rows") + "<extra></extra>",
        )
    )
    if shows(edges, cutoff):
        drawn.add_vline(x=cutoff, line={"color": colours.ink, "dash": "dash", "width": 1.4})
    drawn.update_layout(hovermode="closest", hoverdistance=20, showlegend=False)
    return drawn


_chart = st.components.v2.component(
    "tuner-chart", js=Path(__file__).with_name("chart.js").read_text(encoding="utf-8"), isolate_styles=False
)


@st.cache_resource(show_spinner=False)
def _library() -> str:
    """Where this server has plotly.js: the file that the installed Plotly brings along."""
    folder = Path(plotly.__file__).with_name("package_data")
    return f"component/{declare_component('plotly', folder).name}/plotly.min.js"


class Picture(NamedTuple):
    """A figure ready for the browser, and what is read out of it."""

    key: str
    figure: str
    height: int
    alt: str
    group: str = ""
    """Charts of one group share their crosshair and their zoom along x."""


def picture(drawn: go.Figure, key: str, alt: str, group: str = "") -> Picture:
    """A figure as JSON, which is most of the work of drawing it."""
    drawn.update_layout(uirevision=key)
    # A range on one scale means nothing on the other.
    clipped = "clipped" if drawn.layout.yaxis.range else ""
    drawn.update_xaxes(uirevision=f"{key} {group}")
    drawn.update_yaxes(uirevision=f"{key} {drawn.layout.yaxis.type or 'linear'} {clipped}")
    return Picture(key, str(drawn.to_json()), int(drawn.layout.height), alt, group)


def draw(drawn: go.Figure, key: str, alt: str, group: str = "") -> None:
    """Put a figure on the page, or the new state of the one that is there under the same key; `alt` is read out."""
    show(picture(drawn, key, alt, group))


def show(one: Picture) -> None:
    """Put a picture on the page, or in the place of the one with the same key.

    Streamlit's own element makes a new chart of a figure with other data, and zoom and hover end. This one hands the
    data to the chart that is there.
    """
    _chart(
        key=f"chart-{one.key}",
        data={
            "figure": one.figure,
            "alt": one.alt,
            "dark": dark(),
            "height": one.height,
            "group": one.group,
            "library": _library(),
        },
    )


def in_words(title: str, curves: Mapping[str, Series], scale: float = 1.0) -> str:
    """A chart for who cannot see it: of each named line the ends and the extremes, by step."""
    told = [_line_in_words(name, *curve, scale) for name, curve in curves.items() if len(curve[0])]
    return tr("{title}: {curves}.", title=title, curves="; ".join(told) or tr("no point yet"))


def _line_in_words(name: str, steps: NDArray[Any], values: Floats, scale: float) -> str:
    finite = values[np.isfinite(values)] * scale
    if not len(finite):
        return tr("{name} is not a number", name=name)
    ends = tr(
        "{name} {first} at {began:,}, {last} at {ended:,}",
        name=name,
        first=number(finite[0]),
        began=steps[0],
        last=number(finite[-1]),
        ended=steps[-1],
    )
    return tr(
        "{ends}, lowest {min}, highest {max}", ends=ends, min=number(finite.min()), max=number(finite.max())
    )


def _add(
    drawn: go.Figure,
    points: Series,
    middle: Series,
    name: str,
    colour: str,
    *,
    weight: float,
    dash: str = "solid",
) -> None:
    """A line; pale with its smoothed self over it where `weight` asks for that."""
    smoothed = bool(weight) and len(points[1]) >= 4
    if smoothed:
        x, y = thinned(points, POINTS)
        pale = {"color": colour, "width": 1}
        drawn.add_trace(
            go.Scatter(x=x, y=y, mode="lines", line=pale, opacity=0.3, hoverinfo="skip", showlegend=False)
        )
    x, y = thinned((middle[0], smooth(middle[1], weight)) if smoothed else points, POINTS)
    drawn.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name=plain(name),
            mode="lines+markers" if len(x) < 3 else "lines",
            marker={"size": 6, "color": colour},
            line={"color": colour, "width": 2.2, "dash": dash},
            hovertemplate=f"{plain(name)} %{{y:.4~g}}<extra></extra>",
        )
    )


def plain(name: str) -> str:
    """A run's name inside a chart: Plotly reads tags and placeholders."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _tone(colours: Palette, tone: Tone) -> str:
    named = {
        "good": colours.good,
        "bad": colours.bad,
        "first": colours.series[0],
        "second": colours.series[1],
    }
    return named.get(tone, colours.series[2])


def _layout(colours: Palette, chart: Chart, log: bool) -> dict[str, Any]:
    small = {"size": 11, "color": colours.quiet}
    line: dict[str, Any] = {
        "gridcolor": colours.grid,
        "zeroline": False,
        "tickfont": small,
        "automargin": True,
        "fixedrange": False,
    }
    y: dict[str, Any] = {**line, "nticks": 5, "tickformat": ".4~g", "title": None}
    if log and chart.log:
        y |= {"type": "log", "dtick": None}
    if chart.span and not log:
        low, high = chart.span
        y |= {"range": [low, high * 1.03], "tickvals": np.linspace(low, high, 5).tolist()}
    return {
        "template": {},  # Plotly's own is larger than the data, and all of it is said here
        "height": 230,
        "margin": {"l": 4, "r": 10, "t": 6, "b": 4},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONTS, "color": colours.ink, "size": 12},
        "hovermode": "x unified",
        "hoverdistance": -1,  # few points lie far apart, and the nearest is meant
        "hoverlabel": {
            "bgcolor": colours.surface,
            "bordercolor": colours.grid,
            "font": {"color": colours.ink},
        },
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font": small,
            "bgcolor": "rgba(0,0,0,0)",
        },
        "dragmode": "zoom",
        "xaxis": {
            **line,
            "showgrid": False,
            "nticks": 6,
            "title": {"text": chart.axis, "font": small, "standoff": 4},
            "hoverformat": ",.2f" if chart.fine else ",.0f",
            "rangemode": "tozero",
        },
        "yaxis": y,
    }
